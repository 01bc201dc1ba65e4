"""Rows cast by name to a table's declaration; a value that does not fit stops the write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema
from pyspark.sql.types import DataType, IntegralType, NullType, NumericType, StructField

from jobs.lake.predicates import Predicate, TableError, _values
from schemas import Table

INTEGER_RANGES = {"smallint": (-(2**15), 2**15 - 1), "int": (-(2**31), 2**31 - 1), "bigint": (-(2**63), 2**63 - 1)}


def _shown(column: Column) -> Column:
    return F.coalesce(F.substring(column.cast("string"), 1, 80), F.lit("null"))


def _refused(condition: Column, value: Column, message: str, shown: Column) -> Column:
    """``value``; if ``condition`` holds, an error that stops the write instead."""
    return F.when(condition, F.raise_error(F.concat(F.lit(message), _shown(shown)))).otherwise(value)


def _same_type(found: DataType, wanted: DataType) -> bool:
    return found.simpleString() == wanted.simpleString()


def _fits(found: DataType, wanted: DataType) -> bool:
    """Whether a cast loses nothing, or loses only values that a range check finds."""
    if _same_type(found, wanted) or isinstance(found, NullType):
        return True
    if isinstance(wanted, IntegralType):
        return isinstance(found, IntegralType)
    return isinstance(wanted, NumericType) and isinstance(found, NumericType) and wanted.simpleString() == "double"


def _column(table: Table, field: StructField, found: DataType) -> Column:
    """One column cast to its declared type; a null or a number out of range stops the write."""
    source = F.col(field.name)
    name = f"table {table.name}, column {field.name}"
    value = source
    if not _same_type(found, field.dataType):
        value = source.cast(field.dataType)
        if isinstance(field.dataType, IntegralType):
            smallest, largest = INTEGER_RANGES[field.dataType.simpleString()]
            is_lossy = (source < F.lit(smallest)) | (source > F.lit(largest))
            value = _refused(is_lossy, value, f"{name}: expected {field.dataType.simpleString()}, got ", source)
    if not field.nullable:
        value = _refused(source.isNull(), value, f"{name}: null is not allowed: ", source)
    return value.alias(field.name)


def conformed(df: DataFrame, table: Table, where: Predicate | None = None) -> DataFrame:
    """Cast by name to the declared schema; refuse rows that do not fit.

    Args:
        df: Rows to write, columns in any order.
        table: Declaration to fit.
        where: All rows have these values; a row outside stops the write.

    Returns:
        A DataFrame with the declared columns, whose plan raises at the first bad value.

    Raises:
        TableError: A column is missing, unknown or of a type that does not fit.
    """
    found = {field.name: field.dataType for field in df.schema}
    missing, unknown = [c for c in table.columns if c not in found], [c for c in found if c not in table.columns]
    if missing or unknown:
        raise TableError(f"table {table.name}: missing columns {missing}, unknown columns {unknown}")
    for field in table.schema:
        if not _fits(found[field.name], field.dataType):
            wanted, got = field.dataType.simpleString(), found[field.name].simpleString()
            raise TableError(f"table {table.name}, column {field.name}: expected {wanted}, got {got}")
    columns = {field.name: _column(table, field, found[field.name]) for field in table.schema}
    cast = df.select(*columns.values())
    for name, allowed in (where or {}).items():
        is_outside = ~F.col(name).isin(_values(allowed)) | F.col(name).isNull()
        message = f"table {table.name}: row outside {name} = {allowed}: "
        cast = cast.withColumn(name, _refused(is_outside, F.col(name), message, F.col(name)))
    return _through_arrow(cast, table).select(*(_constant_or_column(field, where or {}) for field in table.schema))


def arrow_schema(table: Table) -> pa.Schema:
    """Types of the table's rows in memory; timestamps are in UTC."""
    return to_arrow_schema(table.row_type(), timezone="UTC")


def fitted(rows: pa.Table, table: Table) -> pa.Table:
    """The same checks for rows in memory: columns by name, types without loss, no null where none is allowed.

    Args:
        rows: Columns in any order.
        table: Declaration to fit.

    Returns:
        The declared columns in declared order.

    Raises:
        TableError: Rows or columns do not fit.
    """
    if sorted(rows.column_names) != sorted(table.columns):
        raise TableError(f"table {table.name}: expected columns {table.columns}, got {rows.column_names}")
    for field in table.schema:
        if not field.nullable and rows[field.name].null_count:
            raise TableError(f"table {table.name}, column {field.name}: null is not allowed")
    try:
        return rows.select(table.columns).cast(arrow_schema(table))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise TableError(f"table {table.name}: {error}") from error


def _constant_or_column(field: StructField, where: Predicate) -> Column:
    """Write a column with one value in all rows as a literal, so that the engine does not sort rows by a constant."""
    values = _values(where.get(field.name, ()))
    constant = F.lit(values[0]).cast(field.dataType) if len(values) == 1 else F.col(field.name)
    return constant.alias(field.name)


def _same_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield from batches


def _through_arrow(df: DataFrame, table: Table) -> DataFrame:
    """Pass rows through Arrow, which keeps the plan of the write apart from the plan of the rows.

    Sail moves its own check for nulls below a filter, and then refuses rows that the filter would remove. Sail also
    gives the element of a cast array another name than Delta, and then cannot replace the rows.
    """
    # The declared schema, not the nullable one: `_column` has refused nulls, and where a column may be null Sail adds a
    # check of its own. Planning these checks takes twice as long for each further column: 40 s for 24 of them.
    return df.mapInArrow(_same_batches, table.schema)


def later_columns(table: Table, found: Sequence[str]) -> list[StructField]:
    """Nullable columns that were declared after the table was written: null in every row of the table."""
    return [field for field in table.schema if field.nullable and field.name not in found]
