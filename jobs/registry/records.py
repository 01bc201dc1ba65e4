"""Records of trainings: the bundle of the day before, the name of a training, its row in model_runs, its curves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import date, timedelta

from jobs.lake.day import BasisDay, Day
from jobs.lake.lake import Lake, Metrics
from jobs.lake.predicates import Predicate
from jobs.lake.reader import lake_reader
from jobs.registry.bundles import bundle_folder
from jobs.runtime.code_version import code_version
from lte_models.training.bundle import Bundle, load_bundle
from lte_models.training.manifest import MANIFEST, Manifest, read_manifest
from schemas import METRICS, MODEL_RUNS

# Metric of validate, labelled method/window: 1 where the next training of the method starts from scratch.
RETRAIN = "retrain_from_scratch"


def earlier_bundle(day: BasisDay, kind: str) -> Bundle | None:
    """The bundle of the day before, to start from; None if there is no bundle in this basis.

    Args:
        day: Day of the run, and the basis of the weights; weights of another basis have another meaning.
        kind: "autoencoder" or "ranker".

    Raises:
        lte_models.training.bundle.BundleError: The bundle is damaged.
    """
    folder = bundle_folder(day.deployment, kind, day.ds - timedelta(days=1))
    if not (folder / MANIFEST).exists() or read_manifest(folder).basis_version != day.basis_version:
        return None
    return load_bundle(folder, kind=kind)


def is_marked(day: Day, kind: str) -> bool:
    """Whether validate of the day before marked that this training starts from scratch.

    Args:
        day: Day of the training.
        kind: "autoencoder" or "ranker".
    """
    where: Predicate = {"ds": day.ds - timedelta(days=1), "job": "validate", "metric": RETRAIN}
    rows = lake_reader(day.deployment).rows(METRICS, columns=["label", "value"], where=where)
    return any(row["value"] and row["label"].split("/")[0] == kind for row in rows)


def training_name(digest: str, settings: Mapping[str, object], basis_version: str, start: str) -> str:
    """Name a training by everything that decides its result. A checkpoint with another name is discarded, not resumed.

    Args:
        digest: Digest of the data.
        settings: Settings of the model.
        basis_version: Basis that numbers the items.
        start: Digest of the weights that the training starts from; empty for a cold start.

    Returns:
        Hex digits.
    """
    named = {"digest": digest, "settings": settings, "basis_version": basis_version, "start": start}
    return hashlib.sha256(json.dumps(named | {"code": code_version()}, sort_keys=True).encode()).hexdigest()


def record_model(lake: Lake, job: str, manifest: Manifest, outcome: str, reason: str = "") -> None:
    """Write the row of a job and ds in table model_runs; a rerun replaces it.

    Args:
        lake: Gets the row.
        job: Job.
        manifest: Manifest of the bundle.
        outcome: One of :data:`schemas.operations.MODEL_OUTCOMES`.
        reason: For a person.
    """
    ds = date.fromisoformat(manifest.ds)
    row = {name: getattr(manifest, name, None) for name in MODEL_RUNS.columns}
    row |= {"outcome": outcome, "reason": reason, "ds": ds, "job": job}
    lake.replace_rows([tuple(row[name] for name in MODEL_RUNS.columns)], MODEL_RUNS, {"ds": ds, "job": job})


def curve_metrics(curve: Sequence[Mapping[str, float]]) -> Metrics:
    """Metrics ``loss`` and ``validation`` labelled ``epoch N``, from 1: the curves of the report.

    Args:
        curve: One entry per epoch, of :class:`lte_models.training.trainer.Progress`.
    """
    return {(name, f"epoch {n}"): value for n, epoch in enumerate(curve, start=1) for name, value in epoch.items()}
