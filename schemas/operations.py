from pyspark.sql.types import (
    BooleanType,
    DateType,
    DoubleType,
    IntegerType,
    LongType,
    StringType,
    StructType,
    TimestampType,
)

from schemas.table import Table, column

METRICS = Table(
    name="metrics",
    comment="One value per metric, label and ds.",
    schema=StructType(
        [
            column("metric", StringType(), "Name, with its unit."),
            column("label", StringType(), "What the value is of; empty where the name says all."),
            column("value", DoubleType(), "The value."),
            column("ds", DateType(), "Data day."),
            column("job", StringType(), "Job that measured it."),
        ]
    ),
    key=("ds", "job", "metric", "label"),
    partition_by=("ds", "job"),
)

RUNS = Table(
    name="runs",
    comment="What a job of a ds has read, so that a run whose input changed since can be told.",
    schema=StructType(
        [
            column("basis_version", StringType(), "Basis that the job used.", nullable=True),
            column("input_fingerprint", StringType(), "Hash over what the job read, or the rows that the gates saw."),
            column("code_version", StringType(), "Version of this package."),
            column("ds", DateType(), "Data day."),
            column("job", StringType(), "Job."),
        ]
    ),
    key=("ds", "job"),
    partition_by=("ds", "job"),
)

MODEL_OUTCOMES = ("trained", "live", "refused", "kept")

MODEL_RUNS = Table(
    name="model_runs",
    comment="What a model's job of a ds made or decided: the bundles themselves lie under models in the lake.",
    schema=StructType(
        [
            column("kind", StringType(), "Model.", values=("autoencoder", "ranker")),
            column(
                "outcome",
                StringType(),
                "A bundle was trained; then live, refused or kept from it.",
                values=MODEL_OUTCOMES,
            ),
            column("reason", StringType(), "Why, for a person; empty for a training."),
            column("weights_sha256", StringType(), "Of the bundle's weights."),
            column("vocabulary_hash", StringType(), "Of its items in row order."),
            column("basis_version", StringType(), "Basis that it was trained on."),
            column("lte_window", StringType(), "Window of the LTEs it reads or makes; empty where it reads none."),
            column("code_version", StringType(), "Version of this package."),
            column("ds", DateType(), "Data day."),
            column("job", StringType(), "Job."),
        ]
    ),
    key=("ds", "job"),
    partition_by=("ds", "job"),
)

GATE_RESULTS = Table(
    name="gate_results",
    comment="One row per expectation of the quality gate of ds.",
    schema=StructType(
        [
            column("table", StringType(), "Table that was validated."),
            column("expectation", StringType(), "Name of the expectation with its column."),
            column("success", BooleanType(), "Whether it held."),
            column("observed", StringType(), "What was seen."),
            column("expected", StringType(), "What was wanted."),
            column("n_unexpected", LongType(), "Rows that broke it.", nullable=True, minimum=0),
            column("sample", StringType(), "Some of them, as JSON.", nullable=True),
            column("skipped", StringType(), "Why there was nothing to judge; success is true then.", nullable=True),
            column(
                "refused_method",
                StringType(),
                "LTE method that this failure refuses: nothing published reads it, so the day goes on without it.",
                nullable=True,
            ),
            column("ds", DateType(), "Data day."),
        ]
    ),
    key=("ds", "table", "expectation"),
    partition_by=("ds",),
)

LIVE_SNAPSHOT = Table(
    name="live_snapshot",
    comment="Publication log: one row each time another snapshot went live. The online store's manifest is the truth.",
    schema=StructType(
        [
            column("sequence", LongType(), "Counts from 1.", minimum=1),
            column("action", StringType(), "How it went live.", values=("publish", "rollback", "erase")),
            column("ds", DateType(), "Data day of the snapshot."),
            column("basis_version", StringType(), "Basis of its vectors."),
            column("method", StringType(), "Method of its LTEs."),
            column("lte_window", StringType(), "Window of its LTEs."),
            column("half_life_days", DoubleType(), "Half-life of its recency weights.", nullable=True, minimum=0),
            column("dim", IntegerType(), "Floats in a vector.", minimum=1),
            column("n_rows", LongType(), "Users in it.", minimum=0),
            column("checksum", StringType(), "Checksum of its rows."),
            column("store", StringType(), "Online store that holds it."),
            column("code_version", StringType(), "Version of this package."),
        ]
    ),
    key=("sequence",),
)

ERASURE_REQUESTS = Table(
    name="erasure_requests",
    comment="Users who ask to be forgotten. The row goes with the user: `lte erase --requests` deletes it.",
    schema=StructType(
        [
            column("user_id", StringType(), "Who asks."),
            column("requested_ts", TimestampType(), "When, UTC."),
        ]
    ),
    key=("user_id",),
)

ERASURES = Table(
    name="erasures",
    comment="One row per erased user, without personal data: the proof of the erasure, and what keeps the user out.",
    schema=StructType(
        [
            column("user_hash", StringType(), "Keyed BLAKE2b of the user_id."),
            column("salt", StringType(), "Key of the hash, the same in all rows."),
            column("erased_ts", TimestampType(), "When the last erasure of this user ended, UTC."),
            column("n_rows", LongType(), "Rows deleted or redacted in tables, over all erasures.", minimum=0),
            column("n_files", LongType(), "Copies and pages deleted or redacted.", minimum=0),
            column("n_versions", LongType(), "Snapshots of the online store that held the user.", minimum=0),
            column("is_kept_out", BooleanType(), "Whether ingest drops the user's rows from now on."),
            column("bundles", StringType(), "JSON: bundles of models that were trained before the erasure."),
        ]
    ),
    key=("user_hash",),
)
