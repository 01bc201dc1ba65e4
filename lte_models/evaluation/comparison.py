"""Whether one model is better than another: one estimand, one interval, one p, one meaning of "holds".

The estimand is the relative uplift of the mean over user-days, ``sum(model) / sum(baseline) - 1``. Uplift, interval and
p are all of this one number, so the 95 % interval leaves out 0 exactly where p < .05. The unit is the user: the days of
one user are not independent. Seeds are averaged before two models are paired.

Axes: B user-days, U users, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from lte_models.arrays import Float64Array, IntArray

SIGNIFICANT = 0.05

# A difference holds only if at least this share of the days has its sign.
MIN_SAME_DAYS = 0.8


@dataclass(frozen=True)
class Comparison:
    """Paired comparison of two models on the same user-days.

    Attributes:
        baseline: Mean of the baseline over user-days.
        model: Mean of the model over user-days.
        uplift: ``model / baseline - 1``.
        low: Lower end of the 95 % interval of ``uplift``.
        high: Upper end.
        p: Two-sided, of ``uplift`` = 0; 1 if the two models are equal.
        n_users: Users compared.
        n_queries: User-days compared.
    """

    baseline: float
    model: float
    uplift: float
    low: float
    high: float
    p: float
    n_users: int
    n_queries: int


def compare(model: Float64Array, baseline: Float64Array, users: IntArray) -> Comparison:
    """Estimate the uplift with its interval and p, clustered by user.

    The ratio of two sums is linear in its users to first order: user u moves it by ``e_u = M_u - (1 + uplift) B_u``
    over ``sum(B)``, where M_u and B_u are the sums of u's days. Its variance is ``U / (U - 1) * sum(e_u ** 2) /
    sum(B) ** 2``, and the uplift over its standard error follows Student's t with U - 1 degrees of freedom.

    Average a model over its seeds first: p and interval are about other users, not about another training.

    Args:
        model: float [B], one value per user-day.
        baseline: float [B], the same user-days.
        users: int [B], user of each user-day.

    Returns:
        The comparison.

    Raises:
        ValueError: The shapes differ, a value is NaN, there are fewer than two users, or the baseline is 0 everywhere.
    """
    if not model.shape == baseline.shape == users.shape:
        raise ValueError(f"not paired: expected equal shapes, got {model.shape}, {baseline.shape}, {users.shape}")
    if np.isnan(model).any() or np.isnan(baseline).any():
        raise ValueError("a value to compare is NaN: leave out user-days without a target")
    _, index = np.unique(users, return_inverse=True)
    n_users = int(index.max(initial=-1)) + 1
    if n_users < 2:
        raise ValueError(f"a paired test: expected at least 2 users, got {n_users}")
    ours, theirs = (np.bincount(index, weights=value) for value in (model, baseline))  # [U]
    if theirs.sum() == 0:
        raise ValueError("the baseline is 0 throughout: there is no relative uplift")
    uplift = float(ours.sum() / theirs.sum() - 1)
    residuals = ours - (1 + uplift) * theirs
    error = float(np.sqrt(n_users / (n_users - 1) * np.square(residuals).sum()) / theirs.sum())
    # equal models leave only rounding errors, whose ratio to the uplift has no meaning
    if np.array_equal(ours, theirs):
        uplift, error = 0.0, 0.0
    reach = error * float(stats.t.ppf(0.975, n_users - 1))
    return Comparison(
        baseline=float(baseline.mean()),
        model=float(model.mean()),
        uplift=uplift,
        low=uplift - reach,
        high=uplift + reach,
        p=_p(uplift, error, n_users),
        n_users=n_users,
        n_queries=len(model),
    )


def _p(uplift: float, error: float, n_users: int) -> float:
    if error == 0:
        return 1.0 if uplift == 0 else 0.0
    return float(2 * stats.t.sf(abs(uplift) / error, n_users - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p of all cells of a table, so that the chance of any false finding stays below the level (Holm 1979).

    Args:
        p_values: p of each cell.

    Returns:
        Adjusted p, in the same order: the i-th smallest p times the number of cells from the i-th on. It is at most 1,
        and at least the adjusted p of a smaller p.
    """
    order = np.argsort(np.asarray(p_values, dtype=np.float64), kind="stable")
    adjusted, highest = np.ones(len(order)), 0.0
    for place, cell in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p_values[cell]))
        adjusted[cell] = highest
    return [float(value) for value in adjusted]


@dataclass(frozen=True)
class Spread:
    """How a difference spreads over seeds and days.

    Attributes:
        seed_low: Smallest uplift of a seed over all days.
        seed_high: Largest uplift of a seed over all days.
        n_same: Seed-days whose uplift has the sign of the whole.
        n_seed_days: Seeds times days.
        n_same_seeds: Seeds with this sign over all days.
        n_seeds: S.
        n_same_days: Days with this sign over all seeds.
        n_days: Days with user-days.
    """

    seed_low: float
    seed_high: float
    n_same: int
    n_seed_days: int
    n_same_seeds: int
    n_seeds: int
    n_same_days: int
    n_days: int

    def __str__(self) -> str:
        """Counts in words."""
        return (
            f"{self.n_same} of {self.n_seed_days} seed-days, {self.n_same_seeds} of {self.n_seeds} seeds, "
            f"{self.n_same_days} of {self.n_days} days"
        )


def relative(model: npt.NDArray[np.float64], baseline: npt.NDArray[np.float64]) -> float:
    """Relative difference of two means; 0 if both are 0, infinite if only the baseline is 0."""
    first, second = float(model.mean()), float(baseline.mean())
    if second == 0:
        return 0.0 if first == 0 else float("inf")
    return first / second - 1


def spread(model: Float64Array, baseline: Float64Array, days: IntArray, uplift: float) -> Spread:
    """Count the seeds and days that have the sign of the whole.

    Args:
        model: float [S, B], one row per seed.
        baseline: float [S, B], the same seeds; one row if the baseline has no seed.
        days: int [B].
        uplift: Uplift of the means over seeds.
    """
    baseline = np.broadcast_to(baseline, model.shape)
    parts = [days == day for day in np.unique(days)]
    by_seed = [relative(ours, theirs) for ours, theirs in zip(model, baseline, strict=True)]
    cells = [relative(ours[day], theirs[day]) for ours, theirs in zip(model, baseline, strict=True) for day in parts]
    by_day = [relative(model[:, day], baseline[:, day]) for day in parts]
    same, seeds, days_alike = (
        int((np.sign(each) == np.sign(uplift)).sum()) for each in (np.array(cells), np.array(by_seed), np.array(by_day))
    )
    return Spread(min(by_seed), max(by_seed), same, len(cells), seeds, len(by_seed), days_alike, len(by_day))


def verdict(p: float, adjusted: float, found: Spread) -> str:
    """Say whether a difference holds.

    It holds if its p, adjusted over the cells of its table, is below .05, every seed has its sign over all days, and at
    least four of five days have its sign over all seeds.

    Args:
        p: p of the comparison.
        adjusted: p adjusted by :func:`holm`.
        found: Spread over seeds and days.
    """
    if p >= SIGNIFICANT:
        return f"does not hold: not significant ({found})"
    if adjusted >= SIGNIFICANT:
        return f"does not hold: not significant among the cells of the table, Holm's p = {adjusted:.2g} ({found})"
    if found.n_same_seeds < found.n_seeds or found.n_same_days < MIN_SAME_DAYS * found.n_days:
        return f"does not hold over seeds and days ({found})"
    return f"holds in {found}"
