"""Training examples, streamed from Parquet in row groups and collated into padded tensors; memory stays bounded.

Axes: B users (examples), L history length (left-padded), P past items of all users together, Q queries, T targets,
V items. Row 0 of every item tensor is padding or unknown; known items are rows 1..V in order of falling frequency.
"""

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
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating[Any]]
BatchT = TypeVar("BatchT")
OBJECTIVES = ("next_day", "clm")
# Inputs of the history logits in the order of their columns: usual value and spread on two real shops (food, gifts),
# by which they are centred and scaled. "log" is log(1 + x), "_visits" counts days on which the user came.
FEATURE_SCALES = {
    "log_n_week": (0.0, 0.15),
    "log_n_month": (0.1, 0.3),
    "log_n_short": (0.2, 0.4),
    "log_n_year": (0.9, 0.4),
    "log_days": (0.9, 0.4),
    "log_recent": (0.4, 0.35),
    "log_last_age": (4.6, 1.1),
    "log_first_age": (5.0, 0.9),
    "log_gap": (1.2, 1.8),
    "overdue": (0.1, 0.9),
    "log_last_gap": (1.2, 1.8),
    "log_visits_since": (2.5, 1.2),
    "log_visits_from": (3.0, 1.1),
    "overdue_visits": (0.0, 0.8),
    "share_of_visits": (0.2, 0.2),
    "log_weekday": (0.2, 0.35),
    "in_last_visit": (0.1, 0.3),
    "share": (0.005, 0.01),
    "log_total": (6.5, 1.0),
    "log_visits": (3.7, 0.9),
    "log_last_visit": (2.0, 1.2),
    "log_basket": (3.0, 0.5),
}
HISTORY_FEATURES = len(FEATURE_SCALES)
AGE_BUCKETS = 32  # two an octave of hours: 2**15 hours are 3.7 years
_READ_ROWS = 4096
# Rows of a staged file, which are sorted in memory: as many as a shuffle buffer holds.
MAX_BUCKET_ROWS = 65_536
# Written once, read each epoch, deleted: dictionaries and statistics would cost more than they save.
_STAGED_FORMAT: dict[str, Any] = {"use_dictionary": False, "compression": "lz4", "write_statistics": False}

EXAMPLE_COLUMNS = (
    "anchor_day",
    "items",
    "types",
    "ages_hours",
    "past_items",
    "past_n_week",
    "past_n_month",
    "past_n_short",
    "past_n_long",
    "past_days",
    "past_weekday",
    "past_visits_since",
    "past_visits_from",
    "past_last_age",
    "past_first_age",
    "past_last_gap",
    "past_w_short",
    "past_w_long",
    "targets",
)
_PAST_VALUES = [name.removeprefix("past_") for name in EXAMPLE_COLUMNS if name.startswith("past_")][1:]


@dataclass(frozen=True)
class StreamConfig:
    """How examples are read.

    Attributes:
        batch_size: Rows a batch.
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
    """Copy rows to local files, split by hash and sorted by key: engines write the same rows in ever other orders.

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


def left_pad(values: npt.NDArray[Any], lengths: IntArray, width: int) -> IntArray:
    """Put each row's last ``width`` values at the right end, zeros before them.

    Args:
        values: Flat values of B rows.
        lengths: int64 [B].
        width: L.

    Returns:
        int64 [B, L].
    """
    padded = np.zeros((len(lengths), width), dtype=np.int64)
    user, place = _user_and_place(lengths)
    column = place - lengths[user] + width
    kept = column >= 0
    padded[user[kept], column[kept]] = values[kept]
    return padded


def _user_and_place(lengths: IntArray) -> tuple[IntArray, IntArray]:
    user = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(lengths) else np.zeros(0, dtype=np.int64)
    return user, np.arange(len(user)) - starts[user]


def age_bucket(hours: npt.NDArray[Any]) -> IntArray:
    """Bucket of an interaction's age at the anchor, two an octave; 0 stays free for padding.

    Args:
        hours: Whole hours, >= 0.

    Returns:
        int64, 1 to ``AGE_BUCKETS - 1``.
    """
    octaves = np.log2(1 + hours.astype(np.float64))
    bucket: IntArray = np.minimum(1 + np.floor(2 * octaves), AGE_BUCKETS - 1).astype(np.int64)
    return bucket


class Past(NamedTuple):
    """What each user did in the year before the anchor, one entry a known item, sorted by user, then item.

    Attributes:
        user: int64 [P], 0..B-1.
        items: int64 [P], rows 1..V.
        n_short: float32 [P], interactions in the short window.
        n_long: float32 [P], interactions in the long window before it.
        last_age: float32 [P], days from the last interaction to the anchor.
        w_short: float32 [P], interactions in the short window, each halved a half-life.
        w_long: float32 [P], the same for the long window.
        features: float32 [P, 22], inputs of the history logits.
    """

    user: Tensor
    items: Tensor
    n_short: Tensor
    n_long: Tensor
    last_age: Tensor
    w_short: Tensor
    w_long: Tensor
    features: Tensor


class ExampleBatch(NamedTuple):
    """Examples as the ranker takes them.

    Attributes:
        items: int64 [B, L], rows, left-padded with 0.
        types: int64 [B, L], interaction type + 1; 0 where there is no item.
        ages: int64 [B, L], age buckets; 0 where there is no item.
        query_user: int64 [Q], user of each query.
        query_position: int64 [Q], its position, 0..L-1.
        target_query: int64 [T], query of each target.
        targets: int64 [T], rows 1..V.
        past: The year before the anchor.
        anchor_day: int64 [B], days since 1970-01-01 of the anchor.
    """

    items: Tensor
    types: Tensor
    ages: Tensor
    query_user: Tensor
    query_position: Tensor
    target_query: Tensor
    targets: Tensor
    past: Past
    anchor_day: Tensor

    def to(self, device: torch.device) -> ExampleBatch:
        """Return the batch on ``device``."""
        past = Past(*(tensor.to(device, non_blocking=True) for tensor in self.past))
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in self._asdict().items()
            if isinstance(value, Tensor)
        }
        return self._replace(past=past, **moved)


@dataclass(frozen=True)
class ExampleCollate:
    """Turns rows of the examples table into an :class:`ExampleBatch`.

    Attributes:
        row_of_index: int64 [max item_index + 2], row of each item_index; 0 for items outside the vocabulary. Indices
            past its end (items newer than the vocabulary) are unknown, too.
        max_length: L at most.
        objective: "next_day": the last position predicts the targets. "clm": each position predicts the next item of
            the sequence, whose last item is no input then; a padding position never does.
    """

    row_of_index: IntArray
    max_length: int = 100
    objective: str = "next_day"

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {OBJECTIVES}, not {self.objective!r}")
        if self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, not {self.max_length}")

    def rows(self, index: npt.NDArray[Any]) -> IntArray:
        """Map item_index to row, 0 where the item is unknown."""
        clipped = np.minimum(index.astype(np.int64), len(self.row_of_index) - 1)
        return np.where(index < len(self.row_of_index), self.row_of_index[clipped], 0)

    def __call__(self, rows: pa.Table) -> ExampleBatch:
        """Collate; the sequence is trimmed to the longest of the batch, at least one position wide."""
        index, lengths = list_parts(rows["items"])
        known = self.rows(index)
        types, _ = list_parts(rows["types"])
        hours, _ = list_parts(rows["ages_hours"])
        kept, lengths = _keep(known > 0, lengths)
        ahead = int(self.objective == "clm")  # the item after the last input is predicted, never an input
        width = int(min(max(lengths.max(initial=1) - ahead, 1), self.max_length))
        items, kinds, ages = (
            left_pad(values, lengths, width + ahead)
            for values in (known[kept], types[kept] + 1, age_bucket(hours[kept]))
        )
        query_user, query_position, target_query, targets = self._queries(items, rows)
        return ExampleBatch(
            items=torch.from_numpy(items[:, :width]),
            types=torch.from_numpy(kinds[:, :width]),
            ages=torch.from_numpy(ages[:, :width]),
            query_user=torch.from_numpy(query_user),
            query_position=torch.from_numpy(query_position),
            target_query=torch.from_numpy(target_query),
            targets=torch.from_numpy(targets),
            past=self._past(rows),
            anchor_day=torch.from_numpy(rows["anchor_day"].to_numpy().astype(np.int64)),
        )

    def _queries(self, items: IntArray, rows: pa.Table) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        n_users, width = items.shape
        if self.objective == "clm":
            user, position = np.nonzero(items[:, :-1])
            return user, position, np.arange(len(user)), items[user, position + 1]
        index, lengths = list_parts(rows["targets"])
        targets = self.rows(index)
        user = np.repeat(np.arange(n_users), lengths)
        last = np.full(n_users, width - 1)
        return np.arange(n_users), last, user[targets > 0], targets[targets > 0]

    def _past(self, rows: pa.Table) -> Past:
        index, lengths = list_parts(rows["past_items"])
        values = {name: list_parts(rows[f"past_{name}"])[0].astype(np.float32) for name in _PAST_VALUES}
        user, item = np.repeat(np.arange(len(lengths)), lengths), self.rows(index)
        order = np.lexsort((item, user))
        order = order[item[order] > 0]
        sorted_values = {name: value[order] for name, value in values.items()}
        features = history_features(user[order], sorted_values, len(lengths))
        kept = (sorted_values[name] for name in ("n_short", "n_long", "last_age", "w_short", "w_long"))
        arrays = (user[order], item[order], *kept, features)
        return Past(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def _keep(known: npt.NDArray[np.bool_], lengths: IntArray) -> tuple[npt.NDArray[np.bool_], IntArray]:
    user = np.repeat(np.arange(len(lengths)), lengths)
    return known, np.bincount(user[known], minlength=len(lengths)).astype(np.int64)


def history_features(user: IntArray, past: Mapping[str, FloatArray], n_users: int) -> FloatArray:
    """Describe a user's past with an item, for the history logits (DESIGN, section 11).

    Args:
        user: int [P].
        past: float [P] arrays, the columns ``past_*`` of the examples table by name.
        n_users: B.

    Returns:
        float32 [P, 22], centred and scaled by constants. Gaps are those between the days with the item; an item is
        overdue by the log of its age over its mean gap, 0 for an item of one day only.
    """
    columns = _item_features(past) | _user_features(user, past, n_users)
    scaled = [(columns[name] - centre) / scale for name, (centre, scale) in FEATURE_SCALES.items()]
    return np.stack(scaled, axis=1).astype(np.float32)


def _item_features(past: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    gaps = past["days"] - 1
    gap = np.where(gaps > 0, (past["first_age"] - past["last_age"]) / np.maximum(gaps, 1), 0)
    # visits after the first day with the item, up to its last one
    between = past["visits_from"] - past["visits_since"] - 1
    visit_gap = np.where(gaps > 0, between / np.maximum(gaps, 1), 0)
    logs = ("n_week", "n_month", "n_short", "days", "last_age", "first_age", "last_gap", "visits_since", "visits_from")
    return {f"log_{name}": np.log1p(past[name]) for name in (*logs, "weekday")} | {
        "log_n_year": np.log1p(past["n_short"] + past["n_long"]),
        "log_recent": np.log1p(past["w_short"] + past["w_long"]),
        "log_gap": np.log1p(gap),
        "overdue": np.where(gaps > 0, np.log((1 + past["last_age"]) / (1 + gap)), 0),
        "overdue_visits": np.where(gaps > 0, np.log((1 + past["visits_since"]) / (1 + visit_gap)), 0),
        "share_of_visits": past["days"] / np.maximum(past["visits_from"], 1),
        "in_last_visit": (past["visits_since"] == 0).astype(np.float32),
    }


def _user_features(user: IntArray, past: Mapping[str, FloatArray], n_users: int) -> dict[str, FloatArray]:
    n_year = past["n_short"] + past["n_long"]
    total = np.bincount(user, weights=n_year, minlength=n_users)
    visits, last_visit = np.zeros(n_users), np.full(n_users, np.inf)
    np.maximum.at(visits, user, past["visits_from"])
    np.minimum.at(last_visit, user, past["last_age"])
    return {
        "share": n_year / np.maximum(total[user], 1),
        "log_total": np.log1p(total[user]),
        "log_visits": np.log1p(visits[user]),
        "log_last_visit": np.log1p(last_visit[user]),
        "log_basket": np.log1p(total[user] / np.maximum(visits[user], 1)),
    }


def lte_weights(past: Past, *, method: str, lagged: bool) -> Tensor:
    """Weight of each past interaction in the user's LTE, not normalised.

    Args:
        past: The year before the anchor.
        method: "uniform" or "recency".
        lagged: True for the long window without the short one ([365,60]), False for both ([365,0]).

    Returns:
        float [P].

    Raises:
        ValueError: ``method`` is another.
    """
    parts = {"uniform": (past.n_long, past.n_short), "recency": (past.w_long, past.w_short)}
    if method not in parts:
        raise ValueError(f"method must be one of {sorted(parts)}, not {method!r}")
    long, short = parts[method]
    return long if lagged else long + short


def averaged_lte(past: Past, weights: Tensor, content: Tensor, n_users: int) -> tuple[Tensor, Tensor]:
    """Weighted mean of item vectors (paper, section 4), as of each example's anchor.

    Args:
        past: The year before the anchor.
        weights: float [P], >= 0.
        content: float [V + 1, D], the basis in row order.
        n_users: B.

    Returns:
        float [B, D] (zeros for a user without weight) and bool [B], whether the user has an LTE.
    """
    totals = torch.zeros(n_users, device=weights.device).index_add_(0, past.user, weights)
    first = torch.searchsorted(past.user, torch.arange(n_users, device=weights.device))  # Past is sorted by user
    # a bag adds the vectors up as it finds them: no matrix of P x D, and a tenth of the time
    sums = F.embedding_bag(past.items, content, first, mode="sum", per_sample_weights=weights)
    has_lte = totals > 0
    return sums / torch.where(has_lte, totals, 1).unsqueeze(1), has_lte
