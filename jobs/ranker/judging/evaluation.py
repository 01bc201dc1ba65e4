"""Metrics of a model on the test day, and its rows of the table that compares models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from jobs.lake.lake import Metrics
from jobs.ranker.items import CandidateItems
from jobs.ranker.readers import ExampleReader
from jobs.ranker.scorers import TOP, IntArray, Scorer, ranks_of, scores_of
from lte_models.arrays import Float64Array
from lte_models.evaluation.metrics import (
    coverage,
    history_bucket,
    popularity_bias,
    query_metrics,
    summarise,
)
from lte_models.ranker.examples import ExampleBatch

KINDS = ("all", "repeated", "new")


@dataclass(frozen=True)
class Scored:
    """One model's results, one entry per user of the test day.

    Attributes:
        values: (metric with its cutoff, kind) to float [B]; NaN for a user without a target of the kind. A target is
            "repeated" when the user had an interaction with the item in the year before, otherwise "new".
        top: int [B, 10], columns of the items with the best scores.
    """

    values: Mapping[tuple[str, str], Float64Array]
    top: IntArray

    def since(self, days: IntArray, first: int) -> Scored:
        """The same results without the values of earlier days, on which the model was trained.

        Args:
            days: int64 [B], day of each user-day, since 1970.
            first: The first day that counts.
        """
        return replace(self, values={name: np.where(days < first, np.nan, each) for name, each in self.values.items()})


def score(scorer: Scorer, test: ExampleReader, cutoffs: Sequence[int]) -> Scored:
    """Rank the targets of every user of the test day.

    Args:
        scorer: The model.
        test: Examples.
        cutoffs: The values of k for the metrics at k.

    Raises:
        ValueError: A score is not finite.
    """
    parts = list(_scored_batches(scorer, test, cutoffs))
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values}
    return Scored(values, np.concatenate([part.top for part in parts]))


def _scored_batches(scorer: Scorer, test: ExampleReader, cutoffs: Sequence[int]) -> Iterator[Scored]:
    for batch in test.in_order():
        scores = scores_of(scorer, batch)
        yield Scored(_values(ranks_of(scores, batch), batch, cutoffs), scores.top(TOP))


def _values(ranks: IntArray, batch: ExampleBatch, cutoffs: Sequence[int]) -> dict[tuple[str, str], Float64Array]:
    query, n_users = batch.target_query.numpy(), len(batch.items)
    values: dict[tuple[str, str], Float64Array] = {}
    is_repeat = repeated_targets(batch)
    for kind, chosen in zip(KINDS, (np.ones_like(is_repeat), is_repeat, ~is_repeat), strict=True):
        for k in cutoffs:
            found = query_metrics(ranks[chosen], query[chosen], n_users, k)
            values |= {(f"{name}_at_{k}", kind): value for name, value in found.items()}
    return values


def repeated_targets(batch: ExampleBatch) -> npt.NDArray[np.bool_]:
    """Mark targets, bool [T]: whether the user had an interaction with the target in the year before the anchor."""
    user = batch.query_user[batch.target_query]
    width = 1 + max((int(items.max()) for items in (batch.targets, batch.past.items) if items.numel()), default=0)
    taken = (batch.past.user * width + batch.past.items).numpy()
    return np.isin((user * width + batch.targets).numpy(), taken)


@dataclass(frozen=True)
class DayFacts:
    """Facts of the test days that the tables need beside the scores; B user-days, T targets.

    Attributes:
        day: int64 [B], days since 1970 of the targets.
        n_short: int64 [B], interactions of the sequence.
        target_query: int64 [T], 0..B-1.
        targets: int64 [T], columns.
        is_repeat: bool [T], whether the user had an interaction with the target in the year before.
    """

    day: IntArray
    n_short: IntArray
    target_query: IntArray
    targets: IntArray
    is_repeat: npt.NDArray[np.bool_]

    @property
    def groups(self) -> list[str]:
        """For each user-day, the bucket of the short history's length."""
        return [str(name) for name in history_bucket(self.n_short)]

    @property
    def n_users(self) -> int:
        """Number of user-days with a known target."""
        return len(np.unique(self.target_query))


def day_facts(batches: Iterable[ExampleBatch]) -> DayFacts:
    """Read lengths and targets of the test days.

    Args:
        batches: Examples in the order in which they are scored.
    """
    parts: list[DayFacts] = []
    start = 0
    for batch in batches:
        parts.append(_batch_facts(batch, start))
        start += len(batch.items)
    columns = (np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(DayFacts))
    return DayFacts(*columns)


def _batch_facts(batch: ExampleBatch, start: int) -> DayFacts:
    return DayFacts(
        day=batch.anchor_day.numpy() + 1,  # targets are interactions of the day after the anchor
        n_short=(batch.items > 0).sum(dim=1).numpy(),
        target_query=batch.target_query.numpy() + start,
        targets=batch.targets.numpy() - 1,
        is_repeat=repeated_targets(batch),
    )


def table_rows(model: str, result: Scored, facts: DayFacts, shop: CandidateItems) -> Metrics:
    """One model's rows of the evaluation table.

    Args:
        model: Name of the model.
        result: Scores of the model.
        facts: Facts of the test day.
        shop: Items, for coverage and popularity.

    Returns:
        (metric, label) to value. The label is the model, "model/bucket" for a bucket of the short history's length, or
        "model/repeated" and "model/new" for a kind of target.
    """
    rows: Metrics = {}
    for kind in KINDS:
        values = {metric: value for (metric, of_kind), value in result.values.items() if of_kind == kind}
        found = summarise(values, facts.groups if kind == "all" else [])
        for (metric, group), value in found.items():
            part = group if kind == "all" else kind
            rows[metric, model if part == "all" else f"{model}/{part}"] = value
    rows[f"coverage_at_{TOP}", model] = coverage(result.top, len(shop.item_ids))
    rows[f"popularity_bias_at_{TOP}", model] = popularity_bias(result.top, shop.counts[1:], facts.targets)
    return rows


def group_sizes(result: Scored, facts: DayFacts, metric: str) -> Metrics:
    """Users behind each mean of :func:`table_rows`: ("n_users", bucket or kind of target) to the number of users.

    Args:
        result: Scores of any model; all models are scored on the same users.
        facts: Facts of the test day.
        metric: Any metric of the scores.
    """
    rows: Metrics = {}
    is_judged = ~np.isnan(result.values[metric, "all"])
    for group in sorted(set(facts.groups)):
        rows["n_users", group] = float(is_judged[np.asarray(facts.groups) == group].sum())
    for kind in KINDS[1:]:
        rows["n_users", kind] = float((~np.isnan(result.values[metric, kind])).sum())
    return rows
