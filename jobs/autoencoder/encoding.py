"""LTEs by the autoencoder: each history encoded; the uniform average where the autoencoder knows no item."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, FloatType, IntegerType, StringType, StructField, StructType

from jobs.autoencoder.building import needs_average
from jobs.autoencoder.histories import ranked_histories
from jobs.basis.matrix import item_ids
from jobs.lake.lake import Lake
from jobs.registry.bundles import ModelError
from lte_models.autoencoder import Autoencoder, AutoencoderConfig
from lte_models.training.bundle import load_bundle, load_bundle_weights
from lte_models.training.stream import list_parts
from schemas import USER_HISTORIES, USER_LTE

METHOD = "autoencoder"
READ = ("user_id", "items", "n_unknown")

ENCODED = StructType(
    [
        StructField("user_id", StringType()),
        StructField("embedding", ArrayType(FloatType())),
        StructField("n_items", IntegerType()),
        StructField("n_unknown", IntegerType()),
    ]
)


def knows_an_item(lake: Lake, ds: date, window: str) -> bool:
    """Whether a history of ``ds`` holds a known item; otherwise train_autoencoder had nothing to train on."""
    histories = lake.read(USER_HISTORIES, where={"ds": ds, "lte_window": window})
    return not histories.where(F.size("items") > 0).isEmpty()


@dataclass(frozen=True)
class EncodeUsers:
    """The task of each partition; each process reads the weights once.

    Attributes:
        folder: Folder of the bundle, on a file system that all workers see.
        basis_version: Expected basis; a bundle of another basis is refused.
        window: Expected window; a bundle of another window is refused.
        rank_of_index: int64 [n], vocabulary rank of each item_index; -1 for an item outside the vocabulary.
    """

    folder: str
    basis_version: str
    window: str
    rank_of_index: npt.NDArray[np.int64]

    def __call__(self, parts: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Encode rows of user_histories; the embedding is null for a user who gets the uniform average."""
        model = _autoencoder(self.folder, self.basis_version, self.window)
        for part in parts:
            if part.num_rows:
                yield self._encode(pa.Table.from_batches([part]), model)

    def _encode(self, rows: pa.Table, model: Autoencoder) -> pa.RecordBatch:
        index, lengths = list_parts(rows["items"])
        histories = ranked_histories(index.astype(np.int64), lengths, self.rank_of_index, keep_empty=True)
        with torch.no_grad():
            latent = model(histories).numpy()  # [B, D]
        n_known = torch.bincount(histories.users(), minlength=len(lengths))
        n_unknown = rows["n_unknown"].to_numpy()
        has_history = (lengths > 0) | (n_unknown > 0)
        is_lost = needs_average(torch.from_numpy(has_history), n_known).numpy()
        embedding = pa.array(
            [None if lost else z for z, lost in zip(latent, is_lost, strict=True)], pa.list_(pa.float32())
        )
        counts = {"n_items": pa.array(lengths.astype(np.int32)), "n_unknown": rows["n_unknown"].combine_chunks()}
        return pa.record_batch({"user_id": rows["user_id"].combine_chunks(), "embedding": embedding, **counts})


@lru_cache(maxsize=1)
def _autoencoder(folder: str, basis_version: str, window: str) -> Autoencoder:
    torch.set_num_threads(1)  # the engine runs as many partitions at once as there are cores
    bundle = load_bundle(Path(folder), kind="autoencoder", basis_version=basis_version, lte_window=window)
    model = Autoencoder(AutoencoderConfig(**bundle.manifest.config), bundle.tensors["basis"])
    load_bundle_weights(model, bundle)
    return model.eval()


def encode_task(lake: Lake, folder: Path, basis_version: str, window: str) -> EncodeUsers:
    """Check the bundle and number its vocabulary.

    Args:
        lake: Reads item_embeddings.
        folder: Folder of the bundle.
        basis_version: Basis of the histories.
        window: Window of the histories.

    Raises:
        lte_models.training.bundle.BundleError: There is no bundle, or the bundle must not be used.
    """
    bundle = load_bundle(folder, kind="autoencoder", basis_version=basis_version, lte_window=window)
    rank = {item_id: row for row, item_id in enumerate(bundle.item_ids)}
    ranks = np.array([rank.get(item_id, -1) for item_id in item_ids(lake, basis_version)], dtype=np.int64)
    return EncodeUsers(str(folder), basis_version, window, ranks)


def autoencoder_ltes(lake: Lake, task: EncodeUsers | None, ds: date, window: str) -> DataFrame:
    """LTEs of all users of ``ds``.

    Args:
        lake: Reads user_histories, and the uniform LTEs for users whose items the autoencoder does not know.
        task: Encodes a partition. None if no user has a known item; then all users get the uniform LTE.
        ds: Data day.
        window: LTE window.

    Returns:
        user_id, embedding, n_items, n_unknown, ds, method, lte_window.

    Raises:
        ModelError: There is no history of ds, or no uniform LTEs.
    """
    histories = lake.read(USER_HISTORIES, where={"ds": ds, "lte_window": window})
    uniform = lake.read(USER_LTE, where={"ds": ds, "method": "uniform", "lte_window": window})
    for rows, what in ((histories, "table user_histories"), (uniform, "table user_lte, method uniform")):
        if rows.isEmpty():
            raise ModelError(f"{what}, ds {ds}, lte_window {window}: no row; run the job that writes it first")
    encoded = _without_a_model(histories) if task is None else histories.select(*READ).mapInArrow(task, ENCODED)
    stand_in = uniform.select("user_id", F.col("embedding").alias("average"))
    joined = encoded.join(stand_in, "user_id", "left")
    slice_ = {"ds": F.lit(ds), "method": F.lit(METHOD), "lte_window": F.lit(window)}
    whole = joined.withColumn("embedding", F.coalesce("embedding", "average")).drop("average")
    return whole.withColumns(slice_)


def _without_a_model(histories: DataFrame) -> DataFrame:
    """The rows that :class:`EncodeUsers` yields for users whose items the autoencoder does not know."""
    nothing = F.lit(None).cast(ENCODED["embedding"].dataType).alias("embedding")
    return histories.select("user_id", nothing, F.size("items").alias("n_items"), "n_unknown")
