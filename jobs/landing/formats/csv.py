"""Rows of a CSV file (RFC 4180), in bounded batches; a quote that is never closed spoils its own line only."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.landing.formats.pieces import FileRefusedError, Piece, RawRows, Reject, Wanted, require_columns
from jobs.landing.formats.text_lines import MAX_LINE_BYTES, Line, text_lines
from jobs.landing.raw_text import raw_json

MAX_RECORD_LINES = 200

# The csv module's own limit, 131,072 characters for the whole process, is below the limit of a line here.
csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))


def csv_pieces(stream: Any, wanted: Wanted) -> Iterator[Piece]:
    """Read a CSV file.

    Raises:
        FileRefusedError: The first line is not a header, or the file becomes too large.
    """
    records = csv_records(text_lines(stream, wanted.limits))
    header, head = next(records, (None, Line(0, "")))
    if header is None:
        return  # a writer that had nothing to write
    names = _header_names(header, wanted)
    yield require_columns(names, wanted)
    batch = _Batch(names, wanted)
    for fields, line in records:
        number = line.number - head.number
        bad = fields if isinstance(fields, Reject) else _field_count_reject(fields, names, line)
        if bad is not None:
            yield Reject(number, bad.reason, bad.detail, bad.raw)
            continue
        assert isinstance(fields, list)  # for the type checker: a Reject was yielded above
        if batch.add(number, fields):
            yield batch.rows()
            batch = _Batch(names, wanted)
    yield batch.rows()


def _header_names(header: list[str] | Reject, wanted: Wanted) -> list[str]:
    if isinstance(header, Reject):
        raise FileRefusedError(header.reason, f"header: {header.detail}")
    names = [name.strip() for name in header]
    if not set(wanted.required) <= set(names) and "\r" in "".join(names):
        raise FileRefusedError("missing_column", "header: lines end in CR alone; end them in LF or CRLF")
    return names


def _field_count_reject(fields: list[str], names: list[str], line: Line) -> Reject | None:
    if len(fields) == len(names):
        return None
    return line.reject("malformed_row", f"{len(fields)} fields where the header has {len(names)}")


class _Batch:
    """Records that become columns together; an empty field is null."""

    def __init__(self, names: list[str], wanted: Wanted) -> None:
        self._names, self._wanted = names, wanted
        self._lines: list[int] = []
        self._records: list[list[str]] = []
        self._room = wanted.limits.batch_bytes

    def add(self, number: int, fields: list[str]) -> bool:
        """Add a record; returns whether the batch is full."""
        self._lines.append(number)
        self._records.append(fields)
        self._room -= FIELD_BYTES * len(fields) + sum(map(len, fields))
        return len(self._lines) >= self._wanted.batch_rows or self._room <= 0

    def rows(self) -> RawRows:
        """The records as columns."""
        names, records = self._names, self._records
        columns: dict[str, pa.Array | list[Any]] = {
            name: pa.array([record[at] or None for record in records], pa.string())
            for at, name in enumerate(names)
            if name in self._wanted.columns
        }
        return RawRows(self._lines, columns, lambda i: raw_json(dict(zip(names, records[i], strict=True))))


# Bytes that a Python string takes in addition to its characters.
FIELD_BYTES = 57


def csv_records(lines: Iterable[Line]) -> Iterator[tuple[list[str] | Reject, Line]]:
    """Records with their first line."""
    ahead = _Ahead(lines)
    while line := ahead.next():
        if line.is_blank:
            continue
        if line.problem:
            yield line.reject(), line
        elif '"' not in line.text:
            yield line.text.rstrip("\r\n").split(","), line
        else:
            yield _quoted_record(line, ahead), line


@dataclass(frozen=True)
class _Seen:
    """A line that was searched for a closing quote.

    Attributes:
        line: The line.
        stays_open: Whether a quoted field that is open before the line is open after it, too.
    """

    line: Line
    stays_open: bool


class _Ahead:
    """Lines in order, some of them already searched: each line is searched for a closing quote only once."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._source = iter(lines)
        self._seen: deque[_Seen] = deque()
        self._n_open = 0  # so many of the lines seen are known to stay open: all, or all but the last
        self._n_bytes = 0

    def next(self) -> Line | None:
        """The next line; None after the last."""
        if not self._seen:
            return next(self._source, None)
        seen = self._seen.popleft()
        self._n_open = max(0, self._n_open - 1)
        self._n_bytes -= len(seen.line.text)
        return seen.line

    def lines_to_close(self, n_bytes: int) -> list[Line] | None:
        """The lines up to the line in which a quoted field ends or breaks; the lines are not consumed.

        Args:
            n_bytes: Characters of the record so far.

        Returns:
            None if there is no such line within the limits of a record.
        """
        while self._n_open < MAX_RECORD_LINES:
            if self._n_open == len(self._seen) and not self._look():
                return None
            if n_bytes + self._n_bytes > MAX_LINE_BYTES:
                return None
            if not self._seen[self._n_open].stays_open:
                return [seen.line for seen in self._seen]
            self._n_open += 1
        return None

    def _look(self) -> bool:
        line = next(self._source, None)
        if line is None:
            return False
        self._seen.append(_Seen(line, not line.problem and _stays_open(line.text)))
        self._n_bytes += len(line.text)
        return True


def _stays_open(text: str) -> bool:
    """Whether a quoted field that is open at the start of a line is open at its end."""
    if '"' not in text:
        return True
    try:
        list(csv.reader([f'"{text}'], strict=True))
    except csv.Error as error:
        return _is_open(error)
    return False


def _is_open(error: csv.Error) -> bool:
    return "unexpected end of data" in str(error)


def _quoted_record(line: Line, ahead: _Ahead) -> list[str] | Reject:
    """Parse a record that has quotes, with as many of the next lines as its open quote needs."""
    try:
        return _only(csv.reader([line.text], strict=True))
    except csv.Error as error:
        if not _is_open(error):
            return line.reject("malformed_row", str(error))
    following = ahead.lines_to_close(len(line.text))
    if following is None or following[-1].problem:
        limits = f"{MAX_RECORD_LINES} lines and {MAX_LINE_BYTES} bytes"
        return line.reject("malformed_row", f"a quote is not closed within {limits}")
    try:
        fields = _only(csv.reader([line.text, *(each.text for each in following)], strict=True))
    except csv.Error as error:
        return line.reject("malformed_row", str(error))
    for _ in following:
        ahead.next()
    return fields


def _only(records: Iterable[list[str]]) -> list[str]:
    found = list(records)
    if len(found) != 1:
        raise csv.Error(f"expected one record, got {len(found)}")
    return found[0]
