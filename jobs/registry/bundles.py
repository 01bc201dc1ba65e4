"""Where the bundles of a deployment are, and the error that models raise; loads neither torch nor an engine."""

from __future__ import annotations

import shutil
from datetime import date, timedelta
from pathlib import Path

from jobs.config.addresses import is_url
from jobs.config.sections import Deployment


class ModelError(RuntimeError):
    """A model cannot be trained, used or made live; the message names table and ds."""


def models_folder(deployment: Deployment) -> Path:
    """Folder of all bundles, under the lake.

    Raises:
        ModelError: The lake is not a folder.
    """
    if is_url(deployment.paths.lake):
        raise ModelError(f"paths.lake = {deployment.paths.lake!r}: bundles need a lake that is a mounted folder")
    return Path(deployment.paths.lake) / "models"


def bundle_folder(deployment: Deployment, kind: str, ds: date) -> Path:
    """Folder of the bundle that a run trains.

    Args:
        deployment: Owner of the lake that holds the bundle, under ``models``.
        kind: "autoencoder" or "ranker".
        ds: Data day of the run.

    Raises:
        ModelError: The lake is not a folder.
    """
    return models_folder(deployment) / kind / f"ds={ds.isoformat()}"


def prune_bundles(deployment: Deployment, kind: str, ds: date) -> list[Path]:
    """Delete the bundles that are older than the rollback horizon; the live ranker is a copy and stays.

    Args:
        deployment: Owner of the bundles; ``retention.rollback_days`` counts back from ``ds``.
        kind: "autoencoder" or "ranker".
        ds: Data day of the run.

    Returns:
        Deleted folders.
    """
    oldest = f"ds={(ds - timedelta(days=max(1, deployment.retention.rollback_days))).isoformat()}"
    old = [path for path in (models_folder(deployment) / kind).glob("ds=????-??-??") if path.name < oldest]
    for path in old:
        shutil.rmtree(path)
    return sorted(old)
