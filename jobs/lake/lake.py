"""All Delta I/O, on every engine; the only module that knows Delta (ADR 0002).

Every write goes through :meth:`Lake.replace` or :meth:`Lake.append`, which cast by name to the declared schema and
refuse rows that do not fit. Engines differ in what they check: Sail stores a string in a long column, and rows
outside a ``replaceWhere``, without an error. The checks are part of the write's own plan, so that data are computed
once and a refused write leaves the table as it was.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import deltalake
import pyarrow as pa
from deltalake.exceptions import CommitFailedError, DeltaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.config.addresses import is_url
from jobs.config.sections import Deployment
from jobs.lake.conform import arrow_schema, conformed, fitted, later_columns
from jobs.lake.delta_files import (
    _delta,
    ahead,
    arrow_batches,
    delta_schema,
    engine_folder,
    retention,
    table_path,
    table_version,
)
from jobs.lake.engine.sessions import spark_session
from jobs.lake.predicates import Predicate, TableError, _delta_text, predicate_sql, standing_alone
from jobs.ownership.lease import hold_lease
from jobs.ownership.mark import require_own_lake
from schemas import METRICS, Table

# A job's metrics of one ds: ``name`` or ``(name, label)`` to value.
Metrics = dict[str | tuple[str, str], float]

# Words of both engines for "another writer committed first".
CONFLICT_WORDS = ("Failed to commit transaction", "ConcurrentAppend", "DELTA_CONCURRENT", "ConcurrentDelete")
REFUSAL_WORDS = ("CONSTRAINT_VIOLATED", "DELTA_VIOLATE_CONSTRAINT")
MAX_ATTEMPTS = 8

# Sail holds each file that it writes in memory up to this size; Apache Spark writes each row group when it is full.
FILE_OPTIONS = {"targetFileSize": str(32 << 20)}
RETRY_SECONDS = 0.25


class ConcurrentWriteError(RuntimeError):
    """Another writer changed the same rows; no row of this write is visible, and the write can be tried again."""


@contextmanager
def _write_errors(table: Table) -> Iterator[None]:
    """Turn the engines' errors into this project's errors, without stack traces."""
    try:
        yield
    except PySparkException as error:
        text = str(error).split("JVM stacktrace")[0].strip()
        if any(word in text for word in CONFLICT_WORDS):
            raise ConcurrentWriteError(f"table {table.name}: another writer was faster: {text[:200]}") from error
        # Our own refusal may come wrapped, by raise_error or by a Python worker that asked for the rows.
        refusal = re.search(rf"table {table.name}[,:] .*?(?= SQLSTATE|\n|$)", text)
        if refusal:
            raise TableError(refusal[0]) from error
        if any(word in text for word in REFUSAL_WORDS):
            raise TableError(f"table {table.name}: {' '.join(text.split())}") from error
        raise


def _anybody() -> None:
    """Allow every write: for a test or a benchmark, which is the only writer of its lake."""


def _nobody() -> None:
    raise TableError("the lake was opened for reading: nothing is written; open it with is_reading=False")


# A commit that is not retried after another writer's commit, because it fits only the version it was computed from.
ONE_ATTEMPT = deltalake.CommitProperties(max_commit_retries=0)


@contextmanager
def _commit_errors(table: Table) -> Iterator[None]:
    """Turn errors of the deltalake package into this project's errors."""
    try:
        yield
    except CommitFailedError as error:
        raise ConcurrentWriteError(
            f"table {table.name}: another process committed meanwhile; nothing was written, run the job again: {error}"
        ) from error
    except DeltaError as error:
        raise TableError(f"table {table.name}: {' '.join(str(error).split())[:500]}") from error


@dataclass(frozen=True)
class Lake:
    """The Delta tables of one deployment.

    Attributes:
        spark: Session of any engine.
        root: Folder or URI under which every table has its folder.
        rollback_days: How long replaced files stay readable; vacuum keeps younger files.
        may_write: Called before each write; raises if this process must not write, see :func:`open_lake`.
        engine_root: ``root`` as the engine reads it, see :func:`jobs.lake.delta_files.engine_folder`; empty where both
            are the same.
    """

    spark: SparkSession
    root: str
    rollback_days: int = 14
    may_write: Callable[[], object] = _anybody
    engine_root: str = ""

    def path(self, table: Table) -> str:
        """Folder of ``table``."""
        return table_path(self.root, table)

    def for_engine(self, place: str) -> str:
        """A place under ``root`` as the engine reads it.

        Args:
            place: Folder relative to ``root``.
        """
        return f"{(self.engine_root or self.root).rstrip('/')}/{place}"

    def version(self, table: Table) -> int | None:
        """Newest version of ``table``; None if nothing was written yet."""
        return table_version(self.path(table))

    def read(self, table: Table, *, version: int | None = None, where: Predicate | None = None) -> DataFrame:
        """Read a table; a table that nobody wrote yet is empty.

        Args:
            table: Which table.
            version: Delta version for time travel; the newest by default.
            where: Column to value, or to several values.

        Raises:
            TableError: The table on disk has other columns than the declaration.
        """
        if self.version(table) is None:
            return self.spark.createDataFrame([], table.row_type())
        reader = self.spark.read.format("delta")
        df = (reader if version is None else reader.option("versionAsOf", version)).load(self.for_engine(table.name))
        for field in later_columns(table, df.columns):
            df = df.withColumn(field.name, F.lit(None).cast(field.dataType))
        if set(df.columns) != set(table.columns):
            raise TableError(
                f"table {table.name}: expected columns {table.columns}, got {df.columns} on disk: read the table with "
                "the version of this code that wrote it"
            )
        df = df.select(*table.columns)
        return df.where(predicate_sql(where)) if where else df

    def batches(
        self,
        table: Table,
        *,
        columns: Sequence[str] | None = None,
        where: Predicate | None = None,
        version: int | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Stream rows as Arrow record batches in bounded memory; no batch if the table does not exist yet."""
        if self.version(table) is not None:
            yield from arrow_batches(self.path(table), version=version, columns=columns, where=where)

    def create(self, table: Table) -> None:
        """Create the table with its types, comments, constraints and retention, unless it exists.

        A table of an earlier version of this code gets the nullable columns that were declared later.
        """
        if self.version(table) is None:
            self._create(table, "ignore")
            return
        delta = _delta(self.path(table))
        later = later_columns(table, [field.name for field in delta.schema().fields])
        if later:
            self.may_write()
            schema = delta_schema(later)
            delta.alter.add_columns(list(schema.fields))

    def renew(self, table: Table) -> None:
        """Empty a table that an earlier version of this code wrote with other columns; its history stays.

        Use it only for rows that a job can make again.
        """
        if self.version(table) is None:
            return
        found = {field.name for field in _delta(self.path(table)).schema().fields}
        if found != set(table.columns):
            self._create(table, "overwrite")

    def _create(self, table: Table, mode: Literal["ignore", "overwrite"]) -> None:
        self.may_write()
        if not is_url(self.root):
            Path(self.root).mkdir(parents=True, exist_ok=True)
        delta = deltalake.DeltaTable.create(
            self.path(table),
            schema=delta_schema(table.schema),
            mode=mode,
            partition_by=list(table.partition_by) or None,
            name=table.name,
            description=table.comment,
            configuration=retention(self.rollback_days),
        )
        for name, condition in table.checks:
            self._add_check(delta, name, condition)

    def _add_check(self, delta: deltalake.DeltaTable, name: str, condition: str) -> None:
        try:
            delta.alter.add_constraint({name: condition})
        except DeltaError:
            delta.update_incremental()
            if f"delta.constraints.{name}" not in delta.metadata().configuration:
                raise

    def append(self, df: DataFrame, table: Table, *, expected_rows: int | None = None) -> None:
        """Add rows.

        Args:
            df: The new rows.
            table: Which table.
            expected_rows: Number of rows of ``df``, if the caller knows it.

        Raises:
            TableError: Rows or columns do not fit the declaration, or the engine committed another number of rows.
            ConcurrentWriteError: Other writers won every attempt.
        """
        self.create(table)
        before = self.version(table)
        self._committed(conformed(df, table), table, {})
        if before is not None and expected_rows is not None:
            self._require_appended(table, before, expected_rows)

    def _require_appended(self, table: Table, before: int, expected: int) -> None:
        """Refuse an append whose commit holds another number of rows; see ``expected_rows`` of :meth:`append`.

        Other writers may commit after version ``before``, too. The log does not say whose a commit is, so one of the
        commits must hold the expected number.
        """
        newest = self.version(table) or before
        commits = self.history(table, newest - before)
        found = [each["operationMetrics"].get("numOutputRows") for each in commits if "operationMetrics" in each]
        reported = [int(n_rows) for n_rows in found if n_rows is not None]  # deltalake's own commits do not report it
        if reported and expected not in reported:
            raise TableError(
                f"table {table.name}: expected {expected} rows in a commit after version {before}, got "
                f"{', '.join(map(str, reported))}: the rows are in the table; restore version {before} if no other job "
                "wrote the table, and run the job again"
            )

    def replace(
        self,
        df: DataFrame,
        table: Table,
        where: Predicate,
        *,
        within: Predicate | None = None,
        is_retried: bool = True,
        expected_rows: int | None = None,
    ) -> int:
        """Replace exactly the rows with these column values, atomically: running twice equals running once.

        Args:
            df: The new rows; all of them lie inside ``where``.
            table: Which table.
            where: Column to value, or to several values; all columns must match.
            within: A narrower condition that all new rows meet; it is checked. A partition column with one value saves
                the engine a sort of all rows.
            is_retried: Whether to write again after another writer's commit. Must be False for rows that were computed
                from this table's own rows: another writer's change would be lost.
            expected_rows: Number of rows of ``df``, if the caller knows it.

        Returns:
            Number of rows inside ``where`` after the write.

        Raises:
            TableError: Rows or columns do not fit the declaration, a row lies outside ``where`` or ``within``, or the
                table does not hold as many rows as were written.
            ConcurrentWriteError: Other writers won every attempt.
        """
        self.create(table)
        rows = conformed(df, table, {**where, **(within or {})})
        options = {"replaceWhere": predicate_sql(where)}
        before = self.version(table)
        self._committed(rows, table, options, attempts=MAX_ATTEMPTS if is_retried else 1)
        n_rows = self.read(table, where=where).count()
        n_written = expected_rows if expected_rows is not None else self._n_written(table, where, before)
        if n_written not in (None, n_rows):
            raise TableError(
                f"table {table.name}, {predicate_sql(where)}: expected {n_written} rows after the write, got {n_rows}: "
                "did another process write or delete rows? Run the job again"
            )
        return n_rows

    def _n_written(self, table: Table, where: Predicate, before: int | None) -> int | None:
        """Rows that the engine reports as committed; None if the commit rewrote other rows, or is not the only one."""
        newest = self.history(table, 1)[0]
        written = newest.get("operationMetrics", {}).get("numOutputRows")
        is_own = before is not None and newest["version"] == before + 1
        return int(written) if written is not None and is_own and set(where) <= set(table.partition_by) else None

    def replace_rows(
        self, rows: Sequence[tuple[object, ...]], table: Table, where: Predicate, *, is_retried: bool = True
    ) -> int:
        """Replace rows by a few rows that this process holds, see :meth:`replace`.

        Args:
            rows: Values in the order of the table's columns.
            table: Which table.
            where: Rows to replace; all new rows lie inside.
            is_retried: See :meth:`replace`.
        """
        return self.replace(self._rows(rows, table), table, where, is_retried=is_retried, expected_rows=len(rows))

    def append_rows(self, rows: Sequence[tuple[object, ...]], table: Table) -> None:
        """Add a few rows that this process holds, see :meth:`append`; values in the order of the table's columns."""
        self.append(self._rows(rows, table), table, expected_rows=len(rows))

    def _rows(self, rows: Sequence[tuple[object, ...]], table: Table) -> DataFrame:
        return self.spark.createDataFrame(list(rows), table.row_type())

    def extend(self, rows: pa.Table, table: Table, *, version: int) -> int:
        """Add rows to exactly this version of a table; the commit fails if another commit came first.

        For rows whose values depend on the table's rows, such as consecutive numbers.

        Args:
            rows: The table's columns in any order, in memory.
            table: Which table.
            version: Version that the rows follow from.

        Returns:
            The new version.

        Raises:
            TableError: Rows or columns do not fit the declaration.
            ConcurrentWriteError: The table has another version by now.
        """
        delta = self._at(table, version)
        with _commit_errors(table):
            deltalake.write_deltalake(delta, fitted(rows, table), mode="append", commit_properties=ONE_ATTEMPT)
        return self._committed_version(table, version)

    def rewrite(self, batches: Iterator[pa.RecordBatch], table: Table, where: Predicate, *, version: int) -> int:
        """Replace rows of exactly this version of a table by a stream; the commit fails if another commit came first.

        Args:
            batches: The new rows, all inside ``where``; the table's columns in any order.
            table: Which table.
            where: Partitions that are replaced.
            version: Version that the rows follow from.

        Returns:
            The new version.

        Raises:
            TableError: Rows or columns do not fit the declaration.
            ConcurrentWriteError: The table has another version by now.
        """
        delta = self._at(table, version)
        parts = (
            part for batch in ahead(batches) for part in fitted(pa.Table.from_batches([batch]), table).to_batches()
        )
        reader = pa.RecordBatchReader.from_batches(arrow_schema(table), parts)
        predicate = predicate_sql(where, _delta_text)
        with _commit_errors(table):
            deltalake.write_deltalake(
                delta, reader, mode="overwrite", predicate=predicate, commit_properties=ONE_ATTEMPT
            )
        return self._committed_version(table, version)

    def _at(self, table: Table, version: int) -> deltalake.DeltaTable:
        self.may_write()
        delta = _delta(self.path(table))
        if delta.version() != version:
            raise ConcurrentWriteError(
                f"table {table.name}: expected version {version}, got {delta.version()}: another process wrote it "
                "meanwhile; run the job again"
            )
        return delta

    def _committed_version(self, table: Table, version: int) -> int:
        """The version that a commit on ``version`` made: the next one, because the commit had one attempt."""
        newest = self.version(table)
        assert newest is not None  # for the type checker
        return min(newest, version + 1)

    def _committed(self, rows: DataFrame, table: Table, options: dict[str, str], attempts: int = MAX_ATTEMPTS) -> None:
        mode = "overwrite" if options else "append"
        for attempt in range(1, attempts + 1):
            self.may_write()
            try:
                with _write_errors(table):
                    rows.write.format("delta").mode(mode).options(**FILE_OPTIONS, **options).save(
                        self.for_engine(table.name)
                    )
                return
            except ConcurrentWriteError:
                if attempt == attempts:
                    raise
                time.sleep(RETRY_SECONDS * attempt)

    def delete(self, table: Table, where: Predicate) -> int:
        """Delete rows; returns the number of deleted rows."""
        self.may_write()
        if self.version(table) is None:
            return 0
        done = _delta(self.path(table)).delete(predicate_sql(where, _delta_text))
        return int(done["num_deleted_rows"] or 0)

    def redact(self, table: Table, columns: Sequence[str], value: str, *, id_column: str | None = None) -> int:
        """Overwrite the text columns of rows that hold ``value`` in one of them; returns the number of such rows.

        Rows stay, because other tables count them. :func:`standing_alone` says which texts hold the value.

        Args:
            table: Declaration of the table.
            columns: Text columns.
            value: Text to search.
            id_column: Column that is null or one id. A row whose id is ``value`` counts, too, and its id becomes null.
        """
        self.may_write()
        if self.version(table) is None:
            return 0
        self.create(table)  # the table may lack columns that were declared later
        pattern = _delta_text(standing_alone(value))
        found = [f"regexp_like({column}, {pattern})" for column in columns]
        updates = dict.fromkeys(columns, "'erased'")
        if id_column:
            found.append(f"{id_column} = {_delta_text(value)}")
            updates[id_column] = "NULL"
        done = _delta(self.path(table)).update(updates=updates, predicate=" OR ".join(found))
        return int(done["num_updated_rows"] or 0)

    def record_metrics(self, ds: date, job: str, metrics: Metrics) -> None:
        """Write a job's metrics of one ds; a rerun replaces them.

        Args:
            ds: Data day.
            job: Job that measured the values.
            metrics: ``name`` or ``(name, label)`` to value.
        """
        keys = [key if isinstance(key, tuple) else (key, "") for key in metrics]
        values = [float(value) for value in metrics.values()]
        rows = [(name, label, value, ds, job) for (name, label), value in zip(keys, values, strict=True)]
        self.replace_rows(rows, METRICS, {"ds": ds, "job": job})

    def history(self, table: Table, limit: int | None = None) -> list[dict[str, Any]]:
        """Commits of a table, newest first."""
        return _delta(self.path(table)).history(limit)


@contextmanager
def open_lake(
    deployment: Deployment, app_name: str, ds: date | None = None, *, is_reading: bool = False
) -> Iterator[Lake]:
    """Open a session on the deployment's engine and its lake; both are closed at the end, also after an error.

    Args:
        deployment: Owner of the lake.
        app_name: Task or command, for the engine's logs and for other runs that find the lake held.
        ds: Data day, for other runs that find the lake held.
        is_reading: Whether the caller only reads: then the lake is not held, and other runs may write.

    Raises:
        jobs.ownership.lease.LeaseHeldError: Another run writes the lake.
        jobs.config.window.ConfigError: The lake belongs to another deployment.
    """
    root, days = deployment.paths.lake, deployment.retention.rollback_days
    # Only Sail needs the link, and the machines of a cluster do not have it.
    engine_root = engine_folder(root) if deployment.engine.master == "sail" else root
    if is_reading:
        require_own_lake(deployment)
        with spark_session(deployment.engine, app_name) as spark:
            yield Lake(spark, root, days, _nobody, engine_root)
        return
    with hold_lease(deployment, app_name, ds) as lease, spark_session(deployment.engine, app_name) as spark:
        yield Lake(spark, root, days, lease.check, engine_root)
