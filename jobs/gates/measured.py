"""A few measured values with the limits that they must keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import great_expectations.expectations as gxe
from great_expectations.expectations.expectation import Expectation
from pyspark.sql import DataFrame

AUTOENCODER = "autoencoder"

# Quantiles of cosines are taken over users whose LTE one interaction cannot turn.
ACTIVE_ITEMS = 20
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Measured:
    """One frame of one row for the gates.

    Attributes:
        table: Table that was measured.
        label: What of it: method/window, say; empty for the whole table.
        values: Name to value; None where there is nothing to compare with.
        limits: What the values must keep.
        skipped: Name of each value that is None to the reason.
        rows: Name of a value to rows that show why it is what it is, read only when its gate fails.
    """

    table: str
    label: str
    values: Mapping[str, float | None]
    limits: tuple[Limit, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Callable[[], DataFrame]] = field(default_factory=dict)


def one_a_label(measured: Iterable[Measured]) -> list[Measured]:
    """Put measures of one table and label into one: a frame has one page, and the autoencoder's slice two measures."""
    found: dict[tuple[str, str], Measured] = {}
    for each in measured:
        before = found.get((each.table, each.label))
        found[each.table, each.label] = each if before is None else _both(before, each)
    return list(found.values())


def _both(first: Measured, second: Measured) -> Measured:
    return Measured(
        table=first.table,
        label=first.label,
        values={**first.values, **second.values},
        limits=first.limits + second.limits,
        skipped={**first.skipped, **second.skipped},
        rows={**first.rows, **second.rows},
    )


@dataclass(frozen=True)
class Limit:
    """A limit of one measured value.

    Attributes:
        column: Name of the value.
        minimum: Smallest value that passes.
        maximum: Largest value that passes.
        setting: Where the limit comes from.
    """

    column: str
    minimum: float | None = None
    maximum: float | None = None
    setting: str = ""

    def expectation(self) -> Expectation:
        """For a frame of one row; NaN fails."""
        if self.minimum is None:
            return gxe.ExpectColumnMaxToBeBetween(column=self.column, max_value=self.maximum, notes=self.setting)
        return gxe.ExpectColumnMinToBeBetween(column=self.column, min_value=self.minimum, notes=self.setting)
