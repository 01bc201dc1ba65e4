"""Rows of the tables that LTEs are made from, and the naive oracle: plain loops over plain lists, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from jobs.basis.matrix import BasisKey
from jobs.lake.lake import Lake
from schemas import EVENT_DAYS, INTERACTIONS, ITEM_EMBEDDINGS, Table

DS = date(2025, 6, 30)
BASIS = "basis-1"
LONG_AGO = date(2020, 1, 1)


@dataclass(frozen=True)
class Event:
    """One interaction: user, item, days before ds."""

    user: str
    item: str
    age: int


def schema_of(table: Table):
    return table.row_type()


def values_of(row: Mapping[str, object], table: Table) -> tuple[object, ...]:
    """The row as ``Lake.replace_rows`` takes it: values in the order of the table's columns."""
    return tuple(row[name] for name in table.columns)


def put(lake: Lake, table: Table, rows: Sequence[tuple]) -> None:
    lake.append_rows(rows, table)


def put_timed(lake: Lake, events: Sequence[tuple[str, str, datetime]]) -> None:
    """Interactions with aware timestamps, and the event_days that ingest keeps beside them."""
    rows = []
    for number, (user, item, when) in enumerate(events):
        ts = when.astimezone(UTC) + timedelta(microseconds=number % 1000)
        rows.append((user, item, ts, "purchase", "", None, ts.date(), ts.date()))
    put(lake, INTERACTIONS, rows)
    days: dict[date, int] = {}
    for row in rows:
        days[row[-1]] = days.get(row[-1], 0) + 1
    old = {row["event_date"]: row["n_events"] for row in lake.read(EVENT_DAYS).collect()}
    total = {day: days.get(day, 0) + old.get(day, 0) for day in {*days, *old}}
    if old:
        lake.delete(EVENT_DAYS, {"event_date": list(old)})
    put(lake, EVENT_DAYS, [(day, n, f"checksum of {n}") for day, n in total.items()])


def put_events(lake: Lake, events: Sequence[Event], ds: date = DS) -> None:
    """Interactions at noon, ``age`` days before ds."""
    noon = datetime(ds.year, ds.month, ds.day, 12, tzinfo=UTC)
    put_timed(lake, [(event.user, event.item, noon - timedelta(days=event.age)) for event in events])


def put_basis(
    lake: Lake,
    vectors: Mapping[str, Sequence[float]],
    *,
    first_ds: Mapping[str, date] | None = None,
    basis_version: str = BASIS,
    start: int = 0,
) -> None:
    days = first_ds or {}
    rows = [
        (item, basis_version, start + at, "hash", "text", days.get(item, LONG_AGO), [float(x) for x in vector])
        for at, (item, vector) in enumerate(vectors.items())
    ]
    put(lake, ITEM_EMBEDDINGS, rows)


def key_of(lake: Lake, basis_version: str = BASIS) -> BasisKey:
    newest = lake.history(ITEM_EMBEDDINGS, 1)[0]
    return BasisKey(lake.path(ITEM_EMBEDDINGS), newest["version"], str(newest["timestamp"]), basis_version)


def naive_weights(
    events: Sequence[tuple[str, int]], window: tuple[int, int], *, method: str, half_life: float, count: str
) -> dict[str, float]:
    """Item to weight of one user's (item, age) events with known items, normalised."""
    start, end = window
    weights: dict[str, float] = {}
    newest_first = sorted((event for event in events if end <= event[1] < start), key=lambda event: event[1])
    for item, age in newest_first:
        if count == "distinct" and item in weights:
            continue
        weight = 1.0 if method == "uniform" else math.pow(2.0, -age / half_life)
        weights[item] = weights.get(item, 0.0) + weight
    total = sum(weights.values())
    return {item: weight / total for item, weight in weights.items()}


def naive_lte(weights: Mapping[str, float], vectors: Mapping[str, Sequence[float]], dim: int) -> list[float]:
    result = [0.0] * dim
    for item, weight in weights.items():
        for axis in range(dim):
            result[axis] += weight * vectors[item][axis]
    return result
