"""Extend the semantic basis by the catalogue's new items: items -> item_embeddings (DESIGN section 4).

Only items without a vector in the configured basis are encoded; vectors that are there never change.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.errors import PythonException
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from jobs.basis import BasisError, catalogue_versions, encoder_config
from jobs.config import parse_config
from jobs.entry import run_job
from jobs.tables import Lake, open_lake
from lte_models.encoder_images import ImageError, decode_image, image_bytes
from lte_models.encoders import (
    EncoderConfig,
    EncoderError,
    FloatArray,
    ItemEncoder,
    aggregate,
    basis_version,
    item_text,
    load_encoder,
)
from schemas import ITEM_EMBEDDINGS, ITEMS

JOB = "embed_items"
TEXT_COLUMNS = ("title", "description", "category", "brand")
IMAGE_COLUMNS = ("image", "image_path")
# Vectors of texts that a partition keeps, so that items with one text are encoded once: 32 k x 512 floats are 64 MiB.
MAX_KEPT_TEXTS = 32_768
# An engine's batch has some 10,000 rows: too many pictures to hold twice.
MAX_PICTURED_ROWS = 1024
# A text with any of these is certainly not empty.
VISIBLE = r"[\p{L}\p{N}\p{P}\p{S}]"
# A picture that can be read now, of an item whose vector was made without it.
LATER = "came_later"


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


def extend_basis(
    lake: Lake, encoder: EncoderConfig, *, ds: date, landing: Path, partitions: int
) -> dict[str | tuple[str, str], float]:
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
        lte_models.encoders.EncoderError: The encoder cannot be built, or gave a vector that cannot be used.
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
    _say(f"ds {ds}: basis {state.version} holds {state.n_items} items, {n_encoded} are new")
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


def _say(message: str) -> None:
    print(f"{JOB}: {message}", file=sys.stderr, flush=True)


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
    images = [F.when(~is_visible, F.col(name)).alias(name) for name in _image_columns(task)]
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
    columns = ("item_id", "item_index", "first_ds", *TEXT_COLUMNS, *_image_columns(task))
    placed = fresh.select(*columns).repartition(partitions, *TEXT_COLUMNS)
    return placed.mapInArrow(task.encode, _nullable(ITEM_EMBEDDINGS.schema))


def _image_columns(task: EncodeTask) -> tuple[str, ...]:
    return IMAGE_COLUMNS if task.encoder.reads_images else ()


def _nullable(schema: StructType) -> StructType:
    return StructType([StructField(each.name, each.dataType, True) for each in schema])


_STRING_SCHEMA = StructType([StructField("item_id", StringType())])
_REASON_SCHEMA = StructType([StructField("reason", StringType())])


@dataclass(frozen=True)
class EncodeTask:
    """What the engine runs in each partition; it crosses process borders, the model does not.

    Attributes:
        encoder: Builds the model, once a process.
        basis_version: The basis that the driver named; a worker with other weights fails.
        landing: Folder that ``image_path`` is relative to, as the workers see it.
    """

    encoder: EncoderConfig
    basis_version: str
    landing: str

    def encode(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Encode catalogue rows to rows of item_embeddings; the weights are loaded at the first row."""
        kept: dict[str, FloatArray] = {}
        for batch in batches:
            step = MAX_PICTURED_ROWS if self.encoder.reads_images else max(1, batch.num_rows)
            for start in range(0, batch.num_rows, step):
                encoder = load_encoder(self.encoder, self.basis_version)
                yield self._encode_batch(batch.slice(start, step), encoder, kept)

    def encodable(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Pass the ids of items that have a text or a readable picture."""
        for batch in batches:
            rows = batch.to_pylist()
            ids = [row["item_id"] for row in rows if _text(row) or self._picture_problem(row) == LATER]
            yield pa.record_batch({"item_id": pa.array(ids, pa.string())})

    def picture_problems(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Say for each item why its picture is not part of its vector."""
        for batch in batches:
            reasons = [self._picture_problem(row) for row in batch.to_pylist()]
            yield pa.record_batch({"reason": pa.array(reasons, pa.string())})

    def _picture_problem(self, row: dict[str, Any]) -> str:
        try:
            encoded = image_bytes(row.get("image"), row.get("image_path"), Path(self.landing))
            if encoded is None:
                return "none"
            decode_image(encoded)
        except ImageError as error:
            return error.reason
        return LATER

    def _encode_batch(self, batch: pa.RecordBatch, encoder: ItemEncoder, kept: dict[str, FloatArray]) -> pa.RecordBatch:
        rows = batch.to_pylist()
        items = _Items([row["item_id"] for row in rows], [_text(row) for row in rows], encoder.dim)
        n_texts = _encode_texts(items, encoder, kept)
        if self.encoder.reads_images:
            self._encode_pictures(items, rows, encoder)
        _say(f"encoded {len(rows)} items: {n_texts} texts not seen before, {int(items.has_image.sum())} pictures")
        vectors = items.vectors()  # [N, D]
        return pa.record_batch(
            {
                "item_id": pa.array(items.ids, pa.string()),
                "basis_version": pa.array([self.basis_version] * len(rows), pa.string()),
                "item_index": batch.column("item_index"),
                "content_hash": pa.array(items.content_hashes(), pa.string()),
                "source": pa.array(items.sources(), pa.string()),
                "first_ds": batch.column("first_ds"),
                "embedding": _lists(vectors),
            }
        )

    def _encode_pictures(self, items: _Items, rows: Sequence[dict[str, Any]], encoder: ItemEncoder) -> None:
        """Decode and encode a few pictures at a time: decoded ones are large. One that is unusable is passed over."""
        pictured = [number for number, row in enumerate(rows) if row["image"] or row["image_path"]]
        for start in range(0, len(pictured), self.encoder.batch_size):
            numbers, pictures = [], []
            for number in pictured[start : start + self.encoder.batch_size]:
                try:
                    encoded = image_bytes(rows[number]["image"], rows[number]["image_path"], Path(self.landing))
                    assert encoded is not None  # for the type checker: the row names a picture
                    pictures.append(decode_image(encoded))
                except ImageError:
                    continue  # counted from the table afterwards, by picture_problems
                numbers.append(number)
                items.image_digests[number] = hashlib.sha256(encoded).hexdigest()
            if numbers:
                items.images[numbers] = encoder.encode_images(pictures)


def _text(row: dict[str, Any]) -> str:
    return item_text(*(row[name] for name in TEXT_COLUMNS))


@dataclass
class _Items:
    """The items of one batch on their way to vectors; N rows, D floats."""

    ids: list[str]
    words: list[str]
    dim: int
    image_digests: dict[int, str] = field(default_factory=dict)
    texts: FloatArray = field(init=False)
    images: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self.texts = np.zeros((len(self.ids), self.dim), dtype=np.float32)
        self.images = np.zeros((len(self.ids), self.dim), dtype=np.float32)

    @property
    def has_text(self) -> NDArray[np.bool_]:
        return np.array([bool(words) for words in self.words])

    @property
    def has_image(self) -> NDArray[np.bool_]:
        return np.array([number in self.image_digests for number in range(len(self.ids))])

    def sources(self) -> list[str]:
        """Values of column ``source``; an item with nothing is an error of ours, found by :meth:`vectors`."""
        names = {(True, True): "image+text", (True, False): "image", (False, True): "text", (False, False): ""}
        return [names[bool(i), bool(t)] for i, t in zip(self.has_image, self.has_text, strict=True)]

    def content_hashes(self) -> list[str]:
        """Hash of what was encoded: the text, and the picture's bytes where it was used."""
        contents = ((words, self.image_digests.get(number, "")) for number, words in enumerate(self.words))
        return [hashlib.sha256(f"{words}\0{image}".encode()).hexdigest()[:32] for words, image in contents]

    def vectors(self) -> FloatArray:
        """Aggregate each item's picture and text: float32 [N, D], rows of length 1."""
        whole = np.zeros_like(self.texts)
        sources = np.array(self.sources())
        for source in np.unique(sources):
            rows = np.flatnonzero(sources == source)
            images = self.images[rows] if "image" in source else None
            texts = self.texts[rows] if "text" in source else None
            whole[rows] = aggregate(images, texts, [self.ids[row] for row in rows])
        return whole


def _encode_texts(items: _Items, encoder: ItemEncoder, kept: dict[str, FloatArray]) -> int:
    """Fill in the text vectors; texts that this partition has met are not encoded again. Returns how many were."""
    unseen = sorted({words for words in items.words if words} - kept.keys())
    if len(kept) + len(unseen) > MAX_KEPT_TEXTS:
        unseen = sorted({words for words in items.words if words})
        kept.clear()
    kept.update(zip(unseen, encoder.encode_texts(unseen), strict=True))
    for number in np.flatnonzero(items.has_text):
        items.texts[number] = kept[items.words[number]]
    return len(unseen)


def _lists(vectors: FloatArray) -> pa.ListArray:
    n, dim = vectors.shape
    offsets = pa.array(np.arange(0, (n + 1) * dim, dim, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(vectors.reshape(-1)))


def _coverage(
    lake: Lake, items: DataFrame, catalogue: DataFrame, task: EncodeTask
) -> dict[str | tuple[str, str], float]:
    """How much of the catalogue the basis holds now; the same for every rerun of the day."""
    known = lake.read(ITEM_EMBEDDINGS, where={"basis_version": task.basis_version}).select("item_id", "source")
    joined = catalogue.join(known, "item_id", "left")
    total = joined.agg(F.count("*").alias("catalogue"), F.count("source").alias("in_basis")).collect()[0]
    counts: dict[str | tuple[str, str], float] = {
        "n_catalogue": total["catalogue"],
        "n_in_basis": total["in_basis"],
        "n_left_out": total["catalogue"] - total["in_basis"],
    }
    unpictured = joined.where(F.col("source").isNull() | (F.col("source") == F.lit("text"))).drop("source")
    return counts | (_unused_images(with_content(items, unpictured), task) if task.encoder.reads_images else {})


def _unused_images(unpictured: DataFrame, task: EncodeTask) -> dict[str | tuple[str, str], float]:
    has_image = F.col("image").isNotNull() | F.col("image_path").isNotNull()
    unused = unpictured.where(has_image).select("image", "image_path")
    reasons = unused.mapInArrow(task.picture_problems, _REASON_SCHEMA).groupBy("reason").count().collect()
    return {("n_image_not_used", row["reason"]): float(row["count"]) for row in reasons if row["reason"] != "none"}


if __name__ == "__main__":
    run_job(main)
