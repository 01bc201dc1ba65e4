"""Behaviour vectors of items: what users who had an item also had, written in the fixed basis.

EASE (Steck, arXiv 1905.03375) learns item-item weights B in closed form from the users' histories X:
P = (XᵀX + l2 I)^(-1), B = I - P diag(P)^(-1), so that x B estimates x and no item explains itself. The behaviour vector
of item i is (B E)_i = sum_j B_ij e_j: the items that go with i, without i. E is centred first, because the rows of B
do not sum to 1: with the mean of all items in E, every behaviour vector would be mostly that mean. The average of the
behaviour vectors of a history is a Long-Term Embedding: linear in the history and in the fixed basis, in closed form,
without a training run. B itself [V, V] is never built, only P times D columns, and the diagonal of P.

Axes: U users, V items, D embedding size, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from lte_models.arrays import Float32Array, Float64Array, IntArray

# The exact solution factors a matrix of the smaller of U and V rows: 3.2 GB of float64 at this size.
MAX_EXACT = 20_000

# Columns of [U, V] that are dense at once.
_BLOCK_ITEMS = 1024


class BehaviourError(ValueError):
    """Histories or settings from which no behaviour vectors can be computed; the message names the value."""


def behaviour_vectors(users: sparse.csr_array, vectors: Float32Array, *, l2: float, rank: int = 0) -> Float32Array:
    """Behaviour vectors (B E) of all items, with one common factor, so that the longest is as long as the longest e.

    A common factor changes neither a cosine nor an order. With this one, the drift bound of averages in the basis
    (ADR 0006) holds for averages of behaviour vectors without a change, while B stays.

    Args:
        users: X, [U, V]: 1 where the user had the item; a stored value other than 0 counts as 1.
        vectors: The basis E, float32 [V, D].
        l2: Ridge of EASE, above 0, in users: an item needs about so many users before its weights count.
        rank: Number of singular vectors of X that stand for X; 0 for the exact solution.

    Returns:
        float32 [V, D]; zero for an item that no user had together with another one.

    Raises:
        BehaviourError: Shapes do not fit, l2 is not above 0, or the exact solution would be too large.
    """
    x = _checked(users, vectors, l2)
    solution = _low_rank(x, l2, rank) if rank else _exact(x, l2)
    diagonal = solution.diagonal()
    wide = vectors.astype(np.float64)
    centred = wide - wide.mean(axis=0)
    found = centred - solution.times(centred / diagonal[:, None])
    found[~_has_company(x)] = 0  # exactly: without company B has only zeros, and rounding must not become a direction
    longest = _longest(found)
    scale = _longest(wide) / longest if longest > 0 else 0.0
    return np.asarray(found * scale, dtype=np.float32)


def has_behaviour(vectors: Float32Array) -> NDArray[np.bool_]:
    """Which items have a behaviour vector: an item without company has only zeros, and is left out of averages.

    Args:
        vectors: float32 [V, D], from :func:`behaviour_vectors`.

    Returns:
        bool [V].
    """
    return np.asarray(vectors.any(axis=1))


def cross_fitted(
    users: sparse.csr_array, folds: IntArray, vectors: Float32Array, *, l2: float, rank: int = 0
) -> dict[int, Float32Array]:
    """Behaviour vectors for each fold of users, from all other users: nobody's B has seen their own history.

    Args:
        users: X, [U, V].
        folds: Fold of each user, int64 [U].
        vectors: The basis, float32 [V, D].
        l2: Ridge.
        rank: As in :func:`behaviour_vectors`.

    Returns:
        Fold to float32 [V, D].
    """
    return {
        int(fold): behaviour_vectors(users[np.flatnonzero(folds != fold)], vectors, l2=l2, rank=rank)
        for fold in np.unique(folds)
    }


def _checked(users: sparse.csr_array, vectors: Float32Array, l2: float) -> sparse.csr_array:
    """X with ones, float64."""
    if vectors.ndim != 2 or users.shape[1] != len(vectors):
        raise BehaviourError(f"histories {users.shape} do not fit vectors {vectors.shape}")
    if not 0 < l2 < float("inf"):
        raise BehaviourError(f"l2: expected a finite number above 0, got {l2}")
    x = sparse.csr_array((np.ones(users.nnz), users.indices, users.indptr), shape=users.shape)
    x.data[users.data == 0] = 0
    x.eliminate_zeros()
    return x


def _has_company(x: sparse.csr_array) -> NDArray[np.bool_]:
    """Whether some user had the item together with another item, bool [V]."""
    others = np.asarray(x.sum(axis=1)).ravel() > 1  # [U]
    return np.asarray(x.T @ others.astype(np.float64)).ravel() > 0


def _longest(vectors: Float64Array) -> float:
    return float(np.sqrt(np.einsum("vd,vd->v", vectors, vectors)).max(initial=0.0))


class _LowRank:
    """P = (I - V diag(weights) Vᵀ) / l2 with orthonormal columns V [V, R]."""

    def __init__(self, columns: Float64Array, weights: Float64Array, l2: float) -> None:
        self._columns, self._weights, self._l2 = columns, weights, l2

    def diagonal(self) -> Float64Array:
        return np.asarray((1 - np.square(self._columns) @ self._weights) / self._l2)

    def times(self, right: Float64Array) -> Float64Array:
        explained = self._columns @ (self._weights[:, None] * (self._columns.T @ right))
        return np.asarray((right - explained) / self._l2)


def _low_rank(x: sparse.csr_array, l2: float, rank: int) -> _LowRank:
    """From the R largest singular values of X: s^2 / (s^2 + l2) of each direction is explained."""
    largest = min(x.shape) - 1
    if rank > largest:
        raise BehaviourError(f"rank: expected at most {largest} for histories {x.shape}, got {rank}")
    start = np.ones(min(x.shape))  # instead of a random start, so that a rerun gives the same vectors
    _, values, rows = sparse.linalg.svds(x, k=rank, v0=start)
    return _LowRank(rows.T, np.square(values) / (np.square(values) + l2), l2)


class _ByItems:
    """P from the Cholesky factor of XᵀX + l2 I, [V, V]."""

    def __init__(self, x: sparse.csr_array, l2: float) -> None:
        gram = (x.T @ x).toarray()
        gram[np.diag_indices_from(gram)] += l2
        self._factor = linalg.cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)

    def diagonal(self) -> Float64Array:
        inverse, _ = linalg.lapack.dpotri(self._factor[0], lower=1)
        return np.diag(inverse).copy()

    def times(self, right: Float64Array) -> Float64Array:
        return np.asarray(linalg.cho_solve(self._factor, right, check_finite=False))


class _ByUsers:
    """P = (I - Xᵀ K^(-1) X) / l2 with K = X Xᵀ + l2 I, [U, U] (the identity of Woodbury)."""

    def __init__(self, x: sparse.csr_array, l2: float) -> None:
        kernel = (x @ x.T).toarray()
        kernel[np.diag_indices_from(kernel)] += l2
        self._x, self._l2 = x, l2
        self._factor = linalg.cholesky(kernel, lower=True, overwrite_a=True, check_finite=False)

    def diagonal(self) -> Float64Array:
        explained = np.concatenate([np.square(self._halves(block)).sum(axis=0) for block in self._blocks()])
        return np.asarray((1 - explained) / self._l2)

    def _blocks(self) -> Iterator[Float64Array]:
        columns = self._x.tocsc()
        for start in range(0, columns.shape[1], _BLOCK_ITEMS):
            yield columns[:, start : start + _BLOCK_ITEMS].toarray()

    def _halves(self, right: Float64Array) -> Float64Array:
        """L^(-1) right."""
        return np.asarray(linalg.solve_triangular(self._factor, right, lower=True, check_finite=False))

    def times(self, right: Float64Array) -> Float64Array:
        solved = linalg.cho_solve((self._factor, True), self._x @ right, check_finite=False)
        return np.asarray((right - self._x.T @ solved) / self._l2)


def _exact(x: sparse.csr_array, l2: float) -> _ByItems | _ByUsers:
    if min(x.shape) > MAX_EXACT:
        raise BehaviourError(
            f"the exact solution for {x.shape[0]} users and {x.shape[1]} items needs a matrix of {min(x.shape)} rows, "
            f"and {MAX_EXACT} is the most: set a rank (behaviour.rank = 512)"
        )
    return _ByUsers(x, l2) if x.shape[0] < x.shape[1] else _ByItems(x, l2)
