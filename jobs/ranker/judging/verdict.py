"""Decides whether a new ranker may become live, by paired comparisons with its rivals and by its coverage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jobs.config.models import SIMPLE_BASELINES, RankerSection
from jobs.lake.lake import Metrics
from jobs.ranker.items import CandidateItems
from jobs.ranker.judging.evaluation import DayFacts, Scored, group_sizes, table_rows
from jobs.ranker.judging.pool import Pair, UserDays
from jobs.ranker.scorers import TOP
from jobs.runtime.text import counted
from lte_models.evaluation.comparison import SIGNIFICANT, Comparison, compare

MIN_COVERAGE_SHARE = 0.5
CANDIDATE, LIVE = "candidate", "live"


@dataclass(frozen=True)
class Verdict:
    """Result of the gate.

    Attributes:
        metrics: Metric, or (metric, label), to value, for table metrics.
        reasons: Why the new ranker must not become live; empty when it may.
        n_users: Number of user-days with a known target. With fewer than two no comparison is possible.
        too_few: Why the pooled days prove nothing; empty when they have enough users.
    """

    metrics: Metrics
    reasons: list[str]
    n_users: int
    too_few: str = ""


def nobody_came(n_users: int) -> Verdict:
    """The verdict of a day with fewer than two users to compare.

    Args:
        n_users: Number of users with a known target.
    """
    return Verdict({("n_users", ""): float(n_users)}, [], n_users)


def judge(results: Mapping[str, Scored], facts: DayFacts, shop: CandidateItems, cutoff: int, now: UserDays) -> Verdict:
    """Put all models of this run into one table and compare the candidate with each of them.

    Args:
        results: Model name to results: "candidate", "live" if a ranker is live, and the baselines.
        facts: Facts of the test days of this run.
        shop: Items, for popularity bias and coverage.
        cutoff: k of the NDCG that decides.
        now: This NDCG per user-day.
    """
    metrics: Metrics = {("n_users", ""): float(facts.n_users)}
    for model, result in results.items():
        metrics |= table_rows(model, result, facts, shop)
    metrics |= group_sizes(results[CANDIDATE], facts, f"ndcg_at_{cutoff}")
    for rival in [name for name in results if name != CANDIDATE]:
        metrics |= _named(against(now.both(CANDIDATE, rival)), f"{CANDIDATE} over {rival}")
    return Verdict(metrics, collapsed(metrics) + below_counting(now), facts.n_users)


def below_counting(now: UserDays) -> list[str]:
    """Reasons against a candidate that is significantly below a simple baseline on the last test day.

    This holds whatever ``ranker.gate_baselines`` names.

    Args:
        now: Scores of this run.
    """
    day = now.last_day()
    found = [(name, against(day.both(CANDIDATE, name))) for name in SIMPLE_BASELINES]
    return [_reason(each, name, "on the last day") for name, each in found if each and _is_clearly_below(each)]


def judge_pool(verdict: Verdict, now: UserDays, pool: UserDays, best: str, settings: RankerSection) -> Verdict:
    """Decide by the pooled days: the candidates against the best baseline, and against what was live on each day.

    A candidate below the baseline on the pooled days is refused, however small the difference is: the burden of proof
    is the candidate's. Against the live ranker only a significant loss counts, because the two differ by one day of
    training, and half of all candidates are below by chance. Earlier candidates do not excuse this one: a significant
    loss on the days of this run alone refuses it, too.

    Args:
        verdict: From :func:`judge`.
        now: Scores of this run.
        pool: Scores of this run and of the earlier runs that count.
        best: The best of ``ranker.gate_baselines`` on earlier days.
        settings: ``gate_days`` and ``gate_min_users``.
    """
    pair = pool.both(CANDIDATE, best)
    metrics, reasons = dict(verdict.metrics), list(verdict.reasons)
    metrics |= {("n_gate_users", ""): float(pair.n_users), ("n_gate_days", ""): float(pair.n_days)}
    metrics["is_gate_baseline", best] = 1.0
    for rival, is_refused in ((best, _is_below), (LIVE, _is_clearly_below)):
        found, alone = (against(scores.both(CANDIDATE, rival)) for scores in (pool, now))
        metrics |= _named(found, f"{CANDIDATE} over {rival}, {settings.gate_days} days")
        if found and is_refused(found):
            reasons.append(_reason(found, rival, f"over {counted(pool.both(CANDIDATE, rival).n_days, 'day')}"))
        elif alone and _is_clearly_below(alone):
            reasons.append(_reason(alone, rival, "on the days of this run"))
    return Verdict(metrics, reasons, verdict.n_users, _too_few(pair, settings))


def _reason(found: Comparison, rival: str, days: str) -> str:
    return f"NDCG {found.model:.4f} is below {rival}'s {found.baseline:.4f} {days} (p = {found.p:.2g})"


def _is_below(found: Comparison) -> bool:
    return found.uplift < 0


def _is_clearly_below(found: Comparison) -> bool:
    return found.uplift < 0 and found.p < SIGNIFICANT


def _too_few(pair: Pair, settings: RankerSection) -> str:
    if pair.n_users >= settings.gate_min_users:
        return ""
    return (
        f"{counted(pair.n_users, 'user')} over {counted(pair.n_days, 'day')} prove nothing, expected at least "
        f"ranker.gate_min_users = {settings.gate_min_users}"
    )


def against(pair: Pair) -> Comparison | None:
    """Compare two models; None if fewer than two users were measured, or the rival finds nothing.

    Args:
        pair: The two models; the first one is the candidate.
    """
    if pair.n_users < 2 or not pair.rival.any():
        return None  # there is no uplift over zero
    return compare(pair.model, pair.rival, pair.user)


def _named(found: Comparison | None, label: str) -> Metrics:
    if found is None:
        return {}
    values = {"uplift": found.uplift, "uplift_low": found.low, "uplift_high": found.high, "p": found.p}
    return {(metric, label): value for metric, value in values.items()}


def collapsed(metrics: Metrics) -> list[str]:
    """The reason against a candidate that shows far fewer items than the live ranker; empty if it does not."""
    name = f"coverage_at_{TOP}"
    now, before = metrics[name, CANDIDATE], metrics.get((name, LIVE))
    if before is None or now >= MIN_COVERAGE_SHARE * before:
        return []
    return [f"coverage at {TOP} is {now:.3f}, less than {MIN_COVERAGE_SHARE:.0%} of the live ranker's {before:.3f}"]
