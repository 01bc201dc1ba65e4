import math

import pytest
import torch
from torch import nn

from lte_models.training.losses import (
    OwnItems,
    full_bce_loss,
    full_softmax_loss,
    grouped_logsumexp,
    linear_softmax_loss,
    sampled_bce_loss,
    sampled_softmax_loss,
    weighted_mean,
)
from lte_models.training.sampling import LogUniformSampler


def test_full_softmax_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]])  # p = 1/8, 2/8, 5/8
    loss = full_softmax_loss(logits, torch.tensor([0, 0]), torch.tensor([1, 2]))
    assert loss.item() == pytest.approx((math.log(4) + math.log(8 / 5)) / 2)


@pytest.mark.parametrize("n_queries", [1, 7, 3000])  # one chunk, fewer queries than dimensions, several chunks
def test_linear_softmax_is_the_full_softmax_in_value_and_gradients(n_queries: int) -> None:
    torch.manual_seed(0)
    queries, vectors = torch.randn(n_queries, 8, requires_grad=True), torch.randn(23, 8, requires_grad=True)
    targets = torch.randint(23, (n_queries,))
    full = full_softmax_loss(queries @ vectors.T, torch.arange(n_queries), targets)
    linear = linear_softmax_loss(queries, vectors, targets)
    torch.testing.assert_close(linear, full)
    expected = torch.autograd.grad(full, [queries, vectors])
    for ours, theirs in zip(torch.autograd.grad(linear, [queries, vectors]), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_weights_of_targets() -> None:
    logits = torch.tensor([[0.0, math.log(3)]])  # p = 1/4, 3/4
    weights = torch.tensor([3.0, 1.0])
    loss = full_softmax_loss(logits, torch.tensor([0, 0]), torch.tensor([0, 1]), weights)
    assert loss.item() == pytest.approx((3 * math.log(4) + math.log(4 / 3)) / 4)


def test_sampled_softmax_by_hand_with_and_without_logq() -> None:
    positive, negative = torch.tensor([math.log(2)]), torch.tensor([[0.0, math.log(3)]])
    args = (positive, negative, torch.tensor([9]), torch.tensor([4, 5]))
    assert sampled_softmax_loss(*args).item() == pytest.approx(math.log((2 + 1 + 3) / 2))
    # rates 1/2 and 1/4: the negatives count twice and four times, the positive once
    corrected = sampled_softmax_loss(*args, log_expected=torch.tensor([0.5, 0.25]).log())
    assert corrected.item() == pytest.approx(math.log((2 + 2 * 1 + 4 * 3) / 2))


def test_own_items_count_once_each_by_hand() -> None:
    # exp of the logits: target 2, negatives 1 and 3; own items sum up to 7, negative 5 is one of them
    positive, negative = torch.tensor([math.log(2)]), torch.tensor([[0.0, math.log(3)]])
    args = (positive, negative, torch.tensor([9]), torch.tensor([4, 5]))
    total, sampled = torch.tensor([math.log(7)]), torch.tensor([[False, True]])
    apart = sampled_softmax_loss(*args, own=OwnItems(total, torch.tensor([False]), sampled))
    assert apart.item() == pytest.approx(math.log((2 + 7 + 1) / 2))
    among = sampled_softmax_loss(*args, own=OwnItems(total, torch.tensor([True]), sampled))
    assert among.item() == pytest.approx(math.log((7 + 1) / 2))


def test_grouped_logsumexp_is_that_of_each_group_and_survives_an_empty_one() -> None:
    values = torch.tensor([1.0, 200.0, -3.0, 199.0], requires_grad=True)
    found = grouped_logsumexp(values, torch.tensor([0, 2, 0, 2]), 3)
    expected = [torch.logsumexp(values[[0, 2]], 0), torch.tensor(-math.inf), torch.logsumexp(values[[1, 3]], 0)]
    torch.testing.assert_close(found, torch.stack(expected))
    torch.autograd.backward(found[[0, 2]].sum())
    assert values.grad is not None
    softmax = [*torch.softmax(torch.tensor([1.0, -3.0]), 0), *torch.softmax(torch.tensor([200.0, 199.0]), 0)]
    assert values.grad[[0, 2, 1, 3]].tolist() == pytest.approx([float(p) for p in softmax])


def test_an_accidental_hit_does_not_count() -> None:
    positive, negative = torch.tensor([0.0]), torch.tensor([[0.0, 0.0]])
    loss = sampled_softmax_loss(positive, negative, torch.tensor([4]), torch.tensor([4, 5]))
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("logq", [False, True])
def test_exhaustive_sampling_is_full_cross_entropy_in_value_and_gradient(logq: bool) -> None:
    torch.manual_seed(0)
    sampler = LogUniformSampler(n_items=17, n_samples=17, power=0.8)
    negatives = sampler.sample(torch.Generator().manual_seed(5))
    targets = torch.tensor([0, 3, 16, 3])
    queries = torch.tensor([0, 0, 1, 2])
    logits = torch.randn(3, 17, requires_grad=True)
    full = full_softmax_loss(logits, queries, targets)
    log_expected = sampler.log_expected[negatives] if logq else None
    sampled = sampled_softmax_loss(
        logits[queries, targets], logits[queries][:, negatives], targets, negatives, log_expected=log_expected
    )
    torch.testing.assert_close(sampled, full)
    for ours, theirs in zip(torch.autograd.grad(sampled, logits), torch.autograd.grad(full, logits), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_logq_makes_the_partition_function_unbiased() -> None:
    torch.manual_seed(1)
    sampler = LogUniformSampler(n_items=40, n_samples=15)
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(40) + 0.5  # exp of the logits
    totals = []
    for _ in range(4000):
        drawn = sampler.sample(generator)
        totals.append((weights[drawn] / sampler.log_expected[drawn].exp()).sum())
    assert torch.stack(totals).mean().item() == pytest.approx(weights.sum().item(), rel=0.01)


def _bce_parts(logits: torch.Tensor, history: torch.Tensor, negatives: torch.Tensor) -> tuple[torch.Tensor, ...]:
    users, items = history.nonzero(as_tuple=True)
    return logits[users, items], users, logits[:, negatives], history[:, negatives] > 0


@pytest.mark.parametrize("logq", [False, True])
def test_exhaustive_sampling_is_full_bce(logq: bool) -> None:
    torch.manual_seed(0)
    sampler = LogUniformSampler(n_items=11, n_samples=11, power=1.3)
    negatives = sampler.sample(torch.Generator().manual_seed(5))
    logits, history = torch.randn(4, 11), (torch.rand(4, 11) < 0.3).float()
    history[2] = 0  # a user without history
    log_expected = sampler.log_expected[negatives] if logq else None
    sampled = sampled_bce_loss(*_bce_parts(logits, history, negatives), log_expected=log_expected, n_items=11)
    torch.testing.assert_close(sampled, full_bce_loss(logits, history))
    torch.testing.assert_close(full_bce_loss(logits, history), nn.BCEWithLogitsLoss()(logits, history))


def test_sampled_bce_by_hand() -> None:
    # one positive at logit 0 (log 2); negatives at 0 (a hit, left out) and log 3 (log 4); rate 1/2 doubles the last
    args = (torch.zeros(1), torch.tensor([0]), torch.tensor([[0.0, math.log(3)]]), torch.tensor([[True, False]]))
    assert sampled_bce_loss(*args, n_items=5).item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    weighted = sampled_bce_loss(*args, log_expected=torch.tensor([0.5, 0.5]).log(), n_items=5)
    assert weighted.item() == pytest.approx((math.log(2) + 2 * math.log(4)) / 5)


def test_no_target_is_an_error() -> None:
    with pytest.raises(ValueError, match="without a single target"):
        weighted_mean(torch.empty(0), None)
    with pytest.raises(ValueError, match="without a single target"):
        linear_softmax_loss(torch.empty(0, 4), torch.ones(5, 4), torch.empty(0, dtype=torch.int64))
