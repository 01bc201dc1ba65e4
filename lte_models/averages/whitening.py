"""Whitening: a fixed affine map after which all directions of the basis weigh the same.

The vectors of a language or picture model share a large mean and a few long directions, which say little about taste.
So inner products of raw vectors (z Eᵀ, nearest items, nearest users) compare mostly what all items have in common.
Behind a learned projection whitening changes nothing, because the projection can learn it.

Axes: V items, D embedding size, N vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lte_models.arrays import Float32Array, Float64Array

# Share of the average variance that every direction gets at least. Without it, directions of almost no variance,
# which hold rounding and not meaning, would be stretched without limit.
LEAST_SHARE = 0.01


class WhiteningError(ValueError):
    """A basis that cannot be whitened; the message names the value."""


class Whitening(NamedTuple):
    """The map x -> (x - mean) W.

    Attributes:
        mean: Mean item vector, float64 [D].
        matrix: W, float64 [D, D], symmetric.
    """

    mean: Float64Array
    matrix: Float64Array

    def items(self, vectors: Float32Array) -> Float32Array:
        """Whitened item vectors.

        Args:
            vectors: float32 [V, D].

        Returns:
            float32 [V, D].
        """
        return np.asarray((vectors - self.mean) @ self.matrix, dtype=np.float32)

    def averages(self, vectors: Float32Array) -> Float32Array:
        """Whitened averages of items: the average of the whitened items, because the weights of an average sum to 1.

        Args:
            vectors: float32 [N, D]; a zero vector stands for an empty history.

        Returns:
            float32 [N, D]; zero where the average is zero.
        """
        has_items = vectors.any(axis=1, keepdims=True)
        return self.items(vectors) * has_items


def whitening(vectors: Float32Array, *, least_share: float = LEAST_SHARE) -> Whitening:
    """Mean and W of a basis, such that the whitened items have mean 0 and, about, the identity as covariance.

    W is the symmetric root (C')^(-1/2) ("ZCA"), which no sign or order of eigenvectors can change. C' shrinks the
    covariance C of the items to a multiple of the identity: C' = (1 - s) C + s (tr C / D) I, with s the larger of
    ``least_share`` and D / (D + V). So a basis of few items, whose covariance is
    not known, is little more than centred.

    Args:
        vectors: float32 [V, D].
        least_share: Smallest s, above 0 and below 1.

    Raises:
        WhiteningError: ``vectors`` is no matrix, holds no item, or holds a value that is not finite.
    """
    if vectors.ndim != 2 or not vectors.size:
        raise WhiteningError(f"expected item vectors [V, D] of at least one item, got shape {vectors.shape}")
    if not 0 < least_share < 1:
        raise WhiteningError(f"least_share: expected a number above 0 and below 1, got {least_share}")
    wide = vectors.astype(np.float64)
    if not np.isfinite(wide).all():
        raise WhiteningError(f"the vector of item {int(np.argwhere(~np.isfinite(wide))[0, 0])} is not finite")
    n_items, dim = wide.shape
    mean = wide.mean(axis=0)
    covariance = (wide - mean).T @ (wide - mean) / n_items
    variance = np.trace(covariance) / dim
    if variance <= np.finfo(np.float32).eps ** 2:  # all items are equal, to rounding: there is nothing to stretch
        return Whitening(mean, np.eye(dim))
    share = max(least_share, dim / (dim + n_items))
    shrunk = (1 - share) * covariance + share * variance * np.eye(dim)
    values, directions = np.linalg.eigh(shrunk)
    return Whitening(mean, (directions / np.sqrt(values)) @ directions.T)
