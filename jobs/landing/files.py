"""Places of landing files: names, days and sizes, and entries that are not files (docs/landing.md)."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from pyarrow import fs

from jobs.runtime.text import printable

FORMATS = ("parquet", "csv", "csv.gz", "jsonl", "jsonl.gz")
DAY_FOLDER = re.compile(r"^ds=(\d{4}-\d{2}-\d{2})$")
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
KINDS = {stat.S_IFIFO: "a pipe (FIFO)", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class LandingError(ValueError):
    """The landing folder cannot be ingested as it is; the message names ds, file and counts."""


@dataclass(frozen=True, order=True)
class LandingFile:
    """One file of the landing folder, or an entry in the place of one.

    Attributes:
        ds: Landing day, from the folder's name.
        target: Table that the file feeds.
        name: Path relative to the landing folder; bytes that are not UTF-8 are escaped.
        size: Bytes.
        fault: Why nothing can be read from the entry; empty for a file.
    """

    ds: date
    target: str
    name: str
    size: int = field(compare=False)
    fault: str = field(default="", compare=False)

    @property
    def format(self) -> str:
        """Everything after the first dot of the file's name that is a known format; empty for an unknown one."""
        return next((known for known in FORMATS if self.name.lower().endswith(f".{known}")), "")


@dataclass(frozen=True)
class _Entry:
    """An entry below the folder of a target: path in that folder, size in bytes, and why it cannot be read."""

    parts: tuple[str, ...]
    size: int
    fault: str = ""

    @property
    def is_in_place(self) -> bool:
        """Whether the entry has the place of a day's file; a day folder that cannot be opened counts as its files."""
        return self.parts[0].startswith("ds=") and (len(self.parts) == 2 or (len(self.parts) == 1 and bool(self.fault)))

    def name(self, target: str) -> str:
        """Path relative to the landing folder."""
        return "/".join((target, *self.parts))


def filesystem(landing: str) -> tuple[fs.FileSystem, str]:
    """File system and folder of a landing path or URI (``s3://…``, ``gs://…``, ``hdfs://…``)."""
    if "://" in landing:
        found, root = fs.FileSystem.from_uri(landing)
        return found, root.rstrip("/")
    return fs.LocalFileSystem(), landing.rstrip("/")


def require_landing(landing: str, targets: tuple[str, ...]) -> list[str]:
    """Make sure that there is a landing folder.

    Args:
        landing: Folder or URI.
        targets: Names of the folders in it that are read.

    Returns:
        Folders that differ from a target only in upper and lower case: no job reads these folders.

    Raises:
        LandingError: The landing folder does not exist, or has such a folder in the place of the target.
    """
    system, root = filesystem(landing)
    if system.get_file_info(root or "/").type != fs.FileType.Directory:
        raise LandingError(f"paths.landing: expected a folder, got {landing}, which does not exist or is no folder")
    if "://" in landing:
        names = [info.base_name for info in system.get_file_info(fs.FileSelector(root))]
    else:  # Arrow cannot list a name that is not UTF-8
        names = sorted(each.name for each in Path(root or "/").iterdir())
    other_case = [name for name in names if name.lower() in targets and name not in targets]
    for name in other_case:
        if name.lower() not in names:
            raise LandingError(
                f"landing {landing}: expected a folder {name.lower()!r}, got {printable(name)!r}; rename it"
            )
    return other_case


def landing_files(landing: str, target: str) -> list[LandingFile]:
    """Files under ``{landing}/{target}/ds=YYYY-MM-DD/``, in order of day and name.

    Names that begin with ``_`` or ``.`` (temporary files of writers) are skipped. Links out of the landing folder,
    broken links, pipes, sockets and devices are listed with their fault, and never opened.

    Raises:
        LandingError: A folder ``ds=…`` names no day, or a folder cannot be listed.
    """
    return sorted(
        LandingFile(_day(each.parts[0], target), target, each.name(target), each.size, each.fault)
        for each in _found(landing, target)
        if each.is_in_place
    )


def misplaced_files(landing: str, target: str) -> list[str]:
    """Names of the files under ``{landing}/{target}`` that :func:`landing_files` leaves out, in order.

    Pictures are not listed, because ``image_path`` may name them. An entry that is not a file is listed with its fault.
    """
    return sorted(
        each.name(target) + (f" ({each.fault})" if each.fault else "")
        for each in _found(landing, target)
        if not each.is_in_place and not each.parts[-1].lower().endswith(PICTURES)
    )


def _found(landing: str, target: str) -> list[_Entry]:
    """Every entry below the target's folder, without temporary files of writers."""
    system, root = filesystem(landing)
    base = f"{root}/{target}"
    if "://" not in landing:
        return list(_local_entries(Path(root or "/"), target))
    infos = system.get_file_info(fs.FileSelector(base, allow_not_found=True, recursive=True))
    found = [
        _Entry(tuple(i.path[len(base) :].lstrip("/").split("/")), i.size or 0)
        for i in infos
        if i.type == fs.FileType.File
    ]
    return [each for each in found if not any(map(_is_writers_own, each.parts))]


def _is_writers_own(name: str) -> bool:
    return name.startswith(("_", "."))


def _local_entries(root: Path, target: str) -> Iterator[_Entry]:
    if not os.path.lexists(root / target):
        return
    with os.scandir(root) as entries:
        entry = next((each for each in entries if each.name == target), None)
    fault = _fault(entry, root.resolve()) if entry else ""
    if fault:
        raise LandingError(f"landing {target}: expected a folder, got {fault}, which is not followed")
    yield from _below(root / target, (), root.resolve())


def _below(folder: Path, parts: tuple[str, ...], root: Path) -> Iterator[_Entry]:
    """Entries of a folder and of its subfolders; a link to a folder is followed only for a day folder."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((each for each in entries if not _is_writers_own(each.name)), key=lambda each: each.name)
    except OSError as error:
        raise LandingError(f"landing {printable(str(folder))}: cannot list the folder: {error.strerror}") from error
    for entry in found:
        place = (*parts, entry.name if _is_utf8(entry.name) else printable(entry.name))
        fault = _fault(entry, root)
        if fault or not entry.is_dir():
            yield _Entry(place, 0 if fault else entry.stat().st_size, fault)
        elif entry.is_symlink() and parts:
            yield _Entry(place, 0, "a link to a folder")
        else:
            yield from _below(folder / entry.name, place, root)


def _fault(entry: os.DirEntry[str], root: Path) -> str:
    """Why an entry is not read; empty if the entry may be read. Nothing is opened."""
    if not _is_utf8(entry.name):
        return "an entry whose name is no UTF-8"
    try:
        status = entry.stat()
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root):
            return "a link that leaves the landing folder"
    except OSError as error:
        return _link_fault(entry, error)
    return KINDS.get(stat.S_IFMT(status.st_mode), "")


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _link_fault(entry: os.DirEntry[str], error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "a link that leads back to itself"
    if error.errno == errno.ENOENT:
        return "a link that leads nowhere" if entry.is_symlink() else "an entry that is gone again"
    return f"an entry that cannot be looked at ({error.strerror})"


def _day(folder: str, target: str) -> date:
    match = DAY_FOLDER.match(folder)
    try:
        return date.fromisoformat(match[1] if match else folder)
    except ValueError as error:
        raise LandingError(f"landing folder {target}/{folder}: expected a day like ds=2017-12-31") from error
