"""Faults of the machine and of stored files, in one sentence: a stack trace does not help a person to free a disk."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

OUR_PACKAGES = ("jobs", "lte_models", "schemas", "__main__")

# Advice for a person, by the number of the operating system's error.
ADVICE = {
    errno.ENOSPC: "free disk space, then run again",
    errno.EDQUOT: "free disk space or ask for a larger quota, then run again",
    errno.EROFS: "the file system is read-only; mount it for writing or name another folder",
    errno.EACCES: "this account may not do that; change the owner or the mode of the file or of its folder",
    errno.EPERM: "this account may not do that; change the owner or the mode of the file or of its folder",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk may be damaged; look at the system's log",
}

# Texts of the same faults in libraries that do not raise OSError: engines, Delta, Arrow, SQLite, LMDB.
WORDS = {
    r"No space left on device|os error 28\b|disk is full": errno.ENOSPC,
    r"Disk quota exceeded|os error 122\b": errno.EDQUOT,
    r"Read-only file system|os error 30\b|readonly database": errno.EROFS,
    r"Permission denied|os error 13\b|Operation not permitted": errno.EACCES,
    r"Too many open files|os error 24\b": errno.EMFILE,
    r"Input/output error|disk I/O error|os error 5\b": errno.EIO,
}

# Delta's own errors, and engines' errors about a table whose log they cannot read.
DELTA_MODULES = ("deltalake", "_internal")
DELTA_WORDS = re.compile(r"_delta_log|delta log|DELTA_|transaction log", re.IGNORECASE)
DELTA_ADVICE = "the log of this table is damaged or missing; restore the files of the table from a copy"


def sentence_of(error: BaseException) -> str | None:
    """Describe an error in one sentence.

    Returns:
        The sentence; None for a defect: the caller prints its trace.
    """
    if type(error).__module__.partition(".")[0] in OUR_PACKAGES:
        return f"{type(error).__name__}: {error}"
    for each in _chain(error):
        number = _fault(each)
        if number is not None:
            return f"{_first_line(each)}: {ADVICE[number]}"
    for each in _chain(error):
        if type(each).__module__.partition(".")[0] in DELTA_MODULES or DELTA_WORDS.search(str(each)):
            return f"{type(each).__name__}: {_first_line(each)}: {DELTA_ADVICE}"
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes; a chain with a loop ends."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _fault(error: BaseException) -> int | None:
    """Number of the operating system's error, if there is advice for it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in ADVICE else None
    return next((number for words, number in WORDS.items() if re.search(words, str(error))), None)


def _first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = " to ".join(repr(name) for name in (error.filename, error.filename2) if name is not None)
        return f"{error.strerror}{': ' if place else ''}{place}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if any(re.search(words, line) for words in WORDS)]
    return (told or lines or [type(error).__name__])[0]
