"""Training loss of the ranker: full or sampled softmax (paper, sections 3.2 and 5.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lte_models.ranker.examples import ExampleBatch
from lte_models.ranker.model import Context, Ranker
from lte_models.training.losses import (
    OwnItems,
    full_softmax_loss,
    grouped_logsumexp,
    linear_softmax_loss,
    sampled_softmax_loss,
)
from lte_models.training.sampling import LogUniformSampler


@dataclass(frozen=True)
class Objective:
    """How the ranker is trained.

    Attributes:
        sampler: Draws negatives (ranks; row = rank + 1); None trains on the full softmax.
        logq: Whether sampled negatives are weighted to estimate the full softmax.
        equal_users: Whether each query has the same weight; otherwise each target has the same weight.
    """

    sampler: LogUniformSampler | None = None
    logq: bool = True
    equal_users: bool = False


def ranker_loss(
    model: Ranker, batch: ExampleBatch, context: Context, objective: Objective, rng: torch.Generator
) -> Tensor:
    """Training loss of a batch (paper, sections 3.2 and 5.1).

    Args:
        model: The ranker.
        batch: Examples.
        context: LTEs and popularity.
        objective: Full or sampled softmax.
        rng: CPU generator of the negatives.

    Returns:
        float scalar.

    Raises:
        ValueError: A query lies inside the sequence while history features, which are as of the anchor, are on.
    """
    if model.history is not None and bool((batch.query_position != batch.items.shape[1] - 1).any()):
        raise ValueError("history features are as of the anchor: they would show earlier positions their future")
    weights = _target_weights(batch) if objective.equal_users else None
    if objective.sampler is None:
        return _full_loss(model, batch, context, weights)
    return _sampled_loss(model, batch, context, objective.sampler, objective.logq, weights, rng)


def _full_loss(model: Ranker, batch: ExampleBatch, context: Context, weights: Tensor | None) -> Tensor:
    rows = torch.arange(1, model.n_items + 1, device=batch.items.device)
    embedded = model.embed(rows)
    queries = model.queries(batch, context, *embedded)
    has_one_target_each = batch.target_query.numel() == queries.shape[0]
    # Without history logits a score is a plain inner product, and the loss needs no matrix of Q x V logits.
    if model.history is None and weights is None and has_one_target_each:
        vectors, position = embedded
        return linear_softmax_loss(queries[batch.target_query], vectors[position[rows]], batch.targets - 1)
    logits = model.candidate_logits(queries, rows, batch, context, embedded)
    return full_softmax_loss(logits, batch.target_query, batch.targets - 1, weights)


def _sampled_loss(
    model: Ranker,
    batch: ExampleBatch,
    context: Context,
    sampler: LogUniformSampler,
    logq: bool,
    weights: Tensor | None,
    rng: torch.Generator,
) -> Tensor:
    ranks = sampler.sample(rng)
    log_expected = sampler.log_expected[ranks].to(batch.items.device) if logq else None
    negatives = (ranks + 1).to(batch.items.device)
    # All rows that the step reads, so that the item tower runs only once.
    rows = [batch.items.flatten(), batch.targets, negatives]
    embedded = model.embed(torch.cat(rows if model.history is None else [*rows, batch.past.items]))
    queries = model.queries(batch, context, *embedded)
    logits = model.shared_logits(queries, negatives, batch, context, embedded)[batch.target_query]
    positives = model.pair_logits(queries, (batch.target_query, batch.targets), batch, context, embedded)
    own = None
    if model.history is not None:
        positives, own = _own_items(model, queries, negatives, positives, batch, context, embedded)
    return sampled_softmax_loss(
        positives, logits, batch.targets, negatives, log_expected=log_expected, weights=weights, own=own
    )


def _own_items(
    model: Ranker,
    queries: Tensor,
    negatives: Tensor,
    positives: Tensor,
    batch: ExampleBatch,
    context: Context,
    embedded: tuple[Tensor, Tensor],
) -> tuple[Tensor, OwnItems]:
    """Make every past item a candidate of its user's only query: the items that counting would confuse.

    Returns:
        float [T] logits of the targets with what the past adds, and the candidates.
    """
    past, user, n_users = batch.past, batch.query_user[batch.target_query], len(batch.items)
    pairs = (model.query_of_user(batch)[past.user], past.items)
    products = model.pair_products(queries, pairs, embedded)
    added = model.past_logits(products, batch, context, embedded)  # [P]
    logits = products + model.pair_popularity(pairs, batch, context) + added
    place, holds_target = _find(past.user, past.items, user, batch.targets, model.n_items + 1)
    if added.numel():
        positives = positives + added[place] * holds_target
    slots = model._slots(negatives)[past.items]
    is_own = torch.zeros(n_users, negatives.numel(), dtype=torch.bool, device=negatives.device)
    is_own[past.user[slots >= 0], slots[slots >= 0]] = True
    return positives, OwnItems(grouped_logsumexp(logits, past.user, n_users)[user], holds_target, is_own[user])


def _find(user: Tensor, items: Tensor, wanted_user: Tensor, wanted_item: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Place of each wanted pair among pairs sorted by user, then item: int64 [T], and bool [T], whether it is there."""
    # One sorted key per pair: a binary search instead of a matrix of users x items.
    keys, wanted = user * width + items, wanted_user * width + wanted_item
    if keys.numel() == 0:
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    place = torch.searchsorted(keys, wanted).clamp(max=keys.numel() - 1)
    return place, keys[place] == wanted


def _target_weights(batch: ExampleBatch) -> Tensor:
    # A wholesaler with a hundred targets weighs as much as a user with one, as in the metric.
    counts = torch.bincount(batch.target_query, minlength=batch.query_user.numel())
    return 1 / counts[batch.target_query].float()
