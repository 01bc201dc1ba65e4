from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DateType,
    DoubleType,
    FloatType,
    IntegerType,
    StringType,
    StructField,
    StructType,
)

from schemas.table import Table, column

POOLED_METHODS = ("uniform", "recency", "behaviour")
METHODS = (*POOLED_METHODS, "autoencoder")


def _slice_columns() -> list[StructField]:
    return [
        column("ds", DateType(), "Data day that the run processed."),
        column("method", StringType(), "How interactions are weighted.", values=METHODS),
        column("lte_window", StringType(), "Window in days before the end of ds, oldest-newest: 365-60."),
    ]


USER_LTE = Table(
    name="user_lte",
    comment="One Long-Term Embedding a user, method and window as of ds (paper, section 4).",
    schema=StructType(
        [
            column("user_id", StringType(), "User with an interaction between the window's start and the end of ds."),
            column(
                "embedding", ArrayType(FloatType()), "Weighted mean of item vectors, D floats; zeros where n_items = 0."
            ),
            column(
                "n_items", IntegerType(), "Known interactions (or items, where each counts once) averaged.", minimum=0
            ),
            column("n_unknown", IntegerType(), "Interactions left out: the item has no vector yet.", minimum=0),
            column("basis_version", StringType(), "Basis of the vectors."),
            *_slice_columns(),
        ]
    ),
    key=("user_id", "ds", "method", "lte_window"),
    partition_by=("ds", "method", "lte_window"),
)

LTE_DRIFT = Table(
    name="lte_drift",
    comment="How far a user's LTE moved since offset_days before ds, and the bound that holds (paper, section 7.1).",
    schema=StructType(
        [
            column("user_id", StringType(), "User with an LTE on both days."),
            column("offset_days", IntegerType(), "Days between the two LTEs.", minimum=1),
            column("n_now", IntegerType(), "Known interactions in the window of ds.", minimum=0),
            column("n_before", IntegerType(), "Known interactions in the window of ds - offset_days.", minimum=0),
            column("n_in", IntegerType(), "Interactions that entered.", minimum=0),
            column("n_out", IntegerType(), "Interactions that left.", minimum=0),
            column("tau", DoubleType(), "The paper's turnover (n_in + n_out) / n_now; 0 where n_now = 0.", minimum=0),
            column("drift", DoubleType(), "L2 distance of the two LTEs.", minimum=0),
            column(
                "bound",
                DoubleType(),
                "What drift cannot exceed: counts of entering and leaving interactions.",
                minimum=0,
            ),
            column(
                "tv_bound", DoubleType(), "The sharper bound: total variation of the two weight vectors.", minimum=0
            ),
            column("cosine", DoubleType(), "Cosine of the two LTEs.", nullable=True, minimum=-1.001, maximum=1.001),
            column(
                "centred_cosine",
                DoubleType(),
                "Cosine after the mean LTE was taken off.",
                nullable=True,
                minimum=-1.001,
                maximum=1.001,
            ),
            column("activity", StringType(), "Bucket of n_now."),
            column("bound_ok", BooleanType(), "Drift keeps the bounds, within float32 rounding."),
            column("reference_stale", BooleanType(), "The earlier LTE no longer fits the interactions: not judged."),
            *_slice_columns(),
        ]
    ),
    key=("user_id", "offset_days", "ds", "method", "lte_window"),
    partition_by=("ds", "method", "lte_window"),
)
