"""Where a run's report and Data Docs are."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from jobs.config.sections import Deployment
from jobs.config.window import ConfigError

OWNER = ".deployment"


def docs_index(deployment: Deployment, ds: date) -> Path:
    """Start page of the Data Docs of one run."""
    return Path(deployment.paths.data_docs) / f"ds={ds}" / "index.html"


def report_page(deployment: Deployment, ds: date) -> Path:
    """The report of one run."""
    return Path(deployment.paths.reports) / f"ds={ds}" / "index.html"


def claim(folder: Path, deployment: Deployment, key: str) -> None:
    """Make a folder of pages this deployment's own; two deployments would overwrite each other's days.

    Args:
        folder: The folder.
        deployment: Whose it is to be.
        key: Setting that names it.

    Raises:
        ConfigError: It is another deployment's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner, name = folder / OWNER, deployment.deployment.name
    if not owner.exists():
        owner.write_text(name, encoding="utf-8")
    found = owner.read_text(encoding="utf-8")
    if found != name:
        raise ConfigError(f"{key} = {str(folder)!r}: holds the pages of deployment {found!r}, not of {name!r}")
