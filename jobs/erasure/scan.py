"""Reads every byte under a deployment's folders, and lists the places that still hold a user.

The scan decodes Parquet files: values, dictionaries and statistics of all versions, also of files that no log names.
The scan also decodes gzip files, and LMDB files with the pages that no reader reaches. All other files are read as
they are. A file that cannot be read counts as a place, because its content is unknown.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from jobs.config.sections import Deployment
from jobs.erasure.online import holds_bytes, versions_that_hold
from jobs.erasure.spellings import is_bare, same_person, spellings, text_pattern
from jobs.landing.files import filesystem
from jobs.store.lmdb_store import LmdbStore
from jobs.store.opening import open_store
from jobs.store.rows import user_key
from schemas import ITEMS

BLOCK_BYTES = 8 << 20
OVERLAP_BYTES = 2 << 10
ITEM_COLUMNS = frozenset({"item_id", *ITEMS.columns})
ITEM_CONTEXT = re.compile(rb"item_ids?\W{0,8}$")
CONTEXT_BYTES = 24


@dataclass(frozen=True)
class Place:
    """A place that still holds a user.

    Attributes:
        path: File, or version of the online store.
        what: Part of the file or version, such as a column.
    """

    path: str
    what: str


class _Words:
    """The users in the forms in which files hold them."""

    def __init__(self, user_ids: Sequence[str]) -> None:
        self.ids = {each for user_id in user_ids for each in same_person(user_id)}
        self.text = text_pattern(self.ids)
        self.bytes = re.compile(self.text.pattern.encode("utf-8", "surrogateescape"), re.MULTILINE)
        bare = {text.encode() for user_id in self.ids if is_bare(user_id) for text in spellings(user_id)}
        # In a binary file, no blanks or quotes surround an id.
        self.bare = re.compile(b"|".join(re.escape(word) for word in sorted(bare))) if bare else None


def places(deployment: Deployment, user_ids: Sequence[str]) -> list[Place]:
    """Every place under lake, online store, reports and Data Docs that still holds one of the users.

    Args:
        deployment: Owner of the folders and the store.
        user_ids: The users.

    Raises:
        jobs.store.snapshot.OnlineStoreError: The store does not answer.
    """
    words, paths = _Words(user_ids), deployment.paths
    found = [place for folder in (paths.lake, paths.reports, paths.data_docs) for place in _in_folder(folder, words)]
    return sorted({*found, *_in_store(deployment, user_ids, words)}, key=lambda place: (place.path, place.what))


def landing_places(deployment: Deployment, user_ids: Sequence[str]) -> list[Place]:
    """Landing files that hold one of the users. They belong to the shop; ingest keeps the users' rows out."""
    return sorted(_in_folder(deployment.paths.landing, _Words(user_ids)), key=lambda place: (place.path, place.what))


def _in_store(deployment: Deployment, user_ids: Sequence[str], words: _Words) -> Iterator[Place]:
    store = open_store(deployment)
    try:
        for version in versions_that_hold(store, user_ids):
            yield Place(f"{store!r}", f"version {version}")
        if isinstance(store, LmdbStore):  # also versions that no pointer names
            keys = [user_key(user_id) for user_id in user_ids]
            folder = Path(deployment.paths.online_store)
            for path in sorted(folder.glob("*.mdb")):
                if holds_bytes(store, path.stem, keys):
                    yield Place(str(path), "bytes of the file")
            for path in sorted(each for each in folder.rglob("*") if each.is_file() and each.suffix != ".mdb"):
                yield from _in_file(fs.LocalFileSystem(), str(path), words)
    finally:
        store.close()


def _in_folder(folder: str, words: _Words) -> Iterator[Place]:
    system, root = filesystem(folder)
    for info in system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True)):
        if words.text.search(info.path[len(root) :]):
            yield Place(info.path, "name of the file")
        if info.is_file:
            yield from _in_file(system, info.path, words)


def _in_file(system: fs.FileSystem, path: str, words: _Words) -> Iterator[Place]:
    try:
        with system.open_input_file(path) as file:
            if path.endswith(".parquet"):
                yield from (Place(path, what) for what in sorted(set(_in_parquet(file, words))))
                file.seek(0)
            content: Any = gzip.GzipFile(fileobj=file) if path.endswith(".gz") else file
            if _in_bytes(content, words, is_text=not path.endswith(".parquet")):
                yield Place(path, "bytes of the file")
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        yield Place(path, f"cannot be read: {str(error)[:80]}")


def _in_bytes(stream: Any, words: _Words, *, is_text: bool) -> bool:
    """Whether a stream holds a user. Blocks are read with an overlap that is longer than the longest id."""
    tail = b""
    while block := stream.read(BLOCK_BYTES):
        content = tail + block
        if words.bare and not is_text and words.bare.search(content):
            return True
        if is_text and any(not _is_item(content, found.start()) for found in words.bytes.finditer(content)):
            return True
        tail = content[-OVERLAP_BYTES:]
    return False


def _is_item(content: bytes, start: int) -> bool:
    """Whether the text before a match says that it is the id of an item."""
    return ITEM_CONTEXT.search(content[max(0, start - CONTEXT_BYTES) : start]) is not None


def _in_parquet(file: Any, words: _Words) -> Iterator[str]:
    reader = pq.ParquetFile(file)
    texts = [
        reader.schema.column(i).path
        for i in range(len(reader.schema))
        if str(reader.schema.column(i).physical_type) == "BYTE_ARRAY"
    ]
    for group in range(reader.num_row_groups):
        yield from _in_statistics(reader.metadata.row_group(group), words)
    # A dictionary may hold values that no row of the file uses, so it is read as it was written.
    by_group = pq.ParquetFile(file, read_dictionary=texts)
    for group in range(reader.num_row_groups):
        for column in texts:
            chunk = by_group.read_row_group(group, columns=[column])
            if any(_names(column, value, words) for value in _values(chunk)):
                yield f"column {column}"


def _in_statistics(group: Any, words: _Words) -> Iterator[str]:
    for i in range(group.num_columns):
        column = group.column(i)
        statistics = column.statistics
        has_texts = statistics is not None and statistics.has_min_max and isinstance(statistics.min, str | bytes)
        ends = (statistics.min, statistics.max) if has_texts else ()
        if any(_names(column.path_in_schema, value, words) for value in ends):
            yield f"statistics of column {column.path_in_schema}"


def _values(table: pa.Table) -> Iterator[Any]:
    for column in table.columns:
        for chunk in column.chunks:
            yield from _leaves(chunk)


def _leaves(array: pa.Array) -> Iterable[Any]:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return list(array.dictionary.to_pylist())
    if pa.types.is_struct(kind):
        return (value for field in array.flatten() for value in _leaves(field))
    if pa.types.is_map(kind):
        return (value for part in (array.keys, array.items) for value in _leaves(part))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _leaves(array.flatten())
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
    return list(array.to_pylist()) if is_text else ()


def _names(column: str, value: Any, words: _Words) -> bool:
    """Whether a value of a text column names a user; a short id in a text of the catalogue counts as a number."""
    if value is None:
        return False
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
    name = column.split(".", maxsplit=1)[0]
    if name not in ITEM_COLUMNS and text in words.ids:
        return True
    if name in ITEM_COLUMNS and not any(is_bare(user_id) for user_id in words.ids):
        return False
    content = text.encode("utf-8", "surrogateescape")
    return name != "item_id" and any(not _is_item(content, found.start()) for found in words.bytes.finditer(content))
