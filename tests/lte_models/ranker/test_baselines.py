import pytest
import torch

from lte_models.ranker.baselines import (
    decayed_counts,
    ease,
    ease_weights,
    gram_matrix,
    last_basket,
    personal_frequency,
    popularity,
    with_popularity,
    with_tie_break,
)
from lte_models.ranker.examples import Past
from lte_models.ranker.history_features import HISTORY_FEATURES


def _past(rows: list[tuple[int, int, float, float, float]]) -> Past:
    """Rows of (user, item row, n_short, n_long, last_age in days)."""
    user, items, short, long, age = (torch.tensor(column) for column in zip(*rows, strict=True))
    zeros = torch.zeros(len(rows))
    return Past(
        user, items, short.float(), long.float(), age.float(), zeros, zeros, torch.zeros(len(rows), HISTORY_FEATURES)
    )


PAST = _past([(0, 1, 2, 1, 3.5), (0, 3, 0, 4, 90.0), (0, 2, 1, 0, 4.0), (1, 2, 0, 1, 70.2)])


def test_personal_frequency_counts_one_window_or_both() -> None:
    assert personal_frequency(PAST, 3, 3, short=True).tolist() == [[2, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert personal_frequency(PAST, 3, 3, short=False).tolist() == [[3, 1, 4], [0, 1, 0], [0, 0, 0]]


def test_last_basket_is_the_latest_utc_day_with_its_midnight() -> None:
    # 3.5 and exactly 4.0 days before the anchor are the same UTC day
    assert last_basket(PAST, 3, 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_popularity_is_as_of_each_users_anchor() -> None:
    counts = torch.tensor([[0.0, 1, 2, 3], [0.0, 9, 8, 7]])
    assert popularity(counts, torch.tensor([1, 0])).tolist() == [[9, 8, 7], [1, 2, 3]]


def test_popularity_breaks_ties_and_nothing_else() -> None:
    scores = with_tie_break(torch.tensor([[1.0, 0, 0, 2]]), torch.tensor([[0.0, 3, 100, 1]]))
    assert scores.argsort(descending=True).tolist() == [[3, 0, 2, 1]]
    assert with_tie_break(torch.zeros(1, 2), torch.zeros(1, 2)).tolist() == [[0, 0]]


def test_scores_that_are_equal_but_for_rounding_are_ordered_by_popularity() -> None:
    # .1 + .2 and .3 differ in the last bit; the third item is 1e-6 better, which is no rounding
    scores = torch.tensor([[0.1 + 0.2, 0.3, 0.3 + 3e-7, -0.3]], dtype=torch.float64)
    assert scores[0, 0] != scores[0, 1]
    assert with_tie_break(scores, torch.tensor([[1.0, 5, 0, 9]])).argsort(descending=True).tolist() == [[2, 1, 0, 3]]
    # the same in any unit: what is equal does not depend on the size of the scores
    scaled = with_tie_break(scores * 1e6, torch.tensor([[1.0, 5, 0, 9]]))
    assert scaled.argsort(descending=True).tolist() == [[2, 1, 0, 3]]


def test_decayed_counts_and_popularity_by_hand() -> None:
    # user 0: item 1 taken twice, worth .5 + .25; item 2 once, long ago, worth .125. Plain counts add .1 each time.
    past = _past([(0, 1, 2, 0, 30.0), (0, 2, 0, 1, 90.0)])
    past = past._replace(w_short=torch.tensor([0.75, 0.0]), w_long=torch.tensor([0.0, 0.125]))
    own = decayed_counts(past, 2, 3, flat_share=0.1)
    torch.testing.assert_close(own, torch.tensor([[0.95, 0.225, 0.0], [0.0, 0.0, 0.0]]))
    # log(1 + 3) is twice log(1 + 1): the second item gets half of the weight
    found = with_popularity(own, torch.tensor([[0.0, 1, 3], [0, 0, 0]]), 0.4)
    torch.testing.assert_close(found, torch.tensor([[0.95, 0.425, 0.4], [0.0, 0.0, 0.0]]))


def test_ease_of_two_items_by_hand() -> None:
    # G + I = [[3, 1], [1, 2]], inverse = [[2, -1], [-1, 3]] / 5, B_ij = -P_ij / P_jj
    weights = ease_weights(torch.tensor([[2.0, 1.0], [1.0, 1.0]]), l2=1.0)
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1 / 3], [1 / 2, 0.0]], dtype=torch.float64))


def test_ease_minimises_its_ridge_objective_column_by_column() -> None:
    x = (torch.rand(30, 5, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    weights = ease_weights((x.T @ x).float(), l2=2.0)
    for j in range(5):
        others = [i for i in range(5) if i != j]
        ridge = torch.linalg.solve(x[:, others].T @ x[:, others] + 2.0 * torch.eye(4), x[:, others].T @ x[:, j])
        torch.testing.assert_close(weights[others, j], ridge)  # both in float64


def test_ease_scores_from_the_history() -> None:
    weights = torch.tensor([[0.0, 0.2, 0.3], [0.1, 0.0, 0.4], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(ease(PAST, weights, 2)[1], torch.tensor([0.1, 0.0, 0.4]))
    assert gram_matrix(PAST, 2, 3).tolist() == [[1, 1, 1], [1, 2, 1], [1, 1, 1]]


def test_ease_needs_items_and_regularisation() -> None:
    with pytest.raises(ValueError, match="l2: expected a number > 0, got -1"):
        ease_weights(torch.eye(2), -1)
    with pytest.raises(ValueError, match="gram: expected a square matrix with at least one row"):
        ease_weights(torch.empty(0, 0), 1.0)
