"""Compare the LTEs of a day with the LTEs of the configured earlier days, user by user (paper, section 7).

Reads user_lte, interactions, item_embeddings; writes lte_drift and metrics. The turnover of each window is counted
again from the interactions, so that the bound is independent of the LTEs that it judges. An earlier LTE may no longer
fit the interactions (late data), or may have other settings. Such an LTE is counted but not judged. The autoencoder's
LTEs are not averages, so no bound holds for them (ADR 0006). This job records only their norms; validate compares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.basis.matrix import load_matrix, pinned_basis
from jobs.drift.references import References, find_references
from jobs.drift.summaries import (
    SLICE,
    USER,
    Slice,
    drift_metrics,
    lte_centres,
    norm_metrics,
    own_nearest_shares,
    texts,
    vectors_of,
)
from jobs.drift.turnover import _COUNTS, lake_turnover
from jobs.lake.day import Day
from jobs.lake.lake import Metrics, open_lake
from jobs.lte.settings import BLOCK_USERS
from jobs.runtime.entry import run_job
from jobs.runtime.flags import parse_config
from lte_models.averages import drift
from lte_models.averages.behaviour import has_behaviour
from lte_models.averages.pooling import BEHAVIOUR
from schemas import LTE_DRIFT, METHODS, POOLED_METHODS, USER_LTE

JOB = "compute_drift"
_JUDGED_SCHEMA = LTE_DRIFT.row_type([name for name in LTE_DRIFT.columns if name != "ds"])


def main(argv: Sequence[str] | None = None) -> None:
    """Compare ``--ds`` with the days before it."""
    config = parse_config(argv, JOB, __doc__)
    with open_lake(config.deployment, JOB, config.ds) as lake:
        lake.record_metrics(config.ds, JOB, write_drift(Day(lake, config.deployment, config.ds)))


def write_drift(day: Day) -> Metrics:
    """Write lte_drift of ``ds``.

    Args:
        day: Its lake holds user_lte, interactions, event_days, item_embeddings, metrics; its deployment has windows,
            methods, offsets, partitions.

    Returns:
        The metrics of :func:`drift_metrics`, of norms and of the reference days; labels are method/window/offset.

    Raises:
        LteError: user_lte has no rows of ``ds``, or the rows were made with other settings.
        jobs.basis.basis.BasisError: The rows of a day have two bases, or the basis is damaged.
    """
    references = find_references(day)
    basis = pinned_basis(day.lake, references.basis_version)
    matrix = load_matrix(basis)
    extent = drift.basis_extent(matrix.vectors, matrix.known_ages(day.ds) >= 0)
    of_basis = day.lake.read(USER_LTE).where(F.col("basis_version") == F.lit(references.basis_version))
    centres = lte_centres(of_basis.where(F.col("ds") == F.lit(day.ds)), extent.max_norm)
    changes = lake_turnover(day, references, basis)
    means = {key: centre.mean for key, centre in centres.items()}
    others = frozenset(references.other_settings), frozenset(references.other_behaviour)
    task = JudgeTask(_extents(extent, references), means, *others)
    averages = day.lake.read(USER_LTE, where={"method": POOLED_METHODS})
    day.lake.replace(judged(averages, changes, day.ds, references.offsets, task), LTE_DRIFT, _whole(day.ds))
    metrics = drift_metrics(day.lake.read(LTE_DRIFT, where={"ds": day.ds}))
    shares = own_nearest_shares(of_basis, day.ds, references.offsets)
    return metrics | shares | references.metrics() | norm_metrics(centres) | {"basis_max_norm": extent.max_norm}


def _extents(basis: drift.BasisExtent, references: References) -> dict[str, drift.BasisExtent]:
    """Extent of the item vectors that each method averages."""
    extents = dict.fromkeys(POOLED_METHODS, basis)
    if references.behaviour is not None:
        vectors = load_matrix(references.behaviour).vectors
        extents[BEHAVIOUR] = drift.basis_extent(vectors, has_behaviour(vectors))
    return extents


def _whole(ds: date) -> dict[str, date | tuple[str, ...]]:
    """Everything of ``ds``, so that slices of methods and windows that are no longer configured are removed too."""
    return {"ds": ds, "method": METHODS}


def judged(user_lte: DataFrame, changes: DataFrame, ds: date, offsets: Sequence[int], task: JudgeTask) -> DataFrame:
    """Rows of lte_drift: users with an LTE on both days.

    Args:
        user_lte: LTEs that are averages, of ds and the earlier days.
        changes: Turnover rows; a user without a row lost all interactions.
        ds: The later day.
        offsets: Days back to the earlier days.
        task: Judges a batch.
    """
    days = [ds - timedelta(days=offset) for offset in offsets]
    now = user_lte.where(F.col("ds") == F.lit(ds)).select(*USER, *_side("now"))
    earlier = user_lte.where(F.col("ds").isin(days) if days else F.lit(False))
    before = earlier.select(*USER, *_side("before"), F.datediff(F.lit(ds), "ds").alias("offset_days"))
    rows = now.join(before, USER).join(changes, [*USER, "offset_days"], "left")
    return rows.mapInArrow(task, _JUDGED_SCHEMA).withColumn("ds", F.lit(ds))


def _side(name: str) -> list[Column]:
    return [F.col("embedding").alias(f"vector_{name}"), F.col("n_items").alias(f"stored_{name}")]


@dataclass(frozen=True)
class JudgeTask:
    """Measures the drift of joined rows and compares it with the bounds.

    Attributes:
        extents: Largest norm and extent of the vectors that each method averages.
        centres: Mean LTE of each method and window.
        other_settings: Offsets whose LTEs were made with other settings; these are not judged.
        other_behaviour: Offsets with other behaviour vectors; there, method behaviour is not judged.
    """

    extents: Mapping[str, drift.BasisExtent]
    centres: Mapping[Slice, NDArray[np.float64]]
    other_settings: frozenset[int]
    other_behaviour: frozenset[int] = frozenset()

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Turn joined rows into rows of lte_drift, without ds."""
        for batch in batches:
            methods = np.array(batch["method"].to_pylist())
            for method in np.unique(methods):
                rows = batch.filter(pa.array(methods == method))
                for start in range(0, rows.num_rows, BLOCK_USERS):
                    yield self._judged(rows.slice(start, BLOCK_USERS), str(method))

    def _judged(self, rows: pa.RecordBatch, method: str) -> pa.RecordBatch:
        extent = self.extents[method]
        changes = _turnover_of(rows)
        now, before = vectors_of(rows["vector_now"]), vectors_of(rows["vector_before"])
        centres = self._centres(rows, now.shape[1])
        has_both = (changes.n_now > 0) & (changes.n_before > 0)
        centred = np.where(has_both, drift.cosines(now - centres, before - centres), np.nan)
        measured = {
            "tau": drift.paper_tau(changes),
            "drift": drift.distances(now, before),
            "bound": drift.drift_bound(changes, extent.max_norm),
            "tv_bound": drift.total_variation_bound(changes, extent),
            "cosine": _nullable(drift.cosines(now, before)),
            "centred_cosine": _nullable(centred),
            "activity": drift.activity_buckets(changes.n_now),
        }
        is_stale = self._stale(rows, changes, method)
        smallest = np.minimum(measured["bound"], measured["tv_bound"])
        limit = smallest + drift.rounding_tolerance(changes.n_now, changes.n_before, extent.max_norm)
        flags = {"bound_ok": is_stale | (measured["drift"] <= limit), "reference_stale": is_stale}
        return _drift_batch(rows, changes, measured | flags)

    def _centres(self, rows: pa.RecordBatch, dim: int) -> NDArray[np.float64]:
        """Mean LTE of each row's slice; zeros when no user of the slice has known items."""
        keys = zip(*texts(rows, SLICE), strict=True)
        return np.array([self.centres.get(key, np.zeros(dim)) for key in keys]).reshape(rows.num_rows, dim)

    def _stale(self, rows: pa.RecordBatch, changes: drift.Turnover, method: str) -> NDArray[np.bool_]:
        """Mark rows whose LTEs were made from other interactions, with other settings or other behaviour vectors."""
        stored_now, stored_before = (rows[f"stored_{side}"].to_numpy() for side in ("now", "before"))
        is_other: NDArray[np.bool_] = (stored_now != changes.n_now) | (stored_before != changes.n_before)
        unlike = self.other_settings | (self.other_behaviour if method == BEHAVIOUR else frozenset())
        return is_other | np.isin(rows["offset_days"].to_numpy(), list(unlike))


def _turnover_of(rows: pa.RecordBatch) -> drift.Turnover:
    """Turnover columns of joined rows; zeros for a user who lost all interactions and so has no turnover row."""
    counts = [rows[name].fill_null(0).to_numpy().astype(np.int64) for name in _COUNTS]
    numbers = [rows[name].fill_null(0.0).to_numpy() for name in ("mass_factor", "weight_distance")]
    return drift.Turnover(*counts, *numbers)


def _nullable(values: NDArray[np.float64]) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))


def _drift_batch(rows: pa.RecordBatch, changes: drift.Turnover, measured: Mapping[str, object]) -> pa.RecordBatch:
    names = _JUDGED_SCHEMA.fieldNames()
    counts = {name: pa.array(getattr(changes, name).astype(np.int32)) for name in _COUNTS}
    same = {name: rows[name] for name in (*USER, "offset_days")}
    columns = {**same, **counts, **measured}
    return pa.record_batch([_as_arrow(columns[name]) for name in names], names=names)


def _as_arrow(column: object) -> pa.Array:
    return column if isinstance(column, pa.Array) else pa.array(column)


if __name__ == "__main__":
    run_job(main)
