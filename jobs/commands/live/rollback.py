"""lte rollback: switch the snapshot or the ranker back; a second call switches forward again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from jobs.config.sections import Deployment
from jobs.lake.lake import open_lake
from jobs.lake.reader import lake_reader
from jobs.lte.settings import recorded_half_life
from jobs.ranker.judging.live import (
    LiveRanker,
    LteKind,
    bundle_name,
    live_manifest,
    live_ranker,
    make_live,
    previous_manifest,
    require_pair,
    switch_back,
)
from jobs.registry.bundles import ModelError, bundle_folder
from jobs.store.opening import live_snapshot, open_store
from jobs.store.protocol import OnlineStore
from jobs.store.publish import rollback
from jobs.store.snapshot import SnapshotManifest
from jobs.store.tables import log_switches
from lte_models.training.manifest import MANIFEST, BundleError, read_manifest
from lte_models.training.manifest import Manifest as BundleManifest


def roll_back(deployment: Deployment, *, force: bool = False) -> dict[str, Any]:
    """Switch back to the snapshot that was live before; a second call switches forward again.

    Args:
        deployment: Owner of the online store.
        force: Whether to switch even if the live ranker does not read the LTEs of that snapshot.

    Returns:
        Manifest of what is live now, as plain values.

    Raises:
        jobs.registry.bundles.ModelError: The live ranker does not read these LTEs, or its bundle cannot be read.
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
    """Refuse to switch back to a snapshot that the live ranker does not read."""
    with store.writer() as writer:
        previous = writer.pointer().previous
        snapshot = writer.manifest(previous) if previous is not None else None
    hint = "lte rollback --force switches all the same, lte rollback --ranker then switches the ranker, too"
    with _hint(hint):
        ranker = live_manifest(deployment) if deployment.ranker.enabled else None
        if ranker and snapshot:
            require_served_pair(deployment, ranker, snapshot)


def roll_back_ranker(
    deployment: Deployment, *, to: date | None = None, force: bool = False, is_dry_run: bool = False
) -> LiveRanker:
    """Make an earlier ranker live; the LTEs are not touched. Called again without ``to``, it switches forward.

    Args:
        deployment: Owner of the ranker.
        to: Data day of the ranker; None for the ranker that was live before.
        force: Whether to switch even if that ranker does not read the live LTEs; the online store is not read then.
        is_dry_run: Whether to check everything and change nothing.

    Returns:
        What is live now; for a dry run, what would be live.

    Raises:
        jobs.registry.bundles.ModelError: The ranker does not exist, is unreadable, or does not read the live LTEs.
        jobs.store.snapshot.OnlineStoreError: The store does not answer.
    """
    if not force:
        hint = "lte rollback --ranker --force switches all the same, lte rollback --force then switches the LTEs, too"
        with _hint(hint):
            ranker = previous_manifest(deployment) if to is None else read_manifest(_bundle_of(deployment, to))
            snapshot = live_snapshot(deployment)
            if ranker and snapshot:
                require_served_pair(deployment, ranker, snapshot)
    if is_dry_run:
        return _would_be_live(deployment, to)
    return switch_back(deployment) if to is None else make_live(deployment, _bundle_of(deployment, to))


def _bundle_of(deployment: Deployment, ds: date) -> Path:
    """Folder of the ranker that the run of ds trained.

    Raises:
        ModelError: There is no such ranker.
    """
    folder = bundle_folder(deployment, "ranker", ds)
    if not (folder / MANIFEST).exists():
        days = sorted(path.parent.name for path in folder.parent.glob(f"ds=*/{MANIFEST}"))
        raise ModelError(f"no ranker of ds={ds} in {folder.parent}: there are {', '.join(days) or 'none'}")
    return folder


def _would_be_live(deployment: Deployment, to: date | None) -> LiveRanker:
    live = live_ranker(deployment)
    if to is not None:
        manifest = read_manifest(_bundle_of(deployment, to))
        return LiveRanker(bundle_name(manifest), manifest.ds, manifest.weights_sha256, live.bundle if live else "")
    before = previous_manifest(deployment)
    if before is None or live is None:
        raise ModelError("there is no earlier ranker to switch back to")
    return LiveRanker(live.previous, before.ds, before.weights_sha256, live.bundle)


def require_served_pair(deployment: Deployment, ranker: BundleManifest, snapshot: SnapshotManifest) -> None:
    """Refuse a ranker and a snapshot that differ in basis, window, method or (for recency weights) half-life.

    A manifest older than the field ``half_life_days`` has the half-life that compute_lte recorded for its day.

    Raises:
        ModelError: The ranker does not read the LTEs of the snapshot.
    """
    kind = LteKind(*(getattr(snapshot, name) for name in LteKind._fields))
    ours, theirs = (
        manifest.half_life_days or recorded_half_life(lake_reader(deployment), ds, snapshot.method)
        for manifest, ds in ((ranker, date.fromisoformat(ranker.ds)), (snapshot, snapshot.ds))
    )
    require_pair(replace(ranker, half_life_days=ours), kind._replace(half_life_days=theirs), snapshot.ds)


@contextmanager
def _hint(text: str) -> Iterator[None]:
    """Say what to do about a ranker that does not fit or cannot be read."""
    try:
        yield
    except (ModelError, BundleError) as error:
        raise ModelError(f"{error}; {text}") from error
