"""TIFU-KNN and UP-CF@r over the users of recent examples, with parameters tuned on days before the test days."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from jobs.baselines.tuning import best_of
from jobs.ranker.readers import ExampleReader, user_ids
from jobs.ranker.scorers import Scorer
from lte_models.baselines.counting import decayed_counts, frequency
from lte_models.baselines.neighbours import share_rows, tifu_knn, unit_rows, up_cf
from lte_models.baselines.scores import PopularityOrder, SparseScores, past_matrix
from lte_models.ranker.examples import ExampleBatch, Past

# Users who can be neighbours. Each costs a product with every user that is scored.
MAX_NEIGHBOURS = 2_000

# Values that are tried. The papers tune the same parameters, each on its own data.
TIFU_CHOICES = tuple(product((50, 200), (0.7, 0.9)))  # neighbours, own share
UP_CF_CHOICES = tuple(product((60, 365), (0.25, 0.75), (2.0, 6.0)))  # days r, asymmetry, locality
UP_CF_NEIGHBOURS = 200
FLAT_SHARE = 0.1
TUNING_EXAMPLES = 256

Orders = Callable[[ExampleBatch], tuple[list[PopularityOrder], Tensor]]


@dataclass(frozen=True)
class NeighbourBase:
    """Users who can be neighbours: the oldest recent example of each.

    The parameters are tuned on the same recent examples. A later example of a user would hold the targets of an earlier
    one.

    Attributes:
        n_items: V.
        recent: Examples before the test days.
    """

    n_items: int
    recent: ExampleReader

    @cached_property
    def pasts(self) -> list[tuple[Past, int]]:
        """Past and number of users of each batch, one example per user, 2,000 users at most."""
        oldest = self._oldest()
        found, start, n_users = [], 0, 0
        for batch in self.recent.in_order():
            size = len(batch.items)
            kept = oldest[start : start + size]
            kept &= n_users + np.cumsum(kept) <= MAX_NEIGHBOURS
            found.append(_of_users(batch.past, torch.from_numpy(kept)))
            start, n_users = start + size, n_users + int(kept.sum())
            if n_users >= MAX_NEIGHBOURS:
                break
        return found

    def _oldest(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Mark the oldest example of each user, bool [examples]; the order of the files is that of a hash."""
        days = np.concatenate([batch.anchor_day.numpy() for batch in self.recent.in_order()])
        _, user = np.unique(user_ids(self.recent.rows), return_inverse=True)
        order = np.lexsort((days, user))
        is_first = np.r_[True, user[order][1:] != user[order][:-1]]
        found = np.zeros(len(days), dtype=np.bool_)
        found[order[is_first]] = True
        return found

    def matrix(self, values: Callable[[Past], Tensor]) -> sparse.csr_array:
        """A value of each user and past item: [N, V]."""
        parts = [past_matrix(past, values(past), n_users, self.n_items) for past, n_users in self.pasts]
        return sparse.csr_array(sparse.vstack(parts))

    @cached_property
    def decayed(self) -> sparse.csr_array:
        """Decayed counts of unit length."""
        return unit_rows(self.matrix(_decayed))

    @cached_property
    def taken(self) -> sparse.csr_array:
        """1 for each item of the year."""
        return self.matrix(_taken)

    @cached_property
    def shares(self) -> dict[int, sparse.csr_array]:
        """Days r to the share of each item among the interactions of the last r days."""
        return {days: share_rows(self.matrix(_counted(days))) for days in (60, 365)}


def _of_users(past: Past, kept: Tensor) -> tuple[Past, int]:
    number, chosen = torch.cumsum(kept, 0) - 1, kept[past.user]
    part = Past(*(column[chosen] for column in past))
    return part._replace(user=number[part.user]), int(kept.sum())


def _decayed(past: Past) -> Tensor:
    return decayed_counts(past, flat_share=FLAT_SHARE)


def _taken(past: Past) -> Tensor:
    return torch.ones_like(past.n_long)


def _counted(days: int) -> Callable[[Past], Tensor]:
    return lambda past: frequency(past, short=days == 60)


@dataclass(frozen=True)
class NeighbourScorer:
    """Scores items by a neighbourhood; popularity orders what it leaves equal.

    Attributes:
        base: The neighbours.
        orders: Popularity.
        own: The user's part of the method, batch to [B, V].
    """

    base: NeighbourBase
    orders: Orders
    own: Callable[[ExampleBatch], sparse.csr_array]

    def __call__(self, batch: ExampleBatch) -> SparseScores:
        """Score a batch."""
        orders, day_of_user = self.orders(batch)
        found = self.own(batch)
        found.sort_indices()
        return SparseScores(found, orders, day_of_user.numpy())


def _matrix(batch: ExampleBatch, values: Tensor, n_items: int) -> sparse.csr_array:
    return past_matrix(batch.past, values, len(batch.items), n_items)


def tuned_tifu_knn(base: NeighbourBase, orders: Orders, recent: ExampleReader) -> Scorer:
    """``tifu_knn``: see :func:`lte_models.baselines.neighbours.tifu_knn`.

    Args:
        base: Users who can be neighbours.
        orders: Popularity, for ties.
        recent: Examples before the test days, which decide the parameters.
    """

    def scorer(n_neighbours: int, own_share: float) -> Scorer:
        def own(batch: ExampleBatch) -> sparse.csr_array:
            users = unit_rows(_matrix(batch, _decayed(batch.past), base.n_items))
            return tifu_knn(users, base.decayed, n_neighbours=n_neighbours, own_share=own_share)

        return NeighbourScorer(base, orders, own)

    return best_of([scorer(*choice) for choice in TIFU_CHOICES], recent, TUNING_EXAMPLES)


def tuned_up_cf(base: NeighbourBase, orders: Orders, recent: ExampleReader) -> Scorer:
    """``up_cf``: see :func:`lte_models.baselines.neighbours.up_cf`; r is 60 or 365 days.

    Args:
        base: Users who can be neighbours.
        orders: Popularity, for ties.
        recent: Examples before the test days, which decide the parameters.
    """

    def scorer(days: int, asymmetry: float, locality: float) -> Scorer:
        def own(batch: ExampleBatch) -> sparse.csr_array:
            users = _matrix(batch, _taken(batch.past), base.n_items)
            shares = share_rows(_matrix(batch, _counted(days)(batch.past), base.n_items))
            return up_cf(
                users,
                base.taken,
                (shares, base.shares[days]),
                asymmetry=asymmetry,
                locality=locality,
                n_neighbours=UP_CF_NEIGHBOURS,
            )

        return NeighbourScorer(base, orders, own)

    return best_of([scorer(*choice) for choice in UP_CF_CHOICES], recent, TUNING_EXAMPLES)
