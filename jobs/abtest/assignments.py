"""The assignment table of an A/B test: who got which variant, from a CSV or Parquet file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from jobs.landing.erased import ErasedUsers
from jobs.runtime.text import shown_user
from lte_models.arrays import IntArray

USER, VARIANT, ASSIGNED = "user_id", "variant", "assigned_ts"


class AssignmentError(ValueError):
    """The assignment table cannot be read out; the message names column and value."""


@dataclass(frozen=True)
class Assignments:
    """Who got which variant.

    Attributes:
        row_of_user: User to row.
        variant: str [U].
        assigned_us: int64 [U], microseconds since 1970 from which on a user's interactions count.
        columns: Other columns of the file, str [U] by name, by which a read-out can be split.
        n_erased: Users of the file who were erased since; they are left out of all numbers.
    """

    row_of_user: dict[str, int]
    variant: pd.Series[str]
    assigned_us: IntArray
    columns: dict[str, pd.Series[str]]
    n_erased: int

    def counts(self) -> dict[str, int]:
        """Users per variant."""
        return {str(name): int(n) for name, n in self.variant.value_counts().sort_index().items()}


def read_assignments(path: Path, erased: ErasedUsers | None = None) -> Assignments:
    """Read an assignment table.

    Args:
        path: ``.csv`` or ``.parquet``, with columns ``user_id`` and ``variant``. Column ``assigned_ts`` (UTC) is the
            moment from which on a user counts. Any other column may split the read-out.
        erased: Users who were erased.

    Raises:
        AssignmentError: A column is missing or has an empty value, a moment cannot be read, or a user has two variants.
        FileNotFoundError: There is no such file.
    """
    frame = _frame(path)
    missing = [name for name in (USER, VARIANT) if name not in frame]
    if missing:
        raise AssignmentError(f"{path}: expected columns user_id and variant, got {', '.join(map(str, frame.columns))}")
    for name in (USER, VARIANT):
        if (empty := int((frame[name].isna() | (frame[name] == "")).sum())) > 0:
            raise AssignmentError(f"{path}, column {name}: expected a value in every row, {empty} are empty")
    frame = frame.assign(**{ASSIGNED: _moments(path, frame)}).sort_values(ASSIGNED, kind="stable")
    _refuse_two_variants(path, frame)
    frame = frame.drop_duplicates(USER)
    is_erased = np.array(erased.mask(frame[USER].tolist()).to_pylist(), bool) if erased else np.zeros(len(frame), bool)
    kept = frame[~is_erased].reset_index(drop=True)
    others = [str(name) for name in kept if name not in (USER, VARIANT, ASSIGNED)]
    return Assignments(
        row_of_user={user: row for row, user in enumerate(kept[USER])},
        variant=kept[VARIANT],
        assigned_us=kept[ASSIGNED].to_numpy(np.int64),
        columns={name: kept[name].fillna("").astype(str) for name in others},
        n_erased=int(is_erased.sum()),
    )


def everyone(user_ids: Sequence[str]) -> Assignments:
    """All users in one variant: for the plan of a test that has no assignment yet."""
    names = pd.Series(["all"] * len(user_ids), dtype=str)
    rows = {user: row for row, user in enumerate(user_ids)}
    return Assignments(rows, names, np.zeros(len(user_ids), np.int64), {}, 0)


def _frame(path: Path) -> pd.DataFrame:
    try:
        if path.suffix == ".parquet":
            table = pq.read_table(path)
        elif path.suffix == ".csv":
            # ids are text: a reader that guesses types would turn 007 into 7
            text = pa_csv.ConvertOptions(column_types={USER: pa.string(), VARIANT: pa.string(), ASSIGNED: pa.string()})
            table = pa_csv.read_csv(path, convert_options=text)
        else:
            raise AssignmentError(f"{path}: expected a file .csv or .parquet")
    except pa.ArrowException as error:
        raise AssignmentError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    frame: pd.DataFrame = table.to_pandas()
    return frame.astype({name: str for name in (USER, VARIANT) if name in frame and not frame[name].isna().any()})


def _moments(path: Path, frame: pd.DataFrame) -> Any:
    """Microseconds since 1970; 0, before any interaction, where the file has no such column."""
    if ASSIGNED not in frame:
        return 0
    found = pd.to_datetime(frame[ASSIGNED], utc=True, errors="coerce", format="ISO8601")
    if (wrong := found.isna()).any():
        value = frame[ASSIGNED][wrong].iloc[0]
        raise AssignmentError(f"{path}, column {ASSIGNED}: expected a moment like 2024-03-01T12:00:00Z, got {value!r}")
    return found.dt.as_unit("us").astype("int64")


def _refuse_two_variants(path: Path, frame: pd.DataFrame) -> None:
    several = frame.groupby(USER)[VARIANT].nunique()
    if (several := several[several > 1]).size:
        users, first = f"{several.size} of {frame[USER].nunique()} users", shown_user(str(several.index[0]))
        raise AssignmentError(
            f"{path}, column variant: expected one variant per user, {users} have several, one of them user {first}"
        )
