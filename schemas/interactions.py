from pyspark.sql.types import DateType, LongType, StringType, StructType, TimestampType

from schemas.table import Table, column

INTERACTIONS = Table(
    name="interactions",
    comment="One interaction of a user with an item, accepted from a landing file.",
    schema=StructType(
        [
            column("user_id", StringType(), "Who; 1 to 128 UTF-8 bytes."),
            column("item_id", StringType(), "With what; 1 to 128 UTF-8 bytes."),
            column("event_ts", TimestampType(), "When, UTC."),
            column("interaction_type", StringType(), "How: one of the types that the configuration lists."),
            column("market", StringType(), "Market or shop; empty where the source has none."),
            column("session_id", StringType(), "Session or basket.", nullable=True),
            column("landing_ds", DateType(), "Landing day whose file brought the row."),
            column("event_date", DateType(), "UTC day of event_ts."),
        ]
    ),
    key=("user_id", "item_id", "event_ts", "interaction_type"),
    partition_by=("event_date",),
    checks=(("event_in_its_day", "to_date(event_ts) = event_date"),),
)

EVENT_DAYS = Table(
    name="event_days",
    comment="One row per UTC day that has interactions: what the day holds, so that late data can be noticed.",
    schema=StructType(
        [
            column("event_date", DateType(), "UTC day."),
            column("n_events", LongType(), "Interactions in the day.", minimum=1),
            column("checksum", StringType(), "Order-independent checksum of the day's keys, the same on every engine."),
        ]
    ),
    key=("event_date",),
)
