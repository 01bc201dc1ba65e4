from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    DateType,
    DoubleType,
    FloatType,
    IntegerType,
    StringType,
    StructType,
)

from schemas.table import Table, column

ITEMS = Table(
    name="items",
    comment="One version of a catalogue item: the row that landed on landing_ds. The catalogue as of a day is the "
    "newest row of each item up to it.",
    schema=StructType(
        [
            column("item_id", StringType(), "Item; 1 to 128 UTF-8 bytes."),
            column("title", StringType(), "Name of the item; may be empty where there is a picture."),
            column("description", StringType(), "Free text.", nullable=True),
            column("category", StringType(), "Category.", nullable=True),
            column("brand", StringType(), "Brand.", nullable=True),
            column("price", DoubleType(), "Price in the market's currency.", nullable=True, minimum=0),
            column("price_tier", StringType(), "Price tier.", nullable=True),
            column("season", StringType(), "Season.", nullable=True),
            column("image", BinaryType(), "Encoded picture (JPEG, PNG, WebP).", nullable=True),
            column("image_path", StringType(), "Picture file, relative to the landing folder.", nullable=True),
            column("landing_ds", DateType(), "Landing day of this version."),
        ]
    ),
    key=("item_id", "landing_ds"),
    partition_by=("landing_ds",),
)

SOURCES = ("image+text", "image", "text")

ITEM_EMBEDDINGS = Table(
    name="item_embeddings",
    comment="The fixed semantic basis: one unit vector per item, immutable within a basis_version (paper, section 4).",
    schema=StructType(
        [
            column("item_id", StringType(), "Item."),
            column("basis_version", StringType(), "Hash of encoder, weights, preprocessing and aggregation."),
            column(
                "item_index", IntegerType(), "Row of the item in the matrix E: dense from 0, never reused.", minimum=0
            ),
            column("content_hash", StringType(), "Hash of the text and picture that were encoded."),
            column("source", StringType(), "What was encoded.", values=SOURCES),
            column("first_ds", DateType(), "First landing day of the item: it is known from that day on."),
            column("embedding", ArrayType(FloatType()), "Unit vector, D floats."),
        ]
    ),
    key=("basis_version", "item_id"),
    partition_by=("basis_version",),
)

ITEM_BEHAVIOUR = Table(
    name="item_behaviour",
    comment="Behaviour vectors of the items, method behaviour: EASE's item-item weights B times the basis E, fitted on "
    "the interactions up to fit_ds. Immutable within a basis_version.",
    schema=StructType(
        [
            column("item_id", StringType(), "Item."),
            column("basis_version", StringType(), "Version of these vectors: of_basis, fit_ds and a hash of settings."),
            column("item_index", IntegerType(), "Row of the item in B E; the same as in item_embeddings.", minimum=0),
            column("of_basis", StringType(), "basis_version of E."),
            column("fit_ds", DateType(), "Data day up to which interactions were read."),
            column("first_ds", DateType(), "First landing day of the item."),
            column(
                "embedding",
                ArrayType(FloatType()),
                "Row of B E, D floats, no longer than the longest item vector; zeros where nobody had the item "
                "together with another one.",
            ),
        ]
    ),
    key=("basis_version", "item_id"),
    partition_by=("basis_version",),
)
