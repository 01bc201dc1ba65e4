import dataclasses
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.basis.basis import BasisError
from jobs.compute_drift import main, write_drift
from jobs.compute_lte import JOB as LTE_JOB
from jobs.compute_lte import lte_metrics, write_lte
from jobs.config.sections import DriftSection, LteSection
from jobs.drift.references import find_references
from jobs.drift.summaries import FIXED_POINT, SumTask, centre_of
from jobs.lake.conform import conformed
from jobs.lake.day import BasisDay, Day
from jobs.lte.settings import LteError
from lte_builders import BASIS, DS, Event, put_basis, put_events, schema_of
from schemas import LTE_DRIFT, METRICS, USER_LTE

A, B, C = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]


@pytest.fixture
def configured(deployment):
    """One window and both methods; compared with the day before and the day five days before."""
    return dataclasses.replace(
        deployment,
        lte=LteSection(windows=("365-60",), half_life_days=90.0),
        drift=DriftSection(offsets_days=(1, 5)),
    )


def run_lte(lake, configured, *offsets, basis_version=BASIS):
    """What compute_lte writes, ``offsets`` days before ds."""
    for offset in offsets:
        day = DS - timedelta(days=offset)
        write_lte(BasisDay(lake, configured, day, basis_version))
        lake.record_metrics(day, LTE_JOB, lte_metrics(lake, configured.lte, day))


def drift_rows(lake, method="uniform", offset=1):
    rows = lake.read(LTE_DRIFT, where={"ds": DS, "method": method, "offset_days": offset}).collect()
    return {row["user_id"]: row for row in rows}


def test_by_hand(engine_lake, configured):
    # turned: ten times a in both windows, c enters: 1 -> 9/11 (ADR 0006). same: nothing changes.
    # new: first interaction enters; left: last one leaves; latest: b is known from ds on, so it enters too.
    put_basis(engine_lake, {"a": A, "c": C, "b": B}, first_ds={"b": DS})
    events = [Event("turned", "a", 100)] * 10 + [Event("turned", "c", 60), Event("same", "a", 100)]
    events += [Event("new", "a", 60), Event("left", "a", 365), Event("left", "a", 10)]
    events += [Event("latest", "a", 90), Event("latest", "b", 90), Event("only_now", "a", 0)]
    put_events(engine_lake, events)
    run_lte(engine_lake, configured, 1, 0)
    metrics = write_drift(Day(engine_lake, configured, DS))
    rows = drift_rows(engine_lake)
    assert sorted(rows) == ["latest", "left", "new", "same", "turned"]  # only_now was not there before

    counts = {u: (r["n_now"], r["n_before"], r["n_in"], r["n_out"], r["tau"]) for u, r in rows.items()}
    assert counts == {
        "turned": (11, 10, 1, 0, pytest.approx(1 / 11)),
        "same": (1, 1, 0, 0, 0.0),
        "new": (1, 0, 1, 0, 1.0),
        "left": (0, 1, 0, 1, 0.0),
        "latest": (2, 1, 1, 0, 0.5),
    }
    half = 0.5**0.5  # from (1, 0) to (.5, .5)
    moved = {"turned": (2 / 11, 2 / 11), "same": (0, 0), "new": (1, 1), "left": (1, 1), "latest": (half, 1)}
    assert {user: row["drift"] for user, row in rows.items()} == pytest.approx(
        {user: drift for user, (drift, _) in moved.items()}, abs=1e-6
    )
    assert {user: row["bound"] for user, row in rows.items()} == pytest.approx(
        {user: bound for user, (_, bound) in moved.items()}
    )
    assert rows["turned"]["drift"] > rows["turned"]["tau"]  # the paper's bound is broken, ours is not
    assert all(row["bound_ok"] and not row["reference_stale"] for row in rows.values())
    assert rows["latest"]["cosine"] == pytest.approx(half)
    assert (rows["new"]["cosine"], rows["new"]["centred_cosine"]) == (None, None)
    assert [rows[user]["activity"] for user in ("left", "new", "turned")] == ["0", "1-4", "5-19"]

    label = "uniform/365-60/1"
    assert metrics["n_users", label] == 5
    assert metrics["mean_tau", label] == pytest.approx((1 / 11 + 0 + 1 + 0.5) / 4)  # left has nothing now
    assert metrics["mean_cosine", label] == pytest.approx((1 + 1 + half) / 3)
    assert metrics["drift_max", label] == pytest.approx(1)
    assert metrics["drift_p50", label] == pytest.approx(half)  # of 0, 2/11, .707, 1, 1
    assert metrics["n_reference_days"] == 1  # nothing five days before


def test_recency_is_judged_by_masses(lake, configured):
    # Half-life 90: at ds a (age 150) and b (age 60) weigh 1/3 and 2/3; the day before, b was not in.
    put_basis(lake, {"a": A, "b": B})
    put_events(lake, [Event("u", "a", 150), Event("u", "b", 60)])
    run_lte(lake, configured, 1, 0)
    write_drift(Day(lake, configured, DS))
    row = drift_rows(lake, "recency")["u"]
    assert row["drift"] == pytest.approx(((2 / 3) ** 2 * 2) ** 0.5, abs=1e-6)
    assert row["bound"] == pytest.approx(2 * 2 / 3)
    assert row["tv_bound"] == pytest.approx(4 / 3 * 0.5**0.5)  # both vectors lie .707 from their mean
    assert row["bound_ok"]


def test_late_data_make_the_reference_stale_and_are_not_judged(lake, configured):
    put_basis(lake, {"a": A, "c": C})
    put_events(lake, [Event("late", "a", 100), Event("calm", "a", 100)])
    run_lte(lake, configured, 1)
    put_events(lake, [Event("late", "c", 200)])  # lands after yesterday's run, and turns a into 0
    run_lte(lake, configured, 0)
    metrics = write_drift(Day(lake, configured, DS))
    rows = drift_rows(lake)
    assert {user: (r["reference_stale"], r["bound_ok"]) for user, r in rows.items()} == {
        "late": (True, True),
        "calm": (False, True),
    }
    assert rows["late"]["drift"] == pytest.approx(1)
    assert rows["late"]["bound"] == 0  # what the bound would be: hence not judged
    label = "uniform/365-60/1"
    assert (metrics["n_stale", label], metrics["n_bound_broken", label], metrics["drift_max", label]) == (1, 0, 0)


def test_corrupted_lte_breaks_the_bound(lake, configured):
    put_basis(lake, {"a": A, "b": B})
    put_events(lake, [Event("u", "a", 100), Event("v", "a", 100)])
    run_lte(lake, configured, 1, 0)
    where = {"ds": DS, "method": "uniform", "lte_window": "365-60"}
    wrong = lake.spark.createDataFrame(
        [("u", [0.0, 1.0], 1, 0, BASIS, DS, "uniform", "365-60"), ("v", A, 1, 0, BASIS, DS, "uniform", "365-60")],
        schema_of(USER_LTE),
    )
    lake.replace(wrong, USER_LTE, where)
    metrics = write_drift(Day(lake, configured, DS))
    assert {user: row["bound_ok"] for user, row in drift_rows(lake).items()} == {"u": False, "v": True}
    assert metrics["n_bound_broken", "uniform/365-60/1"] == 1
    assert metrics["n_bound_broken", "recency/365-60/1"] == 0


def test_nan_in_a_stored_lte_is_no_pass(lake, configured):
    put_basis(lake, {"a": A})
    put_events(lake, [Event("u", "a", 100)])
    run_lte(lake, configured, 1, 0)
    row = ("u", [float("nan"), 1.0], 1, 0, BASIS, DS - timedelta(days=1), "uniform", "365-60")
    where = {"ds": DS - timedelta(days=1), "method": "uniform", "lte_window": "365-60"}
    lake.replace(lake.spark.createDataFrame([row], schema_of(USER_LTE)), USER_LTE, where)
    write_drift(Day(lake, configured, DS))
    assert not drift_rows(lake)["u"]["bound_ok"]


def test_other_settings_are_not_judged_and_another_basis_is_left_out(lake, configured):
    put_basis(lake, {"a": A, "b": B})
    put_events(lake, [Event("u", "a", 200), Event("u", "b", 100)])
    other = dataclasses.replace(configured, lte=dataclasses.replace(configured.lte, half_life_days=1.0))
    run_lte(lake, other, 1)
    put_basis(lake, {"a": A, "b": B}, basis_version="older")
    run_lte(lake, configured, 5, basis_version="older")
    run_lte(lake, configured, 0)
    references = find_references(Day(lake, configured, DS))
    assert (references.offsets, references.other_settings, references.other_basis) == ((1,), (1,), (5,))
    metrics = write_drift(Day(lake, configured, DS))
    row = drift_rows(lake, "recency")["u"]
    assert (row["reference_stale"], row["bound_ok"]) == (True, True)
    assert row["drift"] > row["bound"] + 0.1  # half-life 1 against 90
    assert (metrics["n_other_basis_days"], metrics["n_other_settings_days"]) == (1, 1)


def test_missing_rows_mixed_bases_and_other_settings_of_ds_are_named(lake, configured):
    put_basis(lake, {"a": A})
    put_events(lake, [Event("u", "a", 100)])
    with pytest.raises(LteError, match=f"table user_lte: no rows for ds={DS}"):
        write_drift(Day(lake, configured, DS))
    run_lte(lake, configured, 0)
    other = dataclasses.replace(configured, lte=dataclasses.replace(configured.lte, half_life_days=7.0))
    with pytest.raises(LteError, match=rf"user_lte, ds={DS}: made with .*90.* configured is .*7\.0"):
        write_drift(Day(lake, other, DS))
    mixed = lake.spark.createDataFrame([("w", A, 1, 0, "b2", DS, "uniform", "60-0")], schema_of(USER_LTE))
    lake.append(conformed(mixed, USER_LTE), USER_LTE)
    with pytest.raises(BasisError, match=f"user_lte, ds={DS}: basis versions b2 and {BASIS} must not be mixed"):
        write_drift(Day(lake, configured, DS))


def test_main_without_any_reference_writes_no_rows(lake, configured, deployment_file):
    put_basis(lake, {"a": A})
    put_events(lake, [Event("u", "a", 100)])
    run_lte(lake, configured, 0)
    main(["--config", str(deployment_file), "--ds", DS.isoformat()])
    assert lake.read(LTE_DRIFT, where={"ds": DS}).count() == 0
    metrics = {(r["metric"], r["label"]): r["value"] for r in lake.read(METRICS, where={"ds": DS}).collect()}
    assert metrics["n_reference_days", ""] == 0
    assert metrics["norm_mean", "uniform/365-60"] == pytest.approx(1)


def test_rerun_gives_the_same_rows_and_metrics(engine_lake, configured):
    rng = np.random.default_rng(2)
    vectors = {f"i{i}": [float(x) for x in rng.standard_normal(2)] for i in range(8)}
    put_basis(engine_lake, vectors)
    names = list(vectors)
    events = [Event(f"u{rng.integers(9)}", names[rng.integers(8)], int(rng.integers(50, 380))) for _ in range(120)]
    put_events(engine_lake, events)
    run_lte(engine_lake, configured, 5, 1, 0)
    first = write_drift(Day(engine_lake, configured, DS))
    rows = drift_rows(engine_lake, offset=5)
    assert len(rows) > 5
    assert write_drift(Day(engine_lake, configured, DS)) == first
    assert drift_rows(engine_lake, offset=5) == rows
    assert first["n_bound_broken", "recency/365-60/5"] == 0
    assert 0 < first["own_nearest_share", "uniform/365-60/1"] <= 1


@given(st.lists(st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=2), min_size=2, max_size=9))
def test_centre_does_not_depend_on_the_order(vectors):
    def mean_of(rows):
        labels = {"method": ["uniform"] * len(rows), "lte_window": ["365-60"] * len(rows)}
        batch = pa.record_batch({**labels, "embedding": pa.array(rows, pa.list_(pa.float32()))})
        parts = SumTask(FIXED_POINT)([batch.slice(0, 1), batch.slice(1)])
        return centre_of([row for part in parts for row in part.to_pylist()], FIXED_POINT).mean

    mean = mean_of(vectors)
    np.testing.assert_array_equal(mean_of(vectors[::-1]), mean)
    np.testing.assert_allclose(mean, np.mean(np.array(vectors, np.float64), axis=0), atol=1e-9)
