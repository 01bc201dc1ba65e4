"""lte rollback: switch the snapshot or the ranker back; a second call switches forward again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from jobs.config.sections import Deployment
from jobs.lake.lake import open_lake
from jobs.lake.predicates import Predicate
from jobs.lake.reader import lake_reader
from jobs.ranker.live import (
    LiveRanker,
    bundle_name,
    live_manifest,
    live_ranker,
    lte_of_ranker,
    make_live,
    previous_manifest,
    require_pair,
    switch_back,
)
from jobs.registry.bundles import ModelError, bundle_folder
from jobs.runtime.day import LTE_JOB
from jobs.store.opening import live_snapshot, open_store
from jobs.store.protocol import OnlineStore
from jobs.store.publish import rollback
from jobs.store.snapshot import SnapshotManifest
from jobs.store.tables import log_switches
from lte_models.training.manifest import MANIFEST, BundleError, read_manifest
from lte_models.training.manifest import Manifest as BundleManifest
from schemas import METRICS


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
            _require_pair(deployment, ranker, snapshot)


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
                _require_pair(deployment, ranker, snapshot)
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


def _require_pair(deployment: Deployment, ranker: BundleManifest, snapshot: SnapshotManifest) -> None:
    """Refuse a ranker and a snapshot that differ in basis, window, method or (for recency weights) half-life.

    Raises:
        ModelError: The ranker does not read the LTEs of the snapshot.
    """
    require_pair(ranker, _slice_of(snapshot), snapshot.ds)
    if lte_of_ranker(ranker) is None or snapshot.method != "recency":
        return
    ours, theirs = (_half_life(deployment, ds) for ds in (date.fromisoformat(ranker.ds), snapshot.ds))
    if None not in (ours, theirs) and ours != theirs:
        raise ModelError(
            f"ranker of ds {ranker.ds} and LTE snapshot of ds {snapshot.ds} do not match: "
            f"half_life_days {ours:g} against {theirs:g}"
        )


def _half_life(deployment: Deployment, ds: date) -> float | None:
    """Half-life that compute_lte recorded with the LTEs of ds; None if there is no record."""
    where: Predicate = {"ds": ds, "job": LTE_JOB, "metric": "half_life_days"}
    rows = lake_reader(deployment).rows(METRICS, columns=["value"], where=where)
    return float(rows[0]["value"]) if rows else None


def _slice_of(snapshot: SnapshotManifest) -> tuple[str, str, str]:
    return snapshot.basis_version, snapshot.lte_window, snapshot.method


@contextmanager
def _hint(text: str) -> Iterator[None]:
    """Say what to do about a ranker that does not fit or cannot be read."""
    try:
        yield
    except (ModelError, BundleError) as error:
        raise ModelError(f"{error}; {text}") from error
