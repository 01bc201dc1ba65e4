"""Great Expectations suites: generated from the declarations in ``schemas/``, written by hand for vectors and drift.

Great Expectations cannot validate vectors. So :func:`scalars` replaces every array, in the engine, by its length, its
number of bad elements and its norm. Only numbers, texts and booleans are validated.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BinaryType, DoubleType, FloatType, StructField

from jobs.lake.array_scalars import array_scalars, without_arrays
from schemas import MAX_ID_BYTES, POOLED_METHODS, Table

os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")  # must come before the import, which would use the network

import great_expectations.expectations as gxe
from great_expectations.expectations.expectation import Expectation

ID_COLUMNS = ("user_id", "item_id")
LARGEST = float(np.finfo(np.float64).max)

# Tolerance of norms, because averages of unit vectors are summed in float32.
NORM_SLACK = 1e-5
UNIT_SLACK = 1e-3
TAU_SLACK = 1e-9

# Columns that the rules written by hand add to a table's scalars.
RULES = {
    "interactions": ("is_landed_after_event",),
    "event_days": ("n_events_missing",),
    "user_lte": ("norm_share", "is_zero_without_items"),
    "lte_drift": ("is_tau_right", "is_turnover_whole"),
}


def scalars(rows: DataFrame, table: Table) -> DataFrame:
    """Columns of rows of ``table`` that can be validated: no arrays, no pictures.

    Args:
        rows: Rows. A missing column stays missing and an unknown column stays, so that an expectation fails on it.
        table: Declaration of the table.

    Returns:
        The other columns, and for an array ``c`` the columns ``c_length``, ``c_n_bad`` (nulls, NaN, infinities) and,
        when its elements are floats, ``c_norm``. Bytes and ids ``c`` get ``c_bytes``, floats get ``c_is_finite``. Each
        check of the table gets ``check_<name>``.
    """
    present = [field for field in table.schema if field.name in rows.columns]
    checks = {f"check_{name}": F.expr(condition) for name, condition in table.checks if _is_there(condition, rows)}
    derived = {name: _derived(field) for field in present if (name := _derived_name(field))} | checks
    whole = rows.withColumns(derived) if derived else rows
    whole = whole.drop(*[field.name for field in present if isinstance(field.dataType, BinaryType)])
    return without_arrays(whole, [field for field in present if isinstance(field.dataType, ArrayType)])


def _is_there(condition: str, rows: DataFrame) -> bool:
    """Whether all columns of a check exist; another expectation reports a missing column."""
    words = set("".join(sign if sign.isalnum() or sign == "_" else " " for sign in condition).split())
    return not any(word in words for word in words - {"to_date"} if word not in rows.columns)


def _derived_name(field: StructField) -> str | None:
    """Name of the column that is derived from a column; needs no session of the engine."""
    if field.name in ID_COLUMNS or isinstance(field.dataType, BinaryType):
        return f"{field.name}_bytes"
    return f"{field.name}_is_finite" if isinstance(field.dataType, DoubleType | FloatType) else None


def _derived(field: StructField) -> Column:
    if isinstance(field.dataType, DoubleType | FloatType):
        return F.abs(F.col(field.name)) <= F.lit(LARGEST)
    return F.octet_length(field.name).cast("bigint")


def table_suite(table: Table) -> list[Expectation]:
    """Expectations that follow from a declaration, for rows with :func:`scalars` and the columns of ``RULES``.

    They cover the columns and their types, forbidden nulls (array elements included), the key, limits, legal values,
    ids of 1 to 128 bytes, finite numbers and the checks of the table.
    """
    columns = gxe.ExpectTableColumnsToMatchSet(column_set=[*scalar_columns(table), *RULES.get(table.name, ())])
    per_column = [expectation for field in table.schema for expectation in _column_suite(field)]
    checks = [_is_true(f"check_{name}", condition) for name, condition in table.checks]
    return [columns, *per_column, _key(table.key), *checks]


def scalar_columns(table: Table) -> list[str]:
    """Columns of rows of ``table`` after :func:`scalars`."""
    names: list[str] = []
    for field in table.schema:
        if isinstance(field.dataType, ArrayType):
            names += array_scalars([field])
        else:
            kept = [] if isinstance(field.dataType, BinaryType) else [field.name]
            names += [*kept, *filter(None, [_derived_name(field)])]
    return [*names, *(f"check_{name}" for name, _ in table.checks)]


def _column_suite(field: StructField) -> list[Expectation]:
    if isinstance(field.dataType, ArrayType):
        return _array_suite(field)
    if isinstance(field.dataType, BinaryType):
        return [] if field.nullable else [gxe.ExpectColumnValuesToNotBeNull(column=f"{field.name}_bytes")]
    suite: list[Expectation] = [
        gxe.ExpectColumnValuesToBeOfType(column=field.name, type_=type(field.dataType).__name__)
    ]
    if not field.nullable:
        suite.append(gxe.ExpectColumnValuesToNotBeNull(column=field.name))
    return suite + _limits(field)


def _array_suite(field: StructField) -> list[Expectation]:
    suite: list[Expectation] = [gxe.ExpectColumnValuesToBeBetween(column=f"{field.name}_n_bad", max_value=0)]
    if not field.nullable:
        suite.append(gxe.ExpectColumnValuesToNotBeNull(column=f"{field.name}_length"))
    return suite


def _limits(field: StructField) -> list[Expectation]:
    suite: list[Expectation] = []
    low, high = field.metadata.get("minimum"), field.metadata.get("maximum")
    if low is not None or high is not None:
        suite.append(gxe.ExpectColumnValuesToBeBetween(column=field.name, min_value=low, max_value=high))
    if "values" in field.metadata:
        suite.append(gxe.ExpectColumnValuesToBeInSet(column=field.name, value_set=list(field.metadata["values"])))
    if field.name in ID_COLUMNS:
        name = f"{field.name}_bytes"
        suite.append(gxe.ExpectColumnValuesToBeBetween(column=name, min_value=1, max_value=MAX_ID_BYTES))
    if isinstance(field.dataType, DoubleType | FloatType):
        suite.append(_is_true(f"{field.name}_is_finite"))
    return suite


def _key(columns: Sequence[str]) -> Expectation:
    if len(columns) == 1:
        return gxe.ExpectColumnValuesToBeUnique(column=columns[0])
    return gxe.ExpectCompoundColumnsToBeUnique(column_list=list(columns))


def _is_true(column: str, notes: str | None = None) -> Expectation:
    """Expectation that the column is true, or null when the rule does not apply."""
    return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[True], notes=notes)


def with_interaction_rules(rows: DataFrame) -> DataFrame:
    """Add ``is_landed_after_event``."""
    return rows.withColumn("is_landed_after_event", F.col("event_date") <= F.col("landing_ds"))


def interaction_suite(types: Sequence[str]) -> list[Expectation]:
    """Interaction types are configured types, and no event is later than its landing day."""
    known = gxe.ExpectColumnValuesToBeInSet(
        column="interaction_type", value_set=list(types), notes="interactions.types of the configuration"
    )
    return [known, _is_true("is_landed_after_event", "no event is later than its landing day")]


def with_counted_events(event_days: DataFrame, interactions: DataFrame) -> DataFrame:
    """Add ``n_events_missing``: n_events of the day minus the number of rows in interactions."""
    counted = interactions.groupBy("event_date").agg(F.count("*").alias("n_counted"))
    joined = event_days.join(counted, "event_date", "left")
    missing = F.col("n_events") - F.coalesce("n_counted", F.lit(0))
    return joined.withColumn("n_events_missing", missing).drop("n_counted")


def event_day_suite() -> list[Expectation]:
    """The n_events of each day is the number of its interactions."""
    return [gxe.ExpectColumnValuesToBeBetween(column="n_events_missing", min_value=0, max_value=0)]


def basis_suite(dim: int) -> list[Expectation]:
    """Unit vectors of one dimension."""
    low, high = 1 - UNIT_SLACK, 1 + UNIT_SLACK
    return [
        gxe.ExpectColumnValuesToBeInSet(column="embedding_length", value_set=[dim], notes="dimension of the basis"),
        gxe.ExpectColumnValuesToBeBetween(
            column="embedding_norm", min_value=low, max_value=high, notes="item vectors have unit length"
        ),
    ]


def with_lte_rules(rows: DataFrame, max_norm: float) -> DataFrame:
    """Add the rules of averages; they are null for the autoencoder's LTEs, which are not averages.

    Args:
        rows: Scalars of user_lte.
        max_norm: Largest norm of an item vector.

    Returns:
        Rows with ``norm_share`` (norm over the largest norm of the basis) and ``is_zero_without_items``.
    """
    is_average = F.col("method").isin(list(POOLED_METHODS))
    is_zero, has_none = F.col("embedding_norm") == 0, F.col("n_items") == 0
    share = F.col("embedding_norm") / F.lit(max_norm)
    return rows.withColumns(
        {"norm_share": F.when(is_average, share), "is_zero_without_items": F.when(is_average, is_zero == has_none)}
    )


def lte_suite(dim: int, basis_version: str) -> list[Expectation]:
    """One dimension, one basis, no average longer than the longest item vector, zero exactly without items."""
    return [
        gxe.ExpectColumnValuesToBeInSet(column="embedding_length", value_set=[dim], notes="dimension of the basis"),
        gxe.ExpectColumnValuesToBeInSet(column="basis_version", value_set=[basis_version], notes="one basis a day"),
        gxe.ExpectColumnValuesToBeBetween(
            column="norm_share", max_value=1 + NORM_SLACK, notes="no longer than the longest item vector"
        ),
        _is_true("is_zero_without_items", "the zero vector exactly where n_items = 0"),
    ]


def with_drift_rules(rows: DataFrame) -> DataFrame:
    """Add ``is_tau_right`` and ``is_turnover_whole`` (both days give the same number of unchanged interactions)."""
    changed = (F.col("n_in") + F.col("n_out")) / F.greatest(F.col("n_now"), F.lit(1))
    tau = F.when(F.col("n_now") > 0, changed).otherwise(F.lit(0.0))
    stayed = F.col("n_now") - F.col("n_in")
    is_whole = (stayed == F.col("n_before") - F.col("n_out")) & (stayed >= 0)
    return rows.withColumns(
        {"is_tau_right": F.abs(F.col("tau") - tau) <= F.lit(TAU_SLACK), "is_turnover_whole": is_whole}
    )


def drift_suite() -> list[Expectation]:
    """The turnover of the paper, and the counts from which the turnover is computed."""
    return [
        _is_true("is_tau_right", "tau = (n_in + n_out) / n_now"),
        _is_true("is_turnover_whole", "n_now - n_in = n_before - n_out"),
    ]
