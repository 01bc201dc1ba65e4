"""What the engine runs in each partition to encode items: Arrow batches in, Arrow batches out.

Nothing here knows tables or sessions. Each process loads the model once, at its first row. Only the names of
encoder and basis are sent between processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from jobs.lake.vectors import list_column
from jobs.runtime.entry import say
from lte_models.encoders.base import EncoderConfig, Float32Array, ItemEncoder, aggregate, item_text
from lte_models.encoders.images import ImageError, decode_image, decoded_bytes, image_bytes
from lte_models.encoders.loading import load_encoder

TEXT_COLUMNS = ("title", "description", "category", "brand")
IMAGE_COLUMNS = ("image", "image_path")

# Vectors of texts that a partition keeps, so that items with one text are encoded once: 32 k x 512 floats are 64 MiB.
MAX_KEPT_TEXTS = 32_768

# A batch of the engine has about 10,000 rows: too many pictures to hold twice.
MAX_PICTURED_ROWS = 1024

# Decoded bytes of pictures that are held at once, if the deployment does not set this limit.
PICTURE_BATCH_BYTES = 256 << 20

# A picture that can be read now, of an item whose vector was made without it, and an item that names none.
LATER, NONE = "came_later", "none"


@dataclass(frozen=True)
class EncodeTask:
    """How items become rows of the basis; the engine sends it to its workers.

    Attributes:
        encoder: Builds the model, once per process.
        basis_version: The basis that the driver named; a worker with other weights fails.
        landing: Folder that ``image_path`` is relative to, as the workers see it.
        picture_batch_bytes: Decoded bytes of the pictures that are held at once (landing.max_picture_batch_bytes).
    """

    encoder: EncoderConfig
    basis_version: str
    landing: str
    picture_batch_bytes: int = PICTURE_BATCH_BYTES

    @property
    def image_columns(self) -> tuple[str, ...]:
        """Columns of items that the encoder can use beside the text."""
        return IMAGE_COLUMNS if self.encoder.reads_images else ()

    def encode(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Encode catalogue rows to rows of item_embeddings; the weights are loaded at the first row."""
        kept: dict[str, Float32Array] = {}
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
                return NONE
            self._require_room(encoded)
            decode_image(encoded)
        except ImageError as error:
            return error.reason
        return LATER

    def _encode_batch(
        self, batch: pa.RecordBatch, encoder: ItemEncoder, kept: dict[str, Float32Array]
    ) -> pa.RecordBatch:
        rows = batch.to_pylist()
        items = _Items([row["item_id"] for row in rows], [_text(row) for row in rows], encoder.dim)
        n_texts = _encode_texts(items, encoder, kept)
        if self.encoder.reads_images:
            self._encode_pictures(items, rows, encoder)
        _report(f"encoded {len(rows)} items: {n_texts} texts not seen before, {int(items.has_image.sum())} pictures")
        vectors = items.vectors()  # [N, D]
        return pa.record_batch(
            {
                "item_id": pa.array(items.ids, pa.string()),
                "basis_version": pa.array([self.basis_version] * len(rows), pa.string()),
                "item_index": batch.column("item_index"),
                "content_hash": pa.array(items.content_hashes(), pa.string()),
                "source": pa.array(items.sources(), pa.string()),
                "first_ds": batch.column("first_ds"),
                "embedding": list_column(vectors),
            }
        )

    def _require_room(self, encoded: bytes) -> int:
        """Decoded bytes of a picture; a picture that is larger than a batch is not decoded."""
        n_bytes = decoded_bytes(encoded)
        if n_bytes > self.picture_batch_bytes:
            expected = f"at most {self.picture_batch_bytes} decoded bytes (landing.max_picture_batch_bytes)"
            raise ImageError("too_large", f"expected {expected}, got {n_bytes}")
        return n_bytes

    def _encode_pictures(self, items: _Items, rows: Sequence[dict[str, Any]], encoder: ItemEncoder) -> None:
        """Decode and encode a few pictures at a time, because decoded pictures are large. Skip unusable pictures."""
        batch = _PictureBatch(items, encoder)
        for number, row in enumerate(rows):
            try:
                encoded = image_bytes(row["image"], row["image_path"], Path(self.landing))
                if encoded is None:
                    continue
                n_bytes = self._require_room(encoded)
                if batch.n_bytes + n_bytes > self.picture_batch_bytes or len(batch.numbers) == self.encoder.batch_size:
                    batch.encode()
                batch.add(number, decode_image(encoded), n_bytes)
            except ImageError:
                continue  # counted from the table afterwards, by picture_problems
            items.image_digests[number] = hashlib.sha256(encoded).hexdigest()
        batch.encode()


def _text(row: dict[str, Any]) -> str:
    return item_text(*(row[name] for name in TEXT_COLUMNS))


@dataclass
class _Items:
    """The items of one batch on their way to vectors; N rows, D floats."""

    ids: list[str]
    words: list[str]
    dim: int
    image_digests: dict[int, str] = field(default_factory=dict)
    texts: Float32Array = field(init=False)
    images: Float32Array = field(init=False)

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
        """Values of column ``source``. An item with neither text nor picture is a bug, which :meth:`vectors` finds."""
        names = {(True, True): "image+text", (True, False): "image", (False, True): "text", (False, False): ""}
        return [names[bool(i), bool(t)] for i, t in zip(self.has_image, self.has_text, strict=True)]

    def content_hashes(self) -> list[str]:
        """Hash of what was encoded: the text, and the picture's bytes where it was used."""
        contents = ((words, self.image_digests.get(number, "")) for number, words in enumerate(self.words))
        return [hashlib.sha256(f"{words}\0{image}".encode()).hexdigest()[:32] for words, image in contents]

    def vectors(self) -> Float32Array:
        """Aggregate each item's picture and text: float32 [N, D], rows of length 1."""
        whole = np.zeros_like(self.texts)
        sources = np.array(self.sources())
        for source in np.unique(sources):
            rows = np.flatnonzero(sources == source)
            images = self.images[rows] if "image" in source else None
            texts = self.texts[rows] if "text" in source else None
            whole[rows] = aggregate(images, texts, [self.ids[row] for row in rows])
        return whole


class _PictureBatch:
    """Decoded pictures that wait to be encoded together."""

    def __init__(self, items: _Items, encoder: ItemEncoder) -> None:
        self._items, self._encoder = items, encoder
        self.numbers: list[int] = []
        self._pictures: list[Image.Image] = []
        self.n_bytes = 0

    def add(self, number: int, picture: Image.Image, n_bytes: int) -> None:
        """Keep the picture of item ``number``."""
        self.numbers.append(number)
        self._pictures.append(picture)
        self.n_bytes += n_bytes

    def encode(self) -> None:
        """Fill in the vectors of the pictures, then free the pictures."""
        if self.numbers:
            self._items.images[self.numbers] = self._encoder.encode_images(self._pictures)
        self.numbers, self._pictures, self.n_bytes = [], [], 0


def _encode_texts(items: _Items, encoder: ItemEncoder, kept: dict[str, Float32Array]) -> int:
    """Fill in the text vectors; known texts are not encoded again. Returns the number of texts encoded."""
    unseen = sorted({words for words in items.words if words} - kept.keys())
    if len(kept) + len(unseen) > MAX_KEPT_TEXTS:
        unseen = sorted({words for words in items.words if words})
        kept.clear()
    kept.update(zip(unseen, encoder.encode_texts(unseen), strict=True))
    for number in np.flatnonzero(items.has_text):
        items.texts[number] = kept[items.words[number]]
    return len(unseen)


def _report(progress: str) -> None:
    """Write to the worker's log. If the engine runs in this process, a person sees the message."""
    say("embed_items", progress)
