"""Numbers that the gates of a day judge: a few numbers per slice, computed once in the engine, with their limits.

Yesterday is ds - 1. A value with nothing to compare with is None, and ``skipped`` holds the reason. The gate of such a
value is not judged, and its result says so. The numbers are quantiles and counts of users. Means are not used, because
a mean hides what happens to a few users (ADR 0006).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from statistics import median_low
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from jobs.basis.basis import catalogue_versions
from jobs.config.sections import Deployment
from jobs.config.window import LteWindow
from jobs.gates.measured import ACTIVE_ITEMS, AUTOENCODER, DAY, Limit, Measured, limits_of
from jobs.lake.day import BasisDay, Day
from jobs.lake.lake import Lake
from jobs.lte.settings import lte_windows
from jobs.lte.windows import in_window
from schemas import EVENT_DAYS, ITEM_EMBEDDINGS, ITEMS, LTE_DRIFT, USER_LTE

WEEK = timedelta(days=7)
WEEKS = 4

# One earlier week, or two earlier days, are too few to know the usual number.
LEAST_WEEKS = 2
LEAST_DAYS = 3

# With 11 usual interactions, a day has 2 or fewer by chance once in 800 days (Poisson). With fewer usual interactions
# such days are more frequent, and the gate would stop good days.
LEAST_USUAL = 10


def measure_catalogue(day: BasisDay) -> Measured:
    """How much of the catalogue has a vector."""
    catalogue = catalogue_versions(day.lake.read(ITEMS), day.ds).select("item_id")
    basis = day.lake.read(ITEM_EMBEDDINGS, where={"basis_version": day.basis_version}).select("item_id")
    bare = catalogue.join(basis, "item_id", "left_anti")
    n_items, n_bare = catalogue.count(), bare.count()
    return Measured(
        table="items",
        label="",
        values={"n_items": n_items, "unembedded_share": n_bare / n_items if n_items else None},
        limits=limits_of(day.deployment.gates, "unembedded_share"),
        skipped={} if n_items else {"unembedded_share": f"no item landed up to {day.ds}"},
        rows={"unembedded_share": lambda: bare.orderBy("item_id")},
    )


def measure_input(day: Day) -> Measured:
    """Number of interactions of ds compared with the usual number, and the age of the newest interactions.

    See :func:`usual_volume`. A closed weekday has a usual number of 0 and is not judged.
    """
    days = day.lake.read(EVENT_DAYS).where((F.col("event_date") <= F.lit(day.ds)) & (F.col("n_events") > 0))
    ends = days.agg(F.min("event_date").alias("first"), F.max("event_date").alias("last")).collect()[0]
    recent = days.where(F.col("event_date") >= F.lit(day.ds - WEEKS * WEEK)).select("event_date", "n_events").collect()
    counts = {row["event_date"]: int(row["n_events"]) for row in recent}
    usual = usual_volume(counts, ends["first"] or day.ds, day.ds)
    n_events = counts.get(day.ds, 0)
    share = n_events / usual if usual > LEAST_USUAL else None
    age = (day.ds - ends["last"]).days if ends["last"] else None
    why = f"{usual} interactions are usual, and {LEAST_USUAL} or fewer say nothing"
    skipped = {} if share is not None else {"volume_share": why, "volume_excess": why}
    return Measured(
        table="event_days",
        label="",
        values={
            "n_events": n_events,
            "n_events_usual": usual,
            "volume_share": share,
            "volume_excess": share,
            "event_age_days": age,
        },
        limits=limits_of(day.deployment.gates, "volume_share", "volume_excess", "event_age_days"),
        skipped=skipped | ({} if age is not None else {"event_age_days": f"no interaction up to {day.ds}"}),
        rows={name: lambda: _weekdays(day.lake, day.ds) for name in ("volume_share", "volume_excess")},
    )


def usual_volume(counts: Mapping[date, int], first: date, ds: date) -> int:
    """Median number of interactions of the same weekday in the last 28 days.

    Days before the first interaction of all are left out. A shop that is younger than two weeks is compared with all
    its days.

    Args:
        counts: Days with interactions to their number.
        first: Day of the first interaction of all.
        ds: Data day.

    Returns:
        The lower median; 0 where there are fewer than 3 days to compare with.
    """
    days = [ds - week * WEEK for week in range(1, WEEKS + 1) if ds - week * WEEK >= first]
    if len(days) < LEAST_WEEKS:
        days = [ds - n * DAY for n in range(1, WEEKS * 7 + 1) if ds - n * DAY >= first]
        if len(days) < LEAST_DAYS:
            return 0
    return median_low(counts.get(day, 0) for day in days)


def _weekdays(lake: Lake, ds: date) -> DataFrame:
    """The days that the volume of ds is compared with, newest first, ds included."""
    shown = [ds - week * WEEK for week in range(WEEKS + 1)]
    days = lake.read(EVENT_DAYS).where(F.col("event_date").isin(shown))
    return days.select("event_date", "n_events").orderBy(F.desc("event_date"))


def measure_basis(lake: Lake, basis_version: str) -> Measured:
    """Whether items and their rows in the matrix correspond one to one, without gaps."""
    rows = lake.read(ITEM_EMBEDDINGS, where={"basis_version": basis_version}).select("item_id", "item_index")
    found = rows.agg(
        F.count("*").alias("n"),
        F.countDistinct("item_id").alias("items"),
        F.countDistinct("item_index").alias("indices"),
        F.max("item_index").alias("last"),
    ).collect()[0]
    repeated = rows.groupBy("item_id").agg(F.count("*").alias("n_rows")).where("n_rows > 1")
    return Measured(
        table="item_embeddings",
        label="",
        values={
            "n_vectors": found["n"],
            "n_repeated_items": found["n"] - found["items"],
            "n_index_gaps": (found["last"] if found["n"] else -1) + 1 - found["indices"],
            "n_repeated_indices": found["n"] - found["indices"],
        },
        limits=(
            Limit("n_vectors", minimum=1),
            Limit("n_repeated_items", maximum=0, setting="one vector an item"),
            Limit("n_index_gaps", maximum=0, setting="item_index is dense from 0"),
            Limit("n_repeated_indices", maximum=0, setting="item_index is never used twice"),
        ),
        rows={"n_repeated_items": lambda: repeated.orderBy("item_id")},
    )


def measure_slices(day: Day, *, is_stale: bool) -> list[Measured]:
    """Users and interactions of each configured slice of ds, and of the autoencoder's slice if there is one.

    Args:
        day: Its lake holds user_lte and event_days; its deployment has slices and limits.
        is_stale: Whether interactions changed since the LTEs were computed. If so, n_interactions_missing is skipped.
    """
    users = slice_users(day.lake, day.ds)
    counted = {(row["method"], row["lte_window"]): _numbers(row) for row in slice_counts(users).collect()}
    windows = {str(window): _n_events(day.lake, day.ds, window) for window in lte_windows(day.deployment.lte)}
    wanted = [(method, window) for method in day.deployment.lte.methods for window in windows]
    learned = (AUTOENCODER, day.deployment.autoencoder.window)
    if day.deployment.autoencoder.enabled and counted.get(learned, {}).get("n_users"):
        wanted.append(learned)
    return [_measured_slice(key, counted.get(key), users, windows, day.deployment, day.ds, is_stale) for key in wanted]


def _numbers(row: Row) -> dict[str, Any]:
    """The numbers of a row, without the columns that name its slice."""
    return {name: value for name, value in row.asDict().items() if name not in ("method", "lte_window")}


def slice_users(lake: Lake, ds: date) -> DataFrame:
    """One row per user and slice of ds or yesterday, without vectors: is_now, is_before, n_items, n_unknown."""
    is_now, is_before = F.col("ds") == F.lit(ds), F.col("ds") == F.lit(ds - DAY)
    rows = lake.read(USER_LTE, where={"ds": [ds, ds - DAY]})
    return rows.groupBy("user_id", "method", "lte_window").agg(
        F.max(is_now.cast("int")).alias("is_now"),
        F.max(is_before.cast("int")).alias("is_before"),
        F.sum(F.when(is_now, F.col("n_items")).otherwise(0)).alias("n_items"),
        F.sum(F.when(is_now, F.col("n_unknown")).otherwise(0)).alias("n_unknown"),
    )


def slice_counts(users: DataFrame) -> DataFrame:
    """Sums of :func:`slice_users` per slice."""
    is_lost = (F.col("is_before") == 1) & (F.col("is_now") == 0)
    return users.groupBy("method", "lte_window").agg(
        F.sum("is_now").alias("n_users"),
        F.sum("is_before").alias("n_users_before"),
        F.sum(is_lost.cast("int")).alias("n_users_lost"),
        F.sum("n_items").alias("n_items"),
        F.sum("n_unknown").alias("n_unknown"),
        F.sum(((F.col("is_now") == 1) & (F.col("n_items") == 0)).cast("int")).alias("n_zero"),
    )


def _n_events(lake: Lake, ds: date, window: LteWindow) -> int:
    days = lake.read(EVENT_DAYS).where(in_window(ds, window))
    return int(days.agg(F.sum("n_events").alias("n")).collect()[0]["n"] or 0)


def _measured_slice(
    key: tuple[str, str],
    counted: dict[str, int] | None,
    users: DataFrame,
    windows: Mapping[str, int],
    deployment: Deployment,
    ds: date,
    is_stale: bool,
) -> Measured:
    n = counted or dict.fromkeys(("n_users", "n_users_before", "n_users_lost", "n_items", "n_unknown", "n_zero"), 0)
    n_all, before = n["n_items"] + n["n_unknown"], n["n_users_before"]
    values: dict[str, float | None] = {
        **n,
        "unknown_share": n["n_unknown"] / n_all if n_all else None,
        # a shop younger than the window's end has nothing but zero vectors, and they are right
        "zero_share": n["n_zero"] / n["n_users"] if n["n_users"] and windows[key[1]] else None,
        "users_lost_share": n["n_users_lost"] / before if before else None,
        "users_change_share": abs(n["n_users"] - before) / before if before else None,
        "n_interactions_missing": None,
    }
    nobody = f"no LTEs of {ds - DAY} to compare with"
    skipped = {
        "users_lost_share": nobody,
        "users_change_share": nobody,
        "unknown_share": "no interaction in the window",
        "zero_share": "no interaction in the window, or no users",
    }
    skipped["n_interactions_missing"] = _uncounted(key, deployment, is_stale)
    if not skipped["n_interactions_missing"]:
        values["n_interactions_missing"] = abs(windows[key[1]] - n_all)
    method, window = key
    of_slice = users.where((F.col("method") == method) & (F.col("lte_window") == window))
    lost = of_slice.where("is_before = 1 AND is_now = 0")
    unknown = of_slice.where("n_unknown > 0")
    return Measured(
        table="user_lte",
        label="/".join(key),
        values=values,
        limits=_slice_limits(key, deployment),
        skipped={name: why for name, why in skipped.items() if values[name] is None},
        rows={
            "users_lost_share": lambda: lost.orderBy("user_id"),
            "users_change_share": lambda: of_slice.where("is_before <> is_now").orderBy("user_id"),
            "unknown_share": lambda: unknown.orderBy(F.desc("n_unknown"), "user_id"),
            "zero_share": lambda: of_slice.where("is_now = 1 AND n_items = 0").orderBy("user_id"),
        },
    )


def _uncounted(key: tuple[str, str], deployment: Deployment, is_stale: bool) -> str:
    """Why the interactions of a slice cannot be compared with event_days; empty when they can."""
    if key[0] == AUTOENCODER or deployment.lte.count == "distinct":
        return "items are counted once here, interactions are not"
    return "the run is stale: interactions changed since the LTEs were computed" if is_stale else ""


def _slice_limits(key: tuple[str, str], deployment: Deployment) -> tuple[Limit, ...]:
    is_served = key == (deployment.publish.method, deployment.publish.window)
    # The autoencoder's LTE of a user without items is a learned vector, not zero.
    names = [
        *(["n_users"] if is_served else []),
        *("users_lost_share", "users_change_share", "unknown_share"),
        *([] if key[0] == AUTOENCODER else ["zero_share"]),
    ]
    return (
        *limits_of(deployment.gates, *names),
        Limit("n_interactions_missing", maximum=0, setting="n_items + n_unknown = n_events of the window's days"),
    )


def measure_drift(day: Day) -> list[Measured]:
    """Per slice, the violations of the bound over all offsets and the quantiles of the change of one day."""
    rows = day.lake.read(LTE_DRIFT, where={"ds": day.ds})
    found = {(row["method"], row["lte_window"]): _numbers(row) for row in drift_quantiles(rows).collect()}
    keys = [
        (method, str(window)) for method in day.deployment.lte.methods for window in lte_windows(day.deployment.lte)
    ]
    return [_measured_drift(key, found.get(key), rows, day.deployment, day.ds) for key in keys]


def drift_quantiles(lte_drift: DataFrame) -> DataFrame:
    """One row per slice: number of rows, violations, and the quantiles of the change of one day.

    The quantiles are over users who were active on both days.

    Args:
        lte_drift: Rows of one ds.
    """
    is_active = (F.col("n_now") >= ACTIVE_ITEMS) & (F.col("n_before") >= ACTIVE_ITEMS)
    is_judged = is_active & ~F.col("reference_stale") & (F.col("offset_days") == 1)
    cosine, moved = F.when(is_judged, F.col("cosine")), F.when(is_judged, F.col("drift"))
    return lte_drift.groupBy("method", "lte_window").agg(
        F.count("*").alias("n_rows"),
        F.sum((~F.col("bound_ok")).cast("int")).alias("n_bound_violations"),
        F.sum(is_judged.cast("int")).alias("n_active_users"),
        F.percentile(cosine, 0.01).alias("cosine_p01"),
        F.percentile(moved, 0.99).alias("drift_p99"),
    )


def _measured_drift(
    key: tuple[str, str], found: dict[str, float] | None, rows: DataFrame, deployment: Deployment, ds: date
) -> Measured:
    label = "/".join(key)
    values: dict[str, float | None] = dict.fromkeys(("n_rows", "n_bound_violations", "n_active_users"), 0.0)
    values |= {"cosine_p01": None, "drift_p99": None}
    values |= found or {}
    why = (
        f"no user had {ACTIVE_ITEMS} interactions on both days"
        if values["n_rows"]
        else f"no LTEs of {ds - DAY} to compare with"
    )
    of_slice = rows.where((F.col("method") == key[0]) & (F.col("lte_window") == key[1]))
    shown = of_slice.select(
        "user_id", "offset_days", "n_now", "n_before", "drift", "bound", "tv_bound", "cosine", "bound_ok"
    )
    one_day = shown.where((F.col("offset_days") == 1) & (F.col("n_now") >= ACTIVE_ITEMS))
    return Measured(
        table="lte_drift",
        label=label,
        values=values,
        limits=limits_of(deployment.gates, "n_bound_violations", "cosine_p01", "drift_p99"),
        skipped={name: why for name in ("cosine_p01", "drift_p99") if values[name] is None},
        rows={
            "n_bound_violations": lambda: shown.where(~F.col("bound_ok")).orderBy(F.desc("drift"), "user_id"),
            "cosine_p01": lambda: one_day.orderBy("cosine", "user_id"),
            "drift_p99": lambda: one_day.orderBy(F.desc("drift"), "user_id"),
        },
    )
