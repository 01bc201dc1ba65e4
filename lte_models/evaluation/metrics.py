"""Ranking metrics of the test day.

Axes: B queries (one per user and day), T targets of all queries, V items. A query's scores cover the whole vocabulary.
Equal scores rank in column order, which is frequency order, so that chance never decides a tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lte_models.arrays import Float64Array

IntArray = npt.NDArray[np.int64]


def target_ranks(scores: Tensor, target_query: Tensor, targets: Tensor) -> Tensor:
    """Rank of each target among all items for its query, from 1: the number of items before the target, plus 1.

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
        k: Number of items; at most V are returned.

    Returns:
        int64 [B, min(k, V)], columns.
    """
    k = min(k, scores.shape[1])
    lowest = torch.topk(scores.detach(), k, dim=1).values[:, -1].tolist()
    rows = scores.detach().cpu().numpy()
    best = [_best(row, value, k) for row, value in zip(rows, lowest, strict=True)]
    return torch.from_numpy(np.stack(best) if best else np.zeros((0, k), np.int64)).to(scores.device)


def _best(row: npt.NDArray[np.float32], lowest: float, k: int) -> IntArray:
    kept = np.flatnonzero(row >= lowest)  # more than k if other items equal the last one: topk would choose any of them
    return kept[np.argsort(-row[kept], kind="stable")[:k]]


def query_metrics(ranks: IntArray, target_query: IntArray, n_queries: int, k: int) -> dict[str, Float64Array]:
    """Metrics at k of each query.

    Args:
        ranks: int [T], from 1.
        target_query: int [T], 0..B-1; a target occurs once per query.
        n_queries: B.
        k: Cutoff.

    Returns:
        float [B] by name; NaN for a query without target. ``ndcg`` has binary relevance, and its ideal list holds as
        many targets as fit into k. ``next_item_ndcg`` is the mean over targets of 1 / log2(1 + rank): it treats each
        next item separately, as in the paper's section 5.2.

    Raises:
        ValueError: ``k`` < 1.
    """
    if k < 1:
        raise ValueError(f"cutoff k: expected at least 1, got {k}")
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
    """Share of the catalogue that is shown to at least one query.

    Args:
        top_items: int [B, k], columns of the k best items.
        n_items: V.

    Returns:
        0 to 1.
    """
    return len(np.unique(top_items)) / n_items


def popularity_bias(top_items: IntArray, counts: IntArray, target_items: IntArray) -> float:
    """How much more popular the shown items are than the targets.

    Args:
        top_items: int [B, k], columns of the k best items.
        counts: int [V], interactions of each item in the training data.
        target_items: int [T], columns.

    Returns:
        Difference of the mean log(1 + count) of shown items and of targets; 0 is unbiased, 1 is e times as popular.
    """
    log_counts = np.log1p(counts.astype(np.float64))
    return float(log_counts[top_items].mean() - log_counts[target_items].mean())


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
