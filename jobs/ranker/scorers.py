"""Scores of the ranker on the examples of a day.

Axes: B users, V items; column j of a score is row j + 1 of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from jobs.config.models import RankerSection
from jobs.config.renamed import with_new_keys
from jobs.ranker.items import CandidateItems, catalogue
from jobs.ranker.readers import context_of
from jobs.registry.bundles import ModelError
from lte_models.baselines.scores import DenseScores, Scores
from lte_models.ranker.examples import ExampleBatch
from lte_models.ranker.logits.history_logits import DailyCounts
from lte_models.ranker.model import Ranker
from lte_models.ranker.towers import Catalogue, RankerConfig
from lte_models.training.bundle import Bundle, load_bundle_weights
from lte_models.training.trainer import best_device

TOP = 10
BATCH_USERS = 128

# These buffers hold the items of the day, so they come from the catalogue of the day and not from the training.
ITEM_BUFFERS = frozenset(f"item_tower.{name}" for name in Catalogue._fields)
Scorer = Callable[[ExampleBatch], Tensor | Scores]
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


def scores_of(scorer: Scorer, batch: ExampleBatch) -> Scores:
    """Score a batch, by a model that scores the whole vocabulary or by a baseline that scores some items of each user.

    Args:
        scorer: The model or baseline.
        batch: Examples.
    """
    found = scorer(batch)
    return DenseScores(found) if isinstance(found, Tensor) else found


def ranks_of(scores: Scores, batch: ExampleBatch) -> IntArray:
    """Ranks of the targets of a batch, from 1: int64 [T].

    Args:
        scores: Scores of the batch.
        batch: Examples.

    Raises:
        ValueError: A score is not finite.
    """
    return scores.ranks(batch.target_query.numpy(), batch.targets.numpy() - 1)
