"""Erasure from the tables: rows, texts, history, and the records about these rows in other tables."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import functions as F

from jobs.config.addresses import is_url
from jobs.config.sections import Deployment
from jobs.erasure.spellings import same_person, spellings
from jobs.lake.care import forget_history
from jobs.lake.lake import Lake
from jobs.lake.predicates import standing_alone
from jobs.lake.reader import LakeReader, lake_reader
from jobs.landing.erased import user_hash
from jobs.landing.event_days import _existing, _states, _write_event_days
from jobs.lte.inputs import read_staleness
from jobs.registry.bundles import models_folder
from jobs.runtime.day import LTE_JOB
from lte_models.training.manifest import MANIFEST, BundleError, read_manifest
from schemas import ERASURES, GATE_RESULTS, INTERACTIONS, QUARANTINE, RUNS, TABLES, Table

USER_TABLES = tuple(table for table in TABLES.values() if "user_id" in table.columns)


@dataclass(frozen=True)
class TextTable:
    """A table with landing rows or samples of rows as text, in which a user can appear.

    Attributes:
        table: Declaration of the table.
        columns: Text columns.
        id_column: Column with the id of the user that the row is about, or None.
    """

    table: Table
    columns: tuple[str, ...]
    id_column: str | None = None


TEXT_TABLES = (
    TextTable(QUARANTINE, ("raw", "detail"), "found_user_id"),
    TextTable(GATE_RESULTS, ("sample", "observed")),
)


def rows_of(deployment: Deployment, user_ids: Sequence[str]) -> dict[str, int]:
    """Rows that an erasure would delete or redact, by table; starts no engine and changes nothing."""
    reader = lake_reader(deployment)
    names = list(user_ids)
    found = {
        table.name: sum(b.num_rows for b in reader.batches(table, columns=["user_id"], where={"user_id": names}))
        for table in USER_TABLES
    }
    pattern = re.compile("|".join(standing_alone(word) for word in _words(user_ids)))
    for text in TEXT_TABLES:
        found[text.table.name] = sum(_has(row, text, pattern, _words(user_ids)) for row in _text_rows(reader, text))
    return found


def _words(user_ids: Sequence[str]) -> set[str]:
    return {text for user_id in user_ids for each in same_person(user_id) for text in spellings(each)}


def _text_rows(reader: LakeReader, text: TextTable) -> Iterator[dict[str, Any]]:
    for batch in reader.batches(text.table):
        yield from batch.to_pylist()


def _has(row: Mapping[str, Any], text: TextTable, pattern: re.Pattern[str], words: set[str]) -> bool:
    is_named = text.id_column is not None and row.get(text.id_column) in words
    return is_named or any(pattern.search(row.get(column) or "") for column in text.columns)


def erase_from_tables(lake: Lake, deployment: Deployment, user_ids: Sequence[str]) -> dict[str, int]:
    """Delete the users' rows, redact texts, and delete every earlier version of these tables.

    Other tables get their new values first: the counts of event days, and the inputs of runs. So an erasure makes no
    run stale. After a kill, the same call finishes the work.

    Returns:
        Table name to rows deleted or redacted.
    """
    reader = lake_reader(deployment)
    rows = reader.rows(INTERACTIONS, columns=["event_date"], where={"user_id": list(user_ids)})
    days = sorted({row["event_date"] for row in rows})
    left = _existing(lake, days).where(~F.col("user_id").isin(list(user_ids)))
    states = _states(left)
    keep_runs_fresh(lake, deployment, {day: (state.n_events, state.checksum) for day, state in states.items()}, days)
    _write_event_days(lake, days, states)
    done = {table.name: lake.delete(table, {"user_id": list(user_ids)}) for table in USER_TABLES}
    for text in TEXT_TABLES:
        redact = [lake.redact(text.table, text.columns, w, id_column=text.id_column) for w in sorted(_words(user_ids))]
        done[text.table.name] = sum(redact)
    for table in (*USER_TABLES, *(text.table for text in TEXT_TABLES)):
        if lake.version(table) is not None:
            forget_history(lake, table)
    return done


def keep_runs_fresh(
    lake: Lake, deployment: Deployment, left: Mapping[Any, tuple[int, str]], days: Sequence[Any]
) -> int:
    """Record that the runs that were not stale also fit the tables without the users; returns the number of runs.

    The LTE of a user depends on the user's own events alone. So the LTEs of all other users stay correct.

    Args:
        lake: Gets the rows of table runs.
        deployment: Owner of the runs.
        left: Event day to number and checksum of the events that remain.
        days: Event days that change; a day that is not in ``left`` will have no events.
    """
    now = read_staleness(lake_reader(deployment))
    unchanged = [day for day in now.event_days if day[0] not in set(days)]
    later = replace(now, event_days=(*unchanged, *((day, *state) for day, state in left.items())))
    runs = [row for row in lake_reader(deployment).rows(RUNS) if row["job"] == LTE_JOB]
    fresh = [
        row | {"input_fingerprint": later.fingerprint(deployment, row)}
        for row in runs
        if row["input_fingerprint"] == now.fingerprint(deployment, row)
    ]
    if fresh and days:
        rows = [tuple(row[name] for name in RUNS.columns) for row in fresh]
        lake.replace_rows(rows, RUNS, {"job": LTE_JOB, "ds": [row["ds"] for row in fresh]})
    return len(fresh)


def record_erasure(lake: Lake, deployment: Deployment, user_ids: Sequence[str], counts: Mapping[str, int]) -> None:
    """Write the audit row of each user: hashes, counts and the time, no id. From then on, ingest keeps the users out.

    Args:
        lake: Gets the audit rows.
        deployment: Owner of the bundles that the rows list.
        user_ids: The users.
        counts: ``rows``, ``files`` and ``versions`` of this call, over all users; added to earlier ones.
    """
    before = {row["user_hash"]: row for row in lake_reader(deployment).rows(ERASURES)}
    salt = next((row["salt"] for row in before.values()), secrets.token_hex(16))
    ended, bundles = datetime.now(UTC), json.dumps(bundle_names(deployment))
    rows = []
    for hashed in {user_hash(salt, plain) for user_id in user_ids for plain in same_person(user_id)}:
        earlier = before.get(hashed, {})
        sums = [counts[name] + earlier.get(f"n_{name}", 0) for name in ("rows", "files", "versions")]
        rows.append((hashed, salt, ended, *sums, True, bundles))
    lake.replace_rows(rows, ERASURES, {"user_hash": [row[0] for row in rows]})


def readmit(lake: Lake, deployment: Deployment, user_id: str) -> bool:
    """Let ingest accept the user's rows again; returns whether ingest kept the user out until now."""
    names = same_person(user_id)
    found = [row for row in lake_reader(deployment).rows(ERASURES) if row["is_kept_out"]]
    rows = [row for row in found if row["user_hash"] in {user_hash(row["salt"], name) for name in names}]
    if rows:
        values = [tuple((row | {"is_kept_out": False})[name] for name in ERASURES.columns) for row in rows]
        lake.replace_rows(values, ERASURES, {"user_hash": [row["user_hash"] for row in rows]})
    return bool(rows)


def bundle_names(deployment: Deployment) -> list[str]:
    """Kind, ds and digest of every bundle; an erasure cannot remove what the weights of a bundle learned."""
    if is_url(deployment.paths.lake):
        return []
    names = set()
    for path in models_folder(deployment).rglob(MANIFEST):
        try:
            manifest = read_manifest(path.parent)
        except BundleError:
            names.add(f"{path.parent.name} (its manifest cannot be read)")
            continue
        names.add(f"{manifest.kind} ds={manifest.ds} {manifest.weights_sha256[:12]}")
    return sorted(names)


def audit(deployment: Deployment) -> list[dict[str, Any]]:
    """All erasures, without personal data, each with the bundles of that time that still exist."""
    there = set(bundle_names(deployment))
    rows = sorted(lake_reader(deployment).rows(ERASURES), key=lambda row: (row["erased_ts"], row["user_hash"]))
    return [
        {name: row[name] for name in ERASURES.columns if name not in ("salt", "bundles")}
        | {"still_know_the_user": sorted(there & set(json.loads(row["bundles"])))}
        for row in rows
    ]
