"""From ranks to findings: uplift, interval, p, spread over seeds, and whether a difference holds over seeds and days.

Axes: B user-days of the test days, T their targets, S seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lte_models.arrays import Float64Array
from lte_models.evaluation.metrics import Comparison, compare, history_bucket, query_metrics

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
MAIN_METRIC = "ndcg"
NEXT_ITEM_METRIC = "next_item_ndcg"  # each next item on its own, as the paper's section 5.2 has it
SHORT_GROUPS = ("0", "1-5", "6-20", ">20")
SIGNIFICANT = 0.05

# A difference holds if every seed has its sign, and so many of the days.
MIN_SAME_DAYS = 0.8


@dataclass(frozen=True)
class JudgedUserDays:
    """The user-days that all variants are judged on.

    Attributes:
        user: int [B], a number for each user.
        day: int [B], days since 1970.
        n_short: int [B], interactions in the short window, at most 100.
        target_query: int [T], 0..B-1.
        is_repeat: bool [T], whether the user took the item in the year before.
    """

    user: IntArray
    day: IntArray
    n_short: IntArray
    target_query: IntArray
    is_repeat: BoolArray

    def values(self, ranks: IntArray, targets: str, k: int) -> dict[str, Float64Array]:
        """Metrics at ``k`` of each user-day.

        Args:
            ranks: int [T], from 1.
            targets: Which of them count: all, new or repeated.
            k: Cutoff.

        Returns:
            float [B] by metric; NaN where a user-day has no such target.

        Raises:
            ValueError: The ranks are of other targets.
        """
        if ranks.shape != self.target_query.shape:
            raise ValueError(f"{len(ranks)} ranks for {len(self.target_query)} targets: not the same test days")
        chosen = {"all": np.ones_like(self.is_repeat), "new": ~self.is_repeat, "repeated": self.is_repeat}[targets]
        return query_metrics(ranks[chosen], self.target_query[chosen], len(self.user), k)

    def group(self, name: str) -> BoolArray:
        """Tell which user-days belong to a group of short histories: bool [B]."""
        if name == "all":
            return np.ones(len(self.user), dtype=bool)
        is_member: BoolArray = history_bucket(self.n_short) == name
        return is_member


def groups() -> list[tuple[str, str]]:
    """(targets, short history) of the tables: everything, then each split on its own."""
    return [("all", "all"), *(("all", name) for name in SHORT_GROUPS), ("new", "all"), ("repeated", "all")]


@dataclass(frozen=True)
class Spread:
    """How a difference holds over seeds and days.

    Attributes:
        seed_low: Smallest uplift of a seed over all days.
        seed_high: Largest.
        n_same: Seed-days whose uplift has the sign of the whole.
        n_seed_days: Seeds times days with user-days.
        verdict: In words.
    """

    seed_low: float
    seed_high: float
    n_same: int
    n_seed_days: int
    verdict: str


def uplift(model: Float64Array, baseline: Float64Array) -> float:
    """Relative difference of two means; 0 where both are 0, infinite where only the baseline is."""
    first, second = float(model.mean()), float(baseline.mean())
    if second == 0:
        return 0.0 if first == 0 else float("inf")
    return first / second - 1


def spread(model: Float64Array, baseline: Float64Array, days: IntArray, found: Comparison) -> Spread:
    """Judge a difference over seeds and days (issue: one that does not hold is called what it is).

    It holds if p is below .05, every seed has the sign of the whole over all days, and at least four of five days have
    it over all seeds.

    Args:
        model: float [S, B], one row a seed.
        baseline: float [S, B], the same seeds; one row where the baseline has no seed.
        days: int [B].
        found: The comparison of the means over seeds.
    """
    baseline = np.broadcast_to(baseline, model.shape)
    sign = np.sign(found.uplift)
    by_seed = [uplift(ours, theirs) for ours, theirs in zip(model, baseline, strict=True)]
    parts = [days == day for day in np.unique(days)]
    cells = [uplift(ours[day], theirs[day]) for ours, theirs in zip(model, baseline, strict=True) for day in parts]
    by_day = [uplift(model[:, day], baseline[:, day]) for day in parts]
    n_same, n_seeds, n_days = (int((np.sign(each) == sign).sum()) for each in (cells, by_seed, by_day))
    text = f"{n_same} of {len(cells)} seed-days, {n_seeds} of {len(by_seed)} seeds, {n_days} of {len(by_day)} days"
    if found.p >= SIGNIFICANT:
        verdict = f"does not hold: not significant ({text})"
    elif n_seeds < len(by_seed) or n_days < MIN_SAME_DAYS * len(by_day):
        verdict = f"does not hold over seeds and days ({text})"
    else:
        verdict = f"holds in {text}"
    return Spread(min(by_seed), max(by_seed), n_same, len(cells), verdict)


@dataclass(frozen=True)
class Compared:
    """Two ways to rank the same user-days.

    Attributes:
        variant: Label of the first.
        baseline: Label of the second.
        history: Whether the first has its history features on: "on" or "off".
        ranks: Of the first, int [T], one array a seed.
        baseline_ranks: Of the second; one array where it has no seed.
        paper: The paper's uplift where it has this comparison.
    """

    variant: str
    baseline: str
    history: str
    ranks: Sequence[IntArray]
    baseline_ranks: Sequence[IntArray]
    paper: float | None = None


def contrast_rows(pair: Compared, judged: JudgedUserDays, k: int) -> Iterator[dict[str, Any]]:
    """Rows of table experiments for one comparison, one a metric and group.

    Args:
        pair: What is compared.
        judged: The user-days.
        k: Cutoff.
    """
    for targets, short in groups():
        ours, theirs = (
            [judged.values(ranks, targets, k) for ranks in seeds] for seeds in (pair.ranks, pair.baseline_ranks)
        )
        # the first metric carries the verdict; the paper's own counts each next item on its own
        for metric in (
            (MAIN_METRIC, "next_item_ndcg", "recall", "precision", "mrr") if short == "all" else (MAIN_METRIC,)
        ):
            model, baseline = (np.stack([values[metric] for values in seeds]) for seeds in (ours, theirs))
            kept = judged.group(short) & ~np.isnan(model[0])
            row = _compared(model[:, kept], baseline[:, kept], judged.user[kept], judged.day[kept])
            if row is None:
                continue
            is_whole = (targets, short) == ("all", "all") and metric in (MAIN_METRIC, NEXT_ITEM_METRIC)
            yield {
                "variant": pair.variant,
                "baseline": pair.baseline,
                "history": pair.history,
                "metric": f"{metric}_at_{k}",
                "targets": targets,
                "short_history": short,
                "paper_uplift": pair.paper if is_whole else None,
                **row,
            }


def _compared(model: Float64Array, baseline: Float64Array, users: IntArray, days: IntArray) -> dict[str, Any] | None:
    """Compare means over seeds; None where fewer than two users are left or the baseline finds nothing."""
    if len(np.unique(users)) < 2 or not baseline.any():
        return None
    found = compare(model.mean(axis=0), baseline.mean(axis=0), users)
    judged = spread(model, baseline, days, found)
    return {
        "value": found.model,
        "seed_low": float(model.mean(axis=1).min()),
        "seed_high": float(model.mean(axis=1).max()),
        "baseline_value": found.baseline,
        "uplift": found.uplift,
        "uplift_low": found.low,
        "uplift_high": found.high,
        "p": found.p,
        "uplift_seed_low": judged.seed_low,
        "uplift_seed_high": judged.seed_high,
        "n_same_sign": judged.n_same,
        "n_seed_days": judged.n_seed_days,
        "verdict": judged.verdict,
        "n_users": found.n_users,
        "n_queries": found.n_queries,
        "n_seeds": len(model),
        "n_days": len(np.unique(days)),
    }


def best_baseline(ranks: Mapping[str, IntArray], judged: JudgedUserDays, k: int) -> str:
    """Name of the baseline with the best mean NDCG.

    Args:
        ranks: Baseline to its ranks, int [T].
        judged: The user-days.
        k: Cutoff.
    """
    return max(ranks, key=lambda name: float(judged.values(ranks[name], "all", k)[MAIN_METRIC].mean()))


def value_rows(
    label: str, history: str, seeds: Sequence[IntArray], judged: JudgedUserDays, k: int
) -> Iterator[dict[str, Any]]:
    """Rows without a comparison: metrics of one variant or baseline in each group.

    Args:
        label: Of the variant.
        history: off, on, or none for what is no model.
        seeds: Ranks of each seed, int [T].
        judged: The user-days.
        k: Cutoff.
    """
    for targets, short in groups():
        found = [judged.values(ranks, targets, k) for ranks in seeds]
        for metric in found[0]:
            values = np.stack([each[metric] for each in found])
            kept = judged.group(short) & ~np.isnan(values[0])
            if not kept.any():
                continue
            means = values[:, kept].mean(axis=1)
            yield {
                "variant": label,
                "baseline": "",
                "history": history,
                "metric": f"{metric}_at_{k}",
                "targets": targets,
                "short_history": short,
                "value": float(means.mean()),
                "seed_low": float(means.min()),
                "seed_high": float(means.max()),
                "n_users": len(np.unique(judged.user[kept])),
                "n_queries": int(kept.sum()),
                "n_seeds": len(seeds),
                "n_days": len(np.unique(judged.day[kept])),
            }


def plain_row(label: str, history: str, metric: str, values: Sequence[float], **counts: int) -> dict[str, Any]:
    """One row for a value that is not of user-days, such as seconds.

    Args:
        label: Of the variant.
        history: off, on or none.
        metric: Name with unit.
        values: One a seed.
        counts: ``n_users``, ``n_queries`` and ``n_days`` of the test days.
    """
    return {
        "variant": label,
        "baseline": "",
        "history": history,
        "metric": metric,
        "targets": "all",
        "short_history": "all",
        "value": float(np.mean(values)),
        "seed_low": float(np.min(values)),
        "seed_high": float(np.max(values)),
        "n_seeds": len(values),
        **counts,
    }


def best_power(scores: Mapping[float, Mapping[str, float]]) -> float:
    """The power factor with the best mean place in AUC, recall and precision; of equals the one nearest to 1.

    Args:
        scores: Power to its ``auc``, ``recall`` and ``precision``, means over seeds.
    """
    powers = sorted(scores, key=lambda power: (abs(power - 1), power))
    places = dict.fromkeys(powers, 0.0)
    for metric in ("auc", "recall", "precision"):
        values = np.array([scores[power][metric] for power in powers])
        for power, value in zip(powers, values, strict=True):
            places[power] += float((values > value).sum())
    return min(powers, key=lambda power: places[power])
