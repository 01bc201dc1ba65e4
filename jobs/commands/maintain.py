"""lte maintain: compact tables, delete files beyond the rollback horizon."""

from __future__ import annotations

from jobs.config.sections import Deployment
from jobs.lake.lake import open_lake
from schemas import TABLES


def maintain(deployment: Deployment) -> dict[str, dict[str, int]]:
    """Compact every table and delete files beyond the rollback horizon.

    Returns:
        Table name to ``files_compacted`` and ``files_deleted``.
    """
    done = {}
    with open_lake(deployment, "maintain") as lake:
        for table in TABLES.values():
            if lake.version(table) is not None:
                compacted = int(lake.compact(table)["numFilesRemoved"])
                done[table.name] = {"files_compacted": compacted, "files_deleted": len(lake.vacuum(table))}
    return done
