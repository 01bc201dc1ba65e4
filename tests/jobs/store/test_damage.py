"""What is damaged in a store never blocks its own replacement, and never ends a process without a message."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import signal
import subprocess
import sys
from datetime import timedelta
from itertools import takewhile
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest

from jobs.store.lmdb_store import LmdbStore
from jobs.store.publish import PublishRefusedError, audit, delete_user, publish, rollback
from jobs.store.reader import SnapshotReader
from jobs.store.snapshot import OnlineStoreError, VersionDamagedError
from store_kit import DAY_ONE, kept_on_disk, marked_source, markers_of

DAY_TWO = DAY_ONE + timedelta(days=1)
USERS = 300
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["store_kit", "jobs.store.publish"])


@pytest.fixture
def store(tmp_path: Path) -> Any:
    store = LmdbStore(tmp_path / "online", first_map_bytes=1 << 16, lock_wait_s=1.0)
    yield store
    store.close()


def published(store: LmdbStore, marker: int) -> Path:
    """Publish a day and return the file of its version."""
    source = marked_source(marker, ds=DAY_ONE + timedelta(days=marker), users=USERS)
    return store.path(publish(store, source).manifest.version)


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_within_the_header(path: Path) -> None:
    os.truncate(path, 4096)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def zero_behind_the_header(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:8192] + bytes(len(content) - 8192))


DAMAGES = [remove, empty, cut, cut_within_the_header, zero, zero_behind_the_header]


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_live_version_is_replaced(
    store: Any, damage: Any, is_open: bool, caplog: pytest.LogCaptureFixture
) -> None:
    published(store, 1)
    live = published(store, 2)
    if is_open:  # this process maps the file when it is damaged
        assert SnapshotReader(store).get("u1") is not None
    else:
        store.close()
    damage(live)
    with pytest.raises(OnlineStoreError):
        SnapshotReader(store).get_many([f"u{row}" for row in range(USERS)])
    published(store, 2)  # the same day, without force
    assert "loaded again" in caplog.text or "counts as absent" in caplog.text
    assert audit(store).row_count == USERS
    assert markers_of(SnapshotReader(store).get_many(["u1", "u299"]).embeddings) == {2.0}
    assert kept_on_disk(store) == store.pointer().kept
    rollback(store)  # the version before the damaged one was kept
    assert markers_of(SnapshotReader(store).get_many(["u1"]).embeddings) == {1.0}


@pytest.mark.parametrize("damage", [remove, cut, zero])
def test_a_rollback_to_or_from_a_damaged_version(store: Any, damage: Any) -> None:
    before, live = published(store, 1), published(store, 2)
    damage(live)
    rollback(store)
    assert markers_of(SnapshotReader(store).get_many(["u1"]).embeddings) == {1.0}
    assert store.pointer().previous is None
    published(store, 3)
    damage(before)
    with pytest.raises(PublishRefusedError, match="cannot be read; publish a day"):
        rollback(store)
    assert markers_of(SnapshotReader(store).get_many(["u1"]).embeddings) == {3.0}


def test_a_user_in_a_damaged_version_is_not_said_to_be_erased(store: Any) -> None:
    before, _ = published(store, 1), published(store, 2)
    cut(before)
    with pytest.raises(VersionDamagedError, match="publish a day"):
        delete_user(store, "u7")
    assert SnapshotReader(store).get("u7") is None  # gone where it can be read
    published(store, 3)
    assert delete_user(store, "u7") == 1  # of the new version; the one before it had lost the user already


@pytest.mark.parametrize("damage", [empty, cut, zero])
def test_a_damaged_index_counts_as_a_new_store(store: Any, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    published(store, 1)
    store.close()
    damage(store._index)
    assert publish(store, marked_source(2, ds=DAY_TWO, users=USERS), after_sequence=1).sequence == 2
    assert "index.damaged" in caplog.text
    assert audit(store).row_count == USERS
    assert len(kept_on_disk(store)) == 1


def _swap_and_die_before_the_lock_file(folder: Path) -> None:
    """In another process: publish, and die when LMDB has written the meta page and not yet its lock file.

    The lock file's page is made read-only inside the swap's transaction, so the store into it raises SIGSEGV right
    after the meta page is written. The handler gives the page back, for the kernel marks the dead owner of the mutex in
    it, and then kills the process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    store = LmdbStore(folder)
    pages: list[tuple[int, int]] = []

    def protect(mode: int) -> None:
        for start, length in pages:
            assert libc.mprotect(start, length, mode) == 0

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def die(_: int) -> None:
        protect(mmap.PROT_READ | mmap.PROT_WRITE)
        os.kill(os.getpid(), signal.SIGKILL)

    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGSEGV, ctypes.cast(die, ctypes.c_void_p))

    def inside_the_swap(*_: Any, **__: Any) -> None:
        for line in Path("/proc/self/maps").read_text().splitlines():
            if line.endswith("index.mdb-lock"):
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                pages.append((start, end - start))
        assert pages
        protect(mmap.PROT_READ)

    from jobs.store.lmdb_store import LmdbWriter

    LmdbWriter._check_pointer = inside_the_swap  # type: ignore[method-assign]
    publish(store, marked_source(2, ds=DAY_TWO, users=USERS))


def test_killed_between_the_meta_page_and_the_lock_file(store: Any) -> None:
    """Readers are one transaction behind then; the next publish must see the swap that happened."""
    published(store, 1)
    child = CHILDREN.Process(target=_swap_and_die_before_the_lock_file, args=(store._folder,))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert store.pointer().sequence == 1  # the state that this test is about: the swap is on disk, readers lag behind
    assert published(store, 3).exists()
    assert store.pointer().sequence == 3
    assert [switch.manifest.row_count for switch in store.journal()] == [USERS] * 3
    rollback(store)
    assert markers_of(SnapshotReader(store).get_many(["u1"]).embeddings) == {2.0}


READER = """
import os, sys
from pathlib import Path
from jobs.store.lmdb_store import LmdbStore
from jobs.store.publish import publish
from jobs.store.reader import SnapshotReader
from jobs.store.snapshot import OnlineStoreError
os.setgid(1001); os.setuid(1001)
store = LmdbStore(Path(sys.argv[1]))
reader = SnapshotReader(store)
print(reader.get("u1").embedding[0], len(store.journal()), flush=True)
sys.stdin.readline()
print(reader.get("u1").embedding[0], len(store.journal()), flush=True)
try:
    with store.writer():
        print("wrote")
except OnlineStoreError as error:
    print("Permission denied" in str(error))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a process as another user")
def test_an_account_that_may_only_read_reads(store: Any, tmp_path: Path) -> None:
    for folder in (tmp_path, *takewhile(lambda above: above != Path(gettempdir()), tmp_path.parents)):
        folder.chmod(folder.stat().st_mode | 0o055)
    published(store, 1)
    command = [sys.executable, "-c", READER, str(store._folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin
        assert reader.stdout
        assert reader.stdout.readline().split() == ["1.0", "1"]
        published(store, 2)
        published(store, 3)
        reader.stdin.write("\n")
        reader.stdin.close()
        assert reader.stdout.read().split() == ["3.0", "3", "True"]
