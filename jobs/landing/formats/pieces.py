"""Results of the readers of landing files: rows in batches, lines that are not rows, columns that are ignored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


class FileRefusedError(ValueError):
    """A whole file that is refused.

    Attributes:
        reason: Reason for the quarantine.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class ReadLimits:
    """Largest decoded sizes: a few bytes on disk can become many bytes in memory.

    Attributes:
        file_bytes: Largest number of decoded bytes of one compressed file.
        batch_bytes: Approximate number of decoded bytes that are held at once; at least one row is held.
    """

    file_bytes: int = 8 << 30
    batch_bytes: int = 64 << 20


@dataclass(frozen=True)
class Wanted:
    """The parts of a file to read.

    Attributes:
        columns: Columns to read if the file has them.
        required: Columns without which the file is refused (a JSON line without one is a bad row instead).
        batch_rows: Largest number of rows in one batch.
        limits: Decoded bytes of file and batch.
    """

    columns: tuple[str, ...]
    required: tuple[str, ...]
    batch_rows: int
    limits: ReadLimits


class RoundedFloat(float):
    """A float whose text was another number, such as 9007199254740991.4: no id can be read from it."""


@dataclass(frozen=True)
class RawRows:
    """A batch of rows of a file, as read.

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
    """A line that is not a row: its number, the reason, and its text."""

    line: int
    reason: str
    detail: str
    raw: str


@dataclass(frozen=True)
class Ignored:
    """Columns of a file that are not in the contract."""

    columns: tuple[str, ...]


Piece = RawRows | Reject | Ignored


def require_columns(found: Sequence[str], wanted: Wanted) -> Ignored:
    """Refuse a header in which a required column is missing or a wanted column is double; name the other columns.

    Raises:
        FileRefusedError: A required column is missing, or a wanted column occurs twice.
    """
    missing = [name for name in wanted.required if name not in found]
    if missing:
        shown = ", ".join(found[:MAX_SHOWN_COLUMNS])
        raise FileRefusedError("missing_column", f"no column {', '.join(missing)}; found {shown}"[:500])
    counts = Counter(found)
    twice = sorted(name for name in wanted.columns if counts[name] > 1)
    if twice:
        raise FileRefusedError("unreadable_file", f"column {', '.join(twice)} is there twice")
    return Ignored(tuple(name for name in counts if name not in wanted.columns))


MAX_SHOWN_COLUMNS = 50


class DecodedBytes:
    """Adds up the decoded bytes of a file so far."""

    def __init__(self, limits: ReadLimits) -> None:
        self._limit, self._total = limits.file_bytes, 0

    def add(self, n_bytes: int) -> None:
        """Count bytes, if possible before they are decoded.

        Raises:
            FileRefusedError: The file becomes larger than the configuration allows.
        """
        self._total += n_bytes
        if self._total > self._limit:
            raise FileRefusedError(
                "unreadable_file",
                f"expected at most {self._limit} decoded bytes (landing.max_file_bytes), got more; split the file",
            )
