"""Points of a trend from metrics written by hand, and what changed between two of them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobs.report.history import best_baseline, changes, run_point
from jobs.runtime.task_records import TaskRecord
from report_facts import DS, point

DAY = timedelta(days=1)
LTE, DRIFT = "uniform/365-60", "uniform/365-60/1"


def test_a_point_from_the_metrics_of_its_run(deployment) -> None:
    measured = {
        ("compute_lte", "n_users", LTE): 4.0,
        ("compute_lte", "n_unknown", LTE): 2.0,
        ("compute_lte", "n_items", LTE): 6.0,
        ("compute_drift", "drift_p99", DRIFT): 0.2,
        ("compute_drift", "drift_p99", "uniform/365-60/5"): 0.9,  # another offset
        ("compute_drift", "mean_cosine", DRIFT): 0.99,
        ("evaluate_ranker", "ndcg_at_10", "a"): 0.9,  # a smaller cutoff
        ("evaluate_ranker", "ndcg_at_500", "candidate"): 0.5,
        ("evaluate_ranker", "ndcg_at_500", "live"): 0.6,
        ("evaluate_ranker", "ndcg_at_500", "a"): 0.3,
        ("evaluate_ranker", "ndcg_at_500", "b"): 0.4,
        ("evaluate_ranker", "ndcg_at_500", "b/new"): 0.7,  # a group
        ("validate", "n_expectations", ""): 9.0,
        ("validate", "n_failed", ""): 1.0,
    }
    records = {
        "ingest": TaskRecord("ingest", str(DS), "success", "2017-01-03T00:00:00+00:00", 2.5),
        "embed_items": TaskRecord("embed_items", str(DS), "running", "2017-01-03T00:00:00+00:00"),
    }
    found = run_point(DS, measured, 7, records, deployment)
    assert (found.n_users, found.unknown_share, found.n_events) == (4.0, 0.25, 7)
    assert (found.drift_p99, found.cosine_mean) == (0.2, 0.99)
    assert (found.ndcg_candidate, found.ndcg_live, found.ndcg_baseline, found.best_baseline) == (0.5, 0.6, 0.4, "b")
    assert (found.n_gates, found.n_gates_failed, found.seconds) == (9.0, 1.0, {"ingest": 2.5})


def test_a_run_without_metrics_measured_nothing(deployment) -> None:
    found = run_point(DS, {}, 0, {}, deployment)
    assert (found.n_users, found.unknown_share, found.ndcg_baseline, found.best_baseline) == (None, None, None, "")
    empty = {("compute_lte", name, LTE): 0.0 for name in ("n_unknown", "n_items")}
    assert run_point(DS, empty, 0, {}, deployment).unknown_share is None


def test_of_equal_baselines_the_first_by_name_is_best() -> None:
    assert best_baseline({"candidate": 1.0, "live": 1.0, "b": 0.5, "a": 0.5}) == "a"


def test_changes_leave_out_what_is_equal_or_was_not_measured() -> None:
    assert changes([point(DS)]) == []
    before = point(DS - DAY, n_users=2.0, drift_p99=0.1, seconds={"ingest": 1.0, "validate": 2.0})
    now = point(DS, n_users=4.0, seconds={"ingest": 2.0, "validate": 4.0})
    found = {change.name: (change.before, change.now) for change in changes([before, now])}
    assert found == {"n_users": (2.0, 4.0), "seconds": (3.0, pytest.approx(6.0))}
    other_tasks = point(DS, n_users=4.0, seconds={"ingest": 2.0})
    assert [change.name for change in changes([before, other_tasks])] == ["n_users"]
