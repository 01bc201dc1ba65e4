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
from jobs.gates.autoencoder_measures import measure_autoencoder
from jobs.gates.checkpoints import GateOutcome, GateRun
from jobs.gates.measured import Measured, one_a_label
from jobs.gates.measures import measure_basis, measure_catalogue, measure_drift, measure_input, measure_slices
from jobs.gates.refusals import is_blocking, refusal_text, refusing
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
from jobs.health.measures import measure_health
from jobs.lake.day import BasisDay, Day
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
        outcomes = validate_day(Day(lake, config.deployment, config.ds))
    print(summary(outcomes, config.ds, docs_index(config.deployment, config.ds)), flush=True)
    require_success(outcomes, config.ds)


def validate_day(day: Day) -> list[GateOutcome]:
    """Run every checkpoint of ds; write gate_results, metrics and Data Docs, even when expectations failed.

    When this function raises, the table has no gate_results of ds.

    Args:
        day: Its lake holds all tables of the daily run; its deployment has limits and folders.

    Returns:
        One outcome per expectation.

    Raises:
        GateError: user_lte has no rows of ds, or rows of the served slice changed while the gates read them.
        jobs.basis.basis.BasisError: The basis is damaged.
    """
    # An earlier pass may be about rows that changed since. Publishing needs these results, so it stops without them.
    day.lake.delete(GATE_RESULTS, {"ds": day.ds})
    forget_validated(day.lake, day.ds)
    claim(Path(day.deployment.paths.data_docs), day.deployment, "paths.data_docs")
    in_basis = day.on(served_basis(day))
    seen = servable_state(day)
    matrix = load_matrix(pinned_basis(day.lake, in_basis.basis_version))
    extent = basis_extent(matrix.vectors, matrix.known_ages(day.ds) >= 0)
    run = GateRun(day.ds)
    checked = table_checks(in_basis, matrix, extent)
    outcomes = [outcome for check in checked for outcome in run.rows(*check)]
    measured = one_a_label(measures(in_basis))
    outcomes += [refusing(outcome, each.label) for each in measured for outcome in run.measured(each)]
    require_unchanged(day, seen)
    if seen is not None:
        record_validated(day.lake, day.ds, in_basis.basis_version, seen)
    write_outcomes(day.lake, outcomes, day.ds)
    day.lake.record_metrics(day.ds, JOB, gate_metrics(outcomes, measured))
    run.write_docs(docs_index(day.deployment, day.ds).parent)
    return outcomes


def served_basis(day: Day) -> str:
    """Basis of the slice to publish.

    Raises:
        GateError: The slice has no rows.
    """
    where = served_slice(day.deployment, day.ds)
    first = day.lake.read(USER_LTE, where=where).select("basis_version").orderBy("basis_version").first()
    if first is None:
        place = ", ".join(f"{name}={value}" for name, value in where.items())
        raise GateError(f"table user_lte, {place}: no rows to validate: run compute_lte first")
    return str(first["basis_version"])


def servable_state(day: Day) -> SliceState | None:
    """State of the rows to publish; None if a row cannot be served, in which case a gate fails and names the row."""
    try:
        return slice_state(day)
    except BadRowError:
        return None


def require_unchanged(day: Day, seen: SliceState | None) -> None:
    """Refuse rows that changed while the gates read them: nobody can know which of the rows were judged.

    Raises:
        GateError: The rows changed.
    """
    if seen is None or day.lake.version(USER_LTE) == seen.version:
        return
    now = servable_state(day)
    if now is None or not now.is_same(seen):
        raise GateError(
            f"table user_lte, ds={day.ds}: expected {seen} to the end of the validation, got {now}: another job wrote "
            "meanwhile; run validate again"
        )


def table_checks(day: BasisDay, matrix: BasisMatrix, extent: BasisExtent) -> Iterator[Checked]:
    """Rows of each table with their suite: the generated suite and, for some tables, rules written by hand."""
    is_new = landed_since(last_read(day.lake, day.ds), day.ds)
    dim = matrix.vectors.shape[1]
    interactions = with_interaction_rules(
        scalars(day.lake.read(INTERACTIONS).where(is_new("landing_ds")), INTERACTIONS)
    )
    yield INTERACTIONS, interactions, table_suite(INTERACTIONS) + interaction_suite(day.deployment.interactions.types)
    days = with_counted_events(scalars(day.lake.read(EVENT_DAYS), EVENT_DAYS), day.lake.read(INTERACTIONS))
    yield EVENT_DAYS, days, table_suite(EVENT_DAYS) + event_day_suite()
    for table in (INGEST_LOG, QUARANTINE, ITEMS):
        yield table, scalars(day.lake.read(table).where(is_new("landing_ds")), table), table_suite(table)
    vectors = day.lake.read(ITEM_EMBEDDINGS, where={"basis_version": day.basis_version}).where(is_new("first_ds"))
    yield ITEM_EMBEDDINGS, scalars(vectors, ITEM_EMBEDDINGS), table_suite(ITEM_EMBEDDINGS) + basis_suite(dim)
    ltes = with_lte_rules(scalars(day.lake.read(USER_LTE, where={"ds": day.ds}), USER_LTE), extent.max_norm)
    yield USER_LTE, ltes, table_suite(USER_LTE) + lte_suite(dim, day.basis_version)
    moved = with_drift_rules(scalars(day.lake.read(LTE_DRIFT, where={"ds": day.ds}), LTE_DRIFT))
    yield LTE_DRIFT, moved, table_suite(LTE_DRIFT) + drift_suite()
    of_day: Predicate = {"ds": day.ds}
    for table, where in ((USER_HISTORIES, of_day), (RUNS, of_day), (METRICS, {**of_day, "job": LTE_JOBS})):
        yield table, scalars(day.lake.read(table, where=where), table), table_suite(table)
    yield LIVE_SNAPSHOT, scalars(day.lake.read(LIVE_SNAPSHOT), LIVE_SNAPSHOT), table_suite(LIVE_SNAPSHOT)


def last_passed(lake: Lake, ds: date) -> date | None:
    """The newest day before ds whose gates all passed."""
    days = lake.read(GATE_RESULTS).where(F.col("ds") < F.lit(ds)).groupBy("ds")
    is_good = F.col("success") | F.col("refused_method").isNotNull()
    passed = days.agg(F.min(is_good.cast("int")).alias("held")).where("held = 1")
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


def measures(day: BasisDay) -> Iterator[Measured]:
    """All measured values that the gates judge in addition to rows."""
    yield measure_input(day)
    yield measure_catalogue(day)
    yield measure_basis(day.lake, day.basis_version)
    yield from measure_slices(day, is_stale=is_stale(day))
    yield from measure_drift(day)
    yield from measure_autoencoder(day)
    yield from measure_health(day)


def is_stale(day: BasisDay) -> bool:
    """Whether the inputs of compute_lte changed since it ran for ds."""
    run = day.lake.read(RUNS, where={"ds": day.ds, "job": LTE_JOB}).select("input_fingerprint").first()
    return run is None or run["input_fingerprint"] != input_fingerprint_as_of(day)


def write_outcomes(lake: Lake, outcomes: Sequence[GateOutcome], ds: date) -> None:
    """Replace gate_results of ds."""
    rows = [asdict(outcome) | {"ds": ds} for outcome in outcomes]
    lake.replace_rows([tuple(row[name] for name in GATE_RESULTS.columns) for row in rows], GATE_RESULTS, {"ds": ds})


def gate_metrics(outcomes: Sequence[GateOutcome], measured: Sequence[Measured]) -> Metrics:
    """The measured values, and the numbers of all, failed and skipped expectations."""
    counts = {
        "n_expectations": len(outcomes),
        "n_failed": sum(not outcome.success for outcome in outcomes),
        "n_refused": sum(outcome.refused_method is not None for outcome in outcomes),
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
    lines += [refusal_text(outcome) for outcome in outcomes if outcome.refused_method]
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
    """Stop the day if an expectation failed, unless the failure only refuses a method that nothing published reads.

    Raises:
        GateError: Names each failed expectation, its table, ds, the observed and expected values, and some rows.
    """
    failed = [outcome for outcome in outcomes if is_blocking(asdict(outcome))]
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
