"""Examples of the ranker, point-in-time: a user's events up to an anchor day and the items of the day after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, IntegerType

from jobs.config.window import EPOCH_DAY, LONG_DAYS, MAX_SEQUENCE, SHORT_DAYS, LteWindow
from jobs.lte.windows import in_window
from schemas import TRAINING_EXAMPLES

UNKNOWN = -1
_DAYS = LONG_DAYS + 1  # larger than any days_ago, so item * _DAYS + days_ago is unique
IntArray = npt.NDArray[np.int64]


def first_landing(interactions: DataFrame) -> date | None:
    """Landing day of the first load. The first load may bring years of history, before anything was served."""
    first: date | None = interactions.agg(F.min("landing_ds").alias("first")).collect()[0]["first"]
    return first


def user_events(
    interactions: DataFrame,
    items: DataFrame,
    types: Sequence[str],
    anchors: Sequence[date],
    reach_days: int = LONG_DAYS,
    first_load: date | None = None,
) -> DataFrame:
    """One row per user: all interactions that an example of ``anchors`` can hold, in any order.

    Args:
        interactions: Rows of interactions.
        items: item_id, item_index, first_ds of the known items.
        types: Interaction types; the position of a type is its code.
        anchors: Anchor days, oldest first.
        reach_days: Days before an anchor that an example can hold.
        first_load: From :func:`first_landing`. Events that landed on that day count as landed on the day on which they
            happened. With None, every event keeps its own landing day.

    Returns:
        user_id and events, an array of (ts in seconds since 1970, item_index or -1, type code or -1, day since 1970
        from which the item is known, day since 1970 on which the event landed).
    """
    last_target = anchors[-1] + timedelta(days=1)
    span = (last_target - anchors[0]).days + reach_days
    recent = interactions.where(in_window(last_target, LteWindow(span, 0)))
    numbered = recent.join(F.broadcast(items), "item_id", "left")
    code = F.array_position(F.array(*(F.lit(name) for name in types)), F.col("interaction_type")) - 1
    landed = F.col("landing_ds")
    if first_load is not None:
        landed = F.when(landed > F.lit(first_load), landed).otherwise(F.col("event_date"))
    event = F.struct(
        F.col("event_ts").cast("bigint").alias("ts"),
        F.coalesce(F.col("item_index"), F.lit(UNKNOWN)).cast("bigint").alias("item"),
        code.cast("bigint").alias("type"),
        F.coalesce(F.datediff(F.col("first_ds"), F.lit(EPOCH_DAY)), F.lit(0)).cast("bigint").alias("known_from"),
        F.datediff(landed, F.lit(EPOCH_DAY)).cast("bigint").alias("landed"),
    )
    return numbered.groupBy("user_id").agg(F.collect_list(event).alias("events"))


_COMPUTED = [name for name in TRAINING_EXAMPLES.columns if name not in ("inputs_id", "basis_version", "anchor_ds")]
_SCHEMA = TRAINING_EXAMPLES.row_type(_COMPUTED)

_INTEGERS = {
    field.name
    for field in _SCHEMA
    if field.dataType == ArrayType(IntegerType())  # numpy counts in 64 bits, so these need a cast
}


@dataclass(frozen=True)
class ExamplesOfUser:
    """The task of each partition: turns events of users into examples.

    Attributes:
        anchors: Days since 1970, ascending.
        half_life_days: Half-life of the recency weights.
        sequence_days: Number of days whose interactions make up the sequence.
        max_sequence: Largest number of interactions in a sequence.
        long_days: Number of past days for the counts of each item; with 0 the past is empty.
    """

    anchors: tuple[int, ...]
    half_life_days: float
    sequence_days: int = SHORT_DAYS
    max_sequence: int = MAX_SEQUENCE
    long_days: int = LONG_DAYS

    def __call__(self, parts: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one batch of examples per batch of users."""
        for part in parts:
            rows = [row for user in part.to_pylist() for row in self.examples(user["user_id"], user["events"])]
            yield examples_batch(rows)

    def examples(self, user_id: str, events: Sequence[Mapping[str, int]]) -> Iterator[dict[str, Any]]:
        """Yield the examples of one user: one per anchor with a known item on the day after.

        The past holds only what serving knew on the anchor day: events that had landed, of items that were known. The
        targets are items known on the day after. The landing day of their events does not matter.

        Args:
            user_id: The user.
            events: Interactions with ``ts``, ``item`` and ``type``. ``known_from`` may be missing when the item was
                always known, and ``landed`` when the event landed on its own day.
        """
        ts, item, kind = (
            np.array([event[name] for event in events], dtype=np.int64) for name in ("ts", "item", "type")
        )
        known_from, landed = (
            np.array([event.get(name, 0) for event in events], dtype=np.int64) for name in ("known_from", "landed")
        )
        # Serving needs both the item and the event, so the later of the two days decides.
        usable_from = np.maximum(known_from, landed)
        order = np.lexsort((kind, item, tie_order(user_id, ts, item), ts))
        order = order[item[order] != UNKNOWN]
        ts, item, kind = ts[order], item[order], kind[order]
        known_from, usable_from = known_from[order], usable_from[order]
        day = ts // 86_400
        for target_day in np.intersect1d(np.unique(day), np.array(self.anchors) + 1):
            first, short, end, after = np.searchsorted(
                day, [target_day - self.long_days, target_day - self.sequence_days, target_day, target_day + 1]
            )
            targets = np.unique(item[end:after][known_from[end:after] <= target_day])
            if not targets.size:
                continue
            start = min(first, short)
            known = start + np.flatnonzero(usable_from[start:end] < target_day)
            past, sequence = known[known >= first], known[known >= short][-self.max_sequence :]
            yield {
                "user_id": user_id,
                "anchor_day": int(target_day) - 1,
                "items": item[sequence],
                "types": kind[sequence],
                "ages_hours": (target_day * 86_400 - ts[sequence]) // 3600,
                "moments": np.unique(ts[sequence], return_inverse=True)[1],
                "targets": targets,
                **self._past(ts[past], item[past], int(target_day)),
            }

    def _past(self, ts: IntArray, item: IntArray, end_day: int) -> dict[str, npt.NDArray[Any]]:
        items, place = np.unique(item, return_inverse=True)
        n = len(items)
        days_ago = end_day - ts // 86_400  # 1 on the anchor day
        is_short = days_ago <= SHORT_DAYS
        age = (end_day * 86_400 - ts) / 86_400
        # compute_lte gives the anchor day the age 0, and training must use the same weights as serving.
        weight = 2.0 ** (-(days_ago - 1) / self.half_life_days)
        last, first = np.full(n, np.inf), np.zeros(n)
        np.minimum.at(last, place, age)
        np.maximum.at(first, place, age)
        return {
            "past_items": items,
            "past_n_week": np.bincount(place[days_ago <= 7], minlength=n),
            "past_n_month": np.bincount(place[days_ago <= 28], minlength=n),
            "past_n_short": np.bincount(place[is_short], minlength=n),
            "past_n_long": np.bincount(place[~is_short], minlength=n),
            "past_last_age": last.astype(np.float32),
            "past_first_age": first.astype(np.float32),
            "past_w_short": np.bincount(place, weights=weight * is_short, minlength=n).astype(np.float32),
            "past_w_long": np.bincount(place, weights=weight * ~is_short, minlength=n).astype(np.float32),
            **_visits(place, days_ago, n),
        }


# The odd constants of splitmix64 (Steele, Lea, Flood 2014). splitmix64 spreads neighbouring numbers over all 64 bits.
_SPREAD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def tie_order(user_id: str, ts: IntArray, item: IntArray) -> npt.NDArray[np.uint64]:
    """Order of interactions that have the same time: a hash of user, time and item.

    Item numbers follow the order of the catalogue. Sorted by item number, a model would learn to predict the next
    higher number. And a sequence that is cut would keep only the highest numbers of a large basket.

    Args:
        user_id: The user.
        ts: [N] moments in seconds.
        item: [N] item numbers.

    Returns:
        uint64 [N], the same on every machine and in every run.
    """
    seed = int.from_bytes(hashlib.blake2b(user_id.encode(), digest_size=8).digest(), "little")
    mixed = np.full(len(ts), seed, dtype=np.uint64)
    for values in (ts, item):
        mixed += values.astype(np.uint64) * np.uint64(_SPREAD[0]) + np.uint64(_SPREAD[0])
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(_SPREAD[1])
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(_SPREAD[2])
        mixed ^= mixed >> np.uint64(31)
    return mixed


def _visits(place: IntArray, days_ago: IntArray, n_items: int) -> dict[str, npt.NDArray[Any]]:
    """Features of the days with an item, among all days on which the user came."""
    visits = np.unique(days_ago)  # the latest first
    pairs = np.unique(place * _DAYS + days_ago)  # one per item and day, sorted by item, then the latest day first
    of, ago = pairs // _DAYS, pairs % _DAYS
    latest, after = np.searchsorted(of, [np.arange(n_items), np.arange(1, n_items + 1)])
    second = np.minimum(latest + 1, after - 1)
    return {
        "past_days": after - latest,
        "past_weekday": np.bincount(of[ago % 7 == 0], minlength=n_items),
        "past_visits_since": np.searchsorted(visits, ago[latest]),
        "past_visits_from": np.searchsorted(visits, ago[after - 1], side="right"),
        "past_last_gap": (ago[second] - ago[latest]).astype(np.float32),
    }


def examples_batch(rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Examples of :class:`ExamplesOfUser` as a record batch of training_examples."""
    return pa.record_batch({name: pa.array([row[name] for row in rows], _arrow(name)) for name in _COMPUTED})


def _arrow(name: str) -> pa.DataType:
    if name == "user_id":
        return pa.string()
    if name == "anchor_day":
        return pa.int32()
    return pa.list_(pa.int32() if name in _INTEGERS else pa.float32())
