"""Writes docs/reference/tables.md from the declarations: ``python -m schemas.docs docs/reference/tables.md``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pyspark.sql.types import StructField

from schemas import TABLES, Table

HEADER = """# Tables

Generated from `schemas/` by `make pages`; a test holds the two equal. All tables are Delta
tables under `paths.lake`; all days and times are UTC.
"""


def tables_markdown() -> str:
    """The whole page."""
    return "\n".join([HEADER, *(_table(table) for table in TABLES.values())])


def _table(table: Table) -> str:
    facts = [
        f"Key: {_names(table.key)}.",
        f"Partitions: {_names(table.partition_by) if table.partition_by else 'none'}.",
    ]
    if table.checks:
        facts.append("Checks: " + "; ".join(f"`{condition}`" for _, condition in table.checks) + ".")
    rows = "\n".join(_row(field) for field in table.schema)
    head = "| column | type | null | meaning |\n|---|---|---|---|"
    return f"## `{table.name}`\n\n{table.comment} {' '.join(facts)}\n\n{head}\n{rows}\n"


def _names(columns: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in columns)


def _row(field: StructField) -> str:
    limits = [
        f"{word} {field.metadata[key]:g}"
        for key, word in (("minimum", "at least"), ("maximum", "at most"))
        if key in field.metadata
    ]
    if "values" in field.metadata:
        limits.append("one of " + _names(field.metadata["values"]))
    meaning = field.metadata["comment"] + (f" ({'; '.join(limits)})" if limits else "")
    return f"| `{field.name}` | {field.dataType.simpleString()} | {'yes' if field.nullable else 'no'} | {meaning} |"


def main() -> None:
    """Write the page to the file named as the only argument."""
    Path(sys.argv[1]).write_text(tables_markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
