"""Histories of many users as sorted integers, their weights as sparse matrices, and the product with the item matrix.

Axes: U users, V items of the basis, D embedding size. One interaction is one int64 key: user row, item and age in days,
from the most to the least significant bits. Sorting the keys fixes the order in which vectors are added, per user by
item and then by age, so that a rerun gives the same bits whatever the engine, its partitions and their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lte_models.arrays import Float32Array

AGE_BITS = 13
ITEM_BITS = 27
USER_BITS = 23
CODE_BITS = AGE_BITS + ITEM_BITS
MAX_AGE_DAYS = 2**AGE_BITS - 1
MAX_ITEMS = 2**ITEM_BITS - 1
MAX_USERS = 2**USER_BITS
UNKNOWN_ITEM = -1
UNIFORM, RECENCY, BEHAVIOUR = "uniform", "recency", "behaviour"
EACH, DISTINCT = "each", "distinct"
Int64Array = NDArray[np.int64]
DoubleArray = NDArray[np.float64]


class PoolingError(ValueError):
    """Histories, weights or vectors that cannot be pooled; the message names the value."""


@dataclass(frozen=True)
class Weighting:
    """How interactions are weighted.

    Attributes:
        method: ``uniform``, or ``recency``: 2^(-age_days / half_life_days). ``behaviour`` weighs as ``uniform`` does,
            and averages behaviour vectors.
        half_life_days: Age at which an interaction counts half; for ``recency`` only.
        count: ``each`` interaction counts, or ``distinct``: each item counts once, by its newest interaction.
    """

    method: str
    half_life_days: float = 90.0
    count: str = EACH

    def __post_init__(self) -> None:
        """Refuse an unknown method, an unknown way to count, or an impossible half-life."""
        if self.method not in (UNIFORM, RECENCY, BEHAVIOUR):
            raise PoolingError(f"method {self.method!r}: use {UNIFORM}, {RECENCY} or {BEHAVIOUR}")
        if self.count not in (EACH, DISTINCT):
            raise PoolingError(f"count {self.count!r}: use {EACH} or {DISTINCT}")
        if not self.half_life_days > 0:
            raise PoolingError(f"half_life_days {self.half_life_days}: must be above 0")


@lru_cache(maxsize=8)
def _decay(half_life_days: float) -> DoubleArray:
    """2^(-age / half-life) of every age, as a table: vector and scalar ``exp2`` may differ in the last bit."""
    return np.exp2(-np.arange(MAX_AGE_DAYS + 1) / half_life_days)


def _looked_up(table: DoubleArray, at: Int64Array) -> DoubleArray:
    values: DoubleArray = table[at]
    return values


def _sums(groups: Int64Array, values: NDArray[np.generic], n_groups: int) -> DoubleArray:
    """Sums by group, added one after the other in the given order."""
    return np.bincount(groups, weights=values, minlength=n_groups).astype(np.float64)


def packed_keys(rows: Int64Array, item_indices: Int64Array, ages: Int64Array) -> Int64Array:
    """Pack interactions into keys.

    Args:
        rows: User rows from 0.
        item_indices: Rows of the item matrix; -1 for an item without a vector.
        ages: Age in whole days.
    """
    # user, then item, then age: one sort of integers groups the pairs and puts the newest interaction of each first
    return (rows << CODE_BITS) | ((item_indices + 1) << AGE_BITS) | ages


@dataclass(frozen=True)
class Histories:
    """Interactions of ``n_users`` users.

    Attributes:
        keys: int64, sorted, see :func:`packed_keys`; user rows are below ``n_users``.
        n_users: U; users without interactions are rows, too.
    """

    keys: Int64Array
    n_users: int

    @property
    def rows(self) -> Int64Array:
        """User row of each interaction."""
        return self.keys >> CODE_BITS

    @property
    def item_indices(self) -> Int64Array:
        """Item of each interaction, -1 where it has no vector."""
        numbered: Int64Array = (self.keys >> AGE_BITS) & MAX_ITEMS
        return numbered - 1  # in a key, 0 means no vector, because unsigned bits cannot hold a negative number

    @property
    def ages(self) -> Int64Array:
        """Age of each interaction in days."""
        ages: Int64Array = self.keys & MAX_AGE_DAYS
        return ages

    def block(self, start: int, stop: int) -> Histories:
        """Users ``start`` to ``stop``, renumbered from 0."""
        # keys are sorted by user, so a block of users is one slice: no mask over all interactions
        low, high = np.searchsorted(self.keys, [start << CODE_BITS, stop << CODE_BITS])
        return Histories(self.keys[low:high] - (start << CODE_BITS), stop - start)

    def where(self, mask: NDArray[np.bool_]) -> Histories:
        """Only the interactions that ``mask`` marks; all users stay."""
        return Histories(self.keys[mask], self.n_users)

    def newest_ages(self) -> Int64Array:
        """Age of each user's newest interaction, int64 [U]; above all ages for a user without interactions."""
        newest = np.full(self.n_users, MAX_AGE_DAYS + 1, np.int64)
        starts = run_starts(self.rows)
        if len(starts):
            newest[self.rows[starts]] = np.minimum.reduceat(self.ages, starts)
        return newest


def run_starts(values: Int64Array) -> Int64Array:
    """Start of each run of equal values in a sorted array."""
    if not len(values):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))


@dataclass(frozen=True)
class WindowPairs:
    """The distinct (user, item) pairs of one window.

    Attributes:
        histories: The window's interactions with known items.
        starts: Position of each pair's first interaction, which is the pair's newest.
        n_unknown: Interactions of the window whose item has no vector, int64 [U].
        newest: Age of each user's newest interaction in the window, int64 [U].
    """

    histories: Histories
    starts: Int64Array
    n_unknown: Int64Array
    newest: Int64Array

    def counts(self, count: str) -> Int64Array:
        """How often each pair counts."""
        if count == DISTINCT:
            return np.ones(len(self.starts), np.int64)
        return np.diff(self.starts, append=len(self.histories.keys))

    def masses(self, weighting: Weighting, newest: Int64Array | None = None) -> DoubleArray:
        """Weight of each pair before normalising; an interaction as new as ``newest`` of its user weighs 1.

        A common factor of one user's weights has no effect. Counting ages from the user's newest interaction keeps the
        largest weight at 1, so that a short half-life cannot make all weights 0.

        Args:
            weighting: Method, half-life, way to count.
            newest: Ages to count from, int64 [U]; by default the age of each user's newest interaction.
        """
        if weighting.method != RECENCY:
            return self.counts(weighting.count).astype(np.float64)
        decay, reference = _decay(weighting.half_life_days), self.newest if newest is None else newest
        if weighting.count == DISTINCT:
            ages, rows = self.histories.ages[self.starts], self.histories.rows[self.starts]
            return _looked_up(decay, ages - reference[rows])
        # every interaction decays separately; then each pair adds its interactions in the order of the keys
        masses = _looked_up(decay, self.histories.ages - reference[self.histories.rows])
        pair_of = np.repeat(np.arange(len(self.starts)), self.counts(EACH))
        return _sums(pair_of, masses, len(self.starts))

    def matrix(self, values: NDArray[np.generic], n_items: int) -> sparse.csr_array:
        """One value per pair as a sparse matrix [U, V], items in order within each user."""
        rows = self.histories.rows[self.starts]
        items = self.histories.item_indices[self.starts]
        if len(items) and items.max() >= n_items:
            raise PoolingError(f"item_index {items.max()} is outside the item matrix of {n_items} rows")
        # the pairs are already sorted by user and item, as CSR needs: nothing is sorted or copied again
        offsets = np.searchsorted(rows, np.arange(self.histories.n_users + 1))
        shape = (self.histories.n_users, n_items)
        return sparse.csr_array((values, items.astype(np.int32), offsets.astype(np.int32)), shape=shape)

    def totals(self, values: NDArray[np.generic]) -> DoubleArray:
        """Sum of one value per pair for each user, float64 [U]."""
        return _sums(self.histories.rows[self.starts], values, self.histories.n_users)


def window_pairs(histories: Histories, ages: range, has_vector: NDArray[np.bool_] | None = None) -> WindowPairs:
    """Cut a window out of histories.

    Args:
        histories: Interactions of U users.
        ages: Ages in days that lie in the window: ``range(60, 365)`` is [365, 60).
        has_vector: bool, of each item_index; an item beyond its end has none. None where all items have a vector.
    """
    in_window = histories.where((histories.ages >= ages.start) & (histories.ages < ages.stop))
    is_known = in_window.item_indices != UNKNOWN_ITEM  # an item without a vector is counted, never averaged
    if has_vector is not None:
        # the value at the end stands for every item beyond it, and index -1 reads it, too
        marked = np.append(has_vector, False)
        is_known &= marked[np.minimum(in_window.item_indices, len(has_vector))]
    n_unknown = np.bincount(in_window.rows[~is_known], minlength=histories.n_users)
    known = in_window.where(is_known)
    return WindowPairs(known, run_starts(known.keys >> AGE_BITS), n_unknown, known.newest_ages())


def normalised(pairs: WindowPairs, masses: DoubleArray) -> DoubleArray:
    """Masses divided by their user's total: weights that sum to 1."""
    # masses count ages from the newest interaction, so that the total of a user with pairs does not vanish
    return masses / pairs.totals(masses)[pairs.histories.rows[pairs.starts]]


def pooled(weights: sparse.csr_array, vectors: Float32Array) -> Float32Array:
    """Weighted sum of item vectors (paper, section 4), added in float32 in the order of the items.

    Args:
        weights: float32 [U, V].
        vectors: float32 [V, D], rows contiguous; may be memory-mapped.

    Returns:
        float32 [U, D]; zeros for a user without weights.

    Raises:
        PoolingError: Shapes or types do not fit.
    """
    if vectors.ndim != 2 or weights.shape[1] != vectors.shape[0]:
        raise PoolingError(f"weights {weights.shape} do not fit vectors {vectors.shape}")
    if weights.dtype != np.float32 or vectors.dtype != np.float32:
        raise PoolingError(f"expected float32, got weights of {weights.dtype} and vectors of {vectors.dtype}")
    # SciPy adds row by row in the order of the columns, on one thread: a rerun gives the same bits
    return np.asarray(weights @ vectors)


@dataclass(frozen=True)
class Pooled:
    """LTEs of U users in one window by one method.

    Attributes:
        vectors: float32 [U, D].
        n_items: Interactions, or distinct items, that were averaged: int64 [U].
        n_unknown: Interactions left out because their item has no vector: int64 [U].
    """

    vectors: Float32Array
    n_items: Int64Array
    n_unknown: Int64Array


def long_term_embeddings(pairs: WindowPairs, vectors: Float32Array, weighting: Weighting) -> Pooled:
    """LTEs of one window (paper, section 4).

    Args:
        pairs: The window's pairs of U users.
        vectors: The basis, float32 [V, D].
        weighting: Method, half-life, way to count.

    Raises:
        PoolingError: A history holds an item that is not in the basis.
    """
    weights = normalised(pairs, pairs.masses(weighting)).astype(np.float32)
    n_items = pairs.totals(pairs.counts(weighting.count)).astype(np.int64)
    return Pooled(pooled(pairs.matrix(weights, len(vectors)), vectors), n_items, pairs.n_unknown)
