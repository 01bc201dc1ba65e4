"""What a training of an experiment is told, the files that it reads and writes, and how its weights are fitted."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from jobs.config.models import AutoencoderSection, ExperimentSection
from jobs.experiments.examples import read_candidates
from jobs.experiments.plan import Variant
from jobs.ranker.items import CandidateItems
from jobs.runtime.code_version import code_version
from lte_models.files import replacing
from lte_models.ranker.examples import ExampleBatch
from lte_models.training.trainer import BatchT, Progress, Task, TrainConfig, Trainer

CUTOFF = 500
TOP = 10

# Settings that change no result of a training.
OPERATIONAL = (
    "parallel",
    "budget_minutes",
    "powers",
    "sequence_days",
    "seeds",
    "offsets_days",
    "stability_methods",
    "history",
)


@dataclass(frozen=True)
class Work:
    """One training, or the scoring of the baselines.

    Attributes:
        folder: Folder of the staged rows, the shop and the results.
        result: Name of the result: the hash of everything that decides the result.
        variant: Variant to train; None scores the baselines.
        seed: Seed of weights, order, dropout and negatives.
        settings: Sizes.
        n_types: Number of interaction types.
        autoencoder: Name of the autoencoder's result, if an autoencoder computes the LTEs of the variant; else empty.
    """

    folder: Path
    result: str
    variant: Variant | None
    seed: int
    settings: ExperimentSection
    n_types: int
    autoencoder: str = ""


@dataclass(frozen=True)
class AutoencoderWork:
    """One training of the autoencoder.

    Attributes:
        folder: Folder of the staged histories, the shop and the results.
        result: Name of the result.
        power: Power factor of the negatives.
        seed: Seed of weights, order and negatives.
        settings: Sizes.
        autoencoder: Section [autoencoder]: rates and batch size.
    """

    folder: Path
    result: str
    power: float
    seed: int
    settings: ExperimentSection
    autoencoder: AutoencoderSection


def result_name(named: dict[str, Any]) -> str:
    """Hash of everything that decides a result, the version of the code included."""
    content = json.dumps(named | {"code": code_version()}, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def sizes_of(settings: ExperimentSection) -> dict[str, Any]:
    """Settings that decide the result of a training."""
    return {name: value for name, value in asdict(settings).items() if name not in OPERATIONAL}


def result_file(folder: Path, result: str) -> Path:
    """Path of a result."""
    return folder / "results" / f"{result}.npz"


def prepare_worker() -> None:
    """Settings of a worker process: one thread, and no time for filling memory."""
    torch.set_num_threads(1)
    switches: Any = torch.utils.deterministic  # replaces itself by an object whose attributes no stub names
    switches.fill_uninitialized_memory = False  # saves time; deterministic kernels never read uninitialised memory


def write_result(file: Path, seconds: float, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write the arrays of a finished piece of work; a kill leaves no incomplete file."""
    with replacing(file) as unfinished, unfinished.open("wb") as stream:
        np.savez(stream, allow_pickle=False, seconds=np.array(seconds), **arrays)


@lru_cache(maxsize=1)
def staged_shop(folder: Path) -> CandidateItems:
    """The shop of a folder, read once by a worker."""
    return read_candidates(folder / "shop")


def staged_files(folder: Path, examples: str, part: str) -> list[Path]:
    """Files of one part of a set of examples."""
    return sorted((folder / examples / part).glob("*.parquet"))


LteMaker = Callable[[ExampleBatch], tuple[Tensor, Tensor]]


def train_config(epochs: int, learning_rate: float, seed: int) -> TrainConfig:
    """Settings of a training of fixed length: it does not stop early.

    Args:
        epochs: Number of passes over the examples.
        learning_rate: Learning rate of the first step.
        seed: Seed of dropout and negatives.
    """
    return TrainConfig(epochs=epochs, learning_rate=learning_rate, patience=epochs, seed=seed)


def fit(
    model: nn.Module,
    loss: Callable[[BatchT, torch.Generator], Tensor],
    batches: Callable[[int], Iterable[BatchT]],
    validate: Callable[[], float] | None,
    config: TrainConfig,
    n_steps: int = 0,
) -> Progress:
    """Train for a fixed number of epochs with a falling learning rate.

    A training takes a minute or two, so there is no checkpoint.

    Args:
        model: Model to train.
        loss: Loss of a batch.
        batches: Epoch to its batches.
        validate: Value after each epoch; the best epoch is kept. None keeps the last one.
        config: Result of :func:`train_config`.
        n_steps: Steps of an epoch: the rate falls linearly to 0 with the last one. With 0 it falls after each epoch.

    Returns:
        Curve and seconds.

    Raises:
        FloatingPointError: The loss or a validation value is not finite.
    """

    def rate(progress: Progress) -> float:
        done = progress.total_steps / n_steps if n_steps else float(progress.epoch)
        return max(0.0, 1 - done / config.epochs)

    return Trainer(Task(model, loss, batches, validate, "", rate=rate), config, None).run()


def curve_arrays(progress: Progress) -> dict[str, npt.NDArray[Any]]:
    """``curve``: the mean training loss of each epoch. ``train_seconds``: the seconds of the training steps alone."""
    return {
        "curve": np.array([entry["loss"] for entry in progress.curve]),
        "train_seconds": np.array(progress.seconds),
    }


def remove_staged(folder: Path) -> None:
    """Delete the local copies of examples and histories, because the erasure of a user works on the tables."""
    for each in folder.iterdir() if folder.exists() else ():
        if each.is_dir() and each.name != "results":
            shutil.rmtree(each)


AnyWork = Work | AutoencoderWork
