"""Chooses parameters of baselines, and the best baseline, on days before the test days."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np

from jobs.ranker.readers import ExampleReader
from jobs.ranker.scorers import Scorer, ranks_of, scores_of
from lte_models.evaluation.metrics import query_metrics
from lte_models.ranker.examples import ExampleBatch

TUNING_EXAMPLES, TUNING_CUTOFF = 1_000, 500


def tuning_batches(recent: ExampleReader, n_examples: int = TUNING_EXAMPLES) -> list[ExampleBatch]:
    """About the first ``n_examples`` examples in the order of a hash.

    Args:
        recent: Examples before the test days.
        n_examples: Number of examples.
    """
    return list(islice(recent.in_order(), max(1, n_examples // recent.batch_size)))


def best_of(scorers: Sequence[Scorer], recent: ExampleReader, n_examples: int = TUNING_EXAMPLES) -> Scorer:
    """Choose the parameters of a baseline on days before the test days.

    Args:
        scorers: One scorer per choice of parameters.
        recent: Examples before the test days.
        n_examples: Number of examples that decide.

    Returns:
        The scorer with the best mean NDCG; the first one when several are equal.
    """
    batches = tuning_batches(recent, n_examples)
    return max(scorers, key=lambda scorer: mean_ndcg(batches, scorer, TUNING_CUTOFF))


def best_baseline(scorers: Mapping[str, Scorer], earlier: ExampleReader, cutoff: int) -> str:
    """Name of the baseline that is best on earlier days; of equals the first.

    Args:
        scorers: Name to baseline.
        earlier: Examples of days before the days that are judged.
        cutoff: k of the NDCG.
    """
    batches = tuning_batches(earlier)
    return max(scorers, key=lambda name: mean_ndcg(batches, scorers[name], cutoff))


def mean_ndcg(batches: Sequence[ExampleBatch], scorer: Scorer, cutoff: int) -> float:
    """Mean NDCG over the users with a known target; 0 if there is no such user.

    Args:
        batches: Examples.
        scorer: A model or a baseline.
        cutoff: k of the NDCG.
    """
    values = []
    for batch in batches:
        ranks = ranks_of(scores_of(scorer, batch), batch)
        values.append(query_metrics(ranks, batch.target_query.numpy(), len(batch.items), cutoff)["ndcg"])
    found = np.concatenate(values)
    found = found[~np.isnan(found)]
    return float(found.mean()) if found.size else 0.0
