"""Recommend as a server would: the live ranker, the user's live LTE, and the user's interactions up to the end of ds.

Candidates are the items that the towers retrieve and the user's own past items. A ranker and a snapshot that do not
fit together are refused: a model must not read vectors of a basis or window that it was not trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
import torch
from pyspark.sql import functions as F

from jobs.basis.basis import known_items, read_basis
from jobs.basis.nearest import item_titles
from jobs.config.renamed import with_new_keys
from jobs.config.sections import Deployment, RankerSection
from jobs.config.window import day_number
from jobs.lake.lake import Lake, open_lake
from jobs.lake.reader import LakeReader, lake_reader
from jobs.landing.erased import erased_users
from jobs.ranker.examples import ExamplesOfUser, examples_batch, user_events
from jobs.ranker.items import CandidateItems, load_candidates
from jobs.ranker.live import LteKind, live_bundle_folder, require_pair
from jobs.ranker.readers import example_collate
from jobs.ranker.scorers import bundled_ranker
from jobs.registry.bundles import ModelError
from jobs.store.opening import open_store
from jobs.store.reader import SnapshotReader
from lte_models.ranker.examples import ExampleBatch
from lte_models.ranker.model import Context
from lte_models.ranker.retrieval import N_RETRIEVED, Retriever
from lte_models.training.bundle import load_bundle
from lte_models.training.manifest import Manifest
from schemas import INTERACTIONS

JOB = "recommend"
DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Recommendation:
    """An item for a user. A larger ``score`` is better. Scores of different users cannot be compared."""

    item_id: str
    title: str
    score: float


def recommendations(deployment: Deployment, user_id: str, *, ds: date | None = None, k: int = 10) -> dict[str, Any]:
    """The best items of a user at the end of a day, from the live ranker and the live LTEs.

    Args:
        deployment: Owner of the store, tables and ranker.
        user_id: The user; an unknown or erased user gets the items for a user without a history.
        ds: Last day whose interactions count; by default the day of the live snapshot.
        k: Number of items.

    Returns:
        ``user_id``, ``ds``, ``ranker_ds``, ``notes`` (what the items are not based on, and why) and ``items``, best
        first, as plain values.

    Raises:
        ModelError: No ranker is live, or it reads other LTEs than those that are live.
        jobs.store.snapshot.OnlineStoreError: The store failed, or nothing was published.
    """
    store = open_store(deployment)
    try:
        reader = SnapshotReader(store)
        day = ds or reader.manifest().ds
        with open_lake(deployment, JOB, is_reading=True) as lake:
            served = served_ranker(lake, deployment, day, k)
            events = events_of(lake, served, user_id)
            batch = example_of(deployment, served, user_id, events)
            found = recommend(served, reader, user_id, batch, k)
            last = lake.read(INTERACTIONS).agg(F.max("event_ts").cast("date").alias("last")).first()
        is_known = bool(events) or reader.get(user_id) is not None
    finally:
        store.close()
    titles = item_titles(lake_reader(deployment), [item_id for item_id, _ in found])
    items = [Recommendation(item_id, titles.get(item_id) or "", round(score, 4)) for item_id, score in found]
    live = {"user_id": user_id, "ds": str(day), "ranker_ds": str(served.manifest.ds)}
    notes = []
    if last is None or last["last"] is None or day > last["last"]:
        notes.append(f"ds={day} is beyond the data: the last interactions are of {last and last['last']}")
    if not is_known:
        notes.append(_stranger(lake_reader(deployment), user_id, day))
    return live | {"notes": notes, "items": [asdict(item) for item in items]}


def _stranger(lake: LakeReader, user_id: str, ds: date) -> str:
    """Why a user has no history."""
    erased = erased_users(lake)
    is_erased = erased is not None and erased.holds(user_id)
    why = "was erased" if is_erased else f"has no interactions up to ds={ds} and no LTE"
    return f"user {user_id} {why}; the items are those for somebody without a history"


def recommendations_text(found: Mapping[str, Any]) -> str:
    """The same for a person."""
    head = f"user {found['user_id']}, up to ds={found['ds']}, ranker of ds={found['ranker_ds']}"
    items = (f"  {item['score']:8.4f}  {item['item_id']}  {item['title']}" for item in found["items"])
    return "\n".join([head, *found["notes"], *items])


@dataclass(frozen=True)
class ServedRanker:
    """The live ranker, ready to serve.

    Attributes:
        manifest: Of its bundle.
        retriever: Its items, embedded.
        shop: Items and popularity as of the end of ``ds``.
        ds: Last day whose interactions count.
    """

    manifest: Manifest
    retriever: Retriever
    shop: CandidateItems
    ds: date


def served_ranker(lake: Lake, deployment: Deployment, ds: date, k: int = N_RETRIEVED) -> ServedRanker:
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
    shop = load_candidates(lake, ds + timedelta(days=1), bundle.manifest.basis_version, 1)
    retriever = Retriever(bundled_ranker(bundle, shop), max(N_RETRIEVED, k))
    return ServedRanker(bundle.manifest, retriever, shop, ds)


def events_of(lake: Lake, served: ServedRanker, user_id: str) -> list[dict[str, Any]]:
    """The user's interactions up to the end of ds; an unknown user has none.

    Args:
        lake: Reads interactions and the basis.
        served: Numbers the interaction types.
        user_id: The user.
    """
    items = known_items(read_basis(lake, served.manifest.basis_version), served.ds)
    own = lake.read(INTERACTIONS).where(F.col("user_id") == user_id)
    # The types that the ranker was trained with, not those configured now. A new type counts as unknown.
    found = user_events(own, items, served.manifest.config["types"], [served.ds]).toArrow().to_pylist()
    return found[0]["events"] if found else []


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
    settings = RankerSection(**with_new_keys("ranker", served.manifest.config["settings"]))
    return example_collate(served.shop, settings)(rows)


def serving_rows(user_id: str, events: Sequence[Mapping[str, Any]], ds: date, half_life_days: float) -> pa.Table:
    """One example, made by the code that makes training examples.

    That code makes an example for each anchor whose next day has a visit of the user. So this function adds a visit on
    the day after ``ds``. Only the targets depend on the added visit (no example sees its future).

    Args:
        user_id: The user.
        events: Interactions with ``ts``, ``item`` and ``type``.
        ds: Anchor.
        half_life_days: Of the recency weights.
    """
    anchor = day_number(ds)
    past = [event for event in events if event["ts"] < (anchor + 1) * DAY_SECONDS]
    visit = {"ts": (anchor + 1) * DAY_SECONDS, "item": 0, "type": 0}
    return pa.Table.from_batches(
        [examples_batch(list(ExamplesOfUser((anchor,), half_life_days).examples(user_id, [*past, visit])))]
    )


def recommend(
    served: ServedRanker, reader: SnapshotReader, user_id: str, batch: ExampleBatch, k: int
) -> list[tuple[str, float]]:
    """The k best items of a user, best first.

    Args:
        served: The ranker.
        reader: The online store.
        user_id: The user; may have no LTE in the store.
        batch: The user's example.
        k: Items wanted.

    Returns:
        Item ids and scores.

    Raises:
        ModelError: The ranker reads other LTEs than those that are live.
        jobs.store.snapshot.OnlineStoreError: The store failed, or nothing was published.
    """
    stored = reader.get_many([user_id])
    manifest = stored.manifest
    require_pair(served.manifest, LteKind(*(getattr(manifest, name) for name in LteKind._fields)), manifest.ds)
    lte = torch.from_numpy(stored.embeddings.copy())
    has_lte = torch.from_numpy(stored.n_items > 0)
    device = served.retriever.rows.device
    daily = served.shop.daily._replace(cumulative=served.shop.daily.cumulative.to(device))
    context = Context(lte.to(device), has_lte.to(device), daily)
    rows, scores = served.retriever.recommend(batch.to(device), context, min(k, len(served.shop.item_ids)))
    return [(served.shop.item_ids[row - 1], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
