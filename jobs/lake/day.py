"""A data day of a deployment: what the jobs of the day share, in one value instead of four arguments."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from jobs.config.sections import Deployment
from jobs.lake.lake import Lake


@dataclass(frozen=True)
class Day:
    """A data day of a deployment.

    Attributes:
        lake: The deployment's tables.
        deployment: The deployment's settings.
        ds: The data day.
    """

    lake: Lake
    deployment: Deployment
    ds: date

    def on(self, basis_version: str) -> BasisDay:
        """The same day in a basis."""
        return BasisDay(self.lake, self.deployment, self.ds, basis_version)


@dataclass(frozen=True)
class BasisDay(Day):
    """A data day, seen through the vectors of one basis.

    Attributes:
        basis_version: The basis that numbers the items.
    """

    basis_version: str
