"""Which earlier days a day can be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.basis.basis import single_basis
from jobs.basis.matrix import BasisKey, pinned_basis
from jobs.config.sections import LteSection
from jobs.lake.day import Day
from jobs.lake.lake import Lake, Metrics
from jobs.lte.behaviour import is_configured, used_behaviour
from jobs.lte.settings import LteError, lte_settings
from jobs.runtime.day import LTE_JOB
from schemas import ITEM_BEHAVIOUR, METRICS, POOLED_METHODS, USER_LTE


@dataclass(frozen=True)
class References:
    """Which earlier days can be compared with ds.

    Attributes:
        basis_version: Basis of the LTEs of ds.
        offsets: Offsets, in days, of the days whose LTEs have the same basis.
        other_settings: The subset of ``offsets`` whose LTEs were made with another half-life or another way to count.
            These days are not judged.
        other_basis: Offsets of days whose LTEs have another basis. Vectors of two bases cannot be compared.
        behaviour: The behaviour vectors of ds; None without method behaviour.
        other_behaviour: The subset of ``offsets`` with other behaviour vectors: method behaviour is not judged there.
    """

    basis_version: str
    offsets: tuple[int, ...]
    other_settings: tuple[int, ...]
    other_basis: tuple[int, ...]
    behaviour: BasisKey | None = None
    other_behaviour: tuple[int, ...] = ()

    def metrics(self) -> Metrics:
        """Number of reference days of each kind."""
        kinds = {"n_reference_days": self.offsets, "n_other_settings_days": self.other_settings}
        kinds["n_other_basis_days"] = self.other_basis
        if self.behaviour is not None:
            kinds["n_other_behaviour_days"] = self.other_behaviour
        return {name: float(len(offsets)) for name, offsets in kinds.items()}


def find_references(day: Day) -> References:
    """Find the configured offsets whose days have LTEs to compare with.

    Raises:
        LteError: user_lte has no rows of ``ds``, or the rows were not made with the configured settings.
        jobs.basis.basis.BasisError: A day's rows have two bases.
    """
    lake, ds = day.lake, day.ds
    days = {ds - timedelta(days=offset): offset for offset in day.deployment.drift.offsets_days}
    averages = lake.read(USER_LTE, where={"ds": [ds, *days], "method": POOLED_METHODS})
    found = averages.select("ds", "basis_version").distinct()
    bases = {
        each: single_basis(found.where(F.col("ds") == each), f"table user_lte, ds={each}") for each in _days(found)
    }
    if ds not in bases:
        raise LteError(f"table user_lte: no rows for ds={ds}: run compute_lte first")
    settings = lte_settings(day.deployment.lte)
    recorded = _recorded_settings(lake, [ds, *days])
    if recorded.get(ds) != settings:
        raise LteError(
            f"table user_lte, ds={ds}: made with {recorded.get(ds)}, configured is {settings}: run compute_lte"
        )
    same = {days[each] for each, basis_version in bases.items() if each != ds and basis_version == bases[ds]}
    others = {days[each] for each in bases if each != ds} - same
    changed = {offset for offset in same if recorded.get(ds - timedelta(days=offset)) != settings}
    offsets = tuple(sorted(same))
    behaviour, refitted = _behaviour(day, offsets)
    return References(bases[ds], offsets, tuple(sorted(changed)), tuple(sorted(others)), behaviour, refitted)


def _behaviour(day: Day, offsets: Sequence[int]) -> tuple[BasisKey | None, tuple[int, ...]]:
    """The behaviour vectors of a day, and the offsets whose LTEs were made with others."""
    if not is_configured(day.deployment):
        return None, ()
    version = used_behaviour(day.lake, day.ds)
    if version is None:
        raise LteError(f"table runs, ds={day.ds}: no version of the behaviour vectors: run compute_lte first")
    others = [offset for offset in offsets if used_behaviour(day.lake, day.ds - timedelta(days=offset)) != version]
    return pinned_basis(day.lake, version, ITEM_BEHAVIOUR), tuple(others)


def _days(rows: DataFrame) -> list[date]:
    return sorted({row["ds"] for row in rows.select("ds").distinct().collect()})


def _recorded_settings(lake: Lake, days: Sequence[date]) -> dict[date, dict[str, float]]:
    """Settings that compute_lte recorded together with its LTEs."""
    names = list(lte_settings(LteSection()))
    rows = lake.read(METRICS, where={"ds": list(days), "job": LTE_JOB, "metric": names}).collect()
    found: dict[date, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["ds"], {})[row["metric"]] = row["value"]
    return found
