"""Every expectation, generated or by hand, passes on good rows and fails on rows that break it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
from great_expectations.expectations.expectation import Expectation
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DateType,
    DoubleType,
    FloatType,
    StringType,
    StructField,
    TimestampType,
)

from jobs.gates.checkpoints import GateOutcome, GateRun
from jobs.gates.suites import (
    basis_suite,
    drift_suite,
    event_day_suite,
    interaction_suite,
    lte_suite,
    scalars,
    table_suite,
    with_counted_events,
    with_drift_rules,
    with_interaction_rules,
    with_lte_rules,
)
from jobs.lake.array_scalars import without_arrays
from lte_builders import schema_of
from schemas import EVENT_DAYS, INTERACTIONS, ITEM_EMBEDDINGS, LTE_DRIFT, TABLES, USER_LTE, Table

DAY = date(2025, 6, 30)
NOON = datetime(2025, 6, 30, 12, tzinfo=UTC)
# By hand, where a row must fit more than its columns' limits.
GOOD: dict[str, dict[str, object]] = {
    "ingest_log": {"rows_read": 3, "rows_accepted": 1, "rows_duplicate": 1, "rows_quarantined": 1},
    "lte_drift": {"n_now": 4, "n_before": 5, "n_in": 1, "n_out": 2, "tau": 0.75, "cosine": 0.5, "centred_cosine": 0.5},
    "item_embeddings": {"embedding": [0.6, 0.8]},
    "user_lte": {"embedding": [0.6, 0.0], "n_items": 2, "method": "uniform", "basis_version": "b"},
    "interactions": {"interaction_type": "click"},
    "event_days": {"n_events": 1},
}
HAND = {
    "interactions": lambda: interaction_suite(["click"]),
    "event_days": event_day_suite,
    "item_embeddings": lambda: basis_suite(2),
    "user_lte": lambda: lte_suite(2, "b"),
    "lte_drift": drift_suite,
}
# Rows that break the rules written by hand, one each: column to value.
BROKEN_BY_HAND: dict[str, list[dict[str, object]]] = {
    "interactions": [
        {"interaction_type": "stare"},
        {"landing_ds": date(2025, 6, 29)},
        {"event_date": date(2025, 6, 1)},
    ],
    "event_days": [{"n_events": 2}],
    "item_embeddings": [{"embedding": [0.6, 0.8, 0.0]}, {"embedding": [0.6, 0.7]}],
    "user_lte": [
        {"embedding": [0.6]},
        {"basis_version": "another"},
        {"embedding": [0.8, 0.7]},  # longer than the longest item vector
        {"embedding": [0.0, 0.0]},  # zero although there are items
        {"n_items": 0},  # not zero although there are none
    ],
    "lte_drift": [{"tau": 0.8}, {"n_in": 2, "tau": 1.0}],
    "ingest_log": [{"rows_read": 4}],
}


def good_value(field: StructField) -> object:
    kinds: dict[type, object] = {
        StringType: "a",
        BooleanType: True,
        DateType: DAY,
        TimestampType: NOON,
        DoubleType: 1.0,
        FloatType: 1.0,
        BinaryType: b"x",
    }
    if isinstance(field.dataType, ArrayType):
        return [1.0 if isinstance(field.dataType.elementType, FloatType) else 1]
    if "values" in field.metadata:
        return field.metadata["values"][0]
    return kinds.get(type(field.dataType), int(field.metadata.get("minimum", 1)))


def good_row(table: Table) -> dict[str, Any]:
    return {field.name: good_value(field) for field in table.schema} | GOOD.get(table.name, {})


def bad_rows(table: Table) -> Iterator[dict[str, Any]]:
    """Rows each of which breaks something that the declaration says."""
    good = good_row(table)
    yield from (good, good)  # one key twice
    yield dict.fromkeys(good)
    for field in table.schema:
        yield from (good | {field.name: value} for value in bad_values(field))
    yield from (good | broken for broken in BROKEN_BY_HAND.get(table.name, []))


def bad_values(field: StructField) -> Iterator[object]:
    number = float if isinstance(field.dataType, DoubleType) else int
    for limit, step in (("minimum", -1), ("maximum", 1)):
        if limit in field.metadata:
            yield number(field.metadata[limit] + step)
    if "values" in field.metadata:
        yield "neither"
    if field.name in ("user_id", "item_id"):
        yield "é" * 65  # 130 bytes
    if isinstance(field.dataType, DoubleType):
        yield math.nan
    if isinstance(field.dataType, ArrayType):
        yield [None]


def frame(spark: SparkSession, table: Table, rows: list[dict[str, Any]]) -> DataFrame:
    return spark.createDataFrame([tuple(row[name] for name in table.columns) for row in rows], schema_of(table))


def whole(spark: SparkSession, table: Table, rows: DataFrame) -> DataFrame:
    """What validate makes of rows before it validates them."""
    plain = scalars(rows, table)
    if table is INTERACTIONS:
        return with_interaction_rules(plain)
    if table is EVENT_DAYS:
        return with_counted_events(plain, frame(spark, INTERACTIONS, [good_row(INTERACTIONS)]))
    if table is USER_LTE:
        return with_lte_rules(plain, max_norm=1.0)
    return with_drift_rules(plain) if table is LTE_DRIFT else plain


def suite_of(table: Table) -> list[Expectation]:
    return table_suite(table) + HAND.get(table.name, list)()


class Verdicts:
    """Outcomes of each table on good rows, bad rows, other columns and other types; each validated once."""

    def __init__(self, spark: SparkSession) -> None:
        self._spark = spark
        self._found: dict[tuple[str, str], dict[str, GateOutcome]] = {}

    def __call__(self, table: Table, kind: str) -> dict[str, GateOutcome]:
        if (table.name, kind) not in self._found:
            outcomes = GateRun(DAY).rows(table, self._rows(table, kind), suite_of(table), shows_rows=False)
            found = {outcome.expectation: outcome for outcome in outcomes}
            assert len(found) == len(outcomes), "two expectations have one name"
            self._found[table.name, kind] = found
        return self._found[table.name, kind]

    def _rows(self, table: Table, kind: str) -> DataFrame:
        good = frame(self._spark, table, [good_row(table)])
        if kind == "good":
            return whole(self._spark, table, good)
        if kind == "bad":
            return whole(self._spark, table, frame(self._spark, table, list(bad_rows(table))))
        if kind == "columns":
            return whole(self._spark, table, good).withColumnRenamed(table.columns[0], "stranger")
        rows = whole(self._spark, table, good)
        types = {"int": "bigint", "bigint": "int", "string": "binary"}
        for field in table.schema:
            if field.name in rows.columns:
                name = rows.schema[field.name].dataType.simpleString()
                rows = rows.withColumn(field.name, rows[field.name].cast(types.get(name, "string")))
        return rows


@pytest.fixture(scope="module")
def verdicts(sail: SparkSession) -> Verdicts:
    return Verdicts(sail)


def name_of(expectation: Expectation) -> str:
    kwargs = expectation.configuration.kwargs
    return f"{expectation.configuration.type}({kwargs.get('column') or ', '.join(kwargs.get('column_list', []))})"


ALL = [(table, name_of(each)) for table in TABLES.values() for each in suite_of(table)]


@pytest.mark.parametrize(("table", "name"), ALL, ids=[f"{table.name}-{name}" for table, name in ALL])
def test_an_expectation_holds_on_good_rows_and_fails_on_bad_ones(verdicts: Verdicts, table: Table, name: str) -> None:
    assert verdicts(table, "good")[name].success, verdicts(table, "good")[name]
    kinds = {"expect_table_columns_to_match_set": "columns", "expect_column_values_to_be_of_type": "types"}
    assert not verdicts(table, kinds.get(name.partition("(")[0], "bad"))[name].success


def test_every_table_has_a_suite_that_knows_its_key_and_its_checks() -> None:
    for table in TABLES.values():
        names = [name_of(each) for each in table_suite(table)]
        assert any("unique" in name and all(column in name for column in table.key) for name in names), table.name
        for check, _ in table.checks:
            assert f"expect_column_values_to_be_in_set(check_{check})" in names


def test_a_failure_shows_the_rows_and_how_many_they_are(sail: SparkSession) -> None:
    rows = [good_row(LTE_DRIFT), good_row(LTE_DRIFT) | {"offset_days": 0}]
    suite = [each for each in table_suite(LTE_DRIFT) if "offset_days" in name_of(each)]
    outcomes = GateRun(DAY).rows(LTE_DRIFT, whole(sail, LTE_DRIFT, frame(sail, LTE_DRIFT, rows)), suite)
    by_name = {outcome.expectation: outcome for outcome in outcomes}
    found = by_name["expect_column_values_to_be_between(offset_days)"]
    assert (found.n_unexpected, found.expected) == (1, "at least 1.0")
    assert found.observed == "1 of 2 rows do not fit"
    assert '"offset_days": 0' in str(found.sample)
    good = by_name["expect_column_values_to_not_be_null(offset_days)"]
    assert (good.success, good.sample) == (True, None)


def test_arrays_become_numbers(spark_engine: SparkSession) -> None:
    rows = [([3.0, 4.0], 1), ([math.nan, 1.0], 2), ([None, math.inf], 3), ([], 4), (None, 5)]
    df = spark_engine.createDataFrame(rows, "embedding array<float>, n int")
    found = {row["n"]: row for row in without_arrays(df, [ITEM_EMBEDDINGS.schema["embedding"]]).collect()}
    assert [found[n]["embedding_length"] for n in range(1, 6)] == [2, 2, 2, 0, None]
    assert [found[n]["embedding_n_bad"] for n in range(1, 6)] == [0, 1, 2, 0, 0]
    assert found[1]["embedding_norm"] == 5.0
    assert found[4]["embedding_norm"] == 0.0
