"""What the readers of landing files hand on: rows in batches, lines that are no rows, columns that nobody asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa


class FileRefusedError(ValueError):
    """A whole file that cannot be taken.

    Attributes:
        reason: Reason for the quarantine.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class ReadLimits:
    """How many bytes a file may become when it is decoded: a few bytes on disk can be many in memory.

    Attributes:
        file_bytes: Decoded bytes of one compressed file at most.
        batch_bytes: Decoded bytes that are held at once: about so many, and one row at least.
    """

    file_bytes: int = 8 << 30
    batch_bytes: int = 64 << 20


@dataclass(frozen=True)
class Wanted:
    """What is read of a file.

    Attributes:
        columns: Columns to read where the file has them.
        required: Columns without which the file is refused (a JSON line without one is a bad row instead).
        batch_rows: Rows of one batch at most.
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


def require_columns(found: Sequence[str], wanted: Wanted) -> Ignored:
    """Refuse a header without a required column or with one twice; tell which columns are not ours.

    Raises:
        FileRefusedError: A required column is missing, or a wanted one is there twice.
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
    """Adds up what a file has become so far."""

    def __init__(self, limits: ReadLimits) -> None:
        self._limit, self._total = limits.file_bytes, 0

    def add(self, n_bytes: int) -> None:
        """Count bytes, before they are decoded where that is possible.

        Raises:
            FileRefusedError: The file becomes larger than the configuration allows.
        """
        self._total += n_bytes
        if self._total > self._limit:
            raise FileRefusedError(
                "unreadable_file",
                f"expected at most {self._limit} decoded bytes (landing.max_file_bytes), got more; split the file",
            )
