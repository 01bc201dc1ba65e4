"""Fingerprint of the inputs of LTEs, and the runs that no longer fit it (late events, new items, other settings)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from pyspark.sql import Row

from jobs.basis.basis import known_items, read_basis
from jobs.config.sections import BehaviourSection, Deployment, LteSection
from jobs.lake.day import BasisDay, Day
from jobs.lake.reader import LakeReader
from jobs.lte.settings import lte_windows
from jobs.lte.windows import in_window, reach, window_days
from jobs.runtime.day import LTE_JOB
from lte_models.averages.pooling import BEHAVIOUR
from schemas import EVENT_DAYS, INTERACTIONS, ITEM_EMBEDDINGS


def event_days(day: Day) -> list[Row]:
    """Rows of table event_days that a window of ``day`` reaches: event_date, n_events, checksum."""
    days = day.lake.read(EVENT_DAYS).where(in_window(day.ds, reach(lte_windows(day.deployment.lte))))
    return days.select("event_date", "n_events", "checksum").collect()


def input_fingerprint(
    event_days: Iterable[tuple[date, int, str]],
    *,
    lte: LteSection,
    basis_version: str,
    n_known: int,
    behaviour: BehaviourSection | None = None,
) -> str:
    """Hash of all inputs of LTEs: equal fingerprints mean equal LTEs.

    Args:
        event_days: event_date, n_events, checksum of the days that any window reaches, in any order.
        lte: Windows, methods, half-life, way to count.
        basis_version: Basis.
        n_known: Number of items of the basis that were known by ds; known items are never changed or deleted.
        behaviour: Settings of method behaviour; they count only where lte.methods holds it.
    """
    days = sorted([day.isoformat(), n_events, checksum] for day, n_events, checksum in event_days)
    content = {"days": days, "lte": asdict(lte), "basis_version": basis_version, "n_known": n_known}
    if behaviour is not None and BEHAVIOUR in lte.methods:
        content["behaviour"] = asdict(behaviour)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def input_fingerprint_as_of(day: BasisDay) -> str:
    """Fingerprint of the current tables for ``day``; a run that recorded another fingerprint is stale."""
    days = [(each["event_date"], each["n_events"], each["checksum"]) for each in event_days(day)]
    n_known = known_items(read_basis(day.lake, day.basis_version), day.ds).count()
    lte, behaviour = day.deployment.lte, day.deployment.behaviour
    return input_fingerprint(days, lte=lte, basis_version=day.basis_version, n_known=n_known, behaviour=behaviour)


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
        """Why a row of table runs is stale; None if its inputs are unchanged."""
        if run["job"] != LTE_JOB:
            return None
        if self.fingerprint(deployment, run) == run["input_fingerprint"]:
            return None
        return self._why(run["ds"], *window_days(run["ds"], reach(lte_windows(deployment.lte))))

    def fingerprint(self, deployment: Deployment, run: dict[str, Any]) -> str:
        """Fingerprint of the current tables for a row of table runs."""
        ds, basis = run["ds"], run["basis_version"]
        start, end = window_days(ds, reach(lte_windows(deployment.lte)))
        days = [day for day in self.event_days if start <= day[0] < end]
        n_known = sum(first <= ds for first in self.first_days.get(basis, ()))
        return input_fingerprint(
            days, lte=deployment.lte, basis_version=basis, n_known=n_known, behaviour=deployment.behaviour
        )

    def _why(self, ds: date, start: date, end: date) -> str:
        late = sorted({day for day, landed in self.late if start <= day < end and landed > ds})
        if not late:
            return "its interactions, its items or the settings of [lte] changed since"
        more = f" and {len(late) - MAX_DAYS_SHOWN} more days" if len(late) > MAX_DAYS_SHOWN else ""
        return f"events of {', '.join(str(day) for day in late[:MAX_DAYS_SHOWN])}{more} landed after it"


def read_staleness(lake: LakeReader) -> Staleness:
    """Read the tables that runs are judged by."""
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
