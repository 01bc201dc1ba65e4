"""The peer's half of bench_sasrec.py: RecTools' SASRec, run by the interpreter of an environment of its own.

Imports nothing of this project: reads arrays, writes lists of ten items.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


class EpochSeconds(Callback):
    """Time of each epoch of training."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._started = (0.0, 0.0)

    def on_train_epoch_start(self, *_: Any) -> None:
        self._started = (time.perf_counter(), time.process_time())

    def on_train_epoch_end(self, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started[0])
        self.cpu_seconds.append(time.process_time() - self._started[1])


def main(folder: Path) -> None:
    """Train on ``train.npz``, recommend to every user, write ``peer.npz`` and ``peer.json``."""
    settings = json.loads((folder / "settings.json").read_text())
    torch.set_num_threads(settings["threads"])
    seed_everything(settings["seed"], verbose=False)
    warnings.filterwarnings("ignore")
    rows = np.load(folder / "train.npz")
    # one second per row keeps the order: purchases of one basket have the same real time
    when = pd.Timestamp("2017-01-01") + pd.to_timedelta(np.arange(len(rows["users"])), unit="s")
    frame = {Columns.User: rows["users"], Columns.Item: rows["items"], Columns.Weight: 1.0, Columns.Datetime: when}
    dataset = Dataset.construct(pd.DataFrame(frame))
    model = SASRecModel(
        n_blocks=settings["blocks"],
        n_heads=settings["heads"],
        n_factors=settings["dim"],
        dropout_rate=settings["dropout"],
        session_max_len=settings["max_length"],
        loss="softmax",
        lr=settings["learning_rate"],
        batch_size=settings["batch_size"],
        epochs=settings["epochs"],
        get_trainer_func=lambda: Trainer(
            max_epochs=settings["epochs"],
            min_epochs=settings["epochs"],
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=[EpochSeconds()],
        ),
        recommend_torch_device="cpu",
    )
    model.fit(dataset)
    clock = next(each for each in model.fit_trainer.callbacks if isinstance(each, EpochSeconds))  # fit copies it
    users = np.unique(rows["users"])
    lists = model.recommend(users=users, dataset=dataset, k=settings["cutoff"], filter_viewed=False)
    lists = lists.sort_values([Columns.User, Columns.Rank])
    top = np.full((len(users), settings["cutoff"]), -1, dtype=np.int64)
    place = np.searchsorted(users, lists[Columns.User].to_numpy())
    top[place, lists[Columns.Rank].to_numpy() - 1] = lists[Columns.Item].to_numpy()
    np.savez(folder / "peer.npz", users=users, top=top)
    versions = {name: version(name) for name in ("rectools", "torch", "pytorch-lightning")}
    seconds = {"epoch_s": clock.seconds, "epoch_cpu_s": clock.cpu_seconds}
    (folder / "peer.json").write_text(json.dumps(seconds | {"versions": versions}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
