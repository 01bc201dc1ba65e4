"""Baselines that a ranker must beat: popularity, the last basket, counting, and EASE. All score the whole vocabulary.

Axes: B users, P past items of all users together, V items; column j of a score is row j + 1 of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lte_models.ranker.examples import Past

# Two scores are equal if they are nearer than this share of the user's largest score. Float64 sums of some thousand
# terms, and the inverse of a well-conditioned matrix, are off by less; differences that mean something are larger.
_EQUAL_SHARE = 1e-9

# Scores are whole numbers of the smallest difference: popularity below one only orders what is left equal.
_TIE_BREAK = 0.5


def popularity(counts: Tensor, anchor: Tensor) -> Tensor:
    """Interactions of each item in the days before the anchor.

    Args:
        counts: float [A, V + 1], for each anchor; column 0 is padding.
        anchor: int64 [B], row of ``counts``.

    Returns:
        float [B, V].
    """
    return counts[anchor, 1:]


def with_tie_break(scores: Tensor, counts: Tensor) -> Tensor:
    """Order items of equal score by popularity: the one tie rule of all baselines.

    Scores that differ only by rounding count as equal. Otherwise rounding would order the items without evidence, and
    a metric of the baseline would differ between machines.

    Args:
        scores: float [B, V].
        counts: float [B, V], >= 0.

    Returns:
        float64 [B, V], only for ranking; the values have no other meaning. If the popularity is equal, too, the earlier
        column is first, as everywhere.
    """
    exact = scores.double()
    step = (exact.abs().amax(dim=1, keepdim=True) * _EQUAL_SHARE).clamp(min=torch.finfo(torch.float64).tiny)
    top = counts.max(dim=1, keepdim=True).values.clamp(min=1)
    return torch.round(exact / step) + _TIE_BREAK * counts.double() / top  # 30 bits of score leave 23 for popularity


def _spread(past: Past, values: Tensor, n_users: int, n_items: int) -> Tensor:
    scores = torch.zeros(n_users, n_items, dtype=values.dtype, device=values.device)
    return scores.index_put((past.user, past.items - 1), values, accumulate=True)


def personal_frequency(past: Past, n_users: int, n_items: int, *, short: bool) -> Tensor:
    """How often the user interacted with each item.

    Args:
        past: The year before the anchor.
        n_users: B.
        n_items: V.
        short: True counts the short window (60 days), False short and long together (365 days).

    Returns:
        float [B, V].
    """
    return _spread(past, past.n_short if short else past.n_short + past.n_long, n_users, n_items)


def decayed_counts(past: Past, n_users: int, n_items: int, *, flat_share: float) -> Tensor:
    """Own interactions with exponential decay, plus a share of the plain counts.

    Args:
        past: The year before the anchor; its ``w_short`` and ``w_long`` are halved per half-life already.
        n_users: B.
        n_items: V.
        flat_share: Part of an interaction's score that does not depend on age; 0 for decay alone.

    Returns:
        float [B, V].
    """
    worth = past.w_short + past.w_long + flat_share * (past.n_short + past.n_long)
    return _spread(past, worth, n_users, n_items)


def with_popularity(scores: Tensor, counts: Tensor, weight: float) -> Tensor:
    """Add recent popularity to scores of the own past.

    Args:
        scores: float [B, V].
        counts: float [B, V], >= 0.
        weight: Of the most popular item; others get less by the logarithm of their count.

    Returns:
        float [B, V].
    """
    logs = torch.log1p(counts)
    return scores + weight * logs / logs.amax(dim=1, keepdim=True).clamp(min=1e-9)


def last_basket(past: Past, n_users: int, n_items: int) -> Tensor:
    """1 for the items of the user's latest day, 0 for others.

    Args:
        past: The year before the anchor.
        n_users: B.
        n_items: V.

    Returns:
        float [B, V].
    """
    day = torch.ceil(past.last_age)  # an event at 00:00 is a whole number of days old and belongs to the day it opens
    latest = torch.full((n_users,), float("inf"), device=day.device)
    latest = latest.scatter_reduce(0, past.user, day, reduce="amin")
    return _spread(past, (day == latest[past.user]).float(), n_users, n_items)


def ease_weights(gram: Tensor, l2: float) -> Tensor:
    """EASE in closed form (Steck 2019): item weights B with zero diagonal that best rebuild the histories.

    Args:
        gram: float [V, V], XᵀX of the users' multi-hot histories.
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
    regularised = gram.double() + l2 * torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(regularised))  # it is symmetric: half the work
    weights: Tensor = -inverse / torch.diagonal(inverse)
    return weights.fill_diagonal_(0)


def gram_matrix(past: Past, n_users: int, n_items: int) -> Tensor:
    """XᵀX of a batch of users' distinct past items; add up over batches.

    Args:
        past: The year before the anchor, one entry per user and item.
        n_users: B.
        n_items: V.

    Returns:
        float32 [V, V].
    """
    history = _spread(past, torch.ones_like(past.n_long), n_users, n_items)
    return history.T @ history


def ease(past: Past, weights: Tensor, n_users: int) -> Tensor:
    """Score by EASE.

    Args:
        past: The year before the anchor.
        weights: float [V, V] of :func:`ease_weights`.
        n_users: B.

    Returns:
        float [B, V].
    """
    return _spread(past, torch.ones_like(past.n_long, dtype=weights.dtype), n_users, len(weights)) @ weights
