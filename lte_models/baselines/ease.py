"""EASE, a linear item-item model in closed form (Steck 2019, arXiv 1905.03375).

Axes: B users, V items; column j is row j + 1 of the vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from lte_models.baselines.scores import past_matrix
from lte_models.ranker.examples import Past


def histories(past: Past, n_users: int, n_items: int) -> sparse.csr_array:
    """Multi-hot histories X [B, V]: 1 for each item of the year before the anchor.

    Args:
        past: The year before the anchor, one entry per user and item.
        n_users: B.
        n_items: V; later items are left out.
    """
    return past_matrix(past, torch.ones_like(past.n_long), n_users, n_items)


def ease_weights(gram: npt.NDArray[np.float64], l2: float) -> Tensor:
    """Item weights B with zero diagonal that best rebuild the histories.

    Args:
        gram: float64 [V, V], XᵀX of the users' multi-hot histories.
        l2: Regularisation, > 0.

    Returns:
        float64 [V, V]: in float32, weights that should be equal differ by rounding and decide the order.

    Raises:
        ValueError: ``l2`` is not positive, or ``gram`` is not square or empty.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.shape[0] == 0:
        raise ValueError(f"gram: expected a square matrix with at least one row, got shape {tuple(gram.shape)}")
    if not l2 > 0:
        raise ValueError(f"EASE, l2: expected a number > 0, got {l2}")
    regularised = torch.from_numpy(gram + l2 * np.eye(len(gram)))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(regularised))  # it is symmetric: half the work
    weights: Tensor = -inverse / torch.diagonal(inverse)
    return weights.fill_diagonal_(0)


def ease(past: Past, weights: Tensor, n_users: int) -> npt.NDArray[np.float64]:
    """Score the items that the weights know.

    Args:
        past: The year before the anchor.
        weights: float64 [V, V] of :func:`ease_weights`.
        n_users: B.

    Returns:
        float64 [B, V].
    """
    found: npt.NDArray[np.float64] = histories(past, n_users, len(weights)) @ weights.numpy()
    return found
