"""The LTE job alone, against a floor and a naive join, on made interactions: time, ratios and peak memory.

    python benchmarks/bench_lte.py                                 1M, 5M and 10M interactions
    python benchmarks/bench_lte.py --sizes 200000 --repeats 1      a small case

floor  the bare SciPy product, a CSR matrix that is already in memory times the vectors, and `pq.write_table` of the
       same numbers: one thread, no table read, no shuffle, no commit
job    `jobs.compute_lte.write_lte`: reads Delta, builds the mapped matrix, shuffles, multiplies, commits to Delta
naive  the obvious query in Spark SQL on the same engine: join the vectors to the interactions, average by user; one
       `avg` per dimension, which was 3 times as fast as `posexplode`

Each runs in a process of its own, floor and job in turn; ratios are medians over these pairs. The three tables are
compared number by number. Memory is the largest sum over the process and its children.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from made_shop import BASIS, DS, Events, MadeShop, events, ids, vectors, write_lake
from scipy import sparse

from jobs.compute_lte import write_lte
from jobs.config.loading import load_deployment
from jobs.config.window import LteWindow
from jobs.lake.day import BasisDay
from jobs.lake.delta_files import arrow_batches
from jobs.lake.engine.sessions import spark_session
from jobs.lake.lake import open_lake
from jobs.lte.windows import window_days
from schemas import USER_LTE

WINDOW = LteWindow(365, 60)
MAX_USERS = 200_000
LEAST_PER_USER = 5
LEAST_FREE_BYTES = 1 << 30
CONFIG = """
[deployment]
name = "bench"
[paths]
landing = "landing"
lake = "lake"
online_store = "online.lmdb"
reports = "reports"
data_docs = "data_docs"
[engine]
partitions = {partitions}
[lte]
windows = ["365-60"]
methods = ["uniform"]
"""
TIMES = ("seconds", "cpu_s")
Result = dict[str, Any]


class Clock:
    """Wall clock and processor time of this process, engine threads included, since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> Result:
        return {"seconds": time.perf_counter() - self._wall, "cpu_s": time.process_time() - self._cpu}


def make(folder: Path, shop: MadeShop, partitions: int) -> None:
    """Write the tables, and for the floor the interactions as numbers."""
    made = events(shop)
    write_lake(shop, made, folder / "lake")
    np.savez(folder / "events.npz", users=made.users, items=made.items, ages=made.ages)
    (folder / "bench.toml").write_text(CONFIG.format(partitions=partitions))


def floor(folder: Path, shop: MadeShop) -> Result:
    """Product and Parquet write; everything before is not counted."""
    loaded = np.load(folder / "events.npz")
    weights, users, n_items = _weights(shop, Events(loaded["users"], loaded["items"], loaded["ages"]))
    basis = vectors(shop)
    clock = Clock()
    lte = weights @ basis
    product_s = clock.read()["seconds"]
    offsets = pa.array(np.arange(0, lte.size + 1, shop.dim, dtype=np.int32))
    columns = {"user_id": users, "embedding": pa.ListArray.from_arrays(offsets, pa.array(lte.reshape(-1)))}
    pq.write_table(pa.table(columns | {"n_items": n_items}), folder / "floor.parquet")
    return clock.read() | {"product_s": product_s}


def _weights(shop: MadeShop, made: Events) -> tuple[sparse.csr_array, pa.Array, pa.Array]:
    """Users of the year as rows of 1 / n at their items of the long window."""
    present = np.unique(made.users)
    in_window = (made.ages >= WINDOW.end_days) & (made.ages < WINDOW.start_days)
    rows, items = np.searchsorted(present, made.users[in_window]), made.items[in_window]
    totals = np.bincount(rows, minlength=len(present))
    shape = (len(present), shop.n_items)
    counts = sparse.coo_array((np.ones(len(rows)), (rows, items)), shape=shape).tocsr()
    counts.data /= np.repeat(totals, np.diff(counts.indptr))
    return counts.astype(np.float32), ids("user-", present), pa.array(totals.astype(np.int32))


def job(folder: Path, _: MadeShop) -> Result:
    """The job's own function, on an open session."""
    deployment = load_deployment(folder / "bench.toml", environ={})
    shutil.rmtree(folder / "lake" / USER_LTE.name, ignore_errors=True)
    before = time.perf_counter()
    with open_lake(deployment, "bench") as lake:
        start_s, clock = time.perf_counter() - before, Clock()
        write_lte(BasisDay(lake, deployment, DS, BASIS))
        return clock.read() | {"engine_start_s": start_s}


def naive(folder: Path, shop: MadeShop) -> Result:
    """Join, then average, in SQL."""
    deployment = load_deployment(folder / "bench.toml", environ={})
    first, after = window_days(DS, WINDOW)
    averages = ", ".join(f"avg(embedding[{axis}])" for axis in range(shop.dim))
    query = f"""
        SELECT user_id, CAST(array({averages}) AS array<float>) AS embedding, CAST(count(*) AS int) AS n_items
        FROM interactions JOIN item_embeddings USING (item_id)
        WHERE event_date BETWEEN DATE '{first}' AND DATE '{after - timedelta(days=1)}' GROUP BY user_id"""  # noqa: S608  only numbers and dates of this script
    with spark_session(deployment.engine, "bench") as spark:
        for name in ("interactions", "item_embeddings"):
            spark.read.format("delta").load(str(folder / "lake" / name)).createOrReplaceTempView(name)
        clock = Clock()
        spark.sql(query).write.mode("overwrite").parquet(str(folder / "naive"))
        return clock.read()


PARTS: dict[str, Callable[[Path, MadeShop], Result]] = {"floor": floor, "job": job, "naive": naive}


def measured(part: str, folder: Path, *, limit_s: float, limit_mib: float) -> Result:
    """Run a part in its own process and watch its memory; past a limit the part is stopped, as its result says."""
    answer = folder / f"{part}.json"
    answer.unlink(missing_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder))  # a new folder, so that the mapped matrix is built each time
    command = [sys.executable, __file__, "--part", part, "--folder", str(folder)]
    started = time.perf_counter()
    child = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(temporary)})
    peak, stopped = 0.0, ""
    while child.poll() is None:
        peak = max(peak, _tree_mib(child.pid))
        if not stopped and (stopped := _reason(time.perf_counter() - started, peak, limit_s, limit_mib)):
            child.kill()
        time.sleep(0.02)
    shutil.rmtree(temporary, ignore_errors=True)
    seen = {"process_s": time.perf_counter() - started, "peak_mib": peak}
    if stopped:
        return seen | {"stopped": stopped, "seconds": seen["process_s"], "cpu_s": float("nan")}
    if child.returncode != 0:
        sys.exit(f"{part} failed with exit code {child.returncode}")
    told: dict[str, Any] = json.loads(answer.read_text())
    return told | seen


def _reason(took_s: float, peak_mib: float, limit_s: float, limit_mib: float) -> str:
    """Why a part must stop; empty if it may continue."""
    if took_s > limit_s:
        return f"over {limit_s:.0f} s"
    if peak_mib > limit_mib:
        return f"over {limit_mib:.0f} MiB"
    is_short = psutil.virtual_memory().available < LEAST_FREE_BYTES
    return f"at {peak_mib:.0f} MiB, when the machine had less than 1 GiB left" if is_short else ""


def _tree_mib(pid: int) -> float:
    try:
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(map(_rss, tree)) / 2**20


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def run_size(folder: Path, shop: MadeShop, args: argparse.Namespace) -> Result:
    """All parts at one size; the tables must agree."""
    (folder / "shop.json").write_text(json.dumps(vars(shop)))
    make(folder, shop, args.partitions)
    limits = {"limit_s": args.limit_seconds, "limit_mib": args.limit_mib}
    pairs = [tuple(measured(part, folder, **limits) for part in ("floor", "job")) for _ in range(args.repeats)]
    floors, jobs = (list(runs) for runs in zip(*pairs, strict=True))
    slow = measured("naive", folder, **limits)
    mine = summary(jobs)
    return {
        "interactions": shop.n_interactions,
        "users": shop.n_users,
        "floor": summary(floors),
        "job": mine,
        "naive": slow,
        "job_over_floor": {name: median(run[name] / bare[name] for bare, run in pairs) for name in TIMES},
        "naive_over_job": {name: slow[name] / mine[name] for name in TIMES},
        "largest_difference": {
            "floor": difference(folder, folder / "floor.parquet"),
            "naive": None if "stopped" in slow else difference(folder, folder / "naive"),
        },
    }


def summary(runs: list[Result]) -> Result:
    """Medians; the largest memory."""
    medians = {name: median(run[name] for run in runs) for name in runs[0]}
    return medians | {"peak_mib": max(run["peak_mib"] for run in runs)}


def difference(folder: Path, other: Path) -> float:
    """Largest absolute difference between the job's numbers and another table's.

    Raises:
        AssertionError: Users or counts differ.
    """
    columns = ["user_id", "embedding", "n_items"]
    mine = pa.Table.from_batches(arrow_batches(str(folder / "lake" / USER_LTE.name), columns=columns))
    theirs = pads.dataset(other).to_table(columns=columns)
    if theirs.num_rows < mine.num_rows:  # SQL drops users without an interaction in the window
        mine = mine.filter(pa.compute.greater(mine["n_items"], 0))
    mine, theirs = mine.sort_by("user_id"), theirs.sort_by("user_id")
    for name in ("user_id", "n_items"):
        ours, other_s = (np.asarray(table[name].to_pylist()) for table in (mine, theirs))
        assert np.array_equal(ours, other_s), f"{other}: {name} differs from the job's"
    flat = [table["embedding"].combine_chunks().flatten().to_numpy() for table in (mine, theirs)]
    return float(np.abs(flat[0] - flat[1]).max())


def shown(size: Result) -> str:
    """One size in words."""
    stop = f"   stopped: {size['naive']['stopped']}" if "stopped" in size["naive"] else ""
    lines = [f"{size['interactions']:,} interactions, {size['users']:,} users"]
    for name in PARTS:
        part = size[name]
        end = stop if name == "naive" else ""
        lines.append(
            f"  {name:6}{part['seconds']:9.2f} s {part['cpu_s']:9.2f} s of processor time"
            f"   peak {part['peak_mib']:7.0f} MiB{end}"
        )
    for name in ("job_over_floor", "naive_over_job"):
        ratio = size[name]
        least = "at least " if stop and name == "naive_over_job" else ""
        lines.append(f"  {name:15} {least}{ratio['seconds']:.2f} by the clock, {ratio['cpu_s']:.2f} in processor time")
    lines.append(f"  the engine's start took {size['job']['engine_start_s']:.2f} s beside the job's time")
    lines.append(f"  largest difference of a number: {size['largest_difference']}")
    return "\n".join(lines)


def machine() -> str:
    """The machine and the versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
    packages = ", ".join(f"{name} {version(name)}" for name in ("pysail", "deltalake", "pyarrow", "scipy", "numpy"))
    ram = psutil.virtual_memory().total / 2**30
    cores = f"{os.cpu_count()} cores, {ram:.0f} GiB, load {os.getloadavg()[0]:.1f}"
    return f"{model}, {cores}, Python {platform.python_version()}, {packages}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000000,5000000,10000000", help="interactions, comma-separated")
    parser.add_argument("--users", type=int, help=f"default: {MAX_USERS:,}, at most one for {LEAST_PER_USER} rows")
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3, help="pairs of floor and job")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--limit-seconds", type=float, default=1800, help="stop a part after so long")
    parser.add_argument("--limit-mib", type=float, default=psutil.virtual_memory().total / 2**20 * 0.6)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder, removed afterwards")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.part:
        shop = MadeShop(**json.loads((args.folder / "shop.json").read_text()))
        (args.folder / f"{args.part}.json").write_text(json.dumps(PARTS[args.part](args.folder, shop)))
        return
    print(machine(), flush=True)
    sizes = []
    for n_rows in (int(text) for text in args.sizes.split(",")):
        shop = MadeShop(n_rows, args.users or max(1, min(MAX_USERS, n_rows // LEAST_PER_USER)), args.items, args.dim)
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            sizes.append(run_size(Path(folder), shop, args))
        print(shown(sizes[-1]), flush=True)
    growth = sizes[-1]["job"]["peak_mib"] / sizes[0]["job"]["peak_mib"]
    print(f"the job's peak memory at the last size over the first: {growth:.2f}")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "sizes": sizes, "memory_growth": growth}, indent=2))


if __name__ == "__main__":
    main()
