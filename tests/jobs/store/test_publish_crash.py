"""kill -9 at every step of publishing, and at moments that nobody chose: the old snapshot stays live and whole."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.store.lmdb_store import LmdbWriter
from jobs.store.publish import STEPS, audit, delete_user, publish, rollback
from jobs.store.reader import SnapshotReader
from jobs.store.redis_store import RedisWriter
from store_kit import DAY_ONE, Place, kept_on_disk, marked_source, markers_of

USERS = 200
# Children start from a clean process that has imported the stores, not from this one with its threads.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["store_kit", "jobs.store.publish"])
# The last step before which a kill must leave the old version live.
SWAP = STEPS.index("swap")
WRITER_CALLS = ("create", "write", "seal", "swap", "remove")


@pytest.fixture(params=["lmdb", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "lmdb":
        return Place("lmdb", str(tmp_path / "online"), {"first_map_bytes": 1 << 16})
    port = request.getfixturevalue("redis_port")
    return Place("redis", f"redis://127.0.0.1:{port}/0", {"prefix": tmp_path.name, "lock_ttl_s": 1.0})


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _publish_and_die_before(place: Place, marker: int, fatal_step: str, nth: int) -> None:
    """In another process: publish, and be killed when ``fatal_step`` is announced for the nth time."""
    seen: list[str] = []

    def on_step(step: str, detail: str) -> None:
        seen.append(step)
        if step == fatal_step and seen.count(step) == nth:
            _die()

    _publish(place, marker, on_step)


def _publish_and_die_after(place: Place, marker: int, call: str) -> None:
    """In another process: publish, and be killed when the store has done ``call``, before anybody is told."""
    writer: Any = LmdbWriter if place.kind == "lmdb" else RedisWriter
    original = getattr(writer, call)

    def fatal(*arguments: Any) -> None:
        original(*arguments)
        _die()

    setattr(writer, call, fatal)
    _publish(place, marker, lambda step, detail: None)


def _publish(place: Place, marker: int, on_step: Any) -> None:
    source = marked_source(marker, ds=DAY_ONE + timedelta(days=marker), users=USERS)
    publish(place.open(), source, on_step=on_step)


def _run_to_its_death(target: Any, *arguments: Any) -> None:
    child = CHILDREN.Process(target=target, args=arguments)
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL, f"exit code {child.exitcode}: the child was to be killed"


def _live_marker(store: Any) -> float:
    """What all users of the live version carry; audited against its manifest."""
    manifest = audit(store)
    assert manifest.row_count == USERS
    many = SnapshotReader(store).get_many([f"u{row}" for row in range(USERS)])
    assert many.is_found.all()
    (marker,) = markers_of(many.embeddings)
    assert manifest.ds == many.manifest.ds == DAY_ONE + timedelta(days=int(marker))
    return marker


def _prepared(place: Place) -> Any:
    """A store with snapshot 2 live, 1 before it."""
    store = place.open()
    for marker in (1, 2):
        publish(store, marked_source(marker, ds=DAY_ONE + timedelta(days=marker), users=USERS))
    return store


def _check_that_the_next_publish_heals(store: Any, live_before: float) -> None:
    done = publish(store, marked_source(4, ds=DAY_ONE + timedelta(days=4), users=USERS))
    assert done.action == "publish"
    assert _live_marker(store) == 4.0
    pointer = store.pointer()
    assert kept_on_disk(store) == pointer.kept, "leftovers of the killed publish are still there"
    rollback(store)
    assert _live_marker(store) == live_before


@pytest.mark.parametrize("step", STEPS)
def test_killed_before_each_step(place: Place, step: str) -> None:
    store = _prepared(place)
    # Four chunks are loaded: the third announcement is in the middle of the load.
    _run_to_its_death(_publish_and_die_before, place, 3, step, 3 if step == "load" else 1)
    live = 2.0 if STEPS.index(step) <= SWAP else 3.0
    assert _live_marker(store) == live
    _check_that_the_next_publish_heals(store, live)
    store.close()


@pytest.mark.parametrize("call", WRITER_CALLS)
def test_killed_right_after_the_store_has_acted(place: Place, call: str) -> None:
    store = _prepared(place)
    _run_to_its_death(_publish_and_die_after, place, 3, call)
    live = 3.0 if call in ("swap", "remove") else 2.0
    assert _live_marker(store) == live
    _check_that_the_next_publish_heals(store, live)
    store.close()


def test_the_first_publish_of_all_is_killed(place: Place) -> None:
    _run_to_its_death(_publish_and_die_before, place, 3, "verify", 1)
    store = place.open()
    assert store.pointer().live is None
    publish(store, marked_source(4, ds=DAY_ONE + timedelta(days=4), users=USERS))
    assert _live_marker(store) == 4.0
    assert len(kept_on_disk(store)) == 1
    store.close()


def _publish_until_killed(place: Place, started: Any) -> None:
    store = place.open()
    for marker in range(3, 10_000):
        started.set()
        publish(store, marked_source(marker, ds=DAY_ONE + timedelta(days=marker), users=USERS))


def test_killed_at_moments_that_nobody_chose(place: Place) -> None:
    """Whatever the process was doing: one version is live and whole, and the next publish cleans up."""
    store = _prepared(place)
    moments = random.Random(20171101)
    for _ in range(8):
        started = CHILDREN.Event()
        child = CHILDREN.Process(target=_publish_until_killed, args=(place, started))
        child.start()
        assert started.wait(60)
        time.sleep(moments.uniform(0, 0.4))
        child.kill()
        child.join(60)
        live = _live_marker(store)
        # The child began at 3 again: forget what it did, by force.
        publish(store, marked_source(2, ds=DAY_ONE + timedelta(days=2), users=USERS), force=True)
        assert kept_on_disk(store) == store.pointer().kept
        assert live >= 2.0
    store.close()


def _delete_and_die(place: Place) -> None:
    writer: Any = LmdbWriter if place.kind == "lmdb" else RedisWriter
    original = writer.erase

    def fatal(*arguments: Any) -> None:
        original(*arguments)
        _die()

    writer.erase = fatal
    delete_user(place.open(), "u7")


def test_a_killed_deletion_is_finished_by_the_next_one(place: Place) -> None:
    store = _prepared(place)
    _run_to_its_death(_delete_and_die, place)
    assert delete_user(store, "u7") == 1
    for _ in range(2):
        assert audit(store).row_count == USERS - 1
        assert SnapshotReader(store).get("u7") is None
        rollback(store)
    store.close()
