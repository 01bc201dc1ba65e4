"""Ranking metrics of the test day and the statistics that compare two models.

Axes: B queries (one a user and day), T targets of all queries, V items. A query's scores cover the whole vocabulary;
equal scores rank in column order, which is frequency order, so that a tie is never won by luck.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from lte_models.arrays import Float64Array

IntArray = npt.NDArray[np.int64]


def target_ranks(scores: Tensor, target_query: Tensor, targets: Tensor) -> Tensor:
    """Rank of each target among all items for its query, from 1: one more than the items that come before it.

    Args:
        scores: float [B, V].
        target_query: int64 [T].
        targets: int64 [T], columns of ``scores``.

    Returns:
        int64 [T].

    Raises:
        ValueError: A score is not finite.
    """
    rows, queries, columns = scores.detach().cpu().numpy(), target_query.tolist(), targets.tolist()
    finite = np.isfinite(rows)
    if not finite.all():
        raise ValueError(f"a score of query {int(np.flatnonzero(~finite.all(axis=1))[0])} is not finite")
    ranks = [_rank(rows[query], column) for query, column in zip(queries, columns, strict=True)]
    return torch.tensor(ranks, dtype=torch.int64, device=scores.device)


def _rank(row: npt.NDArray[np.float32], column: int) -> int:
    # numpy compares and counts a row several times faster than torch, and than any sort
    own = row[column]
    return 1 + int(np.count_nonzero(row > own)) + int(np.count_nonzero(row[:column] == own))


def top_items(scores: Tensor, k: int) -> Tensor:
    """The k best items of each query, best first; of equal scores the earlier column comes first.

    Args:
        scores: float [B, V].
        k: At most V are returned.

    Returns:
        int64 [B, min(k, V)], columns.
    """
    k = min(k, scores.shape[1])
    lowest = torch.topk(scores.detach(), k, dim=1).values[:, -1].tolist()
    rows = scores.detach().cpu().numpy()
    best = [_best(row, value, k) for row, value in zip(rows, lowest, strict=True)]
    return torch.from_numpy(np.stack(best) if best else np.zeros((0, k), np.int64)).to(scores.device)


def _best(row: npt.NDArray[np.float32], lowest: float, k: int) -> IntArray:
    kept = np.flatnonzero(row >= lowest)  # more than k where others are as good as the last one: topk takes any of them
    return kept[np.argsort(-row[kept], kind="stable")[:k]]


def query_metrics(ranks: IntArray, target_query: IntArray, n_queries: int, k: int) -> dict[str, Float64Array]:
    """Metrics at k of each query.

    Args:
        ranks: int [T], from 1.
        target_query: int [T], 0..B-1; a target occurs once a query.
        n_queries: B.
        k: Cutoff.

    Returns:
        float [B] by name; NaN for a query without target. ``ndcg`` has binary relevance and the ideal of as many
        targets as fit into k; ``next_item_ndcg`` is the mean over targets of 1 / log2(1 + rank): each next item on its
        own, as the paper's section 5.2 has it.

    Raises:
        ValueError: ``k`` < 1.
    """
    if k < 1:
        raise ValueError(f"cutoff k must be at least 1, not {k}")
    within = ranks <= k
    gains = within / np.log2(1.0 + ranks)
    counts = np.bincount(target_query, minlength=n_queries).astype(np.float64)
    counts[counts == 0] = np.nan
    dcg = np.bincount(target_query, weights=gains, minlength=n_queries)
    hits = np.bincount(target_query, weights=within, minlength=n_queries)
    ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
    fit = np.minimum(np.nan_to_num(counts, nan=1), k).astype(np.int64)
    first = np.full(n_queries, np.inf)
    np.minimum.at(first, target_query, np.where(within, ranks, np.inf))
    missing = np.where(np.isnan(counts), np.nan, 0.0)
    return {
        "ndcg": dcg / ideal[fit - 1] + missing,
        "recall": hits / counts,
        "precision": hits / k + missing,
        "mrr": 1 / first + missing,
        "next_item_ndcg": dcg / counts,
    }


def coverage(top_items: IntArray, n_items: int) -> float:
    """Share of the catalogue that at least one query is shown.

    Args:
        top_items: int [B, k], columns of the k best items.
        n_items: V.

    Returns:
        0 to 1.
    """
    return len(np.unique(top_items)) / n_items


def popularity_bias(top_items: IntArray, counts: IntArray, target_items: IntArray) -> float:
    """How much more popular than the targets the shown items are.

    Args:
        top_items: int [B, k], columns of the k best items.
        counts: int [V], interactions of each item in the training data.
        target_items: int [T], columns.

    Returns:
        Difference of the mean log(1 + count) of shown items and of targets; 0 is unbiased, 1 is e times as popular.
    """
    log_counts = np.log1p(counts.astype(np.float64))
    return float(log_counts[top_items].mean() - log_counts[target_items].mean())


@dataclass(frozen=True)
class Comparison:
    """Paired comparison of two models on the same queries.

    Attributes:
        baseline: Mean of the baseline.
        model: Mean of the model.
        uplift: Relative difference, model / baseline - 1.
        low: Lower end of the 95 % interval of ``uplift``.
        high: Upper end.
        p: Of the two-sided paired t-test over users; 1 where the two do not differ at all.
        n_users: Users compared.
        n_queries: Queries compared.
    """

    baseline: float
    model: float
    uplift: float
    low: float
    high: float
    p: float
    n_users: int
    n_queries: int


def compare(
    model: Float64Array, baseline: Float64Array, users: IntArray, *, n_resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Paired t-test and bootstrap interval, both with the user as the unit: a user's days are not independent.

    Average a model over its seeds before it comes here: p and interval speak of users, not of retraining.

    Args:
        model: float [B], one value a query.
        baseline: float [B], the same queries.
        users: int [B], user of each query.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        The comparison.

    Raises:
        ValueError: The shapes differ, a value is NaN, there are fewer than two users, or the baseline is 0 throughout.
    """
    if not model.shape == baseline.shape == users.shape:
        raise ValueError(f"not paired: {model.shape}, {baseline.shape}, {users.shape}")
    if np.isnan(model).any() or np.isnan(baseline).any():
        raise ValueError("a value to compare is NaN")
    _, index = np.unique(users, return_inverse=True)
    n_users = int(index.max(initial=-1)) + 1
    if n_users < 2:
        raise ValueError(f"a paired test needs at least 2 users, not {n_users}")
    sums = np.stack(
        [np.bincount(index, weights=value).astype(np.float64) for value in (model, baseline, np.ones_like(model))],
        axis=1,
    )
    if sums[:, 1].sum() == 0:
        raise ValueError("the baseline is 0 throughout: there is no relative uplift")
    low, high = _bootstrap(sums, n_resamples, seed)
    total = sums.sum(axis=0)
    return Comparison(
        baseline=float(total[1] / total[2]),
        model=float(total[0] / total[2]),
        uplift=float(total[0] / total[1] - 1),
        low=low,
        high=high,
        p=paired_p(sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]),
        n_users=n_users,
        n_queries=len(model),
    )


def _bootstrap(sums: Float64Array, n_resamples: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    n_users = len(sums)
    uplifts = np.empty(n_resamples)
    for i in range(n_resamples):  # a matrix of all resamples would hold n_resamples x n_users counts
        drawn = np.bincount(rng.integers(n_users, size=n_users), minlength=n_users) @ sums
        uplifts[i] = drawn[0] / drawn[1] - 1 if drawn[1] else np.nan
    low, high = np.nanquantile(uplifts, [0.025, 0.975])
    return float(low), float(high)


def paired_p(first: Float64Array, second: Float64Array) -> float:
    """Two-sided paired t-test.

    Args:
        first: float [N].
        second: float [N].

    Returns:
        p; 1 where all differences are zero (the t statistic is 0 / 0), 0 where they are one other constant.
    """
    difference = first - second
    if np.ptp(difference) == 0:
        return 1.0 if difference[0] == 0 else 0.0
    return float(stats.ttest_rel(first, second).pvalue)


def history_bucket(lengths: IntArray) -> npt.NDArray[np.str_]:
    """Bucket of the short history's length that tables are split by.

    Args:
        lengths: int [B].

    Returns:
        str [B]: "0", "1-5", "6-20" or ">20".
    """
    return np.array(["0", "1-5", "6-20", ">20"])[np.searchsorted([0, 5, 20], lengths)]


def summarise(values: Mapping[str, Float64Array], groups: Sequence[str]) -> dict[tuple[str, str], float]:
    """Mean of each metric over all queries and over each group; queries without target are left out.

    Args:
        values: float [B] by metric name.
        groups: str [B].

    Returns:
        (metric, group) to mean; group "all" holds every query. A group without a value is absent.
    """
    labels = np.asarray(groups)
    rows = {}
    for name, value in values.items():
        for group in ["all", *sorted(set(labels.tolist()))]:
            chosen = value if group == "all" else value[labels == group]
            chosen = chosen[~np.isnan(chosen)]
            if chosen.size:
                rows[name, group] = float(chosen.mean())
    return rows
