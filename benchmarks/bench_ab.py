"""Does `lte ab` keep its promises? Simulated tests with a known uplift: coverage, false alarms, daily looks, SRM.

A user has a level of their own (gamma), comes on some days, and clicks by Poisson. Both times, before and in the test,
share the level. The uplift multiplies the clicks of the variant.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lte_models.arrays import Float64Array
from lte_models.evaluation.ab_test import SRM_ALPHA, Effect, effect, sample, srm_p

DAYS, USERS = 14, 1_500
# A sample ratio mismatch of one point of a hundred: 51 % of the users where 50 % were planned.
BROKEN_SHARE, SRM_USERS = 0.51, 100_000


def simulated(rng: np.random.Generator, uplift: float) -> tuple[Float64Array, ...]:
    """Visits and clicks of one variant by user and day, [U, DAYS], and the same sums before the test, [U]."""
    level = rng.gamma(2.0, 1.0, size=(USERS, 1))
    visits = (rng.random((USERS, DAYS)) < 0.3).astype(np.float64)
    clicks = rng.poisson(level * (1 + uplift), size=(USERS, DAYS)) * visits
    visits_before = rng.binomial(DAYS, 0.3, size=USERS).astype(np.float64)
    return visits, clicks, visits_before, rng.poisson(level[:, 0] * visits_before).astype(np.float64)


def looks(variant: Sequence[Float64Array], control: Sequence[Float64Array], scale: float) -> list[Effect]:
    """Clicks per user, read out after each day."""
    ours, theirs = (side[1].cumsum(axis=1) for side in (variant, control))
    ones = np.ones(USERS)
    return [
        effect(sample(ours[:, day], ones), sample(theirs[:, day], ones), anytime_effect=scale) for day in range(DAYS)
    ]


def last_day(variant: Sequence[Float64Array], control: Sequence[Float64Array]) -> dict[str, Effect]:
    """The read-out at the end, by KPI."""
    ones, found = np.ones(USERS), {}
    sides = [(each[0].sum(axis=1), each[1].sum(axis=1), each[2], each[3]) for each in (variant, control)]
    found["clicks per user"] = [sample(clicks, ones) for _, clicks, _, _ in sides]
    found["clicks per visit (ratio)"] = [sample(clicks, visits) for visits, clicks, _, _ in sides]
    found["clicks per user, CUPED"] = [sample(clicks, ones, (before, ones)) for _, clicks, _, before in sides]
    found["clicks per visit, CUPED"] = [sample(clicks, visits, (b, v)) for visits, clicks, v, b in sides]
    return {name: effect(*samples) for name, samples in found.items()}


def run(n_tests: int, uplift: float, scale: float, seed: int) -> dict[str, Any]:
    """Simulate tests of one true uplift.

    Returns:
        By KPI the share of intervals that hold the uplift, the share that leave out 0, and their mean width; and the
        shares of tests whose daily looks miss the uplift, at least once, with either interval.
    """
    rng = np.random.default_rng(seed)
    rows: dict[str, list[tuple[bool, bool, float]]] = {}
    missed = {"fixed": 0, "anytime": 0}
    for _ in range(n_tests):
        variant, control = simulated(rng, uplift), simulated(rng, 0.0)
        for name, found in last_day(variant, control).items():
            row = (found.low <= uplift <= found.high, found.p < 0.05, found.high - found.low)
            rows.setdefault(name, []).append(row)
        daily = looks(variant, control, scale)
        missed["fixed"] += any(not e.low <= uplift <= e.high for e in daily)
        missed["anytime"] += any(not e.anytime_low <= uplift <= e.anytime_high for e in daily)
    kpis = {
        name: dict(zip(("covers", "significant", "width"), np.mean(each, axis=0).tolist(), strict=True))
        for name, each in rows.items()
    }
    return {"kpis": kpis, "missed_on_some_day": {name: n / n_tests for name, n in missed.items()}}


def srm(n_tests: int, share: float, seed: int) -> float:
    """Share of tests whose split is called broken."""
    rng, plan = np.random.default_rng(seed), {"a": 1.0, "b": 1.0}
    counts = rng.binomial(SRM_USERS, share, size=n_tests)
    return float(np.mean([srm_p({"a": int(n), "b": SRM_USERS - int(n)}, plan) < SRM_ALPHA for n in counts]))


def main(argv: Sequence[str] | None = None) -> None:
    """Print one JSON value."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=int, default=2_000)
    parser.add_argument("--uplift", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args(argv)
    found = {
        "A/A": run(flags.tests, 0.0, 0.02, flags.seed),
        "A/B": run(flags.tests, flags.uplift, 0.02, flags.seed + 1),
        "srm_found": {str(share): srm(flags.tests, share, flags.seed) for share in (0.5, BROKEN_SHARE)},
    }
    print(json.dumps(found | {"users_per_variant": USERS, "days": DAYS, "tests": flags.tests}, indent=2))


if __name__ == "__main__":
    main()
