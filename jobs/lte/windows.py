"""Transforms of the history: the days of a window, the known items, and interactions as packed integers.

Pure: DataFrames and plain values in, one DataFrame out. An interaction's age is the number of whole UTC days from its
``event_date`` to ``ds``: 0 on ds itself. E is the end of ds. So the window [E - a days, E - b days) holds the ages b to
a - 1, and one interaction lies in at most one of [365, 60) and [60, 0).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, timedelta

from pyspark.sql import Column
from pyspark.sql import functions as F

from jobs.config.window import LteWindow
from lte_models.averages.pooling import MAX_AGE_DAYS, PoolingError


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
    """The window that covers all ``windows`` up to the end of ds, and the same windows ``offset_days`` earlier.

    Raises:
        lte_models.averages.pooling.PoolingError: The window is longer than the largest age.
    """
    start_days = max(window.start_days for window in windows) + offset_days
    if start_days > MAX_AGE_DAYS:
        raise PoolingError(f"{start_days} days back from ds: ages are counted up to {MAX_AGE_DAYS} days")
    return LteWindow(start_days, 0)
