"""Interactions of a window as packed integers: the engine makes them, a worker collects them to sorted histories."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.config.window import LteWindow
from jobs.lte.windows import in_window
from lte_models.averages.pooling import (
    AGE_BITS,
    CODE_BITS,
    MAX_USERS,
    UNKNOWN_ITEM,
    Histories,
    Int64Array,
    PoolingError,
)

_FLUSH_ROWS = 1 << 18
_CODE_MASK = (1 << CODE_BITS) - 1


class HistoryCollector:
    """Collects a partition's (user_id, code) rows: eight bytes per interaction, and each user id once."""

    def __init__(self) -> None:
        self._users = pa.array([], pa.string())
        self._keys: list[Int64Array] = []
        self._waiting: list[pa.RecordBatch] = []
        self._n_waiting = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows with columns ``user_id`` and ``code``."""
        self._waiting.append(batch)
        self._n_waiting += batch.num_rows
        if self._n_waiting >= _FLUSH_ROWS:
            self._flush()

    def _flush(self) -> None:
        """Number the users by first appearance and drop the ids of the rows."""
        if not self._n_waiting:
            return
        rows = pa.Table.from_batches(self._waiting)
        self._waiting, self._n_waiting = [], 0
        users = rows["user_id"].cast(pa.string()).combine_chunks().dictionary_encode()
        is_new = pc.is_null(pc.index_in(users.dictionary, self._users))
        self._users = pa.concat_arrays([self._users, users.dictionary.filter(is_new)])
        if len(self._users) > MAX_USERS:
            raise PoolingError(f"{len(self._users)} users in one partition, at most {MAX_USERS}: use more partitions")
        numbers = pc.index_in(users.dictionary, self._users).to_numpy().astype(np.int64)
        self._keys.append((numbers[users.indices.to_numpy()] << CODE_BITS) | rows["code"].to_numpy())

    def finish(self) -> tuple[pa.StringArray, Histories]:
        """The users, sorted by id, and their histories, whatever order the rows came in."""
        self._flush()
        order = pc.array_sort_indices(self._users).to_numpy().astype(np.int64)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        keys = np.empty(sum(map(len, self._keys)), np.int64)
        end = len(keys)
        while self._keys:  # one after the other, so that memory holds each array only once
            part = self._keys.pop()
            start = end - len(part)
            keys[start:end] = (rank[part >> CODE_BITS] << CODE_BITS) | (part & _CODE_MASK)
            end = start
        keys.sort()
        return self._users.take(pa.array(order)), Histories(keys, len(order))


def collected(batches: Iterable[pa.RecordBatch]) -> tuple[pa.StringArray, Histories]:
    """Users sorted by id and their histories, from a partition's batches of (user_id, code)."""
    collector = HistoryCollector()
    for batch in batches:
        collector.add(batch)
    return collector.finish()


def packed_interactions(interactions: DataFrame, items: DataFrame, ds: date, window: LteWindow) -> DataFrame:
    """Interactions of a window as user_id and code, see :func:`lte_models.averages.pooling.packed_keys`; one row each.

    Item ids are replaced by integers, so the shuffle moves a user id and eight bytes. The item table is broadcast.

    Args:
        interactions: Rows of interactions.
        items: item_id, item_index of the known items.
        ds: Data day, from which ages are counted.
        window: Window of the interactions; its days select partitions.
    """
    recent = interactions.where(in_window(ds, window)).select("user_id", "item_id", "event_date")
    numbered = recent.join(F.broadcast(items), "item_id", "left")
    item = F.coalesce(F.col("item_index"), F.lit(UNKNOWN_ITEM)).cast("bigint") + 1
    age = F.datediff(F.lit(ds), F.col("event_date")).cast("bigint")
    return numbered.select("user_id", (item * F.lit(1 << AGE_BITS) + age).alias("code"))
