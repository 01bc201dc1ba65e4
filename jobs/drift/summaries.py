"""Summarises the drift and the LTEs of a day in a few numbers: Table 2 of the paper, quantiles, centre and norms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DoubleType, LongType, StringType, StructField, StructType

from jobs.lake.lake import Metrics
from jobs.lake.vectors import VectorError, vector_matrix
from jobs.lte.settings import LteError
from lte_models.averages import drift
from lte_models.averages.pooling import Float32Array

SAMPLE_USERS = 500
QUANTILES = {"p01": 0.01, "p50": 0.5, "p99": 0.99}

# Vectors are summed as integers, so that the sum does not depend on the order. One step is 2^-36 of the largest norm.
FIXED_POINT = 2.0**36
SLICE = ["method", "lte_window"]
USER = ["user_id", *SLICE]
Slice = tuple[str, str]

_SUMS_SCHEMA = StructType(
    [StructField(name, StringType()) for name in SLICE]
    + [StructField("n_users", LongType()), StructField("sums", ArrayType(LongType()))]
    + [StructField("norm_sum", LongType())]
    + [StructField(name, DoubleType()) for name in ("norm_min", "norm_max")]
)


@dataclass(frozen=True)
class SliceCentre:
    """Centre and norms of the LTEs of one method and window; users without known items are left out.

    Attributes:
        n_users: Number of users with known items.
        mean: Mean LTE, float64 [D].
        norms: Smallest, mean and largest norm.
    """

    n_users: int
    mean: NDArray[np.float64]
    norms: tuple[float, float, float]


def lte_centres(rows: DataFrame, max_norm: float) -> dict[Slice, SliceCentre]:
    """Mean LTE of each method and window; every bit is the same, whatever order the engine adds in.

    Args:
        rows: user_lte of one ds.
        max_norm: Largest norm of an item vector. No LTE is longer.
    """
    scale = FIXED_POINT / max(max_norm, np.finfo(np.float64).tiny)
    known = rows.where(F.col("n_items") > 0).select(*SLICE, "embedding")
    found: dict[Slice, list[dict[str, object]]] = {}
    for row in known.mapInArrow(SumTask(scale), _SUMS_SCHEMA).toArrow().to_pylist():
        found.setdefault((row["method"], row["lte_window"]), []).append(row)
    return {key: centre_of(parts, scale) for key, parts in found.items()}


def centre_of(parts: list[dict[str, object]], scale: float) -> SliceCentre:
    """Add the parts of one slice, see :class:`SumTask`."""
    rows = pa.Table.from_pylist(parts)
    n_users = sum(rows["n_users"].to_pylist())
    sums = np.array(rows["sums"].to_pylist(), dtype=object).sum(axis=0)  # Python's integers do not overflow
    mean = np.array([total / n_users / scale for total in sums], np.float64)
    norm_mean = sum(rows["norm_sum"].to_pylist()) / n_users / scale
    return SliceCentre(n_users, mean, (min(rows["norm_min"].to_pylist()), norm_mean, max(rows["norm_max"].to_pylist())))


@dataclass(frozen=True)
class SumTask:
    """Adds up a partition's vectors as integers."""

    scale: float

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Turn rows with method, lte_window, embedding into sums, one row per batch and slice."""
        for batch in batches:
            keys = np.array([f"{method}/{window}" for method, window in zip(*texts(batch, SLICE), strict=True)])
            for key in np.unique(keys):
                rows = batch.filter(pa.array(keys == key))
                yield self._sums(rows, vectors_of(rows["embedding"]))

    def _sums(self, rows: pa.RecordBatch, vectors: Float32Array) -> pa.RecordBatch:
        norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
        fixed = np.rint(vectors.astype(np.float64) * self.scale).astype(np.int64)
        values = {
            "method": [rows["method"][0].as_py()],
            "lte_window": [rows["lte_window"][0].as_py()],
            "n_users": [rows.num_rows],
            "sums": [fixed.sum(axis=0)],
            "norm_sum": [int(np.rint(norms * self.scale).astype(np.int64).sum())],
            "norm_min": [float(norms.min())],
            "norm_max": [float(norms.max())],
        }
        return pa.record_batch(values)


def texts(batch: pa.RecordBatch, names: Sequence[str]) -> list[list[str]]:
    """Columns of a batch as Python strings."""
    return [batch[name].to_pylist() for name in names]


def vectors_of(column: pa.ListArray) -> Float32Array:
    """Vectors of a list column, float32 [rows, D].

    Raises:
        LteError: The vectors differ in length.
    """
    try:
        return vector_matrix(column)
    except VectorError as error:
        raise LteError(f"table user_lte, column embedding: {error}") from error


def norm_metrics(centres: Mapping[Slice, SliceCentre]) -> Metrics:
    """Norms of each slice as metrics; labels are method/window."""
    names = ("norm_min", "norm_mean", "norm_max")
    return {
        (name, "/".join(key)): value
        for key, centre in centres.items()
        for name, value in zip(names, centre.norms, strict=True)
    }


def drift_metrics(lte_drift: DataFrame) -> Metrics:
    """Table 2 of the paper and the quantiles that the gates use, for one ds; labels are method/window/offset.

    Rows with a stale reference are only counted. ``mean_tau`` is over users with known items now. Cosines are over
    users with known items on both days. ``bound_share`` (drift / bound) is over users whose bound is above 0.

    Args:
        lte_drift: Rows of one ds.
    """
    by = [*SLICE, "offset_days"]
    counts = lte_drift.groupBy(*by).agg(
        F.count("*").alias("n_users"),
        F.sum(F.col("reference_stale").cast("int")).alias("n_stale"),
        F.sum((~F.col("bound_ok")).cast("int")).alias("n_bound_broken"),
    )
    fresh = lte_drift.where(~F.col("reference_stale")).withColumn(
        "bound_share", F.when(F.col("bound") > 0, F.col("drift") / F.col("bound"))
    )
    quantiles = [
        F.percentile(name, share).alias(f"{name}_{quantile}")
        for name in ("drift", "bound_share", "cosine", "centred_cosine")
        for quantile, share in QUANTILES.items()
    ]
    measured = fresh.groupBy(*by).agg(
        _exact_mean(F.when(F.col("n_now") > 0, F.col("tau"))).alias("mean_tau"),
        _exact_mean(F.col("cosine")).alias("mean_cosine"),
        _exact_mean(F.col("centred_cosine")).alias("mean_centred_cosine"),
        F.max("drift").alias("drift_max"),
        F.max("bound_share").alias("bound_share_max"),
        *quantiles,
    )
    return _labelled(counts, by) | _labelled(measured, by)


def _exact_mean(values: Column) -> Column:
    """Mean that does not depend on the order of rows, because it adds decimals and not floats.

    NaN is left out: a NaN already counts as a violation of the bound.
    """
    exact = F.when(~F.isnan(values), values).cast("decimal(28,15)")
    return F.sum(exact).cast("double") / F.nullif(F.count(exact), F.lit(0))


def _labelled(rows: DataFrame, by: Sequence[str]) -> Metrics:
    """One metric per column and row, labelled by the columns ``by``; nulls are left out."""
    names = [name for name in rows.columns if name not in by]
    found = rows.collect()
    labels = ["/".join(str(row[name]) for name in by) for row in found]
    return {
        (name, label): float(row[name])
        for label, row in zip(labels, found, strict=True)
        for name in names
        if row[name] is not None
    }


def own_nearest_shares(user_lte: DataFrame, ds: date, offsets: Sequence[int]) -> Metrics:
    """Share of sampled users whose nearest earlier LTE is their own earlier LTE; raw cosines do not show it (ADR 0011).

    The sample is the users with the smallest MD5 of their id, so it is the same in every run and on every engine. A
    larger sample gives a smaller share.
    """
    days = {ds - timedelta(days=offset): offset for offset in offsets}
    known = user_lte.where((F.col("n_items") > 0) & F.col("ds").isin([ds, *days]))
    users = known.where(F.col("ds") == F.lit(ds)).select("user_id").distinct()
    sample = users.orderBy(F.md5(F.col("user_id").cast("binary"))).limit(SAMPLE_USERS)
    rows = known.join(F.broadcast(sample), "user_id").select(*USER, "ds", "embedding").toArrow()
    vectors: dict[tuple[Slice, date], dict[str, NDArray[np.float32]]] = {}
    for row in rows.to_pylist():
        key = ((row["method"], row["lte_window"]), row["ds"])
        vectors.setdefault(key, {})[row["user_id"]] = np.array(row["embedding"], np.float32)
    shares: Metrics = {}
    for (part, day), then in vectors.items():
        now = vectors.get((part, ds), {})
        both = sorted(now.keys() & then.keys())
        if day != ds and both:
            share = drift.own_nearest_share(np.array([now[u] for u in both]), np.array([then[u] for u in both]))
            shares["own_nearest_share", f"{part[0]}/{part[1]}/{days[day]}"] = share
    return shares
