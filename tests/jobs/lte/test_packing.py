from datetime import UTC, date, datetime, timedelta, timezone

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.basis.basis import known_items
from jobs.config.window import LteWindow
from jobs.lte.packing import collected, packed_interactions
from jobs.lte.windows import in_window, reach, window_ages, window_days
from lte_builders import DS, LONG_AGO, Event, put_basis, put_events, put_timed
from lte_models.averages.pooling import PoolingError, packed_keys
from schemas import INTERACTIONS, ITEM_EMBEDDINGS

LONG, SHORT, ALL = (LteWindow.parse(text) for text in ("365-60", "60-0", "365-0"))
VECTORS = {"a": [1.0, 0.0], "b": [0.0, 1.0]}


def codes_of(lake, window, ds=DS):
    items = known_items(lake.read(ITEM_EMBEDDINGS), ds)
    rows = packed_interactions(lake.read(INTERACTIONS), items, ds, window).collect()
    return sorted((row["user_id"], row["code"]) for row in rows)


def test_window_of_the_papers_305_days():
    first, after = window_days(date(2025, 12, 31), LONG)  # E = 2026-01-01
    assert (first, after) == (date(2025, 1, 1), date(2025, 11, 2))
    assert (after - first).days == len(window_ages(LONG)) == 305


def test_one_event_a_day_for_400_days(engine_lake):
    put_events(engine_lake, [Event("u", "a", age) for age in range(-1, 400)])  # -1: the day after ds
    found = {}
    for window in (LONG, SHORT, ALL):
        days = engine_lake.read(INTERACTIONS).where(in_window(DS, window)).select("event_date").collect()
        found[window] = {(DS - row["event_date"]).days for row in days}
        assert found[window] == set(window_ages(window))
    assert not found[LONG] & found[SHORT]
    assert found[LONG] | found[SHORT] == found[ALL] == set(range(365))


def test_time_zones_meet_in_utc_days(engine_lake):
    # All within a second of midnight UTC between ages 60 and 59, written by clocks of other zones.
    midnight = datetime(DS.year, DS.month, DS.day, tzinfo=UTC) - timedelta(days=59)
    east, west = timezone(timedelta(hours=14)), timezone(timedelta(hours=-11))
    put_basis(engine_lake, VECTORS)
    put_timed(
        engine_lake,
        [
            ("long", "a", (midnight - timedelta(microseconds=10)).astimezone(east)),
            ("short", "a", midnight.astimezone(west)),
            ("long", "b", (midnight - timedelta(seconds=1)).astimezone(west)),
        ],
    )
    assert {user for user, _ in codes_of(engine_lake, LONG)} == {"long"}
    assert {user for user, _ in codes_of(engine_lake, SHORT)} == {"short"}


def test_codes_are_packed_keys_without_the_user(engine_lake):
    # b is known from ds on only; c has no vector; a was bought twice on one day: two rows.
    put_basis(engine_lake, VECTORS, first_ds={"b": DS})
    put_events(engine_lake, [Event("u", "a", 3), Event("u", "a", 3), Event("u", "b", 0), Event("v", "c", 7)])
    expected = [("u", 0, 3), ("u", 0, 3), ("u", 1, 0), ("v", -1, 7)]
    pack = lambda item, age: int(packed_keys(*(pa.array([x]).to_numpy() for x in (0, item, age)))[0])  # noqa: E731
    assert codes_of(engine_lake, ALL) == sorted((user, pack(item, age)) for user, item, age in expected)
    earlier = DS - timedelta(days=1)  # b is not known yet
    assert {row["item_id"] for row in known_items(engine_lake.read(ITEM_EMBEDDINGS), earlier).collect()} == {"a"}
    assert earlier > LONG_AGO


def test_reach_covers_all_windows_and_offsets():
    assert reach([LONG, LteWindow(700, 500)]) == LteWindow(700, 0)
    assert reach([LONG], offset_days=10) == LteWindow(375, 0)
    with pytest.raises(PoolingError, match="8365 days"):
        reach([LONG], offset_days=8000)


ROWS = st.lists(st.tuples(st.sampled_from(["", "a", "b", "ü", "zz"]), st.integers(0, 2**40 - 1)), max_size=30)


@given(ROWS, st.integers(1, 7))
def test_collected_sorts_users_and_codes_whatever_the_batches(rows, size):
    table = pa.table(
        {"user_id": pa.array([r[0] for r in rows], pa.string()), "code": pa.array([r[1] for r in rows], pa.int64())}
    )
    users, histories = collected(table.to_batches(max_chunksize=size))
    assert users.to_pylist() == sorted({user for user, _ in rows}, key=lambda user: user.encode())
    found = [(users[int(key >> 40)].as_py(), int(key & (2**40 - 1))) for key in histories.keys]
    assert found == sorted(rows, key=lambda row: (row[0].encode(), row[1]))


def test_collected_beyond_one_flush(monkeypatch):
    monkeypatch.setattr("jobs.lte.packing._FLUSH_ROWS", 3)
    rows = [("b", 5), ("a", 9), ("c", 1), ("a", 2), ("b", 5), ("d", 0), ("a", 1)]
    batches = [pa.record_batch({"user_id": [user], "code": pa.array([code])}) for user, code in rows]
    users, histories = collected(batches)
    assert users.to_pylist() == ["a", "b", "c", "d"]
    assert [int(key & (2**40 - 1)) for key in histories.keys] == [1, 2, 9, 5, 5, 1, 0]
    assert collected([])[1].n_users == 0
