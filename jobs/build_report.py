"""Write the report page of a day: what was ingested and computed, the results of the gates, and what is live.

The page is one self-contained file, ``index.html`` under ``ds=…`` in ``paths.reports``. It needs no script and no
network. It is built even when an earlier task failed; it shows the existing results and names the missing ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import jinja2

from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment
from jobs.report.facts import Facts, coverage, gather
from jobs.report.head import answers
from jobs.report.plots import activity_plot, coverage_plot, curve_plot, drift_plot, n_items_plot, norm_plot
from jobs.report.tables import (
    _link,
    autoencoder,
    drifts,
    gates,
    ingest_totals,
    main_metric,
    ranker,
    slices,
    verdict,
)
from jobs.runtime.code_version import code_version
from jobs.runtime.entry import run_job
from jobs.runtime.flags import job_parser
from jobs.runtime.pages import claim, docs_index, report_page, states_file
from lte_models.files import write_atomically

JOB = "build_report"
TEMPLATES = Path(__file__).parent / "report" / "templates"


@dataclass(frozen=True)
class ReportConfig:
    """Flags of this job.

    Attributes:
        deployment: Where everything is.
        ds: Data day.
        states: Task to its state, from the scheduler. Without states, the tables show what each task wrote.
    """

    deployment: Deployment
    ds: date
    states: Mapping[str, str]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report of ``--ds`` and print its path."""
    config = parse_flags(argv)
    path = report_page(config.deployment, config.ds)
    claim(Path(config.deployment.paths.reports), config.deployment, "paths.reports")
    if config.states:
        write_atomically(states_file(config.deployment, config.ds), json.dumps(config.states).encode())
    write_atomically(path, page(gather(config.deployment, config.ds, config.states), config.deployment))
    print(f"report: {path}", flush=True)


def parse_flags(argv: Sequence[str] | None) -> ReportConfig:
    """Read the flags and the configuration.

    Raises:
        jobs.config.window.ConfigError: See :func:`jobs.config.loading.load_deployment`.
        SystemExit: The flags are wrong (exit code 2).
    """
    parser = job_parser(JOB, __doc__)
    parser.add_argument("--states", type=_states, default={}, help='what became of each task: {"ingest": "success"}')
    flags = parser.parse_args(argv)
    return ReportConfig(load_deployment(flags.config), flags.ds, flags.states)


def _states(text: str) -> dict[str, str]:
    states = json.loads(text or "{}")
    if not isinstance(states, dict):
        raise TypeError(text)  # argparse tells the user
    return {str(task): str(state) for task, state in states.items()}


def page(facts: Facts, deployment: Deployment) -> str:
    """The page as HTML; every text from tables is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "share": _share, "cosine": _cosine}
    template = environment.get_template("report.html.j2")
    docs = docs_index(deployment, facts.ds)
    return template.render(
        facts=facts,
        verdict=verdict(facts),
        answers=answers(facts, main_metric(facts.of_job("evaluate_ranker"))),
        code_version=code_version(),
        plots=plots(facts),
        windows=[{"window": str(window), "coverage": coverage(facts, window)} for window in facts.windows],
        ingest=ingest_totals(facts),
        slices=slices(facts),
        drifts=drifts(facts),
        autoencoder=autoencoder(facts),
        ranker=ranker(facts),
        gates=gates(facts, deployment),
        docs=_link(docs, deployment, facts.ds) if docs.exists() else None,
    )


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _cosine(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def plots(facts: Facts) -> dict[str, str]:
    """Name of each plot to its data address; a plot without rows is left out."""
    found = facts.distributions
    drawn = {
        "coverage": (coverage_plot, facts.event_days),
        "n_items": (n_items_plot, found.n_items),
        "norms": (norm_plot, found.norms),
        "drift": (drift_plot, found.points),
        "activity": (activity_plot, [row for row in found.activity if row["cosine_p01"] is not None]),
    }
    pictures = {name: draw(facts) for name, (draw, rows) in drawn.items() if rows}
    for job in ("train_autoencoder", "train_ranker"):
        if curves := facts.curves(job):
            pictures[job] = curve_plot(curves)
    return pictures


if __name__ == "__main__":
    run_job(main)
