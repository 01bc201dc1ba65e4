"""Recommend as the service does: the live ranker, the user's live LTE, and the interactions up to the end of ds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

from jobs.basis.nearest import item_titles
from jobs.config.sections import Deployment
from jobs.lake.reader import LakeReader, lake_reader
from jobs.landing.erased import erased_users
from jobs.runtime.text import counted
from jobs.serving.ranker import events_of, example_of, ranked, served_ranker
from jobs.store.opening import open_store
from jobs.store.reader import SnapshotReader
from schemas import EVENT_DAYS


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
    lake, reader = lake_reader(deployment), SnapshotReader(open_store(deployment))
    try:
        day = ds or reader.manifest().ds
        served = served_ranker(lake, deployment, day, k)
        events = events_of(lake, served, user_id)
        stored = reader.get_many([user_id])
        found = ranked(served, stored, example_of(deployment, served, user_id, events), k)
    finally:
        reader.close()
    titles = item_titles(lake, [item_id for item_id, _ in found])
    items = [Recommendation(item_id, titles.get(item_id) or "", round(score, 4)) for item_id, score in found]
    live = {"user_id": user_id, "ds": str(day), "ranker_ds": str(served.manifest.ds)}
    notes = [*_beyond(lake, day), *_history(lake, user_id, day, has_lte=bool(stored.n_items[0]), events=len(events))]
    return live | {"notes": notes, "items": [asdict(item) for item in items]}


def _beyond(lake: LakeReader, ds: date) -> Iterator[str]:
    last = max((row["event_date"] for row in lake.rows(EVENT_DAYS, columns=["event_date"])), default=None)
    if last is None or ds > last:
        yield f"ds={ds} is beyond the data: the last interactions are of {last}"


def _history(lake: LakeReader, user_id: str, ds: date, *, has_lte: bool, events: int) -> Iterator[str]:
    if not events and not has_lte:
        yield _stranger(lake, user_id, ds)
    elif not has_lte:
        yield f"user {user_id} is cold: no LTE, {counted(events, 'interaction')} up to ds={ds}"


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
