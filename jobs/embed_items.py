"""Extend the semantic basis by the catalogue's new items: items -> item_embeddings (ADR 0004).

Only items without a vector in the configured basis are encoded; existing vectors never change. Items are committed in
portions, so that a killed run loses only minutes of work. The item numbers of a commit follow one version of the table,
and the commit fails if the table has another version. So two runs never give two items the same number.
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

# Smallest number of items per commit, so that a small catalogue needs one commit. 8 MB of vectors at D = 512.
MIN_PORTION = 4096
# Each portion reads the catalogue days of its items again, so the number of portions is limited.
MAX_PORTIONS = 64
# Largest number of items per commit, because the vectors of a portion must fit into memory. 128 MB at D = 512.
MAX_PORTION = 65_536

# A text with any of these is certainly not empty.
VISIBLE = r"[\p{L}\p{N}\p{P}\p{S}]"
_STRING_SCHEMA = StructType([StructField("item_id", StringType())])
_REASON_SCHEMA = StructType([StructField("reason", StringType())])


def main(argv: Sequence[str] | None = None) -> None:
    """Encode the new items in the catalogue of ``--ds``."""
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
    """Give each item of the catalogue as of ``ds`` a vector in the encoder's basis, if the item can be encoded.

    Args:
        lake: Reads items, writes item_embeddings.
        encoder: Names the basis. Its weights are loaded only if there are new items.
        ds: Data day.
        landing: Folder that ``image_path`` is relative to.
        partitions: Number of partitions that encode at the same time.
        picture_batch_bytes: Decoded bytes of pictures that a partition holds at the same time.

    Returns:
        Counts of items. ``n_catalogue``: items as of ds. ``n_in_basis``: items with a vector. ``n_left_out``: items
        without a vector, because they have no usable text and no usable picture. ``n_encoded``: items encoded by this
        run. ``n_backdated``: items whose first landing day is now known to be earlier. ``n_image_not_used``: unused
        pictures by reason.

    Raises:
        BasisError: The basis in the lake is damaged.
        lte_models.encoders.base.EncoderError: The encoder cannot be built, or returned a vector that cannot be used.
    """
    lake.create(ITEM_EMBEDDINGS)
    task = EncodeTask(encoder, basis_version(encoder), str(landing), picture_batch_bytes)
    # Everything is computed from this version. The first commit fails if the table has another version by then.
    version = lake.version(ITEM_EMBEDDINGS)
    assert version is not None  # for the type checker: the table was created above
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
        fresh: Rows of table items, with first_ds.
        ids: Item ids; the item numbers follow the order of this list.
        start: Number of the first item.
        task: The encoder and its basis.
        partitions: Number of partitions that encode at the same time.
    """

    fresh: DataFrame
    ids: Sequence[str]
    start: int
    task: EncodeTask
    partitions: int


def portion_size(n_items: int) -> int:
    """Items per commit. A kill loses the encoding of at most one portion; each commit reads the catalogue once."""
    return min(max(MIN_PORTION, math.ceil(n_items / MAX_PORTIONS)), MAX_PORTION)


def add_items(lake: Lake, additions: Additions, version: int) -> int:
    """Encode and commit items in portions; each portion builds on the version of the portion before it.

    Args:
        lake: Writes item_embeddings.
        additions: The items.
        version: Version of item_embeddings that the numbers follow.

    Returns:
        The last version.

    Raises:
        jobs.lake.lake.ConcurrentWriteError: Another process changed the table, so that item numbers could repeat.
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
    """Write the earlier first_ds of items in the basis; vectors and item numbers do not change."""
    where = {"basis_version": basis}
    batches = lake.batches(ITEM_EMBEDDINGS, where=where, version=version)
    return lake.rewrite((_earlier(batch, moved) for batch in batches), ITEM_EMBEDDINGS, where, version=version)


def _earlier(batch: pa.RecordBatch, moved: pa.Table) -> pa.RecordBatch:
    """Rows of the basis, with first_ds from ``moved`` (item_id, landed_ds) for the items in ``moved``."""
    found = pc.index_in(batch["item_id"].cast(pa.string()), moved["item_id"].combine_chunks())
    days = pc.coalesce(moved["landed_ds"].combine_chunks().take(found), batch["first_ds"])
    return batch.set_column(batch.schema.get_field_index("first_ds"), "first_ds", days)


@contextmanager
def _worker_errors() -> Iterator[None]:
    """Raise an encoder's error from a worker again, without the stack trace of the engine."""
    try:
        yield
    except PythonException as error:
        found = re.search(r"EncoderError: (.+)", str(error))
        if found is None:
            raise
        raise EncoderError(found[1]) from error


def with_content(items: DataFrame, versions: DataFrame) -> DataFrame:
    """Add the columns of table items to some of its keys (item_id, landing_ds); reads only the days of these keys.

    On a day with few new items, few pictures are read and none is shuffled.
    """
    days = [row["landing_ds"] for row in versions.select("landing_ds").distinct().collect()]
    return items.where(F.col("landing_ds").isin(days)).join(versions, ["item_id", "landing_ds"])


def landed_earlier(known: DataFrame, catalogue: DataFrame) -> DataFrame:
    """Items of the basis that landed before their recorded ``first_ds``: item_id, landed_ds.

    This happens when days are loaded out of order. Without a correction, the earlier day would never know these items.
    """
    landed = catalogue.select("item_id", F.col("first_ds").alias("landed_ds"))
    both = known.select("item_id", "first_ds").join(landed, "item_id")
    return both.where(F.col("landed_ds") < F.col("first_ds")).select("item_id", "landed_ds")


def encodable_ids(fresh: DataFrame, task: EncodeTask) -> DataFrame:
    """Ids of the items with a text, or with a picture that can be read: item_id.

    Pictures are read only for items without a text. Items get their numbers before they are encoded. So the numbers
    have no gaps, and vectors are never shuffled.
    """
    is_visible = F.concat_ws(" ", *TEXT_COLUMNS).rlike(VISIBLE)
    images = [F.when(~is_visible, F.col(name)).alias(name) for name in task.image_columns]
    return fresh.select("item_id", *TEXT_COLUMNS, *images).mapInArrow(task.encodable, _STRING_SCHEMA)


def embedded(fresh: DataFrame, task: EncodeTask, partitions: int) -> DataFrame:
    """Encode items: rows of item_embeddings.

    All items with the same text are in one partition, so that each text is encoded once. The shuffle moves ids, texts
    and pictures, but no vectors.

    Args:
        fresh: Catalogue rows with ``item_index`` and ``first_ds``. Each row has a text or a picture to encode.
        task: The encoder and its basis.
        partitions: Number of partitions that encode at the same time.
    """
    columns = ("item_id", "item_index", "first_ds", *TEXT_COLUMNS, *task.image_columns)
    placed = fresh.select(*columns).repartition(partitions, *TEXT_COLUMNS)
    return placed.mapInArrow(task.encode, ITEM_EMBEDDINGS.row_type())


def _coverage(lake: Lake, items: DataFrame, catalogue: DataFrame, task: EncodeTask) -> Metrics:
    """Number of catalogue items in the basis now; every rerun of the day gives the same number."""
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
