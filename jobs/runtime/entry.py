"""The end of a job: the only place where an error becomes an exit code."""

from __future__ import annotations

import os
import select
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from jobs.config.window import ConfigError
from jobs.runtime.faults import sentence_of
from jobs.runtime.progress import say, show_progress, tell
from jobs.runtime.task_records import begin_task, end_task

CONFIG_EXIT_CODE = 2
FAILED_EXIT_CODE = 1

# Exit code that a shell reports for a process that SIGPIPE or SIGINT ended: 128 plus the signal's number.
BROKEN_PIPE_EXIT_CODE = 141
INTERRUPTED_EXIT_CODE = 130


def run_job(main: Callable[[], object]) -> NoReturn:
    """Run a job's ``main`` and exit.

    Errors of this project and faults of the machine (a full disk, a missing permission, a damaged table) are reported
    in one sentence. Any other error is a defect and keeps its stack trace.

    Raises:
        SystemExit: 0 when ``main`` returned, 1 when an input, a gate or the machine failed, 2 when the configuration is
            wrong, 130 after an interrupt, 141 when nobody reads standard output any more.
    """
    show_progress()
    task, error = begin_task(sys.argv), "the process ended before the task had a result"
    try:
        code, error = _end_of(main)
        sys.exit(code)
    finally:
        end_task(task, error)
        _flush()


def _end_of(main: Callable[[], object]) -> tuple[int, str]:
    """Exit code of ``main``, and the sentence that ended it; the sentence is empty for a success."""
    try:
        main()
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT_CODE, "interrupted"
    except ConfigError as error:
        tell(f"ConfigError: {error}")
        return CONFIG_EXIT_CODE, f"ConfigError: {error}"
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            return BROKEN_PIPE_EXIT_CODE, "nobody reads standard output"
        sentence = sentence_of(error)
        if sentence is None:
            _show_trace(error)
        else:
            tell(sentence)
        return FAILED_EXIT_CODE, sentence or f"{type(error).__name__}: {error}"
    return 0, ""


def _flush() -> None:
    """Flush standard output, so that a reader that has ended is noticed here and not at shutdown.

    Raises:
        SystemExit: 141 when nobody reads standard output any more, 1 when it cannot be written.
    """
    if sys.stdout is None:  # closed before the start
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        # The interpreter flushes again at its end; that output is discarded.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(BROKEN_PIPE_EXIT_CODE)
        tell(f"standard output: {sentence_of(error) or error}")
        sys.exit(FAILED_EXIT_CODE)


def _is_unread() -> bool:
    """Return whether standard output is a pipe that nobody reads; a broken pipe can also be a server's connection."""
    poll = select.poll()
    poll.register(1, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def is_off(job: str, section: str, *, enabled: bool) -> bool:
    """Return, and report, whether a deployment has turned off a job's model.

    Args:
        job: Job.
        section: Section of the configuration.
        enabled: Setting ``enabled`` of the section.
    """
    if not enabled:
        say(job, f"{section}.enabled = false, nothing to do")
    return not enabled


def _show_trace(error: Exception) -> None:
    for line in "".join(traceback.format_exception(error)).splitlines():
        tell(line)
