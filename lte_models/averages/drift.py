"""How far LTEs may move between two days, and how far they moved (paper, section 7.1; ADR 0006).

LTE_t = sum over items i of w_t(i) e_i, with weights that sum to 1, or all 0 for a user without known items. Write
m_t(i) for the masses before normalising, M_t for their sum and K = sum_i min(m_t(i), m_s(i)) for the mass that both
days share, with the same scale on both days. (Recency: 2^(-age/half-life) with ages counted from one common day.
Between the days all ages grow by the same number, so an interaction in both windows has one mass, and only the total
changes.)

Both days have items. The differences w_t - w_s sum to 0, so for any centre c::

    ||LTE_t - LTE_s|| = ||sum_i (w_t - w_s)(i) (e_i - c)|| <= sum_i |w_t - w_s|(i) * max_i ||e_i - c||

and, as sum_i min(m_t/M_t, m_s/M_s) >= K / max(M_t, M_s)::

    sum_i |w_t - w_s|(i) = 2 (1 - sum_i min(w_t, w_s)(i)) <= 2 max((M_t - K)/M_t, (M_s - K)/M_s).

For uniform weights M - K are the numbers that entered and left: drift <= 2 max(n_in/n_now, n_out/n_before) max||e||.

One day has no items. Its LTE is 0 and the differences sum to +-1. No centre helps, so drift <= max||e||, and the factor
is 1. Neither day has items: both LTEs are 0.

The paper's tau max||e|| holds only where both windows hold equally many items: ten copies of e, then one -e enters,
gives a drift of 2/11 = .182 with tau = 1/11 = .091 (or .1 over the earlier ten).

Axes: U users, V items, D embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from lte_models.averages.pooling import (
    DoubleArray,
    Float32Array,
    Histories,
    Int64Array,
    Weighting,
    WindowPairs,
    normalised,
    window_pairs,
)

UNIT_ROUNDOFF = 2.0**-24  # of float32

# The bounds are computed in float64; their own rounding error is far smaller than this.
DOUBLE_SLACK = 1e-9
ACTIVITY_BUCKETS = ((0, "0"), (1, "1-4"), (5, "5-19"), (20, "20-99"), (100, "100+"))
_BLOCK_ROWS = 8192


@dataclass(frozen=True)
class Turnover:
    """What changed in the histories of U users between two days.

    Attributes:
        n_now: Known interactions now, int64 [U].
        n_before: Known interactions before.
        n_in: Entered the window, or their item became known.
        n_out: Left the window.
        mass_factor: Bound of the summed weight differences by the masses that entered and left, float64 [U] in [0, 2].
        weight_distance: The summed absolute weight differences: twice the total variation, float64 [U] in [0, 2].
    """

    n_now: Int64Array
    n_before: Int64Array
    n_in: Int64Array
    n_out: Int64Array
    mass_factor: DoubleArray
    weight_distance: DoubleArray


def _row_sums(matrix: sparse.csr_array) -> DoubleArray:
    return np.asarray(matrix.sum(axis=1), np.float64).ravel()


def mass_factor(now: sparse.csr_array, before: sparse.csr_array) -> DoubleArray:
    """2 max((M_t - K)/M_t, (M_s - K)/M_s): 1 if one side is empty, 0 if both sides are empty.

    Args:
        now: Masses, float64 [U, V].
        before: Masses on the same scale, float64 [U, V].
    """
    total_now, total_before = _row_sums(now), _row_sums(before)
    larger, shared = np.maximum(total_now, total_before), _row_sums(now.minimum(before))
    factor = np.zeros(len(larger))
    is_both, is_one = (total_now > 0) & (total_before > 0), (total_now > 0) != (total_before > 0)
    factor[is_both] = 2 * np.clip(1 - shared[is_both] / larger[is_both], 0, 1)
    factor[is_one] = 1
    return factor


def turnover(now: WindowPairs, before: WindowPairs, weighting: Weighting, n_items: int) -> Turnover:
    """Compare the windows of two days.

    Args:
        now: The later window's pairs.
        before: The earlier window's pairs of the same users, with ages counted from the later day.
        weighting: Method, half-life, way to count.
        n_items: V.
    """
    counts = [pairs.matrix(pairs.counts(weighting.count), n_items) for pairs in (now, before)]
    n_now, n_before = (_row_sums(each).astype(np.int64) for each in counts)
    n_shared = _row_sums(counts[0].minimum(counts[1])).astype(np.int64)
    # The newest interaction of the earlier window is never newer than that of the later window, if there is one.
    newest = np.where(n_now > 0, now.newest, before.newest)
    masses = [now.masses(weighting, newest), before.masses(weighting, newest)]
    weights = [pairs.matrix(normalised(pairs, pairs.masses(weighting)), n_items) for pairs in (now, before)]
    factor = mass_factor(now.matrix(masses[0], n_items), before.matrix(masses[1], n_items))
    distance = _row_sums(abs(weights[0] - weights[1]))
    return Turnover(n_now, n_before, n_now - n_shared, n_before - n_shared, factor, distance)


def earlier_window(histories: Histories, ages: range, *, offset_days: int, known_age: Int64Array) -> WindowPairs:
    """Pairs of the window ``offset_days`` earlier; ages are still counted from the later day.

    Args:
        histories: Interactions of U users.
        ages: Ages in the later window.
        offset_days: Days between the two.
        known_age: Number of days for which each item has been known on the later day, int64 [V].
    """
    is_known = known_age[histories.item_indices] >= offset_days
    then = histories.where(is_known & (histories.item_indices >= 0))
    return window_pairs(then, range(ages.start + offset_days, ages.stop + offset_days))


@dataclass(frozen=True)
class BasisExtent:
    """Size of the basis.

    Attributes:
        max_norm: max ||e||.
        radius: The smaller of max ||e|| and max ||e - mean||; bounds the effect of weight differences that sum to 0.
    """

    max_norm: float
    radius: float


def basis_extent(vectors: Float32Array, is_known: NDArray[np.bool_]) -> BasisExtent:
    """Measure the known vectors of a basis in float64, block by block.

    Args:
        vectors: float32 [V, D]; may be memory-mapped.
        is_known: bool [V].
    """
    known = np.flatnonzero(is_known)
    blocks = [known[start : start + _BLOCK_ROWS] for start in range(0, len(known), _BLOCK_ROWS)]
    if not blocks:
        return BasisExtent(0.0, 0.0)
    mean = sum(vectors[rows].sum(axis=0, dtype=np.float64) for rows in blocks) / len(known)
    max_norm = max(_norms(vectors[rows].astype(np.float64)).max() for rows in blocks)
    centred = max(_norms(vectors[rows] - mean).max() for rows in blocks)
    return BasisExtent(float(max_norm), float(min(max_norm, centred)))


def _norms(vectors: DoubleArray) -> DoubleArray:
    norms: DoubleArray = np.sqrt(np.einsum("ud,ud->u", vectors, vectors))
    return norms


def rounding_tolerance(n_now: Int64Array, n_before: Int64Array, max_norm: float) -> DoubleArray:
    """Largest change of the distance of two LTEs by float32 rounding, float64 [U].

    An LTE of n interactions adds k <= n products of a rounded weight and an exact vector: at most k + 1 roundings per
    term. So the error of each component is at most g(n + 1) sum_i w_i |e_i|, and the error of the vector is at most
    g(n + 1) max||e||, where g(k) = k u / (1 - k u) and u = 2^-24 (Higham, Accuracy and Stability, section 3.1). An
    empty history is exactly 0.
    """
    roundings = [np.where(n > 0, (n + 1) * UNIT_ROUNDOFF, 0.0) for n in (n_now, n_before)]
    gammas = [np.where(each < 0.5, each / (1 - np.minimum(each, 0.5)), np.inf) for each in roundings]
    tolerance: DoubleArray = (gammas[0] + gammas[1] + DOUBLE_SLACK) * max_norm
    return tolerance


def drift_bound(changes: Turnover, max_norm: float) -> DoubleArray:
    """The bound by the masses that entered and left, float64 [U]."""
    return changes.mass_factor * np.float64(max_norm)


def total_variation_bound(changes: Turnover, extent: BasisExtent) -> DoubleArray:
    """The sharper bound by the weights' total variation, float64 [U]; the module text explains an empty side."""
    is_both = (changes.n_now > 0) & (changes.n_before > 0)
    reach: DoubleArray = np.where(is_both, extent.radius, extent.max_norm)
    return changes.weight_distance * reach


def paper_tau(changes: Turnover) -> DoubleArray:
    """The paper's turnover rate (n_in + n_out) / n_now, float64 [U]; 0 where n_now = 0."""
    tau: DoubleArray = np.where(changes.n_now > 0, (changes.n_in + changes.n_out) / np.maximum(changes.n_now, 1), 0.0)
    return tau


def distances(now: Float32Array, before: Float32Array) -> DoubleArray:
    """L2 distance of each pair of rows, in float64.

    Args:
        now: float32 [U, D].
        before: float32 [U, D].
    """
    return _norms(now.astype(np.float64) - before)


def cosines(now: NDArray[np.floating], before: NDArray[np.floating]) -> DoubleArray:
    """Cosine of each pair of rows, float64 [U]; NaN where a row is zero."""
    first, second = now.astype(np.float64), before.astype(np.float64)
    norms = _norms(first) * _norms(second)
    products = np.einsum("ud,ud->u", first, second)
    cosine: DoubleArray = np.divide(products, norms, out=np.full(len(norms), np.nan), where=norms > 0)
    return cosine


def activity_buckets(n_items: Int64Array) -> list[str]:
    """Name of each user's activity: 0, 1-4, 5-19, 20-99, 100+ interactions."""
    starts = [start for start, _ in ACTIVITY_BUCKETS]
    return [ACTIVITY_BUCKETS[at][1] for at in np.searchsorted(starts, n_items, side="right") - 1]


def own_nearest_share(now: Float32Array, before: Float32Array) -> float:
    """Share of users whose nearest earlier LTE, among the LTEs of all U users, is their own; ties count as their own.

    Args:
        now: float32 [U, D].
        before: float32 [U, D], rows of the same users.

    Returns:
        Share in [0, 1]; NaN without users.
    """
    if not len(now):
        return float("nan")
    own = distances(now, before)
    is_own = [own[user] <= distances(np.broadcast_to(row, before.shape), before).min() for user, row in enumerate(now)]
    return float(np.mean(is_own))
