"""Tables of the lake that belong to the store: the served slice, the rows that the gates saw, and the switches."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any

import pyarrow as pa

from jobs.config.sections import Deployment
from jobs.lake.day import Day
from jobs.lake.lake import Lake
from jobs.lake.predicates import Predicate
from jobs.runtime.code_version import code_version
from jobs.store.protocol import OnlineStore
from jobs.store.publish import pending_switches
from jobs.store.rows import Checksum, row_chunks
from jobs.store.snapshot import Switch
from schemas import LIVE_SNAPSHOT, RUNS, USER_LTE

SERVED_COLUMNS = ("user_id", "embedding", "n_items")
VALIDATE_JOB = "validate"


@dataclass(frozen=True)
class SliceState:
    """Rows of the served slice at one moment.

    Attributes:
        version: Delta version of user_lte that the rows were read from.
        n_rows: Number of rows.
        checksum: :class:`jobs.store.rows.Checksum` of exactly these rows.
    """

    version: int
    n_rows: int
    checksum: str

    def is_same(self, other: SliceState) -> bool:
        """Whether both are the same rows. The Delta version is ignored: rows of other days also make new versions."""
        return (self.n_rows, self.checksum) == (other.n_rows, other.checksum)

    def __str__(self) -> str:
        return f"{self.n_rows} rows with checksum {self.checksum} (user_lte version {self.version})"


def served_slice(deployment: Deployment, ds: date) -> Predicate:
    """The slice of user_lte that a deployment serves on ds."""
    return {"ds": ds, "method": deployment.publish.method, "lte_window": deployment.publish.window}


def slice_state(day: Day) -> SliceState:
    """Count and checksum of the served slice, read past the engine in bounded memory.

    Raises:
        jobs.store.rows.BadRowError: A row cannot be served.
    """
    # The version is read first. Rows that are written meanwhile make the recorded version too old, never too new.
    version = day.lake.version(USER_LTE)
    checksum, n_rows = rows_checksum(
        day.lake.batches(USER_LTE, columns=SERVED_COLUMNS, where=served_slice(day.deployment, day.ds))
    )
    return SliceState(-1 if version is None else version, n_rows, checksum)


def rows_checksum(batches: Iterable[pa.RecordBatch]) -> tuple[str, int]:
    """Checksum and number of rows."""
    checksum, n_rows = Checksum(), 0
    for chunk in row_chunks(batches):
        for key, value in chunk.items():
            checksum.add(key, value)
        n_rows += len(chunk)
    return str(checksum), n_rows


def forget_validated(lake: Lake, ds: date) -> None:
    """Delete the record of what the gates of ds saw: the rows may have changed since the gates passed."""
    lake.delete(RUNS, {"ds": ds, "job": VALIDATE_JOB})


def record_validated(lake: Lake, ds: date, basis_version: str, state: SliceState) -> None:
    """Record which rows the gates of ds saw, in table runs: publishing serves these rows and no others."""
    row = {
        "basis_version": basis_version,
        "input_fingerprint": json.dumps(asdict(state), sort_keys=True),
        "code_version": code_version(),
        "ds": ds,
        "job": VALIDATE_JOB,
    }
    lake.replace_rows([tuple(row[name] for name in RUNS.columns)], RUNS, {"ds": ds, "job": VALIDATE_JOB})


def validated_state(lake: Lake, ds: date) -> SliceState | None:
    """Which rows the gates of ds saw; None where validate recorded none."""
    run = lake.read(RUNS, where={"ds": ds, "job": VALIDATE_JOB}).select("input_fingerprint").first()
    return SliceState(**json.loads(run["input_fingerprint"])) if run else None


def log_switches(lake: Lake, store: OnlineStore) -> int:
    """Write the switches of the store's journal that the table live_snapshot lacks; a second call changes nothing.

    Returns:
        The largest sequence number logged; 0 where there is none.
    """
    logged = [row["sequence"] for row in lake.read(LIVE_SNAPSHOT).select("sequence").collect()]
    rows = [_log_row(switch, store.name) for switch in pending_switches(store, logged)]
    if rows:
        tuples = [tuple(row[name] for name in LIVE_SNAPSHOT.columns) for row in rows]
        # Rows are replaced, not appended: two processes that miss the same row then write it once.
        sequences = [row["sequence"] for row in rows]
        lake.replace_rows(tuples, LIVE_SNAPSHOT, {"sequence": sequences})
        logged += sequences
    return max(logged, default=0)


def _log_row(switch: Switch, store: str) -> dict[str, Any]:
    manifest = switch.manifest
    return {
        "sequence": switch.sequence,
        "action": switch.action,
        "ds": manifest.ds,
        "basis_version": manifest.basis_version,
        "method": manifest.method,
        "lte_window": manifest.lte_window,
        "half_life_days": manifest.half_life_days,
        "dim": manifest.dim,
        "n_rows": manifest.row_count,
        "checksum": manifest.checksum,
        "store": store,
        "code_version": manifest.code_version,
    }
