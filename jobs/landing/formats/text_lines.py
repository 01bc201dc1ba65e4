"""Numbered lines of a text file; a line that cannot be a row has the reason."""

from __future__ import annotations

import gzip
import io
import json
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.landing.formats.pieces import DecodedBytes, ReadLimits, Reject
from jobs.landing.raw_text import MAX_RAW_VALUE
from jobs.runtime.text import printable

MAX_LINE_BYTES = 1 << 20
BOM = b"\xef\xbb\xbf"

# Visible according to Unicode's categories, but not to a reader: fillers of Hangul and Braille.
FILLERS = "\u115f\u1160\u3164\uffa0\u2800"


@dataclass(frozen=True)
class Line:
    """A line of a text file; ``problem`` says why the line cannot be a row, and is empty for other lines."""

    number: int
    text: str
    problem: str = ""
    detail: str = ""

    @property
    def is_blank(self) -> bool:
        """Whether nothing in the line is visible. Such a line is not a row, but can be part of a quoted field."""
        return not self.problem and all(map(_shows_nothing, self.text.strip()))

    def reject(self, problem: str = "", detail: str = "") -> Reject:
        """The line as a rejected line."""
        text = printable(self.text[: 5 * MAX_RAW_VALUE])
        return Reject(self.number, problem or self.problem, detail or self.detail, json.dumps({"line": text}))


def _shows_nothing(character: str) -> bool:
    return character.isspace() or character in FILLERS or unicodedata.category(character) == "Cf"


def text_lines(stream: Any, limits: ReadLimits) -> Iterator[Line]:
    """Lines, numbered from 1; a line that is not UTF-8 or too long has a problem.

    Raises:
        FileRefusedError: A compressed file becomes larger than ``limits`` allow.
    """
    is_packed = isinstance(stream, gzip.GzipFile)
    buffered = stream if is_packed else io.BufferedReader(stream, 1 << 20)
    # A file without compression is not larger in memory than on the disk.
    decoded = DecodedBytes(limits if is_packed else ReadLimits(file_bytes=sys.maxsize))
    number = 0
    while data := buffered.readline(MAX_LINE_BYTES):
        number += 1
        decoded.add(len(data))
        data = data.removeprefix(BOM) if number == 1 else data
        is_cut = len(data) >= MAX_LINE_BYTES - len(BOM) and not data.endswith(b"\n")
        if is_cut:
            _skip_rest(buffered, decoded)
        yield _line(number, data, is_cut=is_cut)


def _line(number: int, data: bytes, *, is_cut: bool) -> Line:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        text = data.decode("utf-8", "surrogateescape")
        return Line(number, text, "wrong_encoding", f"byte {error.start + 1} of the line is no UTF-8")
    if is_cut:
        return Line(number, text, "malformed_row", f"the line is longer than {MAX_LINE_BYTES} bytes")
    return Line(number, text)


def _skip_rest(buffered: Any, decoded: DecodedBytes) -> None:
    """Skip the rest of a line that is too long."""
    while data := buffered.readline(MAX_LINE_BYTES):
        decoded.add(len(data))
        if data.endswith(b"\n"):
            return
