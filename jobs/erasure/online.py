"""Erasure from the online store: rows, and the bytes that a deleted row leaves behind."""

from __future__ import annotations

import mmap
import secrets
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from jobs.store.lmdb_store import LmdbStore
from jobs.store.protocol import OnlineStore, StoreWriter
from jobs.store.publish import _prune
from jobs.store.redis_store import RedisStore
from jobs.store.rows import RowChunk, user_key
from jobs.store.snapshot import OnlineStoreError, Pointer

ROWS_PER_CHUNK = 1024

# LMDB's header before a row's key: two bytes of flags (1: the value is on separate pages), two bytes of key length.
ROW_FLAGS = (0, 1)


@dataclass(frozen=True)
class OnlineErasure:
    """Result of erasing users from the store.

    Attributes:
        n_rows: Rows deleted, over the live and the previous version.
        n_rewritten: Versions whose file was written again, because deleted rows were still in its bytes.
        note: What must still be done or waited for; empty if the erasure is finished.
    """

    n_rows: int
    n_rewritten: int = 0
    note: str = ""


def erase_online(store: OnlineStore, user_ids: Sequence[str]) -> OnlineErasure:
    """Erase users from the live and the previous version, and from the bytes on the disk.

    After a kill, the same call finishes the work.

    Args:
        store: The online store.
        user_ids: Each 1 to 128 bytes.

    Raises:
        jobs.store.rows.BadRowError: A user_id is not 1 to 128 bytes.
        jobs.store.snapshot.OnlineStoreError: The store does not answer, or another process is publishing.
    """
    keys = [user_key(user_id) for user_id in user_ids]
    with store.writer() as writer:
        pointer = writer.pointer()
        # Files of an earlier load that crashed may hold the users, too.
        _prune(writer, pointer)
        n_rows = sum(writer.erase(version, key) for version in sorted(pointer.kept) for key in keys)
        if isinstance(store, LmdbStore):
            stale = [version for version in sorted(pointer.kept) if holds_bytes(store, version, keys)]
            _rewrite(writer, pointer, stale)
            return OnlineErasure(n_rows, len(stale))
    note = store.rewrite_append_only_file() if isinstance(store, RedisStore) else ""
    return OnlineErasure(n_rows, note=note)


def holds_bytes(store: LmdbStore, version: str, keys: Sequence[bytes]) -> bool:
    """Whether a version's file holds a row of these keys, including pages that readers no longer reach."""
    path = store.path(version)
    if not path.exists() or path.stat().st_size == 0:
        return False
    heads = [struct.pack("<HH", flags, len(key)) + key for key in keys for flags in ROW_FLAGS]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(head) >= 0 for head in heads)


def _rewrite(writer: StoreWriter, pointer: Pointer, versions: Sequence[str]) -> None:
    """Write versions again under new names and switch to the new names in one step; readers are not interrupted.

    A deleted row stays in LMDB's free pages, and in gaps of pages that are in use. A copy with compaction copies the
    gaps. So every row is written again. After a kill the old names stay live, and the next writer deletes the new
    files.
    """
    if not versions:
        return
    names = {version: f"{version.split('.')[0]}.{secrets.token_hex(4)}" for version in versions}
    for old, new in names.items():
        writer.create(new)
        for chunk in _chunks(writer, old):
            writer.write(new, chunk)
        writer.seal(replace(writer.manifest(old), version=new))
    live, previous = (names.get(str(version), version) for version in (pointer.live, pointer.previous))
    wanted = Pointer(live, previous, pointer.sequence + 1)
    writer.swap(pointer, wanted, "erase")
    _prune(writer, wanted)


def _chunks(writer: StoreWriter, version: str) -> Iterator[RowChunk]:
    rows = writer.rows(version)
    while part := list(islice(rows, ROWS_PER_CHUNK)):
        values = np.stack([np.frombuffer(value, dtype=np.uint8) for _, value in part])
        yield RowChunk([key for key, _ in part], np.ascontiguousarray(values))


def versions_that_hold(store: OnlineStore, user_ids: Sequence[str]) -> list[str]:
    """Kept versions that hold a user as a row, or (LMDB) in bytes that no reader reaches."""
    keys = [user_key(user_id) for user_id in user_ids]
    kept = sorted(store.pointer().kept)
    if isinstance(store, LmdbStore):
        return [version for version in kept if holds_bytes(store, version, keys)]
    if not kept:
        return []
    with store.writer() as writer:
        return [version for version in kept if any(value is not None for value in writer.values(version, keys))]


__all__ = ["OnlineErasure", "OnlineStoreError", "erase_online", "holds_bytes", "versions_that_hold"]
