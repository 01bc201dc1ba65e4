"""KPIs of an A/B test: what each assigned user did, from the table interactions.

``TYPE`` is the number of interactions of a type per assigned user, ``all`` counts every type, ``active`` is 1 for a
user with an interaction, ``days`` counts days with one. ``A/B`` is the ratio of two of them: ``purchase/click``.
A user without interactions counts as 0: leaving such users out would compare other people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.abtest.assignments import Assignments
from jobs.config.window import ConfigError, day_number
from jobs.lake.reader import LakeReader
from lte_models.arrays import Float64Array, IntArray
from schemas import INTERACTIONS

ALL, ACTIVE, DAYS, USERS = "all", "active", "days", "users"
COLUMNS = ("user_id", "event_ts", "interaction_type", "market", "event_date")
NO_MARKET = "(none)"


@dataclass(frozen=True)
class Kpi:
    """A ratio of two sums over users.

    Attributes:
        name: As the user wrote it.
        numerator: Name of a count.
        denominator: Name of a count; ``users`` for a mean per user.
    """

    name: str
    numerator: str
    denominator: str = USERS

    @classmethod
    def parse(cls, text: str, types: Sequence[str]) -> Kpi:
        """Read ``A`` or ``A/B``.

        Raises:
            ConfigError: A part is no count.
        """
        parts, known = text.split("/"), (*types, ALL, ACTIVE, DAYS)
        if len(parts) > 2 or any(part not in known for part in parts):
            raise ConfigError(f"KPI {text!r}: expected one of {', '.join(known)}, or two of them with a slash")
        return cls(text, *parts)


@dataclass
class Counts:
    """What each assigned user did in a span of days.

    Attributes:
        by_name: float [U] by interaction type.
        visits: Distinct numbers ``user * SPAN + day`` of the batches read so far.
        n_users: U.
    """

    n_users: int
    by_name: dict[str, Float64Array] = field(default_factory=dict)
    visits: list[IntArray] = field(default_factory=list)

    def of(self, name: str) -> Float64Array:
        """One count per user: float [U]."""
        if name == USERS:
            return np.ones(self.n_users)
        if name == ALL:
            return sum(self.by_name.values(), np.zeros(self.n_users))
        if name in (DAYS, ACTIVE):
            distinct = np.unique(np.concatenate([np.zeros(0, np.int64), *self.visits]))
            days = np.bincount(distinct // SPAN, minlength=self.n_users).astype(np.float64)
            return days if name == DAYS else np.minimum(days, 1.0)
        return self.by_name.get(name, np.zeros(self.n_users))


# Days since 1970 stay far below: a user and a day fit into one number.
SPAN = 10**6


def span(first: date, last: date) -> list[date]:
    """All days from the first to the last, both included."""
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]


def user_counts(
    lake: LakeReader, users: Assignments, days: Sequence[date], *, by_market: bool, is_before: bool = False
) -> dict[str, Counts]:
    """Count what the assigned users did on some days.

    Args:
        lake: Reads interactions.
        users: Assigned users.
        days: Days to count.
        by_market: Count per market, too.
        is_before: The days lie before the test: a user's moment of assignment does not matter.

    Returns:
        Counts of all markets under ``all`` and, with ``by_market``, of each market under its name.
    """
    found = {ALL: Counts(len(users.row_of_user))}
    known = pa.array(list(users.row_of_user), pa.string())
    for batch in lake.batches(INTERACTIONS, columns=COLUMNS, where={"event_date": days}):
        if not batch.num_rows:
            continue
        rows = _assigned(batch, known, users, is_before=is_before)
        day = day_number(batch["event_date"][0].as_py())  # a partition is a day, and no batch has two of them
        _add(found[ALL], rows, day)
        for market in pc.unique(rows["market"]).to_pylist() if by_market else ():
            part = rows.filter(pc.equal(rows["market"], market))
            _add(found.setdefault(market or NO_MARKET, Counts(len(users.row_of_user))), part, day)
    return found


def _assigned(batch: pa.RecordBatch, known: pa.Array, users: Assignments, *, is_before: bool) -> pa.Table:
    """The rows of assigned users since their assignment, with column ``row``."""
    row = pc.index_in(batch["user_id"], value_set=known)
    kept = row.is_valid()
    rows = pa.table({name: batch[name] for name in ("interaction_type", "market", "event_ts")} | {"row": row})
    rows = rows.filter(kept)
    if is_before:
        return rows
    moment = rows["event_ts"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    return rows.filter(pa.array(moment >= users.assigned_us[rows["row"].to_numpy()]))


def _add(counts: Counts, rows: pa.Table, day: int) -> None:
    users = rows["row"].to_numpy().astype(np.int64)
    for name in pc.unique(rows["interaction_type"]).to_pylist():
        mine = users[pc.equal(rows["interaction_type"], name).to_numpy()]
        so_far = counts.by_name.setdefault(name, np.zeros(counts.n_users))
        so_far += np.bincount(mine, minlength=counts.n_users)
    counts.visits.append(np.unique(users) * SPAN + day)


def active_users(lake: LakeReader, days: Sequence[date]) -> list[str]:
    """Users with an interaction on some days, sorted."""
    seen: set[str] = set()
    for batch in lake.batches(INTERACTIONS, columns=["user_id"], where={"event_date": days}):
        seen.update(pc.unique(batch["user_id"]).to_pylist())
    return sorted(seen)
