"""The tasks of a day and the tasks that each waits for, as data; a test keeps the DAG lte_daily equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Names of jobs that others filter rows by.
INGEST_JOB = "ingest"
LTE_JOB = "compute_lte"
AUTOENCODER_JOB = "train_autoencoder"

# Each task and the tasks that must succeed before it, in a valid order; a test keeps the DAG equal.
NEEDS: Mapping[str, Sequence[str]] = {
    "ingest": (),
    "embed_items": ("ingest",),
    "compute_lte": ("embed_items",),
    "train_autoencoder": ("compute_lte",),
    "embed_users": ("train_autoencoder",),
    "compute_drift": ("embed_users",),
    "validate": ("compute_drift",),
    "publish_snapshot": ("validate",),
    # The ranker's branch: a failure here does not stop the publishing of LTEs.
    "build_examples": ("embed_items",),
    "train_ranker": ("build_examples",),
    "evaluate_ranker": ("train_ranker", "publish_snapshot"),
}

TASKS = tuple(NEEDS)

# Runs also after failures, so that a person can see the reason.
REPORT_TASK = "build_report"

# Tasks that change live results must know what started them, because a backfill must not change live results.
EXTRA_FLAGS: Mapping[str, Sequence[str]] = dict.fromkeys(
    ("publish_snapshot", "evaluate_ranker"), ("--run-type", "manual")
)
