"""Extend the semantic basis by the catalogue's new items: items -> item_embeddings (ADR 0004).

Only items without a vector in the configured basis are encoded; vectors that are there never change. Items are
committed in portions, so that a run that was killed loses minutes. Each commit is conditional on the version of the
table that its numbers follow, so that two runs never number two items alike.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.errors import PythonException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from jobs.basis.basis import BasisError, catalogue_versions, encoder_config
from jobs.basis.encode import NONE, PICTURE_BATCH_BYTES, TEXT_COLUMNS, EncodeTask
from jobs.basis.repair import numbering_of
from jobs.lake.lake import Lake, Metrics, open_lake
from jobs.runtime.entry import run_job, say
from jobs.runtime.flags import parse_config
from lte_models.encoders.base import EncoderConfig, EncoderError
from lte_models.encoders.loading import basis_version
from schemas import ITEM_EMBEDDINGS, ITEMS

JOB = "embed_items"

# A commit holds at least so many items, so that small catalogues are encoded at once; 8 MB of vectors at D = 512.
MIN_PORTION = 4096
# Each portion reads the days of the catalogue that it is from: so there are not too many portions ...
MAX_PORTIONS = 64
# ... unless their vectors would not fit: 128 MB at D = 512.
MAX_PORTION = 65_536

# A text with any of these is certainly not empty.
VISIBLE = r"[\p{L}\p{N}\p{P}\p{S}]"
_STRING_SCHEMA = StructType([StructField("item_id", StringType())])
_REASON_SCHEMA = StructType([StructField("reason", StringType())])


def main(argv: Sequence[str] | None = None) -> None:
    """Encode what is new in the catalogue of ``--ds``."""
    config = parse_config(argv, JOB, __doc__)
    encoder = encoder_config(config.deployment.basis)
    landing = Path(config.deployment.paths.landing)
    with open_lake(config.deployment, JOB, config.ds) as lake:
        metrics = extend_basis(
            lake,
            encoder,
            ds=config.ds,
            landing=landing,
            partitions=config.deployment.engine.partitions,
            picture_batch_bytes=config.deployment.landing.max_picture_batch_bytes,
        )
        lake.record_metrics(config.ds, JOB, metrics)


def extend_basis(
    lake: Lake,
    encoder: EncoderConfig,
    *,
    ds: date,
    landing: Path,
    partitions: int,
    picture_batch_bytes: int = PICTURE_BATCH_BYTES,
) -> Metrics:
    """Give each item of the catalogue as of ``ds`` a vector in the encoder's basis, as far as it can have one.

    Args:
        lake: Reads items, writes item_embeddings.
        encoder: Names the basis; its weights are loaded only if something is new.
        ds: Data day.
        landing: Folder that ``image_path`` is relative to.
        partitions: Partitions that encode at once.
        picture_batch_bytes: Decoded bytes of pictures that a partition holds at once.

    Returns:
        ``n_catalogue`` items as of ds, ``n_in_basis`` of them with a vector, ``n_left_out`` without (neither text nor
        picture that can be used), ``n_encoded`` in this run, ``n_backdated`` items whose first landing day turned out
        to be earlier, and ``n_image_not_used`` by reason.

    Raises:
        BasisError: The basis in the lake is damaged.
        lte_models.encoders.base.EncoderError: The encoder cannot be built, or gave a vector that cannot be used.
    """
    lake.create(ITEM_EMBEDDINGS)
    task = EncodeTask(encoder, basis_version(encoder), str(landing), picture_batch_bytes)
    # Everything is computed from this version, and the first commit fails if the table has another one by then.
    version = lake.version(ITEM_EMBEDDINGS)
    assert version is not None  # for the type checker: the table was just made
    n_held = numbering_of(lake, task.basis_version, version).rows
    items = lake.read(ITEMS)
    catalogue = catalogue_versions(items, ds)
    known = lake.read(ITEM_EMBEDDINGS, version=version, where={"basis_version": task.basis_version})
    fresh = with_content(items, catalogue.join(known.select("item_id"), "item_id", "left_anti"))
    moved = landed_earlier(known, catalogue).toArrow()
    with _worker_errors():
        ids = sorted(encodable_ids(fresh, task).toArrow()["item_id"].to_pylist())
    say(JOB, f"ds {ds}: basis {task.basis_version} holds {n_held} items, {len(ids)} are new")
    if moved.num_rows:
        version = _backdate(lake, task.basis_version, moved, version)
    additions = Additions(fresh, ids, n_held, task, partitions)
    add_items(lake, additions, version)
    if ids or moved.num_rows:
        numbering_of(lake, task.basis_version)
    counts: Metrics = {"n_encoded": float(len(ids)), "n_backdated": float(moved.num_rows)}
    return counts | _coverage(lake, items, catalogue, task)


@dataclass(frozen=True)
class Additions:
    """Items that get a vector.

    Attributes:
        fresh: Their rows of items, with first_ds.
        ids: Their ids in order; the numbers follow this order.
        start: Number of the first one.
        task: The encoder and its basis.
        partitions: Partitions that encode at once.
    """

    fresh: DataFrame
    ids: Sequence[str]
    start: int
    task: EncodeTask
    partitions: int


def portion_size(n_items: int) -> int:
    """Items in one commit: a kill loses at most the encoding of these, and each commit reads the catalogue once."""
    return min(max(MIN_PORTION, math.ceil(n_items / MAX_PORTIONS)), MAX_PORTION)


def add_items(lake: Lake, additions: Additions, version: int) -> int:
    """Encode and commit items in portions, each on the version that the portion before it made.

    Args:
        lake: Writes item_embeddings.
        additions: Which items.
        version: Version of item_embeddings that the numbers follow.

    Returns:
        The last version.

    Raises:
        jobs.lake.lake.ConcurrentWriteError: Another process changed the table: its numbers and these would collide.
        BasisError: The engine lost rows.
    """
    size, total = portion_size(len(additions.ids)), len(additions.ids)
    for first in range(0, total, size):
        ids = additions.ids[first : first + size]
        rows = _encoded(lake, additions, ids, additions.start + first)
        version = lake.extend(rows, ITEM_EMBEDDINGS, version=version)
        say(JOB, f"{first + len(ids)} of {total} new items are in the basis")
    return version


def _encoded(lake: Lake, additions: Additions, ids: Sequence[str], start: int) -> pa.Table:
    """Rows of item_embeddings of some items, in the order of their numbers."""
    indices = pa.array(range(start, start + len(ids)), pa.int32())
    numbered = lake.spark.createDataFrame(pa.table({"item_id": pa.array(ids, pa.string()), "item_index": indices}))
    chosen = additions.fresh.join(F.broadcast(numbered), "item_id")
    with _worker_errors():
        rows = embedded(chosen, additions.task, additions.partitions).toArrow().sort_by("item_index")
    if rows["item_index"].to_pylist() != indices.to_pylist():
        raise BasisError(
            f"table item_embeddings, basis_version {additions.task.basis_version}: expected {len(ids)} encoded items "
            f"from {ids[0]!r} on, got {rows.num_rows}: did the table items change meanwhile? Run embed_items again"
        )
    return rows


def _backdate(lake: Lake, basis: str, moved: pa.Table, version: int) -> int:
    """Give items of the basis their earlier first_ds; vectors and numbers stay."""
    where = {"basis_version": basis}
    batches = lake.batches(ITEM_EMBEDDINGS, where=where, version=version)
    return lake.rewrite((_earlier(batch, moved) for batch in batches), ITEM_EMBEDDINGS, where, version=version)


def _earlier(batch: pa.RecordBatch, moved: pa.Table) -> pa.RecordBatch:
    """Rows of the basis with the days of ``moved``: item_id, landed_ds."""
    found = pc.index_in(batch["item_id"].cast(pa.string()), moved["item_id"].combine_chunks())
    days = pc.coalesce(moved["landed_ds"].combine_chunks().take(found), batch["first_ds"])
    return batch.set_column(batch.schema.get_field_index("first_ds"), "first_ds", days)


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


def with_content(items: DataFrame, versions: DataFrame) -> DataFrame:
    """Add the columns of items to some of its keys (item_id, landing_ds), reading only the days that they are of.

    On a day with few new items, few pictures are read and none is shuffled.
    """
    days = [row["landing_ds"] for row in versions.select("landing_ds").distinct().collect()]
    return items.where(F.col("landing_ds").isin(days)).join(versions, ["item_id", "landing_ds"])


def landed_earlier(known: DataFrame, catalogue: DataFrame) -> DataFrame:
    """Items of the basis that turn out to have landed before their ``first_ds``: item_id, landed_ds.

    This happens when days are loaded out of order: without it, the items would be unknown to the earlier day for ever.
    """
    landed = catalogue.select("item_id", F.col("first_ds").alias("landed_ds"))
    both = known.select("item_id", "first_ds").join(landed, "item_id")
    return both.where(F.col("landed_ds") < F.col("first_ds")).select("item_id", "landed_ds")


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
