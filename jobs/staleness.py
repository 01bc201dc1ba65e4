"""Which runs no longer fit their inputs: late events, new items or other settings came after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from jobs.compute_lte import JOB, input_fingerprint, lte_windows
from jobs.config import Deployment
from jobs.histories import reach, window_days
from jobs.lake_reader import LakeReader
from schemas import EVENT_DAYS, INTERACTIONS, ITEM_EMBEDDINGS

MAX_DAYS_SHOWN = 5


@dataclass(frozen=True)
class Staleness:
    """Judges runs of one deployment; reads each table once for all runs.

    Attributes:
        event_days: event_date, n_events, checksum of every day.
        first_days: basis_version to the first_ds of its items.
        late: (event_date, landing_ds) pairs of events that landed after their own day.
    """

    event_days: tuple[tuple[date, int, str], ...]
    first_days: dict[str, list[date]]
    late: frozenset[tuple[date, date]]

    def reason(self, deployment: Deployment, run: dict[str, Any]) -> str | None:
        """Why a row of table runs is stale; None while its inputs are what they were."""
        if run["job"] != JOB:
            return None
        ds, basis = run["ds"], run["basis_version"]
        start, end = window_days(ds, reach(lte_windows(deployment.lte)))
        days = [day for day in self.event_days if start <= day[0] < end]
        n_known = sum(first <= ds for first in self.first_days.get(basis, ()))
        now = input_fingerprint(days, lte=deployment.lte, basis_version=basis, n_known=n_known)
        return None if now == run["input_fingerprint"] else self._why(ds, start, end)

    def _why(self, ds: date, start: date, end: date) -> str:
        late = sorted({day for day, landed in self.late if start <= day < end and landed > ds})
        if not late:
            return "its interactions, its items or the settings of [lte] changed since"
        more = f" and {len(late) - MAX_DAYS_SHOWN} more days" if len(late) > MAX_DAYS_SHOWN else ""
        return f"events of {', '.join(str(day) for day in late[:MAX_DAYS_SHOWN])}{more} landed after it"


def read_staleness(lake: LakeReader) -> Staleness:
    """Read what runs are judged by."""
    first_days: dict[str, list[date]] = {}
    for row in lake.rows(ITEM_EMBEDDINGS, columns=["basis_version", "first_ds"]):
        first_days.setdefault(row["basis_version"], []).append(row["first_ds"])
    days = lake.rows(EVENT_DAYS, columns=["event_date", "n_events", "checksum"])
    return Staleness(
        event_days=tuple((row["event_date"], row["n_events"], row["checksum"]) for row in days),
        first_days=first_days,
        late=frozenset(_late_pairs(lake)),
    )


def _late_pairs(lake: LakeReader) -> set[tuple[date, date]]:
    pairs: set[tuple[date, date]] = set()
    for batch in lake.batches(INTERACTIONS, columns=["event_date", "landing_ds"]):
        distinct = batch.to_pandas().drop_duplicates()
        pairs |= {(event, landed) for event, landed in distinct.itertuples(index=False) if landed > event}
    return pairs


def stale_reason(staleness: Staleness, deployment: Deployment, runs: Sequence[dict[str, Any]]) -> str | None:
    """The first reason among the jobs of one data day."""
    return next((why for run in runs if (why := staleness.reason(deployment, run)) is not None), None)
