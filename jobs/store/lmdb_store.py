"""Online store in a local folder: one LMDB file per version, and one small LMDB file with the pointer.

Each version has its own file. So the disk space of a removed version is free at once, and a reader that still maps the
file can finish its read. Vectors are copied once, from the map into the caller's array. The folder must be on a local
disk, because LMDB's locks do not work over network file systems. A value of more than about 2,000 bytes takes whole
pages. So a user with 512 floats needs 4 KiB of disk per version, and there are three versions during a publish
(previous, live, new).

    index.mdb        pointer and journal, switched in one transaction
    <version>.mdb    user_id -> value, and the manifest
    .deployment      name of the deployment that the store belongs to
    writer.lock      held (flock) by the one process that publishes; the kernel frees it when that process dies

An account that may read the folder but not write to it reads without LMDB's lock file. After each such read, the store
checks whether a writer committed meanwhile. If so, the read is repeated.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from jobs.runtime.pages import claim_for, read_owner
from jobs.store.rows import Buffer, RowChunk
from jobs.store.snapshot import (
    NoLiveSnapshotError,
    OnlineStoreError,
    Pointer,
    SnapshotManifest,
    StoreFullError,
    StoreLockedError,
    Switch,
    VersionDamagedError,
    VersionGoneError,
)
from lte_models.files import flush

LOG = logging.getLogger(__name__)
T = TypeVar("T")
POINTER_KEY = b"pointer"
JOURNAL_PREFIX = b"switch/"
JOURNAL_LENGTH = 1000

# No UTF-8 text starts with 0xff, so no user_id is this key; it also sorts behind all of them.
MANIFEST_KEY = b"\xffmanifest"
INDEX_MAP_BYTES = 64 << 20
FIRST_MAP_BYTES = 64 << 20
INDEX_OPTIONS: dict[str, Any] = {"is_writable": True, "create": True, "map_size": INDEX_MAP_BYTES}

# Address space, not disk. Later deletions of users need it; with it, no reader has to map a sealed file again.
SEALED_SLACK_BYTES = 256 << 20
MAX_READERS = 2048
LOCK_POLL_S = 0.05
UPGRADE_WAIT_S = 60.0

# A read without the lock file is repeated when a writer commits meanwhile. A writer commits a few times per publish.
LOCKLESS_ATTEMPTS = 10

# EIO: LMDB reports this error when the disk wrote only a part of a page.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
DAMAGE = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.PageNotFoundError, lmdb.VersionMismatchError)


@dataclass
class _Open:
    environment: lmdb.Environment
    is_writable: bool
    page_bytes: int
    pins: int = 0
    is_doomed: bool = False


class _Environments:
    """Open LMDB files of this process.

    LMDB forbids a process to open a file twice, and to close a file while it is read.
    """

    def __init__(self) -> None:
        self._reset()
        # Locks and reader slots belong to the process that opened the file.
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._open: dict[Path, _Open] = {}
        self._changed = threading.Condition()

    @contextmanager
    def use(self, path: Path, *, is_writable: bool = False, **options: Any) -> Iterator[lmdb.Environment]:
        """Hold the file open; the file stays open afterwards, until :meth:`forget`."""
        entry = self._acquire(path, is_writable, options)
        try:
            yield entry.environment
        finally:
            self._release(path, entry)

    def forget(self, path: Path) -> None:
        """Close the file now, or when its last user releases it."""
        with self._changed:
            entry = self._open.get(path)
            if entry is not None:
                entry.is_doomed = True
                self._close_unused(path, entry)

    def forget_folder(self, folder: Path) -> None:
        """Close all files in ``folder``."""
        for path in [path for path in list(self._open) if path.parent == folder]:
            self.forget(path)

    def _acquire(self, path: Path, is_writable: bool, options: dict[str, Any]) -> _Open:
        with self._changed:
            if is_writable and not self._changed.wait_for(lambda: self._can_write(path), timeout=UPGRADE_WAIT_S):
                raise StoreLockedError(
                    f"lmdb {path}: reads of this process have held the file for {UPGRADE_WAIT_S:g} s"
                )
            entry = self._open.get(path)
            if entry is not None and is_writable and not entry.is_writable:
                # LMDB cannot make an open file writable; nobody reads it now, so it can be opened again.
                entry.environment.close()
                entry = None
            if entry is None:
                environment = _environment(path, is_writable, options)
                entry = self._open[path] = _Open(environment, is_writable, environment.stat()["psize"])
            try:
                # Checked on each use, not only on opening, because the file can be cut while this process maps it.
                _require_whole(path, entry)
            except (OSError, VersionDamagedError):
                entry.is_doomed = True
                self._close_unused(path, entry)
                raise
            entry.pins += 1
            return entry

    def _can_write(self, path: Path) -> bool:
        entry = self._open.get(path)
        return entry is None or entry.is_writable or entry.pins == 0

    def _release(self, path: Path, entry: _Open) -> None:
        with self._changed:
            entry.pins -= 1
            self._close_unused(path, entry)
            self._changed.notify_all()

    def _close_unused(self, path: Path, entry: _Open) -> None:
        if entry.is_doomed and entry.pins == 0:
            entry.environment.close()
            del self._open[path]


_ENVIRONMENTS = _Environments()


def _environment(path: Path, is_writable: bool, options: dict[str, Any]) -> lmdb.Environment:
    # map_size 0: LMDB takes the size from the file. Readers never create a file.
    defaults = {"map_size": 0, "create": False, "readonly": not is_writable, "max_readers": MAX_READERS}
    wanted = {"subdir": False, "readahead": False, **defaults, **options}
    # LMDB would turn an empty file into a new database without any error.
    if (path.exists() or not wanted["create"]) and path.stat().st_size == 0:
        raise VersionDamagedError(f"lmdb {path}: the file is empty")
    try:
        return lmdb.open(str(path), **wanted)
    except lmdb.ReadonlyError:
        if is_writable:
            raise
        # The lock file needs write permission, and a read-only account has none.
        return lmdb.open(str(path), **wanted, lock=False)


def _require_whole(path: Path, entry: _Open) -> None:
    """Refuse a file that lost its end: the kernel kills (SIGBUS) a process that reads a mapped page past the end.

    Raises:
        VersionDamagedError: The file is shorter than its header says.
        FileNotFoundError: The file does not exist.
    """
    found = path.stat().st_size
    needed = 2 * entry.page_bytes
    if found >= needed:  # checked first, because info() reads the two meta pages, which are mapped pages too
        needed = (entry.environment.info()["last_pgno"] + 1) * entry.page_bytes
    if found < needed:
        raise VersionDamagedError(f"lmdb {path}: expected at least {needed} bytes, got {found}: the file was cut")


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """Turn LMDB's errors into errors of this project that name the file."""
    try:
        yield
    except lmdb.MapFullError as error:
        raise StoreFullError(f"lmdb {what}: no room left for deletions; publish again") from error
    except DAMAGE as error:
        raise VersionDamagedError(f"lmdb {what}: {error}") from error
    except (lmdb.Error, OSError) as error:
        code = getattr(error, "code", None) or getattr(error, "errno", None)
        if code == errno.ENOENT:
            raise VersionGoneError(f"lmdb {what}: no such file") from error
        if code in NO_ROOM:
            raise StoreFullError(
                f"lmdb {what}: no room on the disk ({error}); the live version is untouched"
            ) from error
        raise OnlineStoreError(f"lmdb {what}: {error}") from error


def _is_overtaken(environment: lmdb.Environment, transaction: lmdb.Transaction) -> bool:
    """Whether a read without the lock file may have seen pages that a writer reused; False with the lock file."""
    is_lockless = not environment.flags()["lock"]
    return is_lockless and environment.info()["last_txnid"] != transaction.id()


class _PinnedFile:
    """A version's file inside one read transaction."""

    def __init__(self, transaction: lmdb.Transaction) -> None:
        self._transaction = transaction
        self.manifest = _manifest(transaction)

    def values(self, keys: Sequence[bytes]) -> Iterable[Buffer | None]:
        """Views into the map; see :class:`jobs.store.protocol.PinnedSnapshot`."""
        return map(self._transaction.get, keys)


def _manifest(transaction: lmdb.Transaction) -> SnapshotManifest:
    stored = transaction.get(MANIFEST_KEY)
    if stored is None:
        raise VersionDamagedError(f"lmdb {transaction.env.path()}: the version was never sealed")
    try:
        return SnapshotManifest.from_json(stored)
    except (ValueError, TypeError, KeyError) as error:
        raise VersionDamagedError(f"lmdb {transaction.env.path()}: the manifest cannot be read: {error}") from error


class LmdbStore:
    """The online store of one folder; see the module's docstring."""

    name = "lmdb"

    def __init__(
        self,
        folder: Path,
        *,
        deployment: str = "",
        first_map_bytes: int = FIRST_MAP_BYTES,
        lock_wait_s: float = 60.0,
    ) -> None:
        """Keep the settings of the store; the first use opens or creates files.

        Args:
            folder: Folder of the files; the first publish creates the folder.
            deployment: Name of the deployment that owns the store; empty for no mark of ownership.
            first_map_bytes: Size in bytes of the map at the start of a load. The map doubles when it is full.
            lock_wait_s: How many seconds a writer waits for another writer.
        """
        self._folder = folder.resolve()
        self._deployment = deployment
        self._first_map_bytes = first_map_bytes
        self._lock_wait_s = lock_wait_s
        self._last_live: str | None = None

    def __repr__(self) -> str:
        return f"LmdbStore({self._folder})"

    def owner(self) -> str | None:
        """See :class:`jobs.store.protocol.OnlineStore`."""
        return read_owner(self._folder)

    def pointer(self) -> Pointer:
        """See :class:`jobs.store.protocol.OnlineStore`."""
        return self._read_index(lambda transaction: Pointer.from_json(transaction.get(POINTER_KEY)), Pointer())

    def journal(self) -> list[Switch]:
        """See :class:`jobs.store.protocol.OnlineStore`."""
        return self._read_index(_switches, [])

    def _read_index(self, read: Callable[[lmdb.Transaction], T], nothing: T) -> T:
        """Read the index in one transaction; returns ``nothing`` where there is no index yet."""
        if not self._index.exists():
            return nothing
        for _ in range(LOCKLESS_ATTEMPTS):
            with _errors(str(self._index)), _ENVIRONMENTS.use(self._index) as index, index.begin() as transaction:
                found = read(transaction)
                if not _is_overtaken(index, transaction):
                    return found
        raise OnlineStoreError(f"lmdb {self._index}: a writer committed during each of {LOCKLESS_ATTEMPTS} reads")

    @contextmanager
    def pin(self) -> Iterator[_PinnedFile]:
        """See :class:`jobs.store.protocol.OnlineStore`."""
        live = self.pointer().live
        if live is None:
            raise NoLiveSnapshotError(f"online store {self!r}: nothing was published yet")
        if self._last_live not in (None, live):
            _ENVIRONMENTS.forget(self.path(str(self._last_live)))
        self._last_live = live
        with self.opened(live) as environment, environment.begin(buffers=True) as transaction:
            yield _PinnedFile(transaction)
            if _is_overtaken(environment, transaction):
                raise VersionGoneError(f"online store {self!r}: version {live} changed during the read")

    @contextmanager
    def writer(self) -> Iterator[LmdbWriter]:
        """See :class:`jobs.store.protocol.OnlineStore`."""
        with _errors(str(self._folder)):
            self._folder.mkdir(parents=True, exist_ok=True)
        with _errors(str(self._folder)):
            lock = (self._folder / "writer.lock").open("a+")
        with lock:
            self._wait_for(lock.fileno())
            if self._deployment:
                claim_for(self._folder, self._deployment, "paths.online_store", "snapshots")
            self._recover_index()
            yield LmdbWriter(self, self._index, self._first_map_bytes)

    def close(self) -> None:
        """Close the files that no read is using."""
        _ENVIRONMENTS.forget_folder(self._folder)

    def path(self, version: str) -> Path:
        """File of a version."""
        return self._folder / f"{version}.mdb"

    @contextmanager
    def opened(self, version: str, **options: Any) -> Iterator[lmdb.Environment]:
        """Hold a version's file open.

        Raises:
            VersionGoneError: The file does not exist, or no longer exists.
        """
        path = self.path(version)
        with _errors(str(path)), _ENVIRONMENTS.use(path, **options) as environment:
            yield environment

    @property
    def _index(self) -> Path:
        return self._folder / "index.mdb"

    def _recover_index(self) -> None:
        """Bring the index up to its last commit, or start a new index where the index cannot be read.

        LMDB writes the meta page first, and then the lock file. A process that is killed between these two writes
        leaves all readers one transaction behind. LMDB repairs the lock file when the next write transaction begins.
        So this method begins a write transaction before the pointer is read.
        """
        if not self._index.exists():
            return
        try:
            with _errors(str(self._index)), _ENVIRONMENTS.use(self._index, **INDEX_OPTIONS) as index:
                index.begin(write=True).abort()
        except VersionDamagedError as error:
            LOG.warning("%s; the index is moved to index.damaged, and what was live counts as absent", error)
            _ENVIRONMENTS.forget(self._index)
            self._index.replace(self._index.with_suffix(".damaged"))
            self._index.with_name(self._index.name + "-lock").unlink(missing_ok=True)

    def _wait_for(self, lock: int) -> None:
        for _ in range(max(1, round(self._lock_wait_s / LOCK_POLL_S))):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_POLL_S)
            else:
                return
        raise StoreLockedError(
            f"online store {self!r}: another process has held writer.lock for {self._lock_wait_s:g} s"
        )


class LmdbWriter:
    """What the holder of the lock may do; see :class:`jobs.store.protocol.StoreWriter`."""

    def __init__(self, store: LmdbStore, index: Path, first_map_bytes: int) -> None:
        self._store = store
        self._index = index
        self._load_options: dict[str, Any] = {
            "is_writable": True,
            "create": True,
            "sync": False,
            "map_size": first_map_bytes,
        }

    def pointer(self) -> Pointer:
        """The pointer."""
        return self._store.pointer()

    def manifest(self, version: str) -> SnapshotManifest:
        """SnapshotManifest of a sealed version."""
        with self._store.opened(version) as environment, environment.begin() as transaction:
            return _manifest(transaction)

    def versions(self) -> frozenset[str]:
        """Every version that has a file, even if only its lock file exists."""
        files = (*self._index.parent.glob("*.mdb"), *self._index.parent.glob("*.mdb-lock"))
        return frozenset(file.stem for file in files) - {self._index.stem}

    def create(self, version: str) -> None:
        """Create the version's file."""
        with self._store.opened(version, **self._load_options):
            pass

    def write(self, version: str, chunk: RowChunk) -> None:
        """Write rows in one transaction; the map doubles until the rows fit."""
        with self._store.opened(version, **self._load_options) as environment:
            while not _put_all(environment, chunk):
                environment.set_mapsize(2 * environment.info()["map_size"])

    def seal(self, manifest: SnapshotManifest) -> None:
        """Write the manifest and flush the file; the map keeps space for deletions."""
        path = self._store.path(manifest.version)
        with self._store.opened(manifest.version, **self._load_options) as environment:
            environment.set_mapsize(path.stat().st_size + SEALED_SLACK_BYTES)
            with environment.begin(write=True) as transaction:
                transaction.put(MANIFEST_KEY, manifest.to_json().encode())
            environment.sync(True)
        _ENVIRONMENTS.forget(path)
        flush(path.parent)

    def rows(self, version: str) -> Iterator[tuple[bytes, Buffer]]:
        """All rows, in key order; a value is a view into the map."""
        with self._store.opened(version) as environment, environment.begin(buffers=True) as transaction:
            for key, value in transaction.cursor():
                if bytes(key) != MANIFEST_KEY:
                    yield bytes(key), value

    def values(self, version: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Stored values, copied."""
        with self._store.opened(version) as environment, environment.begin() as transaction:
            return [transaction.get(key) for key in keys]

    def swap(self, expected: Pointer, wanted: Pointer, action: str) -> None:
        """Replace the pointer and add to the journal in one transaction; both are on the disk on return."""
        entry = Switch(wanted.sequence, action, self.manifest(str(wanted.live)))
        with _errors(str(self._index)), _ENVIRONMENTS.use(self._index, **INDEX_OPTIONS) as index:
            index.reader_check()  # frees the slots of killed readers; such a slot keeps LMDB from reusing old pages
            with index.begin(write=True) as transaction:
                self._check_pointer(Pointer.from_json(transaction.get(POINTER_KEY)), expected)
                transaction.put(POINTER_KEY, wanted.to_json().encode())
                transaction.put(_journal_key(wanted.sequence), entry.to_json().encode())
                transaction.delete(_journal_key(wanted.sequence - JOURNAL_LENGTH))
        flush(self._index.parent)

    def remove(self, version: str) -> None:
        """Unlink the version's files; the disk space is free as soon as no reader maps the files."""
        if version in self.pointer().kept:
            raise OnlineStoreError(f"online store {self._store!r}: version {version} is kept, not removed")
        path = self._store.path(version)
        _ENVIRONMENTS.forget(path)
        path.unlink(missing_ok=True)
        path.with_name(path.name + "-lock").unlink(missing_ok=True)

    def erase(self, version: str, key: bytes) -> bool:
        """Delete one row and correct the manifest in one transaction.

        The bytes stay in free pages of the file until the version is removed. This takes two publishes at most.
        """
        with self._store.opened(version, is_writable=True) as environment:
            environment.reader_check()
            with environment.begin(write=True) as transaction:
                value = transaction.get(key)
                if value is None:
                    return False
                manifest = _manifest(transaction).without(key, value)
                transaction.delete(key)
                return bool(transaction.put(MANIFEST_KEY, manifest.to_json().encode()))

    def _check_pointer(self, found: Pointer, expected: Pointer) -> None:
        if found != expected:
            raise StoreLockedError(
                f"online store {self._store!r}: expected pointer {expected}, got {found}: another process switched; "
                "run the job again"
            )


def _switches(transaction: lmdb.Transaction) -> list[Switch]:
    return [Switch.from_json(value) for key, value in transaction.cursor() if bytes(key).startswith(JOURNAL_PREFIX)]


def _put_all(environment: lmdb.Environment, chunk: RowChunk) -> bool:
    """Write all rows, or no row when the map is too small; returns whether the rows were written."""
    try:
        with environment.begin(write=True) as transaction:
            for key, value in chunk.items():
                transaction.put(key, value)
    except lmdb.MapFullError:
        return False
    return True


def _journal_key(sequence: int) -> bytes:
    return JOURNAL_PREFIX + b"%020d" % max(0, sequence)
