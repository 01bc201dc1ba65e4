"""Open the online store of a deployment, and see what is live in it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.store.lmdb_store import LmdbStore
from jobs.store.protocol import OnlineStore
from jobs.store.reader import SnapshotReader
from jobs.store.redis_store import RedisStore
from jobs.store.snapshot import Manifest as SnapshotManifest
from jobs.store.snapshot import NoLiveSnapshotError


def _live_snapshot(deployment: Deployment) -> SnapshotManifest | None:
    store = open_store(deployment)
    try:
        return SnapshotReader(store).manifest()
    except NoLiveSnapshotError:
        return None
    finally:
        store.close()


def open_store(deployment: Deployment) -> OnlineStore:
    """The online store of a deployment; nothing is opened before it is used.

    Raises:
        ConfigError: The settings of Redis cannot be right.
    """
    settings = deployment.publish
    if settings.store == "lmdb":
        return LmdbStore(Path(deployment.paths.online_store))
    try:
        return RedisStore(
            settings.redis_url,
            username=settings.redis_username,
            password=settings.redis_password,
            ca_file=settings.redis_ca_file,
            cert_file=settings.redis_cert_file,
            key_file=settings.redis_key_file,
            prefix=settings.redis_prefix,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def live_manifest(deployment: Deployment) -> dict[str, Any] | None:
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
