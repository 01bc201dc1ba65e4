"""The basis as one matrix that every process of a machine maps into memory, once, from a local file.

A worker that has no such file reads ``item_embeddings`` at a pinned Delta version, writes it beside and renames it:
others see all of it or nothing. The file's name says which table, version and basis it holds, so it is never out of
date; another version of the same table takes its place.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.basis.basis import BasisError
from jobs.lake.delta_files import arrow_batches
from jobs.lake.lake import Lake
from jobs.registry.bundles import ModelError
from lte_models.averages.pooling import FloatArray
from schemas import ITEM_EMBEDDINGS

FloatMatrix = npt.NDArray[np.float32]


def basis_matrix(lake: Lake, basis_version: str) -> FloatMatrix:
    """All vectors of a basis, row = item_index; the one thing whose size is the catalogue's.

    Args:
        lake: Reads item_embeddings.
        basis_version: Which basis.

    Returns:
        float32 [n, D].

    Raises:
        ModelError: There is no vector, or one is missing or not finite.
    """
    where = {"basis_version": basis_version}
    parts = [
        (batch.column("item_index").to_numpy(), vector_rows(batch.column("embedding")))
        for batch in lake.batches(ITEM_EMBEDDINGS, columns=("item_index", "embedding"), where=where)
        if batch.num_rows
    ]
    name = f"table item_embeddings, basis_version {basis_version}"
    if not parts:
        raise ModelError(f"{name}: there is no vector; run embed_items first")
    index, vectors = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    matrix = np.full((int(index.max()) + 1, vectors.shape[1]), np.nan, dtype=np.float32)
    matrix[index] = vectors
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if bad.size:
        raise ModelError(f"{name}: item_index {bad[0]} is missing or not finite ({bad.size} such items)")
    return matrix


def vector_rows(column: pa.Array) -> FloatMatrix:
    """A list column as a matrix.

    Args:
        column: list<float> of B rows.

    Returns:
        float32 [B, D].

    Raises:
        ModelError: The lists have different lengths.
    """
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    if len(set(lengths.tolist())) > 1:
        raise ModelError(f"table item_embeddings: vectors of {min(lengths)} and of {max(lengths)} floats in one basis")
    values: FloatMatrix = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return values.reshape(len(column), -1)


def item_ids(lake: Lake, basis_version: str) -> list[str]:
    """Item ids of a basis, place = item_index."""
    found: dict[int, str] = {}
    for batch in lake.batches(
        ITEM_EMBEDDINGS, columns=("item_index", "item_id"), where={"basis_version": basis_version}
    ):
        found |= dict(zip(batch.column("item_index").to_pylist(), batch.column("item_id").to_pylist(), strict=True))
    return [found[index] for index in range(len(found))]


_ATTEMPTS = 3
_EPOCH = np.datetime64("1970-01-01", "D")
_loading = threading.Lock()


@dataclass(frozen=True)
class BasisKey:
    """Which basis: sent to workers instead of the vectors.

    Attributes:
        path: Folder of the table item_embeddings.
        version: Delta version of it.
        commit: When that version was committed: a table that was deleted and made anew may count to it again.
        basis_version: The basis.
    """

    path: str
    version: int
    commit: str
    basis_version: str

    def __str__(self) -> str:
        return f"table item_embeddings (version {self.version}), basis_version {self.basis_version}"


@dataclass(frozen=True)
class BasisMatrix:
    """A basis in memory.

    Attributes:
        vectors: float32 [V, D], memory-mapped, read-only; row = item_index.
        first_day: Day from which each item is known, in days since 1970: int32 [V].
    """

    vectors: FloatArray
    first_day: NDArray[np.int32]

    def known_ages(self, ds: date) -> NDArray[np.int64]:
        """Days that each item has been known on ``ds``, int64 [V]; negative for an item that came later."""
        return int((np.datetime64(ds, "D") - _EPOCH).astype(int)) - self.first_day.astype(np.int64)


def pinned_basis(lake: Lake, basis_version: str) -> BasisKey:
    """A basis as it is in the lake now.

    Raises:
        BasisError: The table is not there yet.
    """
    if lake.version(ITEM_EMBEDDINGS) is None:
        raise BasisError("table item_embeddings: not written yet: run embed_items first")
    newest = lake.history(ITEM_EMBEDDINGS, 1)[0]
    return BasisKey(lake.path(ITEM_EMBEDDINGS), newest["version"], str(newest["timestamp"]), basis_version)


def load_matrix(key: BasisKey) -> BasisMatrix:
    """The matrix of a basis, mapped once a process.

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
        os.path.realpath(key.path).encode() if "://" not in key.path else key.path.encode()
    ).hexdigest()[:24]


def _cache_folder() -> Path:
    """A folder of this user alone: what others could write is not read."""
    folder = Path(tempfile.gettempdir()) / f"lte-basis-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise BasisError(f"{folder} is not a folder that only user {os.getuid()} can write: remove it")
    return folder


def _build(key: BasisKey, folder: Path) -> None:
    """Write the files aside, rename them into place, and drop other versions; open maps of those stay valid."""
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    try:
        _write_matrix(key, aside)
        older = [each for each in folder.parent.iterdir() if not each.name.startswith("building-") and each != folder]
        aside.rename(folder)
        for each in older:
            shutil.rmtree(each, ignore_errors=True)
    except FileExistsError:
        pass  # another process was faster, with the same content
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_matrix(key: BasisKey, folder: Path) -> None:
    n_items = _n_items(key)
    first_day, is_filled = np.zeros(n_items, np.int32), np.zeros(n_items, bool)
    columns = ["item_id", "item_index", "first_ds", "embedding"]
    vectors: FloatArray | None = None
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


def _new_matrix(path: Path, shape: tuple[int, int]) -> FloatArray:
    matrix: FloatArray = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    return matrix


def _basis_batches(key: BasisKey, columns: list[str]) -> Iterator[pa.RecordBatch]:
    where = {"basis_version": key.basis_version}
    batches = arrow_batches(key.path, version=key.version, columns=columns, where=where)
    return _ahead(batch for batch in batches if batch.num_rows)


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Decode the next batch while the last one is being used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, batches, None)
        while (batch := waiting.result()) is not None:
            waiting = pool.submit(next, batches, None)
            yield batch


def _n_items(key: BasisKey) -> int:
    """V, if the indices run from 0 to V - 1."""
    indices = [batch["item_index"].to_numpy() for batch in _basis_batches(key, ["item_index"])]
    if not indices:
        raise BasisError(f"{key}: no items: run embed_items first")
    index = np.concatenate(indices)
    if index.min() < 0 or index.max() != len(index) - 1:
        raise BasisError(
            f"{key}: item_index runs from {index.min()} to {index.max()}, but there are {len(index)} items"
        )
    return len(index)


def _checked(key: BasisKey, batch: pa.RecordBatch, dim: int) -> FloatArray:
    """A batch's vectors, float32 [rows, D]; refuses what is not D finite numbers."""
    lengths = batch["embedding"].value_lengths().fill_null(0).to_numpy()
    if (lengths != dim).any():
        at = int(np.flatnonzero(lengths != dim)[0])
        raise BasisError(f"{key}: item {batch['item_id'][at]} has {lengths[at]} dimensions, others have {dim}")
    values = batch["embedding"].flatten()
    vectors: FloatArray = values.cast(pa.float32()).fill_null(np.nan).to_numpy().reshape(-1, dim)
    is_bad = ~np.isfinite(vectors).all(axis=1)
    if is_bad.any():
        at = int(np.flatnonzero(is_bad)[0])
        value = vectors[at][~np.isfinite(vectors[at])][0]
        raise BasisError(f"{key}: the embedding of item {batch['item_id'][at]} holds {value}")
    return vectors
