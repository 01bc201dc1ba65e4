import numpy as np
import pytest
import torch
from scipy import sparse

from lte_models.baselines.scores import (
    DenseScores,
    HeadScores,
    PopularityOrder,
    SparseScores,
    past_matrix,
    with_tie_break,
)
from tiny_past import past_of_rows


def _scores(own: list[list[float]], counts: list[float], weight: float = 0.0) -> SparseScores:
    matrix = sparse.csr_array(np.array(own))
    return SparseScores(matrix, [PopularityOrder(np.array(counts))], np.zeros(len(own), dtype=np.int64), weight)


def _ranks(scores: SparseScores) -> list[list[int]]:
    """Ranks of every item for every user."""
    n_users, n_items = scores.own.shape
    query, targets = np.repeat(np.arange(n_users), n_items), np.tile(np.arange(n_items), n_users)
    found: list[list[int]] = scores.ranks(query, targets).reshape(n_users, n_items).tolist()
    return found


def test_popularity_orders_what_is_equal_and_nothing_else() -> None:
    scores = _scores([[1.0, 0, 0, 2]], [0.0, 3, 100, 1])
    assert _ranks(scores) == [[2, 4, 3, 1]]
    assert scores.top(10).tolist() == [[3, 0, 2, 1]]
    assert _ranks(_scores([[0.0, 0]], [0.0, 0])) == [[1, 2]]  # nothing known: the vocabulary's order


def test_popularity_adds_its_share_by_the_logarithm() -> None:
    # log(1 + 3) is twice log(1 + 1), so popularity adds 0, .2 and .4: scores .95, .425 and .4
    own, counts = [[0.95, 0.225, 0.0], [0.0, 0.0, 0.0]], [0.0, 1, 3]
    assert _ranks(_scores(own, counts, 0.4)) == [[1, 2, 3], [3, 2, 1]]
    # with twice the weight: .95, .625, .8
    assert _ranks(_scores(own, counts, 0.8))[0] == [1, 3, 2]


def test_scores_that_are_equal_but_for_rounding_are_ordered_by_popularity() -> None:
    # .1 + .2 and .3 differ in the last bit; the third item is 1e-6 better, which is no rounding
    own, counts = [0.1 + 0.2, 0.3, 0.3 + 3e-7, 0.0], [1.0, 5, 0, 9]
    assert own[0] != own[1]
    assert _ranks(_scores([own], counts)) == [[3, 2, 1, 4]]
    # the same in any unit: what is equal does not depend on the size of the scores
    assert _ranks(_scores([[1e6 * value for value in own]], counts)) == [[3, 2, 1, 4]]
    dense = with_tie_break(np.array([own]), np.array([counts]))
    assert dense.argsort(descending=True).tolist() == [[2, 1, 0, 3]]


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0])
def test_sparse_ranks_are_those_of_a_matrix_of_all_scores(weight: float) -> None:
    rng = np.random.default_rng(3)
    n_users, n_items = 40, 60
    own = rng.integers(0, 4, (n_users, n_items)) * (rng.random((n_users, n_items)) < 0.2) * 0.7
    orders = [PopularityOrder(rng.integers(0, 6, n_items).astype(float)) for _ in range(2)]  # many equal counts
    day = rng.integers(0, 2, n_users)
    total = own + weight * np.stack([orders[each].share for each in day])
    dense = DenseScores(with_tie_break(total, np.stack([orders[each].counts for each in day])))
    scores = SparseScores(sparse.csr_array(own), orders, day, weight)
    query, targets = np.repeat(np.arange(n_users), n_items), np.tile(np.arange(n_items), n_users)
    mixed = rng.permutation(len(query))
    assert np.array_equal(scores.ranks(query[mixed], targets[mixed]), dense.ranks(query[mixed], targets[mixed]))
    assert np.array_equal(scores.top(7), dense.top(7))
    assert np.array_equal(scores.top(1000), dense.top(1000))


def test_items_after_the_head_come_last_in_the_vocabularys_order() -> None:
    head = HeadScores(torch.tensor([[0.1, 0.9]]), n_items=4)
    assert head.ranks(np.zeros(4, dtype=np.int64), np.arange(4)).tolist() == [2, 1, 3, 4]
    assert head.top(3).tolist() == [[1, 0, 2]]
    assert head.top(1).tolist() == [[1]]


def test_scores_that_are_not_finite_are_named() -> None:
    with pytest.raises(ValueError, match="a score of query 1 is not finite"):
        _scores([[1.0, 0.0], [np.nan, 1.0]], [1.0, 2.0]).ranks(np.array([1]), np.array([0]))


def test_a_past_becomes_a_sparse_matrix_without_zeros() -> None:
    past = past_of_rows([(0, 1, 2, 1, 3.5), (0, 3, 0, 4, 90.0), (0, 2, 1, 0, 4.0), (2, 2, 0, 1, 70.2)])
    matrix = past_matrix(past, past.n_short, 3, 2)  # the third item is outside
    assert matrix.toarray().tolist() == [[2, 1], [0, 0], [0, 0]]
    assert matrix.nnz == 2
