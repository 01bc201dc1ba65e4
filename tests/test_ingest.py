"""Landing files through the whole ingest, on the default engine."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from jobs.config import Deployment
from jobs.ingest import ingest
from jobs.sources import LandingError
from jobs.tables import Lake
from schemas import EVENT_DAYS, INGEST_LOG, INTERACTIONS, QUARANTINE

HEADER = "user_id,item_id,event_ts,interaction_type"
DS = date(2017, 1, 2)


def land(deployment: Deployment, ds: str, name: str, *lines: str) -> Path:
    path = Path(deployment.paths.landing) / f"interactions/ds={ds}/{name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join([HEADER, *lines]).encode("utf-8", "surrogateescape"))
    return path


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
    ingest(lake, deployment, DS)
    found = {row.line: row.reason for row in lake.read(QUARANTINE).collect()}
    reasons = (
        "null_user_id oversize_item_id bad_timestamp timestamp_before_earliest future_timestamp "
        "unknown_interaction_type wrong_encoding malformed_row duplicate_event"
    )
    assert found == dict(enumerate(reasons.split(), start=9))
    log = lake.read(INGEST_LOG).collect()[0]
    assert (log.rows_read, log.rows_accepted, log.rows_duplicate, log.rows_quarantined) == (17, 8, 1, 8)


def test_rerun_and_hole_filling_leave_the_same_tables(lake: Lake, deployment: Deployment) -> None:
    # The second file repeats a key of the first, and brings a late event of the day before.
    land(deployment, "2017-01-01", "a.csv", "u1,i1,2017-01-01T10:00:00,click")
    land(deployment, "2017-01-02", "b.csv", "u1,i1,2017-01-01T11:00:00+01:00,click", "u2,i1,2017-01-01,click")
    ingest(lake, deployment, DS)
    before = [rows_of(lake, table) for table in (INTERACTIONS, EVENT_DAYS, QUARANTINE, INGEST_LOG)]
    version = lake.version(INTERACTIONS)
    ingest(lake, deployment, DS)
    assert [rows_of(lake, table) for table in (INTERACTIONS, EVENT_DAYS, QUARANTINE, INGEST_LOG)] == before
    assert lake.version(INTERACTIONS) == version
    assert [(row[0], row[6]) for row in before[0]] == [("u1", date(2017, 1, 1)), ("u2", date(2017, 1, 2))]
    assert [(row[0], row[1]) for row in before[1]] == [(date(2017, 1, 1), 2)]


def test_missing_day_is_refused_and_too_many_bad_rows_write_nothing(lake: Lake, deployment: Deployment) -> None:
    path = land(deployment, "2017-01-02", "a.csv", "u1,i1,2017-01-01,click", "u,i,never,click", "u,i,no,click")
    with pytest.raises(LandingError, match=r"2 of 3 rows are bad.*bad_timestamp 2"):
        ingest(lake, deployment, DS)
    assert lake.version(INTERACTIONS) is None
    land(deployment, "2017-01-02", "a.csv", "u1,i1,2017-01-01,click")
    ingest(lake, deployment, DS)
    path.unlink()
    with pytest.raises(LandingError, match=r"ds=2017-01-02 is missing or empty"):
        ingest(lake, deployment, DS)
