"""The tasks of a day and what each waits for, as data; the DAG lte_daily is held equal by a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Names of jobs that others filter rows by.
INGEST_JOB = "ingest"
LTE_JOB = "compute_lte"

# Each task and those that must have succeeded before it, in an order that keeps to this; a test holds the DAG equal.
NEEDS: Mapping[str, Sequence[str]] = {
    "ingest": (),
    "embed_items": ("ingest",),
    "compute_lte": ("embed_items",),
    "train_autoencoder": ("compute_lte",),
    "embed_users": ("train_autoencoder",),
    "compute_drift": ("embed_users",),
    "validate": ("compute_drift",),
    "publish_snapshot": ("validate",),
    # The ranker's branch: what goes wrong here keeps no LTE from being published.
    "build_examples": ("embed_items",),
    "train_ranker": ("build_examples",),
    "evaluate_ranker": ("train_ranker", "publish_snapshot"),
}

TASKS = tuple(NEEDS)

# Runs whatever failed before it, so that a person can see why.
REPORT_TASK = "build_report"

# Tasks that change what is live are told what started them: a backfill never does.
EXTRA_FLAGS: Mapping[str, Sequence[str]] = dict.fromkeys(
    ("publish_snapshot", "evaluate_ranker"), ("--run-type", "manual")
)
