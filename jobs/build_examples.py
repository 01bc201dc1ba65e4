"""Build the ranker's examples: interactions -> training_examples, point-in-time (ADR 0008).

An example is a user at an anchor day. It holds the sequence and the counts up to the end of that day, and the items of
the day after. Anchors in the table that were built from the same inputs are not built again. So a daily run adds one
day, and a first run adds the whole year. A late event, an earlier landing day of an item or another setting changes
the inputs of some anchors; only these anchors are built again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from jobs.basis.basis import configured_basis, known_items, read_basis
from jobs.config.window import day_number
from jobs.lake.day import BasisDay
from jobs.lake.lake import open_lake
from jobs.lake.predicates import Predicate
from jobs.ranker.anchors import missing_anchors
from jobs.ranker.examples import _SCHEMA, ExamplesOfUser, first_landing, user_events
from jobs.runtime.entry import is_off, run_job, say
from jobs.runtime.flags import parse_config
from schemas import INTERACTIONS, TRAINING_EXAMPLES

JOB = "build_examples"


def main(argv: Sequence[str] | None = None) -> None:
    """Build the missing or changed anchors up to the day before ``--ds``.

    The targets of the newest anchor are the interactions of ``--ds``.
    """
    config = parse_config(argv, JOB, __doc__)
    if is_off(JOB, "ranker", enabled=config.deployment.ranker.enabled):
        return
    basis_version = configured_basis(config.deployment)
    with open_lake(config.deployment, JOB, config.ds) as lake:
        lake.renew(TRAINING_EXAMPLES)
        day = BasisDay(lake, config.deployment, config.ds, basis_version)
        anchors = missing_anchors(day)
        n_rows = write_examples(day, anchors)
        say(JOB, f"{len(anchors)} anchors built, {n_rows} examples")
        # Counts what the table holds, not what this run built. So a rerun, which builds nothing, records the same.
        newest: Predicate = {"basis_version": basis_version, "anchor_ds": config.ds - timedelta(days=1)}
        n_examples = lake.read(TRAINING_EXAMPLES, where=newest).count()
        lake.record_metrics(config.ds, JOB, {"n_examples": float(n_examples)})


def write_examples(day: BasisDay, anchors: Mapping[date, str]) -> int:
    """Write the examples of ``anchors``; returns how many.

    Args:
        day: Its lake holds interactions and the basis; its deployment has interaction types and half-life.
        anchors: Anchor to its inputs_id, oldest anchor first.
    """
    if not anchors:
        return 0
    days = list(anchors)
    items = known_items(read_basis(day.lake, day.basis_version), days[-1] + timedelta(days=1))
    task = ExamplesOfUser(tuple(day_number(anchor) for anchor in days), day.deployment.lte.half_life_days)
    interactions = day.lake.read(INTERACTIONS)
    first = first_landing(interactions)
    events = user_events(interactions, items, day.deployment.interactions.types, days, first_load=first)
    ids = {day_number(anchor): inputs_id for anchor, inputs_id in anchors.items()}
    rows = events.mapInArrow(NamedExamples(task, ids), _NAMED)
    anchor_ds = F.expr("date_add(DATE '1970-01-01', anchor_day)")
    keyed = rows.withColumns({"basis_version": F.lit(day.basis_version), "anchor_ds": anchor_ds})
    where: dict[str, Any] = {"basis_version": day.basis_version, "anchor_ds": days}
    return day.lake.replace(keyed, TRAINING_EXAMPLES, where)


_NAMED = StructType([*_SCHEMA, StructField("inputs_id", TRAINING_EXAMPLES.schema["inputs_id"].dataType)])


@dataclass(frozen=True)
class NamedExamples:
    """Builds examples with their inputs_id.

    Attributes:
        task: Builds the examples.
        ids: Anchor, as days since 1970, to inputs_id.
    """

    task: ExamplesOfUser
    ids: Mapping[int, str]

    def __call__(self, parts: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield one batch of examples per batch of users."""
        for batch in self.task(parts):
            ids = pa.array([self.ids[day] for day in batch["anchor_day"].to_pylist()], pa.string())
            yield pa.record_batch([*batch.columns, ids], names=_NAMED.fieldNames())


if __name__ == "__main__":
    run_job(main)
