"""What the models read from the lake beside their examples: item numbers, the basis matrix, folders of bundles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql.types import StructField, StructType

from jobs.bundles import ModelError, bundle_folder, models_folder, prune_bundles
from jobs.config import Deployment, code_version
from jobs.tables import Lake
from lte_models.checkpoint import MANIFEST, Bundle, Manifest, load_bundle, read_manifest
from schemas import ITEM_EMBEDDINGS, MODEL_RUNS

__all__ = [
    "FloatMatrix",
    "ModelError",
    "basis_matrix",
    "bundle_folder",
    "curve_metrics",
    "earlier_bundle",
    "fingerprint",
    "item_ids",
    "models_folder",
    "prune_bundles",
    "record_model",
    "vector_rows",
]

FloatMatrix = npt.NDArray[np.float32]


def earlier_bundle(deployment: Deployment, kind: str, ds: date, basis_version: str) -> Bundle | None:
    """The bundle of the day before, to start from; None where there is none in this basis.

    Args:
        deployment: Whose.
        kind: "autoencoder" or "ranker".
        ds: Data day of the run.
        basis_version: Weights of another basis mean something else.

    Raises:
        lte_models.checkpoint.CheckpointError: The bundle is damaged.
    """
    folder = bundle_folder(deployment, kind, ds - timedelta(days=1))
    if not (folder / MANIFEST).exists() or read_manifest(folder).basis_version != basis_version:
        return None
    return load_bundle(folder, kind=kind)


def fingerprint(digest: str, settings: Mapping[str, object], basis_version: str, start: str) -> str:
    """Name a training by everything that decides its result: a checkpoint of another is not gone on with.

    Args:
        digest: Of the data.
        settings: Of the model.
        basis_version: Basis that numbers the items.
        start: Digest of the weights that it starts from; empty for none.

    Returns:
        Hex digits.
    """
    named = {"digest": digest, "settings": settings, "basis_version": basis_version, "start": start}
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
    where = {"basis_version": basis_version}
    parts = [
        (batch.column("item_index").to_numpy(), vector_rows(batch.column("embedding")))
        for batch in lake.batches(ITEM_EMBEDDINGS, columns=("item_index", "embedding"), where=where)
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


def vector_rows(column: pa.Array) -> FloatMatrix:
    """A list column as a matrix.

    Args:
        column: list<float> of B rows.

    Returns:
        float32 [B, D].

    Raises:
        ModelError: The lists have different lengths.
    """
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    if len(set(lengths.tolist())) > 1:
        raise ModelError(f"table item_embeddings: vectors of {min(lengths)} and of {max(lengths)} floats in one basis")
    values: FloatMatrix = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return values.reshape(len(column), -1)


def item_ids(lake: Lake, basis_version: str) -> list[str]:
    """Item ids of a basis, place = item_index."""
    found: dict[int, str] = {}
    for batch in lake.batches(
        ITEM_EMBEDDINGS, columns=("item_index", "item_id"), where={"basis_version": basis_version}
    ):
        found |= dict(zip(batch.column("item_index").to_pylist(), batch.column("item_id").to_pylist(), strict=True))
    return [found[index] for index in range(len(found))]


def record_model(lake: Lake, job: str, manifest: Manifest, outcome: str, reason: str = "") -> None:
    """Write the row of a job and ds in table model_runs; a rerun replaces it.

    Args:
        lake: Where to.
        job: Job.
        manifest: Of the bundle.
        outcome: One of :data:`schemas.operations.MODEL_OUTCOMES`.
        reason: For a person.
    """
    ds = date.fromisoformat(manifest.ds)
    row = {name: getattr(manifest, name, None) for name in MODEL_RUNS.columns}
    row |= {"outcome": outcome, "reason": reason, "ds": ds, "job": job}
    schema = StructType([StructField(field.name, field.dataType) for field in MODEL_RUNS.schema])
    rows = lake.spark.createDataFrame([tuple(row[name] for name in MODEL_RUNS.columns)], schema)
    lake.replace(rows, MODEL_RUNS, {"ds": ds, "job": job})


def curve_metrics(curve: Sequence[Mapping[str, float]]) -> dict[str | tuple[str, str], float]:
    """Metrics ``loss`` and ``held_out`` labelled ``epoch N``, from 1: the curves of the report.

    Args:
        curve: One entry an epoch, of :class:`lte_models.train.Progress`.
    """
    return {(name, f"epoch {n}"): value for n, epoch in enumerate(curve, start=1) for name, value in epoch.items()}
