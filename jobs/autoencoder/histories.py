"""User histories for the autoencoder: written to user_histories, mapped to vocabulary ranks, streamed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.basis.basis import known_items, read_basis
from jobs.config.models import AutoencoderSection
from jobs.config.window import LteWindow
from jobs.lake.day import BasisDay
from jobs.lte.windows import in_window, reach
from lte_models.autoencoder import ItemHistories
from lte_models.training.stream import RowGroupStream, StreamConfig, batches, list_parts
from schemas import INTERACTIONS, USER_HISTORIES

N_FOLDS = 20
VALIDATION_FOLD = 0
IntArray = npt.NDArray[np.int64]


def write_histories(day: BasisDay) -> None:
    """Write the partition of ``ds``.

    Args:
        day: Its lake holds interactions and the basis that numbers the items.
    """
    settings = day.deployment.autoencoder
    window = LteWindow.parse(settings.window)
    histories = user_histories(day.lake.read(INTERACTIONS), read_basis(day.lake, day.basis_version), day.ds, window)
    day.lake.replace(
        histories.withColumn("basis_version", F.lit(day.basis_version)), USER_HISTORIES, _partition(day.ds, settings)
    )


def _partition(ds: date, settings: AutoencoderSection) -> dict[str, str | date]:
    return {"ds": ds, "lte_window": settings.window}


def user_histories(interactions: DataFrame, basis: DataFrame, ds: date, window: LteWindow) -> DataFrame:
    """One row per user with an interaction in ``[E - start, E)``: the distinct known items of the window.

    Args:
        interactions: Rows of interactions.
        basis: Rows of item_embeddings of one basis.
        ds: Data day.
        window: LTE window.

    Returns:
        user_id, items, n_unknown, fold, ds, lte_window.
    """
    events = interactions.where(in_window(ds, reach([window])))
    joined = events.join(known_items(basis, ds), "item_id", "left")
    counts = in_window(ds, window)
    items = F.array_sort(F.collect_set(F.when(counts, F.col("item_index"))))
    n_unknown = F.sum(F.when(counts & F.col("item_index").isNull(), 1).otherwise(0)).cast("int")
    grouped = joined.groupBy("user_id").agg(items.alias("items"), n_unknown.alias("n_unknown"))
    fold = (F.crc32(F.col("user_id").cast("binary")) % N_FOLDS).cast("int")
    return grouped.withColumns({"fold": fold, "ds": F.lit(ds), "lte_window": F.lit(str(window))})


@dataclass(frozen=True)
class HistoryCollate:
    """Maps the histories of one side of the validation split to vocabulary ranks.

    Attributes:
        rank_of_index: int64 [n], vocabulary rank of each item_index; -1 for an item outside the vocabulary.
        is_validation: Whether to keep the validation users or the training users; None keeps both.
    """

    rank_of_index: IntArray
    is_validation: bool | None

    def __call__(self, rows: pa.Table) -> ItemHistories:
        """Collate; users without a known item are left out, because the model learns nothing from them."""
        if self.is_validation is not None:
            is_wanted = (rows["fold"].to_numpy() == VALIDATION_FOLD) == self.is_validation
            rows = rows.filter(pa.array(is_wanted))
        index, lengths = list_parts(rows["items"])
        return ranked_histories(index, lengths, self.rank_of_index, keep_empty=False)


def ranked_histories(index: IntArray, lengths: IntArray, rank_of_index: IntArray, *, keep_empty: bool) -> ItemHistories:
    """Map flat histories of item_index to vocabulary ranks.

    Args:
        index: int [N], item_index values of all users, one user after another.
        lengths: int64 [B], number of values per user.
        rank_of_index: int64 [n]; an item_index of n or more is unknown.
        keep_empty: Whether users without an item of the vocabulary stay in the result, with an empty history.

    Returns:
        Histories of B users, or only of the users whose history is not empty.
    """
    user = np.repeat(np.arange(len(lengths)), lengths)
    inside = index < len(rank_of_index)
    ranks = np.where(inside, rank_of_index[np.where(inside, index, 0)], -1)
    counts = np.bincount(user[ranks >= 0], minlength=len(lengths))
    counts = counts if keep_empty else counts[counts > 0]
    offsets = np.cumsum(counts) - counts
    return ItemHistories(
        torch.from_numpy(ranks[ranks >= 0].astype(np.int64)), torch.from_numpy(offsets.astype(np.int64))
    )


@dataclass(frozen=True)
class HistoryReader:
    """Streams the histories of one ds.

    Attributes:
        files: Staged Parquet files.
        ranks: Vocabulary rank of each item_index.
        settings: Batch size and seed.
        is_split: Whether the training leaves out the validation users.
    """

    files: list[Path]
    ranks: IntArray
    settings: AutoencoderSection
    is_split: bool = True

    def epoch(self, epoch: int) -> Iterator[ItemHistories]:
        """Yield the training batches of an epoch, shuffled."""
        config = StreamConfig(self.settings.batch_size, n_workers=self.settings.n_workers, seed=self.settings.seed)
        return self._read(config, epoch, is_validation=False if self.is_split else None)

    def validation(self) -> Iterator[ItemHistories]:
        """Yield the validation batches in the order of the files."""
        return self._in_order(is_validation=True)

    def with_somebody_to_train_on(self) -> HistoryReader:
        """The same reader; where all users are validation users (tiny data), a reader that trains on them too."""
        return replace(self, is_split=next(self._in_order(is_validation=False), None) is not None)

    def _in_order(self, *, is_validation: bool) -> Iterator[ItemHistories]:
        return self._read(StreamConfig(self.settings.batch_size, shuffle_buffer=0), 0, is_validation=is_validation)

    def _read(self, config: StreamConfig, epoch: int, *, is_validation: bool | None) -> Iterator[ItemHistories]:
        collate = HistoryCollate(self.ranks, is_validation)
        for batch in batches(RowGroupStream(self.files, ["items", "fold"], collate, config, epoch)):
            if batch.offsets.numel():  # all users of a batch may be on the other side of the split
                yield batch
