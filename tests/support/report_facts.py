"""Facts of a report's day, written by hand; no engine and no tables."""

from __future__ import annotations

from datetime import date
from typing import Any

from jobs.report.facts import Distributions, Facts, Step
from jobs.report.history import RunPoint

DS = date(2017, 1, 2)


def point(ds: date, **changes: Any) -> RunPoint:
    whole: dict[str, Any] = {
        "ds": ds,
        "n_events": 10,
        "n_users": 4.0,
        "unknown_share": 0.25,
        "drift_p99": None,
        "cosine_mean": None,
        "ndcg_candidate": None,
        "ndcg_live": None,
        "ndcg_baseline": None,
        "best_baseline": "",
        "n_gates": 2.0,
        "n_gates_failed": 0.0,
        "seconds": {},
    }
    return RunPoint(**(whole | changes))


def gate(**changes: Any) -> dict[str, Any]:
    whole = {"table": "user_lte", "expectation": "max", "observed": "1", "expected": "at most 1"}
    return whole | {"success": True, "skipped": None, "sample": None} | changes


def facts(**changes: Any) -> Facts:
    whole: dict[str, Any] = {
        "deployment": "shop",
        "ds": DS,
        "steps": [Step("ingest", "success", "left rows of this day", "good", 2.5, 300.0)],
        "live": {
            "ds": "2017-01-02",
            "row_count": 1234,
            "method": "uniform",
            "lte_window": "365-60",
            "basis_version": "abc",
        },
        "live_problem": "",
        "ingest": [],
        "quarantine": {},
        "quarantined": [],
        "event_days": {},
        "windows": (),
        "metrics": {},
        "gates": [gate(), gate(skipped="no earlier day")],
        "distributions": Distributions(),
        "distributions_problem": "",
        "runs": [],
        "points": (point(DS),),
    }
    return Facts(**(whole | changes))
