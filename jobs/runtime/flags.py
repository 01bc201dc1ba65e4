"""Command-line flags that the jobs share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment


@dataclass(frozen=True)
class JobConfig:
    """What every daily job is started with: the deployment and the data day."""

    deployment: Deployment
    config_path: Path
    ds: date


def parse_ds(text: str) -> date:
    """Read a data day.

    Raises:
        argparse.ArgumentTypeError: ``text`` is not YYYY-MM-DD.
    """
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"ds {text!r}: a day like 2017-12-30 is wanted") from error


def job_parser(job: str, description: str | None = None) -> argparse.ArgumentParser:
    """Argument parser with the flags that every job has: ``--config`` and ``--ds``."""
    parser = argparse.ArgumentParser(prog=job, description=description)
    parser.add_argument("--config", type=Path, required=True, help="TOML file of the deployment")
    parser.add_argument("--ds", type=parse_ds, required=True, help="data day, YYYY-MM-DD (UTC)")
    return parser


def parse_config(argv: Sequence[str] | None, job: str, description: str | None = None) -> JobConfig:
    """Read the flags of a job that needs no others, and its configuration.

    Raises:
        ConfigError: See :func:`load_deployment`.
        SystemExit: The flags are wrong (exit code 2).
    """
    arguments = job_parser(job, description).parse_args(argv)
    return JobConfig(load_deployment(arguments.config), arguments.config, arguments.ds)


# Airflow's own names of what started a run.
RUN_TYPES = ("scheduled", "manual", "backfill", "operator_triggered", "asset_triggered", "asset_materialization")
