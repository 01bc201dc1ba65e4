"""The online store: exactly one live version of LTEs, and the reader that serves it (ADR 0009).

A version is one load of one slice of ``user_lte``. The pointer names the live version and the previous version. The
pointer is swapped atomically, so a reader sees all of the old version or all of the new version.
:mod:`jobs.store.lmdb_store` and :mod:`jobs.store.redis_store` keep the versions. :mod:`jobs.store.publish` changes
which version is live.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from jobs.config.window import ConfigError
from jobs.store.rows import Buffer, RowChunk
from jobs.store.snapshot import Pointer, SnapshotManifest, Switch


class PinnedSnapshot(Protocol):
    """One version, held for one read."""

    @property
    def manifest(self) -> SnapshotManifest:
        """SnapshotManifest of the pinned version."""

    def values(self, keys: Sequence[bytes]) -> Iterable[Buffer | None]:
        """Stored values in the order of ``keys``, None for a user without a value; valid while the pin is held.

        Raises:
            VersionGoneError: The version is no longer kept.
        """


class StoreWriter(Protocol):
    """Actions that are allowed only to the one process that holds the store's lock."""

    def pointer(self) -> Pointer:
        """The pointer."""

    def manifest(self, version: str) -> SnapshotManifest:
        """SnapshotManifest of a sealed version."""

    def versions(self) -> frozenset[str]:
        """All versions of which any file or key exists, leftovers of crashed loads included."""

    def create(self, version: str) -> None:
        """Begin a version; readers do not see the version yet."""

    def write(self, version: str, chunk: RowChunk) -> None:
        """Write rows into a version that is not sealed."""

    def seal(self, manifest: SnapshotManifest) -> None:
        """End the load of ``manifest.version``; all its writes are handed to the store before this call returns."""

    def rows(self, version: str) -> Iterator[tuple[bytes, Buffer]]:
        """All keys and values of a version, in any order; a value is valid until the next step."""

    def values(self, version: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Stored values in the order of ``keys``, None for a user without a value."""

    def swap(self, expected: Pointer, wanted: Pointer, action: str) -> None:
        """Replace the pointer and add to the journal, in one atomic step.

        Raises:
            StoreLockedError: The pointer is not ``expected``, because another process published.
        """

    def remove(self, version: str) -> None:
        """Remove a version that the pointer does not name, and free its space."""

    def erase(self, version: str, key: bytes) -> bool:
        """Delete one row and correct the manifest in one atomic step; False when there is no such row."""


class OnlineStore(Protocol):
    """Versions of LTEs, one of them live."""

    @property
    def name(self) -> str:
        """``lmdb`` or ``redis``."""

    def owner(self) -> str | None:
        """Deployment that the store is marked with; None for a store without a mark."""

    def pointer(self) -> Pointer:
        """The pointer."""

    def journal(self) -> list[Switch]:
        """The last switches, oldest first."""

    def pin(self) -> AbstractContextManager[PinnedSnapshot]:
        """Hold the live version for one read.

        Raises:
            NoLiveSnapshotError: Nothing was published.
            VersionGoneError: The live version changed in between; try again.
        """

    def writer(self) -> AbstractContextManager[StoreWriter]:
        """Hold the store's only lock; a store without a mark gets this deployment's name as its mark first.

        Raises:
            jobs.config.window.ConfigError: The store belongs to another deployment.
            StoreLockedError: Another process holds the lock.
        """

    def close(self) -> None:
        """Close files and connections."""


def require_own(store: OnlineStore, deployment: str, setting: str, mark: str) -> None:
    """Refuse a store that is marked with the name of another deployment; a store without a mark passes.

    Args:
        store: The store.
        deployment: Name of the deployment that is about to use the store.
        setting: The setting that names the store, with its value.
        mark: Place of the mark, for the message.

    Raises:
        ConfigError: The store belongs to another deployment.
    """
    found = store.owner()
    if found not in (None, deployment):
        raise ConfigError(
            f"{setting}: holds the snapshots of deployment {found!r}, not of {deployment!r}; give each deployment "
            f"a store of its own, or delete {mark} where the deployment was renamed"
        )
