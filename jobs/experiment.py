"""Run experiments on a deployment's own data: which LTE helps, how, what leaks, what lasts (paper).

Before it starts, it prints what it will train and about how long this takes. Each variant is trained once per seed, on
days before the first test day. It is judged on every test day, with sequences and LTEs as of the end of the day before.
Finished trainings are kept. So the same call resumes where the last call stopped, or only reads finished results.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from jobs.analyses.run import ANALYSIS_NAMES, run_analysis
from jobs.config.loading import default_config, load_deployment
from jobs.config.models import ExperimentSection
from jobs.config.sections import Deployment
from jobs.experiments.plan import EXPERIMENT_NAMES
from jobs.experiments.pool import say
from jobs.experiments.run import JOB, experiments_folder, run_experiments, shown
from jobs.ownership.mark import require_own_lake
from jobs.runtime.entry import run_job
from jobs.runtime.flags import parse_ds
from jobs.runtime.pages import locked

ALL = "all"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the named experiments."""
    args = experiment_parser().parse_args(argv)
    deployment = load_deployment(args.config, environ=os.environ | setting_variables(args))
    names = chosen_names(args.names)
    compared = [name for name in names if name in EXPERIMENT_NAMES]
    with alone(deployment):
        found = run_experiments(deployment, compared, ds=args.ds, is_fresh=args.fresh) if compared else {}
        texts = [shown(deployment, *each) for each in found.items()]
        for name in [name for name in names if name in ANALYSIS_NAMES]:
            analysed = run_analysis(deployment, name, ds=args.ds, is_fresh=args.fresh)
            found[name] = analysed.rows
            texts.append(analysed.text)
    print(json.dumps(found, default=str) if args.json else "\n\n".join(texts))


@contextmanager
def alone(deployment: Deployment) -> Iterator[None]:
    """Wait until no other call works on the staged rows of this lake: each call empties their folder at its end.

    Raises:
        jobs.registry.bundles.ModelError: The lake is not a folder.
        jobs.config.window.ConfigError: The lake belongs to another deployment.
    """
    folder = experiments_folder(deployment)
    require_own_lake(deployment)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, lambda: say("another call works on this lake: waiting for its end")):
        yield


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags beside ``--config``: the experiments, the last test day, and one flag per setting."""
    parser.add_argument("names", nargs="+", choices=(*ALL_NAMES, ALL), metavar="NAME", help=_NAMES_HELP)
    parser.add_argument("--ds", type=parse_ds, help="last test day (default: the last day with interactions)")
    parser.add_argument("--fresh", action="store_true", help="train again what is finished already")
    parser.add_argument("--json", action="store_true", help="print one JSON value: experiment to its rows")
    for setting in fields(ExperimentSection):
        flag = f"--{setting.name.replace('_', '-')}"
        parser.add_argument(
            flag, metavar="VALUE", help=f"experiment.{setting.name}, default {_default_text(setting.default)}"
        )


ALL_NAMES = (*EXPERIMENT_NAMES, *ANALYSIS_NAMES)
_NAMES_HELP = f"{', '.join(ALL_NAMES)} or {ALL}"


def _default_text(value: Any) -> str:
    return ",".join(str(each) for each in value) if isinstance(value, tuple) else str(value)


def experiment_parser() -> argparse.ArgumentParser:
    """Parser of this job."""
    parser = argparse.ArgumentParser(prog=f"lte {JOB}", description=__doc__)
    config = default_config()
    parser.add_argument("--config", type=Path, default=config, help=f"TOML file of the deployment ({config})")
    add_flags(parser)
    return parser


def setting_variables(args: argparse.Namespace) -> dict[str, str]:
    """Flags as environment variables that override the configuration, so that the same checks apply to both."""
    given = {setting.name: getattr(args, setting.name) for setting in fields(ExperimentSection)}
    return {f"LTE_EXPERIMENT__{name.upper()}": value for name, value in given.items() if value is not None}


def chosen_names(names: Sequence[str]) -> list[str]:
    """The named experiments, each once, in the order of ``ALL_NAMES``; ``all`` means every experiment."""
    return [name for name in ALL_NAMES if name in names or ALL in names]


if __name__ == "__main__":
    run_job(main)
