"""Online store in Redis (7 or later, one primary; no cluster).

    {prefix}:pointer              pointer, JSON
    {prefix}:journal              list of the last switches, JSON
    {prefix}:deployment           name of the deployment that the store belongs to
    {prefix}:versions             set of all versions that have any key in the server
    {prefix}:lock                 token of the one process that publishes; the lock expires when that process dies
    {prefix}:{version}:manifest   manifest, JSON
    {prefix}:{version}:{bucket}   hash: user_id -> value

Users are spread over a fixed number of hashes. So the keys of a version are known without a scan of the whole server,
and all keys of a crashed load can be removed. Every write is one MULTI that takes effect only while the lock is held
(WATCH). Every read is one MULTI that fetches the pointer together with the values. The pointer shows whether the
store kept the version at that moment; if not, the read is repeated. The store needs no scripts and no dangerous
commands. An ACL of ``~{prefix}:* +@read +@write +@transaction +@connection +info`` is enough.
"""

from __future__ import annotations

import logging
import secrets
import time
from binascii import crc32
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.retry import Retry

from jobs.config.addresses import redis_address, require_tls_files
from jobs.store.protocol import require_own
from jobs.store.rows import Buffer, RowChunk, groups
from jobs.store.snapshot import (
    NoLiveSnapshotError,
    OnlineStoreError,
    Pointer,
    SnapshotManifest,
    StoreAuthError,
    StoreFullError,
    StoreLockedError,
    StoreUnreachableError,
    Switch,
    VersionDamagedError,
    VersionGoneError,
)

LOG = logging.getLogger(__name__)

# Part of the layout: a reader finds a user by crc32 modulo this number, so another number loses every stored user.
BUCKETS = 4096

# Bounds on one request, so that neither the server nor this process holds a whole version in memory.
BUCKETS_A_REQUEST = 16
KEYS_A_REQUEST = 500
JOURNAL_LENGTH = 1000
LOCK_POLL_S = 0.1
TLS_OPTIONS = {"ca": "ssl_ca_certs", "cert": "ssl_certfile", "key": "ssl_keyfile"}

# A write is repeated when its answer was lost or a watched key changed; more often in a row means another fault.
FENCED_ATTEMPTS = 5

AOF_POLL_S = 0.2


class RedisStore:
    """The online store under one prefix of one Redis; see the module's docstring."""

    name = "redis"

    def __init__(
        self,
        url: str,
        *,
        username: str = "",
        password: str = "",
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
        prefix: str = "lte",
        deployment: str = "",
        timeout_s: float = 10.0,
        retries: int = 5,
        lock_ttl_s: float = 120.0,
    ) -> None:
        """Keep the settings of the store; the first use connects.

        Args:
            url: ``redis://host:port/db``, or ``rediss://`` for TLS. The URL must not contain credentials.
            username: ACL user; empty for the default user.
            password: Password of the ACL user; no message shows the password.
            ca_file: PEM file of the authority that signed the server's certificate; empty for the system's authorities.
            cert_file: PEM file of this client's certificate. Redis asks for one unless its configuration says no.
            key_file: PEM file of the private key of this client's certificate.
            prefix: Prefix of all keys.
            deployment: Name of the deployment that owns the store; empty for no mark of ownership.
            timeout_s: Limit in seconds for connecting and for each answer.
            retries: How often a lost connection is tried again, with growing pauses.
            lock_ttl_s: Seconds after which the lock of a dead publisher expires; each write renews the lock.

        Raises:
            ValueError: The URL contains credentials or is not a Redis URL. Or a file is missing or given without
                TLS, or a certificate is given without its key.
        """
        files = {"ca": ca_file, "cert": cert_file, "key": key_file}
        self._place = redis_address(url)
        require_tls_files(url, files)
        self._prefix = prefix
        self._deployment = deployment
        self._username = username
        self._lock_ttl_ms = round(lock_ttl_s * 1000)
        tls = {TLS_OPTIONS[name]: file for name, file in files.items() if file}
        self._client = redis.Redis.from_url(
            url,
            username=username or None,
            password=password or None,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(ExponentialBackoff(cap=1.0, base=0.05), retries),
            **tls,
        )
        self._pinned: SnapshotManifest | None = None

    def __repr__(self) -> str:
        return f"RedisStore({self._place}, prefix={self._prefix!r})"

    def owner(self) -> str | None:
        """See :class:`jobs.store.protocol.OnlineStore`."""
        with self.errors():
            found = _bytes(self._client.get(self.key("deployment")))
        return found.decode(errors="replace") if found else None

    def pointer(self) -> Pointer:
        """See :class:`jobs.store.protocol.OnlineStore`."""
        with self.errors():
            return Pointer.from_json(_bytes(self._client.get(self.key("pointer"))))

    def journal(self) -> list[Switch]:
        """See :class:`jobs.store.protocol.OnlineStore`."""
        with self.errors():
            return [Switch.from_json(entry) for entry in _list(self._client.lrange(self.key("journal"), 0, -1))]

    @contextmanager
    def pin(self) -> Iterator[_PinnedVersion]:
        """See :class:`jobs.store.protocol.OnlineStore`.

        The version that this process remembers is used without a look at the pointer. The answer to the first request
        shows whether the remembered version is still live.
        """
        with self.errors():
            manifest = self._pinned or self._live_manifest()
            # The manifest is remembered again only after a read without error. After a VersionGoneError, the next
            # attempt reads the pointer again.
            self._pinned = None
            yield _PinnedVersion(self, self._client, manifest)
            self._pinned = manifest

    @contextmanager
    def writer(self) -> Iterator[RedisWriter]:
        """See :class:`jobs.store.protocol.OnlineStore`."""
        with self.errors():
            self._refuse_eviction()
            token = secrets.token_hex(16).encode()
            self._lock(token)
            writer = RedisWriter(self, self._client, token, self._lock_ttl_ms)
            try:
                if self._deployment:
                    self._claim()
                yield writer
            finally:
                # Without this, the next publisher waits until the lock of this process expires.
                writer.unlock()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def key(self, *parts: str) -> str:
        """Name of a key under the prefix."""
        return ":".join((self._prefix, *parts))

    def bucket_key(self, version: str, key: bytes) -> str:
        """Name of the hash that holds a user."""
        return self.key(version, str(crc32(key) % BUCKETS))

    def bucket_keys(self, version: str) -> list[str]:
        """Names of all hashes of a version."""
        return [self.key(version, str(bucket)) for bucket in range(BUCKETS)]

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn redis-py's errors into errors of this project; the message names the server and never a password."""
        who = f"user {self._username!r}" if self._username else "the default user"
        try:
            yield
        # AuthenticationError is a ConnectionError in redis-py, so the more special error is caught first.
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            raise StoreAuthError(f"redis {self._place} refused {who}: {error}") from error
        except redis.exceptions.OutOfMemoryError as error:
            raise StoreFullError(
                f"redis {self._place} is at its maxmemory; the live version is untouched: {error}"
            ) from error
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise StoreUnreachableError(f"redis {self._place} does not answer: {error}") from error
        except redis.RedisError as error:
            raise OnlineStoreError(f"redis {self._place}: {error}") from error

    def rewrite_append_only_file(self, wait_s: float = 60.0) -> str:
        """Make the server rewrite its append-only file, without the values of deleted users.

        Args:
            wait_s: How many seconds to wait for the end of the rewrite.

        Returns:
            What is left to do or to wait for; empty when the file is rewritten.
        """
        with self.errors():
            before = dict(self._client.info("persistence"))
        if not before.get("aof_enabled"):
            return "redis keeps no append-only file; a snapshot file (RDB), if any, holds the user until the next one"
        try:
            self._client.bgrewriteaof()
        except redis.RedisError as error:
            return f"redis refused BGREWRITEAOF ({error}); its append-only file holds the user until it is rewritten"
        for _ in range(round(wait_s / AOF_POLL_S)):
            time.sleep(AOF_POLL_S)
            with self.errors():
                found = dict(self._client.info("persistence"))
            # Redis only schedules the rewrite while it saves a snapshot file, so "in progress" alone is not enough.
            if not found["aof_rewrite_in_progress"] and not found["aof_rewrite_scheduled"]:
                is_done = found["aof_last_bgrewrite_status"] == "ok"
                return "" if is_done else "redis could not rewrite its append-only file, which still holds the user"
        size = before.get("aof_current_size", 0)
        return f"redis is still rewriting its append-only file of {size:,} bytes after {wait_s:g} s"

    def _live_manifest(self) -> SnapshotManifest:
        live = self.pointer().live
        if live is None:
            raise NoLiveSnapshotError(f"online store {self!r}: nothing was published yet")
        stored = _bytes(self._client.get(self.key(live, "manifest")))
        if stored is None:
            raise VersionGoneError(f"online store {self!r}: version {live} is no longer kept")
        return SnapshotManifest.from_json(stored)

    def _claim(self) -> None:
        """Mark the store with the deployment's name.

        Raises:
            ConfigError: The store belongs to another deployment.
        """
        # nx=True sets the mark only where there is none. When two deployments start at the same time, one of them wins.
        self._client.set(self.key("deployment"), self._deployment, nx=True)
        require_own(self, self._deployment, f"publish.redis_prefix = {self._prefix!r}", self.key("deployment"))

    def _lock(self, token: bytes) -> None:
        # Five seconds longer than the lock of a dead publisher exists, so a crash alone never fails the next publish.
        wait_s = self._lock_ttl_ms / 1000 + 5
        for _ in range(round(wait_s / LOCK_POLL_S)):
            if self._client.set(self.key("lock"), token, nx=True, px=self._lock_ttl_ms):
                return
            time.sleep(LOCK_POLL_S)
        raise StoreLockedError(f"online store {self!r}: another process has held {self.key('lock')} for {wait_s:g} s")

    def _refuse_eviction(self) -> None:
        """Refuse a server that may evict any key: such a server loses users and reports no error."""
        try:
            memory: Any = self._client.info("memory")
        except redis.exceptions.NoPermissionError:
            LOG.warning("redis %s: INFO is not allowed, so the eviction policy was not checked", self._place)
            return
        # Policies "volatile-*" evict only keys that expire. Of this store's keys, only the lock expires.
        if memory.get("maxmemory") and str(memory.get("maxmemory_policy")).startswith("allkeys"):
            raise OnlineStoreError(
                f"redis {self._place}: maxmemory-policy {memory['maxmemory_policy']} would evict users; set noeviction"
            )


class _PinnedVersion:
    """One version; each answer is checked to be complete. See :class:`jobs.store.protocol.PinnedSnapshot`."""

    def __init__(self, store: RedisStore, client: redis.Redis, manifest: SnapshotManifest) -> None:
        self._store = store
        self._client = client
        self.manifest = manifest

    def values(self, keys: Sequence[bytes]) -> Iterator[Buffer | None]:
        """One MULTI per few hundred users; the first MULTI also proves that the version is still live."""
        # max(1, ...): a read without keys also makes one request, because that request proves the version.
        for start in range(0, max(1, len(keys)), KEYS_A_REQUEST):
            yield from self._request(keys[start : start + KEYS_A_REQUEST], is_first=start == 0)

    def _request(self, keys: Sequence[bytes], *, is_first: bool) -> list[Buffer | None]:
        version = self.manifest.version
        with self._client.pipeline(transaction=True) as pipe:
            pipe.get(self._store.key("pointer"))
            pipe.get(self._store.key(version, "manifest"))
            for key in keys:
                pipe.hget(self._store.bucket_key(version, key), key)
            pointer, manifest, *values = pipe.execute()
        found = Pointer.from_json(pointer)
        # A later request of the same read accepts the previous version too: a publish in between is no reason to
        # start the read again, as long as all rows of the version are kept.
        if manifest is None or version not in ({found.live} if is_first else found.kept):
            raise VersionGoneError(f"online store {self._store!r}: version {version} is no longer live")
        # The erasure of a user changes the manifest of a version, so the newest manifest is kept.
        self.manifest = SnapshotManifest.from_json(manifest)
        return values


class RedisWriter:
    """What the holder of the lock may do; see :class:`jobs.store.protocol.StoreWriter`."""

    def __init__(self, store: RedisStore, client: redis.Redis, token: bytes, lock_ttl_ms: int) -> None:
        self._store = store
        self._client = client
        self._token = token
        self._lock_ttl_ms = lock_ttl_ms

    def pointer(self) -> Pointer:
        """The pointer."""
        return self._store.pointer()

    def manifest(self, version: str) -> SnapshotManifest:
        """SnapshotManifest of a sealed version."""
        stored = _bytes(self._client.get(self._store.key(version, "manifest")))
        if stored is None:
            raise VersionDamagedError(f"online store {self._store!r}: version {version} has no manifest")
        return SnapshotManifest.from_json(stored)

    def versions(self) -> frozenset[str]:
        """All versions whose load began and whose removal is not complete."""
        members: Any = self._client.smembers(self._store.key("versions"))
        return frozenset(member.decode() for member in members)

    def create(self, version: str) -> None:
        """Record the name of the version before its first row, so the next publish finds what a crash leaves."""
        self._fenced(lambda pipe: pipe.sadd(self._store.key("versions"), version))

    def write(self, version: str, chunk: RowChunk) -> None:
        """Write rows, a few hundred per request."""
        for rows in groups(chunk.items(), KEYS_A_REQUEST):
            self._fenced(partial(self._fill, version, rows))

    def seal(self, manifest: SnapshotManifest) -> None:
        """Write the manifest. The settings of the server decide what reaches the disk, and when."""
        key = self._store.key(manifest.version, "manifest")
        self._fenced(lambda pipe: pipe.set(key, manifest.to_json()))

    def rows(self, version: str) -> Iterator[tuple[bytes, Buffer]]:
        """All rows, bucket by bucket."""
        for keys in groups(self._store.bucket_keys(version), BUCKETS_A_REQUEST):
            # No MULTI: only the holder of the lock changes a version, and the holder is this process.
            with self._client.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.hgetall(key)
                for bucket in pipe.execute():
                    yield from bucket.items()

    def values(self, version: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Stored values."""
        with self._client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hget(self._store.bucket_key(version, key), key)
            return list(pipe.execute())

    def swap(self, expected: Pointer, wanted: Pointer, action: str) -> None:
        """Replace the pointer and add to the journal in one MULTI."""
        entry = Switch(wanted.sequence, action, self.manifest(str(wanted.live)))
        self._fenced(lambda pipe: self._switch(pipe, wanted, entry), swap=(expected, wanted))

    def remove(self, version: str) -> None:
        """Unlink the version's hashes, and remove its name last.

        A removal that is killed half-way leaves the name, so the next publish removes the rest.
        """
        if version in self.pointer().kept:
            raise OnlineStoreError(f"online store {self._store!r}: version {version} is kept, not removed")
        # The manifest goes first: a version without a manifest cannot be pinned while its rows disappear.
        names = [self._store.key(version, "manifest"), *self._store.bucket_keys(version)]
        for keys in groups(names, KEYS_A_REQUEST):
            self._fenced(partial(_unlink, keys))
        self._fenced(lambda pipe: pipe.srem(self._store.key("versions"), version))

    def erase(self, version: str, key: bytes) -> bool:
        """Delete one row and correct the manifest in one MULTI."""
        bucket = self._store.bucket_key(version, key)
        value = _bytes(self._client.hget(bucket, key))
        if value is None:
            return False
        manifest = self.manifest(version).without(key, value)
        self._fenced(partial(self._forget_user, bucket, key, manifest))
        return True

    def unlock(self) -> None:
        """Release the lock, if this process still holds it."""
        key = self._store.key("lock")
        with self._client.pipeline() as pipe:
            # WATCH: between the check and the delete, the lock may expire and another process may take it.
            _watch(pipe, key)
            if pipe.get(key) != self._token:
                LOG.warning("online store %r: the lock ran out before it was given back", self._store)
                return
            pipe.multi()
            pipe.delete(key)
            pipe.execute()

    def _fill(self, version: str, rows: Iterable[tuple[bytes, memoryview]], pipe: Pipeline) -> None:
        # The name is added with every write. The lock may expire and another process may remove the version and its
        # name. Then the rows that are written afterwards still have a name, so the next publish finds and removes them.
        pipe.sadd(self._store.key("versions"), version)
        for key, value in rows:
            pipe.hset(self._store.bucket_key(version, key), key, value)

    def _forget_user(self, bucket: str, key: bytes, manifest: SnapshotManifest, pipe: Pipeline) -> None:
        pipe.hdel(bucket, key)
        pipe.set(self._store.key(manifest.version, "manifest"), manifest.to_json())

    def _switch(self, pipe: Pipeline, wanted: Pointer, entry: Switch) -> None:
        pipe.set(self._store.key("pointer"), wanted.to_json())
        pipe.rpush(self._store.key("journal"), entry.to_json())
        pipe.ltrim(self._store.key("journal"), -JOURNAL_LENGTH, -1)

    def _fenced(self, fill: Callable[[Pipeline], object], *, swap: tuple[Pointer, Pointer] | None = None) -> None:
        """Run commands in one MULTI that takes effect only while this process holds the lock.

        A swap also needs an unchanged pointer. After a lost answer nobody knows whether the MULTI ran, so the MULTI is
        run again; every command of this class may be repeated. A swap is not repeated when the pointer proves that the
        swap happened.
        """
        for _ in range(FENCED_ATTEMPTS):
            with self._client.pipeline(transaction=True) as pipe:
                try:
                    if not self._is_due(pipe, swap):
                        return
                    pipe.multi()
                    # Renews the lock in the same step, so a load may take longer than the lock lives.
                    pipe.set(self._store.key("lock"), self._token, px=self._lock_ttl_ms)
                    fill(pipe)
                    pipe.execute()
                    return
                except redis.WatchError:
                    # A watched key changed, perhaps by the renewal whose answer was lost. The check runs again.
                    continue
        raise StoreUnreachableError(
            f"online store {self._store!r}: a write was cut off {FENCED_ATTEMPTS} times in a row"
        )

    def _is_due(self, pipe: Pipeline, swap: tuple[Pointer, Pointer] | None) -> bool:
        """Watch and check the keys that the write depends on; False for a swap that happened already."""
        _watch(pipe, self._store.key("lock"), self._store.key("pointer"))
        self._check_lock(_bytes(pipe.get(self._store.key("lock"))))
        if swap is None:
            return True
        expected, wanted = swap
        found = Pointer.from_json(_bytes(pipe.get(self._store.key("pointer"))))
        if found not in swap:
            raise StoreLockedError(
                f"online store {self._store!r}: expected pointer {expected}, got {found}: another process switched; "
                "run the job again"
            )
        manifest_key = self._store.key(str(wanted.live), "manifest")
        _watch(pipe, manifest_key)
        if not pipe.exists(manifest_key):
            raise StoreLockedError(f"online store {self._store!r}: another process removed version {wanted.live}")
        return found == expected

    def _check_lock(self, holder: bytes | None) -> None:
        # An expired lock that nobody took is taken again. Rows may have been lost in between; the count and the
        # checksum after the load show that.
        if holder not in (None, self._token):
            raise StoreLockedError(f"online store {self._store!r}: another process took the lock over")


def _watch(pipe: Pipeline, *keys: str) -> None:
    pipe.watch(*keys)  # type: ignore[no-untyped-call]


def _unlink(keys: list[str], pipe: Pipeline) -> None:
    pipe.unlink(*keys)


def _bytes(answer: object) -> bytes | None:
    assert answer is None or isinstance(answer, bytes)
    return answer


def _list(answer: object) -> list[bytes]:
    assert isinstance(answer, list)
    return answer
