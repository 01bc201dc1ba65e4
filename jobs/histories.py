"""The history transforms: which days a window holds, which items are known, and interactions as packed integers.

Pure: DataFrames and plain values in, one DataFrame out. An interaction's age is the number of whole UTC days from its
``event_date`` to ``ds``: 0 on ds itself. As E is the end of ds, the window [E - a days, E - b days) holds the ages b to
a - 1, and one interaction lies in at most one of [365, 60) and [60, 0).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.config import LteWindow
from lte_models.pooling import AGE_BITS, MAX_AGE_DAYS, UNKNOWN_ITEM, PoolingError


def window_days(ds: date, window: LteWindow) -> tuple[date, date]:
    """First day of a window and the first day after it."""
    end = ds + timedelta(days=1)
    return end - timedelta(days=window.start_days), end - timedelta(days=window.end_days)


def window_ages(window: LteWindow) -> range:
    """Ages in days of the interactions in a window."""
    return range(window.end_days, window.start_days)


def in_window(ds: date, window: LteWindow) -> Column:
    """Condition on ``event_date``: the interaction lies in the window."""
    first, after = window_days(ds, window)
    return (F.col("event_date") >= F.lit(first)) & (F.col("event_date") < F.lit(after))


def reach(windows: Iterable[LteWindow], *, offset_days: int = 0) -> LteWindow:
    """The window that covers all ``windows`` up to the end of ds, and those of ``offset_days`` before.

    Raises:
        lte_models.pooling.PoolingError: It is longer than an age can be counted.
    """
    start_days = max(window.start_days for window in windows) + offset_days
    if start_days > MAX_AGE_DAYS:
        raise PoolingError(f"{start_days} days back from ds: ages are counted up to {MAX_AGE_DAYS} days")
    return LteWindow(start_days, 0)


def known_items(item_embeddings: DataFrame, ds: date) -> DataFrame:
    """Items that had a vector by ``ds``: item_id, item_index, first_ds; no vectors.

    Args:
        item_embeddings: Rows of one basis.
        ds: Data day.
    """
    return item_embeddings.where(F.col("first_ds") <= F.lit(ds)).select("item_id", "item_index", "first_ds")


def packed_interactions(interactions: DataFrame, items: DataFrame, ds: date, window: LteWindow) -> DataFrame:
    """Interactions of a window as user_id and code, see :func:`lte_models.pooling.packed_keys`; one row each.

    Ids stay behind here: what is shuffled later is a user id and eight bytes. The item table is broadcast.

    Args:
        interactions: Rows of interactions.
        items: item_id, item_index of the known items.
        ds: Data day, from which ages are counted.
        window: Which interactions; its days select partitions.
    """
    recent = interactions.where(in_window(ds, window)).select("user_id", "item_id", "event_date")
    numbered = recent.join(F.broadcast(items), "item_id", "left")
    item = F.coalesce(F.col("item_index"), F.lit(UNKNOWN_ITEM)).cast("bigint") + 1
    age = F.datediff(F.lit(ds), F.col("event_date")).cast("bigint")
    return numbered.select("user_id", (item * F.lit(1 << AGE_BITS) + age).alias("code"))
