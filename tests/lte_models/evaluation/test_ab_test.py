"""Statistics of A/B tests, against statsmodels, which counts in another way."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from statsmodels.stats._delta_method import NonlinearDeltaCov
from statsmodels.stats.gof import chisquare
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from lte_models.arrays import Float64Array
from lte_models.evaluation.ab_test import (
    Sample,
    anytime_reach,
    cuped,
    detectable,
    effect,
    linearised,
    planned_mde,
    power_of,
    sample,
    srm_p,
)

RNG = np.random.default_rng(3)
N_T, N_C = 180, 220
# Clicks of users with 0 to 9 visits, and the same before the test: users differ, so both times are alike.
LEVEL = RNG.gamma(2.0, 0.5, size=N_T + N_C)
VISITS = RNG.integers(0, 10, size=N_T + N_C).astype(float)
CLICKS = RNG.poisson(LEVEL * VISITS).astype(float)
VISITS_BEFORE = RNG.integers(0, 10, size=N_T + N_C).astype(float)
CLICKS_BEFORE = RNG.poisson(LEVEL * VISITS_BEFORE).astype(float)
IS_T = np.arange(N_T + N_C) < N_T


def _mean(values: Float64Array) -> Sample:
    return sample(values, np.ones_like(values))


def test_a_mean_per_user_is_welchs_test_of_statsmodels() -> None:
    found = effect(_mean(CLICKS[IS_T]), _mean(CLICKS[~IS_T]))
    peer = CompareMeans(DescrStatsW(CLICKS[IS_T]), DescrStatsW(CLICKS[~IS_T]))
    assert (found.difference_low, found.difference_high) == pytest.approx(peer.tconfint_diff(usevar="unequal"))
    assert (found.n_variant, found.n_control) == (N_T, N_C)


def test_the_relative_uplift_is_the_delta_method_of_statsmodels() -> None:
    found = effect(_mean(CLICKS[IS_T]), _mean(CLICKS[~IS_T]))
    params = np.array([CLICKS[IS_T].mean(), CLICKS[~IS_T].mean()])
    cov = np.diag([CLICKS[IS_T].var(ddof=1) / N_T, CLICKS[~IS_T].var(ddof=1) / N_C])
    peer = NonlinearDeltaCov(lambda b: np.array([b[0] / b[1] - 1]), params, cov)
    freedom = CompareMeans(DescrStatsW(CLICKS[IS_T]), DescrStatsW(CLICKS[~IS_T])).dof_satt()
    low, high = peer.conf_int(use_t=True, df=freedom)[0]
    assert (found.uplift, found.low, found.high) == pytest.approx((params[0] / params[1] - 1, low, high), rel=1e-6)


def test_the_error_of_a_ratio_is_that_of_a_regression_clustered_by_user() -> None:
    """WLS of clicks per visit on a constant, weighted by visits: the ratio of sums, users as clusters."""
    seen = VISITS > 0  # a user without visits adds nothing to either sum, and WLS cannot divide by 0
    clicks, visits = CLICKS[seen], VISITS[seen]
    values = linearised(clicks, visits)
    peer = sm.WLS(clicks / visits, np.ones_like(visits), weights=visits)
    fitted = peer.fit(cov_type="cluster", cov_kwds={"groups": np.arange(len(visits))})
    assert values.mean() == pytest.approx(fitted.params[0])
    assert np.sqrt(values.var(ddof=1) / len(values)) == pytest.approx(fitted.bse[0])


def test_cuped_is_the_analysis_of_covariance() -> None:
    ours = sample(CLICKS[IS_T], np.ones(N_T), (CLICKS_BEFORE[IS_T], np.ones(N_T)))
    theirs = sample(CLICKS[~IS_T], np.ones(N_C), (CLICKS_BEFORE[~IS_T], np.ones(N_C)))
    frame = pd.DataFrame({"one": 1.0, "variant": IS_T.astype(float), "before": CLICKS_BEFORE})
    fitted = sm.OLS(CLICKS, frame).fit()
    found, plain = effect(ours, theirs), effect(Sample(ours.values), Sample(theirs.values))
    assert found.difference == pytest.approx(fitted.params["variant"])
    assert found.high - found.low < 0.9 * (plain.high - plain.low)
    assert found.mde < plain.mde


def test_cuped_leaves_a_sample_without_an_earlier_time_or_with_a_constant_one() -> None:
    values = np.array([1.0, 2.0, 4.0])
    for before in (None, np.ones(3)):
        ours, theirs = cuped(Sample(values, before), Sample(values + 1, before))
        assert np.array_equal(ours, values)
        assert np.array_equal(theirs, values + 1)


def test_the_interval_leaves_out_zero_exactly_where_p_is_below_five_percent() -> None:
    rng, seen = np.random.default_rng(8), set()
    for shift in np.linspace(0, 1.2, 60):
        found = effect(_mean(rng.gamma(2, 1 + shift, size=30)), _mean(rng.gamma(2, 1, size=40)))
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        assert found.anytime_low < found.low  # who may look every day pays with width
        assert found.anytime_high > found.high
        seen.add(found.p < 0.05)
    assert seen == {True, False}


def test_power_and_detectable_difference_are_those_of_statsmodels() -> None:
    variance = 4.0 / 300 + 4.0 / 200  # standard deviation 2, 300 and 200 users
    peer = NormalIndPower().solve_power(effect_size=None, nobs1=300, alpha=0.05, power=0.8, ratio=200 / 300)
    assert detectable(variance) == pytest.approx(2 * peer, rel=1e-4)  # theirs counts the far tail, too
    assert power_of(0.5, variance) == pytest.approx(NormalIndPower().power(0.25, 300, 0.05, ratio=200 / 300))


def test_the_planned_mde_is_what_a_test_of_these_users_reports() -> None:
    """Half of the users each, with equal values: the read-out's variance is that of the plan up to n / (n - 1)."""
    values = np.repeat(np.arange(200.0), 2)
    found = effect(_mean(values[::2]), _mean(values[1::2]))
    assert planned_mde(_mean(values)) == pytest.approx(found.mde, rel=0.005)


def test_the_sample_ratio_is_statsmodels_chi_square() -> None:
    counts, shares = {"control": 5_200, "lte": 4_900, "both": 2_500}, {"control": 2.0, "lte": 2.0, "both": 1.0}
    expected = np.array([0.4, 0.4, 0.2]) * sum(counts.values())
    assert srm_p(counts, shares) == pytest.approx(chisquare(np.array(list(counts.values())), expected)[1])
    assert srm_p({"control": 50_000, "lte": 51_500}, {"control": 1, "lte": 1}) < 0.001


def test_the_anytime_interval_by_hand_and_by_its_definition() -> None:
    """Where the reach is r, the mixture's likelihood ratio of 0 against N(0, s**2) is exactly 1 / alpha = 20."""
    variance, scale = 0.0004, 0.03
    reach = anytime_reach(variance, scale)
    total = variance + scale**2
    ratio = np.sqrt(variance / total) * np.exp(reach**2 / 2 * (1 / variance - 1 / total))
    assert ratio == pytest.approx(20)


@pytest.mark.parametrize(
    ("numerator", "denominator", "message"),
    [([1.0], [1.0], "two users or more"), ([1.0, np.nan], [1.0, 1.0], "finite"), ([1.0, 0.0], [0.0, 0.0], "is 0 for")],
)
def test_a_kpi_without_a_value_is_refused(numerator: list[float], denominator: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(np.array(numerator), np.array(denominator))


def test_wrong_settings_are_refused() -> None:
    zeros, ones = _mean(np.zeros(3)), _mean(np.arange(3.0))
    for wrong in (
        lambda: effect(ones, zeros),
        lambda: effect(ones, ones, anytime_effect=0),
        lambda: planned_mde(ones, share=1),
        lambda: planned_mde(zeros),
        lambda: srm_p({"a": 3}, {"b": 1.0}),
    ):
        with pytest.raises(ValueError, match=r"KPI|anytime|share"):
            wrong()
