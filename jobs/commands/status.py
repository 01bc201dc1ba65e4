"""What is live, what ran, what the gates said and which runs are stale: read from the tables, without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from jobs.config.addresses import is_url
from jobs.config.sections import Deployment
from jobs.lake.reader import LakeReader, lake_reader
from jobs.lte.inputs import read_staleness, stale_reason
from jobs.ranker.live import live_ranker
from jobs.runtime.pages import docs_index, report_page
from jobs.store.opening import live_manifest
from schemas import GATE_RESULTS, RUNS

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunStatus:
    """One data day: which jobs ran, how many gates failed, why it is stale, if it is, and where its pages are."""

    ds: date
    jobs: tuple[str, ...]
    gates_passed: int
    gates_failed: tuple[str, ...]
    stale: str | None
    gates_skipped: int = 0
    report: str | None = None
    data_docs: str | None = None


@dataclass(frozen=True)
class Status:
    """State of a deployment.

    Attributes:
        deployment: Its name.
        live: Manifest of the online store's live snapshot, or None.
        ranker: The live ranker (bundle, ds, weights_sha256, previous), or None.
        runs: Newest first.
    """

    deployment: str
    live: dict[str, Any] | None
    ranker: dict[str, Any] | None
    runs: tuple[RunStatus, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as plain values, days as text."""
        plain = asdict(self)
        plain["runs"] = [run | {"ds": str(run["ds"])} for run in plain["runs"]]
        return plain


def deployment_status(deployment: Deployment, *, last: int = 10) -> Status:
    """State of a deployment.

    Args:
        deployment: Which.
        last: How many runs, newest first.

    Raises:
        jobs.store.snapshot.OnlineStoreError: The store does not answer.
        jobs.registry.records.ModelError: What names the live ranker cannot be read.
    """
    lake = lake_reader(deployment)
    runs: dict[date, list[dict[str, Any]]] = {}
    for row in lake.rows(RUNS):
        runs.setdefault(row["ds"], []).append(row)
    newest = sorted(runs, reverse=True)[:last]
    staleness = read_staleness(lake)
    states = tuple(
        replace(
            _run_status(lake, ds, runs[ds], stale_reason(staleness, deployment, runs[ds])),
            report=_existing(report_page(deployment, ds)),
            data_docs=_existing(docs_index(deployment, ds)),
        )
        for ds in newest
    )
    return Status(deployment.deployment.name, live_manifest(deployment), _ranker(deployment), states)


def _ranker(deployment: Deployment) -> dict[str, Any] | None:
    if is_url(deployment.paths.lake):
        return None  # models need a lake that is a folder
    live = live_ranker(deployment)
    return asdict(live) if live else None


def _existing(path: Path) -> str | None:
    return str(path) if path.exists() else None


def _run_status(lake: LakeReader, ds: date, rows: list[dict[str, Any]], stale: str | None) -> RunStatus:
    gates = lake.rows(GATE_RESULTS, columns=["table", "expectation", "success", "skipped"], where={"ds": ds})
    failed = tuple(sorted(f"{gate['table']}: {gate['expectation']}" for gate in gates if not gate["success"]))
    jobs = tuple(sorted(row["job"] for row in rows))
    skipped = sum(gate["skipped"] is not None for gate in gates)
    return RunStatus(ds, jobs, len(gates) - len(failed) - skipped, failed, stale, gates_skipped=skipped)


def status_text(status: Status) -> str:
    """The status for a person."""
    lines = [f"deployment  {status.deployment}", f"live LTEs   {_live_text(status.live)}"]
    lines += [f"live ranker {_ranker_text(status.ranker)}", "", "runs"]
    for run in status.runs:
        lines.append(f"  {run.ds}  {_gates_text(run)}")
        if run.stale:
            lines.append(f"              STALE: {run.stale}; run it again: lte run {run.ds}")
    if not status.runs:
        lines.append("  none yet: lte run DS")
    else:
        lines += ["", *_pages_text(status.runs[0])]
    return "\n".join(lines)


def _pages_text(run: RunStatus) -> list[str]:
    pages = (("report", run.report), ("Data Docs", run.data_docs))
    return [f"{name:12}{path or 'none yet'}" for name, path in pages]


def _gates_text(run: RunStatus) -> str:
    if not (run.gates_passed or run.gates_failed or run.gates_skipped):
        return "not validated"
    skipped = f", {run.gates_skipped} with nothing to judge" if run.gates_skipped else ""
    failed = f", FAILED: {'; '.join(run.gates_failed)}" if run.gates_failed else ""
    return f"{run.gates_passed} gates passed{skipped}{failed}"


def _ranker_text(ranker: Row | None) -> str:
    if ranker is None:
        return "none yet"
    before = f"; before it: {ranker['previous']}" if ranker["previous"] else ""
    return f"ds={ranker['ds']}, weights {ranker['weights_sha256'][:12]}{before}"


def _live_text(live: Row | None) -> str:
    if live is None:
        return "nothing yet"
    return (
        f"ds={live['ds']}, {live['row_count']:,} users, {live['method']} [{live['lte_window'].replace('-', ',')}], "
        f"basis {live['basis_version']}, dim {live['dim']}, code {live['code_version']}"
    )
