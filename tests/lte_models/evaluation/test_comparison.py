"""The comparison of two models, by hand and against independent formulas."""

import math

import numpy as np
import pytest

from lte_models.evaluation.comparison import compare, holm


def test_uplift_interval_and_p_by_hand() -> None:
    """Three users: the first has two days. Sums of the model 1.2, .4, .9; of the baseline .8, .4, .7."""
    model, baseline = np.array([0.5, 0.7, 0.4, 0.9]), np.array([0.4, 0.4, 0.4, 0.7])
    found = compare(model, baseline, np.array([7, 7, 2, 3]))
    assert found.uplift == pytest.approx(2.5 / 1.9 - 1)
    assert (found.model, found.baseline) == pytest.approx((2.5 / 4, 1.9 / 4))
    assert (found.n_users, found.n_queries) == (3, 4)
    # residuals 1.2 - r .8, .4 - r .4, .9 - r .7 with r = 2.5 / 1.9
    residuals = [0.14736842, -0.12631579, -0.02105263]
    error = math.sqrt(3 / 2 * sum(e * e for e in residuals)) / 1.9
    assert error == pytest.approx(0.12585, abs=1e-5)
    t = found.uplift / error
    assert found.p == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-6)  # Student's t with 2 degrees in closed form
    reach = 4.302653 * error  # its 97.5 % quantile
    assert (found.low, found.high) == pytest.approx((found.uplift - reach, found.uplift + reach))


def test_the_interval_leaves_out_zero_exactly_where_p_is_below_five_percent() -> None:
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(200):
        baseline = rng.gamma(2.0, 0.2, size=30)
        found = compare(baseline + rng.normal(0.02, 0.1, size=30), baseline, rng.integers(0, 12, size=30))
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        seen.add(found.p < 0.05)
    assert seen == {True, False}


def test_the_days_of_one_user_are_one_observation() -> None:
    model, baseline = np.array([0.5, 0.4, 0.9, 0.3]), np.array([0.4, 0.4, 0.7, 0.35])
    once = compare(model, baseline, np.arange(4))
    twice = compare(np.tile(model, 2), np.tile(baseline, 2), np.tile(np.arange(4), 2))  # each day a second time
    assert (twice.uplift, twice.p) == pytest.approx((once.uplift, once.p))
    assert twice.n_queries == 2 * once.n_queries


def test_the_interval_covers_a_true_uplift_about_as_often_as_it_says() -> None:
    """True uplift .1; users have one to three days that move together; 400 trials: 95 %, four deviations of 1.1 %."""
    rng, covered = np.random.default_rng(5), 0
    for _ in range(400):
        users = np.repeat(np.arange(80), rng.integers(1, 4, size=80))
        level = rng.gamma(2.0, 0.2, size=80)[users]
        model = level * 1.1 + rng.normal(0, 0.05, size=80)[users] + rng.normal(0, 0.02, size=len(users))
        found = compare(model, level, users)
        covered += found.low <= 0.1 <= found.high
    assert 0.90 <= covered / 400 <= 0.99


def test_equal_models_do_not_differ_and_a_constant_ratio_is_certain() -> None:
    values = np.array([0.1, 0.2, 0.3])
    same = compare(values, values, np.arange(3))
    assert (same.uplift, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    double = compare(2 * values, values, np.arange(3))
    assert double.uplift == pytest.approx(1.0)
    assert double.p < 1e-12


@pytest.mark.parametrize(
    ("model", "baseline", "users", "message"),
    [
        ([0.1], [0.1], [0], "at least 2 users, got 1"),
        ([0.1, 0.2], [0.1], [0, 1], "not paired"),
        ([0.1, math.nan], [0.1, 0.1], [0, 1], "is NaN"),
        ([0.1, 0.2], [0.0, 0.0], [0, 1], "baseline is 0"),
    ],
)
def test_comparisons_that_cannot_be(model: list[float], baseline: list[float], users: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(np.array(model), np.array(baseline), np.array(users))


def test_holm_by_hand() -> None:
    # sorted: .01 x 4 = .04, .02 x 3 = .06, .03 x 2 = .06 (not below .06), .5 x 1
    assert holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
