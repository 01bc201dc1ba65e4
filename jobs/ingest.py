"""Ingest landing day ds, and every earlier landing day with files that no run has ingested yet.

Landing files become rows of `interactions`, `items` and `quarantine`; `ingest_log` and `event_days` record what was
ingested (see docs/landing.md). A rerun gives the same tables. The order of the writes makes a crash at any point
harmless: `interactions` and the metric `n_days_back` are written first, and `ingest_log`, which marks the files as
done, is written last.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from itertools import chain

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from jobs.config.sections import Deployment
from jobs.lake.day import Day
from jobs.lake.lake import Lake, Metrics, open_lake
from jobs.landing.checks import RowRules
from jobs.landing.erased import erased_users
from jobs.landing.event_days import DAYS_BACK, _existing, _states, _write_event_days
from jobs.landing.files import (
    LandingError,
    LandingFile,
    filesystem,
    landing_files,
    misplaced_files,
    require_landing,
)
from jobs.landing.formats.pieces import ReadLimits
from jobs.landing.merge import (
    Batch,
    Counts,
    DayState,
    FileCounts,
    day_states,
    duplicates,
    has_changed,
    merged_interactions,
    plan_batch,
    ranked_items,
    refuse_bad_shares,
    refuse_missing_days,
    require_conserved,
    state_columns,
)
from jobs.landing.rows import FILE_LINE, TALLY_LINE, Tally, landing_rows, quarantine_rows, staged_schema, value_columns
from jobs.runtime.entry import run_job, say
from jobs.runtime.flags import parse_config
from jobs.runtime.progress import warn
from schemas import EVENT_DAYS, INGEST_LOG, INTERACTIONS, ITEMS, METRICS, QUARANTINE, Table
from schemas.ingest import TARGETS

JOB = "ingest"
STAGING = "_staging/ingest"
SHOWN_FAULTS = 3

# Columns that can identify a person. The detail of a fault begins with the name of the faulty column.
PERSONAL_COLUMNS = ("user_id", "session_id")
FRACTIONS = "have an id like 17.0, which is another id than 17; write whole numbers without a fraction"


@dataclass(frozen=True)
class Staged:
    """Rows of a batch, read once and kept beside the lake until the run ends.

    Attributes:
        rows: Target to its rows, good and bad. A file that could not be read to its end has only one row, with line 0.
        counts: File to its counts. Accepted and duplicate rows are not counted yet.
    """

    rows: Mapping[str, DataFrame]
    counts: Counts

    def good(self, target: str) -> DataFrame:
        """Rows without a fault."""
        return self.rows[target].where(F.col("reason").isNull())

    def bad(self, target: str) -> DataFrame:
        """Rows with a fault."""
        return self.rows[target].where(F.col("reason").isNotNull())


def ingest(day: Day) -> None:
    """Ingest landing day ``ds`` and earlier days with files that were not ingested yet.

    Args:
        day: Its deployment has the landing folder, the engine and the rules.

    Raises:
        LandingError: There are too many bad rows, files of an ingested day are missing, or counts do not add up.
    """
    lake, landing = day.lake, day.deployment.paths.landing
    other_case = require_landing(landing, TARGETS)
    log = _ingest_log(lake)
    files = list(chain.from_iterable(landing_files(landing, target) for target in TARGETS))
    batch = plan_batch(files, {name: n_bytes for _, name, n_bytes in log if name}, day.ds)
    _say_plan(batch, log)
    _say_misplaced(landing, other_case)
    held = {
        target: _held_days(lake, table, batch) for target, table in (("interactions", INTERACTIONS), ("items", ITEMS))
    }
    refuse_missing_days(batch, {target: [landed for landed, _ in days] for target, days in held.items()})
    # Removes what a killed run left. This run holds the lease, so no other run reads these files.
    _remove(lake.for_engine(STAGING))
    staging = lake.for_engine(f"{STAGING}/{day.ds}-{secrets.token_hex(8)}")
    try:
        staged = _staged(lake, day.deployment, batch, staging)
        _say_first_faults(staged)
        refuse_bad_shares(batch, staged.counts, day.deployment.interactions.max_bad_share)
        _write_batch(lake, batch, staged, {event_day for _, event_day in held["interactions"] if event_day is not None})
    finally:
        _remove(staging)


Log = Sequence[tuple[date, str, int | None]]


def _ingest_log(lake: Lake) -> Log:
    """Landing day, name and size in bytes of the files that earlier runs ingested."""
    rows = lake.read(INGEST_LOG).select("landing_ds", "source_file", "bytes").collect()
    return [(row["landing_ds"], row["source_file"], row["bytes"]) for row in rows]


def _say_plan(batch: Batch, log: Log) -> None:
    holes = [day for day in batch.days if day != batch.ds]
    span = f", {len(holes)} earlier days not ingested before ({holes[0]} to {holes[-1]})" if holes else ""
    say(JOB, f"ds {batch.ds}: {len(batch.files)} files{span}")
    if not any(file.ds == batch.ds for file in batch.of("interactions")):
        warn(JOB, f"no files in landing interactions/ds={batch.ds}; the day counts as empty")
    present = {file.name for file in batch.files}
    sizes = {name: n_bytes for _, name, n_bytes in log}
    for file in batch.files:
        if has_changed(file, sizes):
            change = f"had {sizes[file.name]} bytes when it was ingested and has {file.size} now"
            warn(JOB, f"{file.name} {change}; landing day {file.ds} is taken anew")
    for day, name, _ in sorted(log, key=lambda row: row[:2]):
        if day in batch.days and name and name not in present:
            warn(JOB, f"{name} was ingested before and is gone from the landing folder; its rows go")


def _say_misplaced(landing: str, other_case: Sequence[str]) -> None:
    """Warn of files that no run will ever read, because their folder is wrong; no other message reports them."""
    for name in other_case:
        warn(JOB, f"landing {name}/ is ignored: expected {name.lower()}/, got {name}/; move its files and remove it")
    for target in TARGETS:
        names = misplaced_files(landing, target)
        if names:
            place = f"{target}/ds=YYYY-MM-DD/FILE"
            warn(JOB, f"landing {target}: {len(names)} files ignored, not at {place}; first {names[0]}")


def _say_first_faults(staged: Staged) -> None:
    """Show the faults of a few rows, because a count alone does not tell what to change.

    The erasure of a user does not change logs. So the log shows neither the text nor an id of a row with a user.
    """
    for target in TARGETS:
        if any(each.n_quarantined for file, each in staged.counts.items() if file.target == target):
            for row in staged.bad(target).orderBy("source_file", "line").limit(SHOWN_FAULTS).collect():
                if row["line"]:  # line 0 is a file that was refused as a whole; the log has named it already
                    warn(JOB, f"{row['source_file']} line {row['line']}: {_shown_fault(target, row)}")


def _shown_fault(target: str, row: Row) -> str:
    """Reason and value of a bad row; for a row with a user, only a value that identifies no person."""
    names_somebody = row["detail"].startswith(PERSONAL_COLUMNS) if row["detail"] else True
    if target == "interactions" and names_somebody:
        return f"{row['reason']}; table quarantine has the row"
    detail = f" ({row['detail']})" if row["detail"] else ""
    return f"{row['reason']}{detail}" + ("" if target == "interactions" else f": {row['raw']}")


def _held_days(lake: Lake, table: Table, batch: Batch) -> list[tuple[date, date | None]]:
    """Landing days of the batch with rows in ``table``, each with the event days of these rows."""
    event_date = F.col("event_date") if "event_date" in table.columns else F.lit(None).cast("date")
    rows = lake.read(table).where(F.col("landing_ds").isin(list(batch.days)))
    if "event_date" in table.columns:  # no event is later than its landing day, so later partitions are not read
        rows = rows.where(F.col("event_date") <= F.lit(batch.days[-1]))
    return [tuple(row) for row in rows.select("landing_ds", event_date.alias("event_date")).distinct().collect()]


def _staged(lake: Lake, deployment: Deployment, batch: Batch, staging: str) -> Staged:
    """Read the files once, keep the rows, and count them."""
    limits = ReadLimits(deployment.landing.max_file_bytes, deployment.landing.max_batch_bytes)
    rules = RowRules(deployment.interactions.types, deployment.interactions.earliest, erased_users(lake), limits)
    rows: dict[str, DataFrame] = {}
    counts = {file: FileCounts() for file in batch.files}
    for target in TARGETS:
        files = batch.of(target)
        path = f"{staging}/{target}"
        if files:
            landed = landing_rows(
                lake.spark,
                deployment.paths.landing,
                files,
                rules,
                target=target,
                n_partitions=deployment.engine.partitions,
            )
            with _worker_errors():
                landed.write.mode("overwrite").parquet(path)
            written = lake.spark.read.schema(staged_schema(target)).parquet(path)
        else:
            written = lake.spark.createDataFrame([], staged_schema(target))
        rows[target] = _counted(written, {file.name: file for file in files}, counts)
    return Staged(rows, counts)


@contextmanager
def _worker_errors() -> Iterator[None]:
    """Raise a worker's error about the landing folder again, without the stack traces of the engine."""
    try:
        yield
    except PySparkException as error:
        found = re.search(r"LandingError: (landing [^\n]*)", str(error))
        if found is None:
            raise
        raise LandingError(f"{found[1]}; nothing was written") from error


def _counted(written: DataFrame, files: Mapping[str, LandingFile], counts: Counts) -> DataFrame:
    """Fill in the counts of read and bad rows; drop the tallies and the rows of files that could not be read."""
    faults = written.where(F.col("reason").isNotNull() & (F.col("line") > FILE_LINE)).groupBy("source_file", "reason")
    special = written.where(F.col("line") <= FILE_LINE).select("source_file", "line", "reason", "detail").collect()
    refused = {row.source_file: row for row in special if row.line == FILE_LINE}
    for row in special:
        if row.line == TALLY_LINE:
            tally = Tally(**json.loads(row.detail))
            counts[files[row.source_file]].n_read = tally.rows
            _say_tally(row.source_file, tally)
    for row in faults.agg(F.count("*").alias("n")).collect():
        if row.source_file not in refused:
            counts[files[row.source_file]].faults[row.reason] = row.n
    for name, row in refused.items():
        counts[files[name]].faults[row.reason], counts[files[name]].is_refused = 1, True
        warn(JOB, f"{name}: {row.reason}: {row.detail}")
    rows = written.where(F.col("line") > TALLY_LINE)
    if refused:
        rows = rows.where((F.col("line") == FILE_LINE) | ~F.col("source_file").isin(list(refused)))
    return rows


def _say_tally(name: str, tally: Tally) -> None:
    if tally.ignored:
        say(JOB, f"{name}: columns ignored: {', '.join(tally.ignored)}")
    if tally.fractions:
        warn(JOB, f"{name}: {tally.fractions} rows {FRACTIONS}")


def _write_batch(lake: Lake, batch: Batch, staged: Staged, held_days: set[date]) -> None:
    """Compute everything, check that the counts add up, then write; the markers of completion are written last."""
    landed = staged.good("interactions").withColumn("event_date", F.to_date("event_ts"))
    event_days = held_days | {row.event_date for row in landed.select("event_date").distinct().collect()}
    affected = sorted(event_days)
    existing = _existing(lake, affected)
    others = existing.where(~F.col("landing_ds").isin(list(batch.days)))
    merged = merged_interactions(others, staged.good("interactions"))
    items = ranked_items(staged.good("items"))
    by_name = {file.name: staged.counts[file] for file in batch.files}
    wanted = _tally_interactions(merged, by_name)
    _tally_items(items, by_name)
    require_conserved(staged.counts)
    _write_quarantine(lake, batch, staged, {INTERACTIONS: merged, ITEMS: items})
    if batch.of("items"):
        expected = sum(staged.counts[file].n_accepted for file in batch.of("items"))
        rows = items.where("position = 1").select(*ITEMS.columns)
        lake.replace(rows, ITEMS, {"landing_ds": batch.days}, expected_rows=expected)
    _write_event_days(lake, affected, wanted)
    _write_interactions(lake, merged, wanted, _states(existing))
    # Written before the log. Once the log holds the files, no later run knows that they belong to an earlier day.
    metrics = {**_metrics(batch, staged.counts), **_input_metrics(lake, batch.ds), DAYS_BACK: _n_days_back(lake, batch)}
    lake.record_metrics(batch.ds, JOB, metrics)
    lake.replace_rows(_log_rows(batch, staged.counts), INGEST_LOG, {"landing_ds": batch.days})
    _say_done(batch, staged.counts)


def _tally_interactions(merged: DataFrame, counts: Mapping[str, FileCounts]) -> dict[date, DayState]:
    """Count accepted and duplicate rows of each file; returns the new state of each affected day."""
    aggregates = {**state_columns(F.col("position") == 1), "n_rows": F.count("*")}
    parts = merged.groupBy("event_date", "source_file").agg(*[c.alias(n) for n, c in aggregates.items()]).collect()
    for row in parts:
        if row.source_file:
            counts[row.source_file].n_accepted += row.n_kept
            counts[row.source_file].n_duplicate += row.n_rows - row.n_kept
    return day_states((row.event_date, row.n_kept, row.key_sum, row.row_sum) for row in parts)


def _tally_items(items: DataFrame, counts: Mapping[str, FileCounts]) -> None:
    kept = F.sum((F.col("position") == 1).cast("bigint")).alias("n_kept")
    for row in items.groupBy("source_file").agg(kept, F.count("*").alias("n_rows")).collect():
        counts[row.source_file].n_accepted = row.n_kept
        counts[row.source_file].n_duplicate = row.n_rows - row.n_kept


def _write_quarantine(lake: Lake, batch: Batch, staged: Staged, ranked: Mapping[Table, DataFrame]) -> None:
    rows = quarantine_rows(staged.bad("interactions"), "interactions")
    rows = rows.unionByName(quarantine_rows(staged.bad("items"), "items"))
    for table, each in ranked.items():
        if any(staged.counts[file].n_duplicate for file in batch.of(table.name)):
            shown = [field.name for field in value_columns(table.name) if field.name != "image"]
            rows = rows.unionByName(duplicates(each, table, shown))
    n_rows = lake.replace(rows, QUARANTINE, {"landing_ds": batch.days})
    expected = sum(each.n_quarantined + each.n_duplicate for each in staged.counts.values())
    if n_rows != expected:
        raise LandingError(f"table quarantine, ds={batch.ds}: {n_rows} rows were written where {expected} were counted")


def _write_interactions(
    lake: Lake, merged: DataFrame, wanted: Mapping[date, DayState], found: Mapping[date, DayState]
) -> None:
    """Rewrite only the days whose rows change."""
    changed = sorted(day for day in {*wanted, *found} if wanted.get(day) != found.get(day))
    say(JOB, f"{len(changed)} event days change" + (f" ({changed[0]} to {changed[-1]})" if changed else ""))
    if not changed:
        return
    rows = merged.where((F.col("position") == 1) & F.col("event_date").isin(changed)).select(*INTERACTIONS.columns)
    n_rows = lake.replace(rows, INTERACTIONS, {"event_date": changed}, is_retried=False)
    expected = sum(wanted[day].n_events for day in changed if day in wanted)
    if n_rows != expected:
        raise LandingError(f"table interactions: {n_rows} rows were written where {expected} were counted")


def _log_rows(batch: Batch, counts: Counts) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = [
        (f.target, f.name, each.n_read, each.n_accepted, each.n_duplicate, each.n_quarantined, f.ds, f.size)
        for f, each in sorted(counts.items())
    ]
    if not any(file.ds == batch.ds for file in batch.of("interactions")):
        rows.append(("interactions", "", 0, 0, 0, 0, batch.ds, None))
    return rows


def _totals(counts: Iterable[FileCounts]) -> dict[str, int]:
    each = list(counts)
    return {
        "rows_read": sum(c.n_read for c in each),
        "rows_accepted": sum(c.n_accepted for c in each),
        "rows_duplicate": sum(c.n_duplicate for c in each),
        "rows_quarantined": sum(c.n_quarantined for c in each),
    }


def _metrics(batch: Batch, counts: Counts) -> Metrics:
    """Counts of landing day ds alone. So a rerun, which has no earlier days to ingest, records the same."""
    metrics: Metrics = {}
    for target in TARGETS:
        of_day = [counts[file] for file in batch.of(target) if file.ds == batch.ds]
        metrics |= {(name, target): value for name, value in _totals(of_day).items()}
        metrics[("files", target)] = len(of_day)
        for each in of_day:
            for reason, n in each.faults.items():
                label = f"{target}/{reason}"
                metrics[("rows_quarantined_by_reason", label)] = (
                    metrics.get(("rows_quarantined_by_reason", label), 0) + n
                )
    return metrics


def _input_metrics(lake: Lake, ds: date) -> Metrics:
    """Values by which the gates judge the input of a day: events of ds, and days since the newest event up to ds.

    Events of other days are in event_days, one row per day, so that the gates compare a weekday with the same weekday.
    """
    days = lake.read(EVENT_DAYS).where(F.col("event_date") <= F.lit(ds))
    found = days.agg(
        F.min("event_date").alias("first"),
        F.max("event_date").alias("newest"),
        F.sum(F.when(F.col("event_date") == F.lit(ds), F.col("n_events"))).alias("n_events"),
    ).collect()[0]
    _warn_of_late_catalogue(lake, found["first"])
    metrics: Metrics = {"n_events_of_day": float(found["n_events"] or 0)}
    if found["newest"] is not None:
        metrics["n_days_since_event"] = float((ds - found["newest"]).days)
    return metrics


def _warn_of_late_catalogue(lake: Lake, first_event: date | None) -> None:
    """Warn when the catalogue landed too late: an item counts as unknown before the day on which it landed."""
    if first_event is None:
        return
    first_item = lake.read(ITEMS).agg(F.min("landing_ds").alias("first")).collect()[0]["first"]
    if first_item is None:
        warn(JOB, f"no catalogue has landed, so that every event counts as unknown; land it in items/ds={first_event}")
    elif first_item > first_event:
        why = f"first landed on {first_item}, after the first event ({first_event}): until then every item is unknown"
        warn(JOB, f"the catalogue {why}; land the catalogue that belongs to these events in items/ds={first_event}")


def _n_days_back(lake: Lake, batch: Batch) -> float:
    """Days from ds back to the first landing day that any run of ds wrote.

    Earlier runs of ds count too, because a rerun has no earlier days left to ingest.
    """
    before = lake.read(METRICS, where={"ds": batch.ds, "job": JOB, "metric": DAYS_BACK}).select("value").collect()
    return max([float((batch.ds - batch.days[0]).days), *(float(row["value"]) for row in before)])


def _say_done(batch: Batch, counts: Counts) -> None:
    for target in TARGETS:
        totals = _totals(counts[file] for file in batch.of(target))
        say(JOB, f"{target}: " + ", ".join(f"{name.removeprefix('rows_')} {n}" for name, n in totals.items()))


def _remove(staging: str) -> None:
    system, path = filesystem(staging)
    if system.get_file_info(path).type.name == "Directory":
        system.delete_dir(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags, open the lake and ingest."""
    config = parse_config(argv, JOB, __doc__)
    with open_lake(config.deployment, JOB, config.ds) as lake:
        ingest(Day(lake, config.deployment, config.ds))


if __name__ == "__main__":
    run_job(main)
