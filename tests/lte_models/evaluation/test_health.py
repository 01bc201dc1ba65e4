"""Health of embeddings: each number by hand or from an independent formula."""

from __future__ import annotations

import numpy as np
import pytest

from lte_models.evaluation import health


def test_norms_and_centroid() -> None:
    vectors = np.array([[3.0, 4.0], [0.0, 1.0], [0.0, -1.0]])
    assert health.norm_quantiles(vectors)["norm_p50"] == 1
    before = np.array([[1.0, 0.0], [0.0, 1.0]])  # mean (.5, .5), mean norm 1
    assert health.centroid_shift(before + np.array([0.3, 0.4]), before) == pytest.approx(0.5)


def test_a_line_a_ball_and_a_point() -> None:
    line = np.outer(np.linspace(-1, 1, 50), [0.6, 0.8])
    assert health.spectrum(line) == pytest.approx({"effective_rank": 1, "top_singular_share": 1})
    axes = np.concatenate([np.eye(4), -np.eye(4)])  # the same variance along each axis
    assert health.spectrum(axes) == pytest.approx({"effective_rank": 4, "top_singular_share": 0.25})
    assert health.spectrum(np.ones((9, 3), dtype=np.float32))["effective_rank"] == 0


def test_cosine_of_pairs_is_1_for_one_direction_and_never_compares_a_row_with_itself() -> None:
    assert health.pair_cosine(np.array([[1.0, 1.0], [2.0, 2.0]])) == pytest.approx(1)
    assert health.pair_cosine(np.array([[1.0, 0.0], [0.0, 1.0]])) == 0


def test_psi_and_ks_by_hand() -> None:
    before = np.arange(100, dtype=float)
    assert (health.psi(before, before), health.ks(before, before)) == (0, 0)
    # all of the values above the ninth decile: nine empty bins of half a row, one with everything
    moved = np.full(100, 1000.0)
    expected = 9 * (0.005 - 0.1) * np.log(0.005 / 0.1) + (1 - 0.1) * np.log(1 / 0.1)
    assert health.psi(moved, before) == pytest.approx(expected)
    assert health.ks(moved, before) == 1
    assert health.ks(np.arange(50.0, 150.0), before) == pytest.approx(0.5)


def test_psi_of_counts_with_ties() -> None:
    counts = np.repeat([1.0, 2.0, 5.0], [60, 30, 10])
    assert health.psi(counts, counts) == 0
    assert health.psi(np.repeat([1.0, 2.0, 5.0], [30, 60, 10]), counts) == pytest.approx(2 * 0.3 * np.log(2))


def test_frozen_rows_are_those_whose_history_changed_and_whose_vector_did_not() -> None:
    before = np.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    now = np.array([[1.0, 0.0], [2.0, 1.0], [3.0, 0.0]])
    assert health.frozen_share(now, before, np.array([True, True, False])) == 0.5
    assert health.frozen_share(now, before, np.zeros(3, dtype=bool)) == 0


def test_neighbours_of_one_taste_are_few_items() -> None:
    items = np.eye(20)
    assert health.neighbour_share(np.eye(20)[:2], items, k=1) == 1  # two users, two items
    assert health.neighbour_share(np.tile(items[0], (2, 1)), items, k=1) == 0.5
    assert health.neighbour_share(np.eye(20), items[:3], k=10) == 1
