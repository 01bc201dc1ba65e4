"""The online stores: load rate, latency of reads and memory, on made vectors.

    python benchmarks/bench_store.py        200,000 users x 512 floats, LMDB and a redis-server of its own
    python benchmarks/bench_store.py --users 20000 --store lmdb

A publish is what `publish_snapshot` does without Delta: load, read every row back for count and checksum, compare a
sample, swap. Anonymous memory is what the process itself holds; the kernel can take back pages
of a mapped LMDB file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.store.lmdb_store import LmdbStore
from jobs.store.protocol import OnlineStore
from jobs.store.publish import SnapshotSource, publish
from jobs.store.reader import SnapshotReader
from jobs.store.redis_store import RedisStore

BATCH_ROWS = 4096


def batches(users: int, dim: int, seed: int) -> Iterator[pa.RecordBatch]:
    """Made rows, a few thousand at a time."""
    for start in range(0, users, BATCH_ROWS):
        rows = min(BATCH_ROWS, users - start)
        floats = np.random.default_rng((seed, start)).standard_normal(rows * dim, dtype=np.float32)
        offsets = np.arange(0, rows * dim + 1, dim, dtype=np.int32)
        columns = {
            "user_id": pa.array([f"user-{row}" for row in range(start, start + rows)], pa.string()),
            "embedding": pa.ListArray.from_arrays(pa.array(offsets), pa.array(floats)),
            "n_items": pa.array(np.full(rows, 50, dtype=np.int32)),
        }
        yield pa.record_batch(columns)


def source(users: int, dim: int, day: int) -> SnapshotSource:
    return SnapshotSource(
        ds=date(2017, 11, day),
        basis_version="bench",
        lte_window="365-60",
        method="uniform",
        code_version="bench",
        row_count=users,
        batches=lambda: batches(users, dim, day),
        sample=lambda: [next(iter(batches(users, dim, day))).slice(0, 200)],
    )


class PeakMemory(threading.Thread):
    """Largest anonymous memory of this process while it runs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.start_mib = self._now()
        self.peak_mib = self.start_mib
        self._stop_asked = threading.Event()

    def run(self) -> None:
        while not self._stop_asked.wait(0.02):
            self.peak_mib = max(self.peak_mib, self._now())

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()

    @staticmethod
    def _now() -> float:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


def microseconds(samples: list[float]) -> dict[str, float]:
    return {f"p{share}": round(float(np.percentile(samples, share)) * 1e6, 1) for share in (50, 99)}


def timed(call: Any, arguments: list[Any]) -> dict[str, float]:
    samples = []
    for argument in arguments:
        started = time.perf_counter()
        call(argument)
        samples.append(time.perf_counter() - started)
    return microseconds(samples)


def measure(store: OnlineStore, users: int, dim: int) -> dict[str, Any]:
    """Publish twice, as on any day but the first; then read at random."""
    memory = PeakMemory()
    memory.start()
    marks: dict[str, float] = {}

    def mark(step: str, _: str) -> None:
        marks.setdefault(step, time.perf_counter())

    publish(store, source(users, dim, 1))
    started = time.perf_counter()
    publish(store, source(users, dim, 2), on_step=mark)
    total = time.perf_counter() - started
    memory.stop()
    reader = SnapshotReader(store)
    choice = np.random.default_rng(1)
    one = [f"user-{row}" for row in choice.integers(0, users, 20_000)]
    many = [[f"user-{row}" for row in choice.integers(0, users, 100)] for _ in range(1000)]
    assert reader.get(one[0]) is not None
    return {
        "publish_s": round(total, 2),
        "load_s": round(marks["seal"] - marks["load"], 2),
        "load_rows_per_s": round(users / (marks["seal"] - marks["load"])),
        "load_mb_per_s": round(users * dim * 4 / 1e6 / (marks["seal"] - marks["load"]), 1),
        "verify_s": round(marks["swap"] - marks["verify"], 2),
        "swap_ms": round((marks["prune"] - marks["swap"]) * 1e3, 1),
        "get_us": timed(reader.get, one),
        "get_many_100_us": timed(reader.get_many, many),
        "anonymous_memory_mib": {"before": round(memory.start_mib), "peak": round(memory.peak_mib)},
    }


def bench_lmdb(folder: str, users: int, dim: int, answers: Any) -> None:
    store = LmdbStore(Path(folder) / "online")
    found = measure(store, users, dim)
    files = sum(file.stat().st_blocks * 512 for file in (Path(folder) / "online").glob("*.mdb"))
    answers.put(found | {"disk_bytes_per_user": round(files / 2 / users)})
    store.close()


def bench_redis(folder: str, users: int, dim: int, answers: Any) -> None:
    with redis_server(folder) as port:
        client = redis.Redis(port=port)
        found = measure(RedisStore(f"redis://127.0.0.1:{port}/0"), users, dim)
        used: Any = client.info("memory")
        per_user = round(used["used_memory_dataset"] / 2 / users)
        peak = round(used["used_memory_peak"] / 2**20)
        answers.put(found | {"server_bytes_per_user": per_user, "server_peak_mib_two_versions": peak})


@contextmanager
def redis_server(folder: str) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                redis.Redis(port=port, retry=Retry(NoBackoff(), 0)).ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        yield port
    finally:
        server.kill()
        server.wait()


def machine() -> str:
    names = ("lmdb", "redis", "pyarrow", "numpy")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    server = "no redis-server"
    if shutil.which("redis-server"):
        server = subprocess.run(
            ["redis-server", "--version"], capture_output=True, text=True, check=True
        ).stdout.split()[2]
    ram = psutil.virtual_memory().total / 2**30
    cores = f"{os.cpu_count()} cores, {ram:.0f} GiB, load {os.getloadavg()[0]:.1f}"
    return f"{platform.machine()}, {cores}, Python {platform.python_version()}, {packages}, redis-server {server}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--store", choices=("lmdb", "redis", "both"), default="both")
    flags = parser.parse_args()
    print(f"{flags.users:,} users x {flags.dim} floats; {machine()}", flush=True)
    for name, bench in (("lmdb", bench_lmdb), ("redis", bench_redis)):
        if flags.store not in (name, "both"):
            continue
        if name == "redis" and shutil.which("redis-server") is None:
            sys.exit("no redis-server: apt-get install redis-server")
        context = multiprocessing.get_context("spawn")
        answers = context.Queue()
        with tempfile.TemporaryDirectory() as folder:
            child = context.Process(target=bench, args=(folder, flags.users, flags.dim, answers))
            child.start()
            child.join()
            if child.exitcode != 0:
                sys.exit(f"{name}: the benchmark failed")
            print(json.dumps({"store": name} | answers.get(), indent=2), flush=True)


if __name__ == "__main__":
    main()
