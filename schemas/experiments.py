from pyspark.sql.types import DateType, DoubleType, IntegerType, LongType, StringType, StructType

from schemas.table import Table, column
from schemas.training import TRAINING_EXAMPLES

GROUPS = ("all", "0", "1-5", "6-20", ">20")
TARGETS = ("all", "new", "repeated")

EXPERIMENT_EXAMPLES = Table(
    name="experiment_examples",
    comment="What the experiments train and test on: training_examples of their own anchors, also with longer "
    "sequences.",
    schema=StructType(
        [
            *(
                field
                for field in TRAINING_EXAMPLES.schema
                if field.name not in (*TRAINING_EXAMPLES.partition_by, "inputs_id")
            ),
            column("basis_version", StringType(), "Basis that numbers the items."),
            column("anchor_ds", DateType(), "Last day that the past may hold."),
            column("inputs_id", StringType(), "Hash of the settings and table versions that the rows were built from."),
            column("examples", StringType(), "Name of the set: lte, or sequence-N for sequences of N days."),
        ]
    ),
    key=("user_id", "anchor_ds", "examples"),
    partition_by=("examples",),
)

EXPERIMENTS = Table(
    name="experiments",
    comment="One value per experiment, variant, metric and group of user-days; beside it, where there is one, the "
    "comparison with another variant on the same user-days. Seeds are averaged before they are compared.",
    schema=StructType(
        [
            column("variant", StringType(), "What was tried."),
            column("baseline", StringType(), "Variant it is compared with; empty where there is none."),
            column(
                "history",
                StringType(),
                "History features (ADR 0011); none: no model.",
                values=("off", "on", "none"),
            ),
            column("metric", StringType(), "Name, with its cutoff or unit."),
            column("targets", StringType(), "Items that count: all, new to the user or repeated.", values=TARGETS),
            column("short_history", StringType(), "User-days by interactions in the last 60 days.", values=GROUPS),
            column("value", DoubleType(), "Mean over user-days and seeds."),
            column("seed_low", DoubleType(), "Smallest mean of a seed.", nullable=True),
            column("seed_high", DoubleType(), "Largest mean of a seed.", nullable=True),
            column("baseline_value", DoubleType(), "The same of the baseline.", nullable=True),
            column("uplift", DoubleType(), "value / baseline_value - 1.", nullable=True),
            column("uplift_low", DoubleType(), "Lower end of its 95 % interval, clustered by user.", nullable=True),
            column("uplift_high", DoubleType(), "Upper end.", nullable=True),
            column("p", DoubleType(), "Of an uplift of 0, clustered by user.", nullable=True, minimum=0, maximum=1),
            column("uplift_seed_low", DoubleType(), "Smallest uplift of a seed.", nullable=True),
            column("uplift_seed_high", DoubleType(), "Largest uplift of a seed.", nullable=True),
            column("n_same_sign", IntegerType(), "Seed-days whose uplift has the sign of uplift.", nullable=True),
            column("n_seed_days", IntegerType(), "Seeds times days.", nullable=True),
            column("verdict", StringType(), "Whether the difference holds over seeds and days.", nullable=True),
            column("paper_uplift", DoubleType(), "What the paper found, where it has this comparison.", nullable=True),
            column("n_users", LongType(), "Users.", minimum=0),
            column("n_queries", LongType(), "User-days.", minimum=0),
            column("n_seeds", IntegerType(), "Trainings that were averaged.", minimum=1),
            column("n_days", IntegerType(), "Test days.", minimum=1),
            column("settings", StringType(), "Section [experiment] as JSON."),
            column("basis_version", StringType(), "Basis of the items."),
            column("code_version", StringType(), "Version of this package."),
            column("ds", DateType(), "Last test day."),
            column("experiment", StringType(), "integration, leakage, sequence-length or autoencoder."),
        ]
    ),
    key=("ds", "experiment", "variant", "baseline", "history", "metric", "targets", "short_history"),
    partition_by=("ds", "experiment"),
)
