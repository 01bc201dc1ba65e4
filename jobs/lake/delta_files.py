"""Delta tables as files: path, version, and Arrow batches read without an engine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import tempfile
from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError, TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from pyspark.sql.types import StructField

from jobs.config.addresses import is_url
from jobs.lake.predicates import Predicate, TableError, _values
from schemas import Table

# Paths that engines and libraries read in the same way, although their escaping differs.
PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+,=@:-]*")

# Rows that a stream decodes at a time: 8 MB of vectors at D = 512.
READ_ROWS = 4096
READ_BUFFER_BYTES = 1 << 20

LOG_FOLDER = "_delta_log"
LAST_CHECKPOINT = "_last_checkpoint"
DELETION_VECTOR = "deletion_vector_"
LOG_RETENTION = "delta.logRetentionDuration"
MIN_LOG_DAYS = 30


def table_path(lake: str, table: Table) -> str:
    """Folder of a table under the lake."""
    return f"{lake.rstrip('/')}/{table.name}"


def retention(rollback_days: int) -> dict[str, str]:
    """Properties of a table that keep what a rollback needs."""
    return {
        "delta.deletedFileRetentionDuration": f"interval {rollback_days} days",
        LOG_RETENTION: f"interval {max(rollback_days, MIN_LOG_DAYS)} days",
    }


def delta_schema(fields: Iterable[StructField]) -> deltalake.Schema:
    """Columns with their comments, as Delta writes them."""
    columns = [field.jsonValue() | {"metadata": {"comment": field.metadata["comment"]}} for field in fields]
    return deltalake.Schema.from_json(json.dumps({"type": "struct", "fields": columns}))


def engine_folder(root: str) -> str:
    """The lake's folder as Sail can read it: the folder itself, or a link with a plain name to the folder.

    Sail 0.7 escapes blanks, letters outside ASCII and ``%#"{}?*<`` of a path twice. Sail then finds no table, and
    writes into another folder without an error. Through a link with a plain name, Sail and Delta open the same files.

    Args:
        root: Folder or URI of the lake.
    """
    if is_url(root) or PLAIN_PATH.fullmatch(root):
        return root
    links = next(Path(place) for place in (tempfile.gettempdir(), "/tmp", "/var/tmp") if PLAIN_PATH.fullmatch(place))  # noqa: S108
    folder = links / f"lte-lakes-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    # A link that another user could set would lead the engine into that user's folder.
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise TableError(f"{folder}: expected a folder that only user {os.getuid()} can write; remove it")
    link = folder / hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    if not link.is_symlink() or link.readlink() != Path(root):
        new = folder / f"{link.name}.{secrets.token_hex(8)}"  # two processes may make the link at the same time
        new.symlink_to(root)
        new.replace(link)
    return str(link)


def _delta(path: str, version: int | None = None) -> deltalake.DeltaTable:
    """Open a table.

    Raises:
        deltalake.exceptions.TableNotFoundError: There is no table.
        TableError: The table's log is damaged, or ``version`` no longer exists.
    """
    try:
        table = deltalake.DeltaTable(path, version=version)
        if not is_url(path):
            _require_content(path, table.version())
        return table
    except TableNotFoundError:
        raise
    except DeltaError as error:
        name, at = path.rstrip("/").rpartition("/")[2], "" if version is None else f", version {version}"
        reason = " ".join(str(error).split())[:300]
        raise TableError(
            f"table {name}{at}: the log {path}/_delta_log cannot be read: {reason}: restore its files from a copy"
        ) from error


def _require_content(path: str, version: int) -> None:
    """Refuse an empty commit file: readers would treat it as a commit without changes.

    A machine that loses power can leave such a file. An object store cannot: an object is complete or absent.
    """
    commit = Path(path) / "_delta_log" / f"{version:020d}.json"
    if commit.exists() and not commit.stat().st_size:
        raise TableError(
            f"table {Path(path).name}: the log {path}/_delta_log cannot be read: {commit.name} is empty: delete "
            f"{commit.name} and run the job again that wrote last, or restore the file from a copy"
        )


def table_version(path: str) -> int | None:
    """Newest version of the Delta table at ``path``; None if there is no table yet."""
    try:
        return _delta(path).version()
    except TableNotFoundError:
        return None


def newest_commit(path: str) -> dict[str, Any] | None:
    """Newest commit of the Delta table at ``path``: ``version``, ``timestamp``; None if there is no table yet."""
    if (version := table_version(path)) is None:
        return None
    commits = _delta(path, version).history(1)
    return dict(commits[0])


def last_write(path: str) -> datetime | None:
    """When rows were last written to the Delta table at ``path``, UTC; None if there is no table yet.

    Compaction and clean-up write no rows and do not count.
    """
    if table_version(path) is None:
        return None
    commits = [commit for commit in _delta(path).history() if commit.get("operation") in ("WRITE", "MERGE")]
    return datetime.fromtimestamp(commits[0]["timestamp"] / 1000, UTC) if commits else None


def arrow_batches(
    path: str, *, version: int | None = None, columns: Sequence[str] | None = None, where: Predicate | None = None
) -> Iterator[pa.RecordBatch]:
    """Stream a Delta table as Arrow record batches, without an engine: for workers and for the online store.

    Args:
        path: Folder of the table.
        version: Version to read; the newest by default.
        columns: Columns in order; all by default.
        where: Column to value, or to several values.

    Raises:
        deltalake.exceptions.TableNotFoundError: There is no table.
    """
    dataset, wanted = _delta(path, version).to_pyarrow_dataset(), _arrow_filter(where or {})
    schema = pa.schema([dataset.schema.field(name) for name in columns or dataset.schema.names])
    read = {*schema.names, *(where or {})}
    for fragment in dataset.get_fragments(filter=wanted):
        constants = pads.get_partition_keys(fragment.partition_expression)
        # a condition that holds for the whole file needs no filter, which would copy the rows
        unsure = _arrow_filter({name: values for name, values in (where or {}).items() if name not in constants})
        for batch in _file_batches(fragment, pa.schema([field for field in dataset.schema if field.name in read])):
            rows = pa.Table.from_batches([batch])
            kept = rows if unsure is None else rows.filter(unsure)
            yield from kept.select(schema.names).to_batches()


def _file_batches(fragment: pads.ParquetFileFragment, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Decode a file some rows at a time: a dataset's own scan holds whole row groups of several files at once."""
    constants = pads.get_partition_keys(fragment.partition_expression)
    with _file_errors(fragment.path), fragment.filesystem.open_input_file(fragment.path) as source:
        # Apache Spark writes a checksum with each page; a page without one, as Sail writes it, passes.
        file = pq.ParquetFile(source, buffer_size=READ_BUFFER_BYTES, page_checksum_verification=True)
        stored = [name for name in schema.names if name in file.schema_arrow.names]
        for batch in file.iter_batches(READ_ROWS, columns=stored):
            arrays = [
                batch[field.name].cast(field.type)
                if field.name in stored
                else pa.repeat(pa.scalar(constants.get(field.name), field.type), batch.num_rows)
                for field in schema
            ]
            yield pa.record_batch(arrays, schema=schema)


@contextmanager
def _file_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise TableError(
            f"file {path} of a table cannot be read: {str(error).splitlines()[0]}: run the job that wrote the file "
            "again, or restore the file from a copy"
        ) from error


def ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Decode the next batch in a thread while the last one is being used.

    The deltalake package cannot read in the thread in which it writes, so a rewrite reads through here.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, batches, None)
        while (batch := waiting.result()) is not None:
            waiting = pool.submit(next, batches, None)
            yield batch


def _arrow_filter(where: Predicate) -> pc.Expression | None:
    condition: pc.Expression | None = None
    for name, wanted in where.items():
        each = pc.field(name).isin([pa.scalar(value) for value in _values(wanted)])
        condition = each if condition is None else condition & each
    return condition


def delete_unreferenced(path: str, checkpoint: int) -> list[str]:
    """Delete all files that the newest version of a table does not need, whatever the dates of the files.

    Args:
        path: Folder of the table.
        checkpoint: Version whose checkpoint holds the whole content of the log of earlier versions.

    Returns:
        Names of the deleted files.
    """
    # Names are unique in a table. Paths are not compared, because they escape partition values once or twice.
    needed = {_file_name(uri) for uri in _delta(path).file_uris()}
    files = pafs.PyFileSystem(DeltaStorageHandler(path))
    found = files.get_file_info(pafs.FileSelector("", recursive=True))
    old = [info.path for info in found if info.is_file and not _is_needed(info.path, needed, checkpoint)]
    for name in old:
        files.delete_file(name)
    return old


def _file_name(path: str) -> str:
    return unquote(unquote(path)).rsplit("/", 1)[-1]


def _is_needed(path: str, needed: Container[str], checkpoint: int) -> bool:
    folder, _, name = path.strip("/").rpartition("/")
    if folder.split("/")[0] != LOG_FOLDER:
        return _file_name(path) in needed or name.startswith(DELETION_VECTOR)
    # Checksums that Apache Spark writes beside commits name files with their statistics, too.
    if name == LAST_CHECKPOINT:
        return True
    return name[:20].isdecimal() and int(name[:20]) >= checkpoint and not name.endswith(".crc")
