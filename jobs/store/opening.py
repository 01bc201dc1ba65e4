"""Open the online store of a deployment, and see what is live in it."""

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
    """Manifest of what is live; None before the first publish.

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
    """The online store of a deployment; nothing is opened before it is used.

    Args:
        deployment: Whose.
        is_patient: Whether a server that does not answer is tried again; a look at the configuration does not wait.

    Raises:
        ConfigError: The settings of Redis cannot be right.
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
    """Refuse a store whose settings cannot be right or that is another deployment's; changes nothing.

    Returns:
        Why the owner could not be looked up; None where it was.

    Raises:
        ConfigError: The settings cannot be right, or the store is another deployment's.
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
    """Manifest of what is live, as plain values; None before the first publish.

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
    """Manifest of the snapshot that a rollback makes live, as plain values; None where there is none.

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
