"""The index, the links between days and the metrics of the newest day, from pages that were written in any order."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path

from jobs.build_report import write_report
from jobs.config.sections import Deployment
from report_facts import DS, facts, point

DAY = timedelta(days=1)


def write(deployment: Deployment, ds: date) -> None:
    Path(deployment.paths.reports).mkdir(parents=True, exist_ok=True)
    write_report(facts(ds=ds, points=(point(ds),)), deployment)


def links(reports: Path, ds: date) -> list[str]:
    page = (reports / f"ds={ds}" / "index.html").read_text()
    [navigation] = re.findall(r'<nav class="days".*?</nav>', page, re.DOTALL)
    return re.findall(r'href="([^"]+)"', navigation)


def test_days_are_linked_in_whichever_order_they_were_written(deployment: Deployment) -> None:
    reports = Path(deployment.paths.reports)
    for ds in (DS, DS + 2 * DAY, DS + DAY):  # the middle one last
        write(deployment, ds)
    assert links(reports, DS) == ["../index.html", f"../ds={DS + DAY}/index.html"]
    before, after = f"../ds={DS}/index.html", f"../ds={DS + 2 * DAY}/index.html"
    assert links(reports, DS + DAY) == [before, "../index.html", after]
    assert links(reports, DS + 2 * DAY) == [f"../ds={DS + DAY}/index.html", "../index.html"]
    shown = re.findall(r'href="ds=([\d-]+)/', (reports / "index.html").read_text())
    assert shown == [str(DS + 2 * DAY), str(DS + DAY), str(DS)]


def test_metrics_are_those_of_the_newest_day_after_an_old_day_was_run_again(deployment: Deployment) -> None:
    write(deployment, DS + DAY)
    write(deployment, DS)
    text = (Path(deployment.paths.reports) / "metrics.prom").read_text()
    assert (
        'lte_run_data_end_seconds{deployment="shop"} 1483488000.0' in text
    )  # 2017-01-04 00:00 UTC, as `date -u -d` says


def test_a_page_of_an_earlier_version_stays_in_the_index(deployment: Deployment) -> None:
    reports = Path(deployment.paths.reports)
    write(deployment, DS)
    (reports / f"ds={DS}" / "report.json").write_text('{"schema_version": 0, "n": erased}')
    (reports / "ds=no-day").mkdir()
    (reports / "ds=no-day" / "index.html").write_text("something else")
    write(deployment, DS + DAY)
    index = (reports / "index.html").read_text()
    assert f'href="ds={DS}/index.html"' in index
    assert f"python -m jobs.build_report --ds {DS}" in index
    assert "no-day" not in index


def test_two_reports_at_once_end_with_both_days_in_the_index(deployment: Deployment) -> None:
    days = [DS + n * DAY for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda ds: write(deployment, ds), days))
    reports = Path(deployment.paths.reports)
    index = (reports / "index.html").read_text()
    assert all(f'href="ds={ds}/index.html"' in index for ds in days)
    assert links(reports, days[1]) == [f"../ds={days[0]}/index.html", "../index.html", f"../ds={days[2]}/index.html"]
    assert list(reports.rglob("*.partial")) == []


def test_experiments_are_listed(deployment: Deployment) -> None:
    page = Path(deployment.paths.reports) / "experiments" / "shop" / "integration.html"
    page.parent.mkdir(parents=True)
    page.write_text("<!doctype html>")
    write(deployment, DS)
    assert 'href="experiments/shop/integration.html"' in (Path(deployment.paths.reports) / "index.html").read_text()
