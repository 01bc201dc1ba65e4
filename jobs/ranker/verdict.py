"""Decides whether a new ranker may become live, by a paired comparison with each rival and by coverage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jobs.lake.lake import Metrics
from jobs.ranker.evaluation import DayFacts, Scored, group_sizes, table_rows
from jobs.ranker.items import CandidateItems
from jobs.ranker.scorers import TOP
from lte_models.arrays import Float64Array
from lte_models.evaluation.comparison import SIGNIFICANT, compare

MIN_COVERAGE_SHARE = 0.5


@dataclass(frozen=True)
class Verdict:
    """Result of the gate.

    Attributes:
        metrics: Metric, or (metric, label), to value, for table metrics.
        reasons: Why the new ranker must not become live; empty when it may.
        n_users: Number of users with a known target. With fewer than two users no comparison is possible.
    """

    metrics: Metrics
    reasons: list[str]
    n_users: int


def nobody_came(n_users: int) -> Verdict:
    """The verdict of a day with fewer than two users to compare.

    Args:
        n_users: Number of users with a known target.
    """
    return Verdict({("n_users", ""): float(n_users)}, [], n_users)


def judge(results: Mapping[str, Scored], facts: DayFacts, shop: CandidateItems, cutoff: int) -> Verdict:
    """Put all models into one table and decide whether the candidate may become live.

    Args:
        results: Model name to results: "candidate", "live" if a ranker is live, and the baselines.
        facts: Facts of the test day.
        shop: Items, for popularity bias and coverage.
        cutoff: k of the NDCG that decides.
    """
    metrics: Metrics = {("n_users", ""): float(facts.n_users)}
    for model, result in results.items():
        metrics |= table_rows(model, result, facts, shop)
    metrics |= group_sizes(results["candidate"], facts, f"ndcg_at_{cutoff}")
    reasons = []
    ours = results["candidate"].values[f"ndcg_at_{cutoff}", "all"]
    for rival in [name for name in results if name != "candidate"]:
        found, reason = against(ours, results[rival].values[f"ndcg_at_{cutoff}", "all"], rival)
        metrics |= {(metric, f"candidate over {rival}"): value for metric, value in found.items()}
        reasons += reason
    return Verdict(metrics, reasons + collapsed(metrics), facts.n_users)


def against(ours: Float64Array, theirs: Float64Array, rival: str) -> tuple[dict[str, float], list[str]]:
    """Compare the candidate with one rival over the same users.

    Args:
        ours: float [B], NDCG of the candidate; NaN for a user without a known target.
        theirs: float [B], NDCG of the rival.
        rival: Name of the rival.

    Returns:
        Uplift with its interval and p, and the reason against the candidate, if there is one.
    """
    kept = ~np.isnan(ours)
    if not theirs[kept].any():
        return {}, []  # a rival that finds nothing is not better, and there is no uplift over zero
    found = compare(ours[kept], theirs[kept], np.flatnonzero(kept))
    is_worse = found.uplift < 0 and found.p < SIGNIFICANT
    reason = f"NDCG {found.model:.4f} is below {rival}'s {found.baseline:.4f} (p = {found.p:.2g})"
    values = {"uplift": found.uplift, "uplift_low": found.low, "uplift_high": found.high, "p": found.p}
    return values, [reason] if is_worse else []


def collapsed(metrics: Metrics) -> list[str]:
    """The reason against a candidate that shows far fewer items than the live ranker; empty if it does not."""
    name = f"coverage_at_{TOP}"
    now, before = metrics[name, "candidate"], metrics.get((name, "live"))
    if before is None or now >= MIN_COVERAGE_SHARE * before:
        return []
    return [f"coverage at {TOP} is {now:.3f}, less than {MIN_COVERAGE_SHARE:.0%} of the live ranker's {before:.3f}"]
