from pyspark.sql.types import (
    ArrayType,
    DateType,
    DoubleType,
    FloatType,
    IntegerType,
    StringType,
    StructField,
    StructType,
)

from schemas.table import Table, column

USER_HISTORIES = Table(
    name="user_histories",
    comment="The distinct items of each user in an LTE window: what the autoencoder reads (paper, section 9.1).",
    schema=StructType(
        [
            column("user_id", StringType(), "User with an interaction between the window's start and the end of ds."),
            column("items", ArrayType(IntegerType()), "item_index of each known item in the window, once, ascending."),
            column("n_unknown", IntegerType(), "Interactions in the window whose item has no vector yet.", minimum=0),
            column("fold", IntegerType(), "Hash of user_id: fold 0 of 20 is validation.", minimum=0, maximum=19),
            column("basis_version", StringType(), "Basis that numbers the items."),
            column("ds", DateType(), "Data day."),
            column("lte_window", StringType(), "Window in days before the end of ds, oldest-newest: 365-60."),
        ]
    ),
    key=("user_id", "ds", "lte_window"),
    partition_by=("ds", "lte_window"),
)


def _past(name: str, dtype: IntegerType | FloatType, comment: str) -> StructField:
    return column(f"past_{name}", ArrayType(dtype), f"For each past item: {comment}")


TRAINING_EXAMPLES = Table(
    name="training_examples",
    comment="One user at one anchor: the past up to the end of anchor_ds, and the items of the day after. Nothing "
    "but targets lies after the anchor (ADR 0008).",
    schema=StructType(
        [
            column("user_id", StringType(), "User with an interaction on the day after the anchor."),
            column(
                "items", ArrayType(IntegerType()), "item_index of the last 100 interactions in 60 days, oldest first."
            ),
            column("types", ArrayType(IntegerType()), "Their interaction types: places in interactions.types."),
            column("ages_hours", ArrayType(IntegerType()), "Their whole hours before the end of anchor_ds."),
            column("moments", ArrayType(IntegerType()), "Number of their moment, from 0: equal for equal seconds."),
            column("past_items", ArrayType(IntegerType()), "item_index of each known item in 365 days, ascending."),
            _past("n_week", IntegerType(), "interactions in the last 7 days."),
            _past("n_month", IntegerType(), "interactions in the last 28 days."),
            _past("n_short", IntegerType(), "interactions in the short window [60,0)."),
            _past("n_long", IntegerType(), "interactions in the long window [365,60)."),
            _past("days", IntegerType(), "days with the item."),
            _past("weekday", IntegerType(), "days with the item on the weekday of the day after the anchor."),
            _past("visits_since", IntegerType(), "days on which the user came after the last one with the item."),
            _past("visits_from", IntegerType(), "days on which the user came, from the first one with the item on."),
            _past("last_age", FloatType(), "days from the last interaction to the end of anchor_ds."),
            _past("first_age", FloatType(), "days from the first interaction to the end of anchor_ds."),
            _past("last_gap", FloatType(), "days between the last two days with the item; 0 where there is but one."),
            _past("w_short", FloatType(), "short interactions, each halved every half-life."),
            _past("w_long", FloatType(), "long interactions, each halved every half-life."),
            column("targets", ArrayType(IntegerType()), "item_index of each known item on the day after, ascending."),
            column("anchor_day", IntegerType(), "anchor_ds as days since 1970-01-01.", minimum=0),
            column("inputs_id", StringType(), "Hash of what decides the rows of the anchor; another one: built again."),
            column("basis_version", StringType(), "Basis that numbers the items."),
            column("anchor_ds", DateType(), "Last day that the past may hold."),
        ]
    ),
    key=("user_id", "basis_version", "anchor_ds"),
    partition_by=("basis_version", "anchor_ds"),
)

RANKER_SCORES = Table(
    name="ranker_scores",
    comment="NDCG of each user-day and model that evaluate_ranker of ds measured: what its gate pools over days.",
    schema=StructType(
        [
            column("user_id", StringType(), "User with an interaction on test_day."),
            column("test_day", DateType(), "Day whose interactions were ranked: ds; on a first run also days before."),
            column("model", StringType(), "candidate, live or a baseline."),
            column("ndcg", DoubleType(), "NDCG at ranker.cutoff.", minimum=0, maximum=1),
            column("inputs_id", StringType(), "Hash of basis, types and training settings: others are not pooled."),
            column("ds", DateType(), "Data day of the run that measured it."),
        ]
    ),
    key=("ds", "user_id", "test_day", "model"),
    partition_by=("ds",),
)
