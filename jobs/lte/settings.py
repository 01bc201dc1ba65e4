"""The configured windows and weightings, and how large a partition may be."""

from __future__ import annotations

import math
from datetime import date

from jobs.config.sections import LteSection
from jobs.config.window import LteWindow
from jobs.lake.reader import LakeReader
from jobs.runtime.day import LTE_JOB
from lte_models.averages.pooling import DISTINCT, Weighting
from schemas import METRICS

# Largest partition: a worker holds 8 bytes per interaction, and the user ids.
MAX_PARTITION_ROWS = 2_000_000

# Users in one Arrow batch: 16 MB of vectors at D = 512. Sail joins smaller batches to this size by copying them.
BLOCK_USERS = 8192


class LteError(ValueError):
    """LTEs that cannot be computed or do not fit together; the message names table, value and ds."""


def weightings(lte: LteSection) -> dict[str, Weighting]:
    """The configured methods by name."""
    return {method: Weighting(method, lte.half_life_days, lte.count) for method in lte.methods}


def lte_windows(lte: LteSection) -> list[LteWindow]:
    """The configured windows."""
    return [LteWindow.parse(text) for text in lte.windows]


def n_partitions(n_interactions: int, least: int) -> int:
    """Number of partitions such that a worker can hold each partition."""
    return max(least, math.ceil(n_interactions / MAX_PARTITION_ROWS))


def lte_settings(lte: LteSection) -> dict[str, float]:
    """The settings that decide the LTE of a history, as metrics."""
    return {"half_life_days": lte.half_life_days, "counts_distinct": float(lte.count == DISTINCT)}


def recorded_half_life(lake: LakeReader, ds: date, method: str) -> float | None:
    """Half-life of the LTEs of a day, as compute_lte recorded it.

    Args:
        lake: Reads metrics.
        ds: Data day.
        method: Method of the LTEs.

    Returns:
        Days; None for a method without recency weights, and where nothing is recorded.
    """
    if method != "recency":
        return None
    rows = lake.rows(METRICS, columns=["value"], where={"ds": ds, "job": LTE_JOB, "metric": "half_life_days"})
    return float(rows[0]["value"]) if rows else None
