"""Progress of a job: lines of one format on standard error, through ``logging``.

``say`` and ``warn`` are for jobs, which pass their name. Lower packages use ``logging.getLogger(__name__)``: their
lines get the name of the running job. A line is ``job: message`` or ``job: WARNING: message``.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from jobs.config.secrets import masked
from jobs.runtime.text import log_line

# Loggers of this project's packages; other libraries keep their own handlers and levels.
PACKAGES = ("jobs", "lte_models", "schemas")


def say(job: str, message: str) -> None:
    """Report the progress of a job."""
    _tell(logging.INFO, job, message)


def warn(job: str, message: str) -> None:
    """Report a problem that a person should look at; the job continues."""
    _tell(logging.WARNING, job, message)


def show_progress() -> None:
    """Show the progress of our packages on standard error; a second call changes nothing."""
    for package in PACKAGES:
        logger = logging.getLogger(package)
        if _HANDLER not in logger.handlers:
            logger.addHandler(_HANDLER)
            logger.setLevel(logging.INFO)


def tell(text: str) -> None:
    """Write one line to standard error: secrets are masked, invisible characters are escaped, the length is limited."""
    if sys.stderr is None:  # closed before the start
        return
    try:
        sys.stderr.write(f"{log_line(masked(text))}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return  # nobody reads standard error any more; that is no reason to stop the job


def _tell(level: int, job: str, message: str) -> None:
    show_progress()
    # clean already here: other handlers, of a test's report or of Airflow, cannot encode every character of a file
    logging.getLogger("jobs").log(level, "%s", log_line(masked(message)), extra={"job": job})


class _StandardError(logging.Handler):
    """Writes to the current standard error, not to the standard error at import time."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(_line(record))


def _line(record: logging.LogRecord) -> str:
    job = getattr(record, "job", None) or Path(sys.argv[0]).stem  # of `python -m jobs.ingest`: ingest
    level = f"{record.levelname}: " if record.levelno >= logging.WARNING else ""
    error = record.exc_info[1] if record.exc_info else None
    cause = f": {type(error).__name__}: {error}" if error else ""
    return f"{job}: {level}{record.getMessage()}{cause}"


_HANDLER = _StandardError()
