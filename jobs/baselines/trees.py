"""Boosted trees over a user's own items and the popular ones: a bar for the experiments.

Axes: B users, P pairs of a user and a candidate item, V items; column j is row j + 1 of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from jobs.baselines.scorers import PopularityByDay
from jobs.ranker.readers import ExampleReader
from lte_models.arrays import Float32Array, IntArray
from lte_models.baselines.scores import PopularityOrder, SparseScores
from lte_models.baselines.trees import BoostedTrees
from lte_models.ranker.examples import ExampleBatch
from lte_models.ranker.logits.history_features import HISTORY_FEATURES

# Items that are candidates of every user. Items that are neither popular nor the user's own come last.
POPULAR_CANDIDATES = 200
TREE_EXAMPLES = 3_000


@dataclass(frozen=True)
class Pairs:
    """Candidates of each user, sorted by user, then column.

    Attributes:
        user: int64 [P].
        column: int64 [P].
        features: float32 [P, 26]: the ranker's history features (NaN for an item that is not the user's own), and the
            logarithms of the counts of all users.
    """

    user: IntArray
    column: IntArray
    features: Float32Array


def pairs_of(batch: ExampleBatch, orders: PopularityByDay) -> Pairs:
    """The user's own items and the most popular items of the user's anchor.

    Args:
        batch: Examples.
        orders: Popularity.
    """
    own_user, own_column = batch.past.user.numpy(), batch.past.items.numpy() - 1
    days, day_of_user = orders(batch)
    user, column = _popular(days, day_of_user, own_user, own_column)
    blank = np.full((len(user), HISTORY_FEATURES), np.nan, dtype=np.float32)
    user, column = np.concatenate([own_user, user]), np.concatenate([own_column, column])
    own = np.concatenate([batch.past.features.numpy(), blank])
    rows = torch.from_numpy(column + 1)
    counts = torch.log1p(orders.shop.daily.recent(batch.anchor_day[torch.from_numpy(user)], rows)).numpy()
    order = np.lexsort((column, user))
    return Pairs(user[order], column[order], np.concatenate([own, counts], axis=1)[order])


def _popular(
    days: Sequence[PopularityOrder], day_of_user: Tensor, own_user: IntArray, own_column: IntArray
) -> tuple[IntArray, IntArray]:
    best = np.stack([day.columns[:POPULAR_CANDIDATES] for day in days])[day_of_user.numpy()]  # [B, 200]
    user, column = np.repeat(np.arange(len(best)), best.shape[1]), best.ravel()
    width = len(days[0].place)
    is_new = ~np.isin(user * width + column, own_user * width + own_column)
    return user[is_new], column[is_new]


def taken_pairs(batch: ExampleBatch, pairs: Pairs, n_items: int) -> npt.NDArray[np.bool_]:
    """Whether a candidate is a target: bool [P].

    Args:
        batch: Examples with one query per user.
        pairs: Candidates of the batch.
        n_items: V.
    """
    targets = batch.target_query.numpy() * n_items + batch.targets.numpy() - 1
    return np.isin(pairs.user * n_items + pairs.column, targets)


@dataclass(frozen=True)
class TreesScorer:
    """Scores candidates by trees; all other items come after them, by popularity.

    Attributes:
        trees: The trees.
        orders: Popularity.
    """

    trees: BoostedTrees
    orders: PopularityByDay

    def __call__(self, batch: ExampleBatch) -> SparseScores:
        """Score a batch."""
        orders, day_of_user = self.orders(batch)
        pairs = pairs_of(batch, self.orders)
        found = self.trees.scores(pairs.features)
        values = found - found.min(initial=0.0) + 1  # every candidate is above 0, the score of all others
        shape = (len(batch.items), len(self.orders.shop.item_ids))
        return SparseScores(
            sparse.csr_array((values, (pairs.user, pairs.column)), shape=shape), orders, day_of_user.numpy()
        )


def fit_trees(orders: PopularityByDay, train: ExampleReader, seed: int) -> TreesScorer:
    """Train on the first 3,000 training examples in the order of a hash.

    Args:
        orders: Popularity.
        train: Examples before the test days.
        seed: Seed of LightGBM.

    Raises:
        lte_models.baselines.trees.MissingExtraError: LightGBM is not installed.
    """
    features, labels, sizes = [], [], []
    n_items = len(orders.shop.item_ids)
    for batch in islice(train.in_order(), max(1, TREE_EXAMPLES // train.batch_size)):
        pairs = pairs_of(batch, orders)
        features.append(pairs.features)
        labels.append(taken_pairs(batch, pairs, n_items))
        sizes.append(np.bincount(pairs.user, minlength=len(batch.items)))
    trees = BoostedTrees(np.concatenate(features), np.concatenate(labels), np.concatenate(sizes), seed)
    return TreesScorer(trees, orders)
