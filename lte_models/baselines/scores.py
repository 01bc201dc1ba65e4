"""Scores of baselines, kept sparse: ranks of targets without a matrix of all users by all items.

A baseline says something about a few items of each user. All other items are ordered by recent popularity, which is
the same for all users of a day. So a rank is a place in one common order, corrected by the few items of the user.

Axes: B users, V items, T targets, P scored items of all users together; column j is row j + 1 of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from lte_models.arrays import Float64Array, IntArray
from lte_models.evaluation.metrics import target_ranks, top_items
from lte_models.ranker.examples import Past

# Two scores are equal if they are nearer than this share of the user's largest score. Float64 sums of some thousand
# terms, and the inverse of a well-conditioned matrix, are off by less; differences that mean something are larger.
EQUAL_SHARE = 1e-9

# Scores are whole numbers of the smallest difference: popularity below one only orders what is left equal.
_TIE_BREAK = 0.5


class Scores(Protocol):
    """What the metrics need to know about the scores of a batch."""

    def ranks(self, target_query: IntArray, targets: IntArray) -> IntArray:
        """Rank of each target, from 1: the number of items before the target, plus 1; int64 [T]."""
        ...

    def top(self, k: int) -> IntArray:
        """Columns of the k best items of each user, best first: int64 [B, min(k, V)]."""
        ...


def past_matrix(past: Past, values: Tensor, n_users: int, n_items: int) -> sparse.csr_array:
    """Values of past items as a sparse matrix [B, V], columns ascending in each row, without zeros.

    Args:
        past: The year before the anchor; items after ``n_items`` are left out.
        values: float [P].
        n_users: B.
        n_items: V.
    """
    kept = ((past.items <= n_items) & (values != 0)).numpy()
    places = (past.user.numpy()[kept], past.items.numpy()[kept] - 1)
    matrix = sparse.csr_array((values.numpy()[kept].astype(np.float64), places), shape=(n_users, n_items))
    matrix.sort_indices()
    return matrix


@dataclass(frozen=True)
class PopularityOrder:
    """All items of one anchor by recent popularity; of equal counts the earlier column comes first.

    Attributes:
        counts: float64 [V], recent interactions, >= 0.
    """

    counts: Float64Array

    @cached_property
    def columns(self) -> IntArray:
        """int64 [V], most popular first."""
        return np.argsort(-self.counts, kind="stable")

    @cached_property
    def place(self) -> IntArray:
        """int64 [V], place of each column in the order, from 0."""
        places = np.empty(len(self.counts), dtype=np.int64)
        places[self.columns] = np.arange(len(places))
        return places

    @cached_property
    def share(self) -> Float64Array:
        """float64 [V], log(1 + count) as a share of the largest one; zeros where nothing was taken."""
        logs = np.log1p(self.counts)
        shares: Float64Array = logs / max(float(logs.max(initial=0.0)), 1e-9)
        return shares

    @cached_property
    def levels(self) -> tuple[Float64Array, IntArray]:
        """Distinct shares, largest first, and the number of items before and after each of them: int64 [levels + 1]."""
        distinct, counts = np.unique(self.share, return_counts=True)
        return distinct[::-1], np.concatenate([[0], np.cumsum(counts[::-1])])


@dataclass(frozen=True)
class SparseScores:
    """Scores of some items of each user, added to a share of each item's popularity.

    Scores that are equal up to rounding are ties, and popularity orders ties: the one tie rule of all baselines.
    Otherwise rounding would order items without evidence, and a metric would differ between machines.

    Attributes:
        own: [B, V], columns ascending in each row.
        orders: Popularity at each anchor of the batch.
        day_of_user: int64 [B], place in ``orders``.
        weight: Score of the most popular item; others get less by the logarithm of their count.
    """

    own: sparse.csr_array
    orders: Sequence[PopularityOrder]
    day_of_user: IntArray
    weight: float = 0.0

    def ranks(self, target_query: IntArray, targets: IntArray) -> IntArray:
        """Rank of each target, see :class:`Scores`.

        Raises:
            ValueError: A score is not finite.
        """
        found = np.empty(len(targets), dtype=np.int64)
        order = np.argsort(target_query, kind="stable")
        ends = np.searchsorted(target_query[order], np.arange(self.own.shape[0] + 1))
        for user in np.unique(target_query).tolist():
            mine = order[ends[user] : ends[user + 1]]
            found[mine] = self._user(user).ranks(targets[mine])
        return found

    def top(self, k: int) -> IntArray:
        """The k best items of each user, see :class:`Scores`."""
        k = min(k, self.own.shape[1])
        best = [self._user(user).top(k) for user in range(self.own.shape[0])]
        return np.stack(best) if best else np.zeros((0, k), dtype=np.int64)

    def _user(self, user: int) -> _UserScores:
        day, (first, last) = self.orders[self.day_of_user[user]], self.own.indptr[user : user + 2]
        columns = self.own.indices[first:last].astype(np.int64)
        values = self.own.data[first:last] + self.weight * day.share[columns]
        if not np.isfinite(values).all():
            raise ValueError(f"a score of query {user} is not finite")
        largest = max(float(np.abs(values).max(initial=0.0)), self.weight)
        unit = max(largest * EQUAL_SHARE, float(np.finfo(np.float64).tiny))
        return _UserScores(columns, np.round(values / unit), day.place[columns], day, self.weight / unit)


@dataclass(frozen=True)
class _UserScores:
    """One user's scores in whole units; an item comes before another by its level, then by its place."""

    columns: IntArray  # [P], ascending
    levels: Float64Array  # [P]
    places: IntArray  # [P]
    day: PopularityOrder
    weight: float

    def ranks(self, targets: IntArray) -> IntArray:
        place = self.day.place[targets]
        level = np.round(self.weight * self.day.share[targets])
        slot = np.minimum(np.searchsorted(self.columns, targets), max(len(self.columns) - 1, 0))
        if len(self.columns):
            level = np.where(self.columns[slot] == targets, self.levels[slot], level)
        above, wide = self.levels > level[:, None], place[:, None]
        own_before = above | ((self.levels == level[:, None]) & (self.places < wide))  # [T, P]
        limit = np.clip(place, *self._others(level))
        others = limit - (self.places < limit[:, None]).sum(axis=1)  # the user's own items are counted already
        ranks: IntArray = 1 + own_before.sum(axis=1) + others
        return ranks

    def _others(self, level: Float64Array) -> tuple[IntArray, IntArray]:
        """Items above each level, and items on it or above it, by popularity alone: int64 [T] each."""
        shares, ends = self.day.levels
        falling = -np.round(self.weight * shares)
        above = ends[np.searchsorted(falling, -level, side="left")]
        return above, ends[np.searchsorted(falling, -level, side="right")]

    def top(self, k: int) -> IntArray:
        popular = self.day.columns[: k + len(self.columns)]
        popular = popular[~np.isin(popular, self.columns)][:k]
        columns = np.concatenate([self.columns, popular])
        levels = np.concatenate([self.levels, np.round(self.weight * self.day.share[popular])])
        best: IntArray = columns[np.lexsort((self.day.place[columns], -levels))[:k]]
        return best


@dataclass(frozen=True)
class HeadScores:
    """Scores of the first items of the vocabulary; all others come after these, in the vocabulary's order.

    Attributes:
        block: float64 [B, H], of the first H items.
        n_items: V.
    """

    block: Tensor
    n_items: int

    def ranks(self, target_query: IntArray, targets: IntArray) -> IntArray:
        """Rank of each target, see :class:`Scores`."""
        found, is_known = targets + 1, targets < self.block.shape[1]
        query, known = (torch.from_numpy(each[is_known]) for each in (target_query, targets))
        found[is_known] = target_ranks(self.block, query, known).numpy()
        return found

    def top(self, k: int) -> IntArray:
        """The k best items of each user, see :class:`Scores`."""
        k = min(k, self.n_items)
        best: IntArray = top_items(self.block, k).numpy()
        rest = np.arange(best.shape[1], k)
        return np.concatenate([best, np.broadcast_to(rest, (len(best), len(rest)))], axis=1)


@dataclass(frozen=True)
class DenseScores:
    """Scores of a model for the whole vocabulary.

    Attributes:
        block: float [B, V].
    """

    block: Tensor

    def ranks(self, target_query: IntArray, targets: IntArray) -> IntArray:
        """Rank of each target, see :class:`Scores`.

        Raises:
            ValueError: A score is not finite.
        """
        ranks: IntArray = target_ranks(self.block, torch.from_numpy(target_query), torch.from_numpy(targets)).numpy()
        return ranks

    def top(self, k: int) -> IntArray:
        """The k best items of each user, see :class:`Scores`."""
        best: IntArray = top_items(self.block, k).numpy()
        return best


def with_tie_break(scores: npt.NDArray[np.float64], counts: npt.NDArray[np.float64]) -> Tensor:
    """Order items of equal score by popularity, by the rule of :class:`SparseScores`.

    Args:
        scores: float64 [B, V].
        counts: float64 [B, V], >= 0.

    Returns:
        float64 [B, V], only for ranking; the values have no other meaning. If the popularity is equal, too, the earlier
        column is first, as everywhere.
    """
    unit = np.maximum(np.abs(scores).max(axis=1, keepdims=True) * EQUAL_SHARE, np.finfo(np.float64).tiny)
    top = np.maximum(counts.max(axis=1, keepdims=True), 1)
    return torch.from_numpy(np.round(scores / unit) + _TIE_BREAK * counts / top)  # 30 bits of score leave 23 for these
