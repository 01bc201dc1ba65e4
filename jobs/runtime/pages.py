"""Places of a run's report and Data Docs, and the marks that name the deployment of a folder."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path

from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from lte_models.files import write_atomically

LOG = logging.getLogger(__name__)
OWNER = ".deployment"


def docs_index(deployment: Deployment, ds: date) -> Path:
    """Start page of the Data Docs of one run."""
    return Path(deployment.paths.data_docs) / f"ds={ds}" / "index.html"


def report_page(deployment: Deployment, ds: date) -> Path:
    """The report of one run."""
    return Path(deployment.paths.reports) / f"ds={ds}" / "index.html"


def states_file(deployment: Deployment, ds: date) -> Path:
    """File with the state of each task of a run, as JSON: task to state. The file is beside the run's report."""
    return report_page(deployment, ds).with_name("tasks.json")


def read_states(deployment: Deployment, ds: date) -> dict[str, str]:
    """Task to its state in the last run of the day that the scheduler reported; empty if there is no such file."""
    try:
        states = json.loads(states_file(deployment, ds).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return states if isinstance(states, dict) else {}


def days_with(reports: Path, pattern: str) -> Iterator[date]:
    """Days whose folder holds a file that matches ``pattern``, in any order; a day may come more than once.

    Args:
        reports: Folder of all reports.
        pattern: Of the name in the folder of a day.
    """
    for path in reports.glob(f"ds=*/{pattern}"):
        with suppress(ValueError):  # not a folder of this project
            yield date.fromisoformat(path.parent.name.removeprefix("ds="))


def claim(folder: Path, deployment: Deployment, key: str) -> None:
    """Make a folder this deployment's own; two deployments would overwrite each other's days.

    Args:
        folder: The folder; made if it is missing.
        deployment: Name of the deployment that becomes the owner.
        key: Setting that names the folder.

    Raises:
        ConfigError: The folder belongs to another deployment.
    """
    claim_for(folder, deployment.deployment.name, key)


def claim_for(folder: Path, name: str, key: str, what: str = "pages") -> None:
    """Mark a folder with a deployment's name, see :func:`claim` and :func:`require_owner`."""
    folder.mkdir(parents=True, exist_ok=True)
    # If two jobs find no mark, they write one after the other, and the second job reads the mark of the first.
    with locked(folder):
        require_owner(folder, name, key, what)
        if read_owner(folder) is None:
            if (folder / OWNER).exists():
                LOG.warning("%s is empty, as a full disk leaves a file: written again for %r", folder / OWNER, name)
            # A temporary file is written, flushed and renamed: a kill or a full disk leaves no partial mark.
            write_atomically(folder / OWNER, name)


def require_owner(folder: Path, name: str, key: str, what: str = "pages") -> None:
    """Refuse a folder with the mark of another deployment; a folder without a mark passes.

    Args:
        folder: The folder, which may be missing.
        name: Deployment that is about to use the folder.
        key: Setting that names the folder.
        what: Content of the folder, for the message.

    Raises:
        ConfigError: The folder belongs to another deployment.
    """
    found = read_owner(folder)
    if found not in (None, name):
        raise ConfigError(
            f"{key} = {str(folder)!r}: holds the {what} of deployment {found!r}, not of {name!r}; give each "
            f"deployment a folder of its own, or delete {folder / OWNER} where the deployment was renamed"
        )


def read_owner(folder: Path) -> str | None:
    """Deployment that a folder is marked with; None if the mark is missing, empty or not text."""
    try:
        found = (folder / OWNER).read_text(encoding="utf-8").strip("\0 \t\r\n")
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None
    return found or None


@contextmanager
def locked(folder: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lock on a folder, which must exist; the kernel frees it when the process ends.

    Args:
        folder: The folder.
        on_wait: Called before a wait, if another process holds the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait:
                on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
