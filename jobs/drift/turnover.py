"""Counts the interactions that entered and left each user's windows since the reference days."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import product

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, IntegerType, LongType, StringType, StructField, StructType

from jobs.basis.basis import known_items, read_basis
from jobs.basis.matrix import BasisKey, load_matrix
from jobs.config.window import LteWindow
from jobs.drift.references import References
from jobs.drift.summaries import USER, Slice
from jobs.lake.day import Day
from jobs.lte.packing import collected, packed_interactions
from jobs.lte.settings import BLOCK_USERS, lte_windows, n_partitions, weightings
from jobs.lte.windows import in_window, reach, window_ages
from lte_models.averages import drift
from lte_models.averages.behaviour import has_behaviour
from lte_models.averages.pooling import BEHAVIOUR, Histories, Weighting, window_pairs
from schemas import EVENT_DAYS, INTERACTIONS

_COUNTS = ("n_now", "n_before", "n_in", "n_out")

_TURNOVER_SCHEMA = StructType(
    [StructField(name, StringType()) for name in USER]
    + [StructField("offset_days", IntegerType())]
    + [StructField(name, LongType()) for name in _COUNTS]
    + [StructField(name, DoubleType()) for name in ("mass_factor", "weight_distance")]
)


def lake_turnover(day: Day, references: References, basis: BasisKey) -> DataFrame:
    """Count what entered and left each user's windows since each reference day, from the lake's interactions."""
    windows, offsets = lte_windows(day.deployment.lte), references.offsets
    window = reach(windows, offset_days=max(offsets, default=0))
    total = (
        day.lake.read(EVENT_DAYS).where(in_window(day.ds, window)).agg(F.sum("n_events").alias("n")).collect()[0]["n"]
    )
    items = known_items(read_basis(day.lake, references.basis_version), day.ds)
    codes = packed_interactions(day.lake.read(INTERACTIONS), items, day.ds, window)
    weights = tuple(weightings(day.deployment.lte).values())
    task = TurnoverTask(basis, day.ds, tuple(windows), weights, offsets, references.behaviour)
    partitions = n_partitions(total or 0, day.deployment.engine.partitions)
    return codes.repartition(partitions, "user_id").mapInArrow(task, _TURNOVER_SCHEMA)


@dataclass(frozen=True)
class TurnoverTask:
    """Counts what changed in the histories of a partition's users.

    Attributes:
        basis: Holds the day since which each item is known.
        ds: The later day.
        windows: Windows to compare.
        weightings: Methods; each method is combined with each window.
        offsets: Number of days from each earlier day to ``ds``.
        behaviour: The behaviour vectors of ``ds``, for method behaviour: items without one do not count.
    """

    basis: BasisKey
    ds: date
    windows: tuple[LteWindow, ...]
    weightings: tuple[Weighting, ...]
    offsets: tuple[int, ...]
    behaviour: BasisKey | None = None

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Turn (user_id, code) rows of whole users into turnover rows."""
        users, histories = collected(batches)
        known_age = self._known_ages()
        for start in range(0, histories.n_users, BLOCK_USERS):
            stop = min(start + BLOCK_USERS, histories.n_users)
            yield from self._block(users.slice(start, stop - start), histories.block(start, stop), known_age)

    def _known_ages(self) -> dict[str, NDArray[np.int64]]:
        """Days that each item has been known, for each method: int64 [V]; -1 for an item without a vector."""
        known_age = load_matrix(self.basis).known_ages(self.ds)
        found = {weighting.method: known_age for weighting in self.weightings}
        if self.behaviour is not None:
            has = has_behaviour(load_matrix(self.behaviour).vectors)
            found[BEHAVIOUR] = np.where(np.pad(has, (0, len(known_age) - len(has))), known_age, -1)
        return found

    def _block(
        self, users: pa.Array, histories: Histories, known_ages: Mapping[str, NDArray[np.int64]]
    ) -> Iterator[pa.RecordBatch]:
        for window, weighting in product(self.windows, self.weightings):
            ages, known_age = window_ages(window), known_ages[weighting.method]
            now = window_pairs(histories, ages, known_age >= 0)
            for offset in self.offsets:
                before = drift.earlier_window(histories, ages, offset_days=offset, known_age=known_age)
                changes = drift.turnover(now, before, weighting, len(known_age))
                yield _turnover_batch(users, (weighting.method, str(window)), offset, changes)


def _turnover_batch(users: pa.Array, key: Slice, offset_days: int, changes: drift.Turnover) -> pa.RecordBatch:
    labels = [pa.repeat(text, len(users)) for text in key]
    offsets = pa.repeat(pa.scalar(offset_days, pa.int32()), len(users))
    numbers = [pa.array(getattr(changes, name)) for name in (*_COUNTS, "mass_factor", "weight_distance")]
    return pa.record_batch([users, *labels, offsets, *numbers], names=_TURNOVER_SCHEMA.fieldNames())
