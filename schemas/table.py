"""How a table is declared: once, here; jobs, expectations, tests and docs/reference/tables.md derive from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql.types import DataType, StructField, StructType

MAX_ID_BYTES = 128


def column(
    name: str,
    dtype: DataType,
    comment: str,
    *,
    nullable: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    values: Sequence[str] | None = None,
) -> StructField:
    """Declare one column with its comment and the limits that every value keeps.

    Args:
        name: Column name.
        dtype: Spark type. Array elements stay nullable in the declaration (Spark marks them so); suites prove no nulls.
        comment: What the column holds, with its unit.
        nullable: Whether null is a legal value.
        minimum: Smallest legal value, inclusive.
        maximum: Largest legal value, inclusive.
        values: The only legal values.

    Returns:
        A StructField whose metadata holds ``comment``, ``minimum``, ``maximum`` and ``values``.
    """
    limits = {"minimum": minimum, "maximum": maximum, "values": list(values) if values is not None else None}
    metadata = {"comment": comment} | {key: value for key, value in limits.items() if value is not None}
    return StructField(name, dtype, nullable, metadata)


@dataclass(frozen=True)
class Table:
    """A Delta table: columns, key and partitions.

    Attributes:
        name: Table name, also its folder under the lake.
        comment: What one row is.
        schema: Columns in order, made with :func:`column`.
        key: Columns that identify a row (unique in the whole table).
        partition_by: Partition columns; a job replaces whole partitions.
        checks: Name to SQL condition, enforced by the engine at each write.
    """

    name: str
    comment: str
    schema: StructType
    key: tuple[str, ...]
    partition_by: tuple[str, ...] = ()
    checks: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Refuse a key, partition or repeated column that the schema does not carry."""
        names = self.schema.fieldNames()
        missing = [name for name in (*self.key, *self.partition_by) if name not in names]
        if missing or len(set(names)) != len(names):
            raise ValueError(f"table {self.name}: columns {missing or names} are not declared exactly once")

    @property
    def columns(self) -> list[str]:
        """Column names in declared order."""
        return self.schema.fieldNames()

    def row_type(self, columns: Sequence[str] | None = None) -> StructType:
        """Types of rows that are on their way to the table; the write itself checks for nulls.

        Engines mark computed columns nullable, whatever they hold: so every column is nullable here.

        Args:
            columns: Some of the table's columns, in the order of the rows; all in declared order by default.
        """
        return StructType([StructField(name, self.schema[name].dataType) for name in columns or self.columns])
