"""Measures of the autoencoder's LTEs for the gates: compared with yesterday's LTEs and with uniform LTEs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DoubleType, IntegerType, StringType, StructField, StructType

from jobs.drift.summaries import lte_centres, vectors_of
from jobs.gates.measured import ACTIVE_ITEMS, AUTOENCODER, DAY, Limit, Measured, limits_of
from jobs.lake.day import Day
from jobs.lake.lake import Lake
from lte_models.averages import drift
from lte_models.averages.pooling import Float32Array
from schemas import USER_LTE

DoubleArray = NDArray[np.float64]

# Larger than any norm of a latent. Vectors are summed as integers in steps of 2^-36 times this number.
_LARGE_NORM = 1e4
_QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}

_COMPARED_SCHEMA = StructType(
    [
        StructField("user_id", StringType()),
        StructField("n_items", IntegerType()),
        StructField("activity", StringType()),
        *(StructField(name, DoubleType()) for name in ("cosine", "drift", "uniform_cosine")),
    ]
)


def autoencoder_changes(lake: Lake, ds: date, window: str) -> DataFrame:
    """One row per user of the autoencoder's slice of ds.

    Latents have no unit length, so their drift is relative. For the comparison with uniform LTEs, each vector is
    centred: the mean over users is subtracted. BCE without a bias pushes all latents away from this mean, and the size
    of that shift says nothing about single users.

    Returns:
        user_id, n_items, activity, cosine, drift and uniform_cosine. ``cosine`` is with yesterday's LTE. ``drift`` is
        the distance from yesterday's LTE over the norm of yesterday's LTE. Both are null without an LTE of yesterday.
        ``uniform_cosine`` is with the uniform LTE of the same day, both centred. Cosines with a zero vector are null.
    """
    slices: dict[str, tuple[date, str]] = {
        "vector_now": (ds, AUTOENCODER),
        "vector_before": (ds - DAY, AUTOENCODER),
        "vector_uniform": (ds, "uniform"),
    }
    sides = {
        name: lake.read(USER_LTE, where={"ds": day, "method": method, "lte_window": window})
        for name, (day, method) in slices.items()
    }
    task = CompareTask(_centre(sides["vector_now"]), _centre(sides["vector_uniform"]))
    now = sides["vector_now"].select("user_id", "n_items", "basis_version", F.col("embedding").alias("vector_now"))
    for name in ("vector_before", "vector_uniform"):
        other = sides[name].select("user_id", "basis_version", F.col("embedding").alias(name))
        now = now.join(other, ["user_id", "basis_version"], "left")
    return now.drop("basis_version").mapInArrow(task, _COMPARED_SCHEMA)


def _centre(rows: DataFrame) -> DoubleArray:
    """Mean over the users of one slice; zero when no user of the slice has items."""
    found = list(lte_centres(rows, _LARGE_NORM).values())
    return found[0].mean if found else np.zeros(1)


@dataclass(frozen=True)
class CompareTask:
    """Compares a partition's vectors.

    Attributes:
        centre: Mean latent, float64 [D], or [1] for broadcasting.
        uniform_centre: Mean uniform LTE, float64 [D], or [1] for broadcasting.
    """

    centre: DoubleArray
    uniform_centre: DoubleArray

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Turn joined rows into rows of :func:`autoencoder_changes`."""
        for batch in batches:
            n_items = batch["n_items"]
            columns = [
                batch["user_id"],
                n_items,
                pa.array(drift.activity_buckets(n_items.to_numpy())),
                _pairwise(batch, "vector_before", drift.cosines),
                _pairwise(batch, "vector_before", _relative_distances),
                _pairwise(batch, "vector_uniform", self._centred_cosines),
            ]
            yield pa.record_batch(columns, names=_COMPARED_SCHEMA.fieldNames())

    def _centred_cosines(self, now: Float32Array, uniform: Float32Array) -> DoubleArray:
        return drift.cosines(now - self.centre, uniform - self.uniform_centre)


def _relative_distances(now: Float32Array, before: Float32Array) -> DoubleArray:
    """Distance over the norm of the earlier vector; NaN when this norm is zero."""
    distances, norms = drift.distances(now, before), np.linalg.norm(before.astype(np.float64), axis=1)
    found: DoubleArray = np.divide(distances, norms, out=np.full(len(norms), np.nan), where=norms > 0)
    return found


def _pairwise(
    rows: pa.RecordBatch, other: str, measure: Callable[[Float32Array, Float32Array], DoubleArray]
) -> pa.Array:
    """A measure of vector_now and ``other``; null when the other vector is missing or the measure is NaN."""
    is_there = rows[other].is_valid()
    pairs = rows.filter(is_there)
    values = np.full(rows.num_rows, np.nan)
    mask = ~is_there.to_numpy(zero_copy_only=False)
    if pairs.num_rows:
        values[~mask] = measure(vectors_of(pairs["vector_now"]), vectors_of(pairs[other]))
    return pa.array(values, mask=mask | np.isnan(values))


def measure_autoencoder(day: Day) -> list[Measured]:
    """Compare the autoencoder's LTEs with yesterday's LTEs and with uniform LTEs.

    Returns:
        The frame of the gates and, for the report, one frame without limits per bucket of activity. The list is empty
        when the autoencoder wrote no LTEs.
    """
    window = day.deployment.autoencoder.window
    if not day.deployment.autoencoder.enabled:
        return []
    changes = autoencoder_changes(day.lake, day.ds, window)
    by_bucket = [row.asDict() for row in changes.groupBy("activity").agg(*_quantiles()).collect()]
    if not by_bucket:
        return []
    active = changes.where(F.col("n_items") >= ACTIVE_ITEMS).agg(*_quantiles()).collect()[0].asDict()
    label = f"{AUTOENCODER}/{window}"
    buckets = [
        Measured("user_lte", f"{label}/{row.pop('activity')}", {f"autoencoder_{name}": row[name] for name in row}, ())
        for row in by_bucket
    ]
    return [_gated_autoencoder(day, changes, active), *buckets]


def _quantiles() -> list[Column]:
    names = ("cosine", "drift", "uniform_cosine")
    found = [F.percentile(name, share).alias(f"{name}_{q}") for name in names for q, share in _QUANTILES.items()]
    return [F.count("*").alias("n_users"), F.count("cosine").alias("n_with_yesterday"), *found]


def _gated_autoencoder(day: Day, changes: DataFrame, active: Mapping[str, float | None]) -> Measured:
    window = day.deployment.autoencoder.window
    ours, uniform = (
        day.lake.read(USER_LTE, where={"ds": day.ds, "method": method, "lte_window": window}).select("user_id")
        for method in (AUTOENCODER, "uniform")
    )
    missing, extra = uniform.join(ours, "user_id", "left_anti"), ours.join(uniform, "user_id", "left_anti")
    values: dict[str, float | None] = {
        **{f"autoencoder_{name}": value for name, value in active.items()},
        "n_autoencoder_users_missing": missing.count(),
        "n_autoencoder_users_extra": extra.count(),
    }
    has_yesterday = f"no LTEs of the autoencoder of {day.ds - DAY}, or nobody with {ACTIVE_ITEMS} items on both days"
    nobody = f"no user with {ACTIVE_ITEMS} items"
    reasons = {
        "autoencoder_cosine_p01": has_yesterday,
        "autoencoder_drift_p99": has_yesterday,
        "autoencoder_uniform_cosine_p50": nobody,
    }
    known = changes.where(F.col("n_items") >= ACTIVE_ITEMS)
    return Measured(
        table="user_lte",
        label=f"{AUTOENCODER}/{window}",
        values=values,
        limits=(
            Limit("n_autoencoder_users_missing", maximum=0, setting="the users of the uniform LTEs"),
            Limit("n_autoencoder_users_extra", maximum=0, setting="the users of the uniform LTEs"),
            *limits_of(
                day.deployment.gates,
                "autoencoder_cosine_p01",
                "autoencoder_drift_p99",
                "autoencoder_uniform_cosine_p50",
            ),
        ),
        skipped={name: why for name, why in reasons.items() if values[name] is None},
        rows={
            "n_autoencoder_users_missing": lambda: missing.orderBy("user_id"),
            "n_autoencoder_users_extra": lambda: extra.orderBy("user_id"),
            "autoencoder_cosine_p01": lambda: known.orderBy("cosine", "user_id"),
            "autoencoder_drift_p99": lambda: known.orderBy(F.desc("drift"), "user_id"),
            "autoencoder_uniform_cosine_p50": lambda: known.orderBy("uniform_cosine", "user_id"),
        },
    )
