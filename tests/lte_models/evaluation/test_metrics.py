import math

import numpy as np
import pytest
import torch

from lte_models.evaluation.metrics import (
    coverage,
    history_bucket,
    popularity_bias,
    query_metrics,
    summarise,
    target_ranks,
    top_items,
)


def test_ranks_with_ties_go_to_the_more_frequent_item() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.9, 0.5], [0.0, 0.0, 0.0, 0.0]])
    queries, targets = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 2, 0, 3])
    assert target_ranks(scores, queries, targets).tolist() == [1, 2, 4, 4]


def test_ranks_and_best_items_are_those_of_a_stable_sort() -> None:
    scores = torch.randint(0, 4, (7, 30), generator=torch.Generator().manual_seed(0)).float()  # many ties
    order = [sorted(range(30), key=lambda column: (-row[column], column)) for row in scores.tolist()]
    queries, targets = torch.arange(7).repeat_interleave(30), torch.arange(30).repeat(7)
    found = target_ranks(scores, queries, targets).view(7, 30)
    assert found.tolist() == [[1 + places.index(column) for column in range(30)] for places in order]
    assert top_items(scores, 9).tolist() == [places[:9] for places in order]
    assert top_items(scores, 99).tolist() == order
    with pytest.raises(ValueError, match="a score of query 1 is not finite"):
        target_ranks(torch.tensor([[0.0], [float("nan")]]), torch.tensor([0]), torch.tensor([0]))


def test_metrics_of_two_queries_by_hand() -> None:
    # query 0: targets at ranks 1, 3 and 9, k = 5; query 1: one target at rank 2; query 2: no target
    values = query_metrics(np.array([1, 3, 9, 2]), np.array([0, 0, 0, 1]), 3, k=5)
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert values["ndcg"][:2].tolist() == pytest.approx([(1 + 1 / 2) / ideal, 1 / math.log2(3)])
    assert values["next_item_ndcg"][:2].tolist() == pytest.approx([(1 + 1 / 2) / 3, 1 / math.log2(3)])
    assert values["recall"][:2].tolist() == pytest.approx([2 / 3, 1])
    assert values["precision"][:2].tolist() == pytest.approx([2 / 5, 1 / 5])
    assert values["mrr"][:2].tolist() == pytest.approx([1, 1 / 2])
    assert all(math.isnan(value[2]) for value in values.values())


def test_a_query_whose_targets_all_lie_below_the_cutoff_scores_zero() -> None:
    values = query_metrics(np.array([7]), np.array([0]), 1, k=5)
    assert all(value.tolist() == [0.0] for value in values.values())


def test_more_targets_than_the_cutoff_can_still_be_perfect() -> None:
    values = query_metrics(np.array([1, 2, 3]), np.zeros(3, dtype=np.int64), 1, k=2)
    assert values["ndcg"].tolist() == pytest.approx([1.0])


def test_a_perfect_ranker_beats_any_other_order() -> None:
    rng = np.random.default_rng(0)
    perfect = query_metrics(np.array([1, 2, 3]), np.zeros(3, dtype=np.int64), 1, k=10)["ndcg"][0]
    for _ in range(50):
        ranks = rng.choice(np.arange(1, 30), size=3, replace=False)
        assert query_metrics(ranks, np.zeros(3, dtype=np.int64), 1, k=10)["ndcg"][0] <= perfect


def test_coverage_and_popularity_bias_by_hand() -> None:
    top = np.array([[0, 1], [0, 2]])
    assert coverage(top, 6) == pytest.approx(0.5)
    counts = np.array([3, 1, 0, 0, 0, 0])
    expected = (2 * math.log(4) + math.log(2)) / 4 - math.log(2)
    assert popularity_bias(top, counts, np.array([1])) == pytest.approx(expected)


def test_scores_that_are_not_finite_are_named() -> None:
    with pytest.raises(ValueError, match="query 1 is not finite"):
        target_ranks(torch.tensor([[0.0], [math.nan]]), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="cutoff k: expected at least 1, got 0"):
        query_metrics(np.array([1]), np.array([0]), 1, k=0)


def test_buckets_and_summary() -> None:
    assert history_bucket(np.array([0, 1, 5, 6, 20, 21])).tolist() == ["0", "1-5", "1-5", "6-20", "6-20", ">20"]
    rows = summarise({"ndcg": np.array([1.0, 0.0, np.nan])}, ["a", "b", "c"])
    assert rows == {("ndcg", "all"): 0.5, ("ndcg", "a"): 1.0, ("ndcg", "b"): 0.0}
