"""report.json fits its schema, and the text has everything in twenty lines."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import jsonschema
import pytest

from jobs.report.facts import Step
from jobs.report.summary import read_report, report_json, report_schema, report_text, summarize
from report_facts import DS, facts, gate, point

DAY = timedelta(days=1)


def bad_day(n_gates: int = 1) -> Any:
    steps = [
        Step("ingest", "failed", "left nothing of this day", "bad", 1.5, 200.0, "IngestError: column user_id is empty"),
        Step("embed_items", "upstream_failed", "left nothing of this day", "bad"),
    ]
    ranked = {("evaluate_ranker", "ndcg_at_500", model): n for model, n in {"candidate": 0.3, "counting": 0.4}.items()}
    return facts(
        steps=steps,
        gates=[gate(success=False, observed="3")] * n_gates,
        live=None,
        metrics=ranked | {("evaluate_ranker", "p", "candidate over counting"): float("nan")},
        points=(point(DS - DAY, n_users=5.0, seconds={"ingest": 1.0}), point(DS, seconds={"ingest": 2.5})),
        refusal="NDCG 0.3 is below counting's 0.4",
        stale="events of 2017-01-01 landed after it",
    )


@pytest.mark.parametrize("day", [facts(), bad_day()])
def test_the_file_fits_the_schema_and_reads_back(day: Any) -> None:
    report = summarize(day)
    content = report_json(report)
    jsonschema.Draft202012Validator.check_schema(report_schema())
    jsonschema.validate(json.loads(content), report_schema())
    assert read_report(content) == report


def test_a_file_of_another_form_is_refused() -> None:
    with pytest.raises(ValueError, match="schema_version"):
        read_report(b'{"deployment": "shop"}')


def test_alarms_name_the_failed_task_and_not_the_tasks_after_it() -> None:
    assert summarize(bad_day()).alarms == [
        "ingest failed: IngestError: column user_id is empty",
        "user_lte: max: expected at most 1, got 3",
        "inputs changed after the run: events of 2017-01-01 landed after it; run it again: lte run 2017-01-02",
        "the candidate did not go live: NDCG 0.3 is below counting's 0.4",
    ]
    assert summarize(facts()).alarms == []


def test_the_text_of_a_good_and_of_a_bad_day() -> None:
    good = report_text(summarize(facts()), "/pages/x")
    assert good.splitlines()[0] == "shop 2017-01-02: Live"
    assert "alarms: none" in good
    assert "1 task in 2 s; the slowest is ingest, 2 s" in good
    assert good.endswith("page: /pages/x")
    bad = report_text(summarize(bad_day(n_gates=30)), "/pages/x").splitlines()
    assert len(bad) <= 20
    assert "  users: 5 -> 4" in bad
    assert "  seconds of all tasks: 1 -> 2.5" in bad
    assert "  and 29 more" in bad  # 33 alarms: four are shown


def test_the_best_model_is_marked_once() -> None:
    ranker = summarize(bad_day()).ranker
    assert ranker is not None
    assert [(each.model, each.is_best) for each in ranker.models] == [("candidate", False), ("counting", True)]
    assert (ranker.best_baseline, ranker.metric, ranker.went_live) == ("counting", "ndcg_at_500", None)
