"""Build the ranker's examples: interactions -> training_examples, point-in-time (ADR 0008).

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

import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from jobs.basis.basis import configured_basis, known_items, read_basis
from jobs.config.sections import Deployment
from jobs.config.window import LONG_DAYS, LteWindow, day_number
from jobs.lake.lake import Lake, open_lake
from jobs.lake.predicates import Predicate
from jobs.lte.windows import in_window
from jobs.ranker.examples import _SCHEMA, ExamplesOfUser, first_landing, user_events
from jobs.runtime.entry import is_off, run_job, say
from jobs.runtime.flags import parse_config
from schemas import EVENT_DAYS, INTERACTIONS, TRAINING_EXAMPLES

JOB = "build_examples"

# What is taken of the past, as part of every inputs_id: examples of other rules are built anew.
PAST_RULES = "landed by the anchor, ties by hash"


def main(argv: Sequence[str] | None = None) -> None:
    """Add or mend the anchors up to the day before ``--ds``, whose targets are the interactions of ``--ds``."""
    config = parse_config(argv, JOB, __doc__)
    if is_off(JOB, "ranker", enabled=config.deployment.ranker.enabled):
        return
    basis_version = configured_basis(config.deployment)
    with open_lake(config.deployment, JOB, config.ds) as lake:
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

    The newest is ``ds`` - 1: its targets are the test day. Days after which nobody came have no example.

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
    first_load = first_landing(lake.read(INTERACTIONS))
    settings = {
        "types": deployment.interactions.types,
        "half_life_days": deployment.lte.half_life_days,
        "past": f"{PAST_RULES}, first load {first_load}",
    }
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
    task = ExamplesOfUser(tuple(day_number(anchor) for anchor in days), deployment.lte.half_life_days)
    interactions = lake.read(INTERACTIONS)
    first = first_landing(interactions)
    events = user_events(interactions, items, deployment.interactions.types, days, first_load=first)
    ids = {day_number(anchor): inputs_id for anchor, inputs_id in anchors.items()}
    rows = events.mapInArrow(NamedExamples(task, ids), _NAMED)
    anchor_ds = F.expr("date_add(DATE '1970-01-01', anchor_day)")
    keyed = rows.withColumns({"basis_version": F.lit(basis_version), "anchor_ds": anchor_ds})
    where: dict[str, Any] = {"basis_version": basis_version, "anchor_ds": days}
    return lake.replace(keyed, TRAINING_EXAMPLES, where)


_NAMED = StructType([*_SCHEMA, StructField("inputs_id", TRAINING_EXAMPLES.schema["inputs_id"].dataType)])


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


if __name__ == "__main__":
    run_job(main)
