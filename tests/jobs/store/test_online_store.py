"""The online stores: real LMDB files, a real redis-server."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis

from jobs.store.lmdb_store import LmdbStore, LmdbWriter
from jobs.store.publish import (
    NewerIsLiveError,
    PublishRefusedError,
    VerificationError,
    audit,
    delete_user,
    pending_switches,
    publish,
    rollback,
)
from jobs.store.reader import SnapshotReader
from jobs.store.redis_store import RedisStore, RedisWriter
from jobs.store.rows import BadRowError, Checksum, RowChunk, row_chunks
from jobs.store.snapshot import (
    BasisMismatchError,
    NoLiveSnapshotError,
    OnlineStoreError,
    SnapshotManifest,
    StoreAuthError,
    StoreFullError,
    StoreLockedError,
    StoreUnreachableError,
    VersionGoneError,
)
from store_kit import (
    DAY_ONE,
    DIM,
    NO_RETRY,
    Place,
    batch,
    certificates,
    free_port,
    kept_on_disk,
    marked_batches,
    marked_source,
    markers_of,
    redis_server,
)

DAY_TWO = DAY_ONE + timedelta(days=1)
DAY_THREE = DAY_ONE + timedelta(days=2)
# Children start from a clean process that has imported the stores, not from this one with its threads.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["store_kit", "jobs.store.publish"])


@pytest.fixture(params=["lmdb", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "lmdb":
        return Place("lmdb", str(tmp_path / "online"), {"first_map_bytes": 1 << 20, "lock_wait_s": 1.0})
    port = request.getfixturevalue("redis_port")
    return Place("redis", f"redis://127.0.0.1:{port}/0", {"prefix": tmp_path.name, "lock_ttl_s": 1.0})


@pytest.fixture
def store(place: Place) -> Iterator[Any]:
    opened = place.open()
    yield opened
    opened.close()


# --- rows and checksum


def hash_of(user_id: str) -> str:
    """What a log shows instead of the user."""
    return "#" + hashlib.sha256(user_id.encode()).hexdigest()[:12]


def test_a_value_is_n_items_and_the_floats_in_little_endian() -> None:
    (chunk,) = row_chunks([batch({"ann": [1.0, -2.5]}, n_items=7)])
    assert [(key, bytes(value)) for key, value in chunk.items()] == [(b"ann", struct.pack("<iff", 7, 1.0, -2.5))]
    assert chunk.dim == 2


def test_all_list_types_slices_and_chunk_sizes_give_the_same_rows() -> None:
    plain = batch({f"u{row}": [row, row + 0.5] for row in range(9)})
    wanted = [(key, bytes(value)) for chunk in row_chunks([plain]) for key, value in chunk.items()]
    for list_type in (pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)):
        other = pa.record_batch(
            {
                "user_id": plain.column("user_id").cast(pa.large_string()),
                "embedding": plain.column("embedding").cast(list_type),
                "n_items": plain.column("n_items"),
            }
        )
        parts = [other.slice(0, 4), other.slice(4, 0), other.slice(4, 5)]
        found = [(key, bytes(value)) for chunk in row_chunks(parts, chunk_bytes=1) for key, value in chunk.items()]
        assert found == wanted


def test_the_checksum_is_the_sum_of_one_digest_a_row() -> None:
    rows = [(b"a", b"xyz"), (b"ab", b"yz"), (b"c", b"")]
    digests = [hashlib.blake2b(bytes([len(k), 0]) + k + v, digest_size=16).digest() for k, v in rows]
    wanted = sum(int.from_bytes(digest, "little") for digest in digests) % 2**128
    forward, backward = Checksum(), Checksum()
    for key, value in rows:
        forward.add(key, value)
    for key, value in reversed(rows):
        backward.add(key, value)
    assert str(forward) == str(backward) == f"{wanted:032x}"
    backward.discard(*rows[0])
    shorter = Checksum()
    for key, value in rows[1:]:
        shorter.add(key, value)
    assert str(backward) == str(shorter) != str(forward)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (
            [batch({"a": [1.0, 2.0], "b": [1.0]})],
            f"{hash_of('b')}, column embedding: expected a vector of 2 numbers, got 1",
        ),
        ([batch({"a": [1.0, 2.0]}), batch({"b": [1.0]})], f"user_id {hash_of('b')}: vector of 1 floats, others have 2"),
        ([batch({"a": []})], f"{hash_of('a')}, column embedding: expected a vector of 1 number or more, got 0"),
        (
            [batch({"a": [1.0, float("nan")]})],
            f"{hash_of('a')}, column embedding: expected finite numbers in the vector, got nan",
        ),
        (
            [batch({"a": [1.0, float("inf")]})],
            f"{hash_of('a')}, column embedding: expected finite numbers in the vector, got inf",
        ),
        (
            [batch({"a": [1.0, None]})],
            f"{hash_of('a')}, column embedding: expected finite numbers in the vector, got nan",
        ),
        ([batch({"a": None})], "column embedding: null in row 0"),
        ([batch({None: [1.0]})], "column user_id: null in row 0"),
        ([batch({"": [1.0]})], f"user_id {hash_of('')}: 0 bytes, 1 to 128"),
        ([batch({"ä" * 65: [1.0]})], f"user_id {hash_of('ä' * 65)}: 130 bytes, 1 to 128"),
    ],
)
def test_rows_that_cannot_be_served_are_refused(batches: list[pa.RecordBatch], message: str) -> None:
    with pytest.raises(BadRowError, match=message):
        list(row_chunks(batches))


def test_a_log_of_a_vector_that_cannot_be_served_names_no_user() -> None:
    with pytest.raises(BadRowError) as error:
        list(row_chunks([batch({"anna@example.com": [1.0, float("nan")]})]))
    assert "anna" not in str(error.value)
    assert hash_of("anna@example.com") in str(error.value)


def test_doubles_are_refused() -> None:
    doubles = batch({"a": [1.0]}).set_column(1, "embedding", pa.array([[1.0]], pa.list_(pa.float64())))
    with pytest.raises(BadRowError, match="double"):
        list(row_chunks([doubles]))


# --- one live version


def test_what_was_published_is_read_back(store: Any) -> None:
    users = {"ann": [1.0, 2.0], "ä" * 64: [0.0, 0.0], "日本": [-1.5, 1e-30]}
    source = marked_source(
        0,
        row_count=3,
        batches=lambda: [batch(users, n_items=5)],
        sample=lambda: [batch({"ann": [1.0, 2.0]}, n_items=5)],
    )
    done = publish(store, source)
    assert (done.action, done.sequence) == ("publish", 1)
    reader = SnapshotReader(store)
    manifest = reader.manifest()
    assert manifest == done.manifest == audit(store)
    assert dataclasses.replace(manifest, version="", checksum="") == SnapshotManifest(
        "", DAY_ONE, "basis-a", "365-60", "uniform", 2, 3, "", "test"
    )
    found = reader.get("日本")
    assert found is not None
    assert (found.n_items, found.embedding.dtype, found.manifest) == (5, np.dtype(np.float32), manifest)
    np.testing.assert_array_equal(found.embedding, np.array([-1.5, 1e-30], dtype=np.float32))
    assert reader.get("bob") is None
    asked = ["bob", "ä" * 64, "ann", "ann"]
    many = reader.get_many(asked)
    assert many.user_ids == tuple(asked)
    assert many.is_found.tolist() == [False, True, True, True]
    assert many.n_items.tolist() == [0, 5, 5, 5]
    np.testing.assert_array_equal(many.embeddings, [[0, 0], [0, 0], [1, 2], [1, 2]])
    assert reader.get_many([]).embeddings.shape == (0, 2)


def test_a_batch_of_thousands_comes_in_order(store: Any) -> None:
    rows = {f"user-{row}": [float(row)] for row in range(1700)}  # several requests to Redis
    publish(store, marked_source(0, row_count=1700, batches=lambda: [batch(rows)], sample=lambda: []))
    asked = [f"user-{row}" for row in range(1699, -1, -1)]
    many = SnapshotReader(store).get_many(asked)
    assert many.is_found.all()
    np.testing.assert_array_equal(many.embeddings[:, 0], np.arange(1699, -1, -1))


def test_nothing_was_published(store: Any) -> None:
    reader = SnapshotReader(store)
    for read in (reader.manifest, lambda: reader.get("u1"), lambda: rollback(store), lambda: audit(store)):
        with pytest.raises(OnlineStoreError, match=r"nothing was published|no previous version"):
            read()
    with pytest.raises(NoLiveSnapshotError):
        reader.get_many(["u1"])
    assert store.journal() == []
    assert delete_user(store, "u1") == 0


def test_an_impossible_user_id_is_an_error(store: Any) -> None:
    publish(store, marked_source(1))
    with pytest.raises(BadRowError, match="0 bytes"):
        SnapshotReader(store).get("")


def test_the_previous_version_stays_for_a_rollback_and_older_ones_go(store: Any) -> None:
    reader = SnapshotReader(store)
    first = publish(store, marked_source(1, ds=DAY_ONE)).manifest
    second = publish(store, marked_source(2, ds=DAY_TWO)).manifest
    assert kept_on_disk(store) == {first.version, second.version}
    assert rollback(store).manifest == first == reader.manifest()
    assert markers_of(reader.get_many(["u1", "u99"]).embeddings) == {1.0}
    assert rollback(store).manifest == second == reader.manifest()
    third = publish(store, marked_source(3, ds=DAY_THREE)).manifest
    assert kept_on_disk(store) == {second.version, third.version}
    assert markers_of(reader.get_many(["u1", "u99"]).embeddings) == {3.0}
    switches = [(switch.sequence, switch.action, switch.manifest.ds) for switch in store.journal()]
    assert switches == [
        (1, "publish", DAY_ONE),
        (2, "publish", DAY_TWO),
        (3, "rollback", DAY_ONE),
        (4, "rollback", DAY_TWO),
        (5, "publish", DAY_THREE),
    ]
    assert [switch.sequence for switch in pending_switches(store, [1, 2, 4])] == [3, 5]


def test_a_store_that_was_emptied_goes_on_counting(store: Any) -> None:
    assert publish(store, marked_source(1), after_sequence=41).sequence == 42
    assert publish(store, marked_source(2), after_sequence=7).sequence == 43


def test_live_only_moves_forward(store: Any) -> None:
    publish(store, marked_source(2, ds=DAY_TWO))
    with pytest.raises(NewerIsLiveError, match=r"ds=2017-11-01.*ds=2017-11-02 is live.*--force"):
        publish(store, marked_source(1, ds=DAY_ONE))
    assert SnapshotReader(store).manifest().ds == DAY_TWO
    # A rerun of the live day with other rows is allowed.
    assert publish(store, marked_source(3, ds=DAY_TWO)).action == "publish"
    assert publish(store, marked_source(1, ds=DAY_ONE), force=True).action == "publish"
    assert markers_of(SnapshotReader(store).get_many(["u0"]).embeddings) == {1.0}


def test_the_same_rows_again_change_nothing(store: Any) -> None:
    first = publish(store, marked_source(1))
    again = publish(store, marked_source(1, batches=lambda: reversed(list(marked_batches(1, users=100)))))
    assert (again.action, again.manifest, again.sequence) == ("unchanged", first.manifest, 1)
    assert kept_on_disk(store) == {first.manifest.version}
    assert publish(store, marked_source(1), force=True).sequence == 2
    # The same vectors under another method are another snapshot.
    assert publish(store, marked_source(1, method="recency")).action == "publish"


def test_the_same_rows_are_loaded_again_when_the_live_ones_are_damaged(store: Any) -> None:
    version = publish(store, marked_source(1)).manifest.version
    _lose_a_row(store, version, b"u5")
    with pytest.raises(VerificationError, match="99 users stored, 100 rows loaded"):
        audit(store)
    assert publish(store, marked_source(1)).action == "publish"
    assert SnapshotReader(store).get("u5") is not None


def _lose_a_row(store: Any, version: str, key: bytes) -> None:
    """Delete behind the manifest's back."""
    if isinstance(store, LmdbStore):
        with store.opened(version, is_writable=True) as environment, environment.begin(write=True) as transaction:
            assert transaction.delete(key)
    else:
        assert store._client.hdel(store.bucket_key(version, key), key) == 1


def test_another_basis_is_refused(store: Any) -> None:
    publish(store, marked_source(1))
    other = marked_source(2, ds=DAY_TWO, basis_version="basis-b")
    with pytest.raises(PublishRefusedError, match=r"'basis-b', but 'basis-a' is live.*--allow-basis-change"):
        publish(store, other)
    assert SnapshotReader(store, basis_version="basis-a").manifest().ds == DAY_ONE
    reader = SnapshotReader(store, basis_version="basis-a")
    assert reader.get("u1") is not None
    publish(store, other, allow_basis_change=True)
    for read in (reader.manifest, lambda: reader.get("u1"), lambda: reader.get_many(["u1", "u2"])):
        with pytest.raises(BasisMismatchError, match=r"'basis-b', this reader works with 'basis-a'"):
            read()
    assert SnapshotReader(store, basis_version="basis-b").get("u1") is not None


def test_an_empty_slice_is_refused(store: Any) -> None:
    with pytest.raises(PublishRefusedError, match=r"user_lte ds=2017-11-01 method=uniform lte_window=365-60: no rows"):
        publish(store, marked_source(1, users=0))


# --- verification


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_count": 101}, "100 rows were read, 101 were counted"),
        (
            {"row_count": 150, "batches": lambda: [*marked_batches(9, users=100), *marked_batches(9, users=50)]},
            "repeats",
        ),
        ({"sample": lambda: [batch({"u3": [8.0] * DIM}, n_items=9)]}, f"{hash_of('u3')} is stored otherwise"),
        ({"sample": lambda: [batch({"who": [9.0] * DIM}, n_items=9)]}, f"{hash_of('who')} is stored otherwise"),
    ],
)
def test_a_load_that_differs_from_its_source_never_goes_live(store: Any, changes: Any, message: str) -> None:
    live = publish(store, marked_source(1)).manifest
    with pytest.raises(VerificationError, match=message):
        publish(store, marked_source(9, ds=DAY_TWO, **changes))
    assert audit(store) == live
    assert kept_on_disk(store) == {live.version}


def test_a_source_that_breaks_off_leaves_the_live_version(store: Any) -> None:
    def breaking() -> Iterator[pa.RecordBatch]:
        yield next(marked_batches(9, users=50))
        raise OSError("the lake went away")

    live = publish(store, marked_source(1)).manifest
    with pytest.raises(OSError, match="the lake went away"):
        publish(store, marked_source(9, ds=DAY_TWO, batches=breaking))
    assert audit(store) == live
    assert kept_on_disk(store) == {live.version}


@pytest.mark.parametrize("writer", [LmdbWriter, RedisWriter])
def test_a_bit_that_flips_on_the_way_is_found(place: Place, writer: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = place.open()
    live = publish(store, marked_source(1)).manifest
    write = writer.write

    def flipping(self: Any, version: str, chunk: RowChunk) -> None:
        values = chunk.values.copy()
        values[-1, -1] ^= 1
        write(self, version, RowChunk(chunk.keys, values))

    monkeypatch.setattr(writer, "write", flipping)
    if isinstance(store, LmdbStore) is (writer is LmdbWriter):
        with pytest.raises(VerificationError, match="of the stored rows"):
            publish(store, marked_source(9, ds=DAY_TWO))
    assert audit(store) == live
    store.close()


# --- deletion of a user


def test_a_deleted_user_is_gone_from_both_versions_and_the_manifests_still_hold(store: Any) -> None:
    reader = SnapshotReader(store)
    publish(store, marked_source(1))
    publish(store, marked_source(2, ds=DAY_TWO))
    assert reader.get("u7") is not None  # the reader has its files and connections open
    assert delete_user(store, "u7") == 2
    assert reader.get("u7") is None
    manifest = audit(store)
    assert (manifest.row_count, manifest.n_erased) == (99, 1)
    assert reader.manifest() == manifest
    left = Checksum()  # worked out from the source without the user
    for chunk in row_chunks(marked_batches(2, users=100)):
        for key, value in chunk.items():
            if key != b"u7":
                left.add(key, value)
    assert manifest.checksum == str(left)
    assert delete_user(store, "u7") == 0
    rollback(store)
    assert reader.get("u7") is None
    assert (audit(store).row_count, reader.get_many(["u6"]).is_found.tolist()) == (99, [True])


def test_deletions_fit_while_a_read_transaction_is_held(place: Place, store: Any) -> None:
    publish(store, marked_source(1))
    with store.pin() as pinned:
        _in_child(_delete_users, place, 40)
        assert len(list(pinned.values([b"u50"]))) == 1
    assert audit(store).row_count == 60
    assert SnapshotReader(store).get_many(["u39", "u40"]).is_found.tolist() == [False, True]


def _delete_users(place: Place, users: int) -> None:
    store = place.open()
    for row in range(users):
        delete_user(store, f"u{row}")


def _in_child(target: Any, *arguments: Any) -> None:
    child = CHILDREN.Process(target=target, args=arguments)
    child.start()
    child.join(120)
    assert child.exitcode == 0


# --- one writer


def test_only_one_process_publishes(place: Place, store: Any) -> None:
    publish(store, marked_source(1))
    other: Any = place.open()
    if isinstance(other, RedisStore):
        store._lock_ttl_ms = 60_000  # held for longer than the other one waits
    with store.writer(), pytest.raises(StoreLockedError, match="another process has held"):
        publish(other, marked_source(2, ds=DAY_TWO))
    assert publish(other, marked_source(2, ds=DAY_TWO)).action == "publish"
    other.close()


def test_a_swap_that_expects_another_pointer_is_refused(store: Any) -> None:
    manifest = publish(store, marked_source(1)).manifest
    publish(store, marked_source(2, ds=DAY_TWO))
    with store.writer() as writer:
        pointer = writer.pointer()
        stale = dataclasses.replace(pointer, sequence=1)
        wanted = dataclasses.replace(pointer, live=manifest.version, sequence=3)
        with pytest.raises(StoreLockedError, match=r"expected pointer .*, got .*run the job again"):
            writer.swap(stale, wanted, "publish")
        with pytest.raises(OnlineStoreError, match="is kept, not removed"):
            writer.remove(manifest.version)


# --- reading while versions change


def test_a_version_removed_under_a_reader_is_whole_or_read_again(store: Any) -> None:
    publish(store, marked_source(1))
    keys = [b"u%d" % row for row in range(100)]
    with store.pin() as pinned:
        values = iter(pinned.values(keys))
        publish(store, marked_source(2, ds=DAY_TWO))
        publish(store, marked_source(3, ds=DAY_THREE))  # removes the pinned version
        if isinstance(store, LmdbStore):
            assert [struct.unpack_from("<if", value) for value in values] == [(1, 1.0)] * 100
            answered = True
        else:
            answered = False
            with pytest.raises(VersionGoneError):
                list(values)
            store._pinned = None
    assert answered is isinstance(store, LmdbStore)
    assert markers_of(SnapshotReader(store).get_many(["u1", "u2"]).embeddings) == {3.0}


def test_a_version_that_goes_between_two_requests_is_read_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two publishes in the middle of one get_many: the answer is the newest version, whole."""
    monkeypatch.setattr("jobs.store.redis_store.KEYS_A_REQUEST", 10)
    store: Any = place.open()
    publish(store, marked_source(1))
    reader = SnapshotReader(store)
    pinned_values: list[int] = []

    class Meddling(SnapshotReader):
        def _collect(self, pinned: Any, user_ids: Any, keys: Any) -> Any:
            values = pinned.values(keys)

            def between() -> Iterator[Any]:
                for row, value in enumerate(values):
                    if row == 15 and not pinned_values:
                        pinned_values.append(row)
                        publish(store, marked_source(2, ds=DAY_TWO))
                        publish(store, marked_source(3, ds=DAY_THREE))
                    yield value

            pinned_type = type("Between", (), {"manifest": property(lambda _: pinned.manifest)})
            wrapped = pinned_type()
            wrapped.values = lambda _: between()
            return super()._collect(wrapped, user_ids, keys)

    many = Meddling(store).get_many([f"u{row}" for row in range(100)])
    assert many.is_found.all()
    assert pinned_values == [15]
    wanted = 1.0 if place.kind == "lmdb" else 3.0  # LMDB's reader keeps the old file mapped to the end of its read
    assert markers_of(many.embeddings) == {wanted}
    assert many.manifest.ds == (DAY_ONE if place.kind == "lmdb" else DAY_THREE)
    assert markers_of(reader.get_many(["u1"]).embeddings) == {3.0}
    store.close()


def _read_until_told(place: Place, is_reading: Any, stop: Any, results: Any) -> None:
    """In another process: read and read, tell every mixture, false missing and step backwards."""
    store = place.open()
    reader = SnapshotReader(store)
    users = [f"u{row}" for row in range(0, 600, 7)]
    seen: list[float] = []
    wrong: list[str] = []
    while not stop.is_set():
        many = reader.get_many(users)
        markers = markers_of(many.embeddings)
        if len(markers) != 1 or not many.is_found.all() or set(many.n_items.tolist()) != {int(min(markers))}:
            wrong.append(f"{markers} {many.is_found.sum()}")
        one = reader.get("u599")
        assert one is not None
        if float(one.embedding[0]) < min(markers):
            wrong.append(f"went back from {markers} to {one.embedding[0]}")
        if not seen or seen[-1] != min(markers):
            seen.append(min(markers))
            is_reading.release()
    results.put((seen, wrong))
    store.close()


def test_readers_in_other_processes_see_one_version_during_many_swaps(place: Place, store: Any) -> None:
    publish(store, marked_source(1, users=600))
    is_reading, stop, results = CHILDREN.Semaphore(0), CHILDREN.Event(), CHILDREN.Queue()
    readers = [CHILDREN.Process(target=_read_until_told, args=(place, is_reading, stop, results)) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in readers:
        assert is_reading.acquire(timeout=60)  # both read before the first swap
    for marker in range(2, 26):
        publish(store, marked_source(marker, users=600))
    stop.set()
    answers = [results.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join(60)
    for seen, wrong in answers:
        assert wrong == []
        assert seen == sorted(seen)
        assert len(seen) > 5, "the reader was not reading while versions were swapped"
    assert SnapshotReader(store).manifest().row_count == 600


def test_threads_share_a_reader_during_swaps(store: Any) -> None:
    publish(store, marked_source(1))
    reader = SnapshotReader(store)
    stop = threading.Event()
    mixtures: list[set[float]] = []
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                many = reader.get_many(["u0", "u50", "u99"])
                if len(markers_of(many.embeddings)) != 1 or not many.is_found.all():
                    mixtures.append(markers_of(many.embeddings))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for marker in range(2, 14):
        publish(store, marked_source(marker))
        delete_user(store, f"u{marker}")
    stop.set()
    for thread in threads:
        thread.join(60)
    assert (mixtures, failures) == ([], [])


def test_a_forked_process_reads_on(store: Any) -> None:
    publish(store, marked_source(1))
    reader = SnapshotReader(store)
    assert reader.get("u1") is not None
    child = os.fork()
    if child == 0:
        found = reader.get("u1")
        os._exit(0 if found is not None and found.embedding[0] == 1.0 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert reader.get("u2") is not None
    publish(store, marked_source(2))
    assert markers_of(reader.get_many(["u1"]).embeddings) == {2.0}


# --- LMDB alone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "online"


def test_the_map_grows_and_removed_versions_give_their_disk_back(folder: Path) -> None:
    store = LmdbStore(folder, first_map_bytes=1 << 16)
    wide = [batch({f"u{row}": [float(row)] * 600 for row in range(1000)})]  # 2.4 MB of floats in a map of 64 KiB
    sizes = []
    for day in range(5):
        ds = DAY_ONE + timedelta(days=day)
        publish(store, marked_source(0, ds=ds, row_count=1000, batches=lambda: wide, sample=lambda: wide), force=True)
        sizes.append(sum(file.stat().st_blocks * 512 for file in folder.iterdir()))
    assert sizes[0] > 2.4e6
    assert sizes[4] < 2.5 * sizes[0], f"older versions still take disk: {sizes}"
    assert len(list(folder.glob("20*.mdb"))) == 2
    store.close()


def test_a_killed_reader_does_not_hold_pages_back(folder: Path) -> None:
    store = LmdbStore(folder)
    publish(store, marked_source(1))
    child = CHILDREN.Process(target=_hold_and_die, args=(folder,))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    version = SnapshotReader(store).manifest().version
    with store.opened(version) as environment:
        assert str(child.pid) in environment.readers()
    delete_user(store, "u0")
    with store.opened(version) as environment:
        assert str(child.pid) not in environment.readers()
    store.close()


def _hold_and_die(folder: Path) -> None:
    with LmdbStore(folder).pin():
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_full_disk_leaves_the_live_version(folder: Path) -> None:
    publish(LmdbStore(folder), marked_source(1))
    _in_child(_publish_on_a_full_disk, folder)
    store = LmdbStore(folder)
    assert audit(store).ds == DAY_ONE
    assert publish(store, marked_source(2, ds=DAY_TWO, users=20_000)).action == "publish"
    assert len(list(folder.glob("20*.mdb"))) == 2
    store.close()


def _publish_on_a_full_disk(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    with pytest.raises(StoreFullError, match="no room on the disk"):
        publish(LmdbStore(folder), marked_source(2, ds=DAY_TWO, users=20_000))


def test_a_damaged_file_is_an_error_that_names_it(folder: Path) -> None:
    store = LmdbStore(folder)
    version = publish(store, marked_source(1)).manifest.version
    store.close()
    store.path(version).write_bytes(b"no lmdb file" * 1000)
    with pytest.raises(OnlineStoreError, match=version):
        SnapshotReader(store).get("u1")


def test_a_live_version_that_somebody_removed_is_an_error(folder: Path) -> None:
    store = LmdbStore(folder)
    version = publish(store, marked_source(1)).manifest.version
    store.close()
    store.path(version).unlink()
    with pytest.raises(OnlineStoreError, match="vanished"):
        SnapshotReader(store).get("u1")


# --- Redis alone


def test_a_server_that_is_not_there_is_a_clear_error() -> None:
    port = free_port()
    with pytest.raises(StoreUnreachableError, match=f"redis 127.0.0.1:{port}/0 does not answer"):
        SnapshotReader(RedisStore(f"redis://127.0.0.1:{port}/0", retries=1)).get("u1")


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("redis://me:hunter2@host/0", {}, "leave the credentials out"),
        ("http://host/0", {}, "redis://host:port/db"),
        ("redis:/me:hunter2@host/0", {}, "redis://host:port/db"),
        ("redis://host/0?password=hunter2", {}, r"expected no '\?'"),
        ("rediss://host/0?ssl_cert_reqs=none", {}, r"expected no '\?'"),
        ("redis://host/0#hunter2", {}, r"no '#'"),
        ("redis://host/0", {"ca_file": "ca.pem"}, "needs a rediss:// URL"),
        ("rediss://host/0", {"ca_file": "no-such.pem"}, "no such file"),
    ],
)
def test_impossible_settings_are_refused(url: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        RedisStore(url, **options)
    assert "hunter2" not in str(caught.value)


def test_a_narrow_acl_suffices_and_the_password_is_never_shown(tmp_path: Path) -> None:
    port = free_port()
    acl = "~lte:* +@read +@write +@transaction +@connection +info"
    users = ["--user", "default", "off", "--user", "lte", "on", ">s3cret-word", *acl.split()]
    client = redis.Redis(port=port, username="lte", password="s3cret-word", retry=NO_RETRY)
    with redis_server(tmp_path, port, *users, wait_for=client):
        url = f"redis://127.0.0.1:{port}/0"
        store = RedisStore(url, username="lte", password="s3cret-word")
        publish(store, marked_source(1))
        delete_user(store, "u1")
        publish(store, marked_source(2, ds=DAY_TWO))
        rollback(store)
        assert audit(store).ds == DAY_ONE
        assert SnapshotReader(store).get("u2") is not None
        assert "s3cret-word" not in repr(store)
        for refused in (
            RedisStore(url, username="lte", password="wrong-s3cret-word", retries=0),
            RedisStore(url, retries=0),
            RedisStore(url, username="lte", password="s3cret-word", prefix="other"),
        ):
            with pytest.raises(StoreAuthError, match="refused") as caught:
                SnapshotReader(refused).get("u1")
            assert "s3cret-word" not in str(caught.value)


def test_tls_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    ca, certificate, key = certificates(tmp_path / "good")
    port, plain = free_port(), free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", ca]
    with redis_server(tmp_path / "data", plain, *tls, "--requirepass", "hush",
                      wait_for=redis.Redis(port=plain, password="hush", retry=NO_RETRY)):  # fmt: skip
        url = f"rediss://127.0.0.1:{port}/0"
        own: dict[str, Any] = {"password": "hush", "cert_file": certificate, "key_file": key, "retries": 0}
        store = RedisStore(url, ca_file=ca, **own)
        publish(store, marked_source(4))
        assert markers_of(SnapshotReader(store).get_many(["u1"]).embeddings) == {4.0}
        other_ca, _, _ = certificates(tmp_path / "other")
        for wrong in (other_ca, ""):
            with pytest.raises(StoreUnreachableError, match="certificate verify failed"):
                SnapshotReader(RedisStore(url, ca_file=wrong, **own)).manifest()
        # Redis asks for a client's certificate unless it is told not to.
        with pytest.raises(StoreUnreachableError):
            SnapshotReader(RedisStore(url, password="hush", ca_file=ca, retries=0)).manifest()
        with pytest.raises(StoreUnreachableError):
            SnapshotReader(RedisStore(f"redis://127.0.0.1:{port}/0", password="hush", retries=0)).manifest()


def test_a_full_server_keeps_the_old_version(tmp_path: Path) -> None:
    port = free_port()
    with redis_server(tmp_path, port, "--maxmemory", "5mb", "--maxmemory-policy", "noeviction"):
        store = RedisStore(f"redis://127.0.0.1:{port}/0", lock_ttl_s=1)
        live = publish(store, marked_source(1)).manifest
        wide = [batch({f"u{row}": [2.0] * 512 for row in range(start, start + 500)}) for start in range(0, 5000, 500)]
        with pytest.raises(StoreFullError, match=r"is at its maxmemory.*the live version is untouched"):
            publish(store, marked_source(2, ds=DAY_TWO, row_count=5000, batches=lambda: wide))  # 10 MB into 5 MB
        assert audit(store) == live
        assert kept_on_disk(store) == {live.version}
        assert publish(store, marked_source(3, ds=DAY_TWO)).action == "publish"
        assert audit(store).ds == DAY_TWO


def test_a_server_that_evicts_users_is_refused(tmp_path: Path) -> None:
    port = free_port()
    with redis_server(tmp_path, port, "--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"):
        store = RedisStore(f"redis://127.0.0.1:{port}/0")
        with pytest.raises(OnlineStoreError, match="allkeys-lru would evict users"):
            publish(store, marked_source(1))


def test_the_lock_of_a_dead_publisher_runs_out(redis_port: int, tmp_path: Path) -> None:
    store = RedisStore(f"redis://127.0.0.1:{redis_port}/0", prefix=tmp_path.name, lock_ttl_s=0.5)
    redis.Redis(port=redis_port).set(f"{tmp_path.name}:lock", "somebody", px=1500)
    assert publish(store, marked_source(1)).action == "publish"


def test_a_publisher_that_lost_its_lock_writes_nothing_more(redis_port: int, tmp_path: Path) -> None:
    """It slept through its lock's life, and another one published meanwhile."""
    url = f"redis://127.0.0.1:{redis_port}/0"
    options: dict[str, Any] = {"prefix": tmp_path.name, "lock_ttl_s": 0.3}
    slow, quick = RedisStore(url, **options), RedisStore(url, **options)

    def sleeping() -> Iterator[pa.RecordBatch]:
        for number, rows in enumerate(marked_batches(9, users=100)):
            if number == 1:
                time.sleep(0.6)
                publish(quick, marked_source(2))
                # The third one holds the lock now.
                redis.Redis(port=redis_port).set(f"{tmp_path.name}:lock", "third", px=60_000)
            yield rows

    with pytest.raises(StoreLockedError, match="took the lock over"):
        publish(slow, marked_source(9, batches=sleeping))
    redis.Redis(port=redis_port).delete(f"{tmp_path.name}:lock")
    assert markers_of(SnapshotReader(quick).get_many(["u1", "u60"]).embeddings) == {2.0}


def test_a_load_whose_rows_were_cleaned_away_meanwhile_never_goes_live(redis_port: int, tmp_path: Path) -> None:
    """It slept, another one cleaned up, published and gave the lock back: the lock is free, the rows are gone."""
    url = f"redis://127.0.0.1:{redis_port}/0"
    options: dict[str, Any] = {"prefix": tmp_path.name, "lock_ttl_s": 0.3}
    slow, quick = RedisStore(url, **options), RedisStore(url, **options)

    def sleeping() -> Iterator[pa.RecordBatch]:
        for number, rows in enumerate(marked_batches(9, users=100)):
            if number == 1:
                time.sleep(0.6)
                publish(quick, marked_source(2))
            yield rows

    with pytest.raises(VerificationError, match="50 users stored, 100 rows loaded"):
        publish(slow, marked_source(9, batches=sleeping))
    assert markers_of(SnapshotReader(quick).get_many(["u1", "u60"]).embeddings) == {2.0}
    assert len(kept_on_disk(quick)) == 1


def test_a_connection_cut_during_the_load_is_made_again(redis_port: int, tmp_path: Path) -> None:
    store = RedisStore(f"redis://127.0.0.1:{redis_port}/0", prefix=tmp_path.name)
    other = redis.Redis(port=redis_port)
    cuts: list[int] = []

    def cutting(step: str, detail: str) -> None:
        cuts.append(other.client_kill_filter(_type="normal", skipme=True))

    publish(store, marked_source(1), on_step=cutting)
    assert sum(cuts) > 3
    assert audit(store).row_count == 100


def test_a_reader_outlives_a_restart_of_the_server(tmp_path: Path) -> None:
    port = free_port()
    store = RedisStore(f"redis://127.0.0.1:{port}/0", retries=1)
    reader = SnapshotReader(store)
    with redis_server(tmp_path, port):
        publish(store, marked_source(1))
        assert reader.get("u1") is not None
    with pytest.raises(StoreUnreachableError):
        reader.get("u1")
    with redis_server(tmp_path, port):
        # This server keeps nothing on disk: an empty one is no answer of "no such user".
        with pytest.raises(NoLiveSnapshotError):
            reader.get("u1")
        publish(store, marked_source(2, ds=date(2017, 12, 1)))
        assert markers_of(reader.get_many(["u1"]).embeddings) == {2.0}


def test_redis_is_laid_out_as_docs_serving_tells_other_languages(redis_port: int) -> None:
    """Only the words of docs/serving.md, without this project's reader."""
    place = Place("redis", f"redis://127.0.0.1:{redis_port}/0", {"prefix": "layout"})
    publish(place.open(), marked_source(7.0, users=3))
    client = redis.Redis(port=redis_port)
    version = json.loads(str(client.get("layout:pointer"), "utf-8"))["live"]  # type: ignore[arg-type]
    with client.pipeline(transaction=True) as pipe:
        pipe.get("layout:pointer")
        pipe.get(f"layout:{version}:manifest")
        pipe.hget(f"layout:{version}:{zlib.crc32(b'u1') % 4096}", "u1")
        pointer, manifest, value = pipe.execute()
    assert json.loads(pointer)["live"] == version
    dim = json.loads(manifest)["dim"]
    n_items, *floats = struct.unpack(f"<i{dim}f", value)
    assert (n_items, floats) == (7, [7.0] * dim)
    client.close()
