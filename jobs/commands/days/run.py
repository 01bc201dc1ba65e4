"""lte run: the daily tasks in order, as processes, without Airflow."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from jobs.config.loading import load_deployment
from jobs.lake.reader import lake_reader
from jobs.runtime.day import EXTRA_FLAGS, NEEDS, REPORT_TASK
from jobs.runtime.progress import say
from schemas import METRICS

# Largest number of counts per log line.
MOST_COUNTS = 6


@dataclass(frozen=True)
class TaskResult:
    """How one task ended; ``exit_code`` is None if the task did not start because an earlier task failed."""

    task: str
    exit_code: int | None
    seconds: float

    @property
    def state(self) -> str:
        """The name that Airflow uses for this state."""
        if self.exit_code is None:
            return "upstream_failed"
        return "failed" if self.exit_code else "success"


def run_day(config: Path, ds: date, *flags: str) -> list[TaskResult]:
    """Run one data day without Airflow; logs go to standard error.

    Args:
        config: The deployment's file.
        ds: Data day.
        flags: Flags for every task.

    Returns:
        One result per task, in order. A failure stops the tasks that depend on it, but the report is always built.
    """
    results: dict[str, TaskResult] = {}
    for task, needed in NEEDS.items():
        is_blocked = any(results[each].exit_code != 0 for each in needed)
        results[task] = TaskResult(task, None, 0.0) if is_blocked else _run_task(task, config, ds, *flags)
    states = {task: result.state for task, result in results.items()}
    report = _run_task(REPORT_TASK, config, ds, "--states", json.dumps(states), *flags)
    return [*results.values(), report]


def _run_task(task: str, config: Path, ds: date, *more: str) -> TaskResult:
    say("run", f"{task} of ds={ds} starts")
    flags = ["--config", str(config), "--ds", ds.isoformat(), *EXTRA_FLAGS.get(task, ()), *more]
    started = time.monotonic()
    # Standard output is kept for the command's own answer (--json).
    done = subprocess.run([sys.executable, "-P", "-m", f"jobs.{task}", *flags], stdout=sys.stderr, check=False)
    result = TaskResult(task, done.returncode, round(time.monotonic() - started, 1))
    say("run", f"{task} of ds={ds}: {result.state} after {result.seconds:,.1f} s{_noted(config, ds, task)}")
    return result


def _noted(config: Path, ds: date, task: str) -> str:
    """Counts that the task recorded for its day, so that the log line says what the task wrote."""
    lake = lake_reader(load_deployment(config))
    rows = lake.rows(METRICS, columns=["metric", "label", "value"], where={"ds": ds, "job": task})
    counts = sorted((row["metric"], int(row["value"])) for row in rows if _is_count(row["metric"]) and not row["label"])
    return f" ({', '.join(f'{name} {value:,}' for name, value in counts[:MOST_COUNTS])})" if counts else ""


def _is_count(metric: str) -> bool:
    return metric.startswith(("n_", "rows_"))
