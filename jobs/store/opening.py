"""Open the online store of a deployment, and read which snapshot is live."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.runtime.pages import OWNER
from jobs.store.lmdb_store import LmdbStore
from jobs.store.protocol import OnlineStore, require_own
from jobs.store.reader import SnapshotReader
from jobs.store.redis_store import RedisStore
from jobs.store.snapshot import NoLiveSnapshotError, OnlineStoreError, SnapshotManifest


def live_snapshot(deployment: Deployment) -> SnapshotManifest | None:
    """Manifest of the live snapshot; None before the first publish.

    Raises:
        jobs.store.snapshot.OnlineStoreError: The store does not answer.
    """
    store = open_store(deployment)
    try:
        return SnapshotReader(store).manifest()
    except NoLiveSnapshotError:
        return None
    finally:
        store.close()


def open_store(deployment: Deployment, *, is_patient: bool = True) -> OnlineStore:
    """The online store of a deployment; the first use opens files and connections.

    Args:
        deployment: The deployment.
        is_patient: Whether a server that does not answer is tried again. A check of the configuration does not wait.

    Raises:
        ConfigError: The settings of Redis are invalid.
    """
    settings = deployment.publish
    if settings.store == "lmdb":
        return LmdbStore(Path(deployment.paths.online_store), deployment=deployment.deployment.name)
    try:
        return RedisStore(
            settings.redis_url,
            username=settings.redis_username,
            password=settings.redis_password,
            ca_file=settings.redis_ca_file,
            cert_file=settings.redis_cert_file,
            key_file=settings.redis_key_file,
            prefix=settings.redis_prefix,
            deployment=deployment.deployment.name,
            timeout_s=10.0 if is_patient else 3.0,
            retries=5 if is_patient else 0,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_store(deployment: Deployment) -> str | None:
    """Refuse a store with invalid settings and a store of another deployment; changes nothing.

    Returns:
        Why the owner could not be read; None when it was read.

    Raises:
        ConfigError: The settings are invalid, or the store belongs to another deployment.
    """
    store = open_store(deployment, is_patient=False)
    settings, name = deployment.publish, deployment.deployment.name
    try:
        if settings.store == "lmdb":
            folder = Path(deployment.paths.online_store)
            require_own(store, name, f"paths.online_store = {str(folder)!r}", str(folder / OWNER))
        else:
            prefix = settings.redis_prefix
            require_own(store, name, f"publish.redis_prefix = {prefix!r}", f"{prefix}:deployment")
    except OnlineStoreError as error:
        return str(error)
    finally:
        store.close()
    return None


def live_snapshot_values(deployment: Deployment) -> dict[str, Any] | None:
    """Manifest of the live snapshot, as plain values; None before the first publish.

    Raises:
        jobs.store.snapshot.OnlineStoreError: The store does not answer.
    """
    reader = SnapshotReader(open_store(deployment))
    try:
        return {
            name: str(value) if isinstance(value, date) else value for name, value in asdict(reader.manifest()).items()
        }
    except NoLiveSnapshotError:
        return None
    finally:
        reader.close()


def previous_snapshot_values(deployment: Deployment) -> dict[str, Any] | None:
    """Manifest of the snapshot that a rollback would make live, as plain values; None where there is none.

    Raises:
        jobs.store.snapshot.OnlineStoreError: The store does not answer.
    """
    store = open_store(deployment)
    try:
        previous = store.pointer().previous
        kept = {switch.manifest.version: switch.manifest for switch in store.journal()}
        found: dict[str, Any] | None = json.loads(kept[previous].to_json()) if previous in kept else None
        return found
    finally:
        store.close()
