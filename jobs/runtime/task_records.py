"""Record of each task of a day, as a file beside the report: when it ran, how long, and the error that ended it.

The record is for people. A task whose record cannot be written, for example because the disk is full, continues.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

from jobs.config.loading import load_deployment
from jobs.config.secrets import masked
from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.runtime.code_version import code_version
from jobs.runtime.day import REPORT_TASK, TASKS
from jobs.runtime.flags import future_day
from jobs.runtime.pages import claim, report_page
from jobs.runtime.text import log_line
from lte_models.files import write_atomically

MAX_ERROR_BYTES = 2000
KILOBYTES_PER_MEGABYTE = 1024


@dataclass(frozen=True)
class TaskRecord:
    """The last time that a task ran for a day.

    Attributes:
        task: Name of the task.
        ds: Data day.
        state: "running", "success" or "failed". A task that was killed stays "running".
        started: Start, ISO 8601, UTC.
        seconds: Duration; None while the task runs.
        peak_mb: Largest memory of the process in MiB; None while the task runs.
        error: The sentence that ended the task; empty for a success.
        code_version: Version of this package.
    """

    task: str
    ds: str
    state: str
    started: str
    seconds: float | None = None
    peak_mb: float | None = None
    error: str = ""
    code_version: str = ""


@dataclass(frozen=True)
class RunningTask:
    """A task that has begun: its file, its record, and the monotonic clock at its start in seconds."""

    path: Path
    record: TaskRecord
    clock: float


def records_folder(deployment: Deployment, ds: date) -> Path:
    """Folder of the records of a day."""
    return report_page(deployment, ds).with_name("tasks")


def read_records(deployment: Deployment, ds: date) -> dict[str, TaskRecord]:
    """Task to its record; a task without a readable record is left out."""
    found = {}
    for path in sorted(records_folder(deployment, ds).glob("*.json")):
        try:
            found[path.stem] = TaskRecord(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            continue  # no record of ours, or a redaction left no JSON
    return found


def begin_task(argv: Sequence[str]) -> RunningTask | None:
    """Record that the task of this process starts.

    Args:
        argv: Arguments of the process, its name first.

    Returns:
        The task; None if this process is no task of a day, or if its record cannot be written.
    """
    task = Path(argv[0]).stem
    if task not in (*TASKS, REPORT_TASK):
        return None
    try:
        deployment, ds = _day_of(argv[1:])
        claim(Path(deployment.paths.reports), deployment, "paths.reports")
        record = TaskRecord(task, str(ds), "running", _now(), code_version=code_version())
        begun = RunningTask(records_folder(deployment, ds) / f"{task}.json", record, time.monotonic())
        _write(begun.path, record)
    except (ConfigError, OSError, ValueError, argparse.ArgumentError):
        return None  # the task itself says what is wrong
    return begun


def end_task(task: RunningTask | None, error: str) -> None:
    """Record the end of a task.

    Args:
        task: From :func:`begin_task`.
        error: The sentence that ended the task; empty for a success.
    """
    if task is None:
        return
    ended = replace(
        task.record,
        state="failed" if error else "success",
        seconds=round(time.monotonic() - task.clock, 2),
        peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KILOBYTES_PER_MEGABYTE, 1),
        error=log_line(masked(error), MAX_ERROR_BYTES),
    )
    try:
        _write(task.path, ended)
    except OSError:
        return


def _day_of(flags: Sequence[str]) -> tuple[Deployment, date]:
    """Deployment and data day of a task's flags.

    Raises:
        ValueError: A flag is missing, or the day is no day up to today.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--ds", type=date.fromisoformat)
    parser.add_argument("--allow-future", action="store_true")
    found, _ = parser.parse_known_args(flags)
    if found.config is None or found.ds is None or (future_day(found.ds) and not found.allow_future):
        raise ValueError("expected --config and --ds")
    return load_deployment(found.config), found.ds


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(path: Path, record: TaskRecord) -> None:
    write_atomically(path, json.dumps(asdict(record), indent=2))
