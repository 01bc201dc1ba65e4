"""The page of a run: real small tables in, numbers by hand on the page, nothing that comes from data is markup."""

from __future__ import annotations

import base64
import dataclasses
import re
import shutil
import subprocess
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from pyspark.sql import SparkSession

from deployments import CONFIG
from jobs.build_report import main, page, parse_flags, write_report
from jobs.commands.days.report import UnknownDayError, day_report
from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment
from jobs.config.window import ConfigError, LteWindow
from jobs.lake.day import Day
from jobs.lake.lake import Lake, Metrics
from jobs.lake.reader import lake_reader
from jobs.report.facts import Distributions, Facts, count_distributions, coverage, gather
from jobs.report.summary import read_report, report_text
from jobs.report.tables import verdict
from jobs.runtime.pages import claim, docs_index, report_page
from jobs.validate import validate_day
from lte_builders import BASIS, DS, put, schema_of
from schemas import EXPERIMENTS, GATE_RESULTS, INGEST_LOG, LIVE_SNAPSHOT, LTE_DRIFT, METRICS, QUARANTINE, USER_LTE
from two_days import fill, without_models

HOSTILE = "<img src=x onerror=alert(1)>\"'&"


class Text(HTMLParser):
    """What a reader sees, and which tags and addresses there are."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self._is_style = False
        self.feed(source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self._is_style = tag == "style"

    def handle_data(self, data):
        if not self._is_style:
            self.words.append(data)


@pytest.fixture(scope="module")
def shop(sail: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployment, str, Facts]:
    """A validated day with a failed gate, quarantined rows and a ranker's metrics; and its page."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "deployment.toml").write_text(CONFIG)
    deployment = without_models(load_deployment(folder / "deployment.toml", environ={}))
    lake = Lake(sail, deployment.paths.lake)
    fill(lake, deployment)
    put(lake, INGEST_LOG, [("interactions", HOSTILE, 7, 4, 1, 2, DS, 99), ("items", "", 0, 0, 0, 0, DS, None)])
    bad = [
        ("interactions", HOSTILE, line, "unknown type", f"interaction_type {HOSTILE}", "{}", DS, None)
        for line in (1, 2)
    ]
    put(lake, QUARANTINE, bad)
    put(lake, USER_LTE, [(HOSTILE, [2.0, 0.0], 1, 0, BASIS, DS, "uniform", "365-60")])  # too long, and too many
    validate_day(Day(lake, deployment, DS))
    ranked: Metrics = {
        ("ndcg_at_500", model): value for model, value in (("candidate", 0.437), ("popularity_7d", 0.297))
    }
    ranked[("ndcg_at_10", "candidate")] = 0.111
    compared: Metrics = {
        (name, "candidate over popularity_7d"): 0.25 for name in ("uplift", "uplift_low", "uplift_high", "p")
    }
    groups: Metrics = {("ndcg_at_500", "candidate/1-5"): 0.123, ("n_users", ""): 55.0, ("went_live", ""): 1.0}
    groups |= {("n_next_items", ""): 640.0, ("n_next_items_unknown", ""): 3.0}
    lake.record_metrics(DS, "evaluate_ranker", ranked | compared | groups)
    lake.record_metrics(DS, "train_ranker", {("loss", f"epoch {n}"): 1 / n for n in (1, 2, 3)})
    claim(Path(deployment.paths.reports), deployment, "paths.reports")
    written = write_report(found := gather(deployment, DS, {}), deployment)
    return deployment, written.read_text(encoding="utf-8"), found


@pytest.fixture(scope="module")
def read(shop: tuple[Deployment, str, Facts]) -> Text:
    return Text(shop[1])


def test_the_page_says_what_came_in_and_what_was_counted(read: Text) -> None:
    assert "interactions 1 7 4 1 2 yes" in read.text  # one file: read, accepted, duplicate, quarantined
    assert "items 0 0 0 0 0 yes" in read.text
    assert "unknown type interactions 2" in read.text
    # Interactions 200, 100 and 60 days ago: 3 of the 305 days.
    assert "365-60 3 305 0.98% 33" in read.text
    assert "uniform/365-60 3 1 32 1" in read.text  # users, without items, known, unknown, as compute_lte counted
    assert "uniform/365-60/1 3 0 0" in read.text


def test_a_failed_gate_stands_first_with_its_rows_and_its_page(shop, read: Text) -> None:
    deployment, _, _ = shop
    assert "Not published: 3 of" in read.text
    assert "user_lte: expect_column_values_to_be_between(norm_share)" in read.text
    assert "Observed 1 of 7 rows do not fit" in read.text
    folder = report_page(deployment, DS).parent
    links = [address for address in read.addresses if address.startswith("..")]
    assert len(links) > 100
    for link in set(links):
        assert (folder / unquote(link)).resolve().exists(), link
    assert "Nothing yet: no snapshot was ever published." in read.text


def test_nothing_on_the_page_is_markup_of_the_data_or_needs_a_network(shop, read: Text) -> None:
    _, source, _ = shop
    assert HOSTILE in read.text.replace("\"'&", "\"'&")
    assert "<img src=x" not in source
    assert "script" not in read.tags
    assert [a for a in read.addresses if a.startswith("http")] == ["https://arxiv.org/abs/2604.08181"]  # a link to read
    pictures = [a for a in read.addresses if a.startswith("data:")]
    # Trends: users, interactions, unknown share, drift, cosine, NDCG. Then coverage and n_items; norms, drift and
    # activity of two methods; and one training curve.
    assert len(pictures) == 6 + 2 + 6 + 1
    assert all(a.startswith("data:image/svg+xml;base64,") for a in pictures)
    assert 'lang="en"' in source
    assert all("alt=" in image for image in re.findall(r"<img[^>]*>", source))
    drawn = [base64.b64decode(picture.partition(",")[2]).decode() for picture in pictures]
    assert sum("drift = bound" in picture for picture in drawn) == 2


def test_the_ranker_and_its_curves(read: Text) -> None:
    assert "every next item on 2025-06-30, 55 users. 3 of 640 next items had no vector on the day before" in read.text
    assert "The candidate went live" in read.text
    assert "candidate 0.437" in read.text
    assert "popularity_7d 0.297" in read.text
    assert "candidate over popularity_7d 25.00% 25.00% 25.00% 0.25" in read.text
    assert "candidate 0.123" in read.text


def test_a_day_of_which_nothing_is_there_says_so(deployment, deployment_file, capsys) -> None:
    main(["--config", str(deployment_file), "--ds", "2025-06-30", "--states", '{"ingest": "failed"}'])
    assert str(report_page(deployment, DS)) in capsys.readouterr().out
    text = Text(report_page(deployment, DS).read_text()).text
    assert "Incomplete: ingest, embed_items" in text
    assert "ingest failed – – left nothing of this day" in text
    for missing in (
        "Table ingest_log has no row of this landing day: ingest did not finish.",
        "There are no interactions yet.",
        "No LTEs of this day: compute_lte did not finish.",
        "This day was not validated, so nothing is published",
        "No LTEs were computed yet.",
    ):
        assert missing in text


def test_an_engine_that_does_not_start_leaves_the_rest_of_the_page(shop, monkeypatch) -> None:
    deployment, _, _ = shop
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    engine = dataclasses.replace(deployment.engine, master="local[1]")  # needs Java, and there is none
    facts = gather(dataclasses.replace(deployment, engine=engine), DS, {})
    assert facts.distributions == Distributions()
    text = Text(page(facts, deployment)).text
    assert "No histograms: the engine did not answer." in text
    assert "interactions 1 7 4 1 2 yes" in text


def test_distributions_by_hand(engine_lake: Lake) -> None:
    n = {"a": 0, "b": 1, "c": 3, "d": 4, "e": 7, "f": 8}
    put(engine_lake, USER_LTE, [(u, [0.5 if k else 0.0], k, 0, BASIS, DS, "uniform", "365-60") for u, k in n.items()])
    moved = [(u, 1, 9, 9, 1, 1, 0.2, 0.1 * k, 0.4, 0.4, 1 - 0.1 * k, None, "5-19", k < 4, k == 2, DS, "uniform",
              "365-60") for k, u in enumerate("abcde")]  # fmt: skip
    put(engine_lake, LTE_DRIFT, moved)
    found = count_distributions(engine_lake, DS)
    assert {row["bin"]: row["n_users"] for row in found.n_items} == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1}
    assert [(row["bin"], row["n_users"]) for row in found.norms] == [(25, 5)]
    assert found.points[0]["bound_ok"] is False  # drawn whoever else is
    assert len(found.points) == 5
    [row] = found.activity
    assert (row["n_users"], row["cosine_p50"]) == (4, pytest.approx((0.9 + 0.7) / 2))  # without the stale one


def test_the_first_line_of_a_day_on_which_all_went_well(shop) -> None:
    _, _, facts = shop
    steps = [dataclasses.replace(step, tone="good") for step in facts.steps]
    held = [gate | {"success": True} for gate in facts.gates]
    good = dataclasses.replace(facts, steps=steps, gates=held, live={"ds": str(DS)})
    assert verdict(good) == {"tone": "good", "text": "Live"}
    assert verdict(dataclasses.replace(good, live=None))["text"] == "Complete; another day is live"
    assert verdict(dataclasses.replace(facts, gates=held, live={"ds": str(DS)}))["text"].startswith("Live, but incompl")


def test_coverage_of_windows_that_began_before_the_data() -> None:
    facts = object.__new__(Facts)
    object.__setattr__(facts, "ds", DS)
    object.__setattr__(facts, "event_days", {DS - timedelta(days=10): 3, DS: 2})
    assert coverage(facts, LteWindow(365, 60)) == (305, 0, 0)
    assert coverage(facts, LteWindow(365, 0)) == (365, 2, 5)
    object.__setattr__(facts, "event_days", {})
    assert coverage(facts, LteWindow(365, 0)) == (365, 0, 0)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed: apt-get install chromium")
def test_a_browser_shows_text_and_pictures(shop, tmp_path: Path) -> None:
    _, source, _ = shop
    (tmp_path / "page.html").write_text(source, encoding="utf-8")
    (tmp_path / "bare.html").write_text(re.sub(r"data:image/svg[^\"]*", "", source), encoding="utf-8")
    whole, bare = (np.asarray(_screenshot(tmp_path / f"{name}.html").convert("L"), int) for name in ("page", "bare"))
    assert np.ptp(whole) > 200  # dark text on a light page
    shown = np.flatnonzero((np.abs(whole - bare) > 30).any(axis=1))
    assert len(shown) > 6 * 50, "six rows of pictures, each at least 50 pixels high"


def _screenshot(path: Path) -> Image.Image:
    """What headless Chromium shows of a file, 1200 x 9000 pixels."""
    png = path.with_suffix(".png")
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1200,9000",
    ]
    command += [f"--user-data-dir={path.with_suffix('')}", f"--screenshot={png}", path.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return Image.open(png)


def test_two_deployments_never_share_pages(deployment, tmp_path: Path) -> None:
    claim(tmp_path / "pages", deployment, "paths.reports")
    claim(tmp_path / "pages", deployment, "paths.reports")
    other = dataclasses.replace(deployment, deployment=dataclasses.replace(deployment.deployment, name="other"))
    with pytest.raises(ConfigError, match=r"paths\.reports = .*: holds the pages of deployment 'test', not of 'other'"):
        claim(tmp_path / "pages", other, "paths.reports")


def test_states_that_are_no_json_are_refused(deployment_file) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_flags(["--config", str(deployment_file), "--ds", "2025-06-30", "--states", "ingest"])


def test_a_sample_of_which_a_user_was_erased_still_shows(shop, sail: SparkSession, tmp_path: Path) -> None:
    deployment, _, facts = shop
    gates = [gate | {"sample": "erased"} if gate["sample"] else gate for gate in facts.gates]
    assert "erased" in Text(page(dataclasses.replace(facts, gates=gates), deployment)).text
    assert docs_index(deployment, DS).exists()
    assert schema_of(GATE_RESULTS).fieldNames()[-1] == "ds"


def test_each_answer_of_the_head_against_the_tables(shop) -> None:
    deployment, source, _ = shop
    lake = lake_reader(deployment)
    gates = lake.rows(GATE_RESULTS, where={"ds": DS})
    n_failed = sum(not gate["success"] for gate in gates)
    ndcg = {row["label"]: row["value"] for row in lake.rows(METRICS, where={"ds": DS, "metric": "ndcg_at_500"})}
    assert lake.rows(LIVE_SNAPSHOT) == lake.rows(EXPERIMENTS) == []
    text = Text(source).text
    assert f"Not published: {n_failed} of {len(gates)} expectations failed" in text
    assert "Is this day live? No: nothing was ever published" in text
    assert f"Are the data healthy? No: {n_failed} of {len(gates)} expectations failed" in text
    ours, theirs = f"{ndcg['candidate']:.4f}", f"{ndcg['popularity_7d']:.4f} of popularity_7d"
    better = f"Yes: ndcg_at_500 {ours} against {theirs}, +47.1%, certain: 95 % interval +25.0% to +25.0%"
    assert f"Does the ranker beat the best baseline? {better}" in text
    assert "Does the LTE help? Not measured" in text


def test_the_file_for_machines_says_what_the_page_says(shop) -> None:
    deployment, source, _ = shop
    report = read_report(report_page(deployment, DS).with_name("report.json").read_bytes())
    assert report == day_report(deployment, DS)  # lte report reads the same tables, without an engine
    text = Text(source).text
    assert report.verdict.text in text
    assert all(" ".join(alarm.split()) in text for alarm in report.alarms)
    assert len(report_text(report, "x").splitlines()) <= 20
    assert [point.ds for point in report.trend] == [DS - timedelta(days=1), DS]
    with pytest.raises(UnknownDayError, match=r"expected a day with a run, got 2025-07-01: the last day.*2025-06-30"):
        day_report(deployment, DS + timedelta(days=1))
