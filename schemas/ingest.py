from pyspark.sql.types import DateType, LongType, StringType, StructType

from schemas.table import Table, column

TARGETS = ("interactions", "items")

QUARANTINE = Table(
    name="quarantine",
    comment="One landing row (or whole file, line 0) that was not accepted, with the reason.",
    schema=StructType(
        [
            column("target", StringType(), "Table that the row was meant for.", values=TARGETS),
            column("source_file", StringType(), "File, relative to the landing folder."),
            column("line", LongType(), "Data line in the file from 1; 0 for the file as a whole.", minimum=0),
            column("reason", StringType(), "Why the row was not accepted."),
            column("detail", StringType(), "The offending column and value."),
            column("raw", StringType(), "The row as JSON text, shortened."),
            column("landing_ds", DateType(), "Landing day of the file."),
            column(
                "found_user_id",
                StringType(),
                "The user that the row is about, as far as it can be told: 17 where the file said 17.0.",
                nullable=True,
            ),
        ]
    ),
    key=("target", "source_file", "line"),
    partition_by=("landing_ds",),
)

INGEST_LOG = Table(
    name="ingest_log",
    comment="One row per landing file: rows read = accepted + duplicate + quarantined.",
    schema=StructType(
        [
            column("target", StringType(), "Table that the file feeds.", values=TARGETS),
            column("source_file", StringType(), "File, relative to the landing folder; empty for a day without files."),
            column("rows_read", LongType(), "Rows in the file.", minimum=0),
            column("rows_accepted", LongType(), "Rows now in the table.", minimum=0),
            column("rows_duplicate", LongType(), "Rows whose key another row already holds.", minimum=0),
            column("rows_quarantined", LongType(), "Bad rows.", minimum=0),
            column("landing_ds", DateType(), "Landing day of the file."),
            column(
                "bytes",
                LongType(),
                "Size of the file when it was listed; a file of another size is taken anew.",
                nullable=True,
                minimum=0,
            ),
        ]
    ),
    key=("target", "source_file", "landing_ds"),
    partition_by=("landing_ds",),
    checks=(("conserved", "rows_read = rows_accepted + rows_duplicate + rows_quarantined"),),
)
