"""Extend the semantic basis by the catalogue's new items: items -> item_embeddings (ADR 0004).

Only items without a vector in the configured basis are encoded; vectors that are there never change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from pyspark.errors import PythonException
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from jobs.basis.basis import BasisError, catalogue_versions, encoder_config
from jobs.basis.encode import NONE, TEXT_COLUMNS, EncodeTask
from jobs.lake.lake import Lake, Metrics, open_lake
from jobs.runtime.entry import run_job, say
from jobs.runtime.flags import parse_config
from lte_models.encoders.base import EncoderConfig, EncoderError
from lte_models.encoders.loading import basis_version
from schemas import ITEM_EMBEDDINGS, ITEMS

JOB = "embed_items"

# A text with any of these is certainly not empty.
VISIBLE = r"[\p{L}\p{N}\p{P}\p{S}]"
_STRING_SCHEMA = StructType([StructField("item_id", StringType())])
_REASON_SCHEMA = StructType([StructField("reason", StringType())])


def main(argv: Sequence[str] | None = None) -> None:
    """Encode what is new in the catalogue of ``--ds``."""
    config = parse_config(argv, JOB, __doc__)
    encoder = encoder_config(config.deployment.basis)
    landing = Path(config.deployment.paths.landing)
    with open_lake(config.deployment, JOB) as lake:
        metrics = extend_basis(
            lake, encoder, ds=config.ds, landing=landing, partitions=config.deployment.engine.partitions
        )
        lake.record_metrics(config.ds, JOB, metrics)


@dataclass(frozen=True)
class BasisState:
    """What a basis holds before a run: ``n_items`` vectors, numbered from 0 without a gap."""

    version: str
    n_items: int


def extend_basis(lake: Lake, encoder: EncoderConfig, *, ds: date, landing: Path, partitions: int) -> Metrics:
    """Give each item of the catalogue as of ``ds`` a vector in the encoder's basis, as far as it can have one.

    Args:
        lake: Reads items, writes item_embeddings.
        encoder: Names the basis; its weights are loaded only if something is new.
        ds: Data day.
        landing: Folder that ``image_path`` is relative to.
        partitions: Partitions that encode at once.

    Returns:
        ``n_catalogue`` items as of ds, ``n_in_basis`` of them with a vector, ``n_left_out`` without (neither text nor
        picture that can be used), ``n_encoded`` in this run, ``n_backdated`` items whose first landing day turned out
        to be earlier, and ``n_image_not_used`` by reason.

    Raises:
        BasisError: The basis in the lake is damaged.
        lte_models.encoders.base.EncoderError: The encoder cannot be built, or gave a vector that cannot be used.
    """
    state = _basis_state(lake, basis_version(encoder))
    task = EncodeTask(encoder, state.version, str(landing))
    items = lake.read(ITEMS)
    catalogue = catalogue_versions(items, ds)
    known = lake.read(ITEM_EMBEDDINGS, where={"basis_version": state.version})
    fresh = with_content(items, catalogue.join(known.select("item_id"), "item_id", "left_anti"))
    numbered = numbered_ids(encodable_ids(fresh, task), state.n_items)
    n_encoded = numbered.count()
    n_backdated = landed_earlier(known, catalogue).count()
    say(JOB, f"ds {ds}: basis {state.version} holds {state.n_items} items, {n_encoded} are new")
    rows = embedded(fresh.join(numbered, "item_id"), task, partitions) if n_encoded else None
    with _worker_errors():
        _write(lake, state, rows, backdated(known, catalogue) if n_backdated else None)
    counts = {"n_encoded": float(n_encoded), "n_backdated": float(n_backdated)}
    return counts | _coverage(lake, items, catalogue, task)


@contextmanager
def _worker_errors() -> Iterator[None]:
    """Raise an encoder's error as it was raised in the worker, without the engine's stack trace around it."""
    try:
        yield
    except PythonException as error:
        found = re.search(r"EncoderError: (.+)", str(error))
        if found is None:
            raise
        raise EncoderError(found[1]) from error


def _basis_state(lake: Lake, version: str) -> BasisState:
    """Check that the basis is numbered without gap or repetition, as every reader of the matrix assumes."""
    rows = lake.read(ITEM_EMBEDDINGS, where={"basis_version": version})
    found = rows.agg(
        F.count("*").alias("rows"),
        F.countDistinct("item_id").alias("items"),
        F.countDistinct("item_index").alias("indices"),
        F.coalesce(F.max("item_index") + 1, F.lit(0)).alias("end"),
    ).collect()[0]
    if len({found["rows"], found["items"], found["indices"], found["end"]}) != 1:
        raise BasisError(
            f"table item_embeddings, basis_version {version}: {found['rows']} rows, {found['items']} item ids, "
            f"{found['indices']} indices below {found['end']} should be one number: two runs wrote at once? Restore "
            f"an earlier version (now {lake.version(ITEM_EMBEDDINGS)})"
        )
    return BasisState(version, found["rows"])


def _write(lake: Lake, state: BasisState, fresh: DataFrame | None, moved: DataFrame | None) -> None:
    """Write everything in one commit: new rows are added; rows that moved to an earlier day replace the basis."""
    if moved is not None:
        rows = moved if fresh is None else moved.unionByName(fresh)
        lake.replace(rows, ITEM_EMBEDDINGS, {"basis_version": state.version}, is_retried=False)
    elif fresh is not None:
        lake.append(fresh, ITEM_EMBEDDINGS)
    if fresh is not None or moved is not None:
        _basis_state(lake, state.version)


def with_content(items: DataFrame, versions: DataFrame) -> DataFrame:
    """Add the columns of items to some of its keys (item_id, landing_ds), reading only the days that they are of.

    On a day with few new items, few pictures are read and none is shuffled.
    """
    days = [row["landing_ds"] for row in versions.select("landing_ds").distinct().collect()]
    return items.where(F.col("landing_ds").isin(days)).join(versions, ["item_id", "landing_ds"])


def numbered_ids(item_ids: DataFrame, start: int) -> DataFrame:
    """Number items from ``start`` in the order of their ids: item_id, item_index."""
    everything = Window.partitionBy(F.lit(0))  # numbers are global; these are ids only
    index = F.row_number().over(everything.orderBy("item_id")) - 1 + F.lit(start)
    return item_ids.select("item_id", index.cast("int").alias("item_index"))


def landed_earlier(known: DataFrame, catalogue: DataFrame) -> DataFrame:
    """Items of the basis that turn out to have landed before their ``first_ds``: item_id, landed_ds.

    This happens when days are loaded out of order: without it, the items would be unknown to the earlier day for ever.
    """
    landed = catalogue.select("item_id", F.col("first_ds").alias("landed_ds"))
    both = known.select("item_id", "first_ds").join(landed, "item_id")
    return both.where(F.col("landed_ds") < F.col("first_ds")).select("item_id", "landed_ds")


def backdated(known: DataFrame, catalogue: DataFrame) -> DataFrame:
    """The rows of the basis, each with the earliest first_ds; vectors and numbers as they were."""
    joined = known.join(landed_earlier(known, catalogue), "item_id", "left")
    return joined.withColumn("first_ds", F.coalesce("landed_ds", "first_ds")).select(*ITEM_EMBEDDINGS.columns)


def encodable_ids(fresh: DataFrame, task: EncodeTask) -> DataFrame:
    """Ids of the items that have a text, or a picture that can be read: item_id.

    Pictures are looked at only where there is no text. Items are numbered before they are encoded, so that numbers
    have no gaps and vectors are never shuffled.
    """
    is_visible = F.concat_ws(" ", *TEXT_COLUMNS).rlike(VISIBLE)
    images = [F.when(~is_visible, F.col(name)).alias(name) for name in task.image_columns]
    return fresh.select("item_id", *TEXT_COLUMNS, *images).mapInArrow(task.encodable, _STRING_SCHEMA)


def embedded(fresh: DataFrame, task: EncodeTask, partitions: int) -> DataFrame:
    """Encode items: rows of item_embeddings.

    Items with one text meet in one partition, so that it is encoded once; ids, texts and pictures go through the
    shuffle, vectors do not.

    Args:
        fresh: Catalogue rows with ``item_index`` and ``first_ds``; each has something to encode.
        task: The encoder and its basis.
        partitions: Partitions that encode at once.
    """
    columns = ("item_id", "item_index", "first_ds", *TEXT_COLUMNS, *task.image_columns)
    placed = fresh.select(*columns).repartition(partitions, *TEXT_COLUMNS)
    return placed.mapInArrow(task.encode, ITEM_EMBEDDINGS.row_type())


def _coverage(lake: Lake, items: DataFrame, catalogue: DataFrame, task: EncodeTask) -> Metrics:
    """How much of the catalogue the basis holds now; the same for every rerun of the day."""
    known = lake.read(ITEM_EMBEDDINGS, where={"basis_version": task.basis_version}).select("item_id", "source")
    joined = catalogue.join(known, "item_id", "left")
    total = joined.agg(F.count("*").alias("catalogue"), F.count("source").alias("in_basis")).collect()[0]
    counts: Metrics = {
        "n_catalogue": total["catalogue"],
        "n_in_basis": total["in_basis"],
        "n_left_out": total["catalogue"] - total["in_basis"],
    }
    unpictured = joined.where(F.col("source").isNull() | (F.col("source") == F.lit("text"))).drop("source")
    return counts | (_unused_images(with_content(items, unpictured), task) if task.encoder.reads_images else {})


def _unused_images(unpictured: DataFrame, task: EncodeTask) -> Metrics:
    has_image = F.col("image").isNotNull() | F.col("image_path").isNotNull()
    unused = unpictured.where(has_image).select("image", "image_path")
    reasons = unused.mapInArrow(task.picture_problems, _REASON_SCHEMA).groupBy("reason").count().collect()
    return {("n_image_not_used", row["reason"]): float(row["count"]) for row in reasons if row["reason"] != NONE}


if __name__ == "__main__":
    run_job(main)
