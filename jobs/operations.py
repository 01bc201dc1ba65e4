"""What an operator does by hand: switch the snapshot back, erase a user, keep tables compact."""

from __future__ import annotations

import json
from typing import Any

from jobs.config import Deployment
from jobs.ingest import refresh_event_days
from jobs.lake_reader import lake_reader
from jobs.publish_snapshot import log_switches, open_store
from jobs.store_publish import delete_user, rollback
from jobs.tables import Lake, open_lake
from schemas import GATE_RESULTS, INTERACTIONS, LTE_DRIFT, QUARANTINE, TABLES, USER_LTE

USER_TABLES = (INTERACTIONS, USER_LTE, LTE_DRIFT)
# Tables that hold landing rows or samples of rows as text, in which a user can appear.
TEXT_TABLES = ((QUARANTINE, ("raw", "detail")), (GATE_RESULTS, ("sample",)))


def roll_back(deployment: Deployment) -> dict[str, Any]:
    """Switch back to the snapshot that was live before; called again, switch forth.

    Returns:
        Manifest of what is live now, as plain values.

    Raises:
        jobs.store_publish.PublishRefusedError: There is no earlier snapshot.
        jobs.online_store.OnlineStoreError: The store does not answer.
    """
    store = open_store(deployment)
    try:
        with open_lake(deployment, "rollback") as lake:
            done = rollback(store)
            log_switches(lake, store)
        live: dict[str, Any] = json.loads(done.manifest.to_json())
        return live
    finally:
        store.close()


def erase_user(deployment: Deployment, user_id: str) -> dict[str, Any]:
    """Remove a user from every table, from the tables' history and from the online store.

    Tables come first: the next publish would otherwise bring the user back. Earlier versions of the tables that held
    the user are deleted with them, so these tables cannot be restored to a moment before. Running again after a crash
    finishes the work.

    Returns:
        ``tables``: name to rows deleted or redacted; ``versions``: snapshots of the online store that held the user.

    Raises:
        jobs.online_store.OnlineStoreError: The store does not answer.
    """
    rows = lake_reader(deployment).rows(INTERACTIONS, columns=["event_date"], where={"user_id": user_id})
    days = {row["event_date"] for row in rows}
    with open_lake(deployment, "erase") as lake:
        deleted = {table.name: lake.delete(table, {"user_id": user_id}) for table in USER_TABLES}
        for table, columns in TEXT_TABLES:
            deleted[table.name] = lake.redact(table, columns, json.dumps(user_id))
        refresh_event_days(lake, sorted(days))
        _forget_history(lake, deployment)
    store = open_store(deployment)
    try:
        return {"user_id": user_id, "tables": deleted, "versions": delete_user(store, user_id)}
    finally:
        store.close()


def _forget_history(lake: Lake, deployment: Deployment) -> None:
    """Delete the files that only earlier versions of the tables need: they still hold the user."""
    now = Lake(lake.spark, deployment.paths.lake, rollback_days=0)
    for table in (*USER_TABLES, *(table for table, _ in TEXT_TABLES)):
        if now.version(table) is not None:
            now.vacuum(table)


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
