"""The daily tasks in order, as processes: the same that the DAG ``lte_daily`` starts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

# Each needs those before it; a test holds this order and the DAG's equal.
TASKS = ("ingest", "embed_items", "compute_lte", "compute_drift", "validate", "publish_snapshot")
# Runs whatever failed before it, so that a person can see why.
REPORT_TASK = "build_report"
EXTRA_FLAGS: Mapping[str, Sequence[str]] = {"publish_snapshot": ("--run-type", "manual")}


@dataclass(frozen=True)
class TaskResult:
    """How one task ended; ``exit_code`` is None where an earlier failure kept it from starting."""

    task: str
    exit_code: int | None
    seconds: float


def run_day(config: Path, ds: date) -> list[TaskResult]:
    """Run one data day without Airflow; logs go to standard error.

    Args:
        config: The deployment's file.
        ds: Data day.

    Returns:
        One result a task, in order. A failure stops what depends on it; the report is built all the same.
    """
    results: list[TaskResult] = []
    for task in (*TASKS, REPORT_TASK):
        is_blocked = task != REPORT_TASK and any(result.exit_code != 0 for result in results)
        results.append(TaskResult(task, None, 0.0) if is_blocked else _run_task(task, config, ds))
    return results


def _run_task(task: str, config: Path, ds: date) -> TaskResult:
    print(f"==> {task} {ds}", file=sys.stderr, flush=True)
    flags = ["--config", str(config), "--ds", ds.isoformat(), *EXTRA_FLAGS.get(task, ())]
    started = time.monotonic()
    # Standard output is kept for the command's own answer (--json).
    done = subprocess.run([sys.executable, "-m", f"jobs.{task}", *flags], stdout=sys.stderr, check=False)
    return TaskResult(task, done.returncode, round(time.monotonic() - started, 1))
