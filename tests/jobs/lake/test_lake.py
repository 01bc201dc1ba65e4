"""The same conformance suite on every engine: Sail, and Apache Spark with delta-spark."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import deltalake
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DateType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    StringType,
    StructType,
    TimestampType,
)

from jobs.lake.care import compact, forget_history, restore, vacuum
from jobs.lake.delta_files import _file_batches, arrow_batches
from jobs.lake.lake import ConcurrentWriteError, Lake
from jobs.lake.predicates import TableError, predicate_sql
from jobs.ownership.lease import LeaseLostError
from schemas import METRICS, Table, column

DAY = date(2017, 3, 4)
NEXT = DAY + timedelta(days=1)

EVERY_TYPE = Table(
    name="every_type",
    comment="One column of each type that the project uses.",
    schema=StructType(
        [
            column("id", LongType(), "Key."),
            column("name", StringType(), "Text.", nullable=True),
            column("count", IntegerType(), "A small number."),
            column("share", DoubleType(), "A fraction.", nullable=True),
            column("is_good", BooleanType(), "A claim.", nullable=True),
            column("seen_ts", TimestampType(), "A moment.", nullable=True),
            column("picture", BinaryType(), "Bytes.", nullable=True),
            column("vector", ArrayType(FloatType()), "Floats."),
            column("ds", DateType(), "Day."),
        ]
    ),
    key=("id",),
    partition_by=("ds",),
    checks=(("count_not_negative", "count >= 0"),),
)


LATER = column("later", StringType(), "Declared later.", nullable=True)


def row(key: int, ds: date = DAY, **other: Any) -> dict[str, Any]:
    return {
        "id": key,
        "name": f"name {key}",
        "count": key,
        "share": key / 4,
        "is_good": True,
        "seen_ts": datetime(2017, 3, 4, 23, 59, 59, 123456, tzinfo=UTC),
        "picture": b"\x00\xff",
        "vector": [float(key), 0.5],
        "ds": ds,
        **other,
    }


def frame(spark: SparkSession, *rows: dict[str, Any]) -> DataFrame:
    types = [("vector", pa.list_(pa.float32())), ("seen_ts", pa.timestamp("us", "UTC")), ("picture", pa.binary())]
    table = pa.Table.from_pylist(list(rows))
    for name, dtype in types:
        if name in table.column_names:
            at = table.column_names.index(name)
            table = table.set_column(at, name, table.column(name).cast(dtype))
    return spark.createDataFrame(table)


def contents(lake: Lake, table: Table = EVERY_TYPE) -> list[tuple[object, ...]]:
    return [tuple(r) for r in lake.read(table).orderBy(*table.key).collect()]


def test_types_and_nulls_come_back_as_written(engine_lake: Lake) -> None:
    empty: dict[str, Any] = {"name": None, "share": None, "is_good": None, "seen_ts": None, "picture": None}
    rows = [row(1), row(2, vector=[]), row(3, **empty)]
    assert engine_lake.replace(frame(engine_lake.spark, *rows), EVERY_TYPE, {"ds": DAY}) == 3
    found = {r["id"]: r.asDict() for r in engine_lake.read(EVERY_TYPE).collect()}
    assert found[1]["seen_ts"] == datetime(
        2017, 3, 4, 23, 59, 59, 123456
    )  # collected in UTC, whatever the machine's zone
    assert bytes(found[1]["picture"]) == b"\x00\xff"
    assert (found[1]["name"], found[1]["count"], found[1]["share"]) == ("name 1", 1, 0.25)
    assert (list(found[1]["vector"]), list(found[2]["vector"])) == ([1.0, 0.5], [])
    assert all(found[3][name] is None for name in empty)
    read = engine_lake.read(EVERY_TYPE).schema
    assert [(f.name, f.dataType.simpleString()) for f in read] == [
        (f.name, f.dataType.simpleString()) for f in EVERY_TYPE.schema
    ]


def test_a_moment_with_an_offset_is_stored_as_utc(engine_lake: Lake) -> None:
    df = frame(engine_lake.spark, row(1)).withColumn("seen_ts", F.to_timestamp(F.lit("2017-03-04T01:30:00+02:00")))
    engine_lake.replace(df, EVERY_TYPE, {"ds": DAY})
    [found] = engine_lake.read(EVERY_TYPE).collect()
    assert found["seen_ts"] == datetime(2017, 3, 3, 23, 30)
    [batch] = arrow_batches(engine_lake.path(EVERY_TYPE), columns=["seen_ts"])
    assert batch.column(0)[0].as_py() == datetime(2017, 3, 3, 23, 30, tzinfo=UTC)


def test_replace_changes_one_partition_and_running_twice_equals_once(engine_lake: Lake) -> None:
    spark = engine_lake.spark
    engine_lake.replace(frame(spark, row(1)), EVERY_TYPE, {"ds": DAY})
    engine_lake.replace(frame(spark, row(2, NEXT), row(3, NEXT)), EVERY_TYPE, {"ds": NEXT})
    once = contents(engine_lake)
    engine_lake.replace(frame(spark, row(2, NEXT), row(3, NEXT)), EVERY_TYPE, {"ds": NEXT})
    assert contents(engine_lake) == once
    engine_lake.replace(frame(spark, row(9)), EVERY_TYPE, {"ds": DAY})
    assert [r[0] for r in contents(engine_lake)] == [2, 3, 9]


def test_replace_of_several_days_at_once_and_with_no_row(engine_lake: Lake) -> None:
    spark = engine_lake.spark
    later = NEXT + timedelta(days=1)
    first = frame(spark, row(1), row(2, NEXT), row(3, later))
    engine_lake.replace(first, EVERY_TYPE, {"ds": [DAY, NEXT, later]})
    engine_lake.replace(frame(spark, row(4, NEXT)), EVERY_TYPE, {"ds": [DAY, NEXT]})
    assert [r[0] for r in contents(engine_lake)] == [3, 4]  # DAY held a row and now holds none
    assert engine_lake.replace(frame(spark, row(5, later)).where("id > 5"), EVERY_TYPE, {"ds": later}) == 0
    assert [r[0] for r in contents(engine_lake)] == [4]


def test_a_row_outside_the_replaced_partition_is_refused(engine_lake: Lake) -> None:
    engine_lake.replace(frame(engine_lake.spark, row(1)), EVERY_TYPE, {"ds": DAY})
    before = contents(engine_lake)
    with pytest.raises(TableError, match=r"table every_type: row outside ds = 2017-03-04: 2017-03-05"):
        engine_lake.replace(frame(engine_lake.spark, row(1), row(2, NEXT)), EVERY_TYPE, {"ds": DAY})
    assert contents(engine_lake) == before


def test_new_rows_within_less_than_they_replace(engine_lake: Lake) -> None:
    spark = engine_lake.spark
    both_days = {"ds": [DAY, NEXT]}
    engine_lake.replace(frame(spark, row(1), row(2, NEXT)), EVERY_TYPE, both_days)
    engine_lake.replace(frame(spark, row(3, NEXT)), EVERY_TYPE, both_days, within={"ds": NEXT, "id": [3, 4]})
    assert [r[0] for r in contents(engine_lake)] == [3]  # DAY is replaced, too, by nothing
    with pytest.raises(TableError, match=r"table every_type: row outside ds = 2017-03-05: 2017-03-04"):
        engine_lake.replace(frame(spark, row(5)), EVERY_TYPE, both_days, within={"ds": NEXT})
    with pytest.raises(TableError, match=r"table every_type: row outside id = \[3, 4\]: 5"):
        engine_lake.replace(frame(spark, row(5, NEXT)), EVERY_TYPE, both_days, within={"id": [3, 4]})
    assert [r[0] for r in contents(engine_lake)] == [3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": "seven"}, "table every_type, column count: expected int, got string"),
        ({"count": 2**31}, "table every_type, column count: expected int, got 2147483648"),
        ({"share": "x"}, "table every_type, column share: expected double, got string"),
        ({"is_good": 1}, "table every_type, column is_good: expected boolean, got bigint"),
        ({"id": None, "count": 1}, "table every_type, column id: null is not allowed"),
        ({"count": -1}, "table every_type: .*count_not_negative"),
        ({"more": 1}, r"table every_type: missing columns \[\], unknown columns \['more'\]"),
    ],
)
def test_what_does_not_fit_is_refused(engine_lake: Lake, change: dict[str, Any], message: str) -> None:
    engine_lake.replace(frame(engine_lake.spark, row(1)), EVERY_TYPE, {"ds": DAY})
    before = contents(engine_lake)
    bad = frame(engine_lake.spark, row(1, **change))
    if change.get("id", 1) is None:
        bad = frame(engine_lake.spark, row(1)).withColumn("id", F.lit(None).cast("bigint"))
    with pytest.raises(TableError, match=message):
        engine_lake.replace(bad, EVERY_TYPE, {"ds": DAY})
    with pytest.raises(TableError, match=message):
        engine_lake.append(bad, EVERY_TYPE)
    assert contents(engine_lake) == before


def test_a_missing_column_is_refused_by_name(engine_lake: Lake) -> None:
    with pytest.raises(TableError, match=r"table every_type: missing columns \['vector'\]"):
        engine_lake.append(frame(engine_lake.spark, row(1)).drop("vector"), EVERY_TYPE)


def test_concurrent_appends_and_disjoint_replaces_lose_nothing(engine_lake: Lake) -> None:
    spark, errors = engine_lake.spark, []
    engine_lake.create(EVERY_TYPE)

    def write(key: int) -> None:
        try:
            engine_lake.append(frame(spark, row(key)), EVERY_TYPE)
            ds = NEXT + timedelta(days=key)
            engine_lake.replace(frame(spark, row(100 + key, ds)), EVERY_TYPE, {"ds": ds})
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(key,)) for key in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [r[0] for r in contents(engine_lake)] == [0, 1, 2, 3, 100, 101, 102, 103]


def test_two_writers_of_one_partition_leave_one_whole_result(engine_lake: Lake) -> None:
    spark, errors = engine_lake.spark, []
    engine_lake.create(EVERY_TYPE)

    def write(name: str) -> None:
        try:
            rows = [row(key, name=name) for key in range(20)]
            engine_lake.replace(frame(spark, *rows), EVERY_TYPE, {"ds": DAY}, is_retried=False)
        except ConcurrentWriteError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = contents(engine_lake)
    assert len(errors) <= 1
    assert len(rows) == 20
    assert len({r[1] for r in rows}) == 1  # never a mixture


def test_time_travel_history_and_restore(engine_lake: Lake) -> None:
    spark = engine_lake.spark
    assert engine_lake.version(EVERY_TYPE) is None
    assert engine_lake.read(EVERY_TYPE).count() == 0
    engine_lake.append(frame(spark, row(1)), EVERY_TYPE)
    old = engine_lake.version(EVERY_TYPE)
    assert old is not None
    engine_lake.append(frame(spark, row(2)), EVERY_TYPE)
    assert [r["id"] for r in engine_lake.read(EVERY_TYPE, version=old).collect()] == [1]
    assert engine_lake.history(EVERY_TYPE)[0]["version"] == engine_lake.version(EVERY_TYPE)
    restore(engine_lake, EVERY_TYPE, old)
    assert [r[0] for r in contents(engine_lake)] == [1]
    with pytest.raises(TableError, match="cannot restore version 99"):
        restore(engine_lake, EVERY_TYPE, 99)


def test_an_append_commits_as_many_rows_as_its_caller_counted(engine_lake: Lake) -> None:
    lake, spark = engine_lake, engine_lake.spark
    rows = [tuple(row(key)[name] for name in EVERY_TYPE.columns) for key in (1, 2)]
    lake.append_rows(rows, EVERY_TYPE)  # counts its rows itself
    before = lake.version(EVERY_TYPE)
    lossy = frame(spark, row(3), row(4), row(5)).where("id <> 4")
    with pytest.raises(TableError, match=rf"table every_type: expected 3 rows .* after version {before}, got 2: .*run"):
        lake.append(lossy, EVERY_TYPE, expected_rows=3)
    lake.append(lossy, EVERY_TYPE, expected_rows=2)
    # Another writer commits one row between the look at the version and the own commit of two rows.
    late = dataclasses.replace(lake, may_write=lambda: lake.append(frame(spark, row(6)), EVERY_TYPE))
    late.append(lossy, EVERY_TYPE, expected_rows=2)
    with pytest.raises(TableError, match=r"table every_type: expected 3 rows .*, got 2, 1: "):
        late.append(lossy, EVERY_TYPE, expected_rows=3)
    lake.append(lossy.where("id < 0"), EVERY_TYPE, expected_rows=0)


def test_compaction_keeps_rows_and_vacuum_the_rollback_horizon(spark_engine: SparkSession, tmp_path: Path) -> None:
    careful = Lake(spark_engine, str(tmp_path), rollback_days=7)
    for key in range(3):
        careful.append(frame(spark_engine, row(key)), EVERY_TYPE)
    before, version = contents(careful), careful.version(EVERY_TYPE)
    assert compact(careful, EVERY_TYPE)["numFilesRemoved"] == 3
    assert contents(careful) == before
    assert vacuum(careful, EVERY_TYPE) == []  # the replaced files are younger than seven days
    assert careful.read(EVERY_TYPE, version=version).count() == 3
    careless = Lake(spark_engine, str(tmp_path), rollback_days=0)
    assert len(vacuum(careless, EVERY_TYPE)) == 3
    assert contents(careful) == before


@pytest.mark.spark
@pytest.mark.parametrize(("first", "second"), [("sail", "apache_spark"), ("apache_spark", "sail")])
def test_each_engine_reads_and_writes_the_others_table(
    first: str, second: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    writer, other = (Lake(request.getfixturevalue(name), str(tmp_path)) for name in (first, second))
    writer.replace(frame(writer.spark, row(1), row(2)), EVERY_TYPE, {"ds": DAY})
    assert contents(other) == contents(writer)
    other.append(frame(other.spark, row(3, NEXT)), EVERY_TYPE)
    other.replace(frame(other.spark, row(4)), EVERY_TYPE, {"ds": DAY})
    assert [r[0] for r in contents(writer)] == [3, 4]
    assert contents(writer) == contents(other)
    with pytest.raises(TableError, match="count_not_negative"):
        other.append(frame(other.spark, row(5, count=-5)), EVERY_TYPE)


def test_rows_that_a_filter_leaves_out_are_not_checked(engine_lake: Lake, tmp_path: Path) -> None:
    # Sail pushed the check for nulls below the filter, through the union, and refused rows that are not written.
    spark, stored = engine_lake.spark, str(tmp_path / "staged")
    frame(spark, row(1), row(2, name=None)).write.parquet(stored)
    named = Table(
        name="named",
        comment="Text that is never null.",
        schema=StructType([column("name", StringType(), "Text."), column("ds", DateType(), "Day.")]),
        key=("name",),
        partition_by=("ds",),
    )
    rows = spark.read.parquet(stored).where("name is not null and id > 0").select("name", "ds")
    window = "row_number() over (partition by ds order by id) as position"
    later = spark.read.parquet(stored).selectExpr("*", window).where("position > 1")
    ranked = later.select(F.concat(F.lit("last of "), F.col("ds").cast("string")).alias("name"), "ds")
    assert engine_lake.replace(rows.unionByName(ranked), named, {"ds": DAY}) == 2
    assert [r["name"] for r in engine_lake.read(named).orderBy("name").collect()] == ["last of 2017-03-04", "name 1"]


def test_forgotten_history_is_gone_from_files_and_log_and_the_table_lives_on(engine_lake: Lake) -> None:
    spark = engine_lake.spark
    engine_lake.append(frame(spark, row(1, name="gone"), row(2)), EVERY_TYPE)
    version = engine_lake.version(EVERY_TYPE)
    assert version is not None
    engine_lake.delete(EVERY_TYPE, {"name": "gone"})
    forget_history(engine_lake, EVERY_TYPE)
    files = [path for path in Path(engine_lake.path(EVERY_TYPE)).rglob("*") if path.is_file()]
    assert not [path for path in files if b"gone" in path.read_bytes()]
    with pytest.raises(TableError, match="cannot restore"):
        restore(engine_lake, EVERY_TYPE, version)
    engine_lake.append(frame(spark, row(3)), EVERY_TYPE)
    engine_lake.replace(frame(spark, row(4, NEXT)), EVERY_TYPE, {"ds": NEXT})
    assert [r[0] for r in contents(engine_lake)] == [2, 3, 4]
    kept = deltalake.DeltaTable(engine_lake.path(EVERY_TYPE)).metadata().configuration
    assert kept["delta.logRetentionDuration"] == "interval 30 days"


def test_comments_constraints_and_retention_are_in_the_table_itself(engine_lake: Lake) -> None:
    engine_lake.create(EVERY_TYPE)
    table = deltalake.DeltaTable(engine_lake.path(EVERY_TYPE))
    assert table.metadata().description == EVERY_TYPE.comment
    assert table.metadata().configuration["delta.deletedFileRetentionDuration"] == "interval 14 days"
    assert table.metadata().configuration["delta.constraints.count_not_negative"] == "count >= 0"
    fields = {field.name: field for field in table.schema().fields}
    assert fields["id"].nullable is False
    assert fields["count"].metadata["comment"] == "A small number."


def test_maintenance_gives_a_table_the_horizon_that_is_configured_now(engine_lake: Lake) -> None:
    engine_lake.append(frame(engine_lake.spark, row(1)), EVERY_TYPE)
    longer = Lake(engine_lake.spark, engine_lake.root, rollback_days=45)
    vacuum(longer, EVERY_TYPE)
    kept = deltalake.DeltaTable(longer.path(EVERY_TYPE)).metadata().configuration
    assert kept["delta.deletedFileRetentionDuration"] == kept["delta.logRetentionDuration"] == "interval 45 days"
    version = longer.version(EVERY_TYPE)
    vacuum(longer, EVERY_TYPE)
    assert longer.version(EVERY_TYPE) == version
    engine_lake.append(frame(engine_lake.spark, row(2)), EVERY_TYPE)
    assert [r[0] for r in contents(longer)] == [1, 2]


def test_batches_stream_a_slice(engine_lake: Lake) -> None:
    assert list(engine_lake.batches(EVERY_TYPE)) == []
    engine_lake.append(frame(engine_lake.spark, row(1), row(2), row(3, NEXT)), EVERY_TYPE)
    batches = list(engine_lake.batches(EVERY_TYPE, columns=["id"], where={"ds": DAY, "id": [2, 3]}))
    assert [key for batch in batches for key in batch.column("id").to_pylist()] == [2]


def test_metrics_of_a_rerun_replace_those_of_the_first(engine_lake: Lake) -> None:
    engine_lake.record_metrics(DAY, "ingest", {"rows_read": 3, ("rows_bad", "null_user_id"): 1})
    engine_lake.record_metrics(DAY, "other", {"rows_read": 9})
    engine_lake.record_metrics(DAY, "ingest", {"rows_read": 4})
    assert contents(engine_lake, METRICS) == [
        ("rows_read", "", 4.0, DAY, "ingest"),
        ("rows_read", "", 9.0, DAY, "other"),
    ]


def test_delete_removes_rows_and_says_how_many(engine_lake: Lake) -> None:
    assert engine_lake.delete(EVERY_TYPE, {"id": 1}) == 0
    engine_lake.append(frame(engine_lake.spark, row(1), row(2)), EVERY_TYPE)
    assert engine_lake.delete(EVERY_TYPE, {"name": "o'ne\\'il"}) == 0
    assert engine_lake.delete(EVERY_TYPE, {"name": "name 1"}) == 1
    assert [r[0] for r in contents(engine_lake)] == [2]


def test_redacted_rows_stay_without_their_text(engine_lake: Lake) -> None:
    assert engine_lake.redact(EVERY_TYPE, ["name"], "o'neil") == 0
    engine_lake.append(frame(engine_lake.spark, row(1, name="says o'neil"), row(2)), EVERY_TYPE)
    assert engine_lake.redact(EVERY_TYPE, ["name"], "o'neil") == 1
    assert engine_lake.redact(EVERY_TYPE, ["name"], "name") == 1  # as a value of its own only
    assert [r[:2] for r in contents(engine_lake)] == [(1, "erased"), (2, "erased")]
    assert engine_lake.redact(EVERY_TYPE, ["name"], "eras") == 0


def test_a_predicate_quotes_its_values() -> None:
    assert predicate_sql({"user_id": "o'neil\\", "ds": [DAY, NEXT], "n": 3}) == (
        "user_id = 'o\\'neil\\\\' AND ds IN (DATE '2017-03-04', DATE '2017-03-05') AND n = 3"
    )
    with pytest.raises(TableError, match="predicate on ds has no value"):
        predicate_sql({"ds": []})


def test_a_table_of_an_earlier_version_gets_the_nullable_columns_that_were_declared_since(engine_lake: Lake) -> None:
    today = Table("t", "A row.", StructType([column("k", StringType(), "Key."), LATER]), ("k",))
    before = Table("t", "A row.", StructType([column("k", StringType(), "Key.")]), ("k",))
    engine_lake.append(engine_lake.spark.createDataFrame([("old",)], "k string"), before)
    assert [tuple(row) for row in engine_lake.read(today).collect()] == [("old", None)]
    engine_lake.append(engine_lake.spark.createDataFrame([("new", "x")], "k string, later string"), today)
    found = sorted(map(tuple, engine_lake.read(today).collect()))
    assert found == [("new", "x"), ("old", None)]
    engine_lake.replace(
        engine_lake.spark.createDataFrame([("old", "y")], "k string, later string"), today, {"k": "old"}
    )
    streamed = [tuple(row.values()) for batch in engine_lake.batches(today) for row in batch.to_pylist()]
    assert sorted(streamed) == [("new", "x"), ("old", "y")]


def rows_of(*keys: int) -> pa.Table:
    return pa.Table.from_pylist([row(key) for key in keys])


def test_an_extension_holds_for_the_version_that_it_follows_from(engine_lake: Lake) -> None:
    engine_lake.create(EVERY_TYPE)
    start = engine_lake.version(EVERY_TYPE)
    assert start is not None
    second = engine_lake.extend(rows_of(1), EVERY_TYPE, version=start)
    with pytest.raises(ConcurrentWriteError, match=rf"every_type: expected version {start}, got {second}"):
        engine_lake.extend(rows_of(2), EVERY_TYPE, version=start)
    assert [found["id"] for found in engine_lake.read(EVERY_TYPE).collect()] == [1]


def test_a_rewrite_streams_from_the_table_itself(engine_lake: Lake) -> None:
    engine_lake.create(EVERY_TYPE)
    start = engine_lake.version(EVERY_TYPE)
    assert start is not None
    version = engine_lake.extend(rows_of(1, 2), EVERY_TYPE, version=start)

    def doubled() -> Iterator[pa.RecordBatch]:
        for batch in engine_lake.batches(EVERY_TYPE, version=version, where={"ds": DAY}):
            at = batch.schema.get_field_index("count")
            yield batch.set_column(at, "count", pc.multiply(batch["count"], pa.scalar(2, pa.int32())))

    engine_lake.rewrite(doubled(), EVERY_TYPE, {"ds": DAY}, version=version)
    assert {found["id"]: found["count"] for found in engine_lake.read(EVERY_TYPE).collect()} == {1: 2, 2: 4}
    with pytest.raises(ConcurrentWriteError, match="expected version"):
        engine_lake.rewrite(doubled(), EVERY_TYPE, {"ds": DAY}, version=version)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": None}, "column count: null is not allowed"),
        ({"count": 2**40}, "every_type: .*Integer value"),
        ({"count": -1}, "every_type: .*count"),
    ],
)
def test_rows_in_memory_that_do_not_fit_are_refused(
    sail: SparkSession, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    lake = Lake(sail, str(tmp_path / "lake"))
    lake.create(EVERY_TYPE)
    version = lake.version(EVERY_TYPE)
    assert version is not None
    with pytest.raises(TableError, match=message):
        lake.extend(pa.Table.from_pylist([row(1, **change)]), EVERY_TYPE, version=version)
    with pytest.raises(TableError, match="expected columns"):
        lake.extend(rows_of(1).drop_columns("vector"), EVERY_TYPE, version=version)
    assert lake.version(EVERY_TYPE) == version


def test_a_table_with_other_rows_than_were_written_is_named(sail: SparkSession, tmp_path: Path) -> None:
    lake = Lake(sail, str(tmp_path / "lake"))
    rows = frame(sail, row(1), row(2))
    assert lake.replace(rows, EVERY_TYPE, {"ds": DAY}, expected_rows=2) == 2
    with pytest.raises(TableError, match="every_type, ds = DATE '2017-03-04': expected 3 rows after the write, got 2"):
        lake.replace(rows, EVERY_TYPE, {"ds": DAY}, expected_rows=3)


def test_the_engine_says_how_many_rows_it_wrote(engine_lake: Lake) -> None:
    engine_lake.replace(frame(engine_lake.spark, row(1), row(2)), EVERY_TYPE, {"ds": DAY})
    before = engine_lake.version(EVERY_TYPE)
    engine_lake.replace(frame(engine_lake.spark, row(3)), EVERY_TYPE, {"ds": DAY})
    assert engine_lake._n_written(EVERY_TYPE, {"ds": DAY}, before) == 1
    assert engine_lake._n_written(EVERY_TYPE, {"name": "name 3"}, before) is None  # other rows of the file count, too


def test_a_process_that_may_not_write_changes_nothing(sail: SparkSession, tmp_path: Path) -> None:
    lake = Lake(sail, str(tmp_path / "lake"))
    lake.replace(frame(sail, row(1)), EVERY_TYPE, {"ds": DAY})
    version = lake.version(EVERY_TYPE)
    assert version is not None

    def lost() -> None:
        raise LeaseLostError("the lease was taken over")

    late = dataclasses.replace(lake, may_write=lost)
    writes: list[Callable[[], object]] = [
        lambda: late.replace(frame(sail, row(2)), EVERY_TYPE, {"ds": DAY}),
        lambda: late.append(frame(sail, row(2)), EVERY_TYPE),
        lambda: late.extend(rows_of(2), EVERY_TYPE, version=version),
        lambda: late.rewrite(iter(()), EVERY_TYPE, {"ds": DAY}, version=version),
        lambda: late.create(METRICS),
        lambda: late.delete(EVERY_TYPE, {"id": 1}),
        lambda: late.redact(EVERY_TYPE, ["name"], "name 1"),
        lambda: restore(late, EVERY_TYPE, 0),
        lambda: compact(late, EVERY_TYPE),
        lambda: vacuum(late, EVERY_TYPE),
        lambda: forget_history(late, EVERY_TYPE),
    ]
    for write in writes:
        with pytest.raises(LeaseLostError):
            write()
    assert lake.version(EVERY_TYPE) == version
    assert lake.version(METRICS) is None


@pytest.mark.parametrize("content", [b"", b'{"add":{"path"', b"\x00" * 200])
def test_a_damaged_log_is_one_error_that_names_the_table(sail: SparkSession, tmp_path: Path, content: bytes) -> None:
    lake = Lake(sail, str(tmp_path / "lake"))
    lake.replace(frame(sail, row(1)), EVERY_TYPE, {"ds": DAY})
    newest = max((tmp_path / "lake" / "every_type" / "_delta_log").glob("*.json"))
    newest.write_bytes(content)
    with pytest.raises(TableError, match=r"table every_type: the log .*every_type/_delta_log cannot be read"):
        lake.read(EVERY_TYPE).collect()


def test_a_page_whose_checksum_is_wrong_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """Apache Spark writes checksums, as pyarrow does here; Sail and deltalake write none."""
    file = tmp_path / "rows.parquet"
    rows = pa.table({"name": ["name 1"]})
    # without statistics, so that the value stands in the page alone
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
    pq.write_table(rows, file, write_page_checksum=True, **plain)

    def read() -> list[pa.RecordBatch]:
        [fragment] = pads.dataset(file).get_fragments()
        return list(_file_batches(fragment, rows.schema))

    assert read() == rows.to_batches()
    content = bytearray(file.read_bytes())
    content[content.index(b"name 1")] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(TableError, match=r"file .*rows\.parquet of a table cannot be read: .*CRC"):
        read()
