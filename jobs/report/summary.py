"""The report of a day as plain facts: the file report.json, from which text, message, index and metrics.prom are made.

The JSON Schema is in docs/reference/report.schema.json. A field is never renamed or removed within one
``schema_version``; new fields may be added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from pydantic import TypeAdapter

from jobs.report.facts import Facts, Step
from jobs.report.head import Answer, answers
from jobs.report.history import Change, RunPoint, best_baseline, changes, headline, ndcg_of_models, number
from jobs.report.tables import ingest_totals, verdict
from jobs.runtime.code_version import code_version
from jobs.runtime.text import counted

SCHEMA_VERSION = 1
Tone = Literal["good", "bad", "neutral"]


@dataclass(frozen=True)
class Verdict:
    """The first line of the report: the result of the day in words, and its colour."""

    text: str
    tone: Tone


@dataclass(frozen=True)
class Live:
    """The live snapshot of LTEs: data day, users, method, window, basis, and whether the day of the report is live."""

    ds: str
    n_users: int
    method: str
    lte_window: str
    basis_version: str
    is_this_day: bool


@dataclass(frozen=True)
class TaskLine:
    """One task of the day.

    Attributes:
        task: Name.
        state: State in words: success, failed, upstream_failed, done, missing, off.
        tone: Colour of the state.
        seconds: Duration; None where it was not recorded.
        peak_mb: Largest memory of its process in MiB; None where it was not recorded.
        counts: What the task recorded of its rows: name to number.
        error: The sentence that ended the task; empty where it succeeded.
    """

    task: str
    state: str
    tone: Tone
    seconds: float | None
    peak_mb: float | None
    counts: dict[str, float]
    error: str


@dataclass(frozen=True)
class FailedGate:
    """An expectation that did not hold: table, name, what was observed and what was expected."""

    table: str
    expectation: str
    observed: str
    expected: str


@dataclass(frozen=True)
class Gates:
    """Counts of the expectations, and those that failed."""

    n: int
    n_skipped: int
    failed: list[FailedGate]


@dataclass(frozen=True)
class Ingested:
    """Rows of the landing day of one target."""

    target: str
    files: int
    read: int
    accepted: int
    duplicate: int
    quarantined: int
    is_conserved: bool


@dataclass(frozen=True)
class ModelScore:
    """NDCG of one model on the next items of the day; ``is_best`` marks the highest value of all models."""

    model: str
    ndcg: float
    is_best: bool


@dataclass(frozen=True)
class Ranker:
    """How the models ranked the next items of the day.

    Attributes:
        metric: Metric with its cutoff: "ndcg_at_500".
        n_users: Users with a next item; None where it was not recorded.
        best_baseline: Name of the best baseline; empty where none was measured.
        went_live: Whether the candidate went live; None where nothing was decided.
        models: One score per model.
    """

    metric: str
    n_users: float | None
    best_baseline: str
    went_live: bool | None
    models: list[ModelScore]


@dataclass(frozen=True)
class Report:
    """The report of one data day.

    Attributes:
        schema_version: Version of this form.
        deployment: Name of the deployment.
        ds: Data day.
        verdict: Result of the day.
        answers: The first questions of a reader, answered.
        alarms: What a person should look at, one sentence each; empty on a good day.
        previous_ds: Data day of the run before; None for a first run.
        changes: Values that differ from the run before.
        live: The live snapshot; None if nothing is live or the store did not answer.
        tasks: Tasks in order.
        ingest: Rows of the landing day.
        gates: Result of the quality gate.
        ranker: Scores of the day; None where no ranker was measured.
        trend: The last runs, oldest first; this run is the last point.
        code_version: Version of the package that wrote the report.
    """

    schema_version: int
    deployment: str
    ds: date
    verdict: Verdict
    answers: list[Answer]
    alarms: list[str]
    previous_ds: date | None
    changes: list[Change]
    live: Live | None
    tasks: list[TaskLine]
    ingest: list[Ingested]
    gates: Gates
    ranker: Ranker | None
    trend: list[RunPoint]
    code_version: str


ADAPTER = TypeAdapter(Report)


def report_json(report: Report) -> bytes:
    """The file report.json."""
    return ADAPTER.dump_json(report, indent=2)


def read_report(content: bytes) -> Report:
    """A report from its file.

    Raises:
        ValueError: The content is not a report of this schema version.
    """
    return ADAPTER.validate_json(content)


def report_schema() -> dict[str, Any]:
    """The JSON Schema of report.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ADAPTER.json_schema(mode="serialization")}


def summarize(facts: Facts) -> Report:
    """The report of the facts."""
    measured = facts.of_job("evaluate_ranker")
    return Report(
        schema_version=SCHEMA_VERSION,
        deployment=facts.deployment,
        ds=facts.ds,
        verdict=Verdict(**verdict(facts)),  # type: ignore[arg-type]
        answers=answers(facts),
        alarms=alarms(facts),
        previous_ds=facts.points[-2].ds if len(facts.points) > 1 else None,
        changes=changes(facts.points),
        live=_live(facts),
        tasks=[_task(facts, step) for step in facts.steps],
        ingest=[Ingested(**row) for row in ingest_totals(facts)],
        gates=_gates(facts),
        ranker=_ranker(measured),
        trend=list(facts.points),
        code_version=code_version(),
    )


def alarms(facts: Facts) -> list[str]:
    """What a person should look at: failed tasks, failed gates, lost rows, a refused ranker, a store without answer."""
    found = [f"{step.task} {step.state}: {step.error or step.detail}" for step in facts.steps if _is_alarming(step)]
    for gate in facts.gates:
        if not gate["success"]:
            found.append(f"{gate['table']}: {gate['expectation']}: expected {gate['expected']}, got {gate['observed']}")
    for row in ingest_totals(facts):
        if not row["is_conserved"]:
            found.append(f"ingest: {row['target']} of {facts.ds}: rows were lost between read and accepted")
    if facts.live_problem:
        found.append(f"the online store does not answer: {facts.live_problem}")
    if facts.stale:
        found.append(f"inputs changed after the run: {facts.stale}; run it again: lte run {facts.ds}")
    if facts.refusal:
        found.append(f"the candidate did not go live: {facts.refusal}")
    return found


def _is_alarming(step: Step) -> bool:
    return step.tone == "bad" and step.state != "upstream_failed"  # it names no cause; the failed task does


def _live(facts: Facts) -> Live | None:
    if facts.live is None:
        return None
    found = {name: facts.live[name] for name in ("ds", "method", "lte_window", "basis_version")}
    return Live(**found, n_users=facts.live["row_count"], is_this_day=facts.live["ds"] == str(facts.ds))


def _task(facts: Facts, step: Step) -> TaskLine:
    tone: Any = step.tone
    counts = task_counts(facts.of_job(step.task))
    return TaskLine(step.task, step.state, tone, step.seconds, step.peak_mb, counts, step.error)


def task_counts(measured: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Counts that a task recorded without a label: rows, users, items."""
    return {
        metric: value
        for (metric, label), value in sorted(measured.items())
        if not label and metric.startswith(("n_", "rows_")) and math.isfinite(value)
    }


def _gates(facts: Facts) -> Gates:
    names = ("table", "expectation", "observed", "expected")
    failed = [FailedGate(**{name: gate[name] for name in names}) for gate in facts.gates if not gate["success"]]
    return Gates(len(facts.gates), sum(gate["skipped"] is not None for gate in facts.gates), failed)


def _ranker(measured: Mapping[tuple[str, str], float]) -> Ranker | None:
    ndcg = {model: value for model, value in ndcg_of_models(measured).items() if math.isfinite(value)}
    if not ndcg:
        return None
    best, went_live = max(ndcg.values()), measured.get(("went_live", ""))
    return Ranker(
        metric=headline(measured),
        n_users=measured.get(("n_users", "")),
        best_baseline=best_baseline(ndcg),
        went_live=None if went_live is None else bool(went_live),
        models=[ModelScore(model, value, value == best) for model, value in ndcg.items()],
    )


def report_text(report: Report, page: str) -> str:
    """The report in 20 lines at most: verdict, changes, alarms.

    Args:
        report: The report.
        page: Address of the page.
    """
    lines = [f"{report.deployment} {report.ds}: {report.verdict.text}"]
    lines += [f"{answer.question:42} {answer.text}" for answer in report.answers]
    lines += [f"since {report.previous_ds}:", *_first(_change_lines(report), 5)] if report.changes else []
    lines += ["alarms:", *_first([f"  {alarm}" for alarm in report.alarms], 5)] if report.alarms else ["alarms: none"]
    return "\n".join([*lines, _time_line(report), f"page: {page}"])


def _first(lines: list[str], most: int) -> list[str]:
    """The first lines, and a line with the number of those that are left out."""
    left = len(lines) - most
    return lines if left <= 0 else [*lines[: most - 1], f"  and {left + 1} more"]


def _change_lines(report: Report) -> list[str]:
    return [f"  {change.title}: {number(change.before)} -> {number(change.now)}" for change in report.changes]


def _time_line(report: Report) -> str:
    timed = [task for task in report.tasks if task.seconds is not None]
    if not timed:
        return "tasks: no duration was recorded"
    slowest = max(timed, key=lambda task: task.seconds or 0.0)
    total = sum(task.seconds or 0.0 for task in timed)
    return f"{counted(len(timed), 'task')} in {total:,.0f} s; the slowest is {slowest.task}, {slowest.seconds:,.0f} s"
