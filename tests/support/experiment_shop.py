"""A tiny shop of three tastes for experiments and analyses, and settings under which a training takes a second."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
from pyspark.sql import SparkSession

from jobs.basis.basis import configured_basis
from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment
from jobs.lake.lake import Lake
from lte_builders import put, put_timed
from schemas import ITEM_EMBEDDINGS

DS = date(2021, 3, 31)
N_ITEMS, N_USERS, DIM = 30, 40, 8
TINY = {
    "SEEDS": "0,1",
    "TEST_DAYS": "2",
    "VALIDATION_DAYS": "1",
    "TRAIN_DAYS": "40",
    "STRIDE_DAYS": "4",
    "EPOCHS": "1",
    "DIM": "8",
    "CONTENT_DIM": "6",
    "BATCH_SIZE": "16",
    "SEQUENCE_DAYS": "60,120",
    "POWERS": "0.5,1",
    "AUTOENCODER_ITEMS": "20",
    "AUTOENCODER_EPOCHS": "1",
}


def shop_events() -> list[tuple[str, str, datetime]]:
    """Users of three tastes, ten items each; each comes every few days for 450 days."""
    rng, found = np.random.default_rng(3), []
    for number in range(N_USERS):
        for back in rng.choice(450, size=130, replace=False):
            item = 10 * (number % 3) + int(rng.integers(10)) if rng.random() < 0.8 else int(rng.integers(N_ITEMS))
            noon = datetime(DS.year, DS.month, DS.day, 12, tzinfo=UTC) - timedelta(days=int(back))
            found.append((f"u{number}", f"i{item}", noon))
    return found


def shop_lake(
    spark: SparkSession, folder: Path, events: Sequence[tuple[str, str, datetime]]
) -> tuple[Lake, Deployment]:
    config = folder / "deployment.toml"
    paths = "\n".join(f'{name} = "{name}"' for name in ("landing", "lake", "online_store", "reports", "data_docs"))
    config.write_text(
        f'[deployment]\nname = "tiny"\n[paths]\n{paths}\n[engine]\npartitions = 2\n[interactions]\ntypes = ["purchase"]'
    )
    deployment = load_deployment(config, environ={f"LTE_EXPERIMENT__{name}": value for name, value in TINY.items()})
    lake = Lake(spark, deployment.paths.lake)
    put_timed(lake, events)
    vectors = np.random.default_rng(1).normal(size=(N_ITEMS, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    basis = configured_basis(deployment)
    rows = [(f"i{i}", basis, i, "hash", "text", date(2019, 1, 1), vectors[i].tolist()) for i in range(N_ITEMS)]
    put(lake, ITEM_EMBEDDINGS, rows)
    return lake, deployment
