"""A small shop that a ranker can learn: two tastes, habits of a week, users of a year and users of a month."""

from __future__ import annotations

import shutil
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.sql import SparkSession

from jobs.build_examples import missing_anchors, write_examples
from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake
from jobs.landing.event_days import refresh_event_days
from lte_builders import put, put_basis
from schemas import INTERACTIONS, ITEMS

DS = date(2020, 12, 31)
BASIS = "basis-1"
LANDED = date(2020, 1, 1)
N_ITEMS, N_USERS, DIM = 14, 24, 6
SETTINGS = {
    "LTE_RANKER__TRAIN_DAYS": "20",
    "LTE_RANKER__VALIDATION_DAYS": "3",
    "LTE_RANKER__EPOCHS": "3",
    "LTE_RANKER__DIM": "8",
    "LTE_RANKER__MAX_LENGTH": "20",
    "LTE_RANKER__CUTOFF": "5",
    "LTE_RANKER__NEGATIVES_SHARE": "1.0",
    "LTE_RANKER__LEARNING_RATE": "0.01",
    "LTE_RANKER__GATE_DAYS": "1",
    "LTE_RANKER__GATE_MIN_USERS": "2",
    "LTE_TRACKING__URI": "",
}

Row = tuple[str, str, date]


def taste(user: int) -> list[int]:
    """The six items that a user takes from."""
    return list(range(6)) if user % 2 == 0 else list(range(6, 12))


def shop_rows() -> list[Row]:
    """Every second day a user takes two items of a taste. One user takes item 12 once, and no user takes item 13."""
    rng = np.random.default_rng(5)
    rows: list[Row] = []
    for user in range(N_USERS):
        first = 150 if user < N_USERS // 2 else 40  # the others have no interaction in the long window
        for back in range(first - user % 2, -1, -2):
            chosen = rng.choice(taste(user), size=2, replace=False, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1])
            rows += [(f"u{user:02d}", f"i{item:02d}", DS - timedelta(days=back)) for item in chosen.tolist()]
    return [*rows, ("u00", "i12", DS - timedelta(days=30))]


def put_rows(lake: Lake, rows: list[Row]) -> None:
    """Append interactions at noon, and count them in event_days as ingest does."""
    noon = [datetime(day.year, day.month, day.day, 12, tzinfo=UTC) for _, _, day in rows]
    put(lake, INTERACTIONS, [(u, i, ts, "purchase", "", None, d, d) for (u, i, d), ts in zip(rows, noon, strict=True)])
    refresh_event_days(lake, sorted({day for _, _, day in rows}))


def vectors() -> dict[str, list[float]]:
    """Unit vectors; items of one taste have similar vectors."""
    rng = np.random.default_rng(6)
    centres = rng.normal(size=(3, DIM))
    made = [centres[item // 6] + 0.5 * rng.normal(size=DIM) for item in range(N_ITEMS)]
    return {f"i{item:02d}": (vector / np.linalg.norm(vector)).tolist() for item, vector in enumerate(made)}


def settings(lake: Lake, file: Path, **changes: Any) -> Deployment:
    """The deployment of a lake, with changes like ``ranker__epochs=1``."""
    environ = SETTINGS | {"LTE_PATHS__LAKE": lake.root}
    environ |= {f"LTE_{name.upper()}": str(value) for name, value in changes.items()}
    return load_deployment(file, environ=environ)


def make_shop(spark: SparkSession, folder: Path, file: Path, rows: list[Row] | None = None) -> Lake:
    """A lake with interactions, catalogue, basis and the examples that a run of DS reads."""
    lake = Lake(spark, str(folder))
    put_rows(lake, shop_rows() if rows is None else rows)
    put_basis(lake, vectors(), basis_version=BASIS)
    brand = {f"i{item:02d}": "left" if item < 6 else "right" for item in range(N_ITEMS)}
    rows_of_items = [
        {"item_id": item, "title": item, "brand": name, "landing_ds": LANDED} for item, name in brand.items()
    ]
    put(lake, ITEMS, [tuple(row.get(name) for name in ITEMS.columns) for row in rows_of_items])
    add_examples(lake, settings(lake, file), DS)
    return lake


def add_examples(lake: Lake, deployment: Deployment, ds: date) -> None:
    """What build_examples does on ``ds``."""
    day = BasisDay(lake, deployment, ds, BASIS)
    write_examples(day, missing_anchors(day))


def copy_of(lake: Lake, folder: Path) -> Lake:
    """A lake of its own for a test that writes."""
    shutil.copytree(lake.root, folder)
    return Lake(lake.spark, str(folder))
