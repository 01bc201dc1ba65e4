"""Steps of every training around its epochs: name, start warm, write the bundle, log, record, delete old files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import Tensor

from jobs.lake.day import BasisDay
from jobs.lake.lake import Metrics
from jobs.registry.bundles import bundle_folder, prune_bundles
from jobs.registry.records import curve_metrics, earlier_bundle, is_marked, record_model, training_name
from jobs.registry.tracking import TrainingRecord, track
from jobs.runtime.code_version import code_version
from jobs.runtime.progress import say
from lte_models.training.bundle import Bundle, save_bundle
from lte_models.training.manifest import MANIFEST, Manifest
from lte_models.training.trainer import discard_other


@dataclass(frozen=True)
class Training:
    """The training of one model for one data day.

    Attributes:
        day: Its lake gets the row of table model_runs; its deployment owns the bundles and the tracking.
        job: Task that trains.
        kind: "autoencoder" or "ranker".
        settings: Settings of the model, plain values.
    """

    day: BasisDay
    job: str
    kind: str
    settings: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Folder of the bundle."""
        return bundle_folder(self.day.deployment, self.kind, self.day.ds)


@dataclass(frozen=True)
class Start:
    """Start of a training.

    Attributes:
        name: Hash of everything that decides the result; a checkpoint with another name is discarded, not resumed.
        n_warm: Items whose weights came from the earlier bundle.
        at: When this process started the training, Unix time in seconds. Only MLflow's page shows it.
    """

    name: str
    n_warm: int
    at: float = field(default_factory=time.time, compare=False)


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        config: Configuration of the model, plain JSON values, for the manifest.
        lte_window: Window of the LTEs that the model reads or makes: "365-60"; empty if it uses no LTE.
        weights: Name to tensor.
        item_ids: Vocabulary in row order.
        curve: One entry per epoch.
        metrics: Validation values at the end.
        size_name: Name of the number of items in the report: "n_items".
        half_life_days: Half-life of the LTEs that the model reads; None where the LTEs are no recency averages.
    """

    config: Mapping[str, Any]
    lte_window: str
    weights: Mapping[str, Tensor]
    item_ids: Sequence[str]
    curve: Sequence[Mapping[str, float]]
    metrics: Mapping[str, float]
    size_name: str
    half_life_days: float | None = None


def start(training: Training, digest: str, take_over: Callable[[Bundle], int]) -> Start:
    """Take over the weights of the day before, and discard a checkpoint that belongs to other data or settings.

    Args:
        training: The training.
        digest: Hash of the data and of the model's shape.
        take_over: Loads the weights of an earlier bundle that fit the new model; returns the number of such items.

    Raises:
        lte_models.training.manifest.BundleError: The bundle of the day before is damaged.
    """
    earlier = None if _is_cold(training) else earlier_bundle(training.day, training.kind)
    n_warm = take_over(earlier) if earlier else 0
    weights = earlier.manifest.weights_sha256 if earlier else ""
    name = training_name(digest, training.settings, training.day.basis_version, weights)
    discard_other(training.folder, name)
    return Start(name, n_warm)


def _is_cold(training: Training) -> bool:
    """Whether the training starts from scratch because validate of the day before marked it; the log says so."""
    is_cold = is_marked(training.day, training.kind)
    if is_cold:
        ds, before = training.day.ds, training.day.ds - timedelta(days=1)
        say(training.job, f"ds {ds}: validate of {before} marked the {training.kind}: it starts from scratch")
    return is_cold


def finish(training: Training, started: Start, trained: Trained, staged: Sequence[Path]) -> Metrics:
    """Write the bundle, log it to MLflow, record it in model_runs, and delete old bundles and staged rows.

    After a kill at any point, a rerun finishes the work: each step replaces its own earlier result.

    Args:
        training: The training.
        started: From :func:`start`.
        trained: Result.
        staged: Folders with copies of the training rows; they hold user ids and are deleted.

    Returns:
        The job's metrics: validation values, ``n_epochs``, the number of items, ``n_warm``, and the curves.

    Raises:
        lte_models.training.manifest.BundleError: A weight is not finite.
    """
    written = save_bundle(training.folder, _manifest(training, trained), trained.weights, trained.item_ids)
    track(training.day.deployment, _tracking_record(training, started, trained, written))
    record_model(training.day.lake, training.job, written, "trained")
    prune_bundles(training.day.deployment, training.kind, training.day.ds)
    for folder in staged:
        shutil.rmtree(folder)
    sizes = {"n_epochs": len(trained.curve), trained.size_name: len(trained.item_ids), "n_warm": started.n_warm}
    metrics: Metrics = {name: float(value) for name, value in {**trained.metrics, **sizes}.items()}
    return metrics | curve_metrics(trained.curve)


def _manifest(training: Training, trained: Trained) -> Manifest:
    """The manifest; :func:`save_bundle` fills in the hashes of weights and vocabulary."""
    return Manifest(
        kind=training.kind,
        config=trained.config,
        basis_version=training.day.basis_version,
        lte_window=trained.lte_window,
        ds=training.day.ds.isoformat(),
        vocabulary_hash="",
        code_version=code_version(),
        metrics=trained.metrics,
        half_life_days=trained.half_life_days,
    )


def _tracking_record(training: Training, started: Start, trained: Trained, written: Manifest) -> TrainingRecord:
    sizes = {"basis_version": training.day.basis_version, trained.size_name: len(trained.item_ids)}
    return TrainingRecord(
        kind=training.kind,
        ds=training.day.ds.isoformat(),
        fingerprint=started.name,
        parameters={**training.settings, **sizes},
        curve=trained.curve,
        metrics=trained.metrics,
        artefact=training.folder / MANIFEST,
        weights_sha256=written.weights_sha256,
        started=started.at,
        source=f"jobs.{training.job}",
    )
