"""One user's live LTE, as a person can read it: how much it holds and which items of the basis lie nearest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import numpy as np

from jobs.basis.nearest import NearItem, nearest_items
from jobs.config.sections import Deployment
from jobs.lake.reader import LakeReader, lake_reader
from jobs.store.opening import open_store
from jobs.store.reader import SnapshotReader, StoredEmbedding
from schemas import LTE_DRIFT


class UnknownUserError(LookupError):
    """The live snapshot has no such user."""


@dataclass(frozen=True)
class UserView:
    """A user's live LTE; ``drift`` is None where the day before has no LTE of the user."""

    user_id: str
    ds: date
    basis_version: str
    method: str
    lte_window: str
    n_items: int
    norm: float
    drift: dict[str, Any] | None
    nearest: tuple[NearItem, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self) | {"ds": self.ds.isoformat()}


def user_view(deployment: Deployment, user_id: str, *, n_nearest: int = 10) -> UserView:
    """Look a user up in the online store and explain the vector found.

    Args:
        deployment: Whose store and tables.
        user_id: The user.
        n_nearest: How many of the nearest items, by cosine.

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
    return UserView(
        user_id=user_id,
        ds=stored.manifest.ds,
        basis_version=stored.manifest.basis_version,
        method=stored.manifest.method,
        lte_window=stored.manifest.lte_window,
        n_items=stored.n_items,
        norm=round(float(np.linalg.norm(stored.embedding)), 4),
        drift=_drift_since_yesterday(lake, stored),
        nearest=nearest_items(lake, stored.embedding, stored.manifest.basis_version, n) if n else (),
    )


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
    lines += ["nearest"] * bool(view.nearest)
    return "\n".join(
        lines + [f"  {near.cosine:.3f}  {near.item_id}  {near.title or ''}".rstrip() for near in view.nearest]
    )


def _drift_text(drift: dict[str, Any] | None) -> str:
    if drift is None:
        return "unknown: no LTE of the day before"
    cosine = "" if drift["cosine"] is None else f", cosine {drift['cosine']:.4f}"
    moved = f"{drift['n_in']} in, {drift['n_out']} out"
    return f"{drift['drift']:.4f} since yesterday, at most {drift['bound']:.4f} ({moved}{cosine})"
