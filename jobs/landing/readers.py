"""Landing files without an engine: where they lie, and their rows, read in bounded batches (docs/landing.md)."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.landing.files import FORMATS, LandingError, LandingFile, filesystem
from jobs.landing.raw_text import MAX_RAW_VALUE, _scalar, printable, raw_json

MAX_LINE_BYTES = 1 << 20
MAX_RECORD_LINES = 200
BOM = b"\xef\xbb\xbf"
UNREADABLE = (pa.ArrowException, OSError, EOFError, zlib.error)

# A file that is not there or not ours to read is a fault of the deployment, not of the data.
NOT_THE_DATA = (FileNotFoundError, PermissionError)

# The csv module's own limit, 131,072 characters for the whole process, is below that of a line.
csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))


class FileRefusedError(ValueError):
    """A whole file that cannot be taken.

    Attributes:
        reason: Reason for the quarantine.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class RawRows:
    """Some rows of a file as they were read.

    Attributes:
        lines: Data line of each row, from 1.
        columns: Wanted columns that the file has: an Arrow array, or Python values (JSON lines).
        raw: JSON text of row i.
    """

    lines: Sequence[int]
    columns: dict[str, pa.Array | list[Any]]
    raw: Callable[[int], str]


@dataclass(frozen=True)
class Reject:
    """A line that is no row: its number, the reason, and its text."""

    line: int
    reason: str
    detail: str
    raw: str


@dataclass(frozen=True)
class Ignored:
    """Columns of a file that the contract does not know."""

    columns: tuple[str, ...]


Piece = RawRows | Reject | Ignored


def raw_pieces(
    landing: str, file: LandingFile, *, wanted: Sequence[str], required: Sequence[str], batch_rows: int
) -> Iterator[Piece]:
    """Read one file: rows in batches, lines that are no rows, and ignored columns.

    Args:
        landing: Landing folder or URI.
        file: Which file.
        wanted: Columns to read where the file has them.
        required: Columns without which the file is refused (a JSON line without one is a bad row instead).
        batch_rows: Most rows in one batch.

    Raises:
        FileRefusedError: Unknown format, missing column, or the file cannot be read to its end.
        LandingError: The file is gone since it was listed, or may not be read: a fault of the folder, not of the data.
    """
    readers = {"parquet": _parquet_pieces, "csv": _csv_pieces, "jsonl": _jsonl_pieces}
    kind = file.format.removesuffix(".gz")
    if kind not in readers:
        raise FileRefusedError("unreadable_file", f"unknown format; use {', '.join(FORMATS)}")
    system, root = filesystem(landing)
    try:
        with system.open_input_file(f"{root}/{file.name}") as handle:
            stream = gzip.GzipFile(fileobj=handle) if file.format.endswith(".gz") else handle
            yield from readers[kind](stream, tuple(wanted), tuple(required), batch_rows)
    except NOT_THE_DATA as error:
        raise LandingError(f"landing {file.name}, ds={file.ds}: gone or not readable by this user: {error}") from error
    except UNREADABLE as error:
        raise FileRefusedError("unreadable_file", f"{type(error).__name__}: {str(error)[:300]}") from error


def _require_columns(found: Sequence[str], wanted: Sequence[str], required: Sequence[str]) -> Ignored:
    """Refuse a header without a required column or with one twice; tell which columns are not ours."""
    missing = [name for name in required if name not in found]
    if missing:
        raise FileRefusedError("missing_column", f"no column {', '.join(missing)}; found {', '.join(found)}"[:500])
    twice = sorted({name for name in found if name in wanted and found.count(name) > 1})
    if twice:
        raise FileRefusedError("unreadable_file", f"column {', '.join(twice)} is there twice")
    return Ignored(tuple(name for name in found if name not in wanted))


def _parquet_pieces(
    stream: Any, wanted: tuple[str, ...], required: tuple[str, ...], batch_rows: int
) -> Iterator[Piece]:
    reader = pq.ParquetFile(stream)
    found = list(reader.schema_arrow.names)
    yield _require_columns(found, wanted, required)
    line = 1
    for batch in reader.iter_batches(batch_rows, columns=[name for name in found if name in wanted]):
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        yield RawRows(range(line, line + batch.num_rows), columns, _column_raw(columns))
        line += batch.num_rows


def _column_raw(columns: dict[str, pa.Array]) -> Callable[[int], str]:
    return lambda i: raw_json({name: _scalar(values[i]) for name, values in columns.items()})


@dataclass(frozen=True)
class _Line:
    """A line of a text file; ``problem`` is its reason where it cannot be a row."""

    number: int
    text: str
    problem: str = ""
    detail: str = ""

    @property
    def is_blank(self) -> bool:
        """Whether it holds nothing: no row, but part of a quoted field that goes over it."""
        return not self.problem and not self.text.strip("\r\n")

    def reject(self, problem: str = "", detail: str = "") -> Reject:
        text = printable(self.text[: 5 * MAX_RAW_VALUE])
        return Reject(self.number, problem or self.problem, detail or self.detail, json.dumps({"line": text}))


def _text_lines(stream: Any) -> Iterator[_Line]:
    """Lines, numbered from 1; one that is no UTF-8 or too long says so."""
    buffered = stream if isinstance(stream, gzip.GzipFile) else io.BufferedReader(stream, 1 << 20)
    number = 0
    while data := buffered.readline(MAX_LINE_BYTES):
        number += 1
        data = data.removeprefix(BOM) if number == 1 else data
        is_cut = _skip_rest(buffered, data)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            text = data.decode("utf-8", "surrogateescape")
            yield _Line(number, text, "wrong_encoding", f"byte {error.start + 1} of the line is no UTF-8")
            continue
        if is_cut:
            yield _Line(number, text, "malformed_row", f"the line is longer than {MAX_LINE_BYTES} bytes")
        else:
            yield _Line(number, text)


def _skip_rest(buffered: Any, data: bytes) -> bool:
    """Skip what is left of a line that is too long; says whether there was any."""
    is_cut = len(data) >= MAX_LINE_BYTES - len(BOM) and not data.endswith(b"\n")
    while is_cut and data and not data.endswith(b"\n"):
        data = buffered.readline(MAX_LINE_BYTES)
    return is_cut


def _jsonl_pieces(stream: Any, wanted: tuple[str, ...], _required: tuple[str, ...], batch_rows: int) -> Iterator[Piece]:
    lines: list[int] = []
    rows: list[dict[str, Any]] = []
    ignored: set[str] = set()
    for line in _text_lines(stream):
        if line.is_blank:
            continue
        row = _json_row(line)
        if isinstance(row, Reject):
            yield row
            continue
        ignored.update(row.keys() - set(wanted))
        lines.append(line.number)
        rows.append(row)
        if len(rows) == batch_rows:
            yield _json_batch(lines, rows, wanted)
            lines, rows = [], []
    yield _json_batch(lines, rows, wanted)
    yield Ignored(tuple(sorted(ignored)))


def _json_row(line: _Line) -> dict[str, Any] | Reject:
    if line.problem:
        return line.reject()
    try:
        row = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        return line.reject("malformed_row", f"no JSON: {str(error)[:200]}")
    return row if isinstance(row, dict) else line.reject("malformed_row", "no JSON object")


def _json_batch(lines: list[int], rows: list[dict[str, Any]], wanted: tuple[str, ...]) -> RawRows:
    columns: dict[str, pa.Array | list[Any]] = {name: [row.get(name) for row in rows] for name in wanted}
    return RawRows(lines, columns, lambda i: raw_json(rows[i]))


def _csv_pieces(stream: Any, wanted: tuple[str, ...], required: tuple[str, ...], batch_rows: int) -> Iterator[Piece]:
    records = _csv_records(_text_lines(stream))
    header, head = next(records, (None, _Line(0, "")))
    if header is None:
        return  # a writer that had nothing to write
    if isinstance(header, Reject):
        raise FileRefusedError(header.reason, f"header: {header.detail}")
    names = [name.strip() for name in header]
    if not set(required) <= set(names) and "\r" in "".join(names):
        raise FileRefusedError("missing_column", "header: lines end in CR alone; end them in LF or CRLF")
    yield _require_columns(names, wanted, required)
    lines: list[int] = []
    rows: list[list[str]] = []
    for fields, line in records:
        number = line.number - head.number
        bad = fields if isinstance(fields, Reject) else _field_count_reject(fields, names, line)
        if bad is not None:
            yield Reject(number, bad.reason, bad.detail, bad.raw)
            continue
        assert isinstance(fields, list)  # for the type checker: a Reject was yielded above
        lines.append(number)
        rows.append(fields)
        if len(rows) == batch_rows:
            yield _csv_batch(lines, rows, names, wanted)
            lines, rows = [], []
    yield _csv_batch(lines, rows, names, wanted)


def _field_count_reject(fields: list[str], names: list[str], line: _Line) -> Reject | None:
    if len(fields) == len(names):
        return None
    return line.reject("malformed_row", f"{len(fields)} fields where the header has {len(names)}")


def _csv_batch(lines: list[int], rows: list[list[str]], names: list[str], wanted: tuple[str, ...]) -> RawRows:
    """Turn records into columns; an empty field is null."""
    by_name = dict(zip(names, zip(*rows, strict=True) if rows else [() for _ in names], strict=True))
    columns: dict[str, pa.Array | list[Any]] = {
        name: pa.array([value or None for value in by_name[name]], pa.string()) for name in names if name in wanted
    }
    return RawRows(lines, columns, lambda i: raw_json(dict(zip(names, rows[i], strict=True))))


def _csv_records(lines: Iterable[_Line]) -> Iterator[tuple[list[str] | Reject, _Line]]:
    """Records with their first line (RFC 4180). A quote that is never closed spoils its own line only."""
    source = iter(lines)
    waiting: list[_Line] = []  # lines that were looked at for a closing quote, next one last
    while line := (waiting.pop() if waiting else next(source, None)):
        if line.is_blank:
            continue
        if line.problem:
            yield line.reject(), line
        elif '"' not in line.text:
            yield line.text.rstrip("\r\n").split(","), line
        else:
            fields, unused = _quoted_record(line, waiting, source)
            waiting.extend(reversed(unused))
            yield fields, line


def _quoted_record(
    line: _Line, waiting: list[_Line], source: Iterator[_Line]
) -> tuple[list[str] | Reject, Sequence[_Line]]:
    """Parse a record that has quotes, with as many of the next lines as its open quote needs."""
    texts, taken = [line.text], list[_Line]()
    while True:
        try:
            rows = list(csv.reader(texts, strict=True))
            return rows[0], []
        except csv.Error as error:
            is_open = "unexpected end of data" in str(error)
            if not is_open or not _take_to_quote(texts, taken, waiting, source):
                detail = "a quote is never closed" if is_open else str(error)
                return line.reject("malformed_row", detail), taken


def _take_to_quote(texts: list[str], taken: list[_Line], waiting: list[_Line], source: Iterator[_Line]) -> bool:
    """Take lines up to the next one with a quote; False where there is none near."""
    while len(taken) < MAX_RECORD_LINES:
        following = waiting.pop() if waiting else next(source, None)
        if following is None:
            return False
        taken.append(following)
        if following.problem:
            return False
        texts.append(following.text)
        if '"' in following.text:
            return True
    return False
