"""What the analyses share: rankers and autoencoders that stopped learning some days before the evaluation days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np

from jobs.basis.basis import configured_basis
from jobs.config.sections import Deployment
from jobs.experiments.examples import (
    Built,
    Days,
    ExampleBuilder,
    event_days,
    experiment_candidates,
    experiment_days,
    leading_directions,
    save_candidates,
)
from jobs.experiments.plan import ExampleSet
from jobs.lake.lake import Lake
from jobs.ranker.items import CandidateItems, load_candidates
from jobs.registry.bundles import ModelError
from lte_models.arrays import IntArray

# The paper evaluates one day; ten days of a small shop have about as many buyers as its claims need.
EVALUATION_DAYS = 10


@dataclass(frozen=True)
class OffsetInputs:
    """Inputs of the models that are ``offset`` days older than the freshest ones.

    Attributes:
        offset: Days.
        days: Training days, validation days and the same evaluation days for every offset.
        folder: Folder of staged rows and of the shop.
        digest: Hash of the staged rows and the shop.
    """

    offset: int
    days: Days
    folder: Path
    digest: str


@dataclass(frozen=True)
class Prepared:
    """Inputs of an analysis.

    Attributes:
        basis_version: Basis.
        shop: Items as of the day before the first evaluation day.
        kept_share: Share of the basis that the leading directions hold.
        offsets: Inputs by offset, fresh ones first.
    """

    basis_version: str
    shop: CandidateItems
    kept_share: float
    offsets: tuple[OffsetInputs, ...]

    @property
    def days(self) -> Days:
        """Days of the freshest models."""
        return self.offsets[0].days


def offset_days(days: Sequence[date], deployment: Deployment, ds: date | None, offset: int) -> Days:
    """Days of the models that are ``offset`` days older than the freshest ones; the evaluation days are the same.

    Args:
        days: Days with interactions.
        deployment: Section [experiment].
        ds: Last evaluation day; the last day with interactions by default.
        offset: Days.

    Raises:
        ModelError: There are not enough days.
    """
    settings = deployment.experiment
    settings = replace(settings, test_days=min(settings.test_days, EVALUATION_DAYS))
    fresh = experiment_days(days, settings, ds)
    until = fresh.cutoff - timedelta(days=offset)
    earlier = sorted(day for day in days if day < until)
    validation = earlier[-settings.validation_days :]
    first = until - timedelta(days=settings.train_days)
    train = [day for day in earlier[: -settings.validation_days] if day >= first][:: -settings.stride_days][::-1]
    if not train:
        raise ModelError(f"table event_days: no day before {until} is left to train a ranker that is {offset} days old")
    return Days(tuple(train), tuple(validation), fresh.test)


def prepare(
    lake: Lake, deployment: Deployment, ds: date | None, folder: Path, *, offsets: Sequence[int], examples: ExampleSet
) -> Prepared:
    """Build the examples of all offsets at once and stage them per offset.

    Args:
        lake: Holds the tables.
        deployment: Settings.
        ds: Last evaluation day.
        folder: Folder of the analysis.
        offsets: Ages of the models in days; 0 comes first.
        examples: The set of examples.
    """
    basis_version, known = configured_basis(deployment), event_days(lake)
    plans = {offset: offset_days(known, deployment, ds, offset) for offset in offsets}
    fresh = plans[offsets[0]]
    trained = sorted({day for days in plans.values() for day in (*days.train, *days.validation)})
    union = Days(tuple(trained[:-1]), tuple(trained[-1:]), fresh.test)
    built = ExampleBuilder(lake, deployment, union, basis_version, folder).build(examples)
    shop = experiment_candidates(lake, fresh, basis_version, deployment.experiment.train_days)
    shop, kept_share = leading_directions(shop, deployment.experiment.content_dim)
    staged = []
    for offset, days in plans.items():
        builder = ExampleBuilder(lake, deployment, days, basis_version, folder / f"offset-{offset}")
        staged.append(_staged(builder, built, shop, offset))
    return Prepared(basis_version, shop, kept_share, tuple(staged))


def _staged(builder: ExampleBuilder, built: Built, shop: CandidateItems, offset: int) -> OffsetInputs:
    days, place = builder.days, builder.folder
    digest = builder.stage(replace(built, n_rows=builder.count(built.examples)))
    # An item without two interactions by then had no id vector of its own in that ranker.
    until = days.validation[-1] + timedelta(days=1)
    old = load_candidates(builder.lake, until, builder.basis_version, builder.settings.train_days)
    digest += save_candidates(replace(shop, counts=counts_in(shop, old)), place / "shop")
    return OffsetInputs(offset, days, place, digest)


def counts_in(shop: CandidateItems, old: CandidateItems) -> IntArray:
    """Interactions with the items of a shop as of an earlier day, int64 [V + 1]."""
    counts = np.zeros(len(shop.item_ids) + 1, dtype=np.int64)
    index = np.flatnonzero(old.row_of_index)
    rows = shop.row_of_index[index]
    counts[rows] = old.counts[old.row_of_index[index]]
    counts[0] = 0
    return counts
