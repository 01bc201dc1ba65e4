"""Files and folders that are complete or absent, even after a kill or a loss of power."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".partial"
LEFTOVER_SECONDS = 24 * 3600.0


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader, or a run after a crash, sees the old content or the whole new content.

    Args:
        path: Target; its folder is made.
        content: Bytes, or text that is written as UTF-8.
    """
    with replacing(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or a folder under another name and rename it when the block ends without an error.

    The content is flushed to the disk before the rename, and the rename is flushed, too. After an error, the new file
    is deleted and ``path`` is unchanged. After a kill, the other name remains. Ingest and servers skip names that begin
    with a dot, and a writer of the same path deletes such remains after one day.

    Args:
        path: Target; its folder is made. A folder must not exist yet.

    Yields:
        The other name, in the same folder: ``.NAME.RANDOM.partial``.

    Raises:
        OSError: The disk is full, or a folder is already at ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, not the process id: two machines can write to one shared folder.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        yield unfinished
        _flush_tree(unfinished)
        _delete_leftovers(path, unfinished.stat().st_mtime - LEFTOVER_SECONDS)
        unfinished.replace(path)
    except BaseException:
        _delete(unfinished)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Flush the content of a file, or the names in a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_tree(path: Path) -> None:
    for each in path.rglob("*") if path.is_dir() else ():
        flush(each)
    flush(path)


def _delete_leftovers(path: Path, oldest: float) -> None:
    """Delete temporary files of killed writers of the same path; a file changed after ``oldest`` may be in use."""
    pattern = f".{glob.escape(path.name)}.*{UNFINISHED}"
    for each in path.parent.glob(pattern):
        with suppress(FileNotFoundError):  # another writer deletes leftovers, too
            if each.stat().st_mtime < oldest:
                _delete(each)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(FileNotFoundError, IsADirectoryError):
        path.unlink()
