"""Turns ranks into results: uplift, interval, p, spread over seeds, and whether a difference holds over seeds and days.

Axes: B user-days of the test days, T their targets, S seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lte_models.arrays import Float64Array
from lte_models.evaluation.comparison import compare, holm, spread, verdict
from lte_models.evaluation.metrics import history_bucket, query_metrics

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
MAIN_METRIC = "ndcg"
NEXT_ITEM_METRIC = "next_item_ndcg"  # each next item counts separately, as in section 5.2 of the paper
SHORT_GROUPS = ("0", "1-5", "6-20", ">20")


@dataclass(frozen=True)
class JudgedUserDays:
    """The user-days on which all variants are judged.

    Attributes:
        user: int [B], a number per user.
        day: int [B], days since 1970.
        n_short: int [B], interactions in the short window, at most 100.
        target_query: int [T], 0..B-1.
        is_repeat: bool [T], whether the user had an interaction with the item in the year before.
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
            targets: Targets that count: all, new or repeated.
            k: Cutoff.

        Returns:
            Metric to float [B]; NaN for a user-day without such a target.

        Raises:
            ValueError: The ranks belong to other targets.
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
    """(targets, short history) of the tables: first everything, then each split separately."""
    return [("all", "all"), *(("all", name) for name in SHORT_GROUPS), ("new", "all"), ("repeated", "all")]


@dataclass(frozen=True)
class Compared:
    """Two ways to rank the same user-days.

    Attributes:
        variant: Label of the variant.
        baseline: Label of the baseline.
        history: Whether the history features of the variant are on: "on" or "off".
        ranks: Ranks of the variant, int [T], one array per seed.
        baseline_ranks: Ranks of the baseline, one array per seed; one array for a baseline without seeds.
        paper: Uplift in the paper; None if the paper does not have this comparison.
    """

    variant: str
    baseline: str
    history: str
    ranks: Sequence[IntArray]
    baseline_ranks: Sequence[IntArray]
    paper: float | None = None


def contrast_rows(pair: Compared, judged: JudgedUserDays, k: int) -> Iterator[dict[str, Any]]:
    """Rows of table experiments for one comparison, one per metric and group; :func:`with_verdicts` adds the verdicts.

    Args:
        pair: The comparison.
        judged: The user-days.
        k: Cutoff.
    """
    for targets, short in groups():
        ours, theirs = (
            [judged.values(ranks, targets, k) for ranks in seeds] for seeds in (pair.ranks, pair.baseline_ranks)
        )
        # The first metric decides the verdict. The metric of the paper counts each next item separately.
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
    """Compare means over seeds; None if fewer than two users are left or the baseline finds no target."""
    if len(np.unique(users)) < 2 or not baseline.any():
        return None
    found = compare(model.mean(axis=0), baseline.mean(axis=0), users)
    judged = spread(model, baseline, days, found.uplift)
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
        "verdict": judged,
        "n_users": found.n_users,
        "n_queries": found.n_queries,
        "n_seeds": len(model),
        "n_days": len(np.unique(days)),
    }


def with_verdicts(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each comparison of one table whether it holds; p is adjusted over all comparisons with the same metric.

    Args:
        rows: All rows of an experiment. Rows of :func:`contrast_rows` have a spread in the place of the verdict.
    """
    found = list(rows)
    compared = [row for row in found if row.get("verdict") is not None]
    for metric in {row["metric"] for row in compared}:
        cells = [row for row in compared if row["metric"] == metric]
        for row, adjusted in zip(cells, holm([row["p"] for row in cells]), strict=True):
            row["verdict"] = verdict(row["p"], adjusted, row["verdict"])
    return found


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
        label: Label of the variant or baseline.
        history: off or on; none for a baseline that is not a model.
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
    """One row for a value that does not belong to user-days, such as seconds.

    Args:
        label: Label of the variant.
        history: off, on or none.
        metric: Name with unit.
        values: One value per seed.
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
    """The power factor with the best mean rank in AUC, recall and precision; of equal ones the one nearest to 1.

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
