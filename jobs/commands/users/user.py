"""One user's live LTE in words: how many interactions it holds and which items of the basis are nearest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from typing import Any

import numpy as np

from jobs.basis.nearest import NearItem, nearest_items
from jobs.config.sections import Deployment
from jobs.config.window import LteWindow
from jobs.lake.predicates import Predicate
from jobs.lake.reader import LakeReader, lake_reader
from jobs.store.opening import open_store
from jobs.store.reader import SnapshotReader, StoredEmbedding
from schemas import INTERACTIONS, ITEMS, LTE_DRIFT

# Items to search per title that is shown.
SAME_TITLES = 10
SHOWN_CATEGORIES = 8


class UnknownUserError(LookupError):
    """The live snapshot has no such user."""


@dataclass(frozen=True)
class UserView:
    """A user's live LTE.

    Attributes:
        user_id: The user.
        ds: Data day of the live snapshot.
        basis_version: Basis of the vector.
        method: How interactions were weighted.
        lte_window: Window in days before the end of ds.
        n_items: Interactions in the vector.
        norm: Length of the vector.
        drift: Row of lte_drift against the day before; None if that day has no LTE of the user.
        nearest: Nearest items of the basis, one per title.
        n_same_title: Item of ``nearest`` to the number of near items with the same title; only numbers above 1.
        categories: Category to the user's interactions in the window, most frequent first.
    """

    user_id: str
    ds: date
    basis_version: str
    method: str
    lte_window: str
    n_items: int
    norm: float
    drift: dict[str, Any] | None
    nearest: tuple[NearItem, ...]
    n_same_title: Mapping[str, int] = field(default_factory=dict)
    categories: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self) | {"ds": self.ds.isoformat()}


def user_view(deployment: Deployment, user_id: str, *, n_nearest: int = 10) -> UserView:
    """Look a user up in the online store and explain the vector found.

    Args:
        deployment: Whose store and tables.
        user_id: The user.
        n_nearest: How many of the nearest titles, by cosine.

    Raises:
        UnknownUserError: The live snapshot holds no such user.
        jobs.store.snapshot.OnlineStoreError: Nothing is live, or the store does not answer.
    """
    reader = SnapshotReader(open_store(deployment))
    try:
        stored = reader.get(user_id)
        manifest = reader.manifest()
    finally:
        reader.close()
    if stored is None:
        raise UnknownUserError(f"user_id {user_id!r} has no LTE in the live snapshot, ds={manifest.ds}")
    lake = lake_reader(deployment)
    n = n_nearest if stored.n_items else 0
    # Titles repeat (colours, sizes), so the search reads more items than the view shows titles.
    found = nearest_items(lake, stored.embedding, stored.manifest.basis_version, SAME_TITLES * n) if n else ()
    groups = _by_title(found, n)
    return UserView(
        user_id=user_id,
        ds=stored.manifest.ds,
        basis_version=stored.manifest.basis_version,
        method=stored.manifest.method,
        lte_window=stored.manifest.lte_window,
        n_items=stored.n_items,
        norm=round(float(np.linalg.norm(stored.embedding)), 4),
        drift=_drift_since_yesterday(lake, stored),
        nearest=tuple(near for near, _ in groups),
        n_same_title={near.item_id: same for near, same in groups if same > 1},
        categories=_own_categories(lake, stored),
    )


def _by_title(found: Sequence[NearItem], n: int) -> list[tuple[NearItem, int]]:
    """The n nearest titles: the nearest item of each, and how many of ``found`` have that title."""
    first: dict[str, NearItem] = {}
    for near in found:
        first.setdefault(_title_key(near), near)
    same = Counter(_title_key(near) for near in found)
    return [(near, same[key]) for key, near in list(first.items())[:n]]


def _title_key(near: NearItem) -> str:
    """The title without case and extra blanks; an item without a title counts as a title of its own."""
    title = " ".join((near.title or "").split()).casefold()
    return f"title {title}" if title else f"item {near.item_id}"


def _own_categories(lake: LakeReader, stored: StoredEmbedding) -> dict[str, int]:
    """Categories of the user's own interactions in the window of the live LTE, most frequent first."""
    window, live = LteWindow.parse(stored.manifest.lte_window), stored.manifest
    first = live.ds + timedelta(days=1 - window.start_days)
    days = [first + timedelta(days=number) for number in range(window.start_days - window.end_days)]
    where: Predicate = {"user_id": stored.user_id, "event_date": days}
    items = Counter(row["item_id"] for row in lake.rows(INTERACTIONS, columns=["item_id"], where=where))
    columns = ["item_id", "category", "landing_ds"]
    rows = lake.rows(ITEMS, columns=columns, where={"item_id": sorted(items)}) if items else []
    newest = {row["item_id"]: row["category"] for row in sorted(rows, key=lambda row: row["landing_ds"])}
    counts: Counter[str] = Counter()
    for item_id, n in items.items():
        counts[newest.get(item_id) or "no category"] += n
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def _drift_since_yesterday(lake: LakeReader, stored: StoredEmbedding) -> dict[str, Any] | None:
    live = stored.manifest
    where: dict[str, str | date] = {
        "ds": live.ds,
        "method": live.method,
        "lte_window": live.lte_window,
        "user_id": stored.user_id,
    }
    columns = ["offset_days", "drift", "bound", "cosine", "n_in", "n_out"]
    rows = lake.rows(LTE_DRIFT, columns=columns, where=where)
    return next((row for row in rows if row["offset_days"] == 1), None)


def user_text(view: UserView) -> str:
    """The view for a person."""
    lines = [
        f"user        {view.user_id}",
        f"snapshot    ds={view.ds}, {view.method} [{view.lte_window.replace('-', ',')}], basis {view.basis_version}",
        f"n_items     {view.n_items}" + ("" if view.n_items else " (zero vector: no known item in the window)"),
        f"norm        {view.norm}",
        f"drift       {_drift_text(view.drift)}",
    ]
    if view.categories:
        shown = list(view.categories.items())[:SHOWN_CATEGORIES]
        lines.append(f"categories  {', '.join(f'{name} {n:,}' for name, n in shown)}")
    lines += ["nearest"] * bool(view.nearest)
    return "\n".join(lines + [_near_text(near, view.n_same_title.get(near.item_id, 1)) for near in view.nearest])


def _near_text(near: NearItem, n_same: int) -> str:
    same = f" ({n_same} items)" if n_same > 1 else ""
    return f"  {near.cosine:.3f}  {near.item_id}  {near.title or ''}{same}".rstrip()


def _drift_text(drift: dict[str, Any] | None) -> str:
    if drift is None:
        return "unknown: no LTE of the day before"
    cosine = "" if drift["cosine"] is None else f", cosine {drift['cosine']:.4f}"
    moved = f"{drift['n_in']} in, {drift['n_out']} out"
    return f"{drift['drift']:.4f} since yesterday, at most {drift['bound']:.4f} ({moved}{cosine})"
