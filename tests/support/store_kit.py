"""What the tests of the online stores share: real servers, and snapshots in which every float names its version."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.store.lmdb_store import LmdbStore
from jobs.store.protocol import OnlineStore
from jobs.store.publish import SnapshotSource
from jobs.store.redis_store import RedisStore

DAY_ONE = date(2017, 11, 1)
DIM = 8


@dataclass(frozen=True)
class Place:
    """Place of a store, in a form that another process can read."""

    kind: str
    location: str
    options: dict[str, Any] = field(default_factory=dict)

    def open(self) -> OnlineStore:
        if self.kind == "lmdb":
            return LmdbStore(Path(self.location), **self.options)
        return RedisStore(self.location, **self.options)


def batch(users: Mapping[Any, Sequence[float | None] | None], n_items: int = 3) -> pa.RecordBatch:
    """User to vector, as rows; None, also as the user, is for the tests of refusals."""
    return pa.record_batch(
        {
            "user_id": pa.array(list(users), pa.string()),
            "embedding": pa.array(list(users.values()), pa.list_(pa.float32())),
            "n_items": pa.array([n_items] * len(users), pa.int32()),
        }
    )


def marked_batches(marker: float, *, users: int, batch_rows: int = 50) -> Iterator[pa.RecordBatch]:
    """Users u0, u1, …: every float of every vector is ``marker``."""
    for start in range(0, users, batch_rows):
        ids = [f"u{row}" for row in range(start, min(users, start + batch_rows))]
        yield batch({user_id: [marker] * DIM for user_id in ids}, n_items=int(marker))


def marked_source(marker: float, *, ds: date = DAY_ONE, users: int = 100, **changes: Any) -> SnapshotSource:
    """A slice in which every float is ``marker``."""
    fields: dict[str, Any] = {
        "ds": ds,
        "basis_version": "basis-a",
        "lte_window": "365-60",
        "method": "uniform",
        "code_version": "test",
        "row_count": users,
        "batches": lambda: marked_batches(marker, users=users),
        "sample": lambda: iter([next(marked_batches(marker, users=users, batch_rows=7))]),
    }
    return SnapshotSource(**(fields | changes))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# The server is asked again by `_wait_until_it_answers`, not by the client.
NO_RETRY = Retry(NoBackoff(), 0)


@contextmanager
def redis_server(folder: Path, port: int, *options: str, wait_for: redis.Redis | None = None) -> Iterator[None]:
    """A real redis-server on loopback with a data folder of its own, stopped at the end."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server: apt-get install redis-server")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    with (folder / "redis.log").open("ab") as log:
        server = subprocess.Popen([*command, "--appendonly", "no", *options], stdout=log, stderr=log)
        try:
            _wait_until_it_answers(wait_for or redis.Redis(port=port, retry=NO_RETRY), server)
            yield
        finally:
            server.kill()
            server.wait()


def _wait_until_it_answers(client: redis.Redis, server: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        assert server.poll() is None, "redis-server ended at once; see redis.log in its folder"
        try:
            client.ping()
        except (redis.ConnectionError, redis.TimeoutError):
            time.sleep(0.05)
        else:
            return
    raise AssertionError("redis-server did not answer within 10 s")


def markers_of(embeddings: np.ndarray) -> set[float]:
    """The different floats of [B, D]: exactly one, unless versions were mixed."""
    return set(np.unique(embeddings).tolist())


def kept_on_disk(store: OnlineStore) -> frozenset[str]:
    """Versions of which the store still has a part."""
    with store.writer() as writer:
        return writer.versions()


def certificates(folder: Path) -> tuple[str, str, str]:
    """A certificate authority and a certificate of 127.0.0.1 signed by it."""
    folder.mkdir()
    ca, ca_key, key, request, certificate = (
        str(folder / name) for name in ("ca.pem", "ca.key", "server.key", "server.csr", "server.pem")
    )
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    new_key = ["-newkey", "rsa:2048", "-nodes"]
    sign = ["-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "2", "-extfile", str(extensions)]
    for command in (
        ["req", "-x509", *new_key, "-keyout", ca_key, "-out", ca, "-days", "2", "-subj", "/CN=test authority"],
        ["req", *new_key, "-keyout", key, "-out", request, "-subj", "/CN=127.0.0.1"],
        ["x509", "-req", "-in", request, "-out", certificate, *sign],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return ca, certificate, key
