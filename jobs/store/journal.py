"""The store's switches in the table live_snapshot."""

from __future__ import annotations

from typing import Any

from jobs.lake.lake import Lake
from jobs.store.protocol import OnlineStore
from jobs.store.publish import pending_switches
from jobs.store.snapshot import Switch
from schemas import LIVE_SNAPSHOT


def log_switches(lake: Lake, store: OnlineStore) -> int:
    """Write the switches of the store's journal that the table live_snapshot lacks; running again changes nothing.

    Returns:
        The largest sequence number logged; 0 where there is none.
    """
    logged = [row["sequence"] for row in lake.read(LIVE_SNAPSHOT).select("sequence").collect()]
    rows = [_log_row(switch, store.name) for switch in pending_switches(store, logged)]
    if rows:
        tuples = [tuple(row[name] for name in LIVE_SNAPSHOT.columns) for row in rows]
        # Replacing, so that two processes that find the same row missing write it once.
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
        "dim": manifest.dim,
        "n_rows": manifest.row_count,
        "checksum": manifest.checksum,
        "store": store,
        "code_version": manifest.code_version,
    }
