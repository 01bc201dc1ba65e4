"""lte run: the daily tasks in order, as processes, without Airflow."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from jobs.runtime.day import EXTRA_FLAGS, NEEDS, REPORT_TASK


@dataclass(frozen=True)
class TaskResult:
    """How one task ended; ``exit_code`` is None where an earlier failure kept it from starting."""

    task: str
    exit_code: int | None
    seconds: float

    @property
    def state(self) -> str:
        """What Airflow would call it."""
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
        One result a task, in order. A failure stops what depends on it; the report is built all the same.
    """
    results: dict[str, TaskResult] = {}
    for task, needed in NEEDS.items():
        is_blocked = any(results[each].exit_code != 0 for each in needed)
        results[task] = TaskResult(task, None, 0.0) if is_blocked else _run_task(task, config, ds, *flags)
    states = {task: result.state for task, result in results.items()}
    report = _run_task(REPORT_TASK, config, ds, "--states", json.dumps(states), *flags)
    return [*results.values(), report]


def _run_task(task: str, config: Path, ds: date, *more: str) -> TaskResult:
    print(f"==> {task} {ds}", file=sys.stderr, flush=True)
    flags = ["--config", str(config), "--ds", ds.isoformat(), *EXTRA_FLAGS.get(task, ()), *more]
    started = time.monotonic()
    # Standard output is kept for the command's own answer (--json).
    done = subprocess.run([sys.executable, "-P", "-m", f"jobs.{task}", *flags], stdout=sys.stderr, check=False)
    return TaskResult(task, done.returncode, round(time.monotonic() - started, 1))
