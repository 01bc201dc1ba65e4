import numpy as np
import pytest
import torch

from lte_models.baselines.ease import ease, ease_weights, histories
from tiny_past import past_of_rows

PAST = past_of_rows([(0, 1, 2, 1, 3.5), (0, 3, 0, 4, 90.0), (0, 2, 1, 0, 4.0), (1, 2, 0, 1, 70.2)])


def test_ease_of_two_items_by_hand() -> None:
    # G + I = [[3, 1], [1, 2]], inverse = [[2, -1], [-1, 3]] / 5, B_ij = -P_ij / P_jj
    weights = ease_weights(np.array([[2.0, 1.0], [1.0, 1.0]]), l2=1.0)
    torch.testing.assert_close(weights, torch.tensor([[0.0, 1 / 3], [1 / 2, 0.0]], dtype=torch.float64))


def test_ease_minimises_its_ridge_objective_column_by_column() -> None:
    x = (torch.rand(30, 5, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    weights = ease_weights((x.T @ x).numpy(), l2=2.0)
    for j in range(5):
        others = [i for i in range(5) if i != j]
        ridge = torch.linalg.solve(x[:, others].T @ x[:, others] + 2.0 * torch.eye(4), x[:, others].T @ x[:, j])
        torch.testing.assert_close(weights[others, j], ridge)  # both in float64


def test_ease_scores_from_the_history() -> None:
    weights = torch.tensor([[0.0, 0.2, 0.3], [0.1, 0.0, 0.4], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert ease(PAST, weights, 2)[1].tolist() == pytest.approx([0.1, 0.0, 0.4])
    taken = histories(PAST, 2, 3)
    assert (taken.T @ taken).toarray().tolist() == [[1, 1, 1], [1, 2, 1], [1, 1, 1]]


def test_ease_needs_items_and_regularisation() -> None:
    with pytest.raises(ValueError, match="l2: expected a number > 0, got -1"):
        ease_weights(np.eye(2), -1)
    with pytest.raises(ValueError, match="gram: expected a square matrix with at least one row"):
        ease_weights(np.empty((0, 0)), 1.0)
