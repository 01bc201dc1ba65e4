"""Landing files of every format, good and bad, read without an engine: each line once, typed or with its reason."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkout import ROOT
from jobs.config.loading import load_deployment
from jobs.landing.checks import RowRules
from jobs.landing.files import LandingError, LandingFile, landing_files, misplaced_files
from jobs.landing.merge import DUPLICATE, DUPLICATE_ITEM
from jobs.landing.rows import FILE_LINE, TALLY_LINE, balanced, file_batches

DS = date(2017, 1, 2)
RULES = RowRules(("click", "purchase"), date(2000, 1, 1))
NOON = datetime(2017, 1, 2, 12, tzinfo=UTC)
HEADER = "user_id,item_id,event_ts,interaction_type"
GOOD = "u1,i1,2017-01-02T12:00:00Z,click"
NAMES = HEADER.split(",")
FORMAT_MODULES = ("pieces", "text_lines", "csv", "jsonl", "parquet")
REASONED = ("readers", "files", "raw_text", "checks", "rows", *(f"formats/{name}" for name in FORMAT_MODULES))


def read(path: Path, target: str = "interactions") -> list[dict[str, Any]]:
    """All rows of one file under ``{landing}/{target}/ds=…/``."""
    file = LandingFile(DS, target, f"{target}/ds={DS}/{path.name}", path.stat().st_size)
    return [row for batch in file_batches(str(path.parents[2]), file, RULES) for row in batch.to_pylist()]


def landed(folder: Path, name: str, content: bytes | pa.Table, target: str = "interactions") -> list[dict[str, Any]]:
    """Write a file, read it, check that what its reader counted is what came; returns the rows of the file."""
    path = folder / target / f"ds={DS}" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    else:
        pq.write_table(content, path)
    rows = read(path, target)
    [tally] = [row for row in rows if row["line"] == TALLY_LINE]
    kept = [row for row in rows if row["line"] != TALLY_LINE]
    refused = [row for row in kept if row["line"] == FILE_LINE]
    assert json.loads(tally["detail"])["rows"] == (1 if refused else len(kept))
    assert all((row["reason"] is None) == (row["raw"] is None) == (row["detail"] is None) for row in kept)
    return refused or sorted(kept, key=lambda row: row["line"])


def csv(*lines: str) -> bytes:
    return "\n".join([HEADER, *lines]).encode("utf-8", "surrogateescape")


def jsonl(*rows: object) -> bytes:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows).encode()


def event(**other: Any) -> dict[str, Any]:
    return {"user_id": "1", "item_id": "2", "event_ts": "2017-01-02T12:00:00Z", "interaction_type": "click", **other}


def parquet(**columns: pa.Array) -> pa.Table:
    """One row; columns as given, the others good."""
    text = {name: pa.array([value]) for name, value in event().items()}
    return pa.table(text | columns)


NAIVE = datetime(2017, 1, 2, 12)
SAME = {
    "plain.csv": csv("1,2,2017-01-02T12:00:00Z,click"),
    "bom_and_crlf.csv": b"\xef\xbb\xbf" + csv("1,2,2017-01-02T12:00:00,click").replace(b"\n", b"\r\n"),
    "mixed_endings.csv": f"{HEADER}\r\n1,2,2017-01-02 12:00:00,click\n\n".encode(),
    "quoted.csv": csv('"1","2","2017-01-02T12:00:00.000+00:00","click"'),
    "other_order.csv": b"event_ts,x, interaction_type,item_id,user_id\n2017-01-02T14:00+02:00,9,click,2,1",
    "zipped.csv.gz": csv("1,2,2017-01-02T12:00:00Z,click"),
    "UPPER.CSV": csv("1,2,2017-01-02T12:00:00Z,click"),
    "text.jsonl": jsonl(event()),
    "numbers.jsonl": jsonl(event(user_id=1, item_id=2.0)),
    "zipped.jsonl.gz": jsonl(event(more={"nested": [1]})),
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl(event()),
    "text.parquet": parquet(),
    "numbers.parquet": parquet(user_id=pa.array([1], pa.int8()), item_id=pa.array([2.0], pa.float32())),
    "decimals.parquet": parquet(user_id=pa.array([Decimal("1.00")]), item_id=pa.array([2], pa.uint64())),
    "dictionary.parquet": parquet(
        user_id=pa.array(["1"]).dictionary_encode(), item_id=pa.array(["2"], pa.large_string())
    ),
    "bytes.parquet": parquet(user_id=pa.array([b"1"]), item_id=pa.array([b"2"], pa.large_binary())),
    "views.parquet": parquet(
        user_id=pa.array([b"1"], pa.binary_view()),
        item_id=pa.array([b"2"], pa.binary(1)),
        interaction_type=pa.array([b"click"], pa.binary(5)),
    ),
    **{
        f"{unit}.parquet": parquet(event_ts=pa.array([NAIVE], pa.timestamp(unit, zone)))
        for unit, zone in (("s", None), ("ms", "UTC"), ("us", None), ("ns", "UTC"))
    },
    "zone.parquet": parquet(event_ts=pa.array([NOON], pa.timestamp("us", "Asia/Tokyo"))),
}


@pytest.mark.parametrize("name", SAME)
def test_one_interaction_in_every_format_is_the_same_row(name: str, tmp_path: Path) -> None:
    [row] = landed(tmp_path, name, SAME[name])
    assert row["reason"] is None, row
    assert (row["line"], row["landing_ds"]) == (1, DS)
    found = (row["user_id"], row["item_id"], row["event_ts"], row["interaction_type"], row["market"], row["session_id"])
    assert found == ("1", "2", NOON, "click", "", None)


def test_a_parquet_date_is_its_first_moment(tmp_path: Path) -> None:
    [row] = landed(tmp_path, "a.parquet", parquet(event_ts=pa.array([DS], pa.date32())))
    assert row["event_ts"] == datetime(2017, 1, 2, tzinfo=UTC)


BAD_LINES = {
    ",i,2017-01-02,click": "null_user_id",
    "u,   ,2017-01-02,click": "null_item_id",
    f"u,{'x' * 129},2017-01-02,click": "oversize_item_id",
    f"{'ü' * 65},i,2017-01-02,click": "oversize_user_id",  # 130 bytes, 65 characters
    " u,i,2017-01-02,click": "malformed_user_id",
    "u\x00,i,2017-01-02,click": "malformed_user_id",
    "u,i\u00a0,2017-01-02,click": "malformed_item_id",  # a no-break space at the end
    "u,i,,click": "bad_timestamp",
    "u,i,2017-02-30,click": "bad_timestamp",
    "u,i,2017-01-02T25:00:00,click": "bad_timestamp",
    "u,i,02.01.2017,click": "bad_timestamp",
    "u,i,1483358400,click": "bad_timestamp",
    "u,i,1999-12-31T23:59:59Z,click": "timestamp_before_earliest",
    "u,i,0001-01-01,click": "timestamp_before_earliest",
    "u,i,2017-01-03T00:00:00Z,click": "future_timestamp",
    "u,i,2017-01-02T23:30:00-01:00,click": "future_timestamp",  # 00:30 of the next day in UTC
    "u,i,9999-12-31,click": "future_timestamp",
    "u,i,2017-01-02,stare": "unknown_interaction_type",
    "u,i,2017-01-02,Click": "unknown_interaction_type",
    "u,i,2017-01-02,": "unknown_interaction_type",
    "u,i,2017-01-02": "malformed_row",
    "u,i,2017-01-02,click,more": "malformed_row",
    '"u,i,2017-01-02,click': "malformed_row",
    'u,"i"x,2017-01-02,click': "malformed_row",
    "\udcff,i,2017-01-02,click": "wrong_encoding",
    f"{'x' * (1 << 20)},i,2017-01-02,click": "malformed_row",
}


def test_each_bad_line_has_its_reason_and_number_and_spoils_no_other(tmp_path: Path) -> None:
    lines = [line for bad in BAD_LINES for line in (bad, GOOD)]
    rows = landed(tmp_path, "a.csv", csv(*lines))
    assert [(row["line"], row["reason"]) for row in rows] == [
        pair
        for number, reason in enumerate(BAD_LINES.values())
        for pair in ((2 * number + 1, reason), (2 * number + 2, None))
    ]
    assert all(len(row["raw"]) < 2500 for row in rows if row["raw"])
    named = {row["reason"]: row["detail"] for row in rows if row["reason"]}
    assert named["unknown_interaction_type"].startswith("interaction_type = ")
    assert named["future_timestamp"] == 'event_ts = "9999-12-31"'


BAD_OBJECTS: dict[str, list[Any]] = {
    "wrong_type": [event(user_id={"a": 1}), event(item_id=["x"]), event(user_id=True), event(event_ts=1483358400)],
    "null_user_id": [event(user_id=None), {k: v for k, v in event().items() if k != "user_id"}, event(user_id="")],
    "malformed_row": ["[1, 2]", "{", '{"user_id": 1e', "nul", "[" * 100_000, '{"user_id": ' + "9" * 5000 + "}"],
    "wrong_encoding": [event(user_id="\ud800")],
    "oversize_user_id": [event(user_id=10**200)],
    "bad_timestamp": [event(event_ts=None), event(event_ts="now")],
}


@pytest.mark.parametrize("reason", BAD_OBJECTS)
def test_each_bad_json_line_has_its_reason(reason: str, tmp_path: Path) -> None:
    objects = BAD_OBJECTS[reason]
    rows = landed(tmp_path, "a.jsonl", jsonl(event(), *objects, event()))
    assert [row["reason"] for row in rows] == [None, *[reason] * len(objects), None]


BAD_COLUMNS: dict[str, tuple[pa.Table, str]] = {
    "struct": (parquet(user_id=pa.array([{"a": 1}])), "wrong_type"),
    "list": (parquet(user_id=pa.array([["a"]])), "wrong_type"),
    "half": (parquet(user_id=pa.array([1.5])), "wrong_type"),
    "nan": (parquet(user_id=pa.array([float("nan")])), "null_user_id"),  # null, where a table has no nulls
    "number as moment": (parquet(event_ts=pa.array([1483358400])), "wrong_type"),
    "all null": (parquet(user_id=pa.nulls(1)), "null_user_id"),
    "bytes": (parquet(user_id=pa.array([b"\xff\xfe"])), "wrong_encoding"),
    "null moment": (parquet(event_ts=pa.array([None], pa.timestamp("us"))), "bad_timestamp"),
    "far future": (parquet(event_ts=pa.array([2**62], pa.int64()).cast(pa.timestamp("us"))), "bad_timestamp"),
    "sized bytes": (parquet(user_id=pa.array([b"\xff" * 16], pa.binary(16))), "wrong_encoding"),
    "half decimal": (parquet(user_id=pa.array([Decimal("9007199254740993.5")])), "wrong_type"),
    "rounded": (parquet(user_id=pa.array([2.0**53 + 2])), "wrong_type"),
    "flag": (parquet(interaction_type=pa.array([True])), "wrong_type"),
}


@pytest.mark.parametrize("name", BAD_COLUMNS)
def test_parquet_columns_of_other_types_are_bad_rows_not_crashes(name: str, tmp_path: Path) -> None:
    table, reason = BAD_COLUMNS[name]
    [row] = landed(tmp_path, "a.parquet", table)
    assert (row["line"], row["reason"]) == (1, reason)
    json.loads(row["raw"])


NO_UTF8 = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
NOWHERE = pa.array([1483358400], pa.timestamp("s", "Mars/Olympus"))  # 12:00 of DS
TOO_LATE = pa.array([2**62]).cast(pa.timestamp("us", "Mars/Olympus"))
UNHELD: dict[str, tuple[pa.Table, str, str]] = {  # what Python cannot hold: reason, and what is shown
    "zone": (parquet(user_id=NOWHERE), "wrong_type", 'user_id = "2017-01-02 12:00:00+00:00"'),
    "zone of a moment": (parquet(event_ts=TOO_LATE), "bad_timestamp", f'event_ts = "{2**62}"'),
    "zone in a list": (
        parquet(user_id=pa.ListArray.from_arrays([0, 1], NOWHERE)),
        "wrong_type",
        'user_id = "<list<element: timestamp[ms, tz=Mars/Olympus]>>"',
    ),
    "year in a struct": (
        parquet(user_id=pa.StructArray.from_arrays([TOO_LATE], ["at"])),
        "wrong_type",
        'user_id = "<struct<at: timestamp[us, tz=Mars/Olympus]>>"',
    ),
    "bytes in a list": (
        parquet(user_id=pa.ListArray.from_arrays([0, 1], NO_UTF8)),
        "wrong_type",
        'user_id = "<list<element: string>>"',
    ),
}


@pytest.mark.parametrize("name", UNHELD)
def test_values_that_python_cannot_hold_are_bad_rows_not_crashes(name: str, tmp_path: Path) -> None:
    table, reason, detail = UNHELD[name]
    [row] = landed(tmp_path, "a.parquet", table)
    assert (row["reason"], row["detail"]) == (reason, detail)


def test_a_moment_is_the_same_in_a_zone_that_nobody_knows(tmp_path: Path) -> None:
    """Arrow's moments are in UTC, so that the zone is a label; whether a machine knows it may not decide on a row."""
    good, bad = parquet(event_ts=NOWHERE), parquet(event_ts=NOWHERE, interaction_type=pa.array(["stare"]))
    first, second = landed(tmp_path, "a.parquet", pa.concat_tables([good, bad]))
    assert (first["reason"], first["event_ts"]) == (None, NOON)
    assert second["reason"] == "unknown_interaction_type"
    assert json.loads(second["raw"])["event_ts"] == "2017-01-02 12:00:00+00:00"


def test_decimals_are_exact_where_floats_are_not(tmp_path: Path) -> None:
    numbers = [2**53 + 1, 10**37 + 1]
    ids = pa.array([Decimal(number) for number in numbers], pa.decimal128(38, 0))
    table = pa.concat_tables([parquet(user_id=ids.slice(at, 1)) for at in range(2)])
    rows = landed(tmp_path, "a.parquet", table)
    assert [row["user_id"] for row in rows] == [str(number) for number in numbers]


def test_files_that_cannot_be_read_to_their_end_are_one_bad_row(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({name: [value] * 5000 for name, value in event().items()}), whole)
    zipped = gzip.compress(csv(*[GOOD] * 500))
    torn: dict[str, tuple[bytes, str]] = {
        "cut.parquet": (whole.read_bytes()[:-100], "unreadable_file"),
        "middle.parquet": (whole.read_bytes()[:200] + bytes(300) + whole.read_bytes()[500:], "unreadable_file"),
        "empty.parquet": (b"", "unreadable_file"),
        "text.parquet": (csv(GOOD), "unreadable_file"),
        "data.xlsx": (b"PK", "unreadable_file"),
        "no_user.csv": (b"item_id,event_ts,interaction_type\ni,2017-01-02,click", "missing_column"),
        "twice.csv": (HEADER.encode() + b",user_id\nu,i,2017-01-02,click,v", "unreadable_file"),
        "latin1.csv": (HEADER.replace("user_id", "us\xfcr").encode("latin-1") + b"\n", "wrong_encoding"),
    }
    for name, (content, reason) in torn.items():
        [row] = landed(tmp_path, name, content)
        assert (name, row["line"], row["reason"]) == (name, FILE_LINE, reason)
    path = tmp_path / "interactions" / f"ds={DS}" / "cut.csv.gz"
    path.write_bytes(zipped[: len(zipped) // 2])
    refused = [row for row in read(path) if row["line"] == FILE_LINE]
    assert [row["reason"] for row in refused] == ["unreadable_file"]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\n", b"\r"])
def test_an_empty_file_has_no_rows(name: str, content: bytes, tmp_path: Path) -> None:
    assert landed(tmp_path, name, content) == []


def test_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    assert landed(tmp_path, "a.csv", csv()) == []
    assert landed(tmp_path, "a.parquet", parquet().slice(0, 0)) == []


def test_a_quote_over_lines_keeps_the_numbers_of_lines(tmp_path: Path) -> None:
    content = b'item_id,title\ni1,"red\ndress"\ni2,"blue ""jeans"""\ni3,"open\ni4,last'
    rows = landed(tmp_path, "a.csv", content, "items")
    assert [(row["line"], row["title"], row["reason"]) for row in rows] == [
        (1, "red\ndress", None),
        (3, 'blue "jeans"', None),
        (4, None, "malformed_row"),
        (5, "last", None),
    ]


def test_a_blank_line_in_a_quoted_field_is_part_of_it(tmp_path: Path) -> None:
    texts = ["red\n\ndress", "\n\n", "blue\r\n\r\njeans\n"]
    lines = "".join(f'i{at},hat,"{text}"\n\n' for at, text in enumerate(texts))  # blank lines between rows are none
    rows = landed(tmp_path, "a.csv", f"\nitem_id,title,description\n\n{lines}".encode(), "items")
    items = pa.table({"item_id": ["i0", "i1", "i2"], "title": ["hat"] * 3, "description": texts})
    same = landed(tmp_path, "a.parquet", items, "items")
    assert [row["description"] for row in rows] == [row["description"] for row in same] == [texts[0], None, texts[2]]
    assert [row["line"] for row in rows] == [2, 6, 10]


def test_a_quoted_field_may_be_as_long_as_a_line(tmp_path: Path) -> None:
    longest = (1 << 20) - len('i,hat,""\n')
    lines = [f'i,hat,"{"x" * n}"' for n in (131_073, longest - len("\ufeff".encode()), longest + 1)]
    rows = landed(tmp_path, "a.csv", "\n".join(["item_id,title,description", *lines, ""]).encode(), "items")
    assert [len(row["description"] or "") for row in rows] == [131_073, longest - 3, 0]
    assert [row["reason"] for row in rows] == [None, None, "malformed_row"]
    line = "x" * (1 << 19)
    over = landed(tmp_path, "b.csv", f'item_id,title\ni,"{line}\n{line}\n"\ni2,hat\n'.encode(), "items")
    assert [row["reason"] for row in over] == ["malformed_row"] * 3 + [None]  # its lines are read on their own then
    assert over[0]["detail"] == "a quote is not closed within 200 lines and 1048576 bytes"


def test_lines_that_end_in_cr_alone_are_named(tmp_path: Path) -> None:
    [row] = landed(tmp_path, "a.csv", csv(GOOD).replace(b"\n", b"\r"))
    assert (row["line"], row["reason"]) == (FILE_LINE, "missing_column")
    assert row["detail"] == "header: lines end in CR alone; end them in LF or CRLF"
    odd = landed(tmp_path, "b.csv", f'{HEADER},"a\r\nb"\n{GOOD},x\n'.encode())  # a break within a name is none
    assert [row["reason"] for row in odd] == [None]


def test_items_need_content_and_good_prices_and_pictures_inside(tmp_path: Path) -> None:
    item = {"item_id": "i", "title": "hat"}
    bad: list[tuple[dict[str, Any], str | None]] = [
        (item | {"price": 3}, None),
        (item | {"price": -1}, "bad_price"),
        (item | {"price": "cheap"}, "wrong_type"),
        (item | {"price": 10**400}, "bad_price"),
        (item | {"image": "aGk="}, "wrong_type"),  # bytes come in Parquet only
        (item | {"image_path": "pictures/i.jpg"}, None),
        (item | {"image_path": "../secret.jpg"}, "malformed_image_path"),
        (item | {"image_path": "/etc/passwd"}, "malformed_image_path"),
        ({"item_id": "i", "title": None}, "no_content"),
        ({"item_id": "i", "title": " ", "description": "warm"}, None),
        ({"item_id": None, "title": "hat"}, "null_item_id"),
        (item | {"title": {"en": "hat"}}, "wrong_type"),
    ]
    rows = landed(tmp_path, "a.jsonl", jsonl(*[row for row, _ in bad]), "items")
    assert [row["reason"] for row in rows] == [reason for _, reason in bad]
    picture = pa.table({"item_id": ["i"], "title": pa.array([None], pa.string()), "image": [b"\x89PNG"]})
    for kind in (pa.binary(), pa.binary_view(), pa.binary(4)):
        [row] = landed(tmp_path, "a.parquet", picture.set_column(2, "image", pa.array([b"\x89PNG"], kind)), "items")
        assert (row["reason"], row["title"], row["image"]) == (None, "", b"\x89PNG")


def test_unknown_columns_are_ignored_and_named(tmp_path: Path) -> None:
    path = tmp_path / "interactions" / f"ds={DS}" / "a.csv"
    path.parent.mkdir(parents=True)
    path.write_bytes(f"{HEADER},colour,market\n{GOOD},red,AT".encode())
    rows = read(path)
    assert rows[0]["market"] == "AT"
    assert json.loads(rows[-1]["detail"]) == {"rows": 1, "ignored": ["colour"], "fractions": 0}


def test_a_file_that_vanished_is_no_bad_data(tmp_path: Path) -> None:
    file = LandingFile(DS, "interactions", f"interactions/ds={DS}/gone.csv", 10)
    with pytest.raises(LandingError, match=r"landing interactions/ds=2017-01-02/gone\.csv, ds=2017-01-02: gone"):
        list(file_batches(str(tmp_path), file, RULES))


def test_only_day_folders_files_are_listed_and_a_wrong_day_is_named(tmp_path: Path) -> None:
    for name in ("ds=2017-01-02/b.csv", "ds=2017-01-02/a.csv", "ds=2017-01-01/_SUCCESS", "ds=2017-01-01/.x.crc"):
        path = tmp_path / "interactions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / "interactions" / "notes.txt").write_text("x")
    found = [file.name for file in landing_files(str(tmp_path), "interactions")]
    assert found == [f"interactions/ds=2017-01-02/{name}.csv" for name in "ab"]
    assert landing_files(str(tmp_path), "items") == []
    wrong = tmp_path / "interactions" / "ds=2017-02-30" / "a.csv"
    wrong.parent.mkdir()
    wrong.write_text("x")
    with pytest.raises(LandingError, match="ds=2017-02-30: expected a day like"):
        landing_files(str(tmp_path), "interactions")


def test_files_in_the_wrong_place_are_found_and_writers_own_and_pictures_are_none(tmp_path: Path) -> None:
    wrong = ("2017-01-03/x.csv", "DS=2017-01-03/x.csv", "ds=2017-01-03/hour=3/x.parquet", "notes.txt")
    fine = (
        "ds=2017-01-03/a.csv",
        "ds=2017-01-03/_x.csv",
        "_temporary/0/x.csv",
        "ds=2017-01-03/.tmp/x.csv",
        "img/i.JPG",
    )
    for name in (*wrong, *fine):
        path = tmp_path / "items" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert misplaced_files(str(tmp_path), "items") == [f"items/{name}" for name in wrong]
    assert [file.name for file in landing_files(str(tmp_path), "items")] == ["items/ds=2017-01-03/a.csv"]
    assert misplaced_files(str(tmp_path), "interactions") == []


def test_links_pipes_sockets_and_odd_names_are_listed_with_their_fault_and_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    landing, outside = tmp_path / "landing", tmp_path / "outside"
    day = landing / "interactions" / "ds=2017-01-02"
    day.mkdir(parents=True)
    outside.mkdir()
    (outside / "secret.csv").write_text("root:x:0:0")
    (day / "a.csv").write_text(HEADER)
    (day / "inside.csv").symlink_to("a.csv")
    (day / "out.csv").symlink_to(outside / "secret.csv")
    (day / "nowhere.csv").symlink_to("gone.csv")
    (day / "loop.csv").symlink_to("loop.csv")
    (day / "device.csv").symlink_to("/dev/null")
    os.mkfifo(day / "pipe.csv")
    with socket.socket(socket.AF_UNIX) as bound:
        monkeypatch.chdir(day)  # a socket's path has 108 bytes at most
        bound.bind("socket.csv")
    Path(os.fsdecode(os.fsencode(day) + b"/caf\xe9.csv")).write_text(HEADER)
    (day / "two\nlines.csv").write_text(HEADER)
    (day / "folder").symlink_to(day)  # a circle, if it were entered
    (landing / "interactions" / "ds=2017-01-01").symlink_to(outside)
    (landing / "interactions" / "ds=2017-01-03").symlink_to(day)  # a day may be a link within the landing folder
    found = {file.name.removeprefix("interactions/"): file for file in landing_files(str(landing), "interactions")}
    faults = {name: file.fault for name, file in found.items() if not name.startswith("ds=2017-01-03")}
    leaves, nowhere = "a link that leaves the landing folder", "a link that leads nowhere"
    assert faults == {
        "ds=2017-01-01": leaves,
        "ds=2017-01-02/a.csv": "",
        "ds=2017-01-02/caf\\xe9.csv": "an entry whose name is no UTF-8",
        "ds=2017-01-02/device.csv": leaves,
        "ds=2017-01-02/folder": "a link to a folder",
        "ds=2017-01-02/inside.csv": "",
        "ds=2017-01-02/loop.csv": "a link that leads back to itself",
        "ds=2017-01-02/nowhere.csv": nowhere,
        "ds=2017-01-02/out.csv": leaves,
        "ds=2017-01-02/pipe.csv": "a pipe (FIFO)",
        "ds=2017-01-02/socket.csv": "a socket",
        "ds=2017-01-02/two\nlines.csv": "",
    }
    assert found["ds=2017-01-03/a.csv"].fault == ""
    for file in found.values():
        rows = [row for batch in file_batches(str(landing), file, RULES) for row in batch.to_pylist()]
        assert [row["reason"] for row in rows if row["line"] == FILE_LINE] == ["unreadable_file"] * bool(file.fault)
        assert "root:x" not in str(rows)


def test_a_target_that_is_a_link_out_of_the_landing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "landing").mkdir()
    (tmp_path / "landing" / "items").symlink_to(tmp_path)
    with pytest.raises(
        LandingError, match="landing items: expected a folder, got a link that leaves the landing folder"
    ):
        landing_files(str(tmp_path / "landing"), "items")


def test_a_key_or_column_name_that_is_no_utf8_spoils_its_row_or_file_only(tmp_path: Path) -> None:
    lines = b'{"\\ud800": 1, "user_id": null}\n' + jsonl(event(user_id=None, more="\ud800"), event())
    bad, also_bad, good = landed(tmp_path, "a.jsonl", lines)
    assert (bad["reason"], also_bad["reason"], good["reason"]) == ("null_user_id", "null_user_id", None)
    assert json.loads(bad["raw"]) == {"\\ud800": 1, "user_id": None}
    path = tmp_path / "named.parquet"
    pq.write_table(parquet(colour=pa.array(["red"])), path, compression="none")
    [row] = landed(tmp_path, "b.parquet", path.read_bytes().replace(b"colour", b"col\xffur"))
    assert (row["line"], row["reason"]) == (FILE_LINE, "wrong_encoding")
    assert "no UTF-8" in row["detail"]


def test_lines_that_show_nothing_are_no_rows(tmp_path: Path) -> None:
    blanks = [" ", "\t", " \u00a0\u200b", "\ufeff", "\u3164 "]
    rows = landed(tmp_path, "a.csv", csv(GOOD, *blanks, GOOD))
    assert [(row["line"], row["reason"]) for row in rows] == [(1, None), (7, None)]
    rows = landed(tmp_path, "a.jsonl", "\n".join([*blanks, json.dumps(event())]).encode())
    assert [(row["line"], row["reason"]) for row in rows] == [(6, None)]
    [row] = landed(tmp_path, "b.csv", csv("\x00\x00"))  # what a disk leaves behind is damage
    assert row["reason"] == "malformed_row"


FIELDS: Sequence[tuple[str, str | None]] = [(GOOD, None), *BAD_LINES.items()][:-1]


@given(
    picked=st.lists(st.sampled_from(FIELDS), max_size=30),
    ending=st.sampled_from(["\n", "\r\n"]),
    zipped=st.booleans(),
)
@settings(max_examples=60)
def test_any_mix_of_lines_is_read_once_each(
    tmp_path_factory: pytest.TempPathFactory, picked: list[tuple[str, str | None]], ending: str, zipped: bool
) -> None:
    # An open quote is looked for up to the next quote, so only one such line is in a mix, as the last.
    quoted = [pair for pair in picked if pair[0].startswith('"')]
    picked = [pair for pair in picked if pair not in quoted] + quoted[:1]
    content = ending.join([HEADER, *(line for line, _ in picked)]).encode("utf-8", "surrogateescape")
    rows = landed(tmp_path_factory.mktemp("mix"), "a.csv.gz" if zipped else "a.csv", content)
    assert [(row["line"], row["reason"]) for row in rows] == [(n, why) for n, (_, why) in enumerate(picked, start=1)]


@given(content=st.binary(max_size=300), name=st.sampled_from(["a.csv", "a.jsonl", "a.parquet", "a.csv.gz"]))
@settings(max_examples=150)
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    with_header = HEADER.encode() + b"\n" + content if name.startswith("a.csv") else content
    rows = landed(tmp_path_factory.mktemp("bytes"), name, with_header)
    lines = [row["line"] for row in rows]
    assert lines == sorted(set(lines))


@given(sizes=st.lists(st.integers(0, 1000), min_size=1, max_size=30), n_bins=st.integers(1, 8))
def test_every_file_is_in_one_bin_and_bins_are_even(sizes: list[int], n_bins: int) -> None:
    files = [LandingFile(DS, "interactions", f"f{number:02}", size) for number, size in enumerate(sizes)]
    bins = balanced(files, n_bins)
    assert sorted(file for each in bins for file in each) == files
    loads = [sum(file.size + 1 for file in each) for each in bins]
    assert max(loads) - min(loads) <= max(sizes) + 1


def blocks(language: str) -> list[str]:
    """Code blocks of docs/landing.md in one language."""
    text = (ROOT / "docs" / "landing.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_documentation_are_the_same_two_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = date(2026, 1, 31)
    folder = tmp_path / "landing" / "interactions" / f"ds={day}"
    folder.mkdir(parents=True)
    (folder / "events.csv").write_text(blocks("csv")[0])
    (folder / "events.jsonl").write_text(blocks("json")[0])
    monkeypatch.chdir(tmp_path)
    exec(blocks("python")[0], {})  # noqa: S102 the example of the page, run as a reader would run it
    files = landing_files(str(tmp_path / "landing"), "interactions")
    assert [file.format for file in files] == ["csv", "jsonl", "parquet"]
    moment = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
    expected = [("17", "A-204", moment, "purchase", "AT"), ("17", "B,9", moment, "click", "")]
    for file in files:
        batches = file_batches(str(tmp_path / "landing"), file, RULES)
        rows = [row for batch in batches for row in batch.to_pylist() if row["line"] > FILE_LINE]
        assert [tuple(row[name] for name in (*NAMES, "market")) for row in rows] == expected


def test_the_items_and_the_configuration_of_the_documentation_are_good(tmp_path: Path) -> None:
    rows = landed(tmp_path, "catalogue.jsonl", blocks("json")[1].encode(), "items")
    assert [(row["item_id"], row["reason"]) for row in rows] == [("A-204", None), ("B,9", None)]
    (tmp_path / "shop.toml").write_text(blocks("toml")[0])
    assert load_deployment(tmp_path / "shop.toml", environ={}).interactions.types == ("click", "purchase")


def test_the_documentation_names_every_reason() -> None:
    text = (ROOT / "docs" / "landing.md").read_text()
    documented = set(re.findall(r"`([a-z_]+)`", text.split("## What is not taken")[1]))
    sources = "".join((ROOT / "jobs" / "landing" / f"{name}.py").read_text() for name in REASONED)
    used = set(
        re.findall(r'"((?:bad|timestamp|future|unknown|wrong|malformed|no|unreadable|missing)_[a-z_]+)"', sources)
    )
    used |= {DUPLICATE, DUPLICATE_ITEM, "null_user_id", "oversize_session_id", "malformed_market"}
    assert used - documented == set()
    assert len(used) >= 14
