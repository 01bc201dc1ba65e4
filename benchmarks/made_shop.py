"""Made interactions for benchmarks: skewed items, skewed users, a year of days; the same ones for the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.lake.delta_files import table_path
from jobs.lake.lake import Lake
from schemas import EVENT_DAYS, INTERACTIONS, ITEM_EMBEDDINGS, Table

DS = date(2025, 6, 30)
N_DAYS = 365
BASIS = "bench"
CHUNK_DAYS = 37
_LONG_AGO = date(2020, 1, 1)

IntArray = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MadeShop:
    """Sizes of the made data.

    Attributes:
        n_interactions: Rows of interactions, over the year that ends with ``DS``.
        n_users: Users; their activity is log-normal with sigma 1, so a tenth of them make half of all interactions.
        n_items: Items; popularity falls as 1 / rank.
        dim: D, floats per item.
        seed: Seed of all draws.
    """

    n_interactions: int
    n_users: int
    n_items: int = 50_000
    dim: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Events:
    """Interactions as numbers, oldest day first: users, items and ages in days, int64 [n] each."""

    users: IntArray
    items: IntArray
    ages: IntArray


def events(shop: MadeShop) -> Events:
    """Draw the interactions."""
    rng = np.random.default_rng(shop.seed)
    activity = np.cumsum(rng.lognormal(0, 1, shop.n_users))
    popularity = np.cumsum(1 / np.arange(1, shop.n_items + 1))
    users = np.searchsorted(activity, rng.uniform(0, activity[-1], shop.n_interactions))
    items = np.searchsorted(popularity, rng.uniform(0, popularity[-1], shop.n_interactions))
    ages = np.sort(rng.integers(0, N_DAYS, shop.n_interactions))[::-1]
    return Events(users.astype(np.int64), items.astype(np.int64), np.ascontiguousarray(ages))


def vectors(shop: MadeShop) -> Float32Array:
    """Unit vectors, float32 [V, D]."""
    rows = np.random.default_rng((shop.seed, 1)).standard_normal((shop.n_items, shop.dim), dtype=np.float32)
    unit: Float32Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def ids(prefix: str, numbers: IntArray) -> pa.Array:
    """Numbers as ids of one length, whose order is that of the numbers."""
    distinct, place = np.unique(numbers, return_inverse=True)
    names = pa.array([f"{prefix}{number:09d}" for number in distinct.tolist()], pa.string())
    return names.take(pa.array(place))


def write_lake(shop: MadeShop, made: Events, root: Path) -> None:
    """Write interactions, event_days and item_embeddings, as ingest and embed_items leave them: one file per day."""
    for chunk in _day_chunks(made):
        deltalake.write_deltalake(_created(INTERACTIONS, root), _interaction_rows(chunk), mode="append")
    deltalake.write_deltalake(_created(EVENT_DAYS, root), _event_days(made), mode="append")
    deltalake.write_deltalake(_created(ITEM_EMBEDDINGS, root), _embedding_rows(shop), mode="append")


def _created(table: Table, root: Path) -> str:
    no_session: Any = None  # the creation of a table needs no session
    Lake(no_session, str(root)).create(table)
    return table_path(str(root), table)


def _day_chunks(made: Events) -> Iterator[Events]:
    for newest in range(N_DAYS - 1, -1, -CHUNK_DAYS):
        of_days = slice(*np.searchsorted(-made.ages, [-newest, CHUNK_DAYS - newest]))
        yield Events(made.users[of_days], made.items[of_days], made.ages[of_days])


def _dates(ages: IntArray) -> pa.Array:
    return pa.array(np.datetime64(DS, "D") - ages.astype("timedelta64[D]"))


def _interaction_rows(chunk: Events) -> pa.Table:
    n_rows = len(chunk.users)
    days = _dates(chunk.ages)
    seconds = np.arange(n_rows, dtype=np.int64) * 7919 % 86_400
    stamps = days.to_numpy(zero_copy_only=False).astype("datetime64[us]") + seconds.astype("timedelta64[s]")
    columns = {
        "user_id": ids("user-", chunk.users),
        "item_id": ids("item-", chunk.items),
        "event_ts": pa.array(stamps, pa.timestamp("us", tz="UTC")),
        "interaction_type": pa.array(["click", "wishlist", "cart", "checkout"]).take(pa.array(seconds % 4)),
        "market": pa.array([f"m{number:02d}" for number in range(25)]).take(pa.array(chunk.users % 25)),
        "session_id": pa.nulls(n_rows, pa.string()),
        "landing_ds": days,
        "event_date": days,
    }
    return pa.table(columns)


def _event_days(made: Events) -> pa.Table:
    counts = np.bincount(made.ages, minlength=N_DAYS)
    ages = np.flatnonzero(counts)
    columns = {
        "event_date": _dates(ages),
        "n_events": pa.array(counts[ages].astype(np.int64)),
        "checksum": pa.array([f"made-{count}" for count in counts[ages].tolist()]),
    }
    return pa.table(columns)


def _embedding_rows(shop: MadeShop) -> pa.Table:
    numbers = np.arange(shop.n_items, dtype=np.int64)
    offsets = pa.array(np.arange(0, (shop.n_items + 1) * shop.dim, shop.dim, dtype=np.int32))
    columns = {
        "item_id": ids("item-", numbers),
        "basis_version": pa.repeat(BASIS, shop.n_items),
        "item_index": pa.array(numbers.astype(np.int32)),
        "content_hash": pa.repeat("made", shop.n_items),
        "source": pa.repeat("text", shop.n_items),
        "first_ds": pa.array([_LONG_AGO] * shop.n_items),
        "embedding": pa.ListArray.from_arrays(offsets, pa.array(vectors(shop).reshape(-1))),
    }
    return pa.table(columns)
