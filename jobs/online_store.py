"""The online store: exactly one live version of LTEs, and the reader that serves it (DESIGN section 9).

A version is one load of one slice of ``user_lte``. The pointer names the live version and the one before it; it is
swapped atomically, so a reader sees all of the old version or all of the new one. :mod:`jobs.store_lmdb` and
:mod:`jobs.store_redis` keep the versions, :mod:`jobs.store_publish` changes what is live.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from jobs.store_rows import Buffer, Checksum, RowChunk, decode_into, user_key

# Each retry needs two publishes within one read; more than a few in a row means that something else is wrong.
READ_ATTEMPTS = 10
T = TypeVar("T")


class OnlineStoreError(RuntimeError):
    """Something about the online store failed; the message names the store."""


class StoreUnreachableError(OnlineStoreError):
    """The store does not answer."""


class StoreAuthError(OnlineStoreError):
    """The store refused the user or the password."""


class StoreFullError(OnlineStoreError):
    """The store has no room for another version; the live one is untouched."""


class StoreLockedError(OnlineStoreError):
    """Another process is publishing, or took the lock over."""


class NoLiveSnapshotError(OnlineStoreError):
    """Nothing has been published yet."""


class BasisMismatchError(OnlineStoreError):
    """The vectors belong to another basis_version than the caller works with."""


class VersionGoneError(OnlineStoreError):
    """The version that a read had pinned is no longer kept; the read starts again with the live one."""


@dataclass(frozen=True)
class Manifest:
    """What a version holds.

    Attributes:
        version: Name of the version in its store, unique for each load.
        ds: Data day of the LTEs.
        basis_version: Basis of the vectors.
        lte_window: Window in days before the end of ds, ``365-60``.
        method: How interactions were weighted.
        dim: Floats in a vector.
        row_count: Users in the version now.
        checksum: Checksum of exactly these users' rows (:class:`jobs.store_rows.Checksum`).
        code_version: Version of the code that published it.
        n_erased: Users deleted since the load; ``row_count`` and ``checksum`` no longer include them.
    """

    version: str
    ds: date
    basis_version: str
    lte_window: str
    method: str
    dim: int
    row_count: int
    checksum: str
    code_version: str
    n_erased: int = 0

    def to_json(self) -> str:
        """One line of JSON that :meth:`from_json` reads."""
        return json.dumps(dataclasses.asdict(self) | {"ds": self.ds.isoformat()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | Buffer) -> Manifest:
        """Read :meth:`to_json`."""
        fields = json.loads(text if isinstance(text, str) else bytes(text))
        return cls(**(fields | {"ds": date.fromisoformat(fields["ds"])}))

    def without(self, key: bytes, value: Buffer) -> Manifest:
        """This manifest after one of its rows was deleted."""
        checksum = Checksum.parse(self.checksum)
        checksum.discard(key, value)
        return dataclasses.replace(
            self, row_count=self.row_count - 1, checksum=str(checksum), n_erased=self.n_erased + 1
        )


@dataclass(frozen=True)
class Pointer:
    """Which versions a store keeps.

    Attributes:
        live: Version that readers see.
        previous: Version that was live before, kept for an instant switch back.
        sequence: Number of the switch that made it so; counts up, also when rolling back.
    """

    live: str | None = None
    previous: str | None = None
    sequence: int = 0

    @property
    def kept(self) -> frozenset[str]:
        """The versions that must not be removed."""
        return frozenset(version for version in (self.live, self.previous) if version is not None)

    def to_json(self) -> str:
        """One line of JSON that :meth:`from_json` reads."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: Buffer | None) -> Pointer:
        """Read :meth:`to_json`; None is the pointer of a store to which nothing was published."""
        return cls() if text is None else cls(**json.loads(bytes(text)))


@dataclass(frozen=True)
class Switch:
    """One entry of a store's journal: at ``sequence``, ``manifest`` went live by ``action``."""

    sequence: int
    action: str
    manifest: Manifest

    def to_json(self) -> str:
        """One line of JSON that :meth:`from_json` reads."""
        entry: dict[str, Any] = {"sequence": self.sequence, "action": self.action, "manifest": self.manifest.to_json()}
        return json.dumps(entry, sort_keys=True)

    @classmethod
    def from_json(cls, text: Buffer) -> Switch:
        """Read :meth:`to_json`."""
        fields = json.loads(bytes(text))
        return cls(fields["sequence"], fields["action"], Manifest.from_json(fields["manifest"]))


class PinnedSnapshot(Protocol):
    """One version, held for one read."""

    @property
    def manifest(self) -> Manifest:
        """Manifest of the pinned version."""

    def values(self, keys: Sequence[bytes]) -> Iterable[Buffer | None]:
        """Stored values in the order of ``keys``, None for a user without one; valid while the pin is held.

        Raises:
            VersionGoneError: The version is no longer kept.
        """


class StoreWriter(Protocol):
    """What only the one process that holds the store's lock may do."""

    def pointer(self) -> Pointer:
        """The pointer."""

    def manifest(self, version: str) -> Manifest:
        """Manifest of a sealed version."""

    def versions(self) -> frozenset[str]:
        """All versions of which anything is there, leftovers of crashed loads too."""

    def create(self, version: str) -> None:
        """Begin a version; readers do not see it."""

    def write(self, version: str, chunk: RowChunk) -> None:
        """Write rows into a version that is not sealed."""

    def seal(self, manifest: Manifest) -> None:
        """End the load of ``manifest.version``: everything is on its way to the disk before this returns."""

    def rows(self, version: str) -> Iterator[tuple[bytes, Buffer]]:
        """All keys and values of a version, in any order; a value is valid until the next step."""

    def values(self, version: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Stored values in the order of ``keys``, None for a user without one."""

    def swap(self, expected: Pointer, wanted: Pointer, action: str) -> None:
        """Replace the pointer and add to the journal, in one atomic step.

        Raises:
            StoreLockedError: The pointer is not ``expected``: somebody else published.
        """

    def remove(self, version: str) -> None:
        """Remove a version that the pointer does not name, and give its room back."""

    def erase(self, version: str, key: bytes) -> bool:
        """Delete one row and correct the manifest in one atomic step; False when there is no such row."""


class OnlineStore(Protocol):
    """Versions of LTEs, one of them live."""

    @property
    def name(self) -> str:
        """``lmdb`` or ``redis``."""

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
        """Hold the store's only lock.

        Raises:
            StoreLockedError: Another process holds it.
        """

    def close(self) -> None:
        """Give files and connections back."""


@dataclass(frozen=True)
class StoredEmbedding:
    """One user's live LTE.

    Attributes:
        user_id: The user.
        embedding: float32 [D]; zeros for a user without known items.
        n_items: Items it averages.
        manifest: The version it comes from.
    """

    user_id: str
    embedding: NDArray[np.float32]
    n_items: int
    manifest: Manifest


@dataclass(frozen=True)
class EmbeddingBatch:
    """Live LTEs of several users, all from one version.

    Attributes:
        user_ids: B users as asked for.
        embeddings: float32 [B, D]; zeros where ``is_found`` is False.
        n_items: int32 [B]; 0 where ``is_found`` is False.
        is_found: bool [B], whether the store holds the user.
        manifest: The version they come from.
    """

    user_ids: tuple[str, ...]
    embeddings: NDArray[np.float32]
    n_items: NDArray[np.int32]
    is_found: NDArray[np.bool_]
    manifest: Manifest


class SnapshotReader:
    """Reads the live version; each call sees exactly one version, and a later call the newest.

    Safe to share between threads. Open one in each process.
    """

    def __init__(self, store: OnlineStore, *, basis_version: str | None = None) -> None:
        """Read from ``store``; with ``basis_version``, vectors of any other basis are refused."""
        self._store = store
        self._basis_version = basis_version

    def get(self, user_id: str) -> StoredEmbedding | None:
        """The user's live LTE, or None when the live version has none.

        Raises:
            NoLiveSnapshotError: Nothing was published.
            BasisMismatchError: The live vectors belong to another basis.
            BadRowError: ``user_id`` is not 1 to 128 bytes.
            OnlineStoreError: The store failed.
        """
        batch = self.get_many([user_id])
        if not batch.is_found[0]:
            return None
        return StoredEmbedding(user_id, batch.embeddings[0], int(batch.n_items[0]), batch.manifest)

    def get_many(self, user_ids: Sequence[str]) -> EmbeddingBatch:
        """The live LTEs of several users, all from one version, in the order asked for.

        Raises:
            NoLiveSnapshotError: Nothing was published.
            BasisMismatchError: The live vectors belong to another basis.
            BadRowError: A user_id is not 1 to 128 bytes.
            OnlineStoreError: The store failed.
        """
        keys = [user_key(user_id) for user_id in user_ids]
        for _ in range(READ_ATTEMPTS):
            try:
                with self._store.pin() as pinned:
                    return self._collect(pinned, tuple(user_ids), keys)
            except VersionGoneError:
                continue
        raise OnlineStoreError(
            f"online store {self._store!r}: the live version vanished {READ_ATTEMPTS} times in a row"
        )

    def manifest(self) -> Manifest:
        """Manifest of the live version.

        Raises:
            NoLiveSnapshotError: Nothing was published.
            BasisMismatchError: The live vectors belong to another basis.
        """
        return self.get_many(()).manifest

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _collect(self, pinned: PinnedSnapshot, user_ids: tuple[str, ...], keys: list[bytes]) -> EmbeddingBatch:
        embeddings: NDArray[np.float32] | None = None
        n_items = np.zeros(len(keys), dtype=np.int32)
        is_found = np.zeros(len(keys), dtype=np.bool_)
        for row, value in enumerate(pinned.values(keys)):
            if embeddings is None:
                # Only now: a store may learn from the first answer that its pin is out of date.
                embeddings = np.zeros((len(keys), pinned.manifest.dim), dtype=np.float32)  # [B, D]
            if value is not None:
                n_items[row] = decode_into(value, embeddings[row])
                is_found[row] = True
        manifest = pinned.manifest
        self._check_basis(manifest)
        if embeddings is None:
            embeddings = np.zeros((0, manifest.dim), dtype=np.float32)
        return EmbeddingBatch(user_ids, embeddings, n_items, is_found, manifest)

    def _check_basis(self, manifest: Manifest) -> None:
        if self._basis_version not in (None, manifest.basis_version):
            raise BasisMismatchError(
                f"online store {self._store!r}: live snapshot ds={manifest.ds} has basis_version "
                f"{manifest.basis_version!r}, this reader works with {self._basis_version!r}"
            )
