"""What is live, what ran, what the gates said and which runs are stale: read from the tables, without an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from jobs.config.addresses import is_url
from jobs.config.sections import Deployment
from jobs.gates.refusals import is_blocking
from jobs.lake.reader import LakeReader, lake_reader
from jobs.lte.inputs import read_staleness, stale_reason
from jobs.ranker.judging.live import live_ranker
from jobs.runtime.flags import today
from jobs.runtime.pages import days_with, docs_index, read_states, report_page
from jobs.runtime.text import counted
from jobs.store.opening import live_snapshot_values, open_store, previous_snapshot_values
from schemas import GATE_RESULTS, LIVE_SNAPSHOT, METRICS, RUNS

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunStatus:
    """One data day.

    Attributes:
        ds: Data day.
        jobs: Jobs that recorded what they read.
        gates_passed: Expectations that held.
        gates_failed: Table and name of those that did not hold.
        stale: Why the run is out of date; None if the run is up to date.
        gates_skipped: Expectations with nothing to judge.
        report: Page of the run; None before the page exists.
        data_docs: Data Docs of the run; None before the Data Docs exist.
        failed: Tasks that failed in the newest run of the day.
        not_started: Tasks that did not start because another had failed.
    """

    ds: date
    jobs: tuple[str, ...]
    gates_passed: int
    gates_failed: tuple[str, ...]
    stale: str | None
    gates_skipped: int = 0
    report: str | None = None
    data_docs: str | None = None
    failed: tuple[str, ...] = ()
    not_started: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """State of a deployment.

    Attributes:
        deployment: Its name.
        live: Manifest of the online store's live snapshot, or None.
        ranker: The live ranker (bundle, ds, weights_sha256, previous, score), or None. ``score`` has metric, value,
            best_baseline and baseline on the day that made the ranker live, or is None.
        runs: Newest first, including runs that failed before they computed anything.
        published: When (UTC) and how (publish, rollback, erase) the live snapshot went live, or None.
        age_days: Whole days from the data day of the live snapshot to today (UTC).
        rollback: Manifest of the snapshot that `lte rollback` makes live, or None.
    """

    deployment: str
    live: dict[str, Any] | None
    ranker: dict[str, Any] | None
    runs: tuple[RunStatus, ...]
    published: dict[str, str] | None = None
    age_days: int | None = None
    rollback: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as plain values, days as text."""
        plain = asdict(self)
        plain["runs"] = [run | {"ds": str(run["ds"])} for run in plain["runs"]]
        return plain


def deployment_status(deployment: Deployment, *, last: int = 10) -> Status:
    """State of a deployment.

    Args:
        deployment: The deployment.
        last: Number of runs, newest first.

    Raises:
        jobs.store.snapshot.OnlineStoreError: The store does not answer.
        jobs.registry.records.ModelError: The record that names the live ranker cannot be read.
    """
    lake = lake_reader(deployment)
    runs: dict[date, list[dict[str, Any]]] = {}
    for row in lake.rows(RUNS):
        runs.setdefault(row["ds"], []).append(row)
    states = {
        ds: read_states(deployment, ds) for ds in {*runs, *days_with(Path(deployment.paths.reports), "tasks.json")}
    }
    newest = sorted(states, reverse=True)[:last]
    staleness = read_staleness(lake)
    shown = tuple(
        replace(
            _run_status(lake, ds, runs.get(ds, []), stale_reason(staleness, deployment, runs.get(ds, []))),
            failed=tuple(task for task, state in states[ds].items() if state == "failed"),
            not_started=tuple(task for task, state in states[ds].items() if state == "upstream_failed"),
            report=_existing(report_page(deployment, ds)),
            data_docs=_existing(docs_index(deployment, ds)),
        )
        for ds in newest
    )
    live = live_snapshot_values(deployment)
    return Status(
        deployment.deployment.name,
        live,
        _ranker(lake, deployment),
        shown,
        published=_published(lake, deployment) if live else None,
        age_days=(today() - date.fromisoformat(live["ds"])).days if live else None,
        rollback=previous_snapshot_values(deployment),
    )


def _published(lake: LakeReader, deployment: Deployment) -> dict[str, str] | None:
    """The newest switch in the store's journal, with its time in the publication log."""
    store = open_store(deployment)
    try:
        switches = store.journal()
    finally:
        store.close()
    when = lake.last_write(LIVE_SNAPSHOT)
    if not switches or when is None:
        return None
    return {"action": switches[-1].action, "at": when.strftime("%Y-%m-%d %H:%M UTC")}


def _ranker(lake: LakeReader, deployment: Deployment) -> dict[str, Any] | None:
    if is_url(deployment.paths.lake):
        return None  # models need a lake that is a folder
    live = live_ranker(deployment)
    return asdict(live) | {"score": _score(lake, date.fromisoformat(live.ds))} if live else None


def _score(lake: LakeReader, ds: date) -> dict[str, Any] | None:
    """NDCG of the candidate of a day and of the best baseline, over the same users."""
    rows = lake.rows(METRICS, columns=["metric", "label", "value"], where={"ds": ds, "job": "evaluate_ranker"})
    values = {row["label"]: row for row in rows if row["metric"].startswith("ndcg_at_") and "/" not in row["label"]}
    ours = values.pop("candidate", None)
    values.pop("live", None)  # another ranker, no baseline
    best = max(values.values(), key=lambda row: float(row["value"]), default=None)
    if ours is None:
        return None
    baseline = {"best_baseline": best and best["label"], "baseline": best and best["value"]}
    return {"metric": ours["metric"], "value": ours["value"], **baseline}


def _existing(path: Path) -> str | None:
    return str(path) if path.exists() else None


def _run_status(lake: LakeReader, ds: date, rows: list[dict[str, Any]], stale: str | None) -> RunStatus:
    gates = lake.rows(GATE_RESULTS, where={"ds": ds})
    failed = tuple(sorted(f"{gate['table']}: {gate['expectation']}" for gate in gates if is_blocking(gate)))
    jobs = tuple(sorted(row["job"] for row in rows))
    skipped = sum(gate["skipped"] is not None for gate in gates)
    return RunStatus(ds, jobs, len(gates) - len(failed) - skipped, failed, stale, gates_skipped=skipped)


def status_text(status: Status) -> str:
    """The status for a person."""
    lines = [f"deployment  {status.deployment}", f"live LTEs   {_live_text(status.live)}"]
    if status.live:
        lines.append(f"            {_published_text(status)}")
    lines += [f"live ranker {_ranker_text(status.ranker)}", "", "runs"]
    for run in status.runs:
        lines.append(f"  {run.ds}  {_gates_text(run)}")
        if run.failed:
            after = f"; {counted(len(run.not_started), 'task')} after it did not start" if run.not_started else ""
            lines.append(f"              FAILED: {', '.join(run.failed)}{after}")
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
    return f"ds={ranker['ds']}, weights {ranker['weights_sha256'][:12]}{_score_text(ranker['score'])}{before}"


def _score_text(score: Row | None) -> str:
    if score is None:
        return ""
    name, k = score["metric"].split("_at_")
    best = f" (best baseline: {score['best_baseline']} {score['baseline']:.4f})" if score["best_baseline"] else ""
    return f", {name.upper()} at {k} {score['value']:.4f}{best}"


def _published_text(status: Status) -> str:
    """How and when the live snapshot went live, how old its day is, and what a rollback would make live."""
    how = {"publish": "published", "rollback": "rolled back to", "erase": "a user erased"}
    at = status.published
    when = f"{how.get(at['action'], at['action'])} {at['at']}" if at else "no publication log"
    back = f"`lte rollback` makes ds={status.rollback['ds']} live" if status.rollback else "nothing to roll back to"
    return f"{when}; the day is {counted(status.age_days or 0, 'day')} old; {back}"


def _live_text(live: Row | None) -> str:
    if live is None:
        return "nothing yet"
    users, window = counted(live["row_count"], "user"), live["lte_window"].replace("-", ",")
    return (
        f"ds={live['ds']}, {users}, {live['method']} [{window}], "
        f"basis {live['basis_version']}, dim {live['dim']}, code {live['code_version']}"
    )
