"""Baselines that count: popularity, the last basket, own interactions with and without decay.

Axes: B users, P past items of all users together, V items; column j is row j + 1 of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lte_models.baselines.scores import PopularityOrder, SparseScores, past_matrix
from lte_models.ranker.examples import ExampleBatch, Past


def frequency(past: Past, *, short: bool) -> Tensor:
    """How often the user interacted with each past item.

    Args:
        past: The year before the anchor.
        short: True counts the short window (60 days), False short and long together (365 days).

    Returns:
        float [P].
    """
    return past.n_short if short else past.n_short + past.n_long


def decayed_counts(past: Past, *, flat_share: float) -> Tensor:
    """Own interactions with exponential decay, plus a share of the plain counts.

    Args:
        past: The year before the anchor; its ``w_short`` and ``w_long`` are halved per half-life already.
        flat_share: Part of an interaction's score that does not depend on age; 0 for decay alone.

    Returns:
        float [P].
    """
    return past.w_short + past.w_long + flat_share * (past.n_short + past.n_long)


def last_basket(past: Past, n_users: int) -> Tensor:
    """1 for the items of the user's latest day, 0 for others.

    Args:
        past: The year before the anchor.
        n_users: B.

    Returns:
        float [P].
    """
    day = torch.ceil(past.last_age)  # an event at 00:00 is a whole number of days old and belongs to the day it opens
    latest = torch.full((n_users,), float("inf"), device=day.device)
    latest = latest.scatter_reduce(0, past.user, day, reduce="amin")
    return (day == latest[past.user]).float()


def own_scores(
    batch: ExampleBatch, values: Tensor, orders: Sequence[PopularityOrder], day_of_user: Tensor, weight: float = 0.0
) -> SparseScores:
    """Score the user's past items by ``values`` and all items by recent popularity.

    Args:
        batch: Examples.
        values: float [P], >= 0, one value per past item.
        orders: Popularity at each anchor of the batch.
        day_of_user: int64 [B], place in ``orders``.
        weight: Of popularity; with 0, popularity only orders items of equal value.
    """
    n_items = len(orders[0].place)
    own = past_matrix(batch.past, values, len(batch.items), n_items)
    return SparseScores(own, orders, day_of_user.numpy(), weight)
