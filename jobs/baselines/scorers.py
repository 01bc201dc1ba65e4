"""The baselines that a ranker is measured against, by name, each as a scorer of examples.

Axes: B users, P past items of all users together, V items; column j of a score is row j + 1 of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice, product

import torch
from scipy import sparse
from torch import Tensor

from jobs.baselines.neighbours import NeighbourBase, tuned_tifu_knn, tuned_up_cf
from jobs.baselines.tuning import best_of
from jobs.ranker.items import CandidateItems
from jobs.ranker.readers import ExampleReader
from jobs.ranker.scorers import Scorer
from lte_models.baselines.counting import decayed_counts, frequency, last_basket, own_scores
from lte_models.baselines.ease import ease, ease_weights, histories
from lte_models.baselines.scores import HeadScores, PopularityOrder, SparseScores, with_tie_break
from lte_models.ranker.examples import ExampleBatch

# EASE inverts a matrix of items by items. 4,000 items take seconds, 40,000 items would take hours.
EASE_ITEMS = 4000
EASE_EXAMPLES = 50_000
EASE_L2 = 200.0

# The baseline of decayed counts is tuned over these values, on days before the test day.
FLAT_SHARES = (0.0, 0.1, 0.5)
POPULARITY_WEIGHTS = (0.0, 0.05, 0.1, 0.3)
N_ORDERS = 32  # orders of anchors that are kept: a batch has few anchors, and batches follow each other by hash


@dataclass
class PopularityByDay:
    """Orders the items by the interactions of the 7 days before an anchor; an order is made once per anchor.

    Attributes:
        shop: Items with their daily counts.
    """

    shop: CandidateItems
    _orders: dict[int, PopularityOrder] = field(default_factory=dict)

    def __call__(self, batch: ExampleBatch) -> tuple[list[PopularityOrder], Tensor]:
        """Orders of a batch's anchors, and for each user the place of its order: int64 [B]."""
        days, place = torch.unique(batch.anchor_day, return_inverse=True)
        return [self._order(day) for day in days.tolist()], place

    def _order(self, day: int) -> PopularityOrder:
        if day not in self._orders:
            while len(self._orders) >= N_ORDERS:
                del self._orders[next(iter(self._orders))]
            rows = torch.arange(1, len(self.shop.item_ids) + 1)
            week = self.shop.daily.recent(torch.tensor([day]), rows)[:, 0]
            self._orders[day] = PopularityOrder(week.double().numpy())
        return self._orders[day]


Values = Callable[[ExampleBatch], Tensor]


@dataclass(frozen=True)
class CountingScorer:
    """Scores past items by a value that is counted, and all items by a share of their popularity.

    Attributes:
        orders: Popularity.
        values: Batch to float [P].
        weight: Of popularity; with 0, popularity only orders items of equal value.
    """

    orders: PopularityByDay
    values: Values
    weight: float = 0.0

    def __call__(self, batch: ExampleBatch) -> SparseScores:
        """Score a batch."""
        return own_scores(batch, self.values(batch), *self.orders(batch), self.weight)


def baseline_scorers(
    shop: CandidateItems, recent: ExampleReader, names: Sequence[str], *, ease_items: int = EASE_ITEMS
) -> dict[str, Scorer]:
    """Baselines by name. Items with scores that are equal up to rounding are ordered by popularity.

    Args:
        shop: Items of the day.
        recent: Examples before the test days. EASE and neighbours learn from them, parameters are tuned on them.
        names: Names of :data:`jobs.config.models.BASELINES`.
        ease_items: Number of most frequent items that EASE knows. All other items are ranked after these.
    """
    orders = PopularityByDay(shop)
    neighbours = NeighbourBase(len(shop.item_ids), recent)
    makers: dict[str, Callable[[], Scorer]] = {
        "popularity_7d": lambda: CountingScorer(orders, lambda batch: torch.zeros(len(batch.past.items))),
        "last_basket": lambda: CountingScorer(orders, lambda batch: last_basket(batch.past, len(batch.items))),
        "frequency_60d": lambda: CountingScorer(orders, lambda batch: frequency(batch.past, short=True)),
        "frequency_365d": lambda: CountingScorer(orders, lambda batch: frequency(batch.past, short=False)),
        "ease": lambda: EaseScorer(orders, fit_ease(recent, min(len(shop.item_ids), ease_items))),
        "decayed_and_popular": lambda: tuned_decay(orders, recent),
        "tifu_knn": lambda: tuned_tifu_knn(neighbours, orders, recent),
        "up_cf": lambda: tuned_up_cf(neighbours, orders, recent),
    }
    return {name: makers[name]() for name in names}


def tuned_decay(orders: PopularityByDay, recent: ExampleReader) -> Scorer:
    """``decayed_and_popular``: own counts with decay, plus recent popularity, tuned on days before the test days.

    Args:
        orders: Popularity.
        recent: Examples before the test days.
    """

    def decayed(flat_share: float) -> Values:
        return lambda batch: decayed_counts(batch.past, flat_share=flat_share)

    choices = product(FLAT_SHARES, POPULARITY_WEIGHTS)
    return best_of([CountingScorer(orders, decayed(share), weight) for share, weight in choices], recent)


@dataclass(frozen=True)
class EaseScorer:
    """Scores the most frequent items by EASE.

    Attributes:
        orders: Popularity, for ties.
        weights: float64 [H, H].
    """

    orders: PopularityByDay
    weights: Tensor

    def __call__(self, batch: ExampleBatch) -> HeadScores:
        """Score a batch."""
        orders, day_of_user = self.orders(batch)
        week = torch.stack([torch.from_numpy(order.counts[: len(self.weights)]) for order in orders])[day_of_user]
        found = ease(batch.past, self.weights, len(batch.items))
        return HeadScores(with_tie_break(found, week.numpy()), len(self.orders.shop.item_ids))


def fit_ease(recent: ExampleReader, n_items: int, l2: float = EASE_L2) -> Tensor:
    """EASE on the years before recent anchors, over the most frequent items.

    Args:
        recent: Examples. The first 50,000 examples in the order of a hash are enough.
        n_items: Number of items that EASE knows.
        l2: Strength of the regularisation.

    Returns:
        float64 [n_items, n_items].
    """
    gram = sparse.csr_array((n_items, n_items))
    for batch in islice(recent.in_order(), max(1, EASE_EXAMPLES // recent.batch_size)):
        taken = histories(batch.past, len(batch.items), n_items)
        gram = gram + taken.T @ taken
    return ease_weights(gram.toarray(), l2)
