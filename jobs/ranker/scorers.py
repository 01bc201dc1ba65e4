"""Scores of the ranker and of its baselines on the examples of a day.

Axes: B users, V items; column j of a score is row j + 1 of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice, product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jobs.config.renamed import with_new_keys
from jobs.config.sections import RankerSection
from jobs.ranker.items import CandidateItems, catalogue
from jobs.ranker.readers import ExampleReader, context_of
from jobs.registry.bundles import ModelError
from lte_models.evaluation.metrics import query_metrics, target_ranks
from lte_models.ranker.baselines import (
    decayed_counts,
    ease,
    ease_weights,
    gram_matrix,
    last_basket,
    personal_frequency,
    with_popularity,
    with_tie_break,
)
from lte_models.ranker.examples import ExampleBatch, Past
from lte_models.ranker.history_logits import DailyCounts
from lte_models.ranker.model import Ranker
from lte_models.ranker.towers import Catalogue, RankerConfig
from lte_models.training.bundle import Bundle, load_bundle_weights
from lte_models.training.trainer import best_device

TOP = 10
BATCH_USERS = 128

# EASE inverts a matrix of items by items. 4,000 items take seconds, 40,000 items would take hours.
EASE_ITEMS = 4000
EASE_EXAMPLES = 50_000
EASE_L2 = 200.0

# The baseline of decayed counts is tuned over these values, on days before the test day.
FLAT_SHARES = (0.0, 0.1, 0.5)
POPULARITY_WEIGHTS = (0.0, 0.05, 0.3)
TUNING_EXAMPLES, TUNING_CUTOFF = 1_000, 500

# These buffers hold the items of the day, so they come from the catalogue of the day and not from the training.
ITEM_BUFFERS = frozenset(f"item_tower.{name}" for name in Catalogue._fields)
Scorer = Callable[[ExampleBatch], Tensor]
LteSource = Callable[[ExampleBatch], tuple[Tensor, Tensor]]  # float [B, C], bool [B]
IntArray = npt.NDArray[np.int64]


class RankerScorer:
    """Scores the whole vocabulary. The items are embedded once, so make a new scorer after each training step."""

    def __init__(
        self, model: Ranker, settings: RankerSection, daily: DailyCounts, ltes: LteSource | None = None
    ) -> None:
        """Embed the items.

        Args:
            model: The ranker, on its device; the scorer puts the ranker into eval mode.
            settings: Method and window of the LTEs.
            daily: Counts of the same items.
            ltes: Gives the LTEs of a batch in the place of those as of the anchors.
        """
        self.model, self.settings, self.ltes = model.eval(), settings, ltes
        self.device = model.item_tower.content.device
        self.daily = daily._replace(cumulative=daily.cumulative.to(self.device))
        self.rows = torch.arange(1, model.n_items + 1, device=self.device)
        with torch.no_grad():
            self.embedded = model.embed(self.rows)

    def __call__(self, batch: ExampleBatch) -> Tensor:
        """Score a batch: float32 [B, V] on the CPU."""
        moved = newest(batch, self.model.config.max_length).to(self.device)
        with torch.no_grad():
            context = context_of(moved, self.model, self.settings, self.daily)
            if self.ltes:
                lte, has_lte = self.ltes(batch)
                context = context._replace(lte=lte.to(self.device), has_lte=has_lte.to(self.device))
            queries = self.model.queries(moved, context, *self.embedded)
            scores = self.model.candidate_logits(queries, self.rows, moved, context, self.embedded)
        return scores.float().cpu()


def newest(batch: ExampleBatch, length: int) -> ExampleBatch:
    """The batch with the newest ``length`` interactions of each sequence.

    The models of a day may read sequences of different lengths.

    Args:
        batch: Examples whose queries are at the last position.
        length: Largest L.
    """
    cut = batch.items.shape[1] - length
    if cut <= 0:
        return batch
    kept = {name: getattr(batch, name)[:, cut:] for name in ("items", "types", "ages")}
    return batch._replace(query_position=batch.query_position - cut, **kept)


def bundled_ranker(bundle: Bundle, shop: CandidateItems) -> Ranker:
    """A trained ranker over today's items; items that are newer than its vocabulary are ranked by content and metadata.

    Args:
        bundle: Bundle of the ranker, with the basis of ``shop``.
        shop: Items of the day.

    Raises:
        lte_models.training.bundle.BundleError: The weights do not fit their own configuration.
    """
    config = bundle.manifest.config
    model = Ranker(RankerConfig(**config["model"]), catalogue(shop, config["codes"], config["id_rows"]))
    todays = {name: value for name, value in model.state_dict().items() if name in ITEM_BUFFERS}
    load_bundle_weights(model, Bundle(bundle.manifest, bundle.tensors | todays, bundle.item_ids))
    return model.to(best_device()).eval()


def ranker_scorer(
    bundle: Bundle, shop: CandidateItems, types: Sequence[str], ltes: LteSource | None = None
) -> RankerScorer:
    """Scorer of a bundle over today's items.

    Args:
        bundle: Bundle of the ranker, with the basis of ``shop``.
        shop: Items of the day.
        types: Interaction types; the examples hold their positions as codes.
        ltes: Gives the LTEs of a batch in the place of those as of the anchors.

    Raises:
        ModelError: The bundle was trained with other interaction types.
    """
    trained = bundle.manifest.config["types"]
    if list(types) != trained:
        raise ModelError(
            f"ranker of ds {bundle.manifest.ds}: trained with interactions.types {trained}, configured: {list(types)}"
        )
    settings = RankerSection(**with_new_keys("ranker", bundle.manifest.config["settings"]))
    return RankerScorer(bundled_ranker(bundle, shop), settings, shop.daily, ltes)


def baseline_scorers(shop: CandidateItems, recent: ExampleReader, *, ease_items: int = EASE_ITEMS) -> dict[str, Scorer]:
    """The baselines that a ranker must beat. Items with scores that are equal up to rounding are ordered by popularity.

    Args:
        shop: Items of the day.
        recent: Examples before the test day. EASE learns from them.
        ease_items: Number of most frequent items that EASE knows. All other items are ranked after these.
    """
    n_items = len(shop.item_ids)
    weights = fit_ease(recent, min(n_items, ease_items))

    week = partial(popularity, shop)

    def basket(batch: ExampleBatch) -> Tensor:
        return with_tie_break(last_basket(batch.past, len(batch.items), n_items), week(batch))

    def frequency(batch: ExampleBatch, *, short: bool) -> Tensor:
        counts = personal_frequency(batch.past, len(batch.items), n_items, short=short)
        return with_tie_break(counts, week(batch))

    def by_ease(batch: ExampleBatch) -> Tensor:
        found = ease(_frequent(batch.past, len(weights)), weights, len(batch.items))
        found = with_tie_break(found, week(batch)[:, : len(weights)])
        return torch.nn.functional.pad(found, (0, n_items - len(weights)), value=float(found.min()) - 1)

    return {
        "popularity_7d": week,
        "last_basket": basket,
        "frequency_60d": lambda batch: frequency(batch, short=True),
        "frequency_365d": lambda batch: frequency(batch, short=False),
        "ease": by_ease,
    }


def popularity(shop: CandidateItems, batch: ExampleBatch) -> Tensor:
    """Interactions with each item in the 7 days before each example's anchor.

    Args:
        shop: Items of the day.
        batch: B users.

    Returns:
        [B, V].
    """
    days, place = torch.unique(batch.anchor_day, return_inverse=True)
    return shop.daily.recent(days.unsqueeze(1), torch.arange(1, len(shop.item_ids) + 1))[..., 0][place]


def tuned_scorer(shop: CandidateItems, recent: ExampleReader) -> Scorer:
    """``decayed_and_popular``: own counts with decay, plus recent popularity, tuned on days before the test day.

    The experiments compare with this scorer. The daily gate does not: the tuning takes minutes on the sample.

    Args:
        shop: Items of the day.
        recent: Examples before the test day.
    """

    def decayed(flat_share: float, weight: float) -> Scorer:
        def scores(batch: ExampleBatch) -> Tensor:
            counts = popularity(shop, batch)
            own = decayed_counts(batch.past, len(batch.items), len(shop.item_ids), flat_share=flat_share)
            return with_tie_break(with_popularity(own, counts, weight), counts)

        return scores

    return best_of([decayed(*pair) for pair in product(FLAT_SHARES, POPULARITY_WEIGHTS)], recent)


def best_of(scorers: Sequence[Scorer], recent: ExampleReader) -> Scorer:
    """Choose the parameters of a baseline on days before the test day.

    Args:
        scorers: One scorer per choice of parameters.
        recent: Examples before the test day. The first 1,000 examples in the order of a hash decide.

    Returns:
        The scorer with the best mean NDCG; the first one when several are equal.
    """
    batches = list(islice(recent.in_order(), max(1, TUNING_EXAMPLES // recent.batch_size)))
    return max(scorers, key=lambda scorer: _mean_ndcg(batches, scorer))


def _mean_ndcg(batches: Sequence[ExampleBatch], scorer: Scorer) -> float:
    values = []
    for batch in batches:
        ranks = target_ranks(scorer(batch), batch.target_query, batch.targets - 1).numpy()
        values.append(query_metrics(ranks, batch.target_query.numpy(), len(batch.items), TUNING_CUTOFF)["ndcg"])
    found = np.concatenate(values)
    found = found[~np.isnan(found)]
    return float(found.mean()) if found.size else 0.0


def fit_ease(recent: ExampleReader, n_items: int, l2: float = EASE_L2) -> Tensor:
    """EASE on the years before recent anchors, over the most frequent items.

    Args:
        recent: Examples. The first 50,000 examples in the order of a hash are enough.
        n_items: Number of items that EASE knows.
        l2: Strength of the regularisation.

    Returns:
        float64 [n_items, n_items].
    """
    gram = torch.zeros(n_items, n_items)
    for batch in islice(recent.in_order(), max(1, EASE_EXAMPLES // recent.batch_size)):
        gram += gram_matrix(_frequent(batch.past, n_items), len(batch.items), n_items)
    return ease_weights(gram, l2)


def _frequent(past: Past, n_items: int) -> Past:
    kept = past.items <= n_items
    return Past(*(part[kept] for part in past))
