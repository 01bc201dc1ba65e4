"""An erased user does not come back with an old landing file, and a bad row keeps the id that it was about."""

from __future__ import annotations

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.landing.checks import RowRules
from jobs.landing.erased import ErasedUsers, plain_id, user_hash
from jobs.landing.files import landing_files
from jobs.landing.rows import file_batches

SALT = "00112233445566778899aabbccddeeff"
DAY = date(2017, 1, 2)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("740017", "740017"),
        ("740017.0", "740017"),
        (740017.0, "740017"),
        ("\t740017", "740017"),
        (" user A ", "user A"),  # a blank inside an id is part of the id
        ("a\u200bb", "ab"),
        ("1.5", "1.5"),
        ("", None),
        (None, None),
        (["740017"], None),
    ],
)
def test_a_damaged_value_stands_for_one_id(value: object, wanted: str | None) -> None:
    assert plain_id(value) == wanted


def test_the_hash_is_keyed_blake2b() -> None:
    wanted = hashlib.blake2b(b"17", key=bytes.fromhex(SALT), digest_size=16).hexdigest()
    assert user_hash(SALT, "17") == wanted != user_hash("ff" * 16, "17")


def landed(folder: Path, users: list[object], erased: ErasedUsers | None) -> list[dict[str, Any]]:
    path = folder / "interactions" / f"ds={DAY}" / "events.jsonl"
    path.parent.mkdir(parents=True)
    event = {"item_id": "i", "event_ts": "2017-01-02T10:00:00Z", "interaction_type": "click"}
    path.write_text("".join(json.dumps({"user_id": user, **event}) + "\n" for user in users))
    rules = RowRules(("click",), date(2000, 1, 1), erased)
    (file,) = landing_files(str(folder), "interactions")
    rows = pa.Table.from_batches(file_batches(str(folder), file, rules)).to_pylist()
    return [row for row in rows if row["line"] > 0]


def test_rows_of_an_erased_user_are_counted_and_nothing_of_them_is_kept(tmp_path: Path) -> None:
    erased = ErasedUsers(SALT, frozenset([user_hash(SALT, "740017")]))
    rows = landed(tmp_path, ["740017", "\t740017", "7400170", " x"], erased)
    assert [row["reason"] for row in rows] == ["erased_user", "erased_user", None, "malformed_user_id"]
    assert [row["user_id"] for row in rows] == [None, None, "7400170", None]
    assert [row["found_user_id"] for row in rows] == [None, None, None, "x"]
    assert "740017" not in json.dumps(rows[:2], default=str)


def test_a_bad_row_keeps_the_id_that_it_was_about(tmp_path: Path) -> None:
    rows = landed(tmp_path, ["\t740017", "ok"], None)
    assert [(row["reason"], row["found_user_id"]) for row in rows] == [("malformed_user_id", "740017"), (None, None)]
