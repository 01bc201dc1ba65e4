"""Pure plans of an ingest: which days it processes, which row of a key stays, and whether the counts add up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.landing.erased import ERASED_USER
from jobs.landing.files import LandingError, LandingFile
from schemas import INTERACTIONS, ITEMS, Table

DUPLICATE = "duplicate_event"
DUPLICATE_ITEM = "duplicate_item"
CHECKSUM_RANGE = 2**64

# A character that ids cannot hold, so that the joined columns of two rows are equal only if the rows are.
SEPARATOR = "\x1f"
TOP_REASONS = 3


@dataclass(frozen=True)
class Batch:
    """The landing days that one run processes, with all files of each day.

    Attributes:
        ds: Data day of the run.
        days: Landing days: ds, and every earlier day with a file that no run has processed yet.
        files: Their files.
    """

    ds: date
    days: tuple[date, ...]
    files: tuple[LandingFile, ...]

    def of(self, target: str) -> list[LandingFile]:
        """Files of one target."""
        return [file for file in self.files if file.target == target]


@dataclass
class FileCounts:
    """Row counts of one file; a file that cannot be read to its end is refused and counts as one bad row."""

    n_read: int = 0
    n_accepted: int = 0
    n_duplicate: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    is_refused: bool = False

    @property
    def n_quarantined(self) -> int:
        """Bad rows, without duplicates."""
        return self.faults.total()


Counts = Mapping[LandingFile, FileCounts]


@dataclass(frozen=True)
class DayState:
    """State of a UTC day of interactions: number of rows, and sums of hashes over the keys and over whole rows."""

    n_events: int
    key_sum: int
    row_sum: int

    @property
    def checksum(self) -> str:
        """Order-independent checksum of the keys: 16 hex digits."""
        return f"{self.key_sum % CHECKSUM_RANGE:016x}"


def plan_batch(files: Iterable[LandingFile], logged: Mapping[str, int | None], ds: date) -> Batch:
    """Choose the days to process: ``ds``, earlier days that no run processed, and days with a file of changed size.

    Args:
        files: All files of the landing folder.
        logged: Name of each file that earlier runs processed, to its size in bytes then; None for an unknown size.
        ds: Data day.
    """
    upto = [file for file in files if file.ds <= ds]
    days = {ds} | {file.ds for file in upto if file.name not in logged or has_changed(file, logged)}
    return Batch(ds, tuple(sorted(days)), tuple(sorted(file for file in upto if file.ds in days)))


def has_changed(file: LandingFile, logged: Mapping[str, int | None]) -> bool:
    """Whether a processed file has another size now, because its writer had not finished or wrote it again."""
    return logged.get(file.name) not in (None, file.size)


def refuse_missing_days(batch: Batch, held: Mapping[str, Iterable[date]]) -> None:
    """Refuse to delete a landing day's rows only because its files are gone.

    Args:
        batch: The landing days of this run.
        held: Target to the landing days whose rows its table holds.

    Raises:
        LandingError: A day of the batch has no files of a target, but the table holds rows that came with it.
    """
    for target, days in held.items():
        present = {file.ds for file in batch.of(target)}
        gone = sorted(day for day in days if day in batch.days and day not in present)
        if gone:
            raise LandingError(
                f"landing {target}/ds={gone[0]} is missing or empty, but table {target} holds rows of it; bring the "
                f"files back (to take rows out, land files without them); ds {batch.ds}, days {[str(d) for d in gone]}"
            )


def refuse_bad_shares(batch: Batch, counts: Counts, max_bad_share: float) -> None:
    """Stop before anything is written if too large a share of a landing day is bad.

    The share is the larger of two: the share of bad rows, and the share of files refused whole. A refused file counts
    as one bad row, because its number of rows is unknown.

    Raises:
        LandingError: A day's share is above ``max_bad_share``; names ds, counts, worst file and the top reasons.
    """
    by_day: dict[tuple[date, str], list[LandingFile]] = defaultdict(list)
    for file in batch.files:
        by_day[file.ds, file.target].append(file)
    for (day, target), files in sorted(by_day.items()):
        n_read = sum(counts[f].n_read for f in files)
        # Rows of erased users are correct, not bad.
        n_bad = sum(counts[f].n_quarantined - counts[f].faults[ERASED_USER] for f in files)
        n_lost = sum(counts[f].is_refused for f in files)
        share = max(n_bad / max(n_read, 1), n_lost / len(files))
        if share > max_bad_share:
            faults = sum((counts[f].faults for f in files), Counter[str]())
            worst = max(files, key=lambda f: counts[f].n_quarantined)
            top = ", ".join(f"{reason} {n}" for reason, n in faults.most_common(TOP_REASONS))
            raise LandingError(
                f"landing {target}/ds={day}: {n_bad} of {n_read} rows are bad, {n_lost} of {len(files)} files cannot "
                f"be read: a share of {share:.4f}, interactions.max_bad_share is {max_bad_share}; {top}; worst file "
                f"{worst.name} ({counts[worst].n_quarantined} of {counts[worst].n_read}); nothing was written"
            )


def require_conserved(counts: Counts) -> None:
    """Prove that no row was lost or added: rows read = accepted + duplicate + quarantined, for each file.

    Raises:
        LandingError: The counts of a file do not add up.
    """
    for file, each in counts.items():
        if each.n_read != each.n_accepted + each.n_duplicate + each.n_quarantined:
            raise LandingError(
                f"landing {file.name}, ds={file.ds}: {each.n_read} rows read, but {each.n_accepted} accepted + "
                f"{each.n_duplicate} duplicate + {each.n_quarantined} quarantined; nothing was written"
            )


def ranked(rows: DataFrame, key: Sequence[str], order: Sequence[str]) -> DataFrame:
    """Rank the rows of each key by ``order``: add ``position`` (1 stays), and place and landing day of that row."""
    window = Window.partitionBy(*key).orderBy(*order)
    place = F.concat_ws(":", "source_file", F.col("line").cast("string"))
    first = {"holder": F.first(place).over(window), "holder_ds": F.first("landing_ds").over(window)}
    return rows.withColumns({"position": F.row_number().over(window), **first})


def merged_interactions(existing: DataFrame, landed: DataFrame) -> DataFrame:
    """Rows of the affected days and the batch's good rows, ranked within their key.

    Args:
        existing: Rows of table interactions from other landing days. They keep their keys.
        landed: Good rows of the batch, from :func:`jobs.landing.rows.landing_rows`.

    Returns:
        All columns of interactions, source_file (empty for existing rows), line, position, holder and holder_ds.
    """
    new = landed.withColumn("event_date", F.to_date("event_ts"))
    old = existing.withColumns({"source_file": F.lit(""), "line": F.lit(0).cast("bigint")})
    columns = [*INTERACTIONS.columns, "source_file", "line"]
    both = old.select(*columns).unionByName(new.select(*columns))
    # The empty name sorts first: rows that were ingested earlier from another landing day stay.
    is_new = (F.col("source_file") != "").cast("int")
    return ranked(both.withColumn("is_new", is_new), INTERACTIONS.key, ("is_new", "landing_ds", "source_file", "line"))


def ranked_items(landed: DataFrame) -> DataFrame:
    """The batch's good item rows, ranked within item and landing day."""
    return ranked(landed, ITEMS.key, ("source_file", "line"))


def duplicates(ranked_rows: DataFrame, table: Table, values: Sequence[str]) -> DataFrame:
    """Quarantine rows for landed rows that do not stay, with the row that holds the key and the values as JSON."""
    rows = ranked_rows.where((F.col("position") > 1) & (F.col("source_file") != ""))
    # A run knows the files of its own landing days only. The text must not depend on which days a run combines.
    other_day = F.concat(F.lit("a row of landing day "), F.col("holder_ds").cast("string"))
    holder = F.when(F.col("holder_ds") == F.col("landing_ds"), F.col("holder")).otherwise(other_day)
    shown = [F.substring(F.col(name).cast("string"), 1, 200).alias(name) for name in values]
    return rows.select(
        F.lit(table.name).alias("target"),
        "source_file",
        "line",
        F.lit(DUPLICATE if table is INTERACTIONS else DUPLICATE_ITEM).alias("reason"),
        F.concat(F.lit("same key as "), holder).alias("detail"),
        F.to_json(F.struct(*shown)).alias("raw"),
        "landing_ds",
        (F.col("user_id") if table is INTERACTIONS else F.lit(None).cast("string")).alias("found_user_id"),
    )


def _hash_sum(columns: Sequence[Column], condition: Column) -> Column:
    text = F.concat_ws(SEPARATOR, *columns)
    return F.sum(F.when(condition, F.xxhash64(text).cast("decimal(38,0)"))).cast("string")


def state_columns(is_kept: Column) -> dict[str, Column]:
    """Aggregates of interactions that make a :class:`DayState`; sums of hashes do not depend on order."""
    key = [F.col("user_id"), F.col("item_id"), F.unix_micros("event_ts").cast("string"), F.col("interaction_type")]
    rest = [F.col("market"), F.coalesce(F.col("session_id"), F.lit("\x1e")), F.col("landing_ds").cast("string")]
    return {
        "n_kept": F.sum(is_kept.cast("bigint")),
        "key_sum": _hash_sum(key, is_kept),
        "row_sum": _hash_sum([*key, *rest], is_kept),
    }


def day_states(parts: Iterable[tuple[date, int, str | None, str | None]]) -> dict[date, DayState]:
    """Add up the parts (event_date, rows, key sum, row sum) of each day; a day without rows is left out."""
    states: dict[date, DayState] = {}
    for day, n_rows, key_sum, row_sum in parts:
        before = states.get(day, DayState(0, 0, 0))
        states[day] = DayState(
            before.n_events + int(n_rows or 0),
            before.key_sum + int(key_sum or 0),
            before.row_sum + int(row_sum or 0),
        )
    return {day: state for day, state in states.items() if state.n_events}
