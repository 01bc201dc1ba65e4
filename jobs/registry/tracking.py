"""MLflow: one run per training, and a registered model whose alias ``live`` names what is live.

A run has parameters, source, true times, curves by epoch, the manifest, and later the metrics of the test day beside
those of the baselines.

The bundle's manifest is the record that jobs rely on; MLflow is for people. So a tracking server that is down causes a
warning, and never stops a training. MLflow takes seconds to import, so it is loaded only here, after the training.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.config.sections import Deployment
from jobs.registry.bundles import models_folder
from jobs.runtime.code_version import code_version
from jobs.runtime.entry import say
from lte_models.training.manifest import Manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient


LOCAL = "local"
TAG = "lte.fingerprint"
DAY_TAG, KIND_TAG, WEIGHTS_TAG = "lte.ds", "lte.kind", "lte.weights_sha256"
ALIAS = "live"

# Without this tag MLflow's pages guess the kind of an experiment, and may show the view for language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
MOST_METRICS = 1000  # of one request to MLflow
DATABASE, ARTIFACTS = "mlflow.db", "mlflow_artifacts"

# Set before MLflow is loaded: no usage reports, and only seconds of waiting for a server that does not answer.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


@dataclass(frozen=True)
class TrainingRecord:
    """Record of a training for MLflow.

    Attributes:
        kind: "ranker" or "autoencoder".
        ds: Data day, ISO.
        fingerprint: Names data and settings; the same training is logged once.
        parameters: Settings.
        curve: One entry per epoch.
        metrics: Metrics at the end.
        artefact: File to keep: the manifest.
        weights_sha256: SHA-256 of the weights: names the version of the registered model.
        started: Start of the training, Unix time in seconds; 0 if it is not known.
        source: Module that trained: ``jobs.train_ranker``.
    """

    kind: str
    ds: str
    fingerprint: str
    parameters: Mapping[str, object]
    curve: Sequence[Mapping[str, float]]
    metrics: Mapping[str, float]
    artefact: Path
    weights_sha256: str = ""
    started: float = 0.0
    source: str = ""


def tracking_uri(deployment: Deployment) -> str:
    """URI for MLflow; empty if tracking is off. ``local`` is SQLite beside the bundles."""
    uri = deployment.tracking.uri
    return f"sqlite:///{models_folder(deployment)}/{DATABASE}" if uri == LOCAL else uri


def track(deployment: Deployment, record: TrainingRecord) -> str | None:
    """Log a training, unless it has been logged.

    Args:
        deployment: Names the tracking server.
        record: Record to log.

    Returns:
        Id of the run; None if tracking is off or failed. A failure is reported on standard error.
    """
    return _tried(deployment, f"{record.kind} of ds {record.ds} is not logged", lambda at: _tracked(at, record))


def track_test_day(deployment: Deployment, manifest: Manifest, metrics: Mapping[tuple[str, str], float]) -> None:
    """Add the metrics of the test day to the run of a training, those of baselines beside those of the candidate.

    Args:
        deployment: Names the tracking server.
        manifest: Manifest of the candidate; its weights name the run.
        metrics: (metric, model) to value, over all users; the model ``candidate`` is this training.
    """
    what = f"the test day of the {manifest.kind} of ds {manifest.ds} is not logged"
    _tried(deployment, what, lambda at: _add_test_day(at, manifest, metrics))


def follow_live(deployment: Deployment, kind: str, weights_sha256: str) -> None:
    """Move the alias ``live`` of the registered model to the version with these weights.

    Args:
        deployment: Names the tracking server.
        kind: "ranker".
        weights_sha256: Weights of the model that is live now.
    """
    what = f"the alias {ALIAS} of the {kind} stays where it was"
    _tried(deployment, what, lambda at: _move_alias(at, kind, weights_sha256))


@dataclass(frozen=True)
class _At:
    """A tracking server, the experiment of a deployment there, and the prefix of its registered models."""

    client: MlflowClient
    experiment: str
    deployment: str

    def model(self, kind: str) -> str:
        """Name of the registered model of a kind."""
        return f"{self.deployment}-{kind}"

    def run_of(self, kind: str, weights_sha256: str) -> str | None:
        """Id of the newest run that trained these weights."""
        wanted = f"tags.`{KIND_TAG}` = '{kind}' and tags.`{WEIGHTS_TAG}` = '{weights_sha256}'"
        found = self.client.search_runs([self.experiment], wanted, max_results=1)
        return str(found[0].info.run_id) if found else None


def _tried(deployment: Deployment, what: str, act: Callable[[_At], str | None]) -> str | None:
    """Do something at the tracking server; whatever goes wrong there is reported and stops nothing."""
    uri = tracking_uri(deployment)
    if not uri:
        return None
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return act(_open(deployment, uri))
    except Exception as error:  # whatever goes wrong in MLflow or behind it, the bundles and the pointer are right
        say("tracking", f"{what} at {uri}: {error}")
        return None


def _open(deployment: Deployment, uri: str) -> _At:
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if deployment.tracking.uri == LOCAL:
        follow_moved_lake(models_folder(deployment))
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    return _At(client, _experiment(client, deployment), deployment.deployment.name)


def _tracked(at: _At, record: TrainingRecord) -> str:
    wanted = f"tags.`{TAG}` = '{record.fingerprint}' and attributes.status = 'FINISHED'"
    found = at.client.search_runs([at.experiment], wanted)
    if found:
        return str(found[0].info.run_id)
    run_id = _logged(at.client, at.experiment, record)
    _register(at, record, run_id)
    # Last, so that a kill before this line leaves no finished run, and a rerun logs everything again.
    at.client.set_terminated(run_id)
    return run_id


def _register(at: _At, record: TrainingRecord, run_id: str) -> None:
    """Add a version of the registered model; its source is the artefact folder of the run."""
    name, tags = at.model(record.kind), {WEIGHTS_TAG: record.weights_sha256, DAY_TAG: record.ds}
    if not at.client.search_registered_models(f"name = '{name}'"):
        at.client.create_registered_model(name, description=f"The {record.kind} of deployment {at.deployment}.")
    source = at.client.get_run(run_id).info.artifact_uri
    at.client.create_model_version(name, source, run_id, tags=tags)


def _move_alias(at: _At, kind: str, weights_sha256: str) -> None:
    wanted = f"name = '{at.model(kind)}' and tag.`{WEIGHTS_TAG}` = '{weights_sha256}'"
    found = at.client.search_model_versions(wanted, order_by=["version_number DESC"], max_results=1)
    if not found:
        raise LookupError(f"no version with weights {weights_sha256[:12]} is registered")
    at.client.set_registered_model_alias(at.model(kind), ALIAS, found[0].version)


def _add_test_day(at: _At, manifest: Manifest, metrics: Mapping[tuple[str, str], float]) -> None:
    from mlflow.entities import Metric

    run_id = at.run_of(manifest.kind, manifest.weights_sha256)
    if run_id is None:
        raise LookupError(f"no run with weights {manifest.weights_sha256[:12]} was logged")
    now = int(time.time() * 1000)
    rows = [
        Metric(f"test_{metric}" if model == "candidate" else f"test_{metric}/{model}", value, now, 0)
        for (metric, model), value in metrics.items()
        if math.isfinite(value)
    ]
    at.client.log_batch(run_id, metrics=rows[:MOST_METRICS])


def follow_moved_lake(models: Path) -> None:
    """Make the local database name the folder of artefacts beside it.

    MLflow keeps absolute addresses. In a lake that was moved or copied, the addresses still name the old place. So a
    training in the copy would write into the original.

    Args:
        models: Folder of the database.
    """
    if not (models / DATABASE).exists():
        return
    now = (models / ARTIFACTS).as_uri()
    ours = "artifact_location LIKE ? AND artifact_location <> ?"
    with closing(sqlite3.connect(models / DATABASE)) as database, database:  # one transaction
        try:
            moved = database.execute(
                f"SELECT experiment_id, artifact_location FROM experiments WHERE {ours}",  # noqa: S608, a constant
                (f"%/{ARTIFACTS}", now),
            ).fetchall()
        except sqlite3.OperationalError:
            return  # MLflow was stopped before it made its tables; it makes them now
        for experiment, before in moved:
            database.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                (now, len(before) + 1, experiment, len(before) + 1, f"{before}/"),
            )
            database.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (now, experiment))
            for column in ("source", "storage_location"):
                database.execute(
                    f"UPDATE model_versions SET {column} = ? || substr({column}, ?) "  # noqa: S608, constants
                    f"WHERE substr({column}, 1, ?) = ?",
                    (now, len(before) + 1, len(before) + 1, f"{before}/"),
                )


def _experiment(client: MlflowClient, deployment: Deployment) -> str:
    name = deployment.tracking.experiment or deployment.deployment.name
    found = client.get_experiment_by_name(name)
    if found is not None:
        for tag, value in EXPERIMENT_TAGS.items():
            if tag not in found.tags:  # made by an earlier version; a person may have chosen another kind
                client.set_experiment_tag(found.experiment_id, tag, value)
        return str(found.experiment_id)
    # A local store would put artefacts into the working directory.
    is_local = deployment.tracking.uri == LOCAL
    location = (models_folder(deployment) / ARTIFACTS).as_uri() if is_local else None
    return str(client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))


def _logged(client: MlflowClient, experiment: str, record: TrainingRecord) -> str:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    began = int(record.started * 1000) or now
    run = client.create_run(experiment, began, _tags(record), run_name=f"{record.kind} {record.ds}")
    curve = [
        Metric(name, value, now, epoch) for epoch, entry in enumerate(record.curve) for name, value in entry.items()
    ]
    final = [Metric(name, value, now, len(record.curve)) for name, value in record.metrics.items()]
    parameters = [Param(name, str(value)) for name, value in record.parameters.items()]
    client.log_batch(run.info.run_id, metrics=[*curve, *final], params=parameters)
    client.log_artifact(run.info.run_id, str(record.artefact))
    return str(run.info.run_id)


def _tags(record: TrainingRecord) -> dict[str, str]:
    ours = {TAG: record.fingerprint, KIND_TAG: record.kind, DAY_TAG: record.ds, WEIGHTS_TAG: record.weights_sha256}
    source = {"mlflow.source.name": record.source, "mlflow.source.type": "JOB", "lte.code_version": code_version()}
    return ours | (source if record.source else {})
