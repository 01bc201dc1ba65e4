"""Landing files through the whole ingest: every row accepted, duplicate or quarantined, once, and again the same."""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from deployments import CONFIG
from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment
from jobs.ingest import ingest
from jobs.lake.day import Day
from jobs.lake.lake import Lake
from jobs.lake.reader import lake_reader
from jobs.landing.erased import user_hash
from jobs.landing.files import LandingError, LandingFile, landing_files
from jobs.lte.inputs import read_staleness
from schemas import ERASURES, EVENT_DAYS, INGEST_LOG, INTERACTIONS, ITEMS, METRICS, QUARANTINE, Table

HEADER = "user_id,item_id,event_ts,interaction_type"
DS = date(2017, 1, 2)


def land(deployment: Deployment, ds: str, name: str, *lines: str) -> Path:
    path = Path(deployment.paths.landing) / f"interactions/ds={ds}/{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join([HEADER, *lines]).encode("utf-8", "surrogateescape"))
    return path


def land_text(deployment: Deployment, target: str, name: str, text: str) -> None:
    path = Path(deployment.paths.landing) / f"{target}/ds={DS}/{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def event(user: str, item: str, moment: str, kind: str = "click") -> dict[str, str]:
    return {"user_id": user, "item_id": item, "event_ts": moment, "interaction_type": kind}


def rows_of(lake: Lake, table: object) -> list[tuple[object, ...]]:
    return sorted(map(tuple, lake.read(table).collect()), key=str)  # type: ignore[arg-type]


def test_bad_rows_have_reasons_and_lines_and_counts_are_conserved(lake: Lake, deployment: Deployment) -> None:
    good = [f"u{i},i1,2017-01-02T10:00:00Z,click" for i in range(8)]
    bad = [
        ",i1,2017-01-02,click",
        f"u,{'x' * 129},2017-01-02,click",
        "u,i,2017-02-30,click",
        "u,i,1999-01-01,click",
        "u,i,2017-01-03,click",  # the landing day ends as it begins
        "u,i,2017-01-02,stare",
        "\udcff,i,2017-01-02,click",
        "u,i",
    ]
    land(deployment, "2017-01-02", "a.csv", *good, *bad, good[0])
    ingest(Day(lake, deployment, DS))
    found = {row.line: row.reason for row in lake.read(QUARANTINE).collect()}
    reasons = (
        "null_user_id oversize_item_id bad_timestamp timestamp_before_earliest future_timestamp "
        "unknown_interaction_type wrong_encoding malformed_row duplicate_event"
    )
    assert found == dict(enumerate(reasons.split(), start=9))
    log = lake.read(INGEST_LOG).collect()[0]
    assert (log.rows_read, log.rows_accepted, log.rows_duplicate, log.rows_quarantined) == (17, 8, 1, 8)


def test_a_late_landing_does_not_bring_an_erased_user_back(lake: Lake, deployment: Deployment) -> None:
    salt = "00112233445566778899aabbccddeeff"
    moment = datetime(2017, 1, 1, tzinfo=UTC)
    erased = [(user_hash(salt, user), salt, moment, 1, 0, 0, user == "17", "[]") for user in ("17", "18")]
    lake.replace_rows(erased, ERASURES, {"salt": salt})
    events = [f"{user},i1,2017-01-02T10:00:00Z,click" for user in ("17", "18", "178", "17.0", "\t17")]
    land(deployment, "2017-01-02", "a.csv", *events, "17,i1,no day,click")
    ingest(Day(lake, deployment, DS))  # four of six rows are kept out, and are not bad: max_bad_share is 0.5
    assert sorted(row.user_id for row in lake.read(INTERACTIONS).collect()) == ["178", "18"]
    kept = [(row.reason, row.detail, row.raw, row.found_user_id) for row in lake.read(QUARANTINE).collect()]
    assert kept == [("erased_user", "", "erased", None)] * 4


def test_rerun_and_hole_filling_leave_the_same_tables(lake: Lake, deployment: Deployment) -> None:
    # The second file repeats a key of the first, and brings a late event of the day before.
    land(deployment, "2017-01-01", "a.csv", "u1,i1,2017-01-01T10:00:00,click")
    land(deployment, "2017-01-02", "b.csv", "u1,i1,2017-01-01T11:00:00+01:00,click", "u2,i1,2017-01-01,click")
    ingest(Day(lake, deployment, DS))
    before = [rows_of(lake, table) for table in (INTERACTIONS, EVENT_DAYS, QUARANTINE, INGEST_LOG)]
    version = lake.version(INTERACTIONS)
    ingest(Day(lake, deployment, DS))
    assert [rows_of(lake, table) for table in (INTERACTIONS, EVENT_DAYS, QUARANTINE, INGEST_LOG)] == before
    assert lake.version(INTERACTIONS) == version
    assert [(row[0], row[6]) for row in before[0]] == [("u1", date(2017, 1, 1)), ("u2", date(2017, 1, 2))]
    assert [(row[0], row[1]) for row in before[1]] == [(date(2017, 1, 1), 2)]


def test_missing_day_is_refused_and_too_many_bad_rows_write_nothing(lake: Lake, deployment: Deployment) -> None:
    path = land(deployment, "2017-01-02", "a.csv", "u1,i1,2017-01-01,click", "u,i,never,click", "u,i,no,click")
    with pytest.raises(LandingError, match=r"2 of 3 rows are bad.*bad_timestamp 2"):
        ingest(Day(lake, deployment, DS))
    assert lake.version(INTERACTIONS) is None
    land(deployment, "2017-01-02", "a.csv", "u1,i1,2017-01-01,click")
    ingest(Day(lake, deployment, DS))
    path.unlink()
    with pytest.raises(LandingError, match=r"ds=2017-01-02 is missing or empty"):
        ingest(Day(lake, deployment, DS))


TABLES_OF_INGEST = (INTERACTIONS, ITEMS, EVENT_DAYS, QUARANTINE, INGEST_LOG)


def everything(lake: Lake) -> dict[str, list[tuple[object, ...]]]:
    metrics = [row for row in rows_of(lake, METRICS) if row[4] == "ingest"]
    return {table.name: rows_of(lake, table) for table in TABLES_OF_INGEST} | {"metrics": metrics}


def require_conservation(lake: Lake) -> None:
    """What the log says adds up, and is what the tables hold."""
    log = lake.read(INGEST_LOG, where={"target": "interactions"}).collect()
    for row in log:
        assert row.rows_read == row.rows_accepted + row.rows_duplicate + row.rows_quarantined
    assert sum(row.rows_accepted for row in log) == lake.read(INTERACTIONS).count()
    refused = sum(row.rows_duplicate + row.rows_quarantined for row in log)
    assert refused == lake.read(QUARANTINE, where={"target": "interactions"}).count()
    held: dict[object, int] = {}
    for event in lake.read(INTERACTIONS).collect():
        assert event.event_date == event.event_ts.date()  # late events land in their own day
        held[event.event_date] = held.get(event.event_date, 0) + 1
    assert {row.event_date: row.n_events for row in lake.read(EVENT_DAYS).collect()} == held


def test_both_engines_bring_the_same_rows_and_overlapping_files_bring_each_once(
    engine_lake: Lake, deployment: Deployment
) -> None:
    hour = "2017-01-02T10:00:00Z"
    land(deployment, "2017-01-02", "a.csv", f"u1,i1,{hour},click", f"u2,i1,{hour},click", f"u1,i1,{hour},click")
    overlap = [event("u2", "i1", hour), event("u1", "i1", hour, "purchase"), event("u3", "i1", hour)]
    land_text(deployment, "interactions", "b.jsonl", "".join(json.dumps(row) + "\n" for row in overlap))
    land_text(deployment, "items", "a.jsonl", '{"item_id": "i1", "title": "hat"}\n{"item_id": "i1", "title": "cap"}\n')
    ingest(Day(engine_lake, deployment, DS))
    keys = sorted((row.user_id, row.interaction_type) for row in engine_lake.read(INTERACTIONS).collect())
    assert keys == [("u1", "click"), ("u1", "purchase"), ("u2", "click"), ("u3", "click")]
    found = [(row.source_file[-7:], row.line, row.reason, row.detail) for row in engine_lake.read(QUARANTINE).collect()]
    assert sorted(found) == [
        ("2/a.csv", 3, "duplicate_event", "same key as interactions/ds=2017-01-02/a.csv:1"),
        ("a.jsonl", 2, "duplicate_item", "same key as items/ds=2017-01-02/a.jsonl:1"),
        ("b.jsonl", 1, "duplicate_event", "same key as interactions/ds=2017-01-02/a.csv:2"),
    ]
    assert [row.title for row in engine_lake.read(ITEMS).collect()] == ["hat"]


def test_the_same_file_under_another_name_brings_nothing_twice(lake: Lake, deployment: Deployment) -> None:
    lines = ["u1,i1,2017-01-02T10:00:00Z,click", "u2,i1,2017-01-02T10:00:00Z,click"]
    land(deployment, "2017-01-02", "a.csv", *lines)
    ingest(Day(lake, deployment, DS))
    before = rows_of(lake, INTERACTIONS)
    land(deployment, "2017-01-02", "copy.csv", *lines)
    land(deployment, "2017-01-03", "again.csv", *lines)
    ingest(Day(lake, deployment, DS + timedelta(days=1)))  # the copy is a hole of the day before
    assert rows_of(lake, INTERACTIONS) == before
    assert lake.read(QUARANTINE, where={"reason": "duplicate_event"}).count() == 4
    require_conservation(lake)


def test_late_events_change_their_own_day_and_are_told_apart(lake: Lake, deployment: Deployment) -> None:
    land(deployment, "2017-01-01", "a.csv", "u1,i1,2017-01-01T10:00:00Z,click")
    ingest(Day(lake, deployment, date(2017, 1, 1)))
    [before] = lake.read(EVENT_DAYS).collect()
    land(deployment, "2017-01-02", "a.csv", "u2,i1,2017-01-01T11:00:00Z,click", "u2,i1,2017-01-02T11:00:00Z,click")
    ingest(Day(lake, deployment, DS))
    days = {row.event_date: row for row in lake.read(EVENT_DAYS).collect()}
    assert {day: row.n_events for day, row in days.items()} == {date(2017, 1, 1): 2, DS: 1}
    assert days[date(2017, 1, 1)].checksum != before.checksum  # what an LTE of that day was computed from is no more
    assert read_staleness(lake_reader(deployment)).late == {(date(2017, 1, 1), DS)}
    require_conservation(lake)


def test_an_empty_day_is_remembered_and_filled_when_its_files_come(
    lake: Lake, deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(deployment.paths.landing, "interactions", "ds=2017-01-02").mkdir(parents=True)
    ingest(Day(lake, deployment, DS))
    assert "WARNING: no files in landing interactions/ds=2017-01-02" in capsys.readouterr().err
    assert [(row.source_file, row.rows_read) for row in lake.read(INGEST_LOG).collect()] == [("", 0)]
    land(deployment, "2017-01-02", "empty.csv")
    ingest(Day(lake, deployment, DS))
    assert [(row.source_file[-9:], row.rows_read) for row in lake.read(INGEST_LOG).collect()] == [("empty.csv", 0)]
    land(deployment, "2017-01-02", "late.csv", "u1,i1,2017-01-02T10:00:00Z,click")
    ingest(Day(lake, deployment, date(2017, 1, 3)))
    assert lake.read(INTERACTIONS).count() == 1


def test_files_in_the_wrong_place_are_said_once(
    lake: Lake, deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    land(deployment, "2017-01-02", "a.csv", "u1,i1,2017-01-02T10:00:00Z,click")
    land(deployment, "2017-01-02/hour=3", "b.csv", "u2,i1,2017-01-02T10:00:00Z,click")
    land(deployment, "2017-01-02/hour=4", "c.csv", "u3,i1,2017-01-02T10:00:00Z,click")
    ingest(Day(lake, deployment, DS))
    [warning] = [line for line in capsys.readouterr().err.splitlines() if "ignored" in line]
    assert warning == (
        "ingest: WARNING: landing interactions: 2 files ignored, not at interactions/ds=YYYY-MM-DD/FILE; "
        "first interactions/ds=2017-01-02/hour=3/b.csv"
    )
    assert [row.user_id for row in lake.read(INTERACTIONS).collect()] == ["u1"]


def test_a_torn_file_is_one_bad_row_and_none_of_its_rows_is_taken(lake: Lake, deployment: Deployment) -> None:
    land(deployment, "2017-01-02", "good.csv", *[f"u{n},i1,2017-01-02T10:00:00Z,click" for n in range(9)])
    path = land(deployment, "2017-01-02", "torn.csv.gz")
    whole = gzip.compress("\n".join([HEADER, *[f"v{n},i{n},2017-01-02T10:00:00Z,click" for n in range(3000)]]).encode())
    path.write_bytes(whole[:-20])
    ingest(Day(lake, deployment, DS))
    assert {row.user_id[0] for row in lake.read(INTERACTIONS).collect()} == {"u"}
    [bad] = lake.read(QUARANTINE).collect()
    assert (bad.source_file, bad.line, bad.reason) == ("interactions/ds=2017-01-02/torn.csv.gz", 0, "unreadable_file")
    path.write_bytes(whole)  # delivered again, whole: the day is taken again
    ingest(Day(lake, deployment, DS))
    assert (lake.read(INTERACTIONS).count(), lake.read(QUARANTINE).count()) == (3009, 0)
    careful = replace(deployment, interactions=replace(deployment.interactions, max_bad_share=0.4))
    path.write_bytes(whole[:-20])
    with pytest.raises(LandingError, match=r"1 of 2 files cannot be read: a share of 0\.5000"):
        ingest(Day(lake, careful, DS))
    assert lake.read(INTERACTIONS).count() == 3009


REFUSED_WHOLE = {  # a header as programs write it, without knowing
    "utf-16": (HEADER.encode("utf-16"), "wrong_encoding 1"),
    "latin-1": (f"{HEADER},größe".encode("latin-1"), "wrong_encoding 1"),
    "open quote": (f'"{HEADER}'.encode(), "malformed_row 1"),
    "long": (f"{HEADER},{'x' * (1 << 20)}".encode(), "malformed_row 1"),
}


@pytest.mark.parametrize("header", REFUSED_WHOLE)
def test_a_file_that_is_refused_whole_is_a_lost_file_whatever_the_reason(
    header: str, lake: Lake, deployment: Deployment
) -> None:
    content, reason = REFUSED_WHOLE[header]
    land(deployment, "2017-01-02", "good.csv", *[f"u{n},i1,2017-01-02T10:00:00Z,click" for n in range(200)])
    land(deployment, "2017-01-02", "other.csv").write_bytes(content)
    careful = replace(deployment, interactions=replace(deployment.interactions, max_bad_share=0.01))
    # One bad row of 201 would pass: nobody knows how many rows the other file held.
    with pytest.raises(LandingError, match=rf"1 of 201 rows are bad, 1 of 2 files .*{reason}.*nothing was written"):
        ingest(Day(lake, careful, DS))
    assert [lake.version(table) for table in TABLES_OF_INGEST] == [None] * len(TABLES_OF_INGEST)


def test_a_file_that_vanishes_while_it_is_read_is_named_and_nothing_is_written(
    lake: Lake, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(deployment, "2017-01-02", "a.csv", "u1,i1,2017-01-02T10:00:00Z,click")
    listed = landing_files

    def with_a_gone_one(landing: str, target: str) -> list[LandingFile]:
        gone = [LandingFile(DS, target, f"{target}/ds={DS}/gone.csv", 9)] if target == "interactions" else []
        return listed(landing, target) + gone

    monkeypatch.setattr("jobs.ingest.landing_files", with_a_gone_one)
    with pytest.raises(
        LandingError, match=r"landing interactions/ds=2017-01-02/gone\.csv, ds=2017-01-02: gone .*nothing"
    ):
        ingest(Day(lake, deployment, DS))
    assert lake.version(INTERACTIONS) is None
    assert list((Path(lake.root) / "_staging" / "ingest").glob("*")) == []


@pytest.mark.parametrize("table", [QUARANTINE, EVENT_DAYS, INTERACTIONS, INGEST_LOG, METRICS], ids=lambda t: t.name)
def test_a_crash_before_any_write_is_repaired_by_the_next_run(
    table: Table, lake: Lake, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    land(deployment, "2017-01-01", "a.csv", "u1,i1,2017-01-01T10:00:00Z,click", "u1,i1,2017-01-01T10:00:00Z,click")
    land(
        deployment, "2017-01-02", "b.csv", "u2,i1,2017-01-01T10:00:00Z,click", "u,i,no,click", "u3,i1,2017-01-02,click"
    )
    clean = Lake(lake.spark, f"{lake.root}_clean")
    ingest(Day(clean, deployment, DS))
    write = Lake.replace

    def dying(self: Lake, df: DataFrame, written: Table, *rest: Any, **more: Any) -> int:
        if written is table:
            raise KeyboardInterrupt
        return write(self, df, written, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Lake, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            ingest(Day(lake, deployment, DS))
    staging = Path(lake.root) / "_staging" / "ingest"
    (staging / "2017-01-01-killed").mkdir(parents=True)
    (staging / "2017-01-01-killed" / "rows.parquet").write_bytes(b"what a run left that was killed")
    ingest(Day(lake, deployment, DS))
    assert everything(lake) == everything(clean)
    assert list(staging.glob("*")) == []


def errors(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_entries_that_are_no_files_are_named_and_the_rest_of_the_day_goes_on(
    lake: Lake, deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    good = land(deployment, "2017-01-02", "a.csv", "u1,i1,2017-01-02T10:00:00Z,click")
    for name in ("a2.csv", "a3.csv", "a4.csv"):  # so that two of five files stay below max_bad_share
        land(deployment, "2017-01-02", name, "u2,i1,2017-01-02T10:00:00Z,click")
    (good.parent / "gone.csv").symlink_to("/nonexistent/b.csv")
    os.mkfifo(good.parent / "pipe.csv")
    Path(os.fsdecode(os.fsencode(good.parent) + b"/caf\xe9.csv")).write_text(HEADER)
    ingest(Day(lake, deployment, DS))
    said = errors(capsys)
    for name, what in {"gone.csv": "a link that leads", "pipe.csv": "a pipe", "caf\\xe9.csv": "no UTF-8"}.items():
        assert any(name in line and what in line for line in said.splitlines()), (name, said)
    found = {row.source_file.rpartition("/")[2]: row.reason for row in lake.read(QUARANTINE).collect() if not row.line}
    assert found == dict.fromkeys(("gone.csv", "pipe.csv", "caf\\xe9.csv"), "unreadable_file")
    assert lake.read(INTERACTIONS).count() == 2
    careful = replace(deployment, interactions=replace(deployment.interactions, max_bad_share=0.01))
    with pytest.raises(LandingError, match=r"3 of 7 files cannot be read.*nothing was written"):
        ingest(Day(lake, careful, DS))


def test_a_day_that_is_a_link_to_nowhere_stops_the_run(lake: Lake, deployment: Deployment) -> None:
    land(deployment, "2017-01-02", "a.csv", "u1,i1,2017-01-02T10:00:00Z,click")
    (Path(deployment.paths.landing) / "interactions/ds=2017-01-01").symlink_to("/nonexistent/day")
    with pytest.raises(LandingError, match=r"ds=2017-01-01: .*1 of 1 files cannot be read.*nothing was written"):
        ingest(Day(lake, deployment, DS))
    assert lake.version(INTERACTIONS) is None


def test_a_file_that_grew_after_it_was_taken_is_taken_anew(
    lake: Lake, deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = "u1,i1,2017-01-01T10:00:00Z,click", "u2,i1,2017-01-01T11:00:00Z,click"
    before = land(deployment, "2017-01-01", "a.csv", first).stat().st_size
    ingest(Day(lake, deployment, date(2017, 1, 1)))
    after = land(deployment, "2017-01-01", "a.csv", first, second).stat().st_size
    land(deployment, "2017-01-02", "b.csv", "u1,i1,2017-01-02T10:00:00Z,click")
    errors(capsys)
    ingest(Day(lake, deployment, DS))
    assert (
        f"WARNING: interactions/ds=2017-01-01/a.csv had {before} bytes when it was ingested and has {after} now"
        in errors(capsys)
    )
    assert sorted(row.user_id for row in lake.read(INTERACTIONS).collect()) == ["u1", "u1", "u2"]
    ingest(Day(lake, deployment, DS))  # the size is known now
    assert "bytes when it was ingested" not in errors(capsys)


def test_what_is_missing_or_misnamed_is_said(
    lake: Lake, deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    landing = Path(deployment.paths.landing)
    with pytest.raises(LandingError, match=r"paths\.landing: expected a folder, got .*landing, which does not exist"):
        ingest(Day(lake, deployment, DS))
    (landing / "Interactions").mkdir(parents=True)
    with pytest.raises(LandingError, match="expected a folder 'interactions', got 'Interactions'; rename"):
        ingest(Day(lake, deployment, DS))
    land(deployment, "2017-01-02", "a.csv", "u1,17.0,2017-01-02T10:00:00Z,click", "u1,17,2017-01-01T10:00:00Z,click")
    ingest(Day(lake, deployment, DS))
    said = errors(capsys)
    assert "WARNING: landing Interactions/ is ignored: expected interactions/, got Interactions/" in said
    assert "WARNING: interactions/ds=2017-01-02/a.csv: 1 rows have an id like 17.0" in said
    assert (
        "WARNING: no catalogue has landed, so that every event counts as unknown; land it in items/ds=2017-01-01"
        in said
    )
    land_text(deployment, "items", "a.jsonl", '{"item_id": "17", "title": "hat"}\n')
    ingest(Day(lake, deployment, DS))
    said = errors(capsys)
    assert "WARNING: the catalogue first landed on 2017-01-02, after the first event (2017-01-01)" in said
    assert "land the catalogue that belongs to these events in items/ds=2017-01-01" in said
    metrics = {row.metric: row.value for row in lake.read(METRICS).collect() if row.label == ""}
    assert (metrics["n_events_of_day"], metrics["n_days_since_event"]) == (1.0, 0.0)


USERS, ITEM_IDS = ["u1", "u2", "ü 3"], ["i1", "i2"]
LINE = st.builds(
    lambda user, item, day, hour, kind: f"{user},{item},2017-01-0{day}T{hour:02}:00:00Z,{kind}",
    st.sampled_from([*USERS, "", "x" * 129]),
    st.sampled_from(ITEM_IDS),
    st.integers(1, 3),
    st.integers(22, 25),  # 24 and 25 are no hours
    st.sampled_from(["click", "click", "stare"]),
)


def oracle(days: dict[date, dict[str, list[str]]]) -> tuple[set[tuple[str, ...]], int, int]:
    """Keys that are kept, bad and duplicate lines, one line after another, in no hurry."""
    kept: set[tuple[str, ...]] = set()
    n_bad = n_duplicate = 0
    for day, files in sorted(days.items()):
        for line in (line for _, lines in sorted(files.items()) for line in lines):
            user, item, moment, kind = line.split(",")
            is_bad = not 1 <= len(user) <= 128 or kind != "click" or moment[11:13] in ("24", "25")
            is_bad = is_bad or date.fromisoformat(moment[:10]) > day
            key = (user, item, moment, kind)
            n_bad += is_bad
            n_duplicate += not is_bad and key in kept
            kept |= set() if is_bad else {key}
    return kept, n_bad, n_duplicate


@pytest.mark.slow
@given(first=st.lists(LINE, max_size=12), second=st.lists(LINE, max_size=12), third=st.lists(LINE, max_size=12))
@settings(max_examples=6)
def test_any_mix_of_days_and_files_conserves_rows_and_is_the_same_again(
    sail: SparkSession,
    tmp_path_factory: pytest.TempPathFactory,
    first: list[str],
    second: list[str],
    third: list[str],
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    (folder / "deployment.toml").write_text(CONFIG.replace("max_bad_share = 0.5", "max_bad_share = 1.0"))
    deployment, lake = load_deployment(folder / "deployment.toml", environ={}), Lake(sail, str(folder / "lake"))
    one, two = date(2017, 1, 1), date(2017, 1, 2)
    days = {one: {"a.csv": first}, two: {"a.csv": second, "b.csv": third}}
    for day, files in days.items():
        for name, lines in files.items():
            land(deployment, str(day), name, *lines)
    ingest(Day(lake, deployment, two))
    kept, n_bad, n_duplicate = oracle(days)
    found = {
        (row.user_id, row.item_id, f"{row.event_ts:%Y-%m-%dT%H:%M:%SZ}", row.interaction_type)
        for row in lake.read(INTERACTIONS).collect()
    }
    assert found == kept
    reasons = [row.reason for row in lake.read(QUARANTINE).collect()]
    assert (len(reasons), reasons.count("duplicate_event")) == (n_bad + n_duplicate, n_duplicate)
    require_conservation(lake)
    once = everything(lake)
    ingest(Day(lake, deployment, two))
    assert everything(lake) == once


def test_the_log_of_an_ingest_names_no_user(
    lake: Lake, deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [f"u{i},i1,2017-01-02T10:00:00Z,click" for i in range(8)]
    land(deployment, "2017-01-02", "a.csv", *good, "secret1,i,no day,click", " secret2,i,2017-01-02,click", "secret3,i")
    ingest(Day(lake, deployment, DS))
    said = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line and " line " in line]
    assert [line.split(" line ")[1] for line in said] == [
        '9: bad_timestamp (event_ts = "no day")',
        "10: malformed_user_id; table quarantine has the row",
        "11: malformed_row (2 fields where the header has 4)",
    ]
