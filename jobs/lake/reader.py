"""Small slices of the tables, read in this process without an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from jobs.config.sections import Deployment
from jobs.lake.delta_files import arrow_batches, last_write, newest_commit, table_path, table_version
from jobs.lake.predicates import Predicate
from schemas import Table


@dataclass(frozen=True)
class LakeReader:
    """Reads slices of a deployment's tables; starts no engine."""

    root: str

    def batches(
        self, table: Table, *, columns: Sequence[str] | None = None, where: Predicate | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Arrow batches of a slice; none if the table does not exist yet."""
        path = table_path(self.root, table)
        if table_version(path) is not None:
            yield from arrow_batches(path, columns=columns, where=where)

    def rows(
        self, table: Table, *, columns: Sequence[str] | None = None, where: Predicate | None = None
    ) -> list[dict[str, Any]]:
        """Rows of a slice; none if the table does not exist yet."""
        return [row for batch in self.batches(table, columns=columns, where=where) for row in batch.to_pylist()]

    def path(self, table: Table) -> str:
        """Folder of a table."""
        return table_path(self.root, table)

    def newest_commit(self, table: Table) -> dict[str, Any] | None:
        """Newest commit of a table, with ``version`` and ``timestamp``; None if the table does not exist yet."""
        return newest_commit(self.path(table))

    def last_write(self, table: Table) -> datetime | None:
        """When rows were last written to a table, UTC; None before the first time."""
        return last_write(table_path(self.root, table))


def lake_reader(deployment: Deployment) -> LakeReader:
    """Reader of a deployment's tables."""
    return LakeReader(deployment.paths.lake)
