import sys

import numpy as np
import pytest

from lte_models.baselines.trees import BoostedTrees, MissingExtraError, lightgbm_package


def _pairs(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each of 200 users has ten candidates and takes the one whose first feature is largest."""
    features = np.random.default_rng(seed).normal(size=(200, 10, 3)).astype(np.float32)
    labels = features[:, :, 0] == features[:, :, 0].max(axis=1, keepdims=True)
    return features.reshape(-1, 3), labels.ravel(), np.full(200, 10)


def test_trees_find_what_decides_on_other_users_and_repeat_themselves() -> None:
    pytest.importorskip("lightgbm")
    features, labels, sizes = _pairs(1)
    trees = BoostedTrees(features, labels, sizes, seed=0, rounds=20)
    others, taken, _ = _pairs(2)
    best = trees.scores(others).reshape(200, 10).argmax(axis=1)
    assert np.mean(taken.reshape(200, 10)[np.arange(200), best]) > 0.8  # chance is .1
    again = BoostedTrees(features, labels, sizes, seed=0, rounds=20)
    assert np.array_equal(again.scores(others), trees.scores(others))


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'long-term-embeddings\[experiments\]'"):
        lightgbm_package()
