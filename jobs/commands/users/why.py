"""Why a user sees an item: its score in parts, and the user's own interactions with the item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from typing import Any

import torch

from jobs.basis.nearest import item_titles
from jobs.config.sections import Deployment
from jobs.config.window import LONG_DAYS
from jobs.lake.predicates import Predicate
from jobs.lake.reader import LakeReader, lake_reader
from jobs.registry.bundles import ModelError
from jobs.serving.ranker import ServedRanker, events_of, example_of, paired_context, served_ranker
from jobs.store.opening import open_store
from jobs.store.reader import SnapshotReader
from lte_models.evaluation.metrics import target_ranks
from lte_models.ranker.examples import ExampleBatch, Past
from lte_models.ranker.model import Context
from schemas import INGEST_LOG, INTERACTIONS


@dataclass(frozen=True)
class Parts:
    """A score in parts, each by removal; their sum is the score.

    Attributes:
        lte: What the score loses without the user's LTE.
        own_past: What it then loses without the user's own past with each item.
        sequence: What it then loses without the user's recent interactions.
        popularity: Of the item's recent popularity, the same for all users.
        stranger: What is left: how the towers rank the item for somebody without a history.
    """

    lte: float
    own_past: float
    sequence: float
    popularity: float
    stranger: float

    @property
    def score(self) -> float:
        """The sum."""
        return self.lte + self.own_past + self.sequence + self.popularity + self.stranger


def why(deployment: Deployment, user_id: str, item_id: str) -> dict[str, Any]:
    """Explain the score of an item for a user, as of the live snapshot.

    Args:
        deployment: Owner of the store, tables and ranker.
        user_id: The user.
        item_id: The item.

    Returns:
        Plain values: ``score``, its ``rank`` among all items, ``parts``, the user's ``interactions`` with the item.

    Raises:
        ModelError: The ranker does not know the item, no ranker is live, or it reads other LTEs than the live ones.
        jobs.store.snapshot.OnlineStoreError: The store failed, or nothing was published.
    """
    lake, reader = lake_reader(deployment), SnapshotReader(open_store(deployment))
    try:
        stored = reader.get_many([user_id])
    finally:
        reader.close()
    day = stored.manifest.ds
    served = served_ranker(lake, deployment, day)
    if item_id not in served.shop.item_ids:
        raise ModelError(f"item_id {item_id!r}: table item_embeddings has no vector of this item on ds={day}")
    batch = example_of(deployment, served, user_id, events_of(lake, served, user_id))
    batch, context = batch.to(served.retriever.rows.device), paired_context(served, stored)
    row = served.shop.item_ids.index(item_id) + 1
    parts = score_parts(served, batch, context, row)
    return {
        "user_id": user_id,
        "item_id": item_id,
        "title": item_titles(lake, [item_id]).get(item_id) or "",
        "ds": str(day),
        "ranker_ds": served.manifest.ds,
        "score": parts.score,
        "rank": rank_of(served, batch, context, row),
        "n_items": len(served.shop.item_ids),
        "parts": dict(vars(parts)),
        "interactions": own_interactions(lake, user_id, item_id, day),
    }


def score_parts(served: ServedRanker, batch: ExampleBatch, context: Context, row: int) -> Parts:
    """Take the user's LTE, past and sequence away, one after the other, and score the item each time.

    Args:
        served: The ranker.
        batch: One example, on the ranker's device.
        context: The user's LTE.
        row: Row of the item.
    """
    empty = Past(*(part[:0] for part in batch.past))
    without_lte = context._replace(lte=torch.zeros_like(context.lte), has_lte=torch.zeros_like(context.has_lte))
    without_past = batch._replace(past=empty)
    items, types, ages = (torch.zeros_like(each) for each in (batch.items, batch.types, batch.ages))
    stranger = without_past._replace(items=items, types=types, ages=ages)
    pairs = [(batch, context), (batch, without_lte), (without_past, without_lte), (stranger, without_lte)]
    scores = [_logit(served, each, seen, row) for each, seen in pairs]
    popular = _popularity(served, stranger, without_lte, row)
    lte, own_past, sequence = (before - after for before, after in pairwise(scores))
    return Parts(lte, own_past, sequence, popular, scores[-1] - popular)


def rank_of(served: ServedRanker, batch: ExampleBatch, context: Context, row: int) -> int:
    """Rank of an item among all, from 1; of equal scores the more frequent item comes first."""
    model, embedded = served.retriever.model, served.retriever.embedded
    with torch.no_grad():
        queries = model.queries(batch, context, *embedded)
        scores = model.candidate_logits(queries, served.retriever.rows, batch, context, embedded)
    return int(target_ranks(scores, torch.tensor([0]), torch.tensor([row - 1]))[0])


def _logit(served: ServedRanker, batch: ExampleBatch, context: Context, row: int) -> float:
    model, embedded = served.retriever.model, served.retriever.embedded
    rows = served.retriever.rows[row - 1 : row]
    with torch.no_grad():
        queries = model.queries(batch, context, *embedded)
        return float(model.candidate_logits(queries, rows, batch, context, embedded)[0, 0])


def _popularity(served: ServedRanker, batch: ExampleBatch, context: Context, row: int) -> float:
    """The score of a query that is zero: nothing but popularity is left."""
    model, embedded = served.retriever.model, served.retriever.embedded
    rows = served.retriever.rows[row - 1 : row]
    with torch.no_grad():
        zero = torch.zeros_like(model.queries(batch, context, *embedded))
        return float(model.shared_logits(zero, rows, batch, context, embedded)[0, 0])


def own_interactions(lake: LakeReader, user_id: str, item_id: str, ds: date) -> list[dict[str, Any]]:
    """The user's interactions with an item in the year up to the end of ds, newest first, with their landing files.

    The lake keeps the landing day of a row, not its line: several files mean that the row is in one of them.
    """
    days = [ds - timedelta(days=back) for back in range(LONG_DAYS + 1)]
    columns = ["event_ts", "interaction_type", "market", "landing_ds"]
    rows = lake.rows(INTERACTIONS, columns=columns, where={"event_date": days, "user_id": user_id, "item_id": item_id})
    landed = sorted({row["landing_ds"] for row in rows})
    where: Predicate = {"landing_ds": landed, "target": "interactions"}
    files = lake.rows(INGEST_LOG, columns=["source_file", "landing_ds"], where=where) if landed else []
    named = {day: sorted(row["source_file"] for row in files if row["landing_ds"] == day) for day in landed}
    newest = sorted(rows, key=lambda row: row["event_ts"], reverse=True)
    return [
        row
        | {"event_ts": row["event_ts"].isoformat(), "landing_ds": str(row["landing_ds"])}
        | {"landing_files": named[row["landing_ds"]]}
        for row in newest
    ]


def why_text(found: Mapping[str, Any]) -> str:
    """The explanation for a person."""
    words = {
        "lte": "the user's LTE",
        "own_past": "the user's own past with the item",
        "sequence": "the user's recent interactions",
        "popularity": "the item's recent popularity",
        "stranger": "what anybody without a history gets",
    }
    head = f"user {found['user_id']}, item {found['item_id']} {found['title']}".rstrip()
    place = f"rank {found['rank']:,} of {found['n_items']:,}"
    lines = [head, f"{place} on ds={found['ds']}, ranker of ds={found['ranker_ds']}"]
    lines += [f"  {found['parts'][name]:+9.4f}  {text}" for name, text in words.items()]
    lines.append(f"  {found['score']:+9.4f}  score")
    for row in found["interactions"]:
        files = ", ".join(row["landing_files"]) or "no file in ingest_log"
        lines.append(f"  {row['event_ts']}  {row['interaction_type']}  landed {row['landing_ds']} ({files})")
    nothing = ["  no interaction of the user with the item in the year before"]
    return "\n".join(lines if found["interactions"] else [*lines, *nothing])
