"""lte report: the result of one day in twenty lines, from the tables and without an engine."""

from __future__ import annotations

import json
from datetime import date

from jobs.config.sections import Deployment
from jobs.lake.reader import lake_reader
from jobs.report.facts import gather
from jobs.report.history import run_days
from jobs.report.summary import Report, report_json, report_text, summarize
from jobs.runtime.pages import read_states, report_page


class UnknownDayError(LookupError):
    """No run of this day left anything."""


def day_report(deployment: Deployment, ds: date) -> Report:
    """The report of a day, as the tables are now.

    Args:
        deployment: The deployment.
        ds: Data day.

    Raises:
        UnknownDayError: No run of the day left rows, a record or a page.
    """
    days = run_days(lake_reader(deployment), deployment)
    if ds not in days:
        last = f"the last day with a run is {days[-1]}" if days else "no day has a run yet"
        raise UnknownDayError(f"ds: expected a day with a run, got {ds}: {last}")
    return summarize(gather(deployment, ds, read_states(deployment, ds), is_counting=False))


def text_of(report: Report, deployment: Deployment) -> str:
    """The report for a person, with the place of its page."""
    page = report_page(deployment, report.ds)
    return report_text(report, str(page) if page.exists() else "none yet")


def value_of(report: Report) -> object:
    """The report as plain JSON values, in the form of report.json."""
    return json.loads(report_json(report))
