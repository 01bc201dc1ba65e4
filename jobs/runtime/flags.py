"""Command-line flags that the jobs share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment


@dataclass(frozen=True)
class JobConfig:
    """Inputs of every daily job: the deployment and the data day."""

    deployment: Deployment
    config_path: Path
    ds: date


def parse_ds(text: str) -> date:
    """Read a data day as YYYY-MM-DD; Python's own reader also takes 20171230 and 2017-W52-6.

    Raises:
        argparse.ArgumentTypeError: ``text`` is not such a day.
    """
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:
        raise argparse.ArgumentTypeError(f"expected a day like 2017-12-30, got {text!r}")
    return day


def today() -> date:
    """Today in UTC, for the check of flags. No other code in the jobs reads a clock to choose a day."""
    return datetime.now(UTC).date()


def future_day(ds: date) -> str | None:
    """Why a data day cannot have data yet; None for a day up to today.

    A day after today would go live without data, and the next real day would then count as older than what is live.
    """
    now = today()
    if ds <= now:
        return None
    return f"ds: expected a day up to today, {now} (UTC), got {ds}; for made data of the future add --allow-future"


class DayParser(argparse.ArgumentParser):
    """A parser with ``--ds`` and ``--allow-future`` that refuses a day after today."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read the flags.

        Raises:
            SystemExit: The flags are wrong, or ``--ds`` is after today (exit code 2).
        """
        found, rest = super().parse_known_args(args, namespace)
        why = None if found.allow_future else future_day(found.ds)
        if why:
            self.error(why)
        return found, rest


def job_parser(job: str, description: str | None = None) -> argparse.ArgumentParser:
    """Argument parser with the flags that every daily job has: ``--config``, ``--ds`` and ``--allow-future``."""
    parser = DayParser(prog=job, description=description)
    parser.add_argument("--config", type=Path, required=True, help="TOML file of the deployment")
    parser.add_argument("--ds", type=parse_ds, required=True, help="data day, YYYY-MM-DD (UTC)")
    parser.add_argument("--allow-future", action="store_true", help="also take a day after today (made data)")
    return parser


def parse_config(argv: Sequence[str] | None, job: str, description: str | None = None) -> JobConfig:
    """Read the flags of a job without flags of its own, and its configuration.

    Raises:
        ConfigError: See :func:`load_deployment`.
        SystemExit: The flags are wrong (exit code 2).
    """
    arguments = job_parser(job, description).parse_args(argv)
    return JobConfig(load_deployment(arguments.config), arguments.config, arguments.ds)


# Airflow's names for the start of a run.
RUN_TYPES = ("scheduled", "manual", "backfill", "operator_triggered", "asset_triggered", "asset_materialization")
