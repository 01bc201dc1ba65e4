"""MLflow: one run per training, with parameters, curves by epoch and manifest.

The bundle's manifest is the record that jobs rely on; MLflow is for people. So a tracking server that is down causes a
warning, and never stops a training. MLflow takes seconds to import, so it is loaded only here, after the training.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.config.sections import Deployment
from jobs.registry.bundles import models_folder
from jobs.runtime.entry import say

if TYPE_CHECKING:
    from mlflow import MlflowClient


LOCAL = "local"
TAG = "lte.fingerprint"
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
    """

    kind: str
    ds: str
    fingerprint: str
    parameters: Mapping[str, object]
    curve: Sequence[Mapping[str, float]]
    metrics: Mapping[str, float]
    artefact: Path


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
    uri = tracking_uri(deployment)
    if not uri:
        return None
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return _tracked(deployment, uri, record)
    except Exception as error:  # whatever goes wrong in MLflow or behind it, the bundle is written
        say("tracking", f"{record.kind} of ds {record.ds} is not logged at {uri}: {error}")
        return None


def _tracked(deployment: Deployment, uri: str, record: TrainingRecord) -> str:
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if deployment.tracking.uri == LOCAL:
        follow_moved_lake(models_folder(deployment))
    client = MlflowClient(tracking_uri=uri)
    experiment = _experiment(client, deployment)
    found = client.search_runs(
        [experiment], f"tags.`{TAG}` = '{record.fingerprint}' and attributes.status = 'FINISHED'"
    )
    return str(found[0].info.run_id) if found else _logged(client, experiment, record)


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


def _experiment(client: MlflowClient, deployment: Deployment) -> str:
    name = deployment.tracking.experiment or deployment.deployment.name
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # A local store would put artefacts into the working directory.
    is_local = deployment.tracking.uri == LOCAL
    location = (models_folder(deployment) / ARTIFACTS).as_uri() if is_local else None
    return str(client.create_experiment(name, artifact_location=location))


def _logged(client: MlflowClient, experiment: str, record: TrainingRecord) -> str:
    from mlflow.entities import Metric, Param

    tags = {TAG: record.fingerprint, "lte.kind": record.kind, "lte.ds": record.ds}
    run = client.create_run(experiment, tags=tags, run_name=f"{record.kind} {record.ds}")
    now = int(time.time() * 1000)
    curve = [
        Metric(name, value, now, epoch) for epoch, entry in enumerate(record.curve) for name, value in entry.items()
    ]
    final = [Metric(name, value, now, len(record.curve)) for name, value in record.metrics.items()]
    parameters = [Param(name, str(value)) for name, value in record.parameters.items()]
    client.log_batch(run.info.run_id, metrics=[*curve, *final], params=parameters)
    client.log_artifact(run.info.run_id, str(record.artefact))
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)
