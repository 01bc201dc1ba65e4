"""The live ranker, ready to serve: candidates are what the towers retrieve and the user's own past items.

A ranker and a snapshot that do not fit together are refused: a model must not read vectors of a basis or window that it
was not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import pyarrow as pa
import torch

from jobs.config.models import RankerSection
from jobs.config.renamed import with_new_keys
from jobs.config.sections import Deployment
from jobs.lake.reader import LakeReader
from jobs.ranker.items import CandidateItems, IntArray
from jobs.ranker.judging.live import LteKind, live_bundle_folder, require_pair
from jobs.ranker.readers import example_collate
from jobs.ranker.scorers import bundled_ranker
from jobs.registry.bundles import ModelError
from jobs.serving.candidates import read_candidates
from jobs.serving.history import Numbers, lake_events, serving_rows
from jobs.store.reader import EmbeddingBatch
from lte_models.ranker.examples import ExampleBatch, ExampleCollate
from lte_models.ranker.logits.history_logits import DailyCounts
from lte_models.ranker.model import Context
from lte_models.ranker.retrieval import N_RETRIEVED, Retriever
from lte_models.training.bundle import load_bundle
from lte_models.training.manifest import Manifest


@dataclass(frozen=True)
class ServedRanker:
    """The live ranker, ready to serve.

    Attributes:
        manifest: Of its bundle.
        retriever: Its items, embedded.
        shop: Items and popularity as of the end of ``ds``.
        ds: Last day whose interactions count.
        ids: Item ids by item_index.
        known_from: Day since 1970 from which each item is known, by item_index.
    """

    manifest: Manifest
    retriever: Retriever
    shop: CandidateItems
    ds: date
    ids: pa.Array
    known_from: IntArray

    @cached_property
    def numbers(self) -> Numbers:
        """How interactions are numbered: with the types of the training, not those configured now."""
        index_of = {item_id: index for index, item_id in enumerate(self.ids.to_pylist())}
        return Numbers(index_of, self.known_from, tuple(self.manifest.config["types"]), self.ds)

    @cached_property
    def collate(self) -> ExampleCollate:
        """Makes a batch of rows of examples, by the settings of the training."""
        settings = RankerSection(**with_new_keys("ranker", self.manifest.config["settings"]))
        return example_collate(self.shop, settings)

    @cached_property
    def daily(self) -> DailyCounts:
        """Daily counts on the ranker's device: one object, by which the retriever knows that nothing changed."""
        return self.shop.daily._replace(cumulative=self.shop.daily.cumulative.to(self.retriever.rows.device))

    @property
    def largest_k(self) -> int:
        """Most items that one answer can hold."""
        return min(self.retriever.n_retrieved, len(self.shop.item_ids))


def served_ranker(lake: LakeReader, deployment: Deployment, ds: date, k: int = N_RETRIEVED) -> ServedRanker:
    """Load the live ranker with the items that are known at the end of ``ds``.

    Args:
        lake: Reads the basis, items and interactions.
        deployment: Whose live ranker.
        ds: Day.
        k: Largest number of items that a caller will ask for.

    Raises:
        ModelError: No ranker is live.
        lte_models.training.bundle.BundleError: The live bundle is damaged.
    """
    folder = live_bundle_folder(deployment)
    if folder is None:
        raise ModelError("no ranker is live: evaluate_ranker makes the first one")
    bundle = load_bundle(folder, kind="ranker")
    shop, ids, known_from = read_candidates(lake, ds, bundle.manifest.basis_version)
    retriever = Retriever(bundled_ranker(bundle, shop), max(N_RETRIEVED, k))
    return ServedRanker(bundle.manifest, retriever, shop, ds, ids, known_from)


def events_of(lake: LakeReader, served: ServedRanker, user_id: str) -> list[dict[str, int]]:
    """The user's interactions up to the end of ds; an unknown user has none."""
    return lake_events(lake, served.numbers, user_id)


def example_of(
    deployment: Deployment, served: ServedRanker, user_id: str, events: Sequence[Mapping[str, Any]]
) -> ExampleBatch:
    """The user's interactions as the ranker reads them.

    Args:
        deployment: Half-life.
        served: Numbers the items.
        user_id: The user.
        events: Interactions up to the end of ds.
    """
    rows = serving_rows(user_id, events, served.ds, deployment.lte.half_life_days)
    return served.collate(rows)


def ranked(served: ServedRanker, stored: EmbeddingBatch, batch: ExampleBatch, k: int) -> list[tuple[str, float]]:
    """The k best items of a user, best first.

    Args:
        served: The ranker.
        stored: The user's LTE, as one read of the store found it; the user may have none.
        batch: The user's example.
        k: Items wanted.

    Returns:
        Item ids and scores.

    Raises:
        ModelError: The ranker reads LTEs of another basis, window or method.
    """
    context = paired_context(served, stored)
    moved = batch.to(served.retriever.rows.device)
    rows, scores = served.retriever.recommend(moved, context, min(k, len(served.shop.item_ids)))
    return [(served.shop.item_ids[row - 1], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]


def paired_context(served: ServedRanker, stored: EmbeddingBatch) -> Context:
    """The LTEs of one read of the store and the items' popularity, as the ranker reads them.

    Raises:
        ModelError: The ranker reads LTEs of another basis, window or method.
    """
    manifest = stored.manifest
    require_pair(served.manifest, LteKind(*(getattr(manifest, name) for name in LteKind._fields)), manifest.ds)
    lte = torch.from_numpy(stored.embeddings.copy())
    has_lte = torch.from_numpy(stored.n_items > 0)
    device = served.retriever.rows.device
    return Context(lte.to(device), has_lte.to(device), served.daily)
