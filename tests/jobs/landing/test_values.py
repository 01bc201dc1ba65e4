"""Ids, moments and numbers that look like others: taken exactly, or not at all, whatever stands beside them."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.landing.checks import Checked, RowRules, id_check, parse_timestamps, price_check, timestamp_check
from jobs.landing.files import LandingFile
from jobs.landing.rows import TALLY_LINE, file_batches

DS = date(2024, 3, 1)
USER = id_check("user_id")
INVISIBLE = (
    "\u200b\u200d\u00ad\u200e\u202e\u2060\ufeff\u3164\u115f\uffa0\u034f\u2800\ufe0f\u180e\U000e0041\ufffe\x7f\x85"
)


def outcome(checked: Checked) -> list[tuple[Any, Any]]:
    return list(zip(checked.values.to_pylist(), checked.reasons.to_pylist(), strict=True))


@pytest.mark.parametrize("hidden", INVISIBLE, ids=ascii)
def test_an_id_with_a_character_that_nobody_sees_is_malformed_and_one_of_nothing_else_is_null(hidden: str) -> None:
    ids = pa.array([f"17{hidden}", f"{hidden}17", f"1{hidden}7", hidden, f" {hidden} ", "17"])
    assert outcome(USER(ids))[3:] == [(None, "null_user_id"), (None, "null_user_id"), ("17", None)]
    assert [reason for _, reason in outcome(USER(ids))[:3]] == ["malformed_user_id"] * 3
    session = id_check("session_id", is_required=False)(ids)
    assert [reason for _, reason in outcome(session)] == [*["malformed_session_id"] * 3, None, None, None]
    assert session.values.to_pylist()[3:5] == [None, None]


def test_what_can_be_seen_stays_in_an_id() -> None:
    for text in ("ü 3", "a\u0301", "\U0001f600", "\ua500", "-_/.", "\u7530\u3000\u4e2d", "\u0627\u0644"):
        assert outcome(USER(pa.array([text]))) == [(text, None)]
    assert outcome(USER(pa.array(["a\u00a0b"])))[0][1] == "malformed_user_id"  # looks like "a b"


FLOATS = [(pa.float16(), 2**11), (pa.float32(), 2**24), (pa.float64(), 2**53)]


@pytest.mark.parametrize(("kind", "limit"), FLOATS, ids=str)
def test_a_float_is_an_id_as_far_as_it_is_one_number_only(kind: pa.DataType, limit: int) -> None:
    # limit + 1 is rounded to limit, so that limit stands for two users.
    values = pa.array(
        np.array([limit - 1, 1 - limit, limit, -limit, 1.5, np.nan, np.inf], kind.to_pandas_dtype()), kind
    )
    expected = [
        (str(limit - 1), None),
        (str(1 - limit), None),
        *[(None, "wrong_type")] * 3,
        (None, "null_user_id"),
        (None, "wrong_type"),
    ]
    assert outcome(USER(values)) == expected
    order = pa.array(range(len(values)), pa.int32())
    assert outcome(USER(pa.DictionaryArray.from_arrays(order, values))) == expected
    assert outcome(USER(in_runs(values))) == expected


def in_runs(values: pa.Array) -> pa.Array:
    ends = pa.array(range(1, len(values) + 1), pa.int32())
    return pa.RunEndEncodedArray.from_arrays(ends, values)


def test_nan_is_null_where_a_number_is_expected() -> None:
    nan = float("nan")
    for values in (pa.array([nan, 1.0], pa.float32()), pa.array([nan, 1.0]), [nan, 1.0]):
        assert outcome(price_check(values)) == [(None, None), (1.0, None)]
        assert outcome(USER(values)) == [(None, "null_user_id"), ("1", None)]
        moments = timestamp_check(date(2000, 1, 1), DS)(values)
        assert [reason for _, reason in outcome(moments)] == ["bad_timestamp", "wrong_type"]


DAYS = ["2024-02-29", "0000-01-01", "0001-01-01", "9999-12-31", "2023-02-29", "2024-13-01", "2024-00-10"]
TIMES = ["", "T12:00", " 24:00:00", "T23:59:60", "T12:60", "T12:00:00.1", "T12:00:00.123456", "T12:00:00.123456789"]
ZONES = ["", "Z", "+01", "+0130", "-23:59", "+24:00", "+23:60", "-12:99", "-00:00"]


def test_a_moment_is_read_the_same_beside_an_impossible_one() -> None:
    """A batch that Arrow refuses is read by Python: both must know the same days and hours."""
    texts = [day + time + zone for day, time, zone in itertools.product(DAYS, TIMES, ZONES) if time or not zone]
    alone = [parse_timestamps(pa.array([text]))[0].cast(pa.int64()).as_py() for text in texts]
    beside = parse_timestamps(pa.array(["2024-02-30", *texts])).cast(pa.int64()).to_pylist()[1:]
    assert beside == alone
    at = texts.index("2024-02-29T12:00:00.123456789Z")
    assert datetime.fromtimestamp((alone[at] or 0) / 1e6, UTC) == datetime(2024, 2, 29, 12, 0, 0, 123456, UTC)


def landed(folder: Path, name: str, content: bytes | pa.Table, **options: Any) -> list[dict[str, Any]]:
    path = folder / "interactions" / f"ds={DS}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(content, path, **options)
    file = LandingFile(DS, "interactions", f"interactions/ds={DS}/{name}", path.stat().st_size)
    rules = RowRules(("click",), date(2000, 1, 1))
    rows = [row for batch in file_batches(str(folder), file, rules) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: row["line"])


def events(**columns: pa.Array) -> pa.Table:
    n_rows = len(next(iter(columns.values())))
    text = {"user_id": "u", "item_id": "i", "event_ts": "2024-02-29", "interaction_type": "click"}
    return pa.table({name: pa.array([value] * n_rows) for name, value in text.items()} | columns)


def test_moments_outside_nanoseconds_do_not_wrap_in_int96(tmp_path: Path) -> None:
    days = ["2608-09-01", "1439-05-01", "9999-12-31", "2024-02-29T12:00:00", "1676-01-01", "2263-01-01"]
    stamps = pa.array(np.array(days, "datetime64[us]"), pa.timestamp("us"))
    table = events(event_ts=pa.concat_arrays([stamps, pa.nulls(1, stamps.type)]))
    expected = {"deprecated": True, "micros": False}
    found = {}
    for name, is_int96 in expected.items():
        rows = landed(tmp_path, f"{name}.parquet", table, use_deprecated_int96_timestamps=is_int96)
        found[name] = [(row["line"], row["reason"], row["event_ts"]) for row in rows if row["line"] != TALLY_LINE]
    assert (
        pq.ParquetFile(tmp_path / f"interactions/ds={DS}/deprecated.parquet").schema.column(2).physical_type == "INT96"
    )
    assert found["deprecated"] == found["micros"]
    early, late = "timestamp_before_earliest", "future_timestamp"
    assert [reason for _, reason, _ in found["micros"]] == [late, early, late, None, early, late, "bad_timestamp"]
    assert found["micros"][3][2] == datetime(2024, 2, 29, 12, tzinfo=UTC)


def test_an_int96_that_no_64_bits_hold_is_no_moment(tmp_path: Path) -> None:
    """Twelve bytes: nanoseconds of the day and a Julian day; day 0 of microseconds' second round is 1970 again."""
    path = tmp_path / "a.parquet"
    one = pa.array(np.array(["1970-01-02"], "datetime64[us]"))
    pq.write_table(
        events(event_ts=one), path, use_deprecated_int96_timestamps=True, use_dictionary=False, compression="none"
    )
    julian, wrapped = 2_440_588 + 1, 2_440_588 + 1 + 213_503_982  # days of 2^64 microseconds
    content = path.read_bytes()
    assert content.count(bytes(8) + julian.to_bytes(4, "little")) >= 1
    changed = content.replace(bytes(8) + julian.to_bytes(4, "little"), bytes(8) + wrapped.to_bytes(4, "little"))
    rows = landed(tmp_path, "b.parquet", changed)
    assert [row["reason"] for row in rows[1:]] == ["bad_timestamp"]


def test_json_numbers_are_ids_only_where_no_digit_was_lost(tmp_path: Path) -> None:
    exact, lost = (
        "9007199254740991.0",
        ["9007199254740993.0", "9007199254740992.0", "9007199254740991.4", "1e-400", "1e16"],
    )
    odd = ["1e99999999999999999999", "-1E-99999999999999999999"]
    rest = '"item_id": "i", "event_ts": "2024-02-29", "interaction_type": "click"'
    lines = [f'{{"user_id": {number}, {rest}}}' for number in (exact, *lost, *odd)]
    rows = landed(tmp_path, "a.jsonl", "\n".join(lines).encode())[1:]
    assert [(row["user_id"], row["reason"]) for row in rows] == [
        ("9007199254740991", None),
        *[(None, "wrong_type")] * (len(lost) + len(odd)),
    ]


def test_ids_with_a_fraction_of_zero_are_counted(tmp_path: Path) -> None:
    ids = ["17.0,i", "17,i", "-3.00,i", "u,5.0", "1.5,i", "v.0,i", ",7.0"]
    lines = ["user_id,item_id,event_ts,interaction_type", *(f"{pair},2024-02-29,click" for pair in ids)]
    rows = landed(tmp_path, "a.csv", "\n".join(lines).encode())
    assert json.loads(rows[0]["detail"])["fractions"] == 3  # a bad row is none
    assert [row["user_id"] for row in rows[1:3]] == ["17.0", "17"]  # ids are taken as they are


VALUES = st.sampled_from(
    ["u", 7, 7.0, 2.0**53, 1e300, None, True, "", "\u200b", [1], {"a": 1}, float("nan"), "x" * 200]
)
MOMENTS = st.sampled_from(["2024-02-29", "2024-02-30", "2024-02-29T12:00:00.1234567", "0000-01-01", 5, None, "now"])
ROWS = st.fixed_dictionaries(
    {"user_id": VALUES, "item_id": VALUES, "event_ts": MOMENTS, "interaction_type": st.just("click"), "market": VALUES}
)


@given(rows=st.lists(ROWS, min_size=1, max_size=8))
def test_the_reason_of_a_row_does_not_depend_on_its_neighbours(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    together = landed(folder, "a.jsonl", "\n".join(map(json.dumps, rows)).encode())[1:]
    alone = [landed(folder, "b.jsonl", json.dumps(row).encode())[1] for row in rows]
    shown = ("reason", "detail", "raw", "user_id", "event_ts", "market")
    assert [[row[name] for name in shown] for row in together] == [[row[name] for name in shown] for row in alone]
