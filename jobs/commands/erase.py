"""What an operator does by hand: switch the snapshot back, erase a user, keep tables compact."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.config.addresses import is_url
from jobs.config.sections import Deployment
from jobs.lake.lake import open_lake
from jobs.lake.reader import lake_reader
from jobs.landing.event_days import refresh_event_days
from jobs.ownership.lease import hold_lease
from jobs.store.opening import open_store
from jobs.store.publish import delete_user
from jobs.store.rows import user_key
from schemas import GATE_RESULTS, INTERACTIONS, QUARANTINE, TABLES

USER_TABLES = tuple(table for table in TABLES.values() if "user_id" in table.columns)

# Tables that hold landing rows or samples of rows as text, in which a user can appear.
TEXT_TABLES = ((QUARANTINE, ("raw", "detail")), (GATE_RESULTS, ("sample",)))

# Folders of the lake with copies of rows, which a crash can leave behind.
COPIES = ("models", "_staging")
PAGE_SUFFIXES = (".html", ".json")


def erase_user(deployment: Deployment, user_id: str) -> dict[str, Any]:
    """Remove a user from every table, from the tables' history, from pages about a run and from the online store.

    Tables come first: the next publish would otherwise bring the user back. Earlier versions of the tables that hold
    users are deleted with them, so these tables cannot be restored to a moment before. Running again after a crash
    finishes the work. Weights of models hold no ids; what they learned goes with the next training.

    Args:
        deployment: Whose tables, reports, Data Docs and online store.
        user_id: The user; unknown ones are erased too, from nothing.

    Returns:
        ``tables``: name to rows deleted or redacted; ``files``: rows beside a model and pages that named the user;
        ``versions``: snapshots of the online store that held the user.

    Raises:
        jobs.store.protocol.BadRowError: ``user_id`` is not 1 to 128 bytes.
        jobs.store.snapshot.OnlineStoreError: The store does not answer.
    """
    user_key(user_id)
    with hold_lease(deployment, "lte erase"):
        return _erase(deployment, user_id)


def _erase(deployment: Deployment, user_id: str) -> dict[str, Any]:
    rows = lake_reader(deployment).rows(INTERACTIONS, columns=["event_date"], where={"user_id": user_id})
    days = {row["event_date"] for row in rows}
    with open_lake(deployment, "erase") as lake:
        deleted = {table.name: lake.delete(table, {"user_id": user_id}) for table in USER_TABLES}
        for table, columns in TEXT_TABLES:
            deleted[table.name] = sum(lake.redact(table, columns, word) for word in _spellings(user_id))
        refresh_event_days(lake, sorted(days))
        for table in (*USER_TABLES, *(table for table, _ in TEXT_TABLES)):
            if lake.version(table) is not None:
                lake.forget_history(table)
    files = _delete_copied_rows(deployment) + _redact_pages(deployment, user_id)
    store = open_store(deployment)
    try:
        return {"user_id": user_id, "tables": deleted, "files": files, "versions": delete_user(store, user_id)}
    finally:
        store.close()


def _spellings(user_id: str) -> set[str]:
    """How the id stands in plain text, in JSON and in HTML."""
    as_json = {json.dumps(user_id, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)}
    return {user_id, *as_json, html.escape(user_id), html.escape(user_id, quote=False)}


def _delete_copied_rows(deployment: Deployment) -> int:
    """Delete copies of rows with users that a training or an ingest left; the next one makes its own."""
    if is_url(deployment.paths.lake):
        return 0
    copies = [
        path
        for folder in COPIES
        for path in (Path(deployment.paths.lake) / folder).rglob("*.parquet")
        if "user_id" in pq.read_schema(path).names
    ]
    for path in copies:
        path.unlink()
    return len(copies)


def _redact_pages(deployment: Deployment, user_id: str) -> int:
    """Overwrite the user in reports and Data Docs; returns how many files named the user.

    An id is looked for between quotes or tags, so a table cell that shows the same number as an id goes too.
    """
    ids = "|".join(re.escape(text) for text in sorted(_spellings(user_id)))
    pattern = re.compile(rf"""(?<=["'>;])({ids})(?=["'<&\\])|(?<=user_id": )({ids})(?!\w)""")
    folders = (Path(deployment.paths.reports), Path(deployment.paths.data_docs))
    pages = [path for folder in folders for path in folder.rglob("*") if path.suffix in PAGE_SUFFIXES]
    return sum(_redact_page(path, pattern) for path in pages)


def _redact_page(path: Path, pattern: re.Pattern[str]) -> bool:
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    redacted, n_found = pattern.subn("erased", text)
    if n_found:
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(redacted, encoding="utf-8", errors="surrogateescape")
        partial.replace(path)
    return n_found > 0
