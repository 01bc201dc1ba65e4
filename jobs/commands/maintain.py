"""lte maintain, lte repair, lte lease: what keeps the tables compact, whole and in one hand."""

from __future__ import annotations

from typing import Any

from jobs.basis.repair import repair_basis
from jobs.config.sections import Deployment
from jobs.lake.lake import open_lake
from jobs.ownership.lease import break_lease, holders
from jobs.ownership.objects import objects_of
from schemas import TABLES


def maintain(deployment: Deployment, *, is_dry_run: bool = False) -> dict[str, dict[str, int]]:
    """Compact every table and delete files beyond the rollback horizon.

    Args:
        deployment: Whose tables.
        is_dry_run: Say what would be done, and change nothing.

    Returns:
        Table name to ``files_compacted`` and ``files_deleted``.
    """
    done = {}
    with open_lake(deployment, "maintain") as lake:
        for table in TABLES.values():
            if lake.version(table) is None:
                continue
            if is_dry_run:
                compacted, deleted = lake.small_files(table), lake.old_files(table)
            else:
                compacted, deleted = int(lake.compact(table)["numFilesRemoved"]), lake.vacuum(table)
            done[table.name] = {"files_compacted": compacted, "files_deleted": len(deleted)}
    return done


def repair(deployment: Deployment) -> dict[str, Any]:
    """Bring the table item_embeddings back to its newest good version, if the one now is damaged.

    Returns:
        Versions and rows before and after, and ``text`` for a person.

    Raises:
        jobs.basis.basis.BasisError: No version that is still there is good.
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
        is_broken: Whether to end their leases. A run that is alive after all stops at its next write.

    Returns:
        One entry per process: ``job``, ``ds``, ``who``, ``pid``, ``since``, and ``text`` for a person.
    """
    objects = objects_of(deployment.paths.lake)
    found = break_lease(objects) if is_broken else [holder for _, holder, _ in holders(objects)]
    names = ("job", "ds", "who", "pid", "since")
    return [{name: getattr(holder, name) for name in names} | {"text": str(holder)} for holder in found]
