"""Behaviour vectors: against EASE written out, by users and by items, low rank, empty cases and cross-fitting."""

import numpy as np
import pytest
from scipy import sparse

from lte_models.averages import behaviour
from lte_models.averages.behaviour import BehaviourError, behaviour_vectors, cross_fitted


def plain_ease(x, vectors, l2):
    """B of Steck (2019) as written, then B times the centred E, scaled to the longest item vector."""
    inverse = np.linalg.inv(x.T @ x + l2 * np.eye(x.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    found = weights @ (vectors - vectors.mean(axis=0))
    return found * np.linalg.norm(vectors, axis=1).max() / np.linalg.norm(found, axis=1).max()


def world(n_users, n_items, *, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.random((n_users, n_items)) < 0.3).astype(float)
    return x, rng.normal(size=(n_items, dim)).astype(np.float32)


@pytest.mark.parametrize(("n_users", "n_items"), [(12, 40), (40, 12)])  # through [U, U] and through [V, V]
def test_equals_ease_written_out(n_users, n_items):
    x, vectors = world(n_users, n_items)
    found = behaviour_vectors(sparse.csr_array(x), vectors, l2=3.0)

    assert found.dtype == np.float32
    assert np.allclose(found, plain_ease(x, vectors, 3.0), atol=1e-5)


def test_the_blocks_of_the_diagonal_do_not_change_it(monkeypatch):
    x, vectors = world(6, 50)
    whole = behaviour_vectors(sparse.csr_array(x), vectors, l2=1.0)
    monkeypatch.setattr(behaviour, "_BLOCK_ITEMS", 7)

    assert np.allclose(behaviour_vectors(sparse.csr_array(x), vectors, l2=1.0), whole, atol=1e-6)


def test_two_items_that_go_together_point_at_each_other():
    # users 0 and 1 had tea and cups, user 2 had a lamp alone
    x = sparse.csr_array(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1.0]]))
    found = behaviour_vectors(x, np.eye(3, dtype=np.float32), l2=1.0)

    # XᵀX + I of tea and cups is [[3, 2], [2, 3]], its inverse [[3, -2], [-2, 3]] / 5, so B = [[0, 2/3], [2/3, 0]].
    # The centred vector of cups is (-1, 2, -1) / 3, of length sqrt(6) / 3; the longest item vector has length 1.
    cups = np.array([-1, 2, -1]) / np.sqrt(6)
    assert np.allclose(found, [cups, cups[[1, 0, 2]], [0, 0, 0]], atol=1e-6)
    assert not found[2].any()  # exactly zero: the lamp had no company


def test_full_rank_is_exact_and_a_lower_rank_comes_near():
    rng = np.random.default_rng(3)
    taste = rng.integers(0, 3, size=60)  # three groups of users, each with twelve items of its own
    x = (rng.random((60, 36)) < np.where(np.arange(36) // 12 == taste[:, None], 0.7, 0.02)).astype(float)
    vectors = rng.normal(size=(36, 5)).astype(np.float32)
    exact = behaviour_vectors(sparse.csr_array(x), vectors, l2=20.0)
    almost = behaviour_vectors(sparse.csr_array(x), vectors, l2=20.0, rank=35)
    low = behaviour_vectors(sparse.csr_array(x), vectors, l2=20.0, rank=3)

    assert np.allclose(almost, exact, atol=0.05)  # one of 36 directions, the weakest, is missing
    cosines = (low * exact).sum(axis=1) / np.linalg.norm(low, axis=1) / np.linalg.norm(exact, axis=1)
    assert np.median(cosines) > 0.8


def test_a_rerun_gives_the_same_bits():
    x, vectors = world(30, 50)
    for rank in (0, 8):
        first, second = (behaviour_vectors(sparse.csr_array(x), vectors, l2=2.0, rank=rank) for _ in range(2))
        assert np.array_equal(first, second)


def test_counts_and_stored_zeros_do_not_matter():
    x, vectors = world(12, 20)
    counted = sparse.csr_array(x * 3)
    stored = sparse.csr_array(np.ones_like(x))
    stored.data = x.ravel()  # the same ones, and zeros that are stored

    expected = behaviour_vectors(sparse.csr_array(x), vectors, l2=2.0)
    for other in (counted, stored):
        assert np.array_equal(behaviour_vectors(other, vectors, l2=2.0), expected)


def test_nobody_had_anything():
    found = behaviour_vectors(sparse.csr_array((4, 3)), np.eye(3, dtype=np.float32), l2=1.0)

    assert not found.any()


def test_cross_fitting_leaves_out_the_own_fold():
    x, vectors = world(30, 20)
    folds = np.arange(30) % 3
    found = cross_fitted(sparse.csr_array(x), folds, vectors, l2=2.0)

    for fold in range(3):
        assert np.allclose(found[fold], plain_ease(x[folds != fold], vectors, 2.0), atol=1e-5)
    changed = x.copy()
    changed[folds == 1] = 1 - changed[folds == 1]
    assert np.array_equal(cross_fitted(sparse.csr_array(changed), folds, vectors, l2=2.0)[1], found[1])


def test_refusals(monkeypatch):
    x, vectors = world(12, 20)
    histories = sparse.csr_array(x)
    with pytest.raises(BehaviourError, match="l2: expected a finite number above 0, got 0"):
        behaviour_vectors(histories, vectors, l2=0)
    with pytest.raises(BehaviourError, match=r"histories \(12, 20\) do not fit vectors \(19, 5\)"):
        behaviour_vectors(histories, vectors[:-1], l2=1)
    with pytest.raises(BehaviourError, match="rank: expected at most 11 for histories"):
        behaviour_vectors(histories, vectors, l2=1, rank=12)
    monkeypatch.setattr(behaviour, "MAX_EXACT", 11)
    with pytest.raises(BehaviourError, match=r"12 users and 20 items .* set a rank"):
        behaviour_vectors(histories, vectors, l2=1)
