"""Stability and attention: the arithmetic by hand, and both for real on a tiny shop."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyspark.sql import SparkSession

from experiment_shop import DS, shop_events, shop_lake
from jobs.analyses import run as analyses
from jobs.analyses.attention import LAST, intensity, intensity_change, last_shares, migration
from jobs.analyses.inputs import offset_days
from jobs.analyses.stability import resilience
from jobs.config.sections import Deployment
from jobs.experiments.run import experiments_folder
from jobs.lake.lake import Lake
from jobs.registry.bundles import ModelError
from schemas import EXPERIMENTS

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def tiny(sail: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Deployment]:
    lake, deployment = shop_lake(sail, tmp_path_factory.mktemp("analyses"), shop_events())
    settings = replace(
        deployment.experiment, history=("off",), offsets_days=(5,), stability_methods=("uniform", "autoencoder")
    )
    return lake, replace(deployment, experiment=settings)


def values_of(rows: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    return {(row["variant"], row["metric"]): row["value"] for row in rows if not row["baseline"]}


def test_stability_compares_old_rankers_with_fresh_ones_on_the_same_days(tiny: tuple[Lake, Deployment]) -> None:
    lake, deployment = tiny
    found = analyses.run_analysis(deployment, "stability")
    values = values_of(found.rows)
    assert 0 < values["uniform LTE, 5 days", "tau_mean"] < 1
    assert 0.8 < values["uniform LTE, 5 days", "cosine_mean"] <= 1
    assert values["uniform LTE, 5 days", "drift_of_bound_max"] <= 1  # the bound holds (ADR 0006)
    assert np.isnan(values["autoencoder LTE, 5 days", "drift_of_bound_max"])
    pairs = {(row["variant"], row["baseline"]) for row in found.rows if row["baseline"]}
    assert ("prefix token, uniform, 5 days old", "prefix token, uniform, fresh") in pairs
    assert ("no LTE, 5 days old", "no LTE, fresh") in pairs
    old = "prefix token, autoencoder, 5 days old"
    assert (f"{old}, LTEs of its own day", old) in pairs
    of_pair = {
        row["variant"]: row["uplift"]
        for row in found.rows
        if row["metric"] == "ndcg_at_500" and row["targets"] == row["short_history"] == "all" and row["baseline"]
        and "own day" not in row["variant"]
    }  # fmt: skip
    expected = of_pair["prefix token, uniform, 5 days old"] - of_pair["no LTE, 5 days old"]
    assert values["prefix token, uniform, 5 days old", "relative_resilience"] == pytest.approx(expected)
    stored = lake.read(EXPERIMENTS, where={"experiment": "stability", "ds": DS})
    assert stored.count() == len(found.rows)
    assert "| uniform " in found.text
    assert not (experiments_folder(deployment) / "analysis").exists()  # staged rows hold ids of users


def test_attention_draws_figure_1_and_shares_of_the_prefix_token(tiny: tuple[Lake, Deployment]) -> None:
    _, deployment = tiny
    found = analyses.run_analysis(deployment, "attention")
    values = values_of(found.rows)
    shares = [value for (_, metric), value in values.items() if metric.startswith("prefix_share")]
    assert len(shares) >= 8  # two layers of four heads
    assert all(0 < value < 1 for value in shares)
    figure = Path(deployment.paths.reports) / "experiments" / "tiny" / "attention.png"
    with Image.open(figure) as image:
        assert image.size[0] > 600
    assert "share of the prefix token" in found.text


def test_an_older_ranker_is_trained_on_earlier_days_and_judged_on_the_same_days(tiny: tuple[Lake, Deployment]) -> None:
    _, deployment = tiny
    days = [DS - n * DAY for n in range(120)]
    fresh, old = (offset_days(days, deployment, None, offset) for offset in (0, 30))
    assert old.test == fresh.test == (DS - DAY, DS)
    assert fresh.validation[-1] == DS - 2 * DAY
    assert old.validation[-1] == DS - 32 * DAY
    assert max(old.train) < old.validation[0]
    assert len(old.train) == len(fresh.train)
    with pytest.raises(ModelError, match="a ranker that is 118 days old"):
        offset_days(days, deployment, date(2021, 3, 31), 118)


def test_resilience_is_the_difference_of_two_relative_changes() -> None:
    users = np.array([0, 0, 1, 2])
    fresh, old = np.array([0.2, 0.4, 0.6, 0.8]), np.array([0.2, 0.3, 0.6, 0.8])  # -5 %
    base_fresh, base_old = np.array([0.1, 0.1, 0.4, 0.4]), np.array([0.1, 0.1, 0.4, 0.3])  # -10 %
    found = resilience((old, fresh), (base_old, base_fresh), users)
    assert found.value == pytest.approx(0.05)
    assert found.low < 0.05 < found.high
    same = resilience((fresh, fresh), (base_fresh, base_fresh), users)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_shares_of_the_last_50_sum_to_1_and_shorter_sequences_have_none() -> None:
    weights = np.random.default_rng(0).random((2, 60)).astype(np.float32)
    share = last_shares(weights, np.array([60, 49]))
    assert share[0].sum() == pytest.approx(1)
    assert share[0, -1] / share[0, 0] == pytest.approx(weights[0, -1] / weights[0, -LAST])
    assert np.isnan(share[1]).all()


def test_migration_and_intensity_by_hand() -> None:
    without = np.full((4, LAST), 1 / LAST)
    moved = np.tile(np.array([0.01, -0.01, 0.02, 0.0])[:, None], (1, LAST))
    users = np.array([1, 1, 2, 3])  # means of users: 0, .02, 0
    found = migration(without + moved, without, users)
    assert found.delta == pytest.approx(np.full(LAST, 0.02 / 3))
    assert found.n_users == 3
    assert bool((found.low < 0).all())
    share = without.copy()
    share[:, -1], share[:, 0] = 0.06, 0.02
    assert intensity(share, users) == pytest.approx((3, 3, 3))
    change, low, high = intensity_change(share, without, users)
    assert (change, low, high) == pytest.approx((2, 2, 2))  # 3 against 1, the same for every user
