import numpy as np
import pytest

from jobs.config.models import BASELINES, SIMPLE_BASELINES, RankerSection
from jobs.ranker.judging.pool import UserDays
from jobs.ranker.judging.verdict import Verdict, against, below_counting, judge_pool

N_USERS, N_DAYS = 60, 7
BLANK = Verdict({}, [], N_USERS)


def _scores(days: int = N_DAYS, users: int = N_USERS, **models: float) -> UserDays:
    """Models with these mean NDCG on the same user-days; users differ far more than models do."""
    rng = np.random.default_rng(days)
    base = rng.uniform(0.1, 0.9, users * days)
    noise = {name: rng.normal(0, 0.1, len(base)) for name in models}
    values = {name: mean * base / base.mean() + noise[name] - noise[name].mean() for name, mean in models.items()}
    return UserDays([f"u{i % users}" for i in range(len(base))], 18_000 + np.arange(len(base)) // users, values)


def _judged(now: UserDays, pool: UserDays | None = None, n_users: int = 20) -> Verdict:
    return judge_pool(BLANK, now, pool or now, "ease", RankerSection(gate_min_users=n_users))


def test_a_candidate_below_the_baseline_is_refused_by_however_little() -> None:
    [reason] = _judged(_scores(candidate=0.498, ease=0.5)).reasons
    assert reason.startswith("NDCG 0.4980 is below ease's 0.5000 over 7 days (p = 0.")
    assert _judged(_scores(candidate=0.502, ease=0.5)).reasons == []


def test_a_loss_to_the_live_ranker_counts_when_it_is_significant() -> None:
    assert _judged(_scores(candidate=0.598, ease=0.5, live=0.6)).reasons == []
    [reason] = _judged(_scores(candidate=0.54, ease=0.5, live=0.6)).reasons
    assert reason.startswith("NDCG 0.5400 is below live's 0.6000 over 7 days")


def test_good_earlier_candidates_do_not_excuse_a_bad_one() -> None:
    now, pool = _scores(days=1, candidate=0.3, ease=0.5), _scores(candidate=0.6, ease=0.5)
    [reason] = _judged(now, pool).reasons
    assert reason.startswith("NDCG 0.3000 is below ease's 0.5000 on the days of this run")
    assert _judged(_scores(days=1, candidate=0.49, ease=0.5), pool).reasons == []  # within the noise of one day


def test_too_few_users_prove_nothing_and_days_of_one_user_do_not_help() -> None:
    verdict = _judged(_scores(users=19, candidate=0.6, ease=0.5))
    assert verdict.too_few == "19 users over 7 days prove nothing, expected at least ranker.gate_min_users = 20"
    assert _judged(_scores(users=20, candidate=0.6, ease=0.5)).too_few == ""


def test_the_metrics_name_the_baseline_and_the_size_of_the_pool() -> None:
    metrics = _judged(_scores(candidate=0.6, ease=0.5)).metrics
    assert metrics["is_gate_baseline", "ease"] == 1.0
    assert (metrics["n_gate_users", ""], metrics["n_gate_days", ""]) == (60.0, 7.0)
    assert metrics["uplift", "candidate over ease, 7 days"] == pytest.approx(0.2)
    assert ("uplift", "candidate over live, 7 days") not in metrics


def test_user_days_without_a_target_or_a_rival_are_left_out() -> None:
    values = {"candidate": np.array([0.2, np.nan, 0.4, 0.6]), "live": np.array([0.1, 0.5, np.nan, 0.3])}
    pair = UserDays(["a", "b", "c", "a"], np.array([1, 1, 1, 2]), values).both("candidate", "live")
    assert (pair.model.tolist(), pair.rival.tolist(), pair.n_users, pair.n_days) == ([0.2, 0.6], [0.1, 0.3], 1, 2)
    assert against(pair) is None  # one user
    zero = UserDays(["a", "b"], np.array([1, 1]), {"candidate": np.ones(2), "ease": np.zeros(2)})
    assert against(zero.both("candidate", "ease")) is None  # no uplift over zero
    assert zero.both("candidate", "live").n_users == 0


def test_a_significant_loss_to_counting_on_the_last_day_counts_whatever_the_gate_names() -> None:
    assert set(SIMPLE_BASELINES) <= set(BASELINES)
    [reason] = below_counting(_scores(days=1, candidate=0.3, frequency_365d=0.5, ease=0.2))
    assert reason.startswith("NDCG 0.3000 is below frequency_365d's 0.5000 on the last day (p = ")
    assert below_counting(_scores(days=1, candidate=0.49, frequency_365d=0.5)) == []  # within the noise of one day
    assert below_counting(_scores(days=1, candidate=0.3, up_cf=0.5)) == []  # measured, not judged
    # earlier days do not count here: the pooled comparison judges them
    whole = _scores(days=2, candidate=0.4, frequency_365d=0.4)
    is_last = whole.day == whole.day.max()
    whole.values["candidate"][~is_last] = 0.0
    whole.values["candidate"][is_last] = whole.values["frequency_365d"][is_last]
    assert below_counting(whole) == []
