"""Rows streamed from Parquet in row groups, staged and shuffled in bounded memory."""

from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lte_models.arrays import IntArray

BatchT = TypeVar("BatchT")
_READ_ROWS = 4096

# Rows of a staged file, which are sorted in memory: as many as a shuffle buffer holds.
MAX_BUCKET_ROWS = 65_536

# Files are written once, read each epoch and deleted: dictionaries and statistics cost more than they save.
_STAGED_FORMAT: dict[str, Any] = {"use_dictionary": False, "compression": "lz4", "write_statistics": False}


@dataclass(frozen=True)
class StreamConfig:
    """How examples are read.

    Attributes:
        batch_size: Rows per batch.
        shuffle_buffer: Rows held in memory and permuted together; 0 keeps the order of the files.
        n_workers: Reader processes; 0 reads in this process.
        seed: Decides the order together with the epoch.
    """

    batch_size: int = 256
    shuffle_buffer: int = 65_536
    n_workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.shuffle_buffer < 0 or self.n_workers < 0:
            raise ValueError(f"batch_size must be positive, shuffle_buffer and n_workers not negative: {self}")


class RowGroupStream(IterableDataset[BatchT], Generic[BatchT]):
    """Batches of one epoch; each worker process reads its own row groups."""

    def __init__(
        self,
        files: Sequence[Path],
        columns: Sequence[str],
        collate: Callable[[pa.Table], BatchT],
        config: StreamConfig,
        epoch: int = 0,
    ) -> None:
        """Plan an epoch.

        Args:
            files: Parquet files, of :func:`stage` where the order of rows must not depend on who wrote them.
            columns: Columns to read.
            collate: Turns up to ``batch_size`` rows into a batch, in the worker.
            config: How to read.
            epoch: Changes the order.

        Raises:
            ValueError: There is no file.
        """
        super().__init__()
        if not files:
            raise ValueError("there is no example to read: no Parquet file was given")
        self.files, self.columns, self.collate = list(files), list(columns), collate
        self.config, self.epoch = config, epoch

    def __iter__(self) -> Iterator[BatchT]:
        """Yield collated batches; the last one of a worker may be short."""
        worker = get_worker_info()
        index, n_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rng = np.random.default_rng([self.config.seed, self.epoch, index])
        for rows in self._buffers(self._groups()[index::n_workers], rng):
            yield self.collate(rows)

    def _groups(self) -> list[tuple[Path, int]]:
        groups = [(file, i) for file in self.files for i in range(pq.ParquetFile(file).num_row_groups)]
        if self.config.shuffle_buffer:
            order = np.random.default_rng([self.config.seed, self.epoch]).permutation(len(groups))
            groups = [groups[i] for i in order]
        return groups

    def _buffers(self, groups: Sequence[tuple[Path, int]], rng: np.random.Generator) -> Iterator[pa.Table]:
        held: list[pa.Table] = []
        limit = max(self.config.shuffle_buffer, self.config.batch_size)
        for part in self._parts(groups):
            held.append(part)
            if sum(table.num_rows for table in held) >= limit:
                rest = yield from self._emit(pa.concat_tables(held), rng, last=False)
                held = [rest]
        if held:
            yield from self._emit(pa.concat_tables(held), rng, last=True)

    def _parts(self, groups: Sequence[tuple[Path, int]]) -> Iterator[pa.Table]:
        for file, group in groups:
            reader = pq.ParquetFile(file)
            for batch in reader.iter_batches(_READ_ROWS, row_groups=[group], columns=self.columns):
                yield pa.Table.from_batches([batch])

    def _emit(self, rows: pa.Table, rng: np.random.Generator, *, last: bool) -> Generator[pa.Table, None, pa.Table]:
        if self.config.shuffle_buffer:
            rows = rows.take(rng.permutation(rows.num_rows))
        size = self.config.batch_size
        end = rows.num_rows if last else rows.num_rows - rows.num_rows % size
        for start in range(0, end, size):
            yield rows.slice(start, min(size, end - start))
        return rows.slice(end)


@dataclass(frozen=True)
class StagedRows:
    """Rows on local disk, in an order that they alone decide.

    Attributes:
        files: Parquet files.
        digest: SHA-256 over them: names the data of a training.
    """

    files: list[Path]
    digest: str


def stage(
    parts: Iterable[pa.RecordBatch],
    keys: Sequence[str],
    folder: Path,
    n_buckets: int = 32,
    max_rows: int = MAX_BUCKET_ROWS,
) -> StagedRows:
    """Copy rows to local files, split by hash and sorted by key, because engines write rows in varying order.

    Holds one file's rows in memory at a time, about ``max_rows`` at most: how many rows a bucket has is known once all
    are there, and a larger one is split again.

    Args:
        parts: Rows, in any order.
        keys: Columns that identify a row.
        folder: Emptied first.
        n_buckets: Files, where none is larger than ``max_rows``.
        max_rows: Rows of a file, about, at most.

    Returns:
        The files.

    Raises:
        ValueError: There is no row.
    """
    shutil.rmtree(folder, ignore_errors=True)
    raw = _split(parts, keys, folder / "raw", _Hash(1, n_buckets))
    if not raw:
        raise ValueError(f"no row to train on: nothing to write to {folder}")
    digest, files = hashlib.sha256(), []
    for name, path in _bounded(raw, keys, n_buckets, max_rows):
        file = folder / f"rows-{name}.parquet"
        rows = pq.read_table(path, memory_map=False).sort_by([(key, "ascending") for key in keys])
        pq.write_table(rows, file, row_group_size=_READ_ROWS, **_STAGED_FORMAT)
        path.unlink()
        digest.update(hashlib.sha256(file.read_bytes()).digest())
        files.append(file)
    shutil.rmtree(folder / "raw")
    return StagedRows(files, digest.hexdigest())


class _Hash(NamedTuple):
    """Bucket of a key: its checksum over ``divisor``, modulo ``n_buckets``."""

    divisor: int
    n_buckets: int

    def buckets(self, part: pa.RecordBatch, keys: Sequence[str]) -> IntArray:
        columns = [part.column(key).to_pylist() for key in keys]
        checksums = [zlib.crc32(repr(key).encode()) for key in zip(*columns, strict=True)]
        return np.array(checksums, dtype=np.int64) // self.divisor % self.n_buckets


def _bounded(raw: Mapping[int, Path], keys: Sequence[str], n_buckets: int, max_rows: int) -> Iterator[tuple[str, Path]]:
    """Name the buckets in order, those with more than ``max_rows`` rows split by the rest of the checksum."""
    for bucket, path in sorted(raw.items()):
        reader = pq.ParquetFile(path)
        n_parts = -(-reader.metadata.num_rows // max_rows)
        if n_parts == 1:
            yield f"{bucket:05d}", path
            continue
        split = _split(
            reader.iter_batches(_READ_ROWS), keys, path.with_name(f"{path.name}-parts"), _Hash(n_buckets, n_parts)
        )
        path.unlink()
        yield from ((f"{bucket:05d}-{part:05d}", found) for part, found in sorted(split.items()))


def _split(parts: Iterable[pa.RecordBatch], keys: Sequence[str], folder: Path, by: _Hash) -> dict[int, Path]:
    folder.mkdir(parents=True)
    writers: dict[int, pq.ParquetWriter] = {}
    paths: dict[int, Path] = {}
    try:
        for part in parts:
            bucket = by.buckets(part, keys)
            for number in np.unique(bucket).tolist():
                if number not in writers:
                    paths[number] = folder / str(number)
                    writers[number] = pq.ParquetWriter(paths[number], part.schema, **_STAGED_FORMAT)
                writers[number].write_batch(part.take(pa.array(np.flatnonzero(bucket == number))))
    finally:
        for writer in writers.values():
            writer.close()
    return paths


def batches(stream: RowGroupStream[BatchT]) -> DataLoader[BatchT]:
    """Read a stream, in its worker processes where it has some. The order depends on the seed, not on timing.

    Args:
        stream: One epoch.

    Returns:
        A loader that yields the stream's batches.
    """
    return DataLoader(stream, batch_size=None, num_workers=stream.config.n_workers)


def list_parts(column: pa.ChunkedArray) -> tuple[npt.NDArray[Any], IntArray]:
    """Split a list column into flat values and lengths.

    Args:
        column: list<number> of B rows without nulls.

    Returns:
        Values of all rows one after another, and int64 [B] lengths.

    Raises:
        ValueError: A list, or a value in one, is null.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], type=column.type)
    values = array.flatten()
    if array.null_count or values.null_count:
        raise ValueError("a list of an example, or a value in one, is null")
    lengths = array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return values.to_numpy(zero_copy_only=False), lengths
