"""lte rollback: switch the snapshot or the ranker back; again, forth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs.config.sections import Deployment
from jobs.lake.lake import open_lake
from jobs.ranker.live import LiveRanker, live_manifest, previous_manifest, require_pair, switch_back
from jobs.registry.bundles import ModelError
from jobs.store.opening import _live_snapshot, open_store
from jobs.store.protocol import OnlineStore
from jobs.store.publish import rollback
from jobs.store.snapshot import Manifest as SnapshotManifest
from jobs.store.tables import log_switches
from lte_models.training.manifest import BundleError


def roll_back(deployment: Deployment, *, force: bool = False) -> dict[str, Any]:
    """Switch back to the snapshot that was live before; called again, switch forth.

    Args:
        deployment: Whose online store.
        force: Switch also where the live ranker does not read the LTEs of that snapshot.

    Returns:
        Manifest of what is live now, as plain values.

    Raises:
        jobs.registry.bundles.ModelError: The live ranker does not read them, or its bundle cannot be read.
        jobs.store.publish.PublishRefusedError: There is no earlier snapshot.
        jobs.store.snapshot.OnlineStoreError: The store does not answer.
    """
    store = open_store(deployment)
    try:
        if not force:
            _require_readable(deployment, store)
        with open_lake(deployment, "rollback") as lake:
            done = rollback(store)
            log_switches(lake, store)
        live: dict[str, Any] = json.loads(done.manifest.to_json())
        return live
    finally:
        store.close()


def _require_readable(deployment: Deployment, store: OnlineStore) -> None:
    """Refuse a snapshot to switch back to that the live ranker does not read."""
    with store.writer() as writer:
        previous = writer.pointer().previous
        snapshot = writer.manifest(previous) if previous is not None else None
    hint = "lte rollback --force switches all the same, lte rollback --ranker then switches the ranker, too"
    with _hint(hint):
        ranker = live_manifest(deployment) if deployment.ranker.enabled else None
        if ranker and snapshot:
            require_pair(ranker, _slice_of(snapshot), snapshot.ds)


def roll_back_ranker(deployment: Deployment, *, force: bool = False) -> LiveRanker:
    """Make the ranker live that was live before; the LTEs are not touched. Called again, switch forth.

    Args:
        deployment: Whose ranker.
        force: Switch also where that ranker does not read the live LTEs; the online store is not asked then.

    Raises:
        jobs.registry.bundles.ModelError: There is no earlier ranker, its bundle cannot be read, or it reads other LTEs.
        jobs.store.snapshot.OnlineStoreError: The store does not answer.
    """
    if not force:
        hint = "lte rollback --ranker --force switches all the same, lte rollback --force then switches the LTEs, too"
        with _hint(hint):
            ranker, snapshot = previous_manifest(deployment), _live_snapshot(deployment)
            if ranker and snapshot:
                require_pair(ranker, _slice_of(snapshot), snapshot.ds)
    return switch_back(deployment)


def _slice_of(snapshot: SnapshotManifest) -> tuple[str, str, str]:
    return snapshot.basis_version, snapshot.lte_window, snapshot.method


@contextmanager
def _hint(text: str) -> Iterator[None]:
    """Say what to do about a ranker that does not fit or cannot be read."""
    try:
        yield
    except (ModelError, BundleError) as error:
        raise ModelError(f"{error}; {text}") from error
