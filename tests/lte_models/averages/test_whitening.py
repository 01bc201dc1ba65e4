"""Whitening: hand-worked case, moments, small bases, and averages of whitened items."""

import numpy as np
import pytest

from lte_models.averages.whitening import WhiteningError, whitening

# Two directions of very different length around a mean of (5, 1): variances 4 and 0.01, no covariance.
PLUS = np.array([[7, 1.1], [3, 1.1], [7, 0.9], [3, 0.9]], dtype=np.float32)


def test_directions_weigh_the_same_up_to_the_ridge():
    many = np.tile(PLUS, (1000, 1))  # 4000 items, so s is least_share
    found = whitening(many, least_share=0.01)

    # C = diag(4, .01), tr C / D = 2.005, so C' = diag(.99 * 4 + .02005, .99 * .01 + .02005)
    assert np.allclose(found.mean, [5, 1])
    assert np.allclose(found.matrix, np.diag([1 / np.sqrt(3.98005), 1 / np.sqrt(0.02995)]), rtol=1e-5)


def test_whitened_items_have_mean_zero_and_almost_the_identity_as_covariance():
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(5000, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6)
    found = whitening(mixed.astype(np.float32), least_share=1e-4)
    items = found.items(mixed.astype(np.float32))

    assert np.allclose(items.mean(axis=0), 0, atol=1e-4)
    # eigenvalues are shrunk by at most s = D / (D + V) = .0012 of the average one, 6.1 here: those above it are at 1
    eigenvalues = np.linalg.eigvalsh(np.cov(items.T))
    assert eigenvalues.max() <= 1.01
    assert np.median(eigenvalues) >= 0.9


def test_a_rotated_basis_gives_the_rotated_whitening():
    rng = np.random.default_rng(1)
    items = (rng.normal(size=(300, 4)) * [5, 1, 1, 0.1]).astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    plain, rotated = whitening(items), whitening((items @ rotation).astype(np.float32))

    assert np.allclose(rotated.matrix, rotation.T @ plain.matrix @ rotation, rtol=1e-3, atol=1e-3)


def test_a_basis_of_few_items_is_hardly_stretched():
    items = np.eye(8, dtype=np.float32)[:2]  # one direction with variance, seven without
    values = np.linalg.eigvalsh(whitening(items).matrix)

    # s = 8 / 10: variances are .8 v and .8 v + .2 * 8 v = 2.4 v, so lengths differ by no more than sqrt(3)
    assert values.max() / values.min() == pytest.approx(np.sqrt(3), rel=1e-6)


def test_equal_items_are_only_centred():
    found = whitening(np.ones((5, 3), dtype=np.float32))

    assert np.array_equal(found.matrix, np.eye(3))
    assert not found.items(np.ones((5, 3), dtype=np.float32)).any()


def test_the_average_of_whitened_items_is_the_whitened_average_and_zero_stays_zero():
    found = whitening(PLUS)
    average = PLUS[:3].mean(axis=0, keepdims=True)
    empty = np.zeros((1, 2), dtype=np.float32)

    both = found.averages(np.concatenate([average, empty]))

    assert np.allclose(both[0], found.items(PLUS[:3]).mean(axis=0), atol=1e-5)
    assert not both[1].any()


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((0, 3)), r"at least one item, got shape \(0, 3\)"),
        (np.zeros(3), r"got shape \(3,\)"),
        (np.array([[0.0, 1], [np.nan, 1]]), "vector of item 1 is not finite"),
    ],
)
def test_refuses_what_is_no_basis(vectors, message):
    with pytest.raises(WhiteningError, match=message):
        whitening(vectors.astype(np.float32))


def test_refuses_a_ridge_of_zero():
    with pytest.raises(WhiteningError, match="least_share"):
        whitening(PLUS, least_share=0.0)
