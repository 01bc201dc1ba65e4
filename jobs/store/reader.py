"""Reads the live snapshot; each call sees exactly one version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.store.protocol import OnlineStore, PinnedSnapshot
from jobs.store.rows import decode_into, user_key
from jobs.store.snapshot import BasisMismatchError, OnlineStoreError, SnapshotManifest, VersionGoneError

# A read is retried when a publish or a rollback came in between. Many retries in a row mean another fault.
READ_ATTEMPTS = 10


@dataclass(frozen=True)
class StoredEmbedding:
    """One user's live LTE.

    Attributes:
        user_id: The user.
        embedding: float32 [D]; zeros for a user without known items.
        n_items: Number of items that the embedding averages.
        manifest: Manifest of the version that the embedding comes from.
    """

    user_id: str
    embedding: NDArray[np.float32]
    n_items: int
    manifest: SnapshotManifest


@dataclass(frozen=True)
class EmbeddingBatch:
    """Live LTEs of several users, all from one version.

    Attributes:
        user_ids: The B requested users, in the order of the request.
        embeddings: float32 [B, D]; zeros where ``is_found`` is False.
        n_items: int32 [B]; 0 where ``is_found`` is False.
        is_found: bool [B], whether the store holds the user.
        manifest: Manifest of the version that the embeddings come from.
    """

    user_ids: tuple[str, ...]
    embeddings: NDArray[np.float32]
    n_items: NDArray[np.int32]
    is_found: NDArray[np.bool_]
    manifest: SnapshotManifest


class SnapshotReader:
    """Reads the live version; each call sees exactly one version, and a later call sees the newest version.

    Threads may share one reader. Each process must open its own reader.
    """

    def __init__(self, store: OnlineStore, *, basis_version: str | None = None) -> None:
        """Read from ``store``; with ``basis_version``, vectors of any other basis are refused."""
        self._store = store
        self._basis_version = basis_version

    def get(self, user_id: str) -> StoredEmbedding | None:
        """The user's live LTE, or None when the live version has no LTE of the user.

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
        """The live LTEs of several users, all from one version, in the order of ``user_ids``.

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

    def manifest(self) -> SnapshotManifest:
        """SnapshotManifest of the live version.

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
                # Not before the first answer: only the first answer tells a store that its pin is out of date, and
                # then the manifest (and D) may be another one.
                embeddings = np.zeros((len(keys), pinned.manifest.dim), dtype=np.float32)  # [B, D]
            if value is not None:
                n_items[row] = decode_into(value, embeddings[row])
                is_found[row] = True
        manifest = pinned.manifest
        self._check_basis(manifest)
        if embeddings is None:
            embeddings = np.zeros((0, manifest.dim), dtype=np.float32)
        return EmbeddingBatch(user_ids, embeddings, n_items, is_found, manifest)

    def _check_basis(self, manifest: SnapshotManifest) -> None:
        if self._basis_version not in (None, manifest.basis_version):
            raise BasisMismatchError(
                f"online store {self._store!r}: live snapshot ds={manifest.ds} has basis_version "
                f"{manifest.basis_version!r}, this reader works with {self._basis_version!r}"
            )
