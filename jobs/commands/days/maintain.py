"""lte maintain, lte repair, lte lease: keep the tables compact and undamaged, with one writer at a time."""

from __future__ import annotations

from typing import Any

from jobs.basis.repair import repair_basis
from jobs.config.sections import Deployment
from jobs.lake.care import compact, old_files, small_files, vacuum
from jobs.lake.lake import open_lake
from jobs.ownership.lease import break_lease, holders
from jobs.ownership.objects import objects_of
from schemas import TABLES


def maintain(deployment: Deployment, *, is_dry_run: bool = False) -> dict[str, dict[str, int]]:
    """Compact every table and delete files beyond the rollback horizon.

    Args:
        deployment: Whose tables.
        is_dry_run: Whether to report what would be done and change nothing.

    Returns:
        Table name to ``files_compacted`` and ``files_deleted``.
    """
    done = {}
    with open_lake(deployment, "maintain") as lake:
        for table in TABLES.values():
            if lake.version(table) is None:
                continue
            if is_dry_run:
                compacted, deleted = small_files(lake, table), old_files(lake, table)
            else:
                compacted, deleted = int(compact(lake, table)["numFilesRemoved"]), vacuum(lake, table)
            done[table.name] = {"files_compacted": compacted, "files_deleted": len(deleted)}
    return done


def repair(deployment: Deployment) -> dict[str, Any]:
    """Restore the newest good version of table item_embeddings, if the current version is damaged.

    Returns:
        Versions and rows before and after, and ``text`` for a person.

    Raises:
        jobs.basis.basis.BasisError: Every version that still exists is damaged.
    """
    with open_lake(deployment, "lte repair") as lake:
        done = repair_basis(lake)
    return {
        "from_version": done.from_version,
        "to_version": done.to_version,
        "rows_before": done.n_rows_before,
        "rows_after": done.n_rows_after,
        "problem": done.problem,
        "text": str(done),
    }


def lease_holders(deployment: Deployment, *, is_broken: bool = False) -> list[dict[str, Any]]:
    """Runs that write the lake now.

    Args:
        deployment: Whose lake.
        is_broken: Whether to end the leases. A run that is still alive stops at its next write.

    Returns:
        One entry per process: ``job``, ``ds``, ``who``, ``pid``, ``since``, and ``text`` for a person.
    """
    objects = objects_of(deployment.paths.lake)
    found = break_lease(objects) if is_broken else [holder for _, holder, _ in holders(objects)]
    names = ("job", "ds", "who", "pid", "since")
    return [{name: getattr(holder, name) for name in names} | {"text": str(holder)} for holder in found]
