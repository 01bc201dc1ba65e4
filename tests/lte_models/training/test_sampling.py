import math

import numpy as np
import pytest
import torch

from lte_models.training.sampling import (
    LogUniformSampler,
    accidental_hits,
    inclusion,
    log_uniform,
    negatives_for_share,
    rank_by_frequency,
)


def test_the_most_frequent_item_has_rank_zero_and_ties_keep_their_order() -> None:
    assert rank_by_frequency(np.array([2, 5, 2, 9])).tolist() == [3, 1, 0, 2]


def test_log_uniform_of_three_items_by_hand() -> None:
    # log(2/1), log(3/2), log(4/3) sum to log(4)
    expected = [math.log(2) / math.log(4), math.log(1.5) / math.log(4), math.log(4 / 3) / math.log(4)]
    assert log_uniform(3, 1.0).tolist() == pytest.approx(expected)


def test_power_zero_is_uniform_and_a_larger_power_prefers_popular_items() -> None:
    assert log_uniform(4, 0.0).tolist() == pytest.approx([0.25] * 4)
    assert log_uniform(100, 2.0)[0] > log_uniform(100, 1.0)[0]


def test_inclusion_of_equal_items_is_n_over_v() -> None:
    assert inclusion(log_uniform(10, 0.0), 3).tolist() == pytest.approx([0.3] * 10)


def test_inclusion_rates_match_the_frequencies_of_ten_thousand_draws() -> None:
    sampler = LogUniformSampler(n_items=50, n_samples=20)
    generator = torch.Generator().manual_seed(3)
    seen = torch.zeros(50)
    for _ in range(10_000):
        seen[sampler.sample(generator)] += 1
    rates = seen / 10_000
    # one standard error is at most .005; the fixed-time formula itself is off by O(1/V)
    assert torch.allclose(rates, sampler.log_expected.exp(), atol=0.025)
    assert rates.sum() == pytest.approx(20)


def test_samples_are_distinct_and_reach_the_tail() -> None:
    sampler = LogUniformSampler(n_items=30, n_samples=10)
    generator = torch.Generator().manual_seed(0)
    draws = [sampler.sample(generator) for _ in range(300)]
    assert all(len(set(draw.tolist())) == 10 for draw in draws)
    # a sampler that sorts and truncates never draws the tail
    assert set(torch.cat(draws).tolist()) == set(range(30))


def test_the_generator_alone_decides_the_draw() -> None:
    sampler = LogUniformSampler(n_items=30, n_samples=10)
    first, second = (sampler.sample(torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)


def test_exhaustive_sampling_holds_every_item_with_no_correction() -> None:
    sampler = LogUniformSampler(n_items=12, n_samples=12, power=1.7)
    assert sorted(sampler.sample(torch.Generator().manual_seed(1)).tolist()) == list(range(12))
    assert torch.equal(sampler.log_expected, torch.zeros(12))


def test_accidental_hits() -> None:
    hits = accidental_hits(torch.tensor([4, 7]), torch.tensor([7, 1, 4]))
    assert hits.tolist() == [[False, False, True], [True, False, False]]


def test_share_of_negatives() -> None:
    assert negatives_for_share(10_000, 0.005) == 50
    assert negatives_for_share(20, 0.005) == 1
    assert negatives_for_share(20, 1.0) == 20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_by_frequency(np.array([], dtype=np.int64)), "holds no item"),
        (lambda: rank_by_frequency(np.array([1, -2])), "-2 at position 1"),
        (lambda: log_uniform(0, 1.0), "vocabulary: expected at least 1 item to sample from, got 0"),
        (lambda: log_uniform(3, -1.0), "got -1.0"),
        (lambda: log_uniform(3, math.nan), "got nan"),
        (lambda: LogUniformSampler(3, 4), "4 distinct items of 3"),
        (lambda: negatives_for_share(3, 0.0), "got 0.0"),
    ],
)
def test_impossible_requests_are_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
