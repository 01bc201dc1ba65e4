import pytest
from pyspark.sql.types import LongType, StructType

from checkout import ROOT
from schemas import TABLES, Table, column
from schemas.docs import tables_markdown


def test_the_page_in_docs_is_the_declarations() -> None:
    assert (ROOT / "docs" / "reference" / "tables.md").read_text(encoding="utf-8") == tables_markdown(), (
        "run: python -m schemas.docs docs/reference/tables.md"
    )


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_every_table_says_what_it_and_its_columns_hold(table: Table) -> None:
    assert table.comment.endswith(".")
    assert all(field.metadata["comment"].endswith(".") for field in table.schema)
    assert table.key
    not_null = {field.name for field in table.schema if not field.nullable}
    assert {*table.key, *table.partition_by} <= not_null


def test_a_key_that_no_column_carries_is_refused() -> None:
    schema = StructType([column("id", LongType(), "Key.")])
    with pytest.raises(ValueError, match=r"table t: columns \['other'\] are not declared exactly once"):
        Table("t", "A table.", schema, key=("id", "other"))
    with pytest.raises(ValueError, match=r"table t: columns \['id', 'id'\]"):
        Table("t", "A table.", StructType([*schema, *schema]), key=("id",))
