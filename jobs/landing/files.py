"""Where landing files lie: names, days and sizes (docs/landing.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date

from pyarrow import fs

from jobs.config.addresses import is_url

FORMATS = ("parquet", "csv", "csv.gz", "jsonl", "jsonl.gz")
DAY_FOLDER = re.compile(r"^ds=(\d{4}-\d{2}-\d{2})$")
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


class LandingError(ValueError):
    """The landing folder cannot be ingested as it is; the message names ds, file and counts."""


@dataclass(frozen=True, order=True)
class LandingFile:
    """One file of the landing folder.

    Attributes:
        ds: Landing day, from the folder's name.
        target: Table that the file feeds.
        name: Path relative to the landing folder.
        size: Bytes.
    """

    ds: date
    target: str
    name: str
    size: int = field(compare=False)

    @property
    def format(self) -> str:
        """Everything after the first dot of the file's name that is a known format; empty for an unknown one."""
        return next((known for known in FORMATS if self.name.lower().endswith(f".{known}")), "")


def filesystem(landing: str) -> tuple[fs.FileSystem, str]:
    """File system and folder of a landing path or URI (``s3://…``, ``gs://…``, ``hdfs://…``)."""
    if is_url(landing):
        found, root = fs.FileSystem.from_uri(landing)
        return found, root.rstrip("/")
    return fs.LocalFileSystem(), landing.rstrip("/")


def landing_files(landing: str, target: str) -> list[LandingFile]:
    """Files under ``{landing}/{target}/ds=YYYY-MM-DD/``, in order of day and name.

    Names that begin with ``_`` or ``.`` (a writer's own files) are skipped.

    Raises:
        LandingError: A folder ``ds=…`` names no day.
    """
    return sorted(
        LandingFile(_day(parts[0], target), target, "/".join((target, *parts)), size)
        for parts, size in _found(landing, target)
        if _is_in_place(parts)
    )


def misplaced_files(landing: str, target: str) -> list[str]:
    """Names of the files under ``{landing}/{target}`` that :func:`landing_files` leaves out, in order.

    Pictures are none: ``image_path`` may name them there.
    """
    return sorted(
        "/".join((target, *parts))
        for parts, _ in _found(landing, target)
        if not _is_in_place(parts) and not parts[-1].lower().endswith(PICTURES)
    )


def _found(landing: str, target: str) -> list[tuple[tuple[str, ...], int]]:
    """Path below the target's folder, and size in bytes, of every file that is not a writer's own."""
    system, root = filesystem(landing)
    base = f"{root}/{target}"
    infos = system.get_file_info(fs.FileSelector(base, allow_not_found=True, recursive=True))
    files = [
        (tuple(i.path[len(base) :].lstrip("/").split("/")), i.size or 0) for i in infos if i.type == fs.FileType.File
    ]
    return [(parts, size) for parts, size in files if not any(part.startswith(("_", ".")) for part in parts)]


def _is_in_place(parts: tuple[str, ...]) -> bool:
    return len(parts) == 2 and parts[0].startswith("ds=")


def _day(folder: str, target: str) -> date:
    match = DAY_FOLDER.match(folder)
    try:
        return date.fromisoformat(match[1] if match else folder)
    except ValueError as error:
        raise LandingError(f"landing folder {target}/{folder}: a day like ds=2017-12-31 is wanted") from error
