"""Write the report of a day: what was ingested and computed, the results of the gates, what changed, and what is live.

The page is one self-contained file, ``index.html`` under ``ds=…`` in ``paths.reports``. It needs no script and no
network. It is built even when an earlier task failed; it shows the existing results and names the missing ones.
``report.json`` beside it has the same facts for machines. ``index.html`` in ``paths.reports`` lists all days, and
``metrics.prom`` there has the last run for Prometheus.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment
from jobs.report.alerts import AlertError, send
from jobs.report.facts import Facts, coverage, gather
from jobs.report.front import REPORT_JSON, day_pages, environment, navigation, write_front
from jobs.report.plots import (
    Picture,
    activity_plot,
    coverage_plot,
    curve_plot,
    drift_plot,
    n_items_plot,
    norm_plot,
    trend_plot,
)
from jobs.report.summary import Report, report_json, summarize
from jobs.report.tables import _link, autoencoder, drifts, gates, ranker, slices
from jobs.runtime.entry import run_job
from jobs.runtime.flags import job_parser
from jobs.runtime.pages import claim, docs_index, locked, report_page, states_file
from jobs.runtime.progress import say, warn
from lte_models.files import write_atomically

JOB = "build_report"


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
    claim(Path(config.deployment.paths.reports), config.deployment, "paths.reports")
    if config.states:
        write_atomically(states_file(config.deployment, config.ds), json.dumps(config.states).encode())
    facts = gather(config.deployment, config.ds, config.states)
    path = write_report(facts, config.deployment)
    print(f"report: {path}", flush=True)
    tell_people(config.deployment, summarize(facts))


def tell_people(deployment: Deployment, report: Report) -> None:
    """Send the message of the day; a webhook that does not answer must not fail the day."""
    try:
        for way in send(deployment, report):
            say(JOB, f"ds {report.ds}: the message of the day was sent by {way}")
    except AlertError as error:
        warn(JOB, str(error))


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


def write_report(facts: Facts, deployment: Deployment) -> Path:
    """Write page, report.json, index and metrics of a day; a kill between two files is repaired by the next report.

    Returns:
        The page.
    """
    reports, path = Path(deployment.paths.reports), report_page(deployment, facts.ds)
    report = summarize(facts)
    with locked(reports):  # a report of another day renews the same links, index and metrics
        days = [day.ds for day in day_pages(reports)]
        write_atomically(path.with_name(REPORT_JSON), report_json(report))
        write_atomically(path, page(facts, deployment, report, days))
        write_front(reports, deployment.deployment.name)
    return path


def page(facts: Facts, deployment: Deployment, report: Report | None = None, days: Sequence[date] = ()) -> str:
    """The page as HTML; every text from tables is escaped.

    Args:
        facts: Facts of the run.
        deployment: The deployment.
        report: Summary of the facts; made here if it is missing.
        days: Days that have a page, for the links to the neighbours.
    """
    report = report or summarize(facts)
    docs = docs_index(deployment, facts.ds)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            facts=facts,
            report=report,
            navigation=navigation(days, facts.ds),
            verdict=report.verdict,
            answers=report.answers,
            steps=list(zip(facts.steps, report.tasks, strict=True)),
            code_version=report.code_version,
            plots=plots(facts),
            windows=[{"window": str(window), "coverage": coverage(facts, window)} for window in facts.windows],
            ingest=report.ingest,
            slices=slices(facts),
            drifts=drifts(facts),
            autoencoder=autoencoder(facts),
            ranker=ranker(facts),
            gates=gates(facts, deployment),
            docs=_link(docs, deployment, facts.ds) if docs.exists() else None,
        )
    )


def plots(facts: Facts) -> dict[str, list[Picture]]:
    """Name of each plot to its pictures; a plot without rows is left out."""
    found = facts.distributions
    drawn = {
        "coverage": (coverage_plot, facts.event_days),
        "n_items": (n_items_plot, found.n_items),
        "norms": (norm_plot, found.norms),
        "drift": (drift_plot, found.points),
        "activity": (activity_plot, [row for row in found.activity if row["cosine_p01"] is not None]),
    }
    pictures = {name: draw(facts) for name, (draw, rows) in drawn.items() if rows}
    pictures["trends"] = trend_plot(facts.points)
    for job in ("train_autoencoder", "train_ranker"):
        pictures[job] = curve_plot(facts.curves(job))
    return pictures


if __name__ == "__main__":
    run_job(main)
