"""Care of tables: joins small files, restores a version, deletes files and history that nobody needs."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pyarrow as pa
from deltalake.exceptions import DeltaError

from jobs.lake.delta_files import LOG_RETENTION, MIN_LOG_DAYS, _delta, delete_unreferenced, retention
from jobs.lake.lake import Lake
from jobs.lake.predicates import TableError
from schemas import Table

# File size that deltalake's compaction aims at.
COMPACTED_BYTES = 100 << 20


def restore(lake: Lake, table: Table, version: int) -> None:
    """Make an earlier version the newest; readers see it at once.

    Raises:
        TableError: The version was vacuumed or never existed.
    """
    lake.may_write()
    try:
        _delta(lake.path(table)).restore(version)
    except DeltaError as error:
        raise TableError(f"table {table.name}: cannot restore version {version}: {error}") from error


def compact(lake: Lake, table: Table) -> dict[str, Any]:
    """Rewrite small files into larger ones; rows stay as they are."""
    lake.may_write()
    return dict(_delta(lake.path(table)).optimize.compact())


def small_files(lake: Lake, table: Table) -> int:
    """Estimate from the log of how many files :func:`compact` would join: files that share a partition."""
    actions = pa.table(_delta(lake.path(table)).get_add_actions(flatten=True))
    keys = [name for name in actions.column_names if name.startswith("partition.")]
    sizes: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for row in actions.to_pylist():
        sizes[tuple(row[key] for key in keys)].append(row["size_bytes"])
    small = [[size for size in files if size < COMPACTED_BYTES] for files in sizes.values()]
    return sum(len(files) for files in small if len(files) > 1)


def old_files(lake: Lake, table: Table) -> list[str]:
    """Files that :func:`vacuum` would delete."""
    return _delta(lake.path(table)).vacuum(
        retention_hours=lake.rollback_days * 24, dry_run=True, enforce_retention_duration=False
    )


def vacuum(lake: Lake, table: Table) -> list[str]:
    """Delete files that no version within ``rollback_days`` needs; returns their names.

    A table that was created with another horizon gets this one, so that engines that clean up by themselves use it.
    """
    lake.may_write()
    delta = _delta(lake.path(table))
    wanted = retention(lake.rollback_days)
    if any(delta.metadata().configuration.get(name) != value for name, value in wanted.items()):
        delta.alter.set_table_properties(wanted)
    return _delta(lake.path(table)).vacuum(
        retention_hours=lake.rollback_days * 24, dry_run=False, enforce_retention_duration=False
    )


def forget_history(lake: Lake, table: Table) -> None:
    """Delete every earlier version: its files, and its log entries, which hold smallest and largest values.

    A file that the newest version does not name is deleted whatever its date. A machine whose clock is ahead writes
    files that a vacuum keeps, and a killed writer leaves files that no version names. No job may run at the same
    time. Afterwards the table cannot be restored to an earlier version.
    """
    lake.may_write()
    delta = _delta(lake.path(table))
    kept = delta.metadata().configuration.get(LOG_RETENTION, f"interval {MIN_LOG_DAYS} days")
    delta.update_incremental()
    delta.alter.set_table_properties({LOG_RETENTION: "interval 0 days"})
    delta.create_checkpoint()
    checkpoint = delta.version()
    delta.alter.set_table_properties({LOG_RETENTION: kept})
    delete_unreferenced(lake.path(table), checkpoint)
