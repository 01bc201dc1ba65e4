"""Where a run's report and Data Docs are."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from jobs.config import ConfigError, Deployment

OWNER = ".deployment"
# Measured values are validated by these two alone, rows by neither.
LIMIT_KINDS = ("expect_column_max_to_be_between", "expect_column_min_to_be_between")


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


def expectation_name(kind: str, columns: str, label: str) -> str:
    """Name of an expectation: its kind, its columns and, of measured values, of what."""
    return f"{kind}({columns})" + (f" of {label}" if label else "")


def gates_name(table: str, label: str) -> str:
    """Name of the validation of measured values, without slashes: it is a file name."""
    return "-".join([table, *label.split("/"), "gates"] if label else [table, "gates"])


def docs_page(table: str, expectation: str, ds: date) -> str:
    """Page of an expectation, relative to the folder of the Data Docs.

    Args:
        table: Table.
        expectation: See :func:`expectation_name`.
        ds: Data day.
    """
    kind, _, rest = expectation.partition("(")
    name, source = table, "lake"
    if kind in LIMIT_KINDS:
        name, source = gates_name(table, rest.partition(") of ")[2]), "gates"
    return page_address(name, source, ds)


def page_address(name: str, source: str, ds: date) -> str:
    """Where Great Expectations puts the page of a validation, relative to the folder of the Data Docs."""
    return f"validations/{name}/ds={ds}/{ds:%Y%m%d}T000000.000000Z/{source}-{name}.html"
