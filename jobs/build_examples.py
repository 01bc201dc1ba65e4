"""Build the ranker's examples: interactions -> training_examples, point-in-time (DESIGN section 8).

An example is a user at an anchor day: the sequence and the counts up to the end of that day, and the items of the day
after. Anchors that are in the table, built from the same inputs, are left alone: a daily run adds one day, a first run
the whole year, and a late event, an item that turns out to have landed earlier or another setting makes those anchors
again that it reaches.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, IntegerType, StructField, StructType

from jobs.basis import configured_basis, read_basis
from jobs.config import Deployment, LteWindow, parse_config
from jobs.entry import is_off, run_job, say
from jobs.histories import in_window, known_items
from jobs.tables import Lake, Predicate, open_lake
from schemas import EVENT_DAYS, INTERACTIONS, TRAINING_EXAMPLES

JOB = "build_examples"
SHORT_DAYS = 60
LONG_DAYS = 365
MAX_SEQUENCE = 100
UNKNOWN = -1
_DAYS = LONG_DAYS + 1  # more than any number of days that is looked back

IntArray = npt.NDArray[np.int64]


def main(argv: Sequence[str] | None = None) -> None:
    """Add or mend the anchors up to the day before ``--ds``, whose targets are the interactions of ``--ds``."""
    config = parse_config(argv, JOB, __doc__)
    if is_off(JOB, "ranker", enabled=config.deployment.ranker.enabled):
        return
    basis_version = configured_basis(config.deployment)
    with open_lake(config.deployment, JOB) as lake:
        lake.renew(TRAINING_EXAMPLES)
        anchors = missing_anchors(lake, config.deployment, config.ds, basis_version)
        n_rows = write_examples(lake, config.deployment, anchors, basis_version)
        say(JOB, f"{len(anchors)} anchors built, {n_rows} examples")
        # What the day has, not what this run built: a rerun builds nothing and records the same.
        newest: Predicate = {"basis_version": basis_version, "anchor_ds": config.ds - timedelta(days=1)}
        n_examples = lake.read(TRAINING_EXAMPLES, where=newest).count()
        lake.record_metrics(config.ds, JOB, {"n_examples": float(n_examples)})


def missing_anchors(lake: Lake, deployment: Deployment, ds: date, basis_version: str) -> dict[date, str]:
    """Anchors that a run of ``ds`` reads and that the table does not hold as they would be built now, oldest first.

    The newest is ``ds`` - 1: its targets are the holdout day. Days after which nobody came have no example.

    Args:
        lake: Reads training_examples, event_days and the basis.
        deployment: Days of training and what decides an example.
        ds: Data day.
        basis_version: Basis that numbers the items.

    Returns:
        Anchor to the inputs_id that its rows will have.
    """
    wanted = [ds - timedelta(days=back) for back in range(deployment.ranker.train_days + 1, 0, -1)]
    now = inputs_ids(lake, deployment, wanted, basis_version)
    rows = lake.read(TRAINING_EXAMPLES, where={"basis_version": basis_version}).select("anchor_ds", "inputs_id")
    found = {(row["anchor_ds"], row["inputs_id"]) for row in rows.distinct().collect()}
    return {anchor: inputs_id for anchor, inputs_id in now.items() if (anchor, inputs_id) not in found}


def inputs_ids(lake: Lake, deployment: Deployment, anchors: Sequence[date], basis_version: str) -> dict[date, str]:
    """Name what decides the examples of each anchor; anchors after which nobody came are left out.

    Args:
        lake: Reads event_days and the basis.
        deployment: Interaction types and half-life.
        anchors: Anchor days, oldest first.
        basis_version: Basis that numbers the items.

    Returns:
        Anchor to hash: equal hashes, equal examples.
    """
    last_target = anchors[-1] + timedelta(days=1)
    span = LteWindow((last_target - anchors[0]).days + LONG_DAYS, 0)
    rows = lake.read(EVENT_DAYS).where(in_window(last_target, span)).select("event_date", "n_events", "checksum")
    event_days = {row["event_date"]: (row["n_events"], row["checksum"]) for row in rows.collect()}
    landed = read_basis(lake, basis_version).groupBy("first_ds").count().collect()
    first_days = sorted(row["first_ds"] for row in landed for _ in range(row["count"]))
    settings = {"types": deployment.interactions.types, "half_life_days": deployment.lte.half_life_days}
    return {
        anchor: _hash({**settings, **_read_by(anchor, event_days, first_days)})
        for anchor in anchors
        if anchor + timedelta(days=1) in event_days
    }


def _read_by(
    anchor: date, event_days: Mapping[date, tuple[int, str]], first_days: Sequence[date]
) -> dict[str, Iterable[object]]:
    """Days whose events an example of ``anchor`` holds, and how many items are known then and on the day after.

    Items never go, so a number names them.
    """
    reach = (anchor + timedelta(days=1 - back) for back in range(LONG_DAYS + 1))
    n_known = [bisect_right(first_days, anchor + timedelta(days=ahead)) for ahead in (0, 1)]
    return {"days": [[day.isoformat(), *event_days[day]] for day in reach if day in event_days], "n_known": n_known}


def _hash(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_examples(lake: Lake, deployment: Deployment, anchors: Mapping[date, str], basis_version: str) -> int:
    """Write the examples of ``anchors``; returns how many.

    Args:
        lake: Reads interactions and the basis.
        deployment: Interaction types and half-life.
        anchors: Days to write, oldest first, to their inputs_id.
        basis_version: Basis that numbers the items.
    """
    if not anchors:
        return 0
    days = list(anchors)
    items = known_items(read_basis(lake, basis_version), days[-1] + timedelta(days=1))
    task = ExamplesOfUser(tuple(_day(anchor) for anchor in days), deployment.lte.half_life_days)
    events = user_events(lake.read(INTERACTIONS), items, deployment.interactions.types, days)
    ids = {_day(anchor): inputs_id for anchor, inputs_id in anchors.items()}
    rows = events.mapInArrow(NamedExamples(task, ids), _NAMED)
    anchor_ds = F.expr("date_add(DATE '1970-01-01', anchor_day)")
    keyed = rows.withColumns({"basis_version": F.lit(basis_version), "anchor_ds": anchor_ds})
    where: dict[str, Any] = {"basis_version": basis_version, "anchor_ds": days}
    return lake.replace(keyed, TRAINING_EXAMPLES, where)


def user_events(
    interactions: DataFrame,
    items: DataFrame,
    types: Sequence[str],
    anchors: Sequence[date],
    reach_days: int = LONG_DAYS,
) -> DataFrame:
    """One row a user: all interactions that an example of ``anchors`` can hold, in any order.

    Args:
        interactions: Rows of interactions.
        items: item_id, item_index, first_ds of the known items.
        types: Interaction types, place = code.
        anchors: Anchor days, oldest first.
        reach_days: Days before an anchor that an example can hold.

    Returns:
        user_id and events, an array of (ts in seconds since 1970, item_index or -1, type code or -1, day since 1970
        from which the item is known).
    """
    last_target = anchors[-1] + timedelta(days=1)
    span = (last_target - anchors[0]).days + reach_days
    recent = interactions.where(in_window(last_target, LteWindow(span, 0)))
    numbered = recent.join(F.broadcast(items), "item_id", "left")
    code = F.array_position(F.array(*(F.lit(name) for name in types)), F.col("interaction_type")) - 1
    event = F.struct(
        F.col("event_ts").cast("bigint").alias("ts"),
        F.coalesce(F.col("item_index"), F.lit(UNKNOWN)).cast("bigint").alias("item"),
        code.cast("bigint").alias("type"),
        F.coalesce(F.datediff(F.col("first_ds"), F.lit(date(1970, 1, 1))), F.lit(0)).cast("bigint").alias("known_from"),
    )
    return numbered.groupBy("user_id").agg(F.collect_list(event).alias("events"))


def _day(day: date) -> int:
    return (day - date(1970, 1, 1)).days


_COMPUTED = [name for name in TRAINING_EXAMPLES.columns if name not in ("inputs_id", "basis_version", "anchor_ds")]
_SCHEMA = StructType([StructField(name, TRAINING_EXAMPLES.schema[name].dataType) for name in _COMPUTED])
_NAMED = StructType([*_SCHEMA, StructField("inputs_id", TRAINING_EXAMPLES.schema["inputs_id"].dataType)])
_INTEGERS = {
    field.name
    for field in _SCHEMA
    if field.dataType == ArrayType(IntegerType())  # what numpy counts is 64 bits wide
}


@dataclass(frozen=True)
class ExamplesOfUser:
    """What runs in each partition: users' events in, examples out.

    Attributes:
        anchors: Days since 1970, ascending.
        half_life_days: Of the recency weights.
        sequence_days: Days whose interactions make up the sequence.
        max_sequence: Interactions of a sequence at most.
        long_days: Days of the past with each item; 0 leaves the past out.
    """

    anchors: tuple[int, ...]
    half_life_days: float
    sequence_days: int = SHORT_DAYS
    max_sequence: int = MAX_SEQUENCE
    long_days: int = LONG_DAYS

    def __call__(self, parts: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one batch for each batch of users."""
        for part in parts:
            rows = [row for user in part.to_pylist() for row in self.examples(user["user_id"], user["events"])]
            yield examples_batch(rows)

    def examples(self, user_id: str, events: Sequence[Mapping[str, int]]) -> Iterator[dict[str, Any]]:
        """Yield the examples of one user: one for each anchor with a known item on the day after.

        The past holds items that were known on the anchor, as compute_lte reads them on that day; the targets, those
        known on the day after.

        Args:
            user_id: The user.
            events: Interactions with ``ts``, ``item``, ``type`` and, unless the item was always known, ``known_from``.
        """
        ts, item, kind = (
            np.array([event[name] for event in events], dtype=np.int64) for name in ("ts", "item", "type")
        )
        known_from = np.array([event.get("known_from", 0) for event in events], dtype=np.int64)
        order = np.lexsort((kind, item, ts))
        order = order[item[order] != UNKNOWN]
        ts, item, kind, known_from = ts[order], item[order], kind[order], known_from[order]
        day = ts // 86_400
        for target_day in np.intersect1d(np.unique(day), np.array(self.anchors) + 1):
            first, short, end, after = np.searchsorted(
                day, [target_day - self.long_days, target_day - self.sequence_days, target_day, target_day + 1]
            )
            targets = np.unique(item[end:after][known_from[end:after] <= target_day])
            if not targets.size:
                continue
            start = min(first, short)
            known = start + np.flatnonzero(known_from[start:end] < target_day)
            past, sequence = known[known >= first], known[known >= short][-self.max_sequence :]
            yield {
                "user_id": user_id,
                "anchor_day": int(target_day) - 1,
                "items": item[sequence],
                "types": kind[sequence],
                "ages_hours": (target_day * 86_400 - ts[sequence]) // 3600,
                "targets": targets,
                **self._past(ts[past], item[past], int(target_day)),
            }

    def _past(self, ts: IntArray, item: IntArray, end_day: int) -> dict[str, npt.NDArray[Any]]:
        items, place = np.unique(item, return_inverse=True)
        n = len(items)
        days_ago = end_day - ts // 86_400  # 1 on the anchor itself
        is_short = days_ago <= SHORT_DAYS
        age = (end_day * 86_400 - ts) / 86_400
        # ages from 0 on the anchor, as compute_lte counts them
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


@dataclass(frozen=True)
class NamedExamples:
    """Examples with what they were built from.

    Attributes:
        task: Makes the examples.
        ids: Anchor, as days since 1970, to inputs_id.
    """

    task: ExamplesOfUser
    ids: Mapping[int, str]

    def __call__(self, parts: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one batch for each batch of users."""
        for batch in self.task(parts):
            ids = pa.array([self.ids[day] for day in batch["anchor_day"].to_pylist()], pa.string())
            yield pa.record_batch([*batch.columns, ids], names=_NAMED.fieldNames())


def _visits(place: IntArray, days_ago: IntArray, n_items: int) -> dict[str, npt.NDArray[Any]]:
    """What the days with an item say, among the days on which the user came."""
    visits = np.unique(days_ago)  # the latest first
    pairs = np.unique(place * _DAYS + days_ago)  # one an item and day: by item, the latest day first
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


if __name__ == "__main__":
    run_job(main)
