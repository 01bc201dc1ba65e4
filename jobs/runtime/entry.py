"""How a job ends: the only place where an error becomes an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from jobs.config.window import ConfigError

CONFIG_EXIT_CODE = 2
FAILED_EXIT_CODE = 1
OUR_PACKAGES = ("jobs", "lte_models", "schemas", "__main__")


def run_job(main: Callable[[], object]) -> NoReturn:
    """Run a job's ``main`` and exit.

    Errors of our own are written for a reader, so they are shown without a stack trace; any other error is a defect and
    keeps its trace.

    Raises:
        SystemExit: 0 when ``main`` returned, 1 when an input or a gate failed, 2 when the configuration is wrong.
    """
    try:
        main()
    except ConfigError as error:
        _show(error)
        sys.exit(CONFIG_EXIT_CODE)
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in OUR_PACKAGES:
            raise
        _show(error)
        sys.exit(FAILED_EXIT_CODE)
    sys.exit(0)


def is_off(job: str, section: str, *, enabled: bool) -> bool:
    """Tell, and say, whether a deployment does without a job's model.

    Args:
        job: Job.
        section: Section of the configuration.
        enabled: Its setting.
    """
    if not enabled:
        say(job, f"{section}.enabled = false, nothing to do")
    return not enabled


def say(job: str, message: str) -> None:
    """Tell how far a job is: a line of its log."""
    print(f"{job}: {message}", file=sys.stderr, flush=True)


def _show(error: Exception) -> None:
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
