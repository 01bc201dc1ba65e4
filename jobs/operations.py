"""What an operator does by hand: switch the snapshot back, erase a user, keep tables compact."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.bundles import ModelError
from jobs.config import Deployment
from jobs.ingest import refresh_event_days
from jobs.lake_reader import lake_reader
from jobs.live_ranker import LiveRanker, live_manifest, previous_manifest, require_pair, switch_back
from jobs.online_store import Manifest as SnapshotManifest
from jobs.online_store import NoLiveSnapshotError, OnlineStore, SnapshotReader
from jobs.publish_snapshot import log_switches, open_store
from jobs.store_publish import delete_user, rollback
from jobs.store_rows import user_key
from jobs.tables import open_lake
from lte_models.manifest import CheckpointError
from schemas import GATE_RESULTS, INTERACTIONS, QUARANTINE, TABLES

USER_TABLES = tuple(table for table in TABLES.values() if "user_id" in table.columns)
# Tables that hold landing rows or samples of rows as text, in which a user can appear.
TEXT_TABLES = ((QUARANTINE, ("raw", "detail")), (GATE_RESULTS, ("sample",)))
# Folders of the lake with copies of rows, which a crash can leave behind.
COPIES = ("models", "_staging")
PAGE_SUFFIXES = (".html", ".json")


def roll_back(deployment: Deployment, *, force: bool = False) -> dict[str, Any]:
    """Switch back to the snapshot that was live before; called again, switch forth.

    Args:
        deployment: Whose online store.
        force: Switch also where the live ranker does not read the LTEs of that snapshot.

    Returns:
        Manifest of what is live now, as plain values.

    Raises:
        jobs.bundles.ModelError: The live ranker does not read them, or its bundle cannot be read.
        jobs.store_publish.PublishRefusedError: There is no earlier snapshot.
        jobs.online_store.OnlineStoreError: The store does not answer.
    """
    store = open_store(deployment)
    try:
        if not force:
            _require_readable(deployment, store)
        with open_lake(deployment, "rollback") as lake:
            done = rollback(store)
            log_switches(lake, store)
        live: dict[str, Any] = json.loads(done.manifest.to_json())
        return live
    finally:
        store.close()


def _require_readable(deployment: Deployment, store: OnlineStore) -> None:
    """Refuse a snapshot to switch back to that the live ranker does not read."""
    with store.writer() as writer:
        previous = writer.pointer().previous
        snapshot = writer.manifest(previous) if previous is not None else None
    hint = "lte rollback --force switches all the same, lte rollback --ranker then switches the ranker, too"
    with _hint(hint):
        ranker = live_manifest(deployment) if deployment.ranker.enabled else None
        if ranker and snapshot:
            require_pair(ranker, _slice_of(snapshot), snapshot.ds)


def roll_back_ranker(deployment: Deployment, *, force: bool = False) -> LiveRanker:
    """Make the ranker live that was live before; the LTEs are not touched. Called again, switch forth.

    Args:
        deployment: Whose ranker.
        force: Switch also where that ranker does not read the live LTEs; the online store is not asked then.

    Raises:
        jobs.bundles.ModelError: There is no earlier ranker, its bundle cannot be read, or it reads other LTEs.
        jobs.online_store.OnlineStoreError: The store does not answer.
    """
    if not force:
        hint = "lte rollback --ranker --force switches all the same, lte rollback --force then switches the LTEs, too"
        with _hint(hint):
            ranker, snapshot = previous_manifest(deployment), _live_snapshot(deployment)
            if ranker and snapshot:
                require_pair(ranker, _slice_of(snapshot), snapshot.ds)
    return switch_back(deployment)


def _live_snapshot(deployment: Deployment) -> SnapshotManifest | None:
    store = open_store(deployment)
    try:
        return SnapshotReader(store).manifest()
    except NoLiveSnapshotError:
        return None
    finally:
        store.close()


def _slice_of(snapshot: SnapshotManifest) -> tuple[str, str, str]:
    return snapshot.basis_version, snapshot.lte_window, snapshot.method


@contextmanager
def _hint(text: str) -> Iterator[None]:
    """Say what to do about a ranker that does not fit or cannot be read."""
    try:
        yield
    except (ModelError, CheckpointError) as error:
        raise ModelError(f"{error}; {text}") from error


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
        jobs.online_store.BadRowError: ``user_id`` is not 1 to 128 bytes.
        jobs.online_store.OnlineStoreError: The store does not answer.
    """
    user_key(user_id)
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
    if "://" in deployment.paths.lake:
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
