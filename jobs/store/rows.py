"""How a user's LTE is written in an online store, and the checksum over all users.

A value is ``n_items`` (int32) followed by the D floats of the embedding (float32), all little-endian. The key of the
value is the user_id in UTF-8. The checksum is the sum, modulo 2**128, of one BLAKE2b digest per row. So the order of
rows does not matter, and one row can be subtracted again without reading the other rows (see
:func:`jobs.store.publish.delete_user`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.lake.vectors import VectorError, vector_matrix
from jobs.runtime.text import shown_user
from schemas.table import MAX_ID_BYTES

HEADER = np.dtype("<i4")
FLOAT = np.dtype("<f4")
DIGEST_BYTES = 16
CHECKSUM_MODULUS = 1 << (8 * DIGEST_BYTES)
CHUNK_BYTES = 4 << 20
Buffer = bytes | memoryview
T = TypeVar("T")


class BadRowError(ValueError):
    """A row that no online store accepts; the message names the user and the value."""


@dataclass(frozen=True)
class RowChunk:
    """Rows of some users, ready to be written.

    Attributes:
        keys: user_id of each row, UTF-8.
        values: uint8 [n, 4 + 4 * D], C-contiguous, in the layout that this module describes.
    """

    keys: list[bytes]
    values: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def dim(self) -> int:
        """D, the number of floats per vector."""
        return int((self.values.shape[1] - HEADER.itemsize) // FLOAT.itemsize)

    def items(self) -> Iterator[tuple[bytes, memoryview]]:
        """Key and value of each row; the values are views, not copies."""
        width = self.values.shape[1]
        flat = self.values.reshape(-1).data
        for row, key in enumerate(self.keys):
            yield key, flat[row * width : (row + 1) * width]


class Checksum:
    """Order-independent checksum of a set of rows."""

    def __init__(self, total: int = 0) -> None:
        self._total = total

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """Read a checksum from the text that ``str`` returned."""
        return cls(int(text, 16))

    def __str__(self) -> str:
        return f"{self._total:0{2 * DIGEST_BYTES}x}"

    def add(self, key: bytes, value: Buffer) -> None:
        """Add one row."""
        self._total = (self._total + _row_digest(key, value)) % CHECKSUM_MODULUS

    def discard(self, key: bytes, value: Buffer) -> None:
        """Subtract one row that was added before."""
        self._total = (self._total - _row_digest(key, value)) % CHECKSUM_MODULUS


def _row_digest(key: bytes, value: Buffer) -> int:
    # The key's length goes first, so that no two rows share the same bytes.
    digest = blake2b(len(key).to_bytes(2, "little") + key, digest_size=DIGEST_BYTES)
    digest.update(value)
    return int.from_bytes(digest.digest(), "little")


def user_key(user_id: str) -> bytes:
    """Key of a user.

    Raises:
        BadRowError: ``user_id`` is not 1 to 128 bytes of UTF-8.
    """
    key = user_id.encode("utf-8", errors="surrogatepass")
    if not 1 <= len(key) <= MAX_ID_BYTES:
        raise BadRowError(f"user_id {shown_user(key)}: {len(key)} bytes, 1 to {MAX_ID_BYTES} are allowed")
    return key


def decode_into(value: Buffer, out: NDArray[np.float32]) -> int:
    """Copy a stored embedding into ``out``.

    Args:
        value: One stored value; may be a view into a memory-mapped file.
        out: float32 [D].

    Returns:
        n_items of the user.

    Raises:
        BadRowError: The value holds another number of floats than ``out``.
    """
    if len(value) != HEADER.itemsize + out.nbytes:
        raise BadRowError(
            f"stored value has {len(value)} bytes, {HEADER.itemsize + out.nbytes} belong to {out.shape[0]} floats"
        )
    out[:] = np.frombuffer(value, dtype=FLOAT, offset=HEADER.itemsize)
    return int(np.frombuffer(value, dtype=HEADER, count=1)[0])


def row_chunks(batches: Iterable[pa.RecordBatch], *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[RowChunk]:
    """Cut Arrow batches into chunks of bounded size.

    Args:
        batches: Record batches with ``user_id`` (string), ``embedding`` (list of float32) and ``n_items`` (int32);
            other columns are ignored.
        chunk_bytes: Approximate upper limit in bytes for the values of a chunk.

    Yields:
        Chunks of at least one row, in the order of the batches.

    Raises:
        BadRowError: A null, a user_id that is too long, vectors of different length, or a float that is not finite.
    """
    dim: int | None = None
    for batch in batches:
        for part in _slices(batch, chunk_bytes):
            chunk = _chunk(part)
            if dim not in (None, chunk.dim):
                who = shown_user(chunk.keys[0])
                raise BadRowError(f"user_id {who}: vector of {chunk.dim} floats, others have {dim}")
            dim = chunk.dim
            yield chunk


def _slices(batch: pa.RecordBatch, chunk_bytes: int) -> Iterator[pa.RecordBatch]:
    if batch.num_rows == 0:
        return
    rows = max(1, chunk_bytes * batch.num_rows // max(1, batch.nbytes))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _chunk(batch: pa.RecordBatch) -> RowChunk:
    columns = {name: batch.column(name) for name in ("user_id", "embedding", "n_items")}
    for name, column in columns.items():
        if column.null_count:
            raise BadRowError(f"column {name}: null in row {column.is_null().to_pylist().index(True)} of a batch")
    user_ids = columns["user_id"].to_pylist()
    embeddings = _matrix(columns["embedding"], user_ids)  # [n, D]
    n_items = columns["n_items"].to_numpy(zero_copy_only=False).astype(HEADER)  # [n]
    values = np.empty((len(user_ids), HEADER.itemsize + embeddings.shape[1] * FLOAT.itemsize), dtype=np.uint8)
    values[:, : HEADER.itemsize] = n_items.view(np.uint8).reshape(-1, HEADER.itemsize)
    values[:, HEADER.itemsize :] = embeddings.view(np.uint8)
    return RowChunk([user_key(user_id) for user_id in user_ids], values)


def _matrix(column: pa.Array, user_ids: list[str]) -> NDArray[np.float32]:
    """Float32 [n, D] of a list column; refuses ragged rows, nulls and floats that are not finite."""
    if not pa.types.is_float32(column.type.value_type):
        raise BadRowError(f"column embedding: {column.type}, expected a list of float32")
    try:
        matrix = np.ascontiguousarray(vector_matrix(column, must_be_finite=True), dtype=FLOAT)
    except VectorError as error:
        raise BadRowError(f"user_id {shown_user(user_ids[error.row])}, column embedding: {error}") from error
    if not matrix.shape[1]:
        raise BadRowError(
            f"user_id {shown_user(user_ids[0])}, column embedding: expected a vector of 1 number or more, got 0"
        )
    return matrix


def groups(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Split ``items`` into lists of ``size``; the last list may be shorter."""
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group
