"""What an operator does by hand, on real tables: a user who asks to be forgotten is nowhere any more."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql.types import StringType

from jobs.commands.erase import USER_TABLES, erase_user
from jobs.commands.maintain import maintain
from jobs.config.sections import Deployment
from jobs.lake.lake import Lake
from jobs.lake.reader import lake_reader
from jobs.landing.event_days import refresh_event_days
from jobs.lte.inputs import read_staleness
from lte_builders import BASIS, schema_of
from schemas import EVENT_DAYS, GATE_RESULTS, INTERACTIONS, QUARANTINE, TABLES, USER_LTE

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
    copy = Path(deployment.paths.lake) / "models" / "ranker" / "rows" / "0.parquet"
    copy.parent.mkdir(parents=True)
    pq.write_table(pa.table({"user_id": ["17", "178"]}), copy)
    return deployment


def everywhere(deployment: Deployment) -> bytes:
    """All that is on disk under the deployment, Parquet files decoded."""
    root = Path(deployment.paths.lake).parent
    files = [path for path in root.rglob("*") if path.is_file() and "online" not in path.name]
    texts = [str(pq.read_table(p).to_pylist()).encode() if p.suffix == ".parquet" else p.read_bytes() for p in files]
    return b"\n".join(texts)


def test_every_table_with_users_is_erased_from() -> None:
    assert {table.name for table in USER_TABLES} == {n for n, t in TABLES.items() if "user_id" in t.schema.names}
    assert len(USER_TABLES) >= 5
    for table in TABLES.values():  # text in which a user can stand is looked through
        texts = [f.name for f in table.schema if isinstance(f.dataType, StringType) and f.name in ("raw", "sample")]
        assert not texts or table in (QUARANTINE, GATE_RESULTS)


def test_an_erased_user_is_nowhere_and_others_stay(shop: Deployment, lake: Lake) -> None:
    assert b'17"' in everywhere(shop)
    done = erase_user(shop, "17")
    assert {name: n for name, n in done["tables"].items() if n} == {
        "interactions": 2,
        "user_lte": 1,
        "quarantine": 2,
        "gate_results": 1,
    }
    assert (done["files"], done["versions"]) == (2, 0)
    left = everywhere(shop)
    assert [form for form in (b"'17'", b'"17"', b"'17,i", b'"17,i', b'user_id": 17') if form in left] == []
    assert [row["user_id"] for row in lake.read(INTERACTIONS).collect()] == ["178"]
    raws = sorted(row["raw"] for row in lake.read(QUARANTINE).collect())
    assert raws == ["erased", "erased", '{"user_id": "178", "at": "10:17:00"}']
    page = (Path(shop.paths.data_docs) / "a" / "index.html").read_text()
    assert page == '<td>erased</td><td>178</td><script>[17, 18]</script>"user_id": erased}'
    # Days are counted again: the first holds nothing any more.
    assert [(row["event_date"], row["n_events"]) for row in lake.read(EVENT_DAYS).collect()] == [(DAY, 1)]
    again = erase_user(shop, "17")
    assert not any(again["tables"].values())
    put(lake, INTERACTIONS, event("9", DAY))  # the table goes on living
    assert lake.read(INTERACTIONS).count() == 2


def test_maintenance_joins_small_files_and_keeps_what_a_rollback_needs(shop: Deployment, lake: Lake) -> None:
    version = lake.version(INTERACTIONS)
    before = sorted(map(tuple, lake.read(INTERACTIONS).collect()))
    done = maintain(shop)
    assert done["interactions"] == {"files_compacted": 2, "files_deleted": 0}  # two files of DAY
    assert sorted(map(tuple, lake.read(INTERACTIONS).collect())) == before
    assert sorted(map(tuple, lake.read(INTERACTIONS, version=version).collect())) == before


def test_days_that_late_events_reached_are_told_apart(shop: Deployment) -> None:
    staleness = read_staleness(lake_reader(shop))
    assert staleness.late == {(date(2017, 1, 1), DAY)}
