"""lte ab on rows of a lake: who counts, from when, and what the numbers are by hand."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.abtest.assignments import AssignmentError
from jobs.abtest.kpis import Kpi
from jobs.commands.live.ab import Question, plan, plan_text, read_out, read_out_text
from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.lake.lake import Lake
from jobs.landing.event_days import refresh_event_days
from lte_builders import values_of
from schemas import INTERACTIONS

FIRST, LAST = date(2024, 3, 2), date(2024, 3, 3)
GROUPS = "user_id,variant,assigned_ts,country\n" + "".join(
    f"{user},{variant},2024-03-02T06:00:00Z,{country}\n"
    for user, variant, country in [
        ("ann", "lte", "de"), ("bob", "lte", "at"), ("cid", "lte", "de"), ("dan", "control", "de"),
        ("eve", "control", "at"), ("fay", "control", "de"),
    ]
)  # fmt: skip


def _event(user: str, day: int, hour: int, kind: str = "click", market: str = "uk") -> tuple[object, ...]:
    stamp = datetime(2024, 3, day, hour, tzinfo=UTC)
    row = {"user_id": user, "item_id": f"i{hour}", "event_ts": stamp, "interaction_type": kind, "market": market}
    return values_of(row | {"session_id": None, "landing_ds": stamp.date(), "event_date": stamp.date()}, INTERACTIONS)


@pytest.fixture
def groups(lake: Lake, tmp_path: Path) -> Path:
    """Ann clicks before she is assigned, which does not count; gus is not in the test."""
    rows = [
        _event("ann", 1, 9), _event("dan", 1, 9), _event("dan", 1, 10),  # before the test: CUPED alone reads these
        _event("ann", 2, 5), _event("ann", 2, 7), _event("ann", 3, 8, "purchase"), _event("ann", 3, 9, market=""),
        _event("bob", 2, 8), _event("dan", 2, 9), _event("eve", 3, 9), _event("gus", 3, 9),
    ]  # fmt: skip
    days = [date(2024, 3, day) for day in (1, 2, 3)]
    lake.replace_rows(rows, INTERACTIONS, {"event_date": days})
    refresh_event_days(lake, days)
    path = tmp_path / "groups.csv"
    path.write_text(GROUPS)
    return path


def _cells(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(line["part"], line["kpi"]): line["effect"] for line in found["lines"] if line["effect"]}


def test_kpis_per_assigned_user_by_hand(deployment: Deployment, groups: Path) -> None:
    """lte: ann 3 on two days, bob 1, cid none; control: dan 1, eve 1, fay none."""
    found = read_out(deployment, groups, Question(FIRST, LAST))
    cells = _cells(found)
    means = {kpi: (cell["variant"], cell["control"]) for (_, kpi), cell in cells.items()}
    assert means["all"] == pytest.approx((4 / 3, 2 / 3))
    assert means["active"] == pytest.approx((2 / 3, 2 / 3))
    assert means["all/days"] == pytest.approx((4 / 3, 1))
    assert means["click"] == pytest.approx((1, 2 / 3))
    assert "purchase" not in means  # the control bought nothing: there is no relative uplift
    assert "the KPI of the control is 0" in read_out_text(found)
    assert (found["users"], found["is_split_right"]) == ({"control": 3, "lte": 3}, True)
    assert all(line["p_holm"] >= line["effect"]["p"] for line in found["lines"] if line["effect"])


def test_parts_by_market_and_by_a_column_of_the_table(deployment: Deployment, groups: Path) -> None:
    by_market = _cells(read_out(deployment, groups, Question(FIRST, LAST, kpis=("all",), by="market")))
    assert by_market["uk", "all"]["variant"] == pytest.approx(1)  # all but ann's click without a market
    assert by_market["all", "all"]["variant"] == pytest.approx(4 / 3)
    by_country = _cells(read_out(deployment, groups, Question(FIRST, LAST, kpis=("all",), by="country")))
    assert by_country["de", "all"]["variant"] == pytest.approx(3 / 2)
    assert ("at", "all") not in by_country  # one user per variant has no variance


def test_cuped_reads_the_days_before_and_a_broken_split_is_told(deployment: Deployment, groups: Path) -> None:
    question = Question(FIRST, LAST, kpis=("all",), cuped_days=1, shares={"control": 99.0, "lte": 1.0})
    found = read_out(deployment, groups, question)
    # before: ann 1, dan 2. Pooled slope (deviations within a variant): (5/3 + 2/3) / (2/3 + 8/3) = 0.7
    assert _cells(found)["all", "all"]["variant"] == pytest.approx(4 / 3 - 0.7 * (1 / 3 - 1 / 2))
    assert not found["is_split_right"]
    assert "SAMPLE RATIO MISMATCH" in read_out_text(found)


def test_a_plan_from_the_users_of_past_days(deployment: Deployment, groups: Path) -> None:
    """Users ann, bob, dan, eve and gus; whoever was not there is not among them."""
    found = plan(deployment, Question(FIRST, LAST, kpis=("all", "purchase/days")))
    assert found["n_users"] == 5
    # values 4, 1, 1, 1, 1: mean 1.6, variance 1.8; sqrt(1.8 / 2.5 * 2) * (1.95996 + 0.84162) / 1.6
    assert found["lines"][0]["mde"] == pytest.approx(2.1012, abs=1e-4)
    assert "5 users" in plan_text(found)


def test_wrong_questions_are_refused(deployment: Deployment, groups: Path) -> None:
    with pytest.raises(ConfigError, match="expected a day from --from=2024-03-03 on, got 2024-03-02"):
        Question(LAST, FIRST)
    with pytest.raises(ConfigError, match="holds 2024-03-01 to 2024-03-03"):
        read_out(deployment, groups, Question(FIRST, date(2024, 3, 4)))
    with pytest.raises(ConfigError, match="--by: expected one of market, country, got 'age'"):
        read_out(deployment, groups, Question(FIRST, LAST, by="age"))
    with pytest.raises(ConfigError, match="--share: shares: expected a positive one for each"):
        read_out(deployment, groups, Question(FIRST, LAST, shares={"lte": 1.0}))
    with pytest.raises(AssignmentError, match=r"expected 'old' \(--control\)"):
        read_out(deployment, groups, Question(FIRST, LAST, control="old"))
    with pytest.raises(ConfigError, match="KPI 'wish': expected one of click, purchase, all, active, days"):
        Kpi.parse("wish", ["click", "purchase"])
