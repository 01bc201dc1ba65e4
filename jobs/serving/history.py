"""A user's interactions as the ranker's examples read them: from the lake, or from the body of a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa

from jobs.config.window import EPOCH_DAY, LONG_DAYS, day_number
from jobs.lake.reader import LakeReader
from jobs.ranker.examples import UNKNOWN, ExamplesOfUser, IntArray, examples_batch
from schemas import INTERACTIONS

DAY_SECONDS = 86_400
Event = dict[str, int]


@dataclass(frozen=True)
class Numbers:
    """How a ranker numbers items and interaction types.

    Attributes:
        index_of: Item id to item_index.
        known_from: Day since 1970 from which each item is known, by item_index.
        types: Interaction types that the ranker was trained with; another type counts as unknown.
        last: Last day whose interactions count.
    """

    index_of: Mapping[str, int]
    known_from: IntArray
    types: tuple[str, ...]
    last: date

    def event(self, item_index: int | None, kind: str, ts: int, landed: int) -> Event:
        """One interaction in numbers; an item that is unknown on the last day has the number -1."""
        is_known = item_index is not None and self.known_from[item_index] <= day_number(self.last)
        item = int(item_index) if is_known and item_index is not None else UNKNOWN
        known_from = int(self.known_from[item]) if item != UNKNOWN else 0
        code = self.types.index(kind) if kind in self.types else UNKNOWN
        return {"ts": ts, "item": item, "type": code, "known_from": known_from, "landed": landed}


def lake_events(lake: LakeReader, numbers: Numbers, user_id: str) -> list[Event]:
    """The user's interactions of the year up to the end of the last day; reads the lake, so it takes some 100 ms.

    Args:
        lake: Reads interactions.
        numbers: Of the ranker.
        user_id: The user.
    """
    days = [numbers.last - timedelta(days=back) for back in range(LONG_DAYS, -1, -1)]
    columns = ["item_id", "event_ts", "interaction_type", "landing_ds"]
    found: list[Event] = []
    for batch in lake.batches(INTERACTIONS, columns=columns, where={"event_date": days, "user_id": user_id}):
        for row in batch.to_pylist():
            stamp, landed = int(row["event_ts"].timestamp()), (row["landing_ds"] - EPOCH_DAY).days
            found.append(numbers.event(numbers.index_of.get(row["item_id"]), row["interaction_type"], stamp, landed))
    return found


def sent_events(numbers: Numbers, sent: Iterable[tuple[str, str, datetime]]) -> list[Event]:
    """Interactions from the body of a request.

    The ranker was trained on ends of days, so an interaction after the end of the last day counts as one of its last
    seconds, in the order of the moments.

    Args:
        numbers: Of the ranker.
        sent: Item id, type and moment of each interaction, in any order.
    """
    ordered = sorted(sent, key=lambda each: each[2])
    end = (day_number(numbers.last) + 1) * DAY_SECONDS
    stamps = [int(moment.astimezone(UTC).timestamp()) for _, _, moment in ordered]
    n_late = sum(stamp >= end for stamp in stamps)
    early = len(stamps) - n_late
    moments = [*stamps[:early], *range(end - n_late, end)]
    return [
        numbers.event(numbers.index_of.get(item), kind, ts, ts // DAY_SECONDS)
        for (item, kind, _), ts in zip(ordered, moments, strict=True)
    ]


def serving_rows(user_id: str, events: Sequence[Mapping[str, Any]], ds: date, half_life_days: float) -> pa.Table:
    """One example, made by the code that makes training examples.

    That code makes an example for each anchor whose next day has a visit of the user. So this function adds a visit on
    the day after ``ds``. Only the targets depend on the added visit (no example sees its future).

    Args:
        user_id: The user.
        events: Interactions with ``ts``, ``item`` and ``type``.
        ds: Anchor.
        half_life_days: Of the recency weights.
    """
    anchor = day_number(ds)
    past = [event for event in events if event["ts"] < (anchor + 1) * DAY_SECONDS]
    visit = {"ts": (anchor + 1) * DAY_SECONDS, "item": 0, "type": 0}
    return pa.Table.from_batches(
        [examples_batch(list(ExamplesOfUser((anchor,), half_life_days).examples(user_id, [*past, visit])))]
    )
