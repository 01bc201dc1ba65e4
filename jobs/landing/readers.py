"""Landing files without an engine: their rows, read in bounded batches (docs/landing.md)."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence

import pyarrow as pa

from jobs.landing.files import FORMATS, LandingError, LandingFile, filesystem
from jobs.landing.formats.csv import csv_pieces
from jobs.landing.formats.jsonl import jsonl_pieces
from jobs.landing.formats.parquet import parquet_pieces
from jobs.landing.formats.pieces import FileRefusedError, Piece, ReadLimits, Wanted

UNREADABLE = (pa.ArrowException, OSError, EOFError, zlib.error)

# A file that is missing or may not be read is a fault of the deployment, not of the data.
NOT_THE_DATA = (FileNotFoundError, PermissionError)

READERS = {"parquet": parquet_pieces, "csv": csv_pieces, "jsonl": jsonl_pieces}


def raw_pieces(
    landing: str,
    file: LandingFile,
    *,
    wanted: Sequence[str],
    required: Sequence[str],
    batch_rows: int,
    limits: ReadLimits,
) -> Iterator[Piece]:
    """Read one file: rows in batches, lines that are not rows, and ignored columns.

    Args:
        landing: Landing folder or URI.
        file: The file to read.
        wanted: Columns to read if the file has them.
        required: Columns without which the file is refused (a JSON line without one is a bad row instead).
        batch_rows: Most rows in one batch.
        limits: Most decoded bytes of the file and of one batch.

    Raises:
        FileRefusedError: Unknown format, missing column, too many decoded bytes, or the file cannot be read to its end.
        LandingError: The file was deleted after it was listed, or may not be read: a fault of the folder.
    """
    if file.fault:
        raise FileRefusedError("unreadable_file", f"expected a file, got {file.fault}, which is not read")
    kind = file.format.removesuffix(".gz")
    if kind not in READERS:
        raise FileRefusedError("unreadable_file", f"expected a file of {', '.join(FORMATS)}, got another ending")
    system, root = filesystem(landing)
    try:
        with system.open_input_file(f"{root}/{file.name}") as handle:
            stream = gzip.GzipFile(fileobj=handle) if file.format.endswith(".gz") else handle
            yield from READERS[kind](stream, Wanted(tuple(wanted), tuple(required), batch_rows, limits))
    except NOT_THE_DATA as error:
        raise LandingError(f"landing {file.name}, ds={file.ds}: gone or not readable by this user: {error}") from error
    except UNREADABLE as error:
        raise FileRefusedError("unreadable_file", f"{type(error).__name__}: {str(error)[:300]}") from error
