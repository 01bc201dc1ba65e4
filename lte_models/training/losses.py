"""Losses on logits. Axes: Q queries (a user at a position), T targets, V items, S sampled negatives, B users."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lte_models.training.sampling import accidental_hits


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


def linear_softmax_loss(queries: Tensor, vectors: Tensor, targets: Tensor) -> Tensor:
    """:func:`full_softmax_loss` of ``queries @ vectors.T``, one target per query, without holding all logits at once.

    The forward pass computes the gradients chunk by chunk, so the backward pass can run only once.

    Args:
        queries: float [Q, D].
        vectors: float [V, D].
        targets: int64 [Q], in 0..V-1.

    Returns:
        float scalar.

    Raises:
        ValueError: There is no query.
    """
    if queries.shape[0] == 0:
        raise ValueError("a batch without a single target has no loss")
    with torch.autocast(queries.device.type, enabled=False):
        return F.linear_cross_entropy(queries.float(), vectors.float(), targets, options=nn.LinearCrossEntropyOptions())


def grouped_logsumexp(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Log of the sum of exponentials in each group.

    Args:
        values: float [P].
        group: int64 [P], 0..n_groups - 1.
        n_groups: Groups.

    Returns:
        float32 [n_groups]; -inf for an empty group, which has no gradient.
    """
    values = values.float()
    top = torch.full((n_groups,), float("-inf"), device=values.device)
    top = top.scatter_reduce(0, group, values.detach(), reduce="amax")
    is_empty = torch.isinf(top)
    top = top.masked_fill(is_empty, 0.0)
    sums = torch.zeros(n_groups, device=values.device).index_add(0, group, torch.exp(values - top[group]))
    # 1 for an empty group: log(0) has an infinite gradient
    return (top + torch.log(sums + is_empty)).masked_fill(is_empty, float("-inf"))


class OwnItems(NamedTuple):
    """Candidates of each target's query beside the sampled ones, all of them there: their logits need no correction.

    Attributes:
        log_total: float [T], log of the sum of their exponentials; -inf where there is none.
        holds_target: bool [T], whether the target is among them.
        sampled: bool [T, S], which sampled negatives are among them, too.
    """

    log_total: Tensor
    holds_target: Tensor
    sampled: Tensor


def sampled_softmax_loss(
    positive_logits: Tensor,
    negative_logits: Tensor,
    targets: Tensor,
    negatives: Tensor,
    *,
    log_expected: Tensor | None = None,
    weights: Tensor | None = None,
    own: OwnItems | None = None,
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
        own: Further candidates of each target's query.

    Returns:
        float scalar.
    """
    rest = negative_logits.float()
    if log_expected is not None:
        rest = rest - log_expected
    rest = rest.masked_fill(accidental_hits(targets, negatives), float("-inf"))
    positive = positive_logits.float()
    terms = [positive.unsqueeze(1), rest]
    if own is not None:
        once = positive.masked_fill(own.holds_target, float("-inf"))
        terms = [once.unsqueeze(1), rest.masked_fill(own.sampled, float("-inf")), own.log_total.unsqueeze(1)]
    total = torch.logsumexp(torch.cat(terms, dim=1), dim=1)  # [T]
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


def sampled_multinomial_loss(
    positive_logits: Tensor,
    positive_users: Tensor,
    negative_logits: Tensor,
    hits: Tensor,
    *,
    log_expected: Tensor | None,
) -> Tensor:
    """Multinomial log-likelihood of each history, one softmax per user (arXiv 1802.05814), with sampled negatives.

    A user's own items are all in the denominator, as they are. Each sampled item that is not among them stands for one
    over its inclusion rate items: the rest of the denominator is estimated without bias. With all V items sampled this
    is the full loss.

    Args:
        positive_logits: float [N], all items of all users.
        positive_users: int [N], 0..B-1.
        negative_logits: float [B, S].
        hits: bool [B, S], True where the sampled item is in the user's history.
        log_expected: float [S], log inclusion rate of the negatives; None for no correction.

    Returns:
        float scalar: the mean over a user's items of -log p, mean over users with items; 0 without any.
    """
    n_users = negative_logits.shape[0]
    positive = positive_logits.float()
    rest = negative_logits.float() - (0.0 if log_expected is None else log_expected)
    own = grouped_logsumexp(positive, positive_users, n_users)
    others = torch.logsumexp(torch.cat([own.unsqueeze(1), rest.masked_fill(hits, float("-inf"))], dim=1), dim=1)
    n_items = torch.bincount(positive_users, minlength=n_users)
    losses = others[positive_users] - positive  # [N]
    sums = torch.zeros(n_users, device=positive.device).index_add(0, positive_users, losses)
    return (sums / n_items.clamp(min=1)).sum() / (n_items > 0).sum().clamp(min=1)
