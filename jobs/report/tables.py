"""The tables of the report, as plain values for its template."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jobs.config.sections import Deployment
from jobs.gates.addresses import docs_page
from jobs.gates.refusals import is_blocking
from jobs.report.facts import Facts, Row
from jobs.report.history import CANDIDATE, LIVE, headline, ndcg_of_models
from jobs.runtime.pages import docs_index, report_page

SAMPLE_ROWS = 5


def _link(target: Path, deployment: Deployment, ds: date) -> str:
    """Address of a file relative to the page, so that the folders of file and page can be moved together."""
    return quote(os.path.relpath(target, report_page(deployment, ds).parent))


def verdict(facts: Facts) -> dict[str, str]:
    """The first line: the result of this day."""
    failed = [gate for gate in facts.gates if is_blocking(gate)]
    missing = [step.task for step in facts.steps if step.tone == "bad"]
    is_live = facts.live is not None and facts.live["ds"] == str(facts.ds)
    if failed:
        return {"tone": "bad", "text": f"Not published: {len(failed)} of {len(facts.gates)} expectations failed"}
    if missing:
        live = "Live, but incomplete" if is_live else "Incomplete"
        return {"tone": "bad", "text": f"{live}: {', '.join(missing)} failed or left nothing"}
    return {"tone": "good", "text": "Live" if is_live else "Complete; another day is live"}


def ingest_totals(facts: Facts) -> list[dict[str, Any]]:
    """One row per target: files, read, accepted, duplicate, quarantined, and whether no row is lost."""
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
    """One row per method and window: users, interactions, norms."""
    measured = facts.of_job("compute_lte") | facts.of_job("validate") | facts.of_job("compute_drift")
    labels = sorted({label for metric, label in measured if metric in ("norm_min", "n_zero_users")})
    names = ("n_users", "n_zero_users", "n_items", "n_unknown", "unknown_share", "norm_min", "norm_mean", "norm_max")
    lte = facts.of_job("validate") | facts.of_job("compute_lte") | facts.of_job("compute_drift")
    return [{"label": label, **{name: lte.get((name, label)) for name in names}} for label in labels]


def drifts(facts: Facts) -> list[dict[str, Any]]:
    """One row per method, window and offset: Table 2 of the paper, and how close drift came to its bound."""
    found = facts.of_job("compute_drift")
    labels = sorted({label for metric, label in found if metric == "n_bound_broken"}, key=_by_offset)
    names = ("n_users", "n_stale", "n_bound_broken", "mean_tau", "mean_cosine", "cosine_p01", "drift_p50", "drift_p99")
    more = ("bound_share_max", "mean_centred_cosine", "own_nearest_share")
    return [{"label": label, **{name: found.get((name, label)) for name in (*names, *more)}} for label in labels]


def _by_offset(label: str) -> tuple[str, int]:
    head, _, offset = label.rpartition("/")
    return head, int(offset)


def autoencoder(facts: Facts) -> dict[str, Any] | None:
    """Quantiles against yesterday and uniform by activity, and metrics of the training; None without a training."""
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
    """Metrics per model, the candidate's comparisons, and metrics of the training; None if there are none."""
    measured, trained = facts.of_job("evaluate_ranker"), facts.of_job("train_ranker")
    if not measured and not trained:
        return None
    models = _models(measured)
    names = sorted({metric for metric, label in measured if label in models}, key=_by_metric)
    compared = [
        {"label": label, **{name: measured.get((name, label)) for name in ("uplift", "uplift_low", "uplift_high", "p")}}
        for metric, label in measured
        if metric == "uplift"
    ]
    plain = {metric: value for (metric, label), value in trained.items() if not label}
    day = {metric: value for (metric, label), value in measured.items() if not label}
    return {
        "titles": [metric_title(name) for name in names],
        "rows": _with_best(models, [{model: measured.get((name, model)) for model in models} for name in names], names),
        "main": metric_title(headline(measured)),
        "compared": compared,
        "groups": _groups(measured, models),
        "trained": plain,
        "day": day,
    }


def _models(measured: Mapping[tuple[str, str], float]) -> list[str]:
    """The candidate, the live ranker, then the baselines, best first."""
    ndcg = ndcg_of_models(measured)
    return sorted(ndcg, key=lambda model: (model != CANDIDATE, model != LIVE, -ndcg[model], model))


# The main metric stands first, then the other ranking metrics, then what describes the shown items.
METRIC_ORDER = ("ndcg", "recall", "mrr", "precision", "hit", "next_item", "coverage", "popularity")


def _by_metric(metric: str) -> tuple[int, int, str]:
    place = next((n for n, name in enumerate(METRIC_ORDER) if metric.startswith(name)), len(METRIC_ORDER))
    cutoff = metric.rpartition("_at_")[2]
    return place, -int(cutoff) if cutoff.isdecimal() else 0, metric


def metric_title(metric: str) -> str:
    """Name of a metric for a person: ``NDCG@500``."""
    name, _, cutoff = metric.rpartition("_at_")
    name = (name or metric).replace("_", " ")
    shown = name.upper() if name in ("ndcg", "mrr") else name
    return f"{shown}@{cutoff}" if cutoff.isdecimal() else metric.replace("_", " ")


def _with_best(
    models: Sequence[str], columns: Sequence[Mapping[str, float | None]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per model; the highest value of a column is marked, unless a high value of it is no merit."""
    best = [
        None if name.startswith("popularity") else max((v for v in column.values() if v is not None), default=None)
        for name, column in zip(names, columns, strict=True)
    ]
    return [
        {
            "model": model,
            "cells": [
                {"value": column[model], "is_best": top is not None and column[model] == top}
                for column, top in zip(columns, best, strict=True)
            ],
        }
        for model in models
    ]


# Buckets of the short history in their order, then the kinds of items.
GROUP_ORDER = ("0", "1-5", "6-20", ">20", "repeated", "new")
GROUP_TITLES = {"repeated": "repeated items", "new": "new items"}


def _groups(measured: Mapping[tuple[str, str], float], models: Sequence[str]) -> dict[str, Any]:
    """NDCG by the length of the short history, and separately for repeated and new items, with the users behind it."""
    metric = headline(measured)
    found = {label.split("/", 1)[1] for name, label in measured if name == metric and "/" in label}
    names = sorted(found, key=lambda name: (GROUP_ORDER.index(name) if name in GROUP_ORDER else len(GROUP_ORDER), name))
    columns = [{model: measured.get((metric, f"{model}/{name}")) for model in models} for name in names]
    return {
        "titles": [GROUP_TITLES.get(name, f"{name} events") for name in names],
        "rows": _with_best(models, columns, names),
        "sizes": [measured.get(("n_users", name)) for name in names],
    }


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
    except ValueError:  # an erasure removed a user from the sample
        found = [sample]
    return found if isinstance(found, list) else [found]
