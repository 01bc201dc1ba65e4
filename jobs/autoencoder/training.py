"""Training of the autoencoder: the vocabulary of the histories, the epochs, the bundle (ADR 0007)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.autoencoder.building import PAPER_FORM, build_autoencoder, fitted_parts, needs_parts, sampled_loss
from jobs.autoencoder.histories import HistoryReader, IntArray, _partition
from jobs.autoencoder.scores import CUTOFF, validation_scores
from jobs.basis.matrix import item_ids, load_matrix, pinned_basis
from jobs.config.models import AutoencoderSection
from jobs.lake.day import BasisDay
from jobs.lake.lake import Metrics
from jobs.lake.vectors import FloatMatrix
from jobs.registry.bundles import ModelError, bundle_folder
from jobs.registry.finish import Trained, Training, finish, start
from jobs.runtime.day import AUTOENCODER_JOB
from jobs.runtime.entry import say
from lte_models.autoencoder import Autoencoder, FittedParts
from lte_models.training.bundle import Bundle
from lte_models.training.sampling import rank_by_frequency
from lte_models.training.stream import stage
from lte_models.training.trainer import (
    Progress,
    Task,
    TrainConfig,
    Trainer,
    best_device,
    shape_of,
    warm_start,
)
from schemas import USER_HISTORIES


class NoKnownItemError(ModelError):
    """No user has an interaction with a known item in the window, so there is nothing to train on yet."""


@dataclass(frozen=True)
class Vocabulary:
    """Items that occur in the histories, most frequent first.

    Attributes:
        indices: int64 [V], item_index in rank order.
        rank_of_index: int64 [n], the inverse; -1 for other items.
        n_users: int64 [V], users that have each item.
    """

    indices: IntArray
    rank_of_index: IntArray
    n_users: IntArray


def vocabulary(histories: DataFrame, n_indices: int, what: str, max_items: int | None = None) -> Vocabulary:
    """Rank the items of histories by their number of users; items with equal numbers are ordered by item_index.

    Args:
        histories: Rows of user_histories.
        n_indices: Size of the basis.
        what: Name of the histories, for the error.
        max_items: Number of most frequent items to keep; None keeps all.

    Raises:
        NoKnownItemError: No history holds an item.
    """
    counted = histories.select(F.explode("items").alias("item_index")).groupBy("item_index").count().toArrow()
    if counted.num_rows == 0:
        raise NoKnownItemError(f"{what}: no user has a known item; there is nothing to train on")
    counts = np.zeros(n_indices, dtype=np.int64)
    counts[counted["item_index"].to_numpy()] = counted["count"].to_numpy()
    indices = rank_by_frequency(counts)[: int((counts > 0).sum())][:max_items]
    ranks = np.full(n_indices, -1, dtype=np.int64)
    ranks[indices] = np.arange(len(indices))
    return Vocabulary(indices, ranks, counts[indices])


def train(day: BasisDay) -> Metrics:
    """Train on the partition of ``ds`` and save the bundle.

    Args:
        day: Its lake holds user_histories and the basis, which gives the items of the histories their numbers.

    Returns:
        Validation ``auc``, ``recall_at_100``, ``precision_at_100``, with ``n_epochs``, ``n_vocabulary`` and ``n_warm``.

    Raises:
        NoKnownItemError: No user has a known item.
        lte_models.training.bundle.BundleError: A checkpoint is damaged.
    """
    settings, where = day.deployment.autoencoder, _partition(day.ds, day.deployment.autoencoder)
    matrix = load_matrix(pinned_basis(day.lake, day.basis_version)).vectors
    what = f"table user_histories, ds {day.ds}, lte_window {settings.window}"
    words = vocabulary(day.lake.read(USER_HISTORIES, where=where), len(matrix), what, settings.max_items)
    folder = bundle_folder(day.deployment, "autoencoder", day.ds)
    parts = day.lake.batches(USER_HISTORIES, columns=("user_id", "items", "fold"), where=where)
    rows = stage(parts, ("user_id",), folder / "rows")
    reader = HistoryReader(rows.files, words.rank_of_index, settings).with_somebody_to_train_on()
    fitted = _parts(day, words, matrix) if needs_parts(settings) else None
    model = build_autoencoder(settings, torch.from_numpy(matrix[words.indices]), fitted)
    model.to(best_device())
    names = item_ids(day.lake, day.basis_version)
    ids = [names[index] for index in words.indices]
    training = Training(day, AUTOENCODER_JOB, "autoencoder", asdict(settings))
    begun = start(training, rows.digest + shape_of(model), partial(_start_from, model, ids))
    curve = _run(model, reader, settings, folder, begun.name, is_warm=begun.n_warm > 0).curve
    scores = validation_scores(model, reader)
    metrics = {
        "auc": scores["auc"],
        f"recall_at_{CUTOFF}": scores["recall"],
        f"precision_at_{CUTOFF}": scores["precision"],
    }
    trained = Trained(
        asdict(model.config), settings.window, model.state_dict(), ids, curve, metrics, size_name="n_vocabulary"
    )
    return finish(training, begun, trained, [folder / "rows"])


def _parts(day: BasisDay, words: Vocabulary, matrix: FloatMatrix) -> FittedParts:
    """What the form takes from the histories of the day and from the basis."""
    histories = day.lake.read(USER_HISTORIES, where=_partition(day.ds, day.deployment.autoencoder))
    return fitted_parts(matrix, words.n_users, histories.where(F.size("items") > 0).count())


def _run(
    model: Autoencoder, reader: HistoryReader, settings: AutoencoderSection, folder: Path, name: str, *, is_warm: bool
) -> Progress:
    config = TrainConfig(
        epochs=settings.epochs,
        learning_rate=settings.learning_rate * (settings.warm_share if is_warm else 1),
        patience=settings.patience,
        seed=settings.seed,
        judge_start=is_warm,
    )

    def validate() -> float:
        return validation_scores(model, reader)["recall"]

    task = Task(model, sampled_loss(model), reader.epoch, validate, name, partial(say, AUTOENCODER_JOB))
    return Trainer(task, config, folder).run()


def _start_from(model: Autoencoder, ids: list[str], earlier: Bundle) -> int:
    """Copy the weights of an earlier bundle of the same basis, item by item; returns the number of copied items.

    An earlier version of this code wrote bundles without a form: they have the paper's.
    """
    form = {name: earlier.manifest.config.get(name, value) for name, value in PAPER_FORM.items()}
    if form != {name: getattr(model.config, name) for name in PAPER_FORM}:
        return 0  # weights of another form mean something else
    place = {item_id: row for row, item_id in enumerate(earlier.item_ids)}
    rows = {row: place[item_id] for row, item_id in enumerate(ids) if item_id in place}
    warm_start(model, earlier.tensors, {"first.weight": rows})
    return len(rows)
