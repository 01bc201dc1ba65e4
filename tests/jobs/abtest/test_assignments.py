"""Assignment tables, good and bad."""

from pathlib import Path

import pandas as pd
import pytest

from jobs.abtest.assignments import AssignmentError, read_assignments
from jobs.landing.erased import ErasedUsers, user_hash


def _csv(folder: Path, text: str) -> Path:
    path = folder / "groups.csv"
    path.write_text(text)
    return path


def test_ids_stay_text_and_the_first_moment_of_a_user_counts(tmp_path: Path) -> None:
    late, early = "2024-03-02T00:00:00Z", "2024-03-01T12:00:00+02:00"
    text = f"user_id,variant,assigned_ts,country\n007,lte,{late},de\n7,control,{late},at\n007,lte,{early},de\n"
    found = read_assignments(_csv(tmp_path, text))
    assert found.counts() == {"control": 1, "lte": 1}
    assert found.assigned_us[found.row_of_user["007"]] == pd.Timestamp("2024-03-01T10:00:00Z").value // 1000
    assert found.columns["country"][found.row_of_user["7"]] == "at"


def test_parquet_is_read_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "groups.parquet"
    pd.DataFrame({"user_id": ["a", "b"], "variant": ["control", "lte"]}).to_parquet(path)
    found = read_assignments(path)
    assert (found.counts(), found.assigned_us.tolist()) == ({"control": 1, "lte": 1}, [0, 0])


def test_erased_users_are_left_out_and_counted(tmp_path: Path) -> None:
    erased = ErasedUsers("00", frozenset([user_hash("00", "b")]))
    found = read_assignments(_csv(tmp_path, "user_id,variant\na,control\nb,lte\nc,lte\n"), erased)
    assert (found.row_of_user, found.counts(), found.n_erased) == ({"a": 0, "c": 1}, {"control": 1, "lte": 1}, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,variant\na,b\n", "expected columns user_id and variant, got user, variant"),
        ("user_id,variant\na,control\nb,\n", "column variant: expected a value in every row, 1 are empty"),
        ("user_id,variant\na,control\na,lte\nb,lte\n", "1 of 2 users have several, one of them user #ca978112ca1b"),
        ("user_id,variant,assigned_ts\na,lte,soon\n", "expected a moment like 2024-03-01T12:00:00Z, got 'soon'"),
    ],
)
def test_a_faulty_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AssignmentError, match=message):
        read_assignments(_csv(tmp_path, text))


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AssignmentError, match=r"expected a file \.csv or \.parquet"):
        read_assignments(tmp_path / "groups.xlsx")
