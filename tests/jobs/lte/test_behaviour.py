"""Method behaviour in a lake: fitted on its schedule, averaged as any method, judged for drift while a fit lasts."""

import dataclasses
import random
from datetime import timedelta

import numpy as np
import pytest

from jobs.compute_drift import write_drift
from jobs.compute_lte import JOB as LTE_JOB
from jobs.compute_lte import lte_metrics, write_lte
from jobs.config.loading import ConfigError
from jobs.config.models import RankerSection
from jobs.config.sections import BehaviourSection, DriftSection, LteSection
from jobs.lake.day import BasisDay, Day
from jobs.lte.behaviour import used_behaviour
from lte_builders import BASIS, DS, Event, put_basis, put_events
from lte_models.averages.behaviour import BehaviourError
from schemas import ITEM_BEHAVIOUR, LTE_DRIFT, RUNS, USER_LTE

DAY = timedelta(days=1)
L2 = 2.0


@pytest.fixture
def configured(deployment):
    return dataclasses.replace(
        deployment,
        lte=LteSection(windows=("365-60",), methods=("uniform", "behaviour")),
        behaviour=BehaviourSection(l2=L2, refit_days=2),
        drift=DriftSection(offsets_days=(1, 2)),
    )


def world(n_users=25, seed=5):
    """Items i0 to i5 that go together, alone, which only one user had, and late, which lands on DS."""
    rng = random.Random(seed)
    vectors = {f"i{number}": [rng.gauss(0, 1) for _ in range(3)] for number in range(6)}
    vectors |= {"alone": [1.0, 0.0, 0.0], "late": [0.0, 1.0, 0.0]}
    unit = {item: (np.array(v) / np.linalg.norm(v)).astype(np.float32).tolist() for item, v in vectors.items()}
    events = [
        Event(f"u{user:02d}", f"i{rng.randrange(6)}", rng.choice([60, 61, 363, 364, rng.randrange(362)]))
        for user in range(n_users)
        for _ in range(rng.choice([1, 3, 8]))
    ]
    return unit, [*events, Event("single", "alone", 100), Event("u00", "late", 70), Event("u00", "ghost", 70)]


def write_world(lake):
    vectors, events = world()
    put_basis(lake, vectors, first_ds={"late": DS})
    put_events(lake, events)
    return vectors, events


def run(lake, configured, *days):
    for day in days:
        write_lte(BasisDay(lake, configured, day, BASIS))
        lake.record_metrics(day, LTE_JOB, lte_metrics(lake, configured.lte, day))


def rows_of(lake, day, method="behaviour"):
    return {
        row["user_id"]: row for row in lake.read(USER_LTE, where={"ds": day, "method": method}).toArrow().to_pylist()
    }


def plain(vectors, events, fit_age):
    """Item to row of B E, as Steck (2019) writes it, from the histories up to ``fit_age`` days before DS."""
    items = list(vectors)
    pairs = {
        (e.user, e.item) for e in events if fit_age <= e.age < 365 + fit_age and e.item in vectors and e.item != "late"
    }
    users = sorted({user for user, _ in pairs})
    x = np.zeros((len(users), len(items)))
    for user, item in pairs:
        x[users.index(user), items.index(item)] = 1
    inverse = np.linalg.inv(x.T @ x + L2 * np.eye(len(items)))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    e = np.array(list(vectors.values()))
    found = weights @ (e - e.mean(axis=0))
    found /= np.linalg.norm(found, axis=1).max()  # the longest item vector has length 1
    return {item: row for item, row in zip(items, found, strict=True) if item not in ("alone", "late")}


def test_is_the_average_of_behaviour_vectors(engine_lake, configured):
    vectors, events = write_world(engine_lake)
    run(engine_lake, configured, DS - DAY)
    behaviour, rows = plain(vectors, events, 1), rows_of(engine_lake, DS - DAY)

    assert rows.keys() == rows_of(engine_lake, DS - DAY, "uniform").keys()
    for user, row in rows.items():
        own = [e.item for e in events if e.user == user and 61 <= e.age < 366]
        known = [behaviour[item] for item in own if item in behaviour]
        expected = np.mean(known, axis=0) if known else np.zeros(3)
        np.testing.assert_allclose(row["embedding"], expected, atol=1e-5, err_msg=user)
        assert (row["n_items"], row["n_unknown"]) == (len(known), len(own) - len(known)), user
        assert row["basis_version"] == BASIS
    assert not any(rows["single"]["embedding"])  # nobody had "alone" with another item, so it says nothing


def test_a_fit_lasts_for_its_days_and_the_bound_holds_between_refits(engine_lake, configured):
    write_world(engine_lake)
    run(engine_lake, configured, DS - 2 * DAY, DS - DAY, DS)
    write_drift(Day(engine_lake, configured, DS - DAY))
    write_drift(Day(engine_lake, configured, DS))

    first, second, third = (used_behaviour(engine_lake, DS - n * DAY) for n in (2, 1, 0))
    assert first is not None
    assert first == second == f"{BASIS}-{DS - 2 * DAY}-{first[-8:]}"
    assert third == f"{BASIS}-{DS}-{first[-8:]}"

    def drift_of(day, method, offset=1):
        return engine_lake.read(LTE_DRIFT, where={"ds": day, "method": method, "offset_days": offset}).collect()

    same_fit, refitted = drift_of(DS - DAY, "behaviour"), drift_of(DS, "behaviour")
    assert len(same_fit) > 20
    assert max(row["drift"] for row in same_fit) > 0  # the windows moved
    assert all(row["bound_ok"] and not row["reference_stale"] for row in same_fit)
    assert all(row["reference_stale"] for row in refitted)  # other vectors: counted, not judged
    assert not any(row["reference_stale"] for row in drift_of(DS, "uniform"))


def test_a_rerun_and_a_later_day_change_no_vector(lake, configured):
    write_world(lake)
    run(lake, configured, DS)
    version, before = lake.version(ITEM_BEHAVIOUR), rows_of(lake, DS)
    run(lake, configured, DS, DS + DAY)

    assert lake.version(ITEM_BEHAVIOUR) == version
    assert rows_of(lake, DS) == before


def test_items_that_come_after_the_fit_are_unknown_to_it(lake, configured):
    vectors, _ = write_world(lake)
    run(lake, configured, DS)
    put_basis(lake, {"newer": [0.0, 0.0, 1.0]}, start=len(vectors))
    put_events(lake, [Event("u00", "newer", 70)])
    n_before = rows_of(lake, DS)["u00"]
    run(lake, configured, DS)
    write_drift(Day(lake, configured, DS))

    row, uniform = rows_of(lake, DS)["u00"], rows_of(lake, DS, "uniform")["u00"]
    assert row["embedding"] == n_before["embedding"]
    assert row["n_unknown"] == n_before["n_unknown"] + 1
    assert uniform["n_items"] + uniform["n_unknown"] == row["n_items"] + row["n_unknown"]


def test_other_settings_are_another_version_and_a_method_taken_out_leaves_nothing(lake, configured):
    write_world(lake)
    run(lake, configured, DS)
    first = used_behaviour(lake, DS)
    run(lake, dataclasses.replace(configured, behaviour=BehaviourSection(l2=5.0, refit_days=2)), DS)
    assert used_behaviour(lake, DS) != first
    assert lake.read(ITEM_BEHAVIOUR).select("basis_version").distinct().count() == 2

    run(lake, dataclasses.replace(configured, lte=LteSection(windows=("365-60",), methods=("uniform",))), DS)
    assert not rows_of(lake, DS)
    assert used_behaviour(lake, DS) is None
    assert [row["job"] for row in lake.read(RUNS).collect()] == [LTE_JOB]


def test_a_rank_that_the_shop_cannot_have_is_refused(lake, configured):
    write_world(lake)
    too_high = dataclasses.replace(configured, behaviour=BehaviourSection(l2=L2, rank=50, refit_days=2))
    with pytest.raises(BehaviourError, match="rank: expected at most 7"):
        run(lake, too_high, DS)


def test_a_ranker_does_not_read_it_yet(deployment):
    lte = LteSection(windows=("365-60",), methods=("uniform", "behaviour"))
    with pytest.raises(ConfigError, match=r"expected publish\.method = 'behaviour'"):
        dataclasses.replace(deployment, lte=lte, publish=dataclasses.replace(deployment.publish, method="behaviour"))
    with pytest.raises(ConfigError, match="'uniform' or 'recency'"):
        RankerSection(method="behaviour")
