"""lte erase: deletes a user who asks to be forgotten from every place, and a scan of every byte proves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.config.sections import Deployment
from jobs.erasure.files import copies_of_rows, delete_copies, pages_that_name, redact_pages
from jobs.erasure.online import erase_online, versions_that_hold
from jobs.erasure.scan import landing_places, places
from jobs.erasure.tables import audit, bundle_names, erase_from_tables, readmit, record_erasure, rows_of
from jobs.lake.lake import open_lake
from jobs.lake.reader import lake_reader
from jobs.ownership.lease import hold_lease
from jobs.runtime.text import printable
from jobs.store.opening import open_store
from jobs.store.rows import user_key
from schemas import ERASURE_REQUESTS

__all__ = ["audit"]


@dataclass(frozen=True)
class Erasure:
    """What an erasure found, over all its users.

    Attributes:
        n_users: Users that were asked for.
        tables: Table to rows deleted or redacted.
        files: Copies of rows that were deleted, and pages that named a user.
        versions: Rows deleted from snapshots of the online store.
        rewritten: Snapshots whose file was written again, because deleted rows were still in its bytes.
        note: What the online store must still do; empty if it is finished.
        bundles: Models that were trained before the erasure and may have learned from the users.
    """

    n_users: int
    tables: dict[str, int]
    files: int
    versions: int
    rewritten: int
    note: str
    bundles: list[str]

    @property
    def is_known(self) -> bool:
        """Whether anything was known of the users."""
        return bool(sum(self.tables.values()) or self.versions or self.rewritten)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"is_known": self.is_known}


def erase_users(deployment: Deployment, user_ids: Sequence[str]) -> Erasure:
    """Remove users from the online store, every table and its history, staged copies, reports and Data Docs.

    The online store comes first: a damaged file in the lake must not keep a user live. The audit row is written before
    the tables change, so that every later ingest keeps the users out. After a kill, the same call finishes the work.
    Earlier versions of the tables that hold users are deleted, so these tables cannot be restored to an earlier time.
    Weights of models hold no ids. What the weights learned disappears when the models are trained again.

    Args:
        deployment: Deployment that forgets the users.
        user_ids: Users to erase. An unknown user is allowed and gets an audit row, too.

    Raises:
        jobs.store.rows.BadRowError: A user_id is not 1 to 128 bytes.
        jobs.store.snapshot.OnlineStoreError: The store does not answer.
    """
    for user_id in user_ids:
        user_key(user_id)
    # No job that could publish the users again, or that reads the copies of rows, runs meanwhile.
    with hold_lease(deployment, "lte erase"):
        return _erase(deployment, user_ids)


def _erase(deployment: Deployment, user_ids: Sequence[str]) -> Erasure:
    with open_lake(deployment, "erase") as lake:
        store = open_store(deployment)
        try:
            online = erase_online(store, user_ids)
        finally:
            store.close()
        record_erasure(lake, deployment, user_ids, {"rows": 0, "files": 0, "versions": online.n_rows})
        tables = erase_from_tables(lake, deployment, user_ids)
        n_files = delete_copies(deployment) + redact_pages(deployment, user_ids)
        record_erasure(lake, deployment, user_ids, {"rows": sum(tables.values()), "files": n_files, "versions": 0})
    return Erasure(
        len(user_ids), tables, n_files, online.n_rows, online.n_rewritten, online.note, bundle_names(deployment)
    )


def plan_erasure(deployment: Deployment, user_ids: Sequence[str]) -> Erasure:
    """What :func:`erase_users` would find; starts no engine and changes nothing."""
    store = open_store(deployment)
    try:
        versions = versions_that_hold(store, user_ids)
    finally:
        store.close()
    n_files = len(copies_of_rows(deployment)) + pages_that_name(deployment, user_ids)
    tables = rows_of(deployment, user_ids)
    return Erasure(len(user_ids), tables, n_files, len(versions), 0, "", bundle_names(deployment))


def verify_erasure(deployment: Deployment, user_ids: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """Read every byte under the deployment's folders; changes nothing.

    Returns:
        ``places`` that still hold one of the users, each with ``path`` and ``what``; and ``landing``: files of the shop
        that hold them, whose rows ingest keeps out.
    """
    return {
        "places": [asdict(place) for place in places(deployment, user_ids)],
        "landing": [asdict(place) for place in landing_places(deployment, user_ids)],
    }


def requested_users(deployment: Deployment) -> list[str]:
    """Users in table erasure_requests, oldest request first; an erasure deletes these rows, too."""
    rows = lake_reader(deployment).rows(ERASURE_REQUESTS)
    return [row["user_id"] for row in sorted(rows, key=lambda row: (row["requested_ts"], row["user_id"]))]


def let_back_in(deployment: Deployment, user_id: str) -> bool:
    """Let ingest accept the user's rows again; returns whether ingest kept the user out until now."""
    with open_lake(deployment, "erase") as lake:
        return readmit(lake, deployment, user_id)


def erasure_text(done: Erasure, user_ids: Sequence[str], *, is_plan: bool) -> str:
    """What was done, for a terminal or a log.

    Args:
        done: Result.
        user_ids: The users that the operator named; empty for a number instead of names.
        is_plan: Whether nothing was changed.
    """
    who = ", ".join(f"user {printable(user_id)}" for user_id in user_ids) or f"{done.n_users} users"
    if not done.is_known and not is_plan:
        return f"nothing was known of {who}; ingest keeps the id out from now on (lte erase --readmit ends that)"
    lines = [f"{'would erase' if is_plan else 'erased'} {who}"]
    lines += [f"  {name:20}{count:>8} rows" for name, count in done.tables.items() if count]
    lines += [f"  {'pages and copies':20}{done.files:>8} files", f"  {'online store':20}{done.versions:>8} rows"]
    if done.rewritten:
        lines.append(f"  {'online store':20}{done.rewritten:>8} files written anew")
    lines += [f"online store: {done.note}"] if done.note else []
    if done.bundles:
        lines.append(f"models trained before, until they are trained anew: {', '.join(done.bundles)}")
    if not is_plan:
        lines.append("ingest keeps the user out, also where old landing files hold the user; lte erase --verify looks")
    return "\n".join(lines)


def verification_text(found: dict[str, list[dict[str, str]]]) -> str:
    """Where the users still are, for a terminal."""
    lines = [f"found: {printable(place['path'])}: {printable(place['what'])}" for place in found["places"]]
    lines += [
        f"landing file, not the deployment's: {printable(place['path'])}: {printable(place['what'])}"
        for place in found["landing"]
    ]
    summary = f"{len(found['places'])} places still hold the user" if found["places"] else "the user is nowhere"
    return "\n".join([*lines, summary])


def audit_text(rows: Sequence[dict[str, Any]]) -> str:
    """The erasures, for a terminal."""
    lines = [
        f"{row['erased_ts']:%Y-%m-%d %H:%M:%S} UTC  {row['user_hash']}  {row['n_rows']} rows, {row['n_files']} files, "
        f"{row['n_versions']} online{'' if row['is_kept_out'] else ', let in again'}; models that still know the user: "
        f"{', '.join(row['still_know_the_user']) or 'none'}"
        for row in rows
    ]
    return "\n".join(lines) or "no erasure yet"
