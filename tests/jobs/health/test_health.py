"""Planted faults and a quiet year, the sample of a real lake, and the mark that starts a training from scratch."""

from __future__ import annotations

import dataclasses
from collections import Counter
from datetime import date, timedelta

import numpy as np
import pytest
import torch

from checkout import ROOT
from jobs.config.sections import Deployment, GatesSection, HealthSection
from jobs.gates.measured import Measured
from jobs.health.measures import health_limits, measure_health, measured_slice, must_retrain, slice_values
from jobs.health.samples import LteSample, paired, sampled_ltes
from jobs.lake.day import BasisDay, Day
from jobs.lake.lake import Lake
from jobs.registry.finish import Training, start
from jobs.registry.records import RETRAIN
from jobs.validate import gate_metrics
from lte_builders import BASIS, put, put_basis
from lte_models.averages import drift
from lte_models.training.bundle import save_bundle
from lte_models.training.manifest import Manifest
from quiet_shop import FAULTS, FIRST_DAY, N_DAYS, QuietShop, ShopDay
from schemas import USER_LTE

DS = date(2025, 6, 30)
DAY = timedelta(days=1)
GATES, HEALTH = GatesSection(), HealthSection()
SEEDS = range(10)


def broken_limits(now: ShopDay, earlier: dict[int, ShopDay], basis: np.ndarray) -> list[str]:
    """The health limits that a day breaks."""
    samples = {days: day.sample() for days, day in earlier.items()}
    values = slice_values(now.sample(), samples, basis.astype(np.float32))
    found = []
    for limit in health_limits(HEALTH):
        value = values[limit.column]
        assert value is not None
        is_low, is_high = limit.minimum is not None and value < limit.minimum, value > (limit.maximum or np.inf)
        found += [limit.column] if is_low or is_high else []
    return found


def broken_gates(now: ShopDay, before: ShopDay) -> list[str]:
    """The older gates that a day breaks, from their definitions: ADR 0006 and section [gates]."""
    both = np.intersect1d(now.users, before.users)
    entered = np.maximum(now.counts - before.counts, 0).sum(axis=1)
    left = np.maximum(before.counts - now.counts, 0).sum(axis=1)
    n_now, n_before = now.counts.sum(axis=1), before.counts.sum(axis=1)
    bound = 2 * np.maximum(entered / np.maximum(n_now, 1), left / np.maximum(n_before, 1)) + 1e-5
    moved = np.linalg.norm(now.vectors.astype(float) - before.vectors, axis=1)
    active = both[(n_now[both] >= 20) & (n_before[both] >= 20)]
    cosine = drift.cosines(now.vectors[active], before.vectors[active])  # NaN for a zero vector
    broken = {
        "n_bound_violations": bool((moved > bound)[both].any()),
        "cosine_p01": np.nanquantile(cosine, 0.01) < GATES.min_cosine_p01,
        "drift_p99": np.quantile(moved[active], 0.99) > GATES.max_drift_p99,
        "users_lost_share": 1 - len(both) / len(before.users) > GATES.max_users_lost_share,
        "n_interactions_missing": now.n_items[now.users].sum() != now.counts[now.users].sum(),
    }
    return [name for name, is_broken in broken.items() if is_broken]


def judged(shop: QuietShop, day: int, now: ShopDay) -> list[str]:
    earlier = {days: shop.day(day - days) for days in (1, 7, 28)}
    return broken_gates(now, earlier[1]) + broken_limits(now, earlier, shop.basis)


@pytest.fixture(scope="module")
def shop() -> QuietShop:
    return QuietShop(seed=1)


def test_a_quiet_year_has_at_most_one_false_alarm(shop: QuietShop) -> None:
    days = range(FIRST_DAY, N_DAYS, 1)
    assert len(days) >= 365
    alarms = {day: found for day in days if (found := judged(shop, day, shop.day(day)))}
    assert len(alarms) <= 1, alarms


def test_every_one_of_100_planted_faults_is_caught(shop: QuietShop) -> None:
    caught: dict[str, Counter[str]] = {}
    for name, fault in FAULTS.items():
        caught[name] = Counter()
        for seed in SEEDS:
            rng = np.random.default_rng([seed, len(name)])
            day = int(rng.integers(FIRST_DAY, N_DAYS))
            found = judged(shop, day, fault(shop, day, rng))
            assert found, f"{name}, seed {seed}, day {day}: no gate and no alarm"
            caught[name].update(found)
    page = (ROOT / "docs/operations.md").read_text()
    for name, gates in caught.items():
        cells = ", ".join(f"`{gate}` {n}" for gate, n in sorted(gates.items(), key=lambda each: (-each[1], each[0])))
        assert f"| {name} | {cells} |" in page, f"docs/operations.md, planted faults: | {name} | {cells} |"


def number(measured: Measured, name: str) -> float:
    value = measured.values[name]
    assert value is not None
    return value


def put_day(lake: Lake, ds: date, vectors: np.ndarray, n_items: int = 5, method: str = "uniform") -> None:
    rows = [
        (f"u{at:03d}", [float(value) for value in vector], n_items + at % 7, 0, BASIS, ds, method, "365-60")
        for at, vector in enumerate(vectors)
    ]
    put(lake, USER_LTE, rows)


def test_a_lake_is_measured_and_a_collapse_breaks_a_limit(lake: Lake, deployment: Deployment) -> None:
    rng = np.random.default_rng(0)
    items = rng.normal(size=(150, 4))
    put_basis(lake, {f"i{at}": vector / np.linalg.norm(vector) for at, vector in enumerate(items)})
    vectors = rng.normal(size=(150, 4))
    put_day(lake, DS - DAY, vectors)
    put_day(lake, DS, vectors + 0.01 * rng.normal(size=vectors.shape))
    put_day(lake, DS + DAY, np.ones((150, 4)) + 1e-3 * vectors)
    plain = dataclasses.replace(
        deployment,
        lte=dataclasses.replace(deployment.lte, methods=("uniform",)),
        autoencoder=dataclasses.replace(deployment.autoencoder, enabled=False),
    )
    of_basis, of_slice = measure_health(BasisDay(lake, plain, DS, BASIS))
    assert of_basis.values["norm_p50"] == pytest.approx(1)
    assert (of_slice.table, of_slice.label, of_slice.skipped) == ("user_lte", "uniform/365-60", {})
    assert of_slice.values["frozen_share"] == 0
    assert of_slice.values["effective_rank_share"] == pytest.approx(1, abs=0.05)
    assert number(of_slice, "norm_psi_1d") < HEALTH.max_psi
    assert ("norm_psi_7d") not in of_slice.values  # no LTEs of that day
    assert gate_metrics([], [of_slice])["pair_cosine", "uniform/365-60"] == of_slice.values["pair_cosine"]
    collapsed = measured_slice(Day(lake, plain, DS + DAY), ("uniform", "365-60"), np.zeros((0, 4), np.float32))
    assert number(collapsed, "pair_cosine") > 0.99
    assert number(collapsed, "norm_ks_1d") > HEALTH.max_ks
    off = dataclasses.replace(plain, health=HealthSection(enabled=False))
    assert list(measure_health(BasisDay(lake, off, DS, BASIS))) == []


def test_few_users_are_not_judged_and_the_result_says_so(lake: Lake, deployment: Deployment) -> None:
    put_day(lake, DS, np.ones((3, 4)))
    found = measured_slice(Day(lake, deployment, DS), ("uniform", "365-60"), np.zeros((0, 4), np.float32))
    assert set(found.skipped) == {limit.column for limit in found.limits}
    assert "fewer than 100 users" in found.skipped["norm_psi_1d"]


def test_the_sample_holds_the_same_users_every_day(lake: Lake) -> None:
    for ds in (DS - DAY, DS):
        put_day(lake, ds, np.random.default_rng(ds.day).normal(size=(200, 3)))
    now, before = (sampled_ltes(lake, ds, ("uniform", "365-60"), one_of=4) for ds in (DS, DS - DAY))
    assert now.users == before.users
    assert 20 < len(now.users) < 90
    assert [each.tolist() for each in paired(now, before)] == [[*range(len(now.users))]] * 2


def sample_of(norms: np.ndarray) -> LteSample:
    return LteSample([f"u{at}" for at in range(len(norms))], np.outer(norms, [1, 0]).astype(np.float32),
                     np.full(len(norms), 5))  # fmt: skip


def test_a_slow_change_of_the_autoencoder_marks_a_training_from_scratch() -> None:
    norms = np.linspace(1, 2, 200)
    none = LteSample([], np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    for now, expected in ((norms, 0), (norms + 0.9, 1)):
        earlier = {1: sample_of(now), 7: none, 28: sample_of(norms)}
        assert must_retrain(slice_values(sample_of(now), earlier, np.zeros((0, 2), np.float32)), HEALTH) == expected


def test_a_marked_training_starts_from_scratch_and_says_so(
    lake: Lake, deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    own = dataclasses.replace(deployment, paths=dataclasses.replace(deployment.paths, lake=lake.root))
    training = Training(BasisDay(lake, own, DS, BASIS), "train_autoencoder", "autoencoder", {})
    manifest = Manifest(
        kind="autoencoder",
        config={},
        basis_version=BASIS,
        lte_window="365-60",
        ds=str(DS - DAY),
        vocabulary_hash="",
        code_version="1",
    )
    folder = training.folder.parent / f"ds={DS - DAY}"
    save_bundle(folder, manifest, {"weight": torch.ones(1)}, ["i1"])
    warm = start(training, "digest", lambda bundle: len(bundle.item_ids))
    assert warm.n_warm == 1
    lake.record_metrics(DS - DAY, "validate", {(RETRAIN, "autoencoder/365-60"): 1.0, (RETRAIN, "uniform/365-60"): 0.0})
    cold = start(training, "digest", lambda bundle: len(bundle.item_ids))
    assert (cold.n_warm, cold.name != warm.name) == (0, True)
    assert "it starts from scratch" in capsys.readouterr().err
