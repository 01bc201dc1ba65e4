"""Landing files as DataFrames: each line of each file once, typed; a bad line has the reason instead."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructField, StructType

from jobs.landing.checks import FRACTION_ID, Checked, RowRules, checks_of, reasons_of
from jobs.landing.erased import ERASED_USER, REDACTED, plain_id
from jobs.landing.files import LandingFile
from jobs.landing.formats.pieces import FileRefusedError, Ignored, Piece, RawRows, Reject
from jobs.landing.raw_text import raw_json, scalar_value
from jobs.landing.readers import raw_pieces
from jobs.runtime.text import printable
from schemas import INTERACTIONS, ITEMS, QUARANTINE

TARGET_TABLES = {"interactions": INTERACTIONS, "items": ITEMS}
REQUIRED = {"interactions": ("user_id", "item_id", "event_ts", "interaction_type"), "items": ("item_id", "title")}
COMPUTED = frozenset({"landing_ds", "event_date"})

# Pictures make item rows large, and a batch of item rows must fit into a worker's memory.
BATCH_ROWS = {"interactions": 65_536, "items": 512}
BYTES_PER_PARTITION = 32 << 20
MAX_REJECTS = 4096
IDS = ("user_id", "item_id", "session_id")

# Line number of the extra row that says how many rows the reader saw; this row is not in the file.
TALLY_LINE = -1
FILE_LINE = 0
PLACE = ("source_file", "line", "landing_ds")
FAULT = ("reason", "detail", "raw", "found_user_id")

ARROW_TYPES = {
    "string": pa.string(),
    "double": pa.float64(),
    "binary": pa.binary(),
    "timestamp": pa.timestamp("us", "UTC"),
}


@dataclass(frozen=True)
class _Source:
    """What a worker needs to read its files."""

    landing: str
    target: str
    rules: RowRules
    bins: tuple[tuple[LandingFile, ...], ...]


def value_columns(target: str) -> list[StructField]:
    """Columns of the target's table that a landing file brings, all nullable."""
    table = TARGET_TABLES[target]
    return list(table.row_type([name for name in table.columns if name not in COMPUTED]))


def staged_schema(target: str) -> StructType:
    """Columns of :func:`landing_rows`: where a row stood and what is wrong with it, then its values."""
    return StructType([*QUARANTINE.row_type([*PLACE, *FAULT]), *value_columns(target)])


def landing_rows(
    spark: SparkSession, landing: str, files: Sequence[LandingFile], rules: RowRules, *, target: str, n_partitions: int
) -> DataFrame:
    """Read landing files in parallel, one file in one piece.

    Args:
        spark: Session of any engine; its workers see ``landing``.
        landing: Folder or URI.
        files: Files of ``target``.
        rules: What the deployment allows.
        target: ``interactions`` or ``items``.
        n_partitions: Fewest partitions to spread the files over, where there are that many.

    Returns:
        One row per data line, with source_file, line, landing_ds, and either the typed values or reason, detail and raw
        (line 0: the file as a whole). Each file has one more row, line -1, with JSON in ``detail``: how many rows the
        reader saw, which columns it ignored, and how many ids look like 17.0 (:class:`Tally`).
    """
    bins = balanced(files, max(n_partitions, sum(file.size for file in files) // BYTES_PER_PARTITION))
    read = functools.partial(_read_bins, _Source(landing, target, rules, bins))
    return spark.range(0, len(bins), 1, len(bins)).mapInArrow(read, staged_schema(target))


def balanced(files: Sequence[LandingFile], n_bins: int) -> tuple[tuple[LandingFile, ...], ...]:
    """Spread files over at most ``n_bins`` bins of about the same number of bytes, largest files first."""
    bins: list[list[LandingFile]] = [[] for _ in range(max(1, min(n_bins, len(files))))]
    sizes = [0] * len(bins)
    for file in sorted(files, key=lambda each: (-each.size, each)):
        smallest = sizes.index(min(sizes))
        bins[smallest].append(file)
        sizes[smallest] += file.size + 1
    return tuple(tuple(sorted(each)) for each in bins)


def _read_bins(source: _Source, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for i in batch.column(0).to_pylist():
            for file in source.bins[i]:
                yield from file_batches(source.landing, file, source.rules)


def file_batches(landing: str, file: LandingFile, rules: RowRules) -> Iterator[pa.RecordBatch]:
    """Record batches of one file, in the columns of :func:`landing_rows`."""
    wanted = [field.name for field in value_columns(file.target)]
    tally = Tally()
    rejects: list[Reject] = []
    try:
        for piece in raw_pieces(
            landing,
            file,
            wanted=wanted,
            required=REQUIRED[file.target],
            batch_rows=BATCH_ROWS[file.target],
            limits=rules.limits,
        ):
            tally.count(piece)
            if isinstance(piece, RawRows):
                yield _typed(piece, file, rules, tally)
            elif isinstance(piece, Reject):
                rejects.append(piece)
            if len(rejects) == MAX_REJECTS:  # one record batch per row would take a hundred times as long
                yield _faults(rejects, file)
                rejects = []
    except FileRefusedError as error:
        # The rows before the fault are dropped later: half a file is never taken.
        tally = Tally(rows=1)
        rejects = [Reject(FILE_LINE, error.reason, printable(str(error)), raw_json({"bytes": file.size}))]
    yield _faults(rejects, file)
    yield _faults([Reject(TALLY_LINE, "", json.dumps(dataclasses.asdict(tally)), "")], file)


@dataclass
class Tally:
    """Counts of a reader for one file.

    Attributes:
        rows: Rows, good and bad.
        ignored: Columns that are not in the contract, safe to print.
        fractions: Good rows with an id like 17.0.
    """

    rows: int = 0
    ignored: list[str] = field(default_factory=list)
    fractions: int = 0

    def count(self, piece: Piece) -> None:
        """Count a piece of the file."""
        if isinstance(piece, Ignored):
            self.ignored.extend(printable(name) for name in piece.columns)
        else:
            self.rows += len(piece.lines) if isinstance(piece, RawRows) else 1


def _typed(piece: RawRows, file: LandingFile, rules: RowRules, tally: Tally) -> pa.RecordBatch:
    n_rows = len(piece.lines)
    nothing = pa.nulls(n_rows, pa.string())
    checked = {
        name: check(piece.columns.get(name, nothing)) for name, check in checks_of(file.target, rules, file.ds).items()
    }
    if file.target == "items":
        checked["item_id"] = _with_content(checked)
    reasons = pc.coalesce(*[each.reasons for each in checked.values()])
    user_ids = piece.columns.get("user_id", nothing)
    is_erased = rules.erased.mask(user_ids) if rules.erased else None
    if is_erased is not None:
        reasons = pc.if_else(is_erased, pa.scalar(ERASED_USER), reasons)
    is_good = reasons.is_null()
    details, raws, found = _explained(piece, checked, reasons, user_ids)
    values = {
        name: pc.if_else(is_good, each.values, pa.scalar(None, each.values.type)) for name, each in checked.items()
    }
    if file.target == "items":
        values["title"] = pc.if_else(is_good, pc.fill_null(values["title"], ""), values["title"])
    tally.fractions += _n_fractions([values[name] for name in IDS if name in values])
    fixed = {"line": pa.array(piece.lines, pa.int64()), "reason": reasons, "detail": details, "raw": raws}
    fixed["found_user_id"] = found
    return _batch(file, n_rows, {**fixed, **values})


def _n_fractions(ids: Sequence[pa.Array]) -> int:
    """Rows with an id that a program wrote as a decimal fraction."""
    masks = [pc.fill_null(pc.match_substring_regex(each, FRACTION_ID), False) for each in ids]
    return int(pc.sum(functools.reduce(pc.or_, masks)).as_py() or 0)


def _with_content(checked: Mapping[str, Checked]) -> Checked:
    """An item needs a text or a picture; without both it could never be encoded."""
    item_id = checked["item_id"]
    is_empty = functools.reduce(
        pc.and_, (checked[name].values.is_null() for name in ("title", "description", "image", "image_path"))
    )
    is_faulty = pc.invert(pc.coalesce(*[each.reasons for each in checked.values()]).is_null())
    own = reasons_of(len(item_id.values), (pc.and_not(is_empty, is_faulty), "no_content"))
    return Checked(item_id.values, pc.coalesce(item_id.reasons, own))


def _explained(
    piece: RawRows, checked: Mapping[str, Checked], reasons: pa.Array, user_ids: pa.Array | Sequence[Any]
) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Detail (first faulty column and its value), raw text and user of the bad rows; null for the others."""
    details: list[str | None] = [None] * len(reasons)
    raws: list[str | None] = [None] * len(reasons)
    found: list[str | None] = [None] * len(reasons)
    for i in pc.indices_nonzero(reasons.is_valid()).to_pylist():
        if reasons[i].as_py() == ERASED_USER:  # counted, but no value of the row is kept
            details[i], raws[i] = "", REDACTED
            continue
        found[i] = plain_id(scalar_value(user_ids[i]) if isinstance(user_ids, pa.Array) else user_ids[i])
        column = next(name for name, each in checked.items() if each.reasons[i].is_valid)
        raws[i] = piece.raw(i)
        value = json.loads(raws[i] or "{}").get(column)
        details[i] = f"{column} = {json.dumps(value, ensure_ascii=False)}"
    return pa.array(details, pa.string()), pa.array(raws, pa.string()), pa.array(found, pa.string())


def _faults(rejects: Sequence[Reject], file: LandingFile) -> pa.RecordBatch:
    values = {
        "line": pa.array([each.line for each in rejects], pa.int64()),
        "reason": pa.array([each.reason for each in rejects], pa.string()),
        "detail": pa.array([each.detail for each in rejects], pa.string()),
        "raw": pa.array([each.raw for each in rejects], pa.string()),
    }
    return _batch(file, len(rejects), values)


def _batch(file: LandingFile, n_rows: int, values: Mapping[str, Any]) -> pa.RecordBatch:
    """A record batch in the column order of the staged schema; a column that is not given is null."""
    place = {"source_file": pa.repeat(file.name, n_rows), "landing_ds": pa.repeat(pa.scalar(file.ds), n_rows)}
    given = {**place, **values}
    schema = staged_schema(file.target)
    arrays = [
        given[f.name] if f.name in given else pa.nulls(n_rows, ARROW_TYPES[f.dataType.simpleString()]) for f in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, names=schema.names)


def quarantine_rows(rows: DataFrame, target: str) -> DataFrame:
    """Bad rows in the columns of the quarantine table."""
    return rows.withColumn("target", F.lit(target)).select(*QUARANTINE.columns)
