"""Facts of a run's report, from the tables; a missing part has the reason instead.

This process reads the small parts. The engine counts the parts that need a pass over all LTEs: histograms, norms, drift
against bound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.config.sections import Deployment
from jobs.config.window import ConfigError, LteWindow, ranker_window
from jobs.gates.refusals import is_blocking
from jobs.lake.array_scalars import without_arrays
from jobs.lake.lake import Lake, open_lake
from jobs.lake.predicates import Predicate, TableError
from jobs.lake.reader import LakeReader, lake_reader
from jobs.lte.inputs import read_staleness, stale_reason
from jobs.lte.windows import window_days
from jobs.report.history import RunPoint, run_points
from jobs.runtime.day import NEEDS
from jobs.runtime.task_records import TaskRecord, read_records
from jobs.store.opening import live_snapshot_values
from jobs.store.snapshot import OnlineStoreError
from schemas import (
    EVENT_DAYS,
    EXPERIMENTS,
    GATE_RESULTS,
    INGEST_LOG,
    LIVE_SNAPSHOT,
    LTE_DRIFT,
    METRICS,
    MODEL_RUNS,
    QUARANTINE,
    RUNS,
    TRAINING_EXAMPLES,
    USER_LTE,
)

Row = Mapping[str, Any]
Rows = Sequence[Row]

# Users drawn in the plot of drift against bound, chosen by a hash of their id.
POINTS = 3000
EXAMPLES_SHOWN = 10
RUNS_SHOWN = 14
NORM_BINS = 50
DAY = timedelta(days=1)
_EPOCH = re.compile(r"^epoch (\d+)$")
_ENGINE_ERRORS = (PySparkException, TableError, ConfigError, RuntimeError, OSError)


@dataclass(frozen=True)
class Distributions:
    """Counts of the engine over the LTEs of ds; lists are empty if there are no LTEs.

    Attributes:
        n_items: method, lte_window, bin (0 for none, k for 2^(k-1) to 2^k - 1), n_users.
        norms: method, lte_window, bin (of 1 / NORM_BINS), n_users; users without items are left out.
        points: user-level method, offset_days, bound, drift, bound_ok of some users.
        activity: method, lte_window, offset_days, activity, n_users, cosine_p01, cosine_p50.
    """

    n_items: list[Row] = field(default_factory=list)
    norms: list[Row] = field(default_factory=list)
    points: list[Row] = field(default_factory=list)
    activity: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """One task of the day.

    Attributes:
        task: Name.
        state: State in words.
        detail: A note on the state.
        tone: "good", "bad" or "neutral".
        seconds: Duration; None where it was not recorded.
        peak_mb: Largest memory of its process in MiB; None where it was not recorded.
        error: The sentence that ended the task; empty where it did not fail.
    """

    task: str
    state: str
    detail: str
    tone: str
    seconds: float | None = None
    peak_mb: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Facts:
    """All facts that the page shows.

    Attributes:
        deployment: Its name.
        ds: Data day.
        steps: The tasks in order.
        live: Manifest of the online store; None if nothing is live.
        live_problem: Why the live snapshot is unknown.
        ingest: Rows of ingest_log of the landing day.
        quarantine: (target, reason) to rows, of the landing day.
        quarantined: Some quarantined rows.
        event_days: Day to interactions, of all days.
        windows: The configured windows.
        metrics: (job, metric, label) to value.
        gates: Rows of gate_results.
        distributions: Counts of the engine.
        distributions_problem: Why the engine counted nothing.
        runs: ds, stale, n_failed of the last runs.
        points: The last runs up to ds, oldest first, for the trends.
        stale: Why the run of ds is out of date; empty if it is up to date.
        refusal: Why the ranker of ds did not go live; empty where it was not refused.
        lte_uplift: Row of table experiments: the configured LTE against no LTE; None if it was not measured.
    """

    deployment: str
    ds: date
    steps: list[Step]
    live: Row | None
    live_problem: str
    ingest: Rows
    quarantine: dict[tuple[str, str], int]
    quarantined: Rows
    event_days: dict[date, int]
    windows: tuple[LteWindow, ...]
    metrics: dict[tuple[str, str, str], float]
    gates: Rows
    distributions: Distributions
    distributions_problem: str
    runs: Rows
    points: Sequence[RunPoint] = ()
    stale: str = ""
    refusal: str = ""
    lte_uplift: Row | None = None

    def of_job(self, job: str) -> dict[tuple[str, str], float]:
        """(metric, label) to value of one job."""
        return {(metric, label): value for (each, metric, label), value in self.metrics.items() if each == job}

    def curves(self, job: str) -> dict[str, list[tuple[int, float]]]:
        """Metric to (epoch, value), of metrics whose label is ``epoch N``."""
        found: dict[str, list[tuple[int, float]]] = {}
        for (metric, label), value in self.of_job(job).items():
            if match := _EPOCH.match(label):
                found.setdefault(metric, []).append((int(match[1]), value))
        return {metric: sorted(points) for metric, points in found.items()}


def gather(deployment: Deployment, ds: date, states: Mapping[str, str], *, is_counting: bool = True) -> Facts:
    """Read all facts of a run.

    Args:
        deployment: The deployment.
        ds: Data day.
        states: Task to its state in the scheduler; without a state, the tables show whether the task wrote rows.
        is_counting: Whether to start an engine for the counts that need a pass over all LTEs.
    """
    lake = lake_reader(deployment)
    live, live_problem = _live(deployment)
    metrics = {(row["job"], row["metric"], row["label"]): row["value"] for row in lake.rows(METRICS, where={"ds": ds})}
    gates = sorted(lake.rows(GATE_RESULTS, where={"ds": ds}), key=lambda row: (row["table"], row["expectation"]))
    rejected = lake.rows(QUARANTINE, where={"landing_ds": ds})
    distributions, problem = _distributions(deployment, ds) if is_counting else (Distributions(), "")
    runs = _runs(lake, deployment)
    return Facts(
        deployment=deployment.deployment.name,
        ds=ds,
        steps=_steps(lake, deployment, ds, metrics, gates, states),
        live=live,
        live_problem=live_problem,
        ingest=sorted(lake.rows(INGEST_LOG, where={"landing_ds": ds}), key=lambda row: row["source_file"]),
        quarantine=_reasons(rejected),
        quarantined=sorted(rejected, key=lambda row: (row["source_file"], row["line"]))[:EXAMPLES_SHOWN],
        event_days={row["event_date"]: row["n_events"] for row in lake.rows(EVENT_DAYS)},
        windows=tuple(LteWindow.parse(text) for text in deployment.lte.windows),
        metrics=metrics,
        gates=gates,
        distributions=distributions,
        distributions_problem=problem,
        runs=runs,
        points=run_points(lake, deployment, ds),
        stale=next((str(run["stale"]) for run in runs if run["ds"] == ds and run["stale"]), ""),
        refusal=_refusal(lake, ds),
        lte_uplift=_lte_uplift(lake, deployment),
    )


def _refusal(lake: LakeReader, ds: date) -> str:
    """Why the ranker of ds was refused."""
    rows = lake.rows(MODEL_RUNS, columns=["outcome", "reason"], where={"ds": ds, "job": "evaluate_ranker"})
    return next((str(row["reason"]) for row in rows if row["outcome"] == "refused"), "")


def _lte_uplift(lake: LakeReader, deployment: Deployment) -> Row | None:
    """The newest result of experiment integration for the configured LTE, over all user-days and items."""
    ranker = deployment.ranker
    if not ranker.enabled or ranker.lte == "none":
        return None
    window = ranker_window(is_lagged=ranker.lagged).replace("-", ",")
    wanted = {
        "experiment": "integration",
        "variant": f"{ranker.lte.replace('_', ' ')}, {ranker.method}, [{window}]",
        "baseline": "no LTE",
        "history": "on" if ranker.history_features else "off",
        "targets": "all",
        "short_history": "all",
    }
    rows = [row for row in lake.rows(EXPERIMENTS, where=wanted) if row["metric"].startswith("ndcg_at_")]
    return max(rows, key=lambda row: row["ds"], default=None)


def _live(deployment: Deployment) -> tuple[Row | None, str]:
    try:
        return live_snapshot_values(deployment), ""
    except (OnlineStoreError, ConfigError, OSError) as error:
        return None, f"{type(error).__name__}: {error}"


def _reasons(rejected: Sequence[Row]) -> dict[tuple[str, str], int]:
    counts: dict[tuple[str, str], int] = {}
    for row in rejected:
        key = (row["target"], row["reason"])
        counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def _steps(
    lake: LakeReader,
    deployment: Deployment,
    ds: date,
    metrics: Mapping[tuple[str, str, str], float],
    gates: Sequence[Row],
    states: Mapping[str, str],
) -> list[Step]:
    wrote = {job for job, _, _ in metrics} | ({"publish_snapshot"} if _was_published(lake, ds) else set())
    if any(True for _ in lake.batches(TRAINING_EXAMPLES, columns=["anchor_day"], where={"anchor_ds": ds - DAY})):
        wrote.add("build_examples")
    off = {
        *(() if deployment.autoencoder.enabled else ("train_autoencoder", "embed_users")),
        *(() if deployment.ranker.enabled else ("build_examples", "train_ranker", "evaluate_ranker")),
    }
    n_failed = sum(is_blocking(gate) for gate in gates)
    records = read_records(deployment, ds)
    steps = [_step(task, wrote, off, n_failed, states.get(task)) for task in NEEDS]
    return [_timed(step, records.get(step.task), states.get(step.task)) for step in steps]


_GOOD, _BAD = ("success",), ("failed", "upstream_failed")
KILLED = "it ended without an error message: it was killed, or it still runs"


def _timed(step: Step, record: TaskRecord | None, state: str | None) -> Step:
    """Add duration and error, unless the record is of an earlier run of the day: the task did not start in this one."""
    if record is None or state in ("upstream_failed", "skipped"):
        return step
    error = KILLED if record.state == "running" and step.tone == "bad" else record.error
    failed = {"tone": "bad", "state": "failed"} if record.state == "failed" and state is None else {}
    return replace(step, **failed, seconds=record.seconds, peak_mb=record.peak_mb, error=error)


def _step(task: str, wrote: set[str], off: set[str], n_failed: int, state: str | None) -> Step:
    left = "left rows of this day" if task in wrote else "left nothing of this day"
    if task == "validate" and n_failed:
        return Step(task, state or "failed", f"{n_failed} expectations failed: nothing is published", "bad")
    if task in off:
        return Step(task, state or "off", "turned off in the configuration", "neutral")
    if state is not None:
        return Step(task, state, left, "good" if state in _GOOD else "bad" if state in _BAD else "neutral")
    return Step(task, "done" if task in wrote else "missing", left, "good" if task in wrote else "bad")


def _was_published(lake: LakeReader, ds: date) -> bool:
    return bool(lake.rows(LIVE_SNAPSHOT, columns=["ds"], where={"ds": ds}))


def _runs(lake: LakeReader, deployment: Deployment) -> Rows:
    """The last runs, newest first: ds, why it is stale, gates that held and failed."""
    runs: dict[date, list[dict[str, Any]]] = {}
    for row in lake.rows(RUNS):
        runs.setdefault(row["ds"], []).append(row)
    newest = sorted(runs, reverse=True)[:RUNS_SHOWN]
    staleness = read_staleness(lake)
    found = []
    for ds in newest:
        held = [row["success"] for row in lake.rows(GATE_RESULTS, columns=["success"], where={"ds": ds})]
        stale = stale_reason(staleness, deployment, runs[ds])
        found.append({"ds": ds, "stale": stale, "n_passed": sum(held), "n_failed": len(held) - sum(held)})
    return found


def _distributions(deployment: Deployment, ds: date) -> tuple[Distributions, str]:
    """Counts of the engine; if the engine does not start, the report gives the reason instead."""
    try:
        with open_lake(deployment, "build_report", ds, is_reading=True) as lake:
            return count_distributions(lake, ds), ""
    except _ENGINE_ERRORS as error:
        return Distributions(), f"{type(error).__name__}: {str(error)[:500]}"


def count_distributions(lake: Lake, ds: date) -> Distributions:
    """Histograms and quantiles of the LTEs of ds and of their drift."""
    day: Predicate = {"ds": ds}
    moved = lake.read(LTE_DRIFT, where=day)
    return Distributions(
        n_items=_rows(n_items_histogram(lake.read(USER_LTE, where=day))),
        norms=_rows(norm_histogram(lake.read(USER_LTE, where=day))),
        points=_rows(drift_points(moved)),
        activity=_rows(cosine_by_activity(moved)),
    )


def _rows(found: DataFrame) -> list[Row]:
    return [row.asDict() for row in found.collect()]


def _counted(rows: DataFrame, bin_: Column) -> DataFrame:
    by = ("method", "lte_window", "bin")
    return rows.withColumn("bin", bin_.cast("int")).groupBy(*by).agg(F.count("*").alias("n_users")).orderBy(*by)


def n_items_histogram(user_lte: DataFrame) -> DataFrame:
    """Users by n_items in bins of powers of two: bin 0 is for 0 items, bin k for 2^(k-1) to 2^k - 1 items."""
    # Number of powers of two up to n_items. Counting is exact; a logarithm is not.
    bits = sum(((F.col("n_items") >= F.lit(1 << power)).cast("int") for power in range(31)), F.lit(0))
    return _counted(user_lte.select("method", "lte_window", "n_items"), bits)


def norm_histogram(user_lte: DataFrame) -> DataFrame:
    """Users with items by the norm of their LTE."""
    known = user_lte.where(F.col("n_items") > 0).select("method", "lte_window", "embedding")
    lte = without_arrays(known, [USER_LTE.schema["embedding"]])
    return _counted(lte, F.floor(F.col("embedding_norm") * F.lit(NORM_BINS)))


def drift_points(lte_drift: DataFrame) -> DataFrame:
    """Drift and bound of some users at the smallest offset, and of users who broke the bound."""
    shortest = lte_drift.agg(F.min("offset_days").alias("offset_days"))
    near = lte_drift.join(F.broadcast(shortest), "offset_days")
    chosen = near.orderBy(F.col("bound_ok"), F.md5(F.col("user_id").cast("binary")), "method", "lte_window")
    return chosen.limit(POINTS).select("method", "lte_window", "offset_days", "bound", "drift", "bound_ok")


def cosine_by_activity(lte_drift: DataFrame) -> DataFrame:
    """Quantiles of the cosine with the earlier LTE, by activity."""
    fresh = lte_drift.where(~F.col("reference_stale"))
    found = fresh.groupBy("method", "lte_window", "offset_days", "activity").agg(
        F.count("*").alias("n_users"),
        F.percentile("cosine", 0.01).alias("cosine_p01"),
        F.percentile("cosine", 0.5).alias("cosine_p50"),
    )
    return found.orderBy("method", "lte_window", "offset_days", "activity")


def coverage(facts: Facts, window: LteWindow) -> tuple[int, int, int]:
    """Number of days of a window, number of its days with interactions, and number of its interactions."""
    first, after = window_days(facts.ds, window)
    held = [n for day, n in facts.event_days.items() if first <= day < after and n > 0]
    return (after - first).days, len(held), sum(held)
