"""What lte status tells about runs that failed, about what is live and about what a rollback would make live."""

import json
from datetime import date

import pytest

from jobs.commands.days.status import deployment_status, status_text
from jobs.config.sections import Deployment
from jobs.lake.lake import Lake
from jobs.ranker.judging.live import POINTER, live_folder
from jobs.runtime.pages import states_file
from jobs.store.opening import open_store
from jobs.store.publish import publish, rollback
from jobs.store.tables import log_switches
from store_kit import marked_source

FIRST, SECOND = date(2024, 2, 28), date(2024, 2, 29)


def test_a_run_that_failed_before_it_computed_anything_is_shown(deployment: Deployment) -> None:
    file = states_file(deployment, FIRST)
    file.parent.mkdir(parents=True)
    states = {"ingest": "failed", "embed_items": "upstream_failed", "compute_lte": "upstream_failed"}
    file.write_text(json.dumps(states))
    (file.parent.parent / "ds=soon").mkdir()
    (file.parent.parent / "ds=soon" / "tasks.json").write_text("{}")  # no day
    status = deployment_status(deployment)
    [run] = status.runs
    assert (run.ds, run.failed, run.not_started) == (FIRST, ("ingest",), ("embed_items", "compute_lte"))
    shown = f"  {FIRST}  not validated\n              FAILED: ingest; 2 tasks after it did not start"
    assert shown in status_text(status)
    file.write_text("torn")  # another run is writing, or the disk was full
    assert deployment_status(deployment).runs[0].failed == ()


def test_what_is_live_since_when_how_old_it_is_and_what_was_before(
    lake: Lake, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.commands.days.status.today", lambda: date(2024, 3, 10))
    store = open_store(deployment)
    publish(store, marked_source(1.0, ds=FIRST, users=1))
    status = deployment_status(deployment)
    assert (status.age_days, status.rollback, status.published) == (11, None, None)  # the log was not written yet
    assert f"live LTEs   ds={FIRST}, 1 user, " in status_text(status)
    publish(store, marked_source(2.0, ds=SECOND, users=2))
    log_switches(lake, store)
    status = deployment_status(deployment)
    assert (status.live or {})["ds"] == str(SECOND)
    assert (status.age_days, (status.rollback or {})["ds"]) == (10, str(FIRST))
    text = status_text(status)
    assert f"{(status.published or {})['at']}; the day is 10 days old; `lte rollback` makes ds={FIRST} live" in text
    assert text.splitlines()[2].startswith("            published 2")
    rollback(store)
    log_switches(lake, store)
    status = deployment_status(deployment)
    assert (status.age_days, (status.published or {})["action"], (status.rollback or {})["ds"]) == (
        11,
        "rollback",
        str(SECOND),
    )
    store.close()


def test_the_score_of_the_live_ranker_stands_beside_the_best_baseline(lake: Lake, deployment: Deployment) -> None:
    folder = live_folder(deployment)
    folder.mkdir(parents=True)
    pointer = {"bundle": "b", "ds": str(FIRST), "weights_sha256": "abc" * 9, "previous": ""}
    (folder / POINTER).write_text(json.dumps(pointer))
    assert (deployment_status(deployment).ranker or {})["score"] is None  # judged nowhere yet
    values = {"candidate": 0.0312, "live": 0.9, "popularity": 0.01, "frequency_60d": 0.0298, "frequency_60d/new": 0.5}
    lake.record_metrics(FIRST, "evaluate_ranker", {("ndcg_at_500", label): value for label, value in values.items()})
    status = deployment_status(deployment)
    assert "NDCG at 500 0.0312 (best baseline: frequency_60d 0.0298)" in status_text(status)
    assert json.loads(json.dumps(status.as_json()))["ranker"]["score"]["value"] == 0.0312
