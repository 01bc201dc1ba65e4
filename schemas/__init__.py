"""Every table of the lake, declared once."""

from schemas.experiments import EXPERIMENT_EXAMPLES, EXPERIMENTS
from schemas.ingest import INGEST_LOG, QUARANTINE
from schemas.interactions import EVENT_DAYS, INTERACTIONS
from schemas.items import ITEM_BEHAVIOUR, ITEM_EMBEDDINGS, ITEMS
from schemas.lte import LTE_DRIFT, METHODS, POOLED_METHODS, USER_LTE
from schemas.operations import ERASURE_REQUESTS, ERASURES, GATE_RESULTS, LIVE_SNAPSHOT, METRICS, MODEL_RUNS, RUNS
from schemas.table import MAX_ID_BYTES, Table, column
from schemas.training import RANKER_SCORES, TRAINING_EXAMPLES, USER_HISTORIES

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        INTERACTIONS,
        EVENT_DAYS,
        QUARANTINE,
        INGEST_LOG,
        ITEMS,
        ITEM_EMBEDDINGS,
        ITEM_BEHAVIOUR,
        USER_LTE,
        LTE_DRIFT,
        USER_HISTORIES,
        TRAINING_EXAMPLES,
        RANKER_SCORES,
        EXPERIMENT_EXAMPLES,
        EXPERIMENTS,
        METRICS,
        RUNS,
        MODEL_RUNS,
        GATE_RESULTS,
        LIVE_SNAPSHOT,
        ERASURE_REQUESTS,
        ERASURES,
    )
}

__all__ = [
    "ERASURES",
    "ERASURE_REQUESTS",
    "EVENT_DAYS",
    "EXPERIMENTS",
    "EXPERIMENT_EXAMPLES",
    "GATE_RESULTS",
    "INGEST_LOG",
    "INTERACTIONS",
    "ITEMS",
    "ITEM_BEHAVIOUR",
    "ITEM_EMBEDDINGS",
    "LIVE_SNAPSHOT",
    "LTE_DRIFT",
    "MAX_ID_BYTES",
    "METHODS",
    "METRICS",
    "MODEL_RUNS",
    "POOLED_METHODS",
    "QUARANTINE",
    "RANKER_SCORES",
    "RUNS",
    "TABLES",
    "TRAINING_EXAMPLES",
    "USER_HISTORIES",
    "USER_LTE",
    "Table",
    "column",
]
