"""A few measured values with their limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import great_expectations.expectations as gxe
from great_expectations.expectations.expectation import Expectation
from pyspark.sql import DataFrame

from jobs.config.sections import GatesSection

AUTOENCODER = "autoencoder"

# Quantiles of cosines are taken over users with many items: one interaction hardly turns the LTE of such a user.
ACTIVE_ITEMS = 20
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Measured:
    """One frame of one row for the gates.

    Attributes:
        table: Table that was measured.
        label: Measured part of the table, for example method/window; empty for the whole table.
        values: Name to value; None when there is nothing to compare with.
        limits: Limits of the values.
        skipped: Name of each value that is None to the reason.
        rows: Name of a value to rows that explain the value. The rows are read only when the gate of the value fails.
    """

    table: str
    label: str
    values: Mapping[str, float | None]
    limits: tuple[Limit, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Callable[[], DataFrame]] = field(default_factory=dict)


def one_a_label(measured: Iterable[Measured]) -> list[Measured]:
    """Merge measures with the same table and label.

    Each frame has one page, and the slice of the autoencoder is measured twice.
    """
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


# Measured value to the setting of [gates] that limits the value. min_… is a smallest value, max_… a largest value.
SETTINGS = {
    "unembedded_share": "max_unembedded_share",
    "volume_share": "min_volume_share",
    "volume_excess": "max_volume_share",
    "event_age_days": "max_event_age_days",
    "n_users": "min_users",
    "users_lost_share": "max_users_lost_share",
    "users_change_share": "max_users_change_share",
    "unknown_share": "max_unknown_share",
    "zero_share": "max_zero_share",
    "n_bound_violations": "max_bound_violations",
    "cosine_p01": "min_cosine_p01",
    "drift_p99": "max_drift_p99",
    "autoencoder_cosine_p01": "min_autoencoder_cosine_p01",
    "autoencoder_drift_p99": "max_autoencoder_drift_p99",
    "autoencoder_uniform_cosine_p50": "min_autoencoder_uniform_cosine_p50",
}


def limits_of(gates: GatesSection, *columns: str) -> tuple[Limit, ...]:
    """The configured limits of measured values.

    Args:
        gates: Limits.
        columns: Names of values, keys of ``SETTINGS``.
    """
    found = []
    for column in columns:
        name = SETTINGS[column]
        side = "minimum" if name.startswith("min_") else "maximum"
        found.append(Limit(column, setting=f"gates.{name}", **{side: getattr(gates, name)}))
    return tuple(found)


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
        """Expectation of the limit for a frame of one row; NaN fails."""
        if self.minimum is None:
            return gxe.ExpectColumnMaxToBeBetween(column=self.column, max_value=self.maximum, notes=self.setting)
        return gxe.ExpectColumnMinToBeBetween(column=self.column, min_value=self.minimum, notes=self.setting)
