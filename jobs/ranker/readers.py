"""Staged examples on local disk and their batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import functions as F

from jobs.config.models import RankerSection
from jobs.lake.lake import Lake
from jobs.ranker.items import CandidateItems
from jobs.registry.bundles import ModelError
from lte_models.ranker.examples import EXAMPLE_COLUMNS, ExampleBatch, ExampleCollate, averaged_lte, lte_weights
from lte_models.ranker.logits.history_logits import DailyCounts
from lte_models.ranker.model import Context, Ranker
from lte_models.training.stream import RowGroupStream, StagedRows, StreamConfig, batches, stage
from schemas import TRAINING_EXAMPLES

STAGED_ROWS = 8192


def example_collate(shop: CandidateItems, settings: RankerSection, objective: str = "next_day") -> ExampleCollate:
    """The function that turns rows of training_examples into batches for the items of a day.

    Args:
        shop: Items; they give each item its row.
        settings: Length of the sequence.
        objective: "next_day" or "clm". Every evaluation uses "next_day".
    """
    return ExampleCollate(shop.row_of_index, settings.max_length, objective)


@dataclass(frozen=True)
class ExampleReader:
    """Streams staged examples.

    Attributes:
        rows: The staged examples.
        collate: Maps item_index to rows.
        batch_size: Examples per batch.
        seed: Seed of the order.
        n_workers: Number of processes that read; with 0 this process reads.
    """

    rows: StagedRows
    collate: ExampleCollate
    batch_size: int
    seed: int = 0
    n_workers: int = 0

    @property
    def n_rows(self) -> int:
        """Number of staged examples."""
        return sum(pq.read_metadata(file).num_rows for file in self.rows.files)

    def epoch(self, epoch: int) -> Iterator[ExampleBatch]:
        """Yield the batches of an epoch, shuffled; a batch without a known target is skipped."""
        config = StreamConfig(self.batch_size, n_workers=self.n_workers, seed=self.seed)
        for batch in batches(RowGroupStream(self.rows.files, EXAMPLE_COLUMNS, self.collate, config, epoch)):
            if batch.targets.numel():
                yield batch

    def in_order(self) -> Iterator[ExampleBatch]:
        """Yield all batches in the order of the files, which is the order of :func:`user_ids`."""
        config = StreamConfig(self.batch_size, shuffle_buffer=0)
        yield from batches(RowGroupStream(self.rows.files, EXAMPLE_COLUMNS, self.collate, config))


def user_ids(rows: StagedRows) -> list[str]:
    """Users of staged examples in the order of the files."""
    return [user for file in rows.files for user in pq.read_table(file, columns=["user_id"])["user_id"].to_pylist()]


def days_with_examples(lake: Lake, basis_version: str, first: date, last: date) -> list[date]:
    """Anchors from ``first`` to ``last`` that have an example, oldest first.

    An anchor without an example is a day after which no user came.

    Args:
        lake: Reads training_examples.
        basis_version: Basis of the examples.
        first: Oldest anchor.
        last: Newest anchor.
    """
    rows = lake.read(TRAINING_EXAMPLES, where={"basis_version": basis_version})
    inside = rows.where((F.col("anchor_ds") >= F.lit(first)) & (F.col("anchor_ds") <= F.lit(last)))
    return sorted(row["anchor_ds"] for row in inside.select("anchor_ds").distinct().collect())


def stage_examples(lake: Lake, anchors: Sequence[date], basis_version: str, folder: Path) -> StagedRows:
    """Copy the examples of some anchors to local files.

    Args:
        lake: Reads training_examples.
        anchors: Anchor days.
        basis_version: Basis that numbers the items.
        folder: Folder for the files; it is emptied first.

    Raises:
        ModelError: There is no example.
    """
    where: dict[str, str | list[str | int | date]] = {"basis_version": basis_version, "anchor_ds": list(anchors)}
    parts = lake.batches(TRAINING_EXAMPLES, columns=("user_id", *EXAMPLE_COLUMNS), where=where)
    try:
        return stage(rebatched(parts), ("anchor_day", "user_id"), folder)
    except ValueError as error:
        days = f"anchor_ds {min(anchors)} to {max(anchors)}"
        raise ModelError(f"table training_examples, {days}, basis_version {basis_version}: no example") from error


def rebatched(parts: Iterable[pa.RecordBatch], n_rows: int = STAGED_ROWS) -> Iterator[pa.RecordBatch]:
    """Join small record batches: one partition per day makes hundreds of small batches.

    Args:
        parts: Record batches.
        n_rows: Number of rows that are held in memory at the same time.
    """
    held: list[pa.RecordBatch] = []
    for part in parts:
        held.append(part)
        if sum(each.num_rows for each in held) >= n_rows:
            yield from pa.Table.from_batches(held).combine_chunks().to_batches()
            held = []
    if held:
        yield from pa.Table.from_batches(held).combine_chunks().to_batches()


def context_of(batch: ExampleBatch, model: Ranker, settings: RankerSection, daily: DailyCounts) -> Context:
    """The LTEs of a batch at its anchors, and the counts for the popularity.

    Args:
        batch: Examples on the model's device.
        model: Holds the basis in row order.
        settings: Method and window.
        daily: Counts on the same device.
    """
    n_users = batch.items.shape[0]
    weights = lte_weights(batch.past, method=settings.method, lagged=settings.lagged)
    lte, has_lte = averaged_lte(batch.past, weights, model.item_tower.content, n_users)
    return Context(lte, has_lte, daily)
