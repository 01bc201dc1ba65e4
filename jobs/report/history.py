"""The last runs of a deployment, one point per run, and what changed between two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from jobs.config.sections import Deployment
from jobs.lake.reader import LakeReader
from jobs.runtime.pages import days_with
from jobs.runtime.task_records import TaskRecord, read_records
from schemas import EVENT_DAYS, METRICS, RUNS

POINTS_SHOWN = 30
CANDIDATE, LIVE = "candidate", "live"
JOBS = ("compute_lte", "compute_drift", "evaluate_ranker", "validate")
Measured = Mapping[tuple[str, str, str], float]


@dataclass(frozen=True)
class RunPoint:
    """One run in a trend; None where the run did not measure the value.

    Attributes:
        ds: Data day.
        n_events: Interactions of the day, as the tables hold them now.
        n_users: Users with an LTE in the published slice.
        unknown_share: Share of the window's interactions whose item has no vector.
        drift_p99: 99 % quantile of the one-day drift (L2) over all users of the published slice.
        cosine_mean: Mean cosine with the LTE of the day before, over the same users.
        ndcg_candidate: NDCG at the configured cutoff of the ranker that this run trained.
        ndcg_live: The same of the live ranker.
        ndcg_baseline: The same of the best baseline.
        best_baseline: Name of the best baseline; empty where none was measured.
        n_gates: Expectations that were judged.
        n_gates_failed: Expectations that did not hold.
        seconds: Task to its duration in seconds.
    """

    ds: date
    n_events: int
    n_users: float | None
    unknown_share: float | None
    drift_p99: float | None
    cosine_mean: float | None
    ndcg_candidate: float | None
    ndcg_live: float | None
    ndcg_baseline: float | None
    best_baseline: str
    n_gates: float | None
    n_gates_failed: float | None
    seconds: dict[str, float]


@dataclass(frozen=True)
class Change:
    """A value of this run and of the run before.

    Attributes:
        name: Field of :class:`RunPoint`.
        title: The name for a person, with its unit.
        before: Value of the run before.
        now: Value of this run.
    """

    name: str
    title: str
    before: float
    now: float


# Fields that are compared with the run before, with their names for a person.
TITLES = {
    "n_users": "users",
    "n_events": "interactions of the day",
    "unknown_share": "unknown share",
    "drift_p99": "one-day drift p99, all users",
    "cosine_mean": "mean cosine with the day before",
    "ndcg_candidate": "NDCG of the candidate",
    "ndcg_live": "NDCG of the live ranker",
    "ndcg_baseline": "NDCG of the best baseline",
}


def run_days(lake: LakeReader, deployment: Deployment) -> list[date]:
    """All days with a run, oldest first, including days whose run failed before it computed anything."""
    recorded = {row["ds"] for row in lake.rows(RUNS, columns=["ds"])}
    # tasks.json, or the folder of records
    return sorted(recorded | set(days_with(Path(deployment.paths.reports), "task*")))


def run_points(lake: LakeReader, deployment: Deployment, ds: date) -> tuple[RunPoint, ...]:
    """The last runs up to ``ds``, oldest first; ``ds`` is always the last point."""
    days = sorted({*(day for day in run_days(lake, deployment) if day <= ds), ds})[-POINTS_SHOWN:]
    measured: dict[date, dict[tuple[str, str, str], float]] = {day: {} for day in days}
    for row in lake.rows(METRICS, where={"ds": days, "job": JOBS}):
        measured[row["ds"]][row["job"], row["metric"], row["label"]] = row["value"]
    events = {row["event_date"]: row["n_events"] for row in lake.rows(EVENT_DAYS, where={"event_date": days})}
    return tuple(
        run_point(day, measured[day], events.get(day, 0), read_records(deployment, day), deployment) for day in days
    )


def run_point(
    ds: date, measured: Measured, n_events: int, records: Mapping[str, TaskRecord], deployment: Deployment
) -> RunPoint:
    """One point from the metrics and the task records of its run.

    Args:
        ds: Data day.
        measured: (job, metric, label) to value.
        n_events: Interactions of the day.
        records: Task to its record.
        deployment: Names the published slice.
    """
    lte = f"{deployment.publish.method}/{deployment.publish.window}"
    drift = f"{lte}/1"
    ndcg = ndcg_of_models({key[1:]: value for key, value in measured.items() if key[0] == "evaluate_ranker"})
    best = best_baseline(ndcg)
    return RunPoint(
        ds=ds,
        n_events=n_events,
        n_users=measured.get(("compute_lte", "n_users", lte)),
        unknown_share=_unknown_share(measured, lte),
        drift_p99=measured.get(("compute_drift", "drift_p99", drift)),
        cosine_mean=measured.get(("compute_drift", "mean_cosine", drift)),
        ndcg_candidate=ndcg.get(CANDIDATE),
        ndcg_live=ndcg.get(LIVE),
        ndcg_baseline=ndcg[best] if best else None,
        best_baseline=best,
        n_gates=measured.get(("validate", "n_expectations", "")),
        n_gates_failed=measured.get(("validate", "n_failed", "")),
        seconds={task: record.seconds for task, record in records.items() if record.seconds is not None},
    )


def _unknown_share(measured: Measured, lte: str) -> float | None:
    n_unknown, n_items = (measured.get(("compute_lte", name, lte)) for name in ("n_unknown", "n_items"))
    if n_unknown is None or n_items is None or n_unknown + n_items == 0:
        return None
    return n_unknown / (n_unknown + n_items)


def headline(measured: Mapping[tuple[str, str], float]) -> str:
    """Metric that models are compared by: NDCG at the largest cutoff."""
    cutoffs = {int(metric.removeprefix("ndcg_at_")) for metric, _ in measured if metric.startswith("ndcg_at_")}
    return f"ndcg_at_{max(cutoffs, default=0)}"


def ndcg_of_models(measured: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Model to NDCG over all users, at the largest cutoff."""
    metric = headline(measured)
    return {label: value for (name, label), value in measured.items() if name == metric and "/" not in label}


def best_baseline(ndcg: Mapping[str, float]) -> str:
    """Name of the baseline with the highest NDCG; empty where no baseline was measured."""
    baselines = sorted(model for model in ndcg if model not in (CANDIDATE, LIVE))
    return max(baselines, key=lambda model: ndcg[model], default="")


def changes(points: Sequence[RunPoint]) -> list[Change]:
    """What differs between the last two points; empty for a first run."""
    if len(points) < 2:
        return []
    before, now = points[-2:]
    found = []
    for name, title in TITLES.items():
        old, new = _value(before, name), _value(now, name)
        if old is not None and new is not None and number(old) != number(new):
            found.append(Change(name, title, old, new))
    return found + _seconds_change(before, now)


def number(value: float) -> str:
    """A count with separators, or four significant digits; two values that look equal count as equal."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def _value(point: RunPoint, name: str) -> float | None:
    value: Any = getattr(point, name)
    return None if value is None else float(value)


def _seconds_change(before: RunPoint, now: RunPoint) -> list[Change]:
    """Seconds of all tasks, if the same tasks ran on both days; otherwise the sums say nothing."""
    tasks = set(before.seconds) & set(now.seconds)
    if not tasks or set(before.seconds) != set(now.seconds):
        return []
    old, new = (round(sum(point.seconds.values()), 1) for point in (before, now))
    return [Change("seconds", "seconds of all tasks", old, new)]
