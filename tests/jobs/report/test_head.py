"""Each answer at the top of the page says what the tables say."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from jobs.report.head import answers
from report_facts import facts


def measured(candidate: float, *, low: float | None = None, high: float | None = None) -> dict[Any, float]:
    ndcg = {"candidate": candidate, "live": 0.9, "popularity_7d": 0.2, "frequency_365d": 0.4, "candidate/new": 0.1}
    found = {("evaluate_ranker", "ndcg_at_500", label): value for label, value in ndcg.items()}
    ends = {"uplift_low": low, "uplift_high": high}
    label = "candidate over frequency_365d"
    return found | {("evaluate_ranker", name, label): value for name, value in ends.items() if value is not None}


def said(**changes: Any) -> list[tuple[str, str]]:
    return [(answer.text, answer.tone) for answer in answers(facts(**changes))]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, ("Yes, for 1,234 users", "good")),
        ({"live": {"ds": "2017-01-03", "row_count": 1}}, ("No: 2017-01-03 is live", "neutral")),
        ({"live": None}, ("No: nothing was ever published", "bad")),
        ({"live": None, "live_problem": "x"}, ("Not known: the online store does not answer", "bad")),
    ],
)
def test_whether_the_day_is_live(changes: dict[str, Any], wanted: tuple[str, str]) -> None:
    assert said(**changes)[0] == wanted


def test_whether_the_data_are_healthy() -> None:
    assert said()[1] == ("Yes: 1 of 2 expectations held; 1 had nothing to judge", "good")
    failed = [{"success": False, "skipped": None}, {"success": True, "skipped": None}]
    assert said(gates=failed)[1] == ("No: 1 of 2 expectations failed", "bad")
    assert said(gates=[])[1] == ("Not judged: validate left nothing", "neutral")


def test_whether_the_ranker_beats_the_best_baseline_and_whether_that_is_certain() -> None:
    # The best baseline is frequency_365d with .4; the live ranker is no baseline. .44 / .4 = +10 %.
    better = said(metrics=measured(0.44, low=0.02, high=0.18))[2]
    assert better == (
        "Yes: ndcg_at_500 0.4400 against 0.4000 of frequency_365d, +10.0%, certain: 95 % interval +2.0% to +18.0%",
        "good",
    )
    unsure = said(metrics=measured(0.44, low=-0.01, high=0.21))[2]
    assert "not certain: 95 % interval -1.0% to +21.0%" in unsure[0]
    assert unsure[1] == "neutral"
    worse = said(metrics=measured(0.36, low=-0.2, high=-0.01))[2]
    assert worse[0].startswith("No: ndcg_at_500 0.3600 against 0.4000 of frequency_365d, -10.0%, certain")
    assert worse[1] == "neutral"
    assert said()[2] == ("Not judged: no ranker was measured on this day", "neutral")


def uplift(value: float, low: float, high: float) -> dict[str, Any]:
    found = {"metric": "ndcg_at_500", "uplift": value, "uplift_low": low, "uplift_high": high}
    return found | {"ds": date(2017, 1, 1)}


@pytest.mark.parametrize(
    ("found", "begins", "tone"),
    [
        (None, "Not measured", "neutral"),
        (uplift(0.012, 0.004, 0.02), "Yes: ndcg_at_500 +1.2% over no LTE, 95 % interval +0.4% to +2.0%", "good"),
        (uplift(0.003, -0.001, 0.007), "Not certain: ndcg_at_500 +0.3%", "neutral"),
        (uplift(-0.01, -0.02, -0.001), "No: ndcg_at_500 -1.0%", "bad"),
    ],
)
def test_whether_the_lte_helps(found: dict[str, Any] | None, begins: str, tone: str) -> None:
    text, colour = said(lte_uplift=found)[3]
    assert text.startswith(begins)
    assert colour == tone
