"""Checks that the basis is numbered as readers of its matrix assume, and restores the newest version that is."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.errors import PySparkException
from pyspark.sql import functions as F

from jobs.basis.basis import BasisError
from jobs.lake.care import restore
from jobs.lake.lake import Lake
from schemas import ITEM_EMBEDDINGS


@dataclass(frozen=True)
class Repair:
    """What :func:`repair_basis` did; the versions are equal where the basis was good.

    Attributes:
        from_version: Version of item_embeddings before the repair.
        to_version: Version whose rows the table holds now.
        n_rows_before: Rows before the repair.
        n_rows_after: Rows after the repair.
        problem: What was wrong; empty if nothing was wrong.
    """

    from_version: int
    to_version: int
    n_rows_before: int
    n_rows_after: int
    problem: str

    def __str__(self) -> str:
        if not self.problem:
            return f"table item_embeddings, version {self.from_version}: {self.n_rows_before} rows, nothing to repair"
        return (
            f"{self.problem}: version {self.from_version} with {self.n_rows_before} rows was damaged. The table holds "
            f"the {self.n_rows_after} rows of version {self.to_version} again. Run `embed_items` for the items that "
            "are missing, then the jobs after it for every day that ran on the damaged version"
        )


@dataclass(frozen=True)
class Numbering:
    """How many rows, items and numbers one basis has; all four are equal where the numbering is good."""

    basis_version: str
    rows: int
    items: int
    indices: int
    end: int

    def problem(self) -> str:
        """What is wrong with the numbering; empty if the numbering is good."""
        if self.rows == self.items == self.indices == self.end:
            return ""
        return (
            f"table item_embeddings, basis_version {self.basis_version}: expected as many item ids and as many indices "
            f"as rows, got {self.rows} rows, {self.items} item ids, {self.indices} indices below {self.end}"
        )


def numberings(lake: Lake, version: int | None = None) -> list[Numbering]:
    """The numbering of every basis in a version of the table; the newest version by default."""
    found = (
        lake.read(ITEM_EMBEDDINGS, version=version)
        .groupBy("basis_version")
        .agg(
            F.count("*").alias("rows"),
            F.countDistinct("item_id").alias("items"),
            F.countDistinct("item_index").alias("indices"),
            (F.max("item_index") + 1).alias("end"),
        )
    )
    return [Numbering(**row.asDict()) for row in sorted(found.collect())]


def numbering_of(lake: Lake, basis_version: str, version: int | None = None) -> Numbering:
    """The numbering of one basis.

    Raises:
        BasisError: The numbering has a gap or a repetition.
    """
    every = {each.basis_version: each for each in numberings(lake, version)}
    found = every.get(basis_version, Numbering(basis_version, 0, 0, 0, 0))
    if problem := found.problem():
        raise BasisError(
            f"{problem} (version {version if version is not None else lake.version(ITEM_EMBEDDINGS)}): "
            "`lte repair` restores the last good version"
        )
    return found


def repair_basis(lake: Lake) -> Repair:
    """Restore the newest version of item_embeddings whose numbering is good; a good table stays as it is.

    Raises:
        BasisError: The table does not exist, or every version that can still be read is damaged.
    """
    newest = lake.version(ITEM_EMBEDDINGS)
    if newest is None:
        raise BasisError("table item_embeddings: not written yet, so there is nothing to repair")
    before = numberings(lake, newest)
    n_before = sum(each.rows for each in before)
    problem = "; ".join(filter(None, (each.problem() for each in before)))
    if not problem:
        return Repair(newest, newest, n_before, n_before, "")
    for version in range(newest - 1, -1, -1):
        try:
            found = numberings(lake, version)
        except PySparkException:  # vacuumed, or its log entries are gone
            continue
        if found and not any(each.problem() for each in found):
            restore(lake, ITEM_EMBEDDINGS, version)
            return Repair(newest, version, n_before, sum(each.rows for each in found), problem)
    raise BasisError(
        f"{problem}; no earlier version of the table is good and still there: delete the folder of item_embeddings and "
        "run embed_items, which encodes the whole catalogue anew"
    )
