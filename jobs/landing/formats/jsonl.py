"""Rows of a file of JSON lines, in bounded batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

from jobs.landing.formats.pieces import MAX_SHOWN_COLUMNS, Ignored, Piece, RawRows, Reject, RoundedFloat, Wanted
from jobs.landing.formats.text_lines import Line, text_lines
from jobs.landing.raw_text import raw_json

# Bytes that the objects around a value take in memory, in addition to its characters.
VALUE_BYTES = 100


def jsonl_pieces(stream: Any, wanted: Wanted) -> Iterator[Piece]:
    """Read a file of JSON lines.

    Raises:
        jobs.landing.formats.pieces.FileRefusedError: The file becomes too large.
    """
    ignored: set[str] = set()
    batch = _Batch(wanted)
    for line in text_lines(stream, wanted.limits):
        if line.is_blank:
            continue
        row = _json_row(line)
        if isinstance(row, Reject):
            yield row
            continue
        if len(ignored) < MAX_SHOWN_COLUMNS:  # keys may be data: as many as there are rows
            ignored.update(row.keys() - set(wanted.columns))
        if batch.add(line, row):
            yield batch.rows()
            batch = _Batch(wanted)
    yield batch.rows()
    yield Ignored(tuple(sorted(ignored)[:MAX_SHOWN_COLUMNS]))


def _json_row(line: Line) -> dict[str, Any] | Reject:
    if line.problem:
        return line.reject()
    try:
        row = json.loads(line.text, parse_float=_exact_float)
    except (ValueError, RecursionError) as error:
        return line.reject("malformed_row", f"no JSON: {str(error)[:200]}")
    return row if isinstance(row, dict) else line.reject("malformed_row", "no JSON object")


def _exact_float(text: str) -> float:
    """A float; a float that is whole only because digits were cut off is marked."""
    value = float(text)
    return value if not value.is_integer() or _is_same(text, value) else RoundedFloat(value)


def _is_same(text: str, value: float) -> bool:
    try:
        return Decimal(text) == Decimal(value)
    except InvalidOperation:  # an exponent of twenty digits
        return False


class _Nested:
    """A list or object in the place of a value: its content is not kept, so that memory stays bounded."""


_NESTED = _Nested()


class _Batch:
    """Objects that become columns together: the wanted values, and each line's text for the quarantine."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._lines: list[Line] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in wanted.columns}
        self._room = wanted.limits.batch_bytes

    def add(self, line: Line, row: dict[str, Any]) -> bool:
        """Add an object; returns whether the batch is full."""
        self._lines.append(line)
        for name, values in self._columns.items():
            value = row.get(name)
            values.append(_NESTED if isinstance(value, list | dict) else value)
        self._room -= VALUE_BYTES * len(self._columns) + 2 * len(line.text)
        return len(self._lines) >= self._wanted.batch_rows or self._room <= 0

    def rows(self) -> RawRows:
        """The objects as columns."""
        lines = self._lines
        return RawRows([line.number for line in lines], {**self._columns}, lambda i: _raw(lines[i]))


def _raw(line: Line) -> str:
    try:
        return raw_json(json.loads(line.text))  # the same text was parsed as JSON before
    except RecursionError:  # nested so deeply that it is read from some places only
        return line.reject().raw
