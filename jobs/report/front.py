"""What stands in front of the days: reports/index.html, the links between days, and the metrics of the last run.

All of it is made from the report.json files that exist, under a lock of the folder. So two reports that are written at
the same time end with one front that shows both days.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import jinja2
from markupsafe import Markup

from jobs.report.history import number
from jobs.report.prometheus import metrics_text
from jobs.report.summary import Report, read_report
from jobs.runtime.pages import days_with
from lte_models.files import write_atomically

TEMPLATES = Path(__file__).with_name("templates")
REPORT_JSON, PAGE, INDEX, METRICS_PROM = "report.json", "index.html", "index.html", "metrics.prom"
NAVIGATION = re.compile(r'<nav class="days".*?</nav>', re.DOTALL)


@dataclass(frozen=True)
class DayPage:
    """A day with a page; ``report`` is None for a page without a readable report.json, of an earlier version."""

    ds: date
    report: Report | None


def environment() -> jinja2.Environment:
    """The environment of all pages of the reports; every text from tables is escaped."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    found.filters |= {"number": _number, "share": _share, "cosine": _cosine}
    return found


def _number(value: float | None) -> str:
    return "–" if value is None else number(value)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _cosine(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def day_pages(reports: Path) -> list[DayPage]:
    """The days that have a page, oldest first."""
    return [DayPage(ds, _report(reports / f"ds={ds}" / REPORT_JSON)) for ds in sorted(days_with(reports, PAGE))]


def _report(path: Path) -> Report | None:
    try:
        return read_report(path.read_bytes())
    except (OSError, ValueError):  # none yet, of another version, or a redaction left no JSON
        return None


def navigation(days: Sequence[date], ds: date) -> Markup:
    """Links to the day before, the day after and all days."""
    before = max((day for day in days if day < ds), default=None)
    after = min((day for day in days if day > ds), default=None)
    links = [f'<a href="../ds={before}/{PAGE}" rel="prev">← {before}</a>' if before else "<span>first day</span>"]
    links.append(f'<a href="../{INDEX}">all days</a>')
    links.append(f'<a href="../ds={after}/{PAGE}" rel="next">{after} →</a>' if after else "<span>last day</span>")
    return Markup(f'<nav class="days" aria-label="Days">{" ".join(links)}</nav>')  # noqa: S704, dates alone


def write_front(reports: Path, deployment: str) -> None:
    """Write the index, the links of all neighbours, and metrics.prom of the newest day. The caller holds the lock."""
    days = day_pages(reports)
    for day in days:
        _link(reports / f"ds={day.ds}" / PAGE, navigation([each.ds for each in days], day.ds))
    template = environment().get_template("days.html.j2")
    experiments = sorted(path.relative_to(reports) for path in (reports / "experiments").rglob("*.html"))
    write_atomically(reports / INDEX, template.render(deployment=deployment, days=days[::-1], experiments=experiments))
    newest = next((day.report for day in reversed(days) if day.report), None)
    if newest:
        write_atomically(reports / METRICS_PROM, metrics_text(newest))


def _link(page: Path, links: Markup) -> None:
    """Renew the links in a page, if they changed."""
    before = page.read_text(encoding="utf-8", errors="surrogateescape")
    after = NAVIGATION.sub(lambda _: str(links), before, count=1)
    if after != before:
        write_atomically(page, after.encode("utf-8", "surrogateescape"))
