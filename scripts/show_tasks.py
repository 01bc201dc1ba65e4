"""Turn the log of ``airflow dags test`` (stdin) into one readable line for each line that a job prints.

All lines are in the log file that ``scripts/run.sh`` writes. The last lines of a failed task are shown again at the
end, because a person looks there first.

The exit code is 0 only if the last task, ``day_is_done``, has succeeded. A run without any task gives 1.
"""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

START = re.compile(r"\[DAG TEST\] starting task_id=(\S+)")
END = re.compile(r"\[DAG TEST\] end task task_id=(\S+)")
JOB_LINE = re.compile(r"^\S+ \[info *\] (.*?) *\[airflow\.task\.hooks\.\S*SubprocessHook\]")
HOOK_LINE = re.compile(r"^(Tmp dir root location: |Running command: |Output:$|Command exited with return code )")
NEW_STATE = re.compile(r"Task instance state updated .*new_state=(\S+)")
ERROR = re.compile(r"^\S+ \[(?:error|critical) *\] |^DagRun failed|^(?:\w+\.)*(?:Airflow\w+|\w+Error): ")
KEPT_LINES = 25
LAST_TASK = "day_is_done"


@dataclass
class Shown:
    """State of the run, as read so far."""

    task: str = ""
    started: float = 0.0
    state: str = ""
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    failed: dict[str, list[str]] = field(default_factory=dict)
    is_done: bool = False


def _task_ended(shown: Shown) -> str:
    shown.is_done = shown.is_done or (shown.task == LAST_TASK and shown.state == "success")
    if shown.state not in ("success", "skipped"):
        shown.failed[shown.task] = list(shown.lines)
    return f"   {shown.task}: {shown.state or 'no state'} after {time.monotonic() - shown.started:.1f} s"


def _readable_line(line: str, shown: Shown) -> str | None:
    if match := JOB_LINE.match(line):
        if HOOK_LINE.match(match[1]):
            return None
        shown.lines.append(match[1])
        return f"   {match[1]}"
    if match := START.search(line):
        shown.task, shown.started, shown.state = match[1], time.monotonic(), ""
        shown.lines.clear()
        return f"-- {match[1]}"
    if match := NEW_STATE.search(line):
        shown.state = match[1]
        return None
    if END.search(line):
        return _task_ended(shown)
    return f"!! {line}" if ERROR.search(line) else None


def readable(lines: Iterable[str], shown: Shown) -> Iterator[str]:
    """Keep the lines of the jobs, when tasks start and end, and errors; ``shown`` holds the outcome of the run."""
    for line in lines:
        if (text := _readable_line(line.rstrip(), shown)) is not None:
            yield text
    for task, last_lines in shown.failed.items():
        yield f"\n!! {task} failed; it ended with:"
        yield from (f"   {line}" for line in last_lines)


def main() -> int:
    """Filter stdin to stdout, line by line."""
    shown = Shown()
    for line in readable(sys.stdin, shown):
        print(line, flush=True)
    if not shown.is_done:
        print(f"!! the run did not reach its end: {LAST_TASK} has not succeeded", flush=True)
    return 0 if shown.is_done else 1


if __name__ == "__main__":
    sys.exit(main())
