"""Write the page of a run: what came in, what was computed, what the gates said, what is live.

One self-contained file, ``index.html`` under ``ds=…`` in ``paths.reports``: no script, no network. Built whatever
failed before, with what is there; what is missing is named.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from jobs.config import Deployment, code_version, job_parser, load_deployment
from jobs.entry import run_job
from jobs.gate_pages import claim, docs_index, docs_page, report_page
from jobs.report_facts import Facts, Row, coverage, gather
from jobs.report_plots import activity_plot, coverage_plot, curve_plot, drift_plot, n_items_plot, norm_plot

JOB = "build_report"
TEMPLATES = Path(__file__).parent / "templates"
SAMPLE_ROWS = 5


@dataclass(frozen=True)
class ReportConfig:
    """Flags of this job.

    Attributes:
        deployment: Where everything is.
        ds: Data day.
        states: Task to its state, as the scheduler tells it; without it the tables say what each task left.
    """

    deployment: Deployment
    ds: date
    states: Mapping[str, str]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report of ``--ds`` and say where it is."""
    config = parse_flags(argv)
    path = report_page(config.deployment, config.ds)
    claim(Path(config.deployment.paths.reports), config.deployment, "paths.reports")
    write_page(path, page(gather(config.deployment, config.ds, config.states), config.deployment))
    print(f"report: {path}", flush=True)


def parse_flags(argv: Sequence[str] | None) -> ReportConfig:
    """Read the flags and the configuration.

    Raises:
        jobs.config.ConfigError: See :func:`jobs.config.load_deployment`.
        SystemExit: The flags are wrong (exit code 2).
    """
    parser = job_parser(JOB, __doc__)
    parser.add_argument("--states", type=_states, default={}, help='what became of each task: {"ingest": "success"}')
    flags = parser.parse_args(argv)
    return ReportConfig(load_deployment(flags.config), flags.ds, flags.states)


def _states(text: str) -> dict[str, str]:
    states = json.loads(text or "{}")
    if not isinstance(states, dict):
        raise ValueError(text)
    return {str(task): str(state) for task, state in states.items()}


def write_page(path: Path, text: str) -> None:
    """Write the page as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def page(facts: Facts, deployment: Deployment) -> str:
    """The page as HTML; every text from tables is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "share": _share, "cosine": _cosine}
    template = environment.get_template("report.html.j2")
    docs = docs_index(deployment, facts.ds)
    return template.render(
        facts=facts,
        verdict=verdict(facts),
        code_version=code_version(),
        plots=plots(facts),
        windows=[{"window": str(window), "coverage": coverage(facts, window)} for window in facts.windows],
        ingest=ingest_totals(facts),
        slices=slices(facts),
        drifts=drifts(facts),
        autoencoder=autoencoder(facts),
        ranker=ranker(facts),
        gates=gates(facts, deployment),
        docs=_link(docs, deployment, facts.ds) if docs.exists() else None,
    )


def _link(target: Path, deployment: Deployment, ds: date) -> str:
    """Address of a file relative to the page, so that both folders can be moved together."""
    return quote(os.path.relpath(target, report_page(deployment, ds).parent))


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}"


def _cosine(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def verdict(facts: Facts) -> dict[str, str]:
    """The first line: what came of this day."""
    failed = [gate for gate in facts.gates if not gate["success"]]
    missing = [step.task for step in facts.steps if step.tone == "bad"]
    is_live = facts.live is not None and facts.live["ds"] == str(facts.ds)
    if failed:
        return {"tone": "bad", "text": f"Not published: {len(failed)} of {len(facts.gates)} expectations failed"}
    if missing:
        live = "Live, but incomplete" if is_live else "Incomplete"
        return {"tone": "bad", "text": f"{live}: {', '.join(missing)} failed or left nothing"}
    return {"tone": "good", "text": "Live" if is_live else "Complete; another day is live"}


def plots(facts: Facts) -> dict[str, str]:
    """Name to data address of each plot that there are rows for."""
    found = facts.distributions
    drawn = {
        "coverage": (coverage_plot, facts.event_days),
        "n_items": (n_items_plot, found.n_items),
        "norms": (norm_plot, found.norms),
        "drift": (drift_plot, found.points),
        "activity": (activity_plot, [row for row in found.activity if row["cosine_p01"] is not None]),
    }
    pictures = {name: draw(facts) for name, (draw, rows) in drawn.items() if rows}
    for job in ("train_autoencoder", "train_ranker"):
        if curves := facts.curves(job):
            pictures[job] = curve_plot(curves)
    return pictures


def ingest_totals(facts: Facts) -> list[dict[str, Any]]:
    """A row a target: files, read, accepted, duplicate, quarantined, and whether none is lost."""
    totals = []
    for target in sorted({row["target"] for row in facts.ingest}):
        rows = [row for row in facts.ingest if row["target"] == target]
        n = {
            name: sum(row[f"rows_{name}"] for row in rows) for name in ("read", "accepted", "duplicate", "quarantined")
        }
        is_conserved = n["read"] == n["accepted"] + n["duplicate"] + n["quarantined"]
        files = sum(bool(row["source_file"]) for row in rows)
        totals.append({"target": target, "files": files, **n, "is_conserved": is_conserved})
    return totals


def slices(facts: Facts) -> list[dict[str, Any]]:
    """A row a method and window: users, interactions, norms."""
    measured = facts.of_job("compute_lte") | facts.of_job("validate") | facts.of_job("compute_drift")
    labels = sorted({label for metric, label in measured if metric in ("norm_min", "n_zero_users")})
    names = ("n_users", "n_zero_users", "n_items", "n_unknown", "unknown_share", "norm_min", "norm_mean", "norm_max")
    lte = facts.of_job("validate") | facts.of_job("compute_lte") | facts.of_job("compute_drift")
    return [{"label": label, **{name: lte.get((name, label)) for name in names}} for label in labels]


def drifts(facts: Facts) -> list[dict[str, Any]]:
    """A row a method, window and offset: Table 2 of the paper and how close drift came to its bound."""
    found = facts.of_job("compute_drift")
    labels = sorted({label for metric, label in found if metric == "n_bound_broken"}, key=_by_offset)
    names = ("n_users", "n_stale", "n_bound_broken", "mean_tau", "mean_cosine", "cosine_p01", "drift_p50", "drift_p99")
    more = ("bound_share_max", "mean_centred_cosine", "own_nearest_share")
    return [{"label": label, **{name: found.get((name, label)) for name in (*names, *more)}} for label in labels]


def _by_offset(label: str) -> tuple[str, int]:
    head, _, offset = label.rpartition("/")
    return head, int(offset)


def autoencoder(facts: Facts) -> dict[str, Any] | None:
    """Quantiles against yesterday and uniform by activity, and what the training measured; None where there is none."""
    measured, trained = facts.of_job("validate"), facts.of_job("train_autoencoder")
    labels = [label for metric, label in measured if metric == "autoencoder_uniform_cosine_p50"]
    if not labels and not trained:
        return None
    names = [
        "n_users",
        *(f"{name}_{q}" for name in ("cosine", "drift", "uniform_cosine") for q in ("p01", "p50", "p99")),
    ]
    rows = [{"label": each, **{name: measured.get((f"autoencoder_{name}", each)) for name in names}} for each in labels]
    plain = {metric: value for (metric, label), value in trained.items() if not label}
    return {"rows": rows, "trained": plain}


def ranker(facts: Facts) -> dict[str, Any] | None:
    """Metrics a model, the candidate's comparisons, and what the training measured; None where there is none."""
    measured, trained = facts.of_job("evaluate_ranker"), facts.of_job("train_ranker")
    if not measured and not trained:
        return None
    main = _main_metric(measured)
    models = [label for metric, label in measured if metric == main and "/" not in label]
    names = list(dict.fromkeys(metric for metric, label in measured if label in models))
    rows = [{"model": model, "values": [measured.get((name, model)) for name in names]} for model in models]
    compared = [
        {"label": label, **{name: measured.get((name, label)) for name in ("uplift", "uplift_low", "uplift_high", "p")}}
        for metric, label in measured
        if metric == "uplift"
    ]
    groups = _groups(measured, models, main)
    plain = {metric: value for (metric, label), value in trained.items() if not label}
    day = {metric: value for (metric, label), value in measured.items() if not label}
    return {"names": names, "rows": rows, "compared": compared, "groups": groups, "trained": plain, "day": day}


def _main_metric(measured: Mapping[tuple[str, str], float]) -> str:
    """NDCG at the largest cutoff, which models are compared by."""
    cutoffs = {int(metric.removeprefix("ndcg_at_")) for metric, _ in measured if metric.startswith("ndcg_at_")}
    return f"ndcg_at_{max(cutoffs, default=0)}"


def _groups(measured: Mapping[tuple[str, str], float], models: Sequence[str], main: str) -> dict[str, Any]:
    """NDCG by the length of the short history, and apart for repeated and new items."""
    names = list(dict.fromkeys(label.split("/", 1)[1] for metric, label in measured if metric == main and "/" in label))
    rows = [{"model": model, "values": [measured.get((main, f"{model}/{name}")) for name in names]} for model in models]
    return {"names": names, "rows": rows}


def gates(facts: Facts, deployment: Deployment) -> dict[str, Any]:
    """Failed, skipped and held expectations, each with its page in the Data Docs and its sample rows."""
    has_docs = docs_index(deployment, facts.ds).exists()
    rows = [
        {**gate, "page": _docs_link(gate, facts, deployment) if has_docs else None, **_sample(gate)}
        for gate in facts.gates
    ]
    held = [row for row in rows if row["success"] and row["skipped"] is None]
    return {
        "failed": [row for row in rows if not row["success"]],
        "skipped": [row for row in rows if row["skipped"] is not None],
        "held": {
            table: [row for row in held if row["table"] == table]
            for table in dict.fromkeys(row["table"] for row in held)
        },
        "n": len(rows),
    }


def _docs_link(gate: Row, facts: Facts, deployment: Deployment) -> str:
    folder = docs_index(deployment, facts.ds).parent
    return _link(folder / docs_page(gate["table"], gate["expectation"], facts.ds), deployment, facts.ds)


def _sample(gate: Row) -> dict[str, Any]:
    """Sample rows as a table: columns and values."""
    found = _rows_of(gate["sample"])
    if found and all(isinstance(row, dict) for row in found):
        columns = list(found[0])
        return {"columns": columns, "rows": [[row.get(name) for name in columns] for row in found[:SAMPLE_ROWS]]}
    return {"columns": ["value"] if found else [], "rows": [[value] for value in found[:SAMPLE_ROWS]]}


def _rows_of(sample: str | None) -> list[Any]:
    try:
        found = json.loads(sample or "[]")
    except ValueError:  # a user was erased from it
        found = [sample]
    return found if isinstance(found, list) else [found]


if __name__ == "__main__":
    run_job(main)
