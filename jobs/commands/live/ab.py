"""Read out an A/B test: uplift of each KPI with its interval, per variant and per part of the users or markets.

Without an assignment table, the plan of a test: the smallest uplift that the users of the last weeks could show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.abtest.assignments import AssignmentError, Assignments, everyone, read_assignments
from jobs.abtest.kpis import ACTIVE, ALL, DAYS, Counts, Kpi, active_users, span, user_counts
from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.lake.reader import LakeReader, lake_reader
from jobs.landing.erased import erased_users
from jobs.runtime.text import counted
from lte_models.evaluation.ab_test import SRM_ALPHA, Effect, Sample, effect, planned_mde, sample, srm_p
from lte_models.evaluation.comparison import holm
from schemas import EVENT_DAYS

MARKET = "market"
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Question:
    """What to read out.

    Attributes:
        first: First day of the test.
        last: Last day that counts.
        kpis: KPIs; by default all, active, all/days and each interaction type.
        control: Variant that the others are compared with.
        shares: Planned share of each variant; equal shares by default.
        by: ``market``, or a column of the assignment table, to split by; None for no split.
        cuped_days: Days before the test that CUPED reads; 0 for no CUPED.
        anytime_effect: Uplift at which the anytime-valid interval is tightest.
    """

    first: date
    last: date
    kpis: tuple[str, ...] = ()
    control: str = "control"
    shares: Mapping[str, float] | None = None
    by: str | None = None
    cuped_days: int = 0
    anytime_effect: float = 0.02

    def __post_init__(self) -> None:
        """Refuse a test that ends before its start."""
        if self.last < self.first:
            raise ConfigError(f"--to: expected a day from --from={self.first} on, got {self.last}")
        if self.anytime_effect <= 0:
            raise ConfigError(f"--anytime-effect: expected a positive uplift, got {self.anytime_effect}")

    def parsed(self, types: Sequence[str]) -> list[Kpi]:
        """The KPIs."""
        names = self.kpis or (ALL, ACTIVE, f"{ALL}/{DAYS}", *types)
        return [Kpi.parse(name, types) for name in names]

    @property
    def days_before(self) -> list[date]:
        """Days that CUPED reads: those just before the first day."""
        return [self.first - timedelta(days=back) for back in range(self.cuped_days, 0, -1)]


@dataclass(frozen=True)
class Line:
    """One cell of the read-out; ``effect`` is None, with the ``reason``, where there is nothing to compare."""

    part: str
    variant: str
    kpi: str
    effect: Effect | None
    reason: str
    p_holm: float | None = None


def read_out(deployment: Deployment, assignments: Path, question: Question) -> dict[str, Any]:
    """Uplifts of all variants against the control.

    Args:
        deployment: Whose interactions.
        assignments: Assignment table.
        question: What to read out.

    Returns:
        Plain values: ``users`` by variant, ``srm_p``, ``is_split_right``, ``n_erased`` and ``lines``.

    Raises:
        AssignmentError: The table has a fault, no control, or only a control.
        ConfigError: A KPI, share, column or day is wrong.
    """
    lake, kpis = lake_reader(deployment), question.parsed(deployment.interactions.types)
    users = read_assignments(assignments, erased_users(lake))
    counts = _variants(assignments, users, question)
    _require_days(lake, question)
    try:
        split = srm_p(counts, question.shares or dict.fromkeys(counts, 1.0))
    except ValueError as error:
        raise ConfigError(f"--share: {error}") from error
    lines = _adjusted(list(_lines(lake, users, question, kpis)))
    return {
        "from": str(question.first),
        "to": str(question.last),
        "control": question.control,
        "users": counts,
        "n_erased": users.n_erased,
        "srm_p": split,
        "is_split_right": split >= SRM_ALPHA,
        "cuped_days": question.cuped_days,
        "lines": [asdict(line) for line in lines],
    }


def plan(deployment: Deployment, question: Question) -> dict[str, Any]:
    """Smallest uplifts that a test could find, from the users who were there in the days of the question.

    Args:
        deployment: Whose interactions.
        question: Its days are past days, as many as the test will have.

    Raises:
        ConfigError: A KPI or day is wrong, or fewer than two users were active.
    """
    lake, kpis = lake_reader(deployment), question.parsed(deployment.interactions.types)
    _require_days(lake, question)
    days = span(question.first, question.last)
    users = everyone(active_users(lake, days))
    if len(users.row_of_user) < 4:
        raise ConfigError(f"--from={question.first} --to={question.last}: expected 4 active users or more")
    counts = user_counts(lake, users, days, by_market=False)[ALL]
    before = _before(lake, users, question)
    everybody = np.ones(len(users.row_of_user), dtype=bool)
    lines = [(kpi.name, _planned(kpi, counts, before, everybody)) for kpi in kpis]
    return {
        "from": str(question.first),
        "to": str(question.last),
        "n_users": len(users.row_of_user),
        "cuped_days": question.cuped_days,
        "lines": [{"kpi": name, "mde": mde} for name, mde in lines],
    }


def _planned(kpi: Kpi, counts: Counts, before: Counts | None, everybody: Mask) -> float | None:
    try:
        return planned_mde(_sample(kpi, counts, before, everybody))
    except ValueError:
        return None  # nobody did it: there is no mean to compare with


def _variants(path: Path, users: Assignments, question: Question) -> dict[str, int]:
    counts = users.counts()
    if question.control not in counts or len(counts) < 2:
        raise AssignmentError(
            f"{path}, column variant: expected {question.control!r} (--control) and another one, got {sorted(counts)}"
        )
    if min(counts.values()) < 2:
        raise AssignmentError(f"{path}, column variant: expected two users or more in each variant, got {counts}")
    if question.by not in (None, MARKET) and question.by not in users.columns:
        known = ", ".join([MARKET, *users.columns])
        raise ConfigError(f"--by: expected one of {known}, got {question.by!r}")
    return counts


def _require_days(lake: LakeReader, question: Question) -> None:
    """A day that was not ingested yet would count as a day without interactions."""
    days = [row["event_date"] for row in lake.rows(EVENT_DAYS, columns=["event_date"])]
    if not days or question.last > max(days) or question.first < min(days):
        held = f"{min(days)} to {max(days)}" if days else "no day"
        raise ConfigError(
            f"table interactions holds {held}: expected --from={question.first} and --to={question.last} in it"
        )


def _before(lake: LakeReader, users: Assignments, question: Question) -> Counts | None:
    if not question.cuped_days:
        return None
    return user_counts(lake, users, question.days_before, by_market=False, is_before=True)[ALL]


def _lines(lake: LakeReader, users: Assignments, question: Question, kpis: Sequence[Kpi]) -> Iterator[Line]:
    by_market = question.by == MARKET
    counts = user_counts(lake, users, span(question.first, question.last), by_market=by_market)
    before = _before(lake, users, question)
    variants = users.variant.to_numpy()
    for part, kept, found in _parts(users, question, counts):
        control = kept & (variants == question.control)
        for variant in sorted(set(variants) - {question.control}):
            for kpi in kpis:
                sides = [_side(kpi, found, before, mask) for mask in (kept & (variants == variant), control)]
                yield _line(part, str(variant), kpi.name, sides, question.anytime_effect)


def _parts(users: Assignments, question: Question, counts: Mapping[str, Counts]) -> Iterator[tuple[str, Mask, Counts]]:
    """Names of the parts, which users each has, and what these users did."""
    everybody = np.ones(len(users.row_of_user), dtype=bool)
    if question.by in users.columns:
        values = users.columns[str(question.by)].to_numpy()
        for value in sorted(set(values)):
            yield str(value), values == value, counts[ALL]
    for market in sorted(counts.keys() - {ALL}):
        yield market, everybody, counts[market]
    yield ALL, everybody, counts[ALL]


def _sample(kpi: Kpi, counts: Counts, before: Counts | None, kept: Mask) -> Sample:
    earlier = before and (before.of(kpi.numerator)[kept], before.of(kpi.denominator)[kept])
    return sample(counts.of(kpi.numerator)[kept], counts.of(kpi.denominator)[kept], earlier or None)


def _side(kpi: Kpi, counts: Counts, before: Counts | None, kept: Mask) -> Sample | str:
    try:
        return _sample(kpi, counts, before, kept)
    except ValueError as error:
        return str(error)


def _line(part: str, variant: str, kpi: str, sides: Sequence[Sample | str], anytime_effect: float) -> Line:
    ours, theirs = sides
    if isinstance(ours, str) or isinstance(theirs, str):
        return Line(part, variant, kpi, None, ours if isinstance(ours, str) else str(theirs))
    try:
        return Line(part, variant, kpi, effect(ours, theirs, anytime_effect=anytime_effect), "")
    except ValueError as error:
        return Line(part, variant, kpi, None, str(error))


def _adjusted(lines: list[Line]) -> list[Line]:
    """With p adjusted over all cells of the table."""
    cells = [line for line in lines if line.effect]
    adjusted = iter(holm([line.effect.p for line in cells if line.effect]))
    return [
        Line(line.part, line.variant, line.kpi, line.effect, line.reason, next(adjusted) if line.effect else None)
        for line in lines
    ]


def read_out_text(found: Mapping[str, Any]) -> str:
    """The read-out for a person."""
    users = ", ".join(f"{name} {n:,}" for name, n in found["users"].items())
    lines = [f"{found['from']} to {found['to']}, users: {users}; erased since: {found['n_erased']}"]
    if not found["is_split_right"]:
        lines.append(
            f"SAMPLE RATIO MISMATCH, p = {found['srm_p']:.2g}: the users are not split as planned. Find out why, and "
            "do not read the uplifts below."
        )
    head = ("part", "variant", "KPI", "control", "uplift", "95 % CI", "p", "p (Holm)", "CI at any time", "MDE")
    lines.append("{:14}{:14}{:16}{:>11}{:>9}{:>19}{:>8}{:>10}{:>19}{:>8}".format(*head))
    return "\n".join([*lines, *map(_line_text, found["lines"])])


def _line_text(line: Mapping[str, Any]) -> str:
    head = f"{line['part']:14}{line['variant']:14}{line['kpi']:16}"
    found = line["effect"]
    if found is None:
        return f"{head}{line['reason']}"
    return (
        f"{head}{found['control']:>11.5g}{found['uplift']:>+9.2%}{_interval(found['low'], found['high']):>19}"
        f"{found['p']:>8.2g}{line['p_holm']:>10.2g}{_interval(found['anytime_low'], found['anytime_high']):>19}"
        f"{found['mde']:>8.2%}"
    )


def _interval(low: float, high: float) -> str:
    return f"[{100 * low:.2f}, {100 * high:.2f}]%"


def plan_text(found: Mapping[str, Any]) -> str:
    """The plan for a person."""
    users = counted(found["n_users"], "user")
    head = f"{found['from']} to {found['to']}: {users}, half of them in each variant, power 80 %, level 5 %"
    lines = (
        f"  {row['kpi']:16}" + ("no interaction" if row["mde"] is None else f"uplift of {row['mde']:.2%} or more")
        for row in found["lines"]
    )
    return "\n".join([head, *lines])
