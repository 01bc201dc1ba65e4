"""Boosted trees on counting features (LambdaRank): a bar for experiments, from the extra ``experiments``.

Axes: P pairs of a user and a candidate item, grouped by user; F features.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from lte_models.arrays import Float32Array, Float64Array, IntArray

# LightGBM's own defaults, but for what makes a training repeatable and leaves the other core alone.
PARAMETERS: dict[str, Any] = {
    "objective": "lambdarank",
    "lambdarank_truncation_level": 100,
    "learning_rate": 0.1,
    "num_leaves": 31,
    "min_data_in_leaf": 50,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
ROUNDS = 100


class MissingExtraError(RuntimeError):
    """A package of an optional extra is not installed; the message names the extra."""


def lightgbm_package() -> ModuleType:
    """The package lightgbm.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import lightgbm
    except ImportError as error:
        raise MissingExtraError(
            "the bar of boosted trees: expected the package lightgbm, found none: "
            "install the extra: pip install 'long-term-embeddings[experiments]'"
        ) from error
    package: ModuleType = lightgbm
    return package


class BoostedTrees:
    """LambdaRank (Burges 2010) by LightGBM; the same data and seed give the same trees."""

    def __init__(
        self,
        features: Float32Array,
        labels: npt.NDArray[np.bool_],
        group_sizes: IntArray,
        seed: int,
        rounds: int = ROUNDS,
    ) -> None:
        """Train.

        Args:
            features: float32 [P, F]; NaN where a feature does not apply.
            labels: bool [P], whether the user took the item.
            group_sizes: int64 [users], pairs of each user, in the order of the pairs.
            seed: Seed of LightGBM.
            rounds: Number of trees.

        Raises:
            MissingExtraError: LightGBM is not installed.
        """
        package = lightgbm_package()
        rows = package.Dataset(features, label=labels.astype(np.int32), group=group_sizes)
        self.booster: Any = package.train({**PARAMETERS, "seed": seed}, rows, num_boost_round=rounds)

    def scores(self, features: Float32Array) -> Float64Array:
        """Score pairs: float64 [P]; larger is better."""
        found: Float64Array = self.booster.predict(features, num_threads=1)
        return found
