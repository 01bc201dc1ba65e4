"""The basis as one matrix: every process of a machine maps the matrix into memory once, from a local file.

A worker without such a file reads ``item_embeddings`` at a pinned Delta version. The worker writes a temporary file
and renames it, so other processes see the whole file or nothing. The file's name holds table, version and basis, so
the file is never out of date. The file of another version of the same table replaces it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.basis.basis import BasisError
from jobs.config.addresses import is_url
from jobs.config.window import day_number
from jobs.lake.delta_files import ahead, arrow_batches
from jobs.lake.lake import Lake
from jobs.lake.vectors import FloatMatrix, VectorError, vector_matrix
from lte_models.files import replacing
from schemas import ITEM_EMBEDDINGS, Table


def item_ids(lake: Lake, basis_version: str) -> list[str]:
    """Item ids of a basis; the position of an id is its item_index."""
    found: dict[int, str] = {}
    for batch in lake.batches(
        ITEM_EMBEDDINGS, columns=("item_index", "item_id"), where={"basis_version": basis_version}
    ):
        found |= dict(zip(batch.column("item_index").to_pylist(), batch.column("item_id").to_pylist(), strict=True))
    return [found[index] for index in range(len(found))]


_ATTEMPTS = 3
_loading = threading.Lock()


@dataclass(frozen=True)
class BasisKey:
    """Names a basis; workers get this key instead of the vectors.

    Attributes:
        path: Folder of the table item_embeddings.
        version: Delta version of the table.
        commit: Time of that version's commit. A table that was deleted and made again can reach the same version.
        basis_version: The basis.
        table: Name of the table: item_embeddings, or item_behaviour, whose vectors are versioned in the same way.
    """

    path: str
    version: int
    commit: str
    basis_version: str
    table: str = ITEM_EMBEDDINGS.name

    def __str__(self) -> str:
        return f"table {self.table} (version {self.version}), basis_version {self.basis_version}"


@dataclass(frozen=True)
class BasisMatrix:
    """A basis in memory.

    Attributes:
        vectors: float32 [V, D], memory-mapped, read-only; row = item_index.
        first_day: Day from which each item is known, in days since 1970: int32 [V].
    """

    vectors: FloatMatrix
    first_day: NDArray[np.int32]

    def known_ages(self, ds: date) -> NDArray[np.int64]:
        """Days that each item has been known on ``ds``, int64 [V]; negative for an item that came later."""
        return day_number(ds) - self.first_day.astype(np.int64)


def pinned_basis(lake: Lake, basis_version: str, table: Table = ITEM_EMBEDDINGS) -> BasisKey:
    """The key of a basis as the lake holds it now.

    Args:
        lake: The lake.
        basis_version: The basis, or the version of the behaviour vectors.
        table: ITEM_EMBEDDINGS or ITEM_BEHAVIOUR.

    Raises:
        BasisError: The table does not exist yet.
    """
    if lake.version(table) is None:
        writer = "embed_items" if table is ITEM_EMBEDDINGS else "compute_lte"
        raise BasisError(f"table {table.name}: not written yet: run {writer} first")
    newest = lake.history(table, 1)[0]
    return BasisKey(lake.path(table), newest["version"], str(newest["timestamp"]), basis_version, table.name)


def load_matrix(key: BasisKey) -> BasisMatrix:
    """The matrix of a basis, mapped once per process.

    Raises:
        BasisError: A vector has a NaN, an infinite value or another length than the others, or the item_index is not
            dense; the message names the item.
    """
    with _loading:
        return _load(key)


@lru_cache(maxsize=2)
def _load(key: BasisKey) -> BasisMatrix:
    folder = _cache_folder() / _table_digest(key) / f"{key.version}-{key.commit}-{key.basis_version}"
    for _ in range(_ATTEMPTS):
        if not folder.exists():
            _build(key, folder)
        try:
            return BasisMatrix(np.load(folder / "vectors.npy", mmap_mode="r"), np.load(folder / "first_day.npy"))
        except FileNotFoundError:  # another process has just put another version in its place
            continue
    raise BasisError(f"{key}: other processes keep replacing {folder}")


def _table_digest(key: BasisKey) -> str:
    return hashlib.sha256(
        os.path.realpath(key.path).encode() if not is_url(key.path) else key.path.encode()
    ).hexdigest()[:24]


def _cache_folder() -> Path:
    """A folder that only this user can write; files that other users could write are not read."""
    folder = Path(tempfile.gettempdir()) / f"lte-basis-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise BasisError(f"{folder} is not a folder that only user {os.getuid()} can write: remove it")
    return folder


def _build(key: BasisKey, folder: Path) -> None:
    """Write temporary files, rename them, and delete other versions; maps that are open stay valid."""
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        with replacing(folder) as aside:
            aside.mkdir(mode=0o700)
            _write_matrix(key, aside)
            older = [each for each in folder.parent.iterdir() if not each.name.startswith(".") and each != folder]
    except OSError:
        # Another process may have written the same content first.
        if not folder.exists():
            raise
        return
    for each in older:
        shutil.rmtree(each, ignore_errors=True)


def _write_matrix(key: BasisKey, folder: Path) -> None:
    n_items = _n_items(key)
    first_day, is_filled = np.zeros(n_items, np.int32), np.zeros(n_items, bool)
    columns = ["item_id", "item_index", "first_ds", "embedding"]
    vectors: FloatMatrix | None = None
    for batch in _basis_batches(key, columns):
        if vectors is None:
            vectors = _new_matrix(folder / "vectors.npy", (n_items, len(batch["embedding"][0])))
        rows = batch["item_index"].to_numpy()
        vectors[rows] = _checked(key, batch, vectors.shape[1])
        first_day[rows] = batch["first_ds"].cast(pa.int32()).to_numpy()
        is_filled[rows] = True
    if not is_filled.all():
        raise BasisError(f"{key}: item_index {int(np.flatnonzero(~is_filled)[0])} is missing or given twice")
    assert isinstance(vectors, np.memmap)  # there is an item, so there was a batch
    vectors.flush()
    np.save(folder / "first_day.npy", first_day)


def _new_matrix(path: Path, shape: tuple[int, int]) -> FloatMatrix:
    matrix: FloatMatrix = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    return matrix


def _basis_batches(key: BasisKey, columns: list[str]) -> Iterator[pa.RecordBatch]:
    where = {"basis_version": key.basis_version}
    batches = arrow_batches(key.path, version=key.version, columns=columns, where=where)
    return ahead(batch for batch in batches if batch.num_rows)


def _n_items(key: BasisKey) -> int:
    """Number of items V; refuses indices that do not run from 0 to V - 1."""
    indices = [batch["item_index"].to_numpy() for batch in _basis_batches(key, ["item_index"])]
    if not indices:
        raise BasisError(f"{key}: no items: run embed_items first")
    index = np.concatenate(indices)
    if index.min() < 0 or index.max() != len(index) - 1:
        raise BasisError(
            f"{key}: item_index runs from {index.min()} to {index.max()}, but there are {len(index)} items"
        )
    return len(index)


def _checked(key: BasisKey, batch: pa.RecordBatch, dim: int) -> FloatMatrix:
    """A batch's vectors, float32 [rows, D]; refuses a vector that is not D finite numbers."""
    try:
        return vector_matrix(batch["embedding"], dim=dim, must_be_finite=True)
    except VectorError as error:
        raise BasisError(f"{key}, column embedding: item {batch['item_id'][error.row]}: {error}") from error
