"""What the models read from the lake beside their examples: item numbers, the basis matrix, folders of bundles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.config import Deployment, code_version
from jobs.tables import Lake
from schemas import ITEM_EMBEDDINGS

FloatMatrix = npt.NDArray[np.float32]


class ModelError(RuntimeError):
    """A model cannot be trained, used or made live; the message names table and ds."""


def bundle_folder(deployment: Deployment, kind: str, ds: date) -> Path:
    """Folder of the bundle that a run trains.

    Args:
        deployment: Whose lake holds it, under ``models``.
        kind: "autoencoder" or "ranker".
        ds: Data day of the run.

    Raises:
        ModelError: The lake is not a folder.
    """
    if "://" in deployment.paths.lake:
        raise ModelError(f"paths.lake = {deployment.paths.lake!r}: bundles need a lake that is a mounted folder")
    return Path(deployment.paths.lake) / "models" / kind / f"ds={ds.isoformat()}"


def fingerprint(digest: str, settings: Mapping[str, object], basis_version: str, n_warm: int) -> str:
    """Name a training by everything that decides its result: a checkpoint of another is not gone on with.

    Args:
        digest: Of the staged rows.
        settings: Of the model.
        basis_version: Basis that numbers the items.
        n_warm: Items whose weights came from an earlier bundle.

    Returns:
        Hex digits.
    """
    named = {"digest": digest, "settings": settings, "basis_version": basis_version, "n_warm": n_warm}
    return hashlib.sha256(json.dumps(named | {"code": code_version()}, sort_keys=True).encode()).hexdigest()


def basis_matrix(lake: Lake, basis_version: str) -> FloatMatrix:
    """All vectors of a basis, row = item_index; the one thing whose size is the catalogue's.

    Args:
        lake: Reads item_embeddings.
        basis_version: Which basis.

    Returns:
        float32 [n, D].

    Raises:
        ModelError: There is no vector, or one is missing or not finite.
    """
    parts = [
        (batch.column("item_index").to_numpy(), np.stack(batch.column("embedding").to_pylist()).astype(np.float32))
        for batch in lake.batches(
            ITEM_EMBEDDINGS, columns=("item_index", "embedding"), where={"basis_version": basis_version}
        )
        if batch.num_rows
    ]
    name = f"table item_embeddings, basis_version {basis_version}"
    if not parts:
        raise ModelError(f"{name}: there is no vector; run embed_items first")
    index, vectors = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    matrix = np.full((int(index.max()) + 1, vectors.shape[1]), np.nan, dtype=np.float32)
    matrix[index] = vectors
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if bad.size:
        raise ModelError(f"{name}: item_index {bad[0]} is missing or not finite ({bad.size} such items)")
    return matrix


def item_ids(lake: Lake, basis_version: str) -> list[str]:
    """Item ids of a basis, place = item_index."""
    found: dict[int, str] = {}
    for batch in lake.batches(
        ITEM_EMBEDDINGS, columns=("item_index", "item_id"), where={"basis_version": basis_version}
    ):
        found |= dict(zip(batch.column("item_index").to_pylist(), batch.column("item_id").to_pylist(), strict=True))
    return [found[index] for index in range(len(found))]
