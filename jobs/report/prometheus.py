"""metrics.prom: the last run in Prometheus' text format, for the textfile collector of its node exporter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from jobs.report.summary import Report


@dataclass(frozen=True)
class Gauge:
    """One metric: name, meaning, and its samples: labels and value."""

    name: str
    meaning: str
    samples: Sequence[tuple[Mapping[str, str], float]]


# Name and meaning, in the order of the file; docs/operations.md documents them, and a test holds the two equal.
MEANINGS = {
    "lte_run_data_end_seconds": "End of the data day of the last run, Unix time.",
    "lte_live_data_end_seconds": "End of the data day of the live snapshot, Unix time: time() minus it is its age.",
    "lte_live_users": "Users in the live snapshot.",
    "lte_run_healthy": "1 if the last run has no alarm, otherwise 0.",
    "lte_alarms": "Alarms of the last run.",
    "lte_gates": "Expectations of the last run, by result: held, failed, skipped.",
    "lte_users": "Users with an LTE in the published slice.",
    "lte_interactions": "Interactions of the data day.",
    "lte_unknown_share": "Share of the window's interactions whose item has no vector.",
    "lte_drift_p99": "99 % quantile of the one-day drift (L2) over all users.",
    "lte_cosine_mean": "Mean cosine with the LTE of the day before.",
    "lte_ndcg": "NDCG at the configured cutoff on the next items of the day, by model.",
    "lte_task_success": "1 if the task did not fail, otherwise 0, by task.",
    "lte_task_seconds": "Duration of the task, by task.",
    "lte_task_peak_bytes": "Largest memory of the task's process, by task.",
}
BYTES_PER_MIB = 1 << 20


def metrics_text(report: Report) -> str:
    """The file metrics.prom; a value that was not measured is absent.

    Args:
        report: The report of the newest day.
    """
    lines: list[str] = []
    for gauge in _gauges(report):
        if gauge.samples:
            lines += [f"# HELP {gauge.name} {gauge.meaning}", f"# TYPE {gauge.name} gauge"]
            lines += [
                _sample(gauge.name, {"deployment": report.deployment, **labels}, value)
                for labels, value in gauge.samples
            ]
    return "\n".join(lines) + "\n"


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{shown}}} {value!r}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _gauges(report: Report) -> Iterator[Gauge]:
    samples = _samples(report)
    for name, meaning in MEANINGS.items():
        yield Gauge(name, meaning, samples.get(name, []))


def _samples(report: Report) -> dict[str, list[tuple[dict[str, str], float]]]:
    gates, last = report.gates, report.trend[-1]
    n_failed = len(gates.failed)
    counts = {"held": gates.n - n_failed - gates.n_skipped, "failed": n_failed, "skipped": gates.n_skipped}
    plain: dict[str, float | None] = {
        "lte_run_data_end_seconds": _end(report.ds),
        "lte_live_data_end_seconds": _end(date.fromisoformat(report.live.ds)) if report.live else None,
        "lte_live_users": report.live.n_users if report.live else None,
        "lte_run_healthy": int(not report.alarms),
        "lte_alarms": len(report.alarms),
        "lte_users": last.n_users,
        "lte_interactions": last.n_events,
        "lte_unknown_share": last.unknown_share,
        "lte_drift_p99": last.drift_p99,
        "lte_cosine_mean": last.cosine_mean,
    }
    by_task = ("lte_task_success", "lte_task_seconds", "lte_task_peak_bytes")
    return {
        **{name: [({}, float(value))] for name, value in plain.items() if value is not None},
        "lte_gates": [({"result": result}, float(n)) for result, n in counts.items()],
        "lte_ndcg": [({"model": each.model}, each.ndcg) for each in (report.ranker.models if report.ranker else [])],
        **{name: _by_task(report, name) for name in by_task},
    }


def _by_task(report: Report, name: str) -> list[tuple[dict[str, str], float]]:
    found: list[tuple[dict[str, str], float]] = []
    for task in report.tasks:
        values = {
            "lte_task_success": float(task.tone != "bad"),
            "lte_task_seconds": task.seconds,
            "lte_task_peak_bytes": None if task.peak_mb is None else task.peak_mb * BYTES_PER_MIB,
        }
        value = values[name]
        if value is not None:
            found.append(({"task": task.task}, value))
    return found


def _end(ds: date) -> float:
    """Unix time of the end of a data day."""
    return datetime(ds.year, ds.month, ds.day, tzinfo=UTC).timestamp() + timedelta(days=1).total_seconds()
