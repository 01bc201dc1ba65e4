"""Losses on logits. Axes: Q queries (a user at a position), T targets, V items, S sampled negatives, B users."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lte_models.sampling import accidental_hits


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of ``values``, weighted where weights are given.

    Args:
        values: float [T].
        weights: float [T] or None.

    Returns:
        float scalar.

    Raises:
        ValueError: There is nothing to average.
    """
    if values.numel() == 0:
        raise ValueError("a batch without a single target has no loss")
    if weights is None:
        return values.mean()
    return (values * weights).sum() / weights.sum()


def full_softmax_loss(logits: Tensor, queries: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Categorical cross-entropy over the whole vocabulary (paper, section 3.2).

    Args:
        logits: float [Q, V].
        queries: int [T], query of each target.
        targets: int [T], in 0..V-1.
        weights: float [T], or None for equal weights.

    Returns:
        float scalar.
    """
    log_p = F.log_softmax(logits.float(), dim=1)  # [Q, V]
    return weighted_mean(-log_p[queries, targets], weights)


def sampled_softmax_loss(
    positive_logits: Tensor,
    negative_logits: Tensor,
    targets: Tensor,
    negatives: Tensor,
    *,
    log_expected: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each target against shared sampled negatives (paper, section 5.1).

    With ``log_expected`` each negative is weighted by one over its inclusion rate: the sum over negatives is then an
    unbiased estimate of the rest of the partition function. The positive is always in the denominator, with
    probability 1, so it is never corrected (arXiv 2507.09331). With S = V this is the full cross-entropy.

    Args:
        positive_logits: float [T].
        negative_logits: float [T, S].
        targets: int [T].
        negatives: int [S]; where one is the target itself it is masked.
        log_expected: float [S], log inclusion rate of the negatives: the logQ correction; None switches it off.
        weights: float [T], or None for equal weights.

    Returns:
        float scalar.
    """
    rest = negative_logits.float()
    if log_expected is not None:
        rest = rest - log_expected
    rest = rest.masked_fill(accidental_hits(targets, negatives), float("-inf"))
    positive = positive_logits.float()
    total = torch.logsumexp(torch.cat([positive.unsqueeze(1), rest], dim=1), dim=1)  # [T]
    return weighted_mean(total - positive, weights)


def full_bce_loss(logits: Tensor, history: Tensor) -> Tensor:
    """Binary cross-entropy over every item, mean over items then users (paper, section 9.1).

    Args:
        logits: float [B, V].
        history: float [B, V], multi-hot.

    Returns:
        float scalar.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), history.float())


def sampled_bce_loss(
    positive_logits: Tensor,
    positive_users: Tensor,
    negative_logits: Tensor,
    hits: Tensor,
    *,
    log_expected: Tensor | None = None,
    n_items: int,
) -> Tensor:
    """Binary cross-entropy on all positives and shared sampled negatives.

    Without ``log_expected`` a user's terms are averaged as they are: sampling then decides which negatives are hard
    (the paper's use of the power factor). With it negatives are weighted by one over their inclusion rate and the sum
    is divided by V: an unbiased estimate of the full loss. Both are the full loss when all V items are sampled.

    Args:
        positive_logits: float [N], all items of all users.
        positive_users: int [N], 0..B-1.
        negative_logits: float [B, S].
        hits: bool [B, S], True where the sampled item is in the user's history.
        log_expected: float [S] or None.
        n_items: V.

    Returns:
        float scalar, mean over users.
    """
    n_users = negative_logits.shape[0]
    positive = F.softplus(-positive_logits.float())  # -log sigmoid(y)
    sums = torch.zeros(n_users, device=positive.device).index_add_(0, positive_users, positive)
    keep = (~hits).float()
    importance = keep if log_expected is None else keep * torch.exp(-log_expected)
    sums = sums + (F.softplus(negative_logits.float()) * importance).sum(dim=1)
    if log_expected is not None:
        return (sums / n_items).mean()
    n_terms = torch.bincount(positive_users, minlength=n_users) + keep.sum(dim=1)
    return (sums / n_terms.clamp(min=1)).mean()
