"""Validate a day with Great Expectations before anything is published; one failed expectation stops the day.

Reads the tables of the earlier jobs; writes gate_results, metrics and the run's Data Docs. Rows that an earlier run
validated are not read again. In growing tables only rows are validated that landed after the last validated day. When a
late file changed an older landing day, validation starts from that day.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from great_expectations.expectations.expectation import Expectation
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.basis.matrix import BasisMatrix, load_matrix, pinned_basis
from jobs.config.sections import Deployment
from jobs.gates.autoencoder_measures import measure_autoencoder
from jobs.gates.checkpoints import GateOutcome, GateRun
from jobs.gates.measured import Measured, one_a_label
from jobs.gates.measures import measure_basis, measure_catalogue, measure_drift, measure_input, measure_slices
from jobs.gates.suites import (
    basis_suite,
    drift_suite,
    event_day_suite,
    interaction_suite,
    lte_suite,
    scalars,
    table_suite,
    with_counted_events,
    with_drift_rules,
    with_interaction_rules,
    with_lte_rules,
)
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake, Metrics, open_lake
from jobs.lake.predicates import Predicate
from jobs.landing.event_days import DAYS_BACK
from jobs.lte.inputs import input_fingerprint_as_of
from jobs.runtime.day import INGEST_JOB, LTE_JOB
from jobs.runtime.entry import run_job
from jobs.runtime.flags import parse_config
from jobs.runtime.pages import claim, docs_index
from jobs.runtime.text import shown_user
from jobs.store.rows import BadRowError
from jobs.store.tables import (
    VALIDATE_JOB,
    SliceState,
    forget_validated,
    record_validated,
    served_slice,
    slice_state,
)
from lte_models.averages.drift import BasisExtent, basis_extent
from schemas import (
    EVENT_DAYS,
    GATE_RESULTS,
    INGEST_LOG,
    INTERACTIONS,
    ITEM_EMBEDDINGS,
    ITEMS,
    LIVE_SNAPSHOT,
    LTE_DRIFT,
    METRICS,
    QUARANTINE,
    RUNS,
    USER_HISTORIES,
    USER_LTE,
    Table,
)

JOB = VALIDATE_JOB
FAILURES_SHOWN = 20
ROWS_SHOWN = 600

# Columns with the id of a user, and columns with a landed row as text, in which an id can stand anywhere.
USER_COLUMNS = ("user_id", "found_user_id")
ROW_COLUMNS = ("raw", "detail")
ROW_TEXT = "see table quarantine"

# Without the ranker's jobs: they run beside this job, and a fault of the ranker must not stop the publishing of LTEs.
LTE_JOBS = ("ingest", "embed_items", "compute_lte", "train_autoencoder", "embed_users", "compute_drift")
Checked = tuple[Table, DataFrame, list[Expectation]]


class GateError(RuntimeError):
    """The quality gate of a day failed or had no rows to judge; the message names table, expectation and ds."""


def main(argv: Sequence[str] | None = None) -> None:
    """Validate ``--ds``."""
    config = parse_config(argv, JOB, __doc__)
    with open_lake(config.deployment, JOB, config.ds) as lake:
        outcomes = validate_day(lake, config.deployment, config.ds)
    print(summary(outcomes, config.ds, docs_index(config.deployment, config.ds)), flush=True)
    require_success(outcomes, config.ds)


def validate_day(lake: Lake, deployment: Deployment, ds: date) -> list[GateOutcome]:
    """Run every checkpoint of ds; write gate_results, metrics and Data Docs, even when expectations failed.

    When this function raises, the table has no gate_results of ds.

    Args:
        lake: Reads all tables of the daily run.
        deployment: Limits and folders.
        ds: Data day.

    Returns:
        One outcome per expectation.

    Raises:
        GateError: user_lte has no rows of ds, or rows of the served slice changed while the gates read them.
        jobs.basis.basis.BasisError: The basis is damaged.
    """
    # An earlier pass may be about rows that changed since. Publishing needs these results, so it stops without them.
    lake.delete(GATE_RESULTS, {"ds": ds})
    forget_validated(lake, ds)
    claim(Path(deployment.paths.data_docs), deployment, "paths.data_docs")
    basis_version = served_basis(lake, deployment, ds)
    seen = servable_state(lake, deployment, ds)
    matrix = load_matrix(pinned_basis(lake, basis_version))
    extent = basis_extent(matrix.vectors, matrix.known_ages(ds) >= 0)
    run = GateRun(ds)
    checked = table_checks(lake, deployment, ds, basis_version, matrix, extent)
    outcomes = [outcome for check in checked for outcome in run.rows(*check)]
    measured = one_a_label(measures(lake, deployment, ds, basis_version))
    outcomes += [outcome for each in measured for outcome in run.measured(each)]
    require_unchanged(lake, deployment, ds, seen)
    if seen is not None:
        record_validated(lake, ds, basis_version, seen)
    write_outcomes(lake, outcomes, ds)
    lake.record_metrics(ds, JOB, gate_metrics(outcomes, measured))
    run.write_docs(docs_index(deployment, ds).parent)
    return outcomes


def served_basis(lake: Lake, deployment: Deployment, ds: date) -> str:
    """Basis of the slice to publish.

    Raises:
        GateError: The slice has no rows.
    """
    where = served_slice(deployment, ds)
    first = lake.read(USER_LTE, where=where).select("basis_version").orderBy("basis_version").first()
    if first is None:
        place = ", ".join(f"{name}={value}" for name, value in where.items())
        raise GateError(f"table user_lte, {place}: no rows to validate: run compute_lte first")
    return str(first["basis_version"])


def servable_state(lake: Lake, deployment: Deployment, ds: date) -> SliceState | None:
    """State of the rows to publish; None if a row cannot be served, in which case a gate fails and names the row."""
    try:
        return slice_state(lake, deployment, ds)
    except BadRowError:
        return None


def require_unchanged(lake: Lake, deployment: Deployment, ds: date, seen: SliceState | None) -> None:
    """Refuse rows that changed while the gates read them: nobody can know which of the rows were judged.

    Raises:
        GateError: The rows changed.
    """
    if seen is None or lake.version(USER_LTE) == seen.version:
        return
    now = servable_state(lake, deployment, ds)
    if now is None or not now.is_same(seen):
        raise GateError(
            f"table user_lte, ds={ds}: expected {seen} to the end of the validation, got {now}: another job wrote "
            "meanwhile; run validate again"
        )


def table_checks(
    lake: Lake, deployment: Deployment, ds: date, basis_version: str, matrix: BasisMatrix, extent: BasisExtent
) -> Iterator[Checked]:
    """Rows of each table with their suite: the generated suite and, for some tables, rules written by hand."""
    is_new = landed_since(last_read(lake, ds), ds)
    dim = matrix.vectors.shape[1]
    interactions = with_interaction_rules(scalars(lake.read(INTERACTIONS).where(is_new("landing_ds")), INTERACTIONS))
    yield INTERACTIONS, interactions, table_suite(INTERACTIONS) + interaction_suite(deployment.interactions.types)
    days = with_counted_events(scalars(lake.read(EVENT_DAYS), EVENT_DAYS), lake.read(INTERACTIONS))
    yield EVENT_DAYS, days, table_suite(EVENT_DAYS) + event_day_suite()
    for table in (INGEST_LOG, QUARANTINE, ITEMS):
        yield table, scalars(lake.read(table).where(is_new("landing_ds")), table), table_suite(table)
    vectors = lake.read(ITEM_EMBEDDINGS, where={"basis_version": basis_version}).where(is_new("first_ds"))
    yield ITEM_EMBEDDINGS, scalars(vectors, ITEM_EMBEDDINGS), table_suite(ITEM_EMBEDDINGS) + basis_suite(dim)
    ltes = with_lte_rules(scalars(lake.read(USER_LTE, where={"ds": ds}), USER_LTE), extent.max_norm)
    yield USER_LTE, ltes, table_suite(USER_LTE) + lte_suite(dim, basis_version)
    moved = with_drift_rules(scalars(lake.read(LTE_DRIFT, where={"ds": ds}), LTE_DRIFT))
    yield LTE_DRIFT, moved, table_suite(LTE_DRIFT) + drift_suite()
    of_day: Predicate = {"ds": ds}
    for table, where in ((USER_HISTORIES, of_day), (RUNS, of_day), (METRICS, {**of_day, "job": LTE_JOBS})):
        yield table, scalars(lake.read(table, where=where), table), table_suite(table)
    yield LIVE_SNAPSHOT, scalars(lake.read(LIVE_SNAPSHOT), LIVE_SNAPSHOT), table_suite(LIVE_SNAPSHOT)


def last_passed(lake: Lake, ds: date) -> date | None:
    """The newest day before ds whose gates all passed."""
    days = lake.read(GATE_RESULTS).where(F.col("ds") < F.lit(ds)).groupBy("ds")
    passed = days.agg(F.min(F.col("success").cast("int")).alias("held")).where("held = 1")
    newest: date | None = passed.agg(F.max("ds").alias("ds")).collect()[0]["ds"]
    return newest


def last_read(lake: Lake, ds: date) -> date | None:
    """Newest landing day up to which nothing changed since all gates of a day before ds passed.

    A late file in the folder of an older landing day is ingested as part of that day, long after its gates passed.
    """
    last = last_passed(lake, ds)
    if last is None:
        return None
    of_ingest = lake.read(METRICS, where={"job": INGEST_JOB, "metric": DAYS_BACK})
    since = of_ingest.where((F.col("ds") > F.lit(last)) & (F.col("ds") <= F.lit(ds))).select("ds", "value").collect()
    unchanged: list[date] = [row["ds"] - timedelta(days=int(row["value"]) + 1) for row in since]
    return min([last, *unchanged])


def landed_since(last: date | None, ds: date) -> Callable[[str], Column]:
    """Condition on a column with landing days: after ``last``, and at most ds."""

    def condition(column: str) -> Column:
        is_known = F.col(column) <= F.lit(ds)
        return is_known if last is None else is_known & (F.col(column) > F.lit(last))

    return condition


def measures(lake: Lake, deployment: Deployment, ds: date, basis_version: str) -> Iterator[Measured]:
    """All measured values that the gates judge in addition to rows."""
    yield measure_input(lake, deployment, ds)
    yield measure_catalogue(lake, deployment, ds, basis_version)
    yield measure_basis(lake, basis_version)
    yield from measure_slices(lake, deployment, ds, is_stale=is_stale(lake, deployment, ds, basis_version))
    yield from measure_drift(lake, deployment, ds)
    yield from measure_autoencoder(lake, deployment, ds)


def is_stale(lake: Lake, deployment: Deployment, ds: date, basis_version: str) -> bool:
    """Whether the inputs of compute_lte changed since it ran for ds."""
    run = lake.read(RUNS, where={"ds": ds, "job": LTE_JOB}).select("input_fingerprint").first()
    return run is None or run["input_fingerprint"] != input_fingerprint_as_of(
        BasisDay(lake, deployment, ds, basis_version)
    )


def write_outcomes(lake: Lake, outcomes: Sequence[GateOutcome], ds: date) -> None:
    """Replace gate_results of ds."""
    rows = [asdict(outcome) | {"ds": ds} for outcome in outcomes]
    lake.replace_rows([tuple(row[name] for name in GATE_RESULTS.columns) for row in rows], GATE_RESULTS, {"ds": ds})


def gate_metrics(outcomes: Sequence[GateOutcome], measured: Sequence[Measured]) -> Metrics:
    """The measured values, and the numbers of all, failed and skipped expectations."""
    counts = {
        "n_expectations": len(outcomes),
        "n_failed": sum(not outcome.success for outcome in outcomes),
        "n_skipped": sum(outcome.skipped is not None for outcome in outcomes),
    }
    found: Metrics = {(name, ""): float(n) for name, n in counts.items()}
    for each in measured:
        label = each.label or each.table
        found |= {(name, label): float(value) for name, value in each.values.items() if value is not None}
    return found


def summary(outcomes: Sequence[GateOutcome], ds: date, docs: Path) -> str:
    """The result as a text: counts, the skipped expectations with their reasons, and the path of the Data Docs."""
    n_failed = sum(not outcome.success for outcome in outcomes)
    skipped = [outcome for outcome in outcomes if outcome.skipped]
    lines = [f"ds={ds}: {len(outcomes)} expectations, {n_failed} failed, {len(skipped)} skipped; Data Docs: {docs}"]
    lines += [f"HEADLINE: {headline}" for headline in headlines(outcomes)]
    lines += [f"skipped: {outcome.table}: {outcome.expectation}: {outcome.skipped}" for outcome in skipped]
    return "\n".join(lines)


def headlines(outcomes: Sequence[GateOutcome]) -> list[str]:
    """Lines that a person must read first: failures that make a whole table worthless."""
    texts = {
        "zero_share": "nearly every LTE is the zero vector, so a server would treat every user as a stranger",
        "volume_share": "the day has far fewer interactions than usual: did the landing files come?",
        "event_age_days": "the newest interactions are old: did the landing files come?",
    }
    failed = [outcome for outcome in outcomes if not outcome.success]
    return [
        f"{outcome.table}: {text} ({name} {outcome.observed}, expected {outcome.expected})"
        for outcome in failed
        for name, text in texts.items()
        if f"({name})" in outcome.expectation
    ]


def require_success(outcomes: Sequence[GateOutcome], ds: date) -> None:
    """Stop the day if an expectation failed.

    Raises:
        GateError: Names each failed expectation, its table, ds, the observed and expected values, and some rows.
    """
    failed = [outcome for outcome in outcomes if not outcome.success]
    if not failed:
        return
    more = [f"and {len(failed) - FAILURES_SHOWN} more"] if len(failed) > FAILURES_SHOWN else []
    lines = [_failure(outcome) for outcome in failed[:FAILURES_SHOWN]]
    raise GateError("\n  ".join([f"ds={ds}: {len(failed)} of {len(outcomes)} expectations failed:", *lines, *more]))


def _failure(outcome: GateOutcome) -> str:
    rows = f"; rows: {_without_users(outcome)[:ROWS_SHOWN]}" if outcome.sample else ""
    return (
        f"table {outcome.table}: {outcome.expectation}: observed {outcome.observed}, expected {outcome.expected}{rows}"
    )


def _without_users(outcome: GateOutcome) -> str:
    """The sample of rows as JSON for a log: a hash stands for each user, because an erasure does not change logs."""
    rows = json.loads(outcome.sample or "[]")
    # Values of one column are no mappings; the expectation names the column.
    named = next((name for name in (*USER_COLUMNS, *ROW_COLUMNS) if f"({name})" in outcome.expectation), "")
    return json.dumps([_without_user(row, named) for row in rows])


def _without_user(value: Any, column: str) -> Any:
    """A row, or a value of a column, without the ids of users."""
    if isinstance(value, Mapping):
        return {name: _without_user(each, name) for name, each in value.items()}
    if value is None or column not in (*USER_COLUMNS, *ROW_COLUMNS):
        return value
    return shown_user(str(value)) if column in USER_COLUMNS else ROW_TEXT


if __name__ == "__main__":
    run_job(main)
