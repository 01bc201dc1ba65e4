"""What an operator does by hand, on real tables: a user who asks to be forgotten is nowhere any more."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.sql.types import StringType

from jobs.cli import dispatch
from jobs.commands.days.maintain import maintain
from jobs.commands.users.erase import (
    audit,
    erase_users,
    erasure_text,
    let_back_in,
    plan_erasure,
    requested_users,
    verify_erasure,
)
from jobs.config.sections import Deployment
from jobs.erasure.online import erase_online
from jobs.erasure.tables import TEXT_TABLES, USER_TABLES
from jobs.lake.lake import Lake
from jobs.lake.reader import lake_reader
from jobs.landing.erased import erased_users
from jobs.landing.event_days import refresh_event_days
from jobs.lte.inputs import read_staleness
from jobs.runtime.day import LTE_JOB
from jobs.store.lmdb_store import LmdbStore
from jobs.store.publish import audit as audit_store
from jobs.store.publish import publish, rollback
from jobs.store.reader import SnapshotReader
from jobs.store.redis_store import RedisStore
from lte_builders import BASIS, schema_of
from lte_models.training.bundle import save_bundle
from lte_models.training.manifest import Manifest
from schemas import ERASURE_REQUESTS, EVENT_DAYS, GATE_RESULTS, INTERACTIONS, QUARANTINE, RUNS, TABLES, USER_LTE
from store_kit import batch, free_port, marked_source, redis_server

DAY = date(2017, 1, 2)


def put(lake: Lake, table: object, *rows: tuple[object, ...]) -> None:
    lake.append(lake.spark.createDataFrame(list(rows), schema_of(table)), table)  # type: ignore[arg-type]


def event(user: str, day: date) -> tuple[object, ...]:
    return (user, "i1", datetime(day.year, day.month, day.day, 12, tzinfo=UTC), "click", "", None, DAY, day)


@pytest.fixture
def shop(deployment: Deployment, lake: Lake) -> Deployment:
    """User 17 beside user 178, in tables, their earlier versions, quarantined text, pages and copies."""
    first = date(2017, 1, 1)
    put(lake, INTERACTIONS, event("17", first), event("178", DAY))
    put(lake, INTERACTIONS, event("17", DAY))
    refresh_event_days(lake, [first, DAY])
    put(lake, USER_LTE, *[(user, [1.0], 1, 0, BASIS, DAY, "uniform", "365-60") for user in ("17", "178")])
    raws = ['{"user_id": 17, "item_id": "x"}', '{"line": "17,i\\n"}', '{"user_id": "178", "at": "10:17:00"}']
    put(lake, QUARANTINE, *[("interactions", "f", n, "why", "event_ts", raw, DAY, None) for n, raw in enumerate(raws)])
    gate = {"table": "user_lte", "expectation": "norm", "success": False, "observed": "3", "expected": "0", "ds": DAY}
    gate |= {"n_unexpected": 1, "sample": '[{"user_id": "17"}]'}
    put(lake, GATE_RESULTS, tuple(gate.get(name) for name in GATE_RESULTS.columns))
    page = Path(deployment.paths.data_docs) / "a" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text('<td>17</td><td>178</td><script>[17, 18]</script>"user_id": 17}')
    return deployment


def places_of(deployment: Deployment, *users: str) -> list[tuple[str, str]]:
    """Places that a scan of every byte finds, relative to the deployment's folder."""
    root = Path(deployment.paths.lake).parent
    found = verify_erasure(deployment, users)["places"]
    return [(str(Path(place["path"]).relative_to(root)), place["what"]) for place in found if "/" in place["path"]]


def test_every_table_with_users_is_erased_from() -> None:
    assert {table.name for table in USER_TABLES} == {n for n, t in TABLES.items() if "user_id" in t.schema.names}
    assert len(USER_TABLES) >= 5
    for table in TABLES.values():  # text in which a user can stand is looked through
        texts = [f.name for f in table.schema if isinstance(f.dataType, StringType) and f.name in ("raw", "sample")]
        assert not texts or table in [text.table for text in TEXT_TABLES]


def test_an_erased_user_is_nowhere_and_others_stay(shop: Deployment, lake: Lake) -> None:
    plan = plan_erasure(shop, ["17"])
    before = {path: path.read_bytes() for path in Path(shop.paths.lake).rglob("*") if path.is_file()}
    assert places_of(shop, "17")
    assert {path: path.read_bytes() for path in before} == before  # the dry run and the scan changed nothing
    done = erase_users(shop, ["17"])
    wanted = {"interactions": 2, "user_lte": 1, "quarantine": 2, "gate_results": 1}
    assert {name: n for name, n in done.tables.items() if n} == wanted
    assert {name: n for name, n in plan.tables.items() if n} == wanted
    assert (done.files, done.versions, plan.files) == (1, 0, 1)
    assert places_of(shop, "17") == []
    assert places_of(shop, "178")
    assert [row["user_id"] for row in lake.read(INTERACTIONS).collect()] == ["178"]
    raws = sorted(row["raw"] for row in lake.read(QUARANTINE).collect())
    assert raws == ["erased", "erased", '{"user_id": "178", "at": "10:17:00"}']
    page = (Path(shop.paths.data_docs) / "a" / "index.html").read_text()
    assert page == '<td>erased</td><td>178</td><script>[17, 18]</script>"user_id": erased}'
    # Days are counted again: the first holds nothing any more.
    assert [(row["event_date"], row["n_events"]) for row in lake.read(EVENT_DAYS).collect()] == [(DAY, 1)]
    again = erase_users(shop, ["17"])
    assert not any(again.tables.values())
    put(lake, INTERACTIONS, event("9", DAY))  # the table goes on living
    assert lake.read(INTERACTIONS).count() == 2


USER = "klara.müller@shop.at"  # a long id is found wherever it stands
NUMBER = "740017"


def rows_file(path: Path, users: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"user_id": list(users), "note": ["x"] * len(users)})
    with path.open("wb") as file:  # whatever the name is
        pq.write_table(table, file)


PLANTED = {
    "staged rows of a training that was killed": "lake/models/ranker/ds=2017-01-02/rows/raw/7",
    "sorted rows of a training": "lake/models/ranker/ds=2017-01-02/held_out/3.parquet",
    "what an engine had not finished": "lake/_staging/ingest/2017-01-02/interactions/part-0.parquet#1",
    "staged rows of an ingest": "lake/_staging/ingest/2017-01-02/interactions/part-1.zstd.parquet",
    "rows that a killed writer never committed": "lake/interactions/event_date=2017-01-02/part-9-orphan.parquet",
    "an unfinished page": "reports/ds=2017-01-02/.index.html.1a2b3c4d.partial",
    "a page of the report": "reports/ds=2017-01-02/report.json",
    "an experiment's staged rows": "lake/models/experiments/anchors/rows/1.parquet",
}


@pytest.mark.parametrize("user", [USER, NUMBER])
def test_wherever_a_killed_job_can_leave_a_user_nothing_is_left(shop: Deployment, lake: Lake, user: str) -> None:
    root = Path(shop.paths.lake).parent
    for name in PLANTED.values():
        if name.startswith("reports"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(json.dumps({"user_id": user}), encoding="utf-8")
        else:
            rows_file(root / name, [user, "178"])
    half = root / "lake" / "models" / "ranker" / "ds=2017-01-02" / "rows" / "0.parquet"
    half.write_bytes((root / PLANTED["sorted rows of a training"]).read_bytes()[:50])
    put(lake, INTERACTIONS, event(user, DAY), event(user, date(2017, 1, 1)))
    refresh_event_days(lake, [date(2017, 1, 1), DAY])
    raws = ["x" * 40, json.dumps({"user_id": f"\t{user}", "at": "y"}), json.dumps({"line": f"{user}.0,i"})]
    faults = [("items", "g", n, "why", "", raw, DAY, None if n else user) for n, raw in enumerate(raws)]
    put(lake, QUARANTINE, *faults)
    put(lake, ERASURE_REQUESTS, (user, datetime(2017, 1, 2, tzinfo=UTC)))
    ahead = datetime(2040, 1, 1, tzinfo=UTC).timestamp()
    for path in (root / "lake" / "interactions").rglob("*"):  # written by a machine whose clock is ahead
        if path.is_file():
            os.utime(path, (ahead, ahead))
    named = {path for path, _ in places_of(shop, user)}
    for what, name in PLANTED.items():
        assert name in named, what
    assert str(half.relative_to(root)) in named  # nobody can say what it holds
    assert any(name.startswith("lake/interactions/_delta_log/") for name in named)  # smallest and largest values
    assert requested_users(shop) == [user]

    done = erase_users(shop, [user])
    assert done.tables["interactions"] == 2
    assert done.tables["quarantine"] == 3
    assert places_of(shop, user) == []
    for name in (*PLANTED.values(), str(half.relative_to(root))):
        assert not (root / name).exists() or user not in (root / name).read_text(encoding="utf-8"), name
    assert requested_users(shop) == []
    assert sorted(row["user_id"] for row in lake.read(INTERACTIONS).collect()) == ["17", "17", "178"]


def publish_two(shop: Deployment, users: Mapping[str, Sequence[float]]) -> LmdbStore:
    store, rows = LmdbStore(Path(shop.paths.online_store)), batch(users)
    for ds in (DAY - timedelta(days=1), DAY):
        scans: dict[str, Any] = {"batches": lambda: [rows], "sample": lambda: [rows.slice(0, 1)]}
        publish(store, marked_source(1.0, ds=ds, row_count=len(users), **scans), force=True)
    return store


READER = """
import sys
from pathlib import Path
from jobs.store.lmdb_store import LmdbStore
store = LmdbStore(Path(sys.argv[1]))
with store.pin() as pinned:
    print(pinned.manifest.row_count, flush=True)
    sys.stdin.readline()
    print(sum(value is not None for value in pinned.values([b"user0001", b"user0002"])), flush=True)
with store.pin() as pinned:
    print(pinned.manifest.row_count, flush=True)
"""


def test_the_bytes_of_a_deleted_row_leave_lmdb_and_readers_go_on(shop: Deployment) -> None:
    users = {f"user{n:04}": [float(n), 1.0] for n in range(500)}
    store = publish_two(shop, users)
    before = store.pointer()
    command = [sys.executable, "-c", READER, shop.paths.online_store]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "500\n"
        done = erase_users(shop, ["user0250", "user0499"])
        assert (done.versions, done.rewritten) == (4, 2)
        # A read that was under way goes on in the old file; the next one sees the new file.
        assert reader.communicate("\n", timeout=60)[0] == "2\n498\n"
    after = store.pointer()
    assert (after.sequence, before.kept & after.kept) == (before.sequence + 1, frozenset())
    content = b"".join(path.read_bytes() for path in Path(shop.paths.online_store).glob("*.mdb"))
    assert b"user0250" not in content
    assert b"user0499" not in content
    assert b"user0251" in content
    assert audit_store(store).row_count == 498
    assert rollback(store).manifest.ds == DAY - timedelta(days=1)
    assert erase_users(shop, ["user0250"]).rewritten == 0
    store.close()


def test_a_file_that_cannot_be_read_does_not_keep_a_user_live(
    shop: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = publish_two(shop, {"17": [1.0], "178": [2.0]})

    def broken(*_: object) -> None:
        raise OSError("disk error")

    monkeypatch.setattr("jobs.commands.users.erase.erase_from_tables", broken)
    with pytest.raises(OSError, match="disk error"):
        erase_users(shop, ["17"])
    assert SnapshotReader(store).get("17") is None
    assert SnapshotReader(store).get("178") is not None
    monkeypatch.undo()
    assert erase_users(shop, ["17"]).tables["interactions"] == 2  # the same call finishes
    assert places_of(shop, "17") == []
    store.close()


def test_no_run_is_stale_because_of_an_erasure(shop: Deployment, lake: Lake) -> None:
    def reasons() -> dict[date, str | None]:
        staleness = read_staleness(lake_reader(shop))
        return {row["ds"]: staleness.reason(shop, row) for row in lake_reader(shop).rows(RUNS)}

    now = read_staleness(lake_reader(shop))
    for ds, found in ((date(2017, 3, 10), None), (date(2017, 3, 11), "0" * 64)):
        run = {"ds": ds, "basis_version": BASIS, "job": LTE_JOB}
        lake.append_rows([(BASIS, found or now.fingerprint(shop, run), "code", ds, LTE_JOB)], RUNS)
    before = reasons()
    assert before[date(2017, 3, 10)] is None
    assert before[date(2017, 3, 11)] is not None
    erase_users(shop, ["17"])
    assert reasons() == before  # a run that was stale stays stale


def test_the_audit_names_nobody_and_lists_the_models_that_still_know(shop: Deployment, lake: Lake) -> None:
    folder = Path(shop.paths.lake) / "models" / "ranker" / "ds=2017-01-02"
    manifest = Manifest("ranker", {}, BASIS, "", "2017-01-02", "", "code")
    save_bundle(folder, manifest, {"w": torch.ones(2)}, ["i1"])
    erase_users(shop, ["17", "nobody"])
    rows = audit(shop)
    assert sorted(row["n_rows"] for row in rows) == [6, 6]  # over both users
    assert all(row["is_kept_out"] and "nobody" not in str(row) and "'17'" not in str(row) for row in rows)
    assert [name[:20] for name in rows[0]["still_know_the_user"]] == ["ranker ds=2017-01-02"]
    kept_out = erased_users(lake_reader(shop))
    assert kept_out is not None
    assert [kept_out.holds(user) for user in ("17", "17.0", "nobody", "178")] == [True, True, True, False]
    shutil.rmtree(folder)
    assert audit(shop)[0]["still_know_the_user"] == []
    assert let_back_in(shop, "17")
    assert not let_back_in(shop, "178")
    kept_out = erased_users(lake_reader(shop))
    assert kept_out is not None
    assert not kept_out.holds("17")


def test_a_user_of_the_table_of_requests_is_not_named_in_the_log_of_a_task(
    shop: Deployment, lake: Lake, deployment_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(lake, ERASURE_REQUESTS, (USER, datetime(2017, 1, 2, tzinfo=UTC)))
    dispatch(["erase", "typed", "--requests", "--readmit", "--config", str(deployment_file)])
    shown = capsys.readouterr()
    hashed = hashlib.sha256(USER.encode()).hexdigest()[:12]
    assert shown.out.splitlines() == ["'typed' was not kept out", f"'#{hashed}' was not kept out"]
    assert USER not in shown.err


def test_a_user_of_whom_nothing_was_known_is_told_so(shop: Deployment) -> None:
    done = erase_users(shop, ["nobody"])
    assert not done.is_known
    assert erasure_text(done, ["nobody"], is_plan=False).startswith("nothing was known of user nobody")


def test_maintenance_joins_small_files_and_keeps_what_a_rollback_needs(shop: Deployment, lake: Lake) -> None:
    version = lake.version(INTERACTIONS)
    before = sorted(map(tuple, lake.read(INTERACTIONS).collect()))
    planned = maintain(shop, is_dry_run=True)
    assert planned["interactions"] == {"files_compacted": 2, "files_deleted": 0}
    assert lake.version(INTERACTIONS) == version
    done = maintain(shop)
    assert done["interactions"] == {"files_compacted": 2, "files_deleted": 0}  # two files of DAY
    assert sorted(map(tuple, lake.read(INTERACTIONS).collect())) == before
    assert sorted(map(tuple, lake.read(INTERACTIONS, version=version).collect())) == before


def test_days_that_late_events_reached_are_told_apart(shop: Deployment) -> None:
    staleness = read_staleness(lake_reader(shop))
    assert staleness.late == {(date(2017, 1, 1), DAY)}


def test_a_deleted_row_leaves_the_append_only_file_of_redis(tmp_path: Path) -> None:
    port = free_port()
    with redis_server(tmp_path, port, "--appendonly", "yes"):
        store = RedisStore(f"redis://127.0.0.1:{port}/0")
        publish(store, marked_source(2.0, users=20))

        def on_disk() -> bytes:
            return b"".join(path.read_bytes() for path in (tmp_path / "appendonlydir").iterdir())

        assert b"u13" in on_disk()
        done = erase_online(store, ["u13"])
        assert (done.n_rows, done.note) == (1, "")
        assert b"u13" not in on_disk()
        assert b"u14" in on_disk()
        store.close()
