import numpy as np
import pytest
from scipy import sparse

from lte_models.baselines.neighbours import nearest, share_rows, tifu_knn, unit_rows, up_cf


def _matrix(rows: list[list[float]]) -> sparse.csr_array:
    return sparse.csr_array(np.array(rows, dtype=np.float64))


def test_rows_get_unit_length_or_unit_sum_and_empty_rows_stay_empty() -> None:
    assert unit_rows(_matrix([[3.0, 4.0], [0.0, 0.0]])).toarray().tolist() == pytest.approx(
        np.array([[0.6, 0.8], [0, 0]])
    )
    assert share_rows(_matrix([[1.0, 3.0], [0.0, 0.0]])).toarray().tolist() == [[0.25, 0.75], [0.0, 0.0]]


def test_the_nearest_are_kept_and_the_unlike_are_not() -> None:
    found = nearest(np.array([[0.5, 0.0, 0.9, 0.5], [0.0, 0.0, 0.0, 0.1]]), 2)
    assert found.toarray().tolist() == [[0.5, 0, 0.9, 0], [0, 0, 0, 0.1]]  # of equal ones the first
    assert nearest(np.array([[0.2, 0.1]]), 9).nnz == 2


def test_tifu_knn_by_hand() -> None:
    # the user is half way between items 0 and 1; neighbours 0 and 1 share an item each, neighbour 2 shares none
    user = _matrix([[np.sqrt(0.5), np.sqrt(0.5), 0, 0]])
    neighbours = _matrix([[0.6, 0, 0.8, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    # similarities .42, .71, 0. The nearest alone: .7 own + .3 of neighbour 1
    found = tifu_knn(user, neighbours, n_neighbours=1, own_share=0.7).toarray()
    assert found == pytest.approx(np.array([[0.7 * np.sqrt(0.5), 0.7 * np.sqrt(0.5) + 0.3, 0, 0]]))
    # two neighbours: their mean is (.3, .5, .4, 0); a third one has nothing in common and does not count
    for n_neighbours in (2, 3):
        found = tifu_knn(user, neighbours, n_neighbours=n_neighbours, own_share=0.0).toarray()
        assert found == pytest.approx(np.array([[0.3, 0.5, 0.4, 0]]))


def test_a_user_without_a_past_has_no_neighbour() -> None:
    assert tifu_knn(_matrix([[0, 0]]), _matrix([[1, 0]]), n_neighbours=1, own_share=0.5).toarray().tolist() == [[0, 0]]


def test_up_cf_by_hand() -> None:
    users = _matrix([[1, 1, 0, 0]])
    neighbours = _matrix([[1, 1, 1, 1], [0, 1, 0, 0]])
    popularity = _matrix([[0.5, 0.5, 0, 0]]), _matrix([[0.1, 0.2, 0.3, 0.4], [0, 1, 0, 0]])
    # |A ∩ B| is 2 and 1. asymmetry 1 divides by |A| = 2: similarities 1 and .5
    found = up_cf(users, neighbours, popularity, asymmetry=1.0, locality=1.0, n_neighbours=9).toarray()
    assert found == pytest.approx(np.array([[0.5 + 0.1, 0.5 + 0.2 + 0.5, 0.3, 0.4]]))
    # asymmetry 0 divides by |B| = 4 and 1: similarities .5 and 1; locality 2 squares them
    found = up_cf(users, neighbours, popularity, asymmetry=0.0, locality=2.0, n_neighbours=9).toarray()
    assert found == pytest.approx(np.array([[0.5 + 0.025, 0.5 + 0.05 + 1, 0.075, 0.1]]))
