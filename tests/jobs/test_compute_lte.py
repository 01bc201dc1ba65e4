import dataclasses
import os
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jobs.basis.basis import BasisError, read_basis
from jobs.basis.matrix import load_matrix, pinned_basis
from jobs.compute_lte import lte_metrics, main, user_lte, write_lte
from jobs.config.sections import LteSection
from jobs.config.window import LONG_DAYS
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake
from jobs.lte.inputs import input_fingerprint, input_fingerprint_as_of
from jobs.lte.settings import LteError, n_partitions
from lte_builders import (
    BASIS,
    DS,
    LONG_AGO,
    Event,
    key_of,
    naive_lte,
    naive_weights,
    put_basis,
    put_events,
    put_timed,
)
from schemas import INTERACTIONS, METRICS, RUNS, USER_LTE

DIM = 4
WINDOWS = ("365-60", "365-0", "60-0")


def unit(rng):
    vector = [rng.gauss(0, 1) for _ in range(DIM)]
    norm = sum(x * x for x in vector) ** 0.5
    return [float(np.float32(x / norm)) for x in vector]


def random_world(seed, n_users=40):
    """Users with 0 to 30 events around the windows' edges; items k* known, new* too late, x* without vector."""
    rng = random.Random(seed)
    vectors = {f"k{i}": unit(rng) for i in range(9)} | {"new0": unit(rng), "new1": unit(rng)}
    items = [*vectors, "x0", "x1"]
    events = [
        Event(f"u{user:02d}", rng.choice(items), rng.choice([0, 1, 59, 60, 61, 300, 364, 365, rng.randrange(400)]))
        for user in range(n_users)
        for _ in range(rng.choice([0, 1, 2, 5, 30]))
    ]
    return vectors, events


def write_world(lake, vectors, events):
    put_basis(lake, vectors, first_ds={item: DS + timedelta(days=1) for item in vectors if item.startswith("new")})
    put_events(lake, events)


def with_lte(deployment, **settings):
    return dataclasses.replace(
        deployment,
        lte=LteSection(**({"windows": WINDOWS} | settings)),
        publish=dataclasses.replace(deployment.publish, window=settings.get("windows", WINDOWS)[0]),
        ranker=dataclasses.replace(deployment.ranker, enabled=False),  # it reads no LTEs that count items once
    )


def rows_of(lake):
    rows = lake.read(USER_LTE, where={"ds": DS}).toArrow().to_pylist()
    return {(row["user_id"], row["method"], row["lte_window"]): row for row in rows}


def naive_rows(vectors, events, lte):
    """Plain loops over users, windows, methods and events."""
    expected = {}
    known = {item for item in vectors if not item.startswith("new")}
    for text in lte.windows:
        start, end = (int(part) for part in text.split("-"))
        for user in {event.user for event in events if event.age < start}:
            mine = [event for event in events if event.user == user and end <= event.age < start]
            found = [(event.item, event.age) for event in mine if event.item in known]
            n_items = len(found) if lte.count == "each" else len({item for item, _ in found})
            for method in lte.methods:
                how = {"method": method, "half_life": lte.half_life_days, "count": lte.count}
                vector = naive_lte(naive_weights(found, (start, end), **how), vectors, DIM)
                expected[user, method, text] = (vector, n_items, len(mine) - len(found))
    return expected


def require_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, (vector, n_items, n_unknown) in expected.items():
        assert (found[key]["n_items"], found[key]["n_unknown"]) == (n_items, n_unknown), key
        np.testing.assert_allclose(found[key]["embedding"], vector, atol=2e-6, err_msg=str(key))
        assert found[key]["basis_version"] == BASIS
        assert any(found[key]["embedding"]) == (n_items > 0)


@pytest.mark.parametrize("count", ["each", "distinct"])
def test_equals_plain_loops_over_random_histories(engine_lake, deployment, count):
    vectors, events = random_world(11)
    write_world(engine_lake, vectors, events)
    configured = with_lte(deployment, count=count, half_life_days=30.0)
    write_lte(BasisDay(engine_lake, configured, DS, BASIS))
    require_equal(rows_of(engine_lake), naive_rows(vectors, events, configured.lte))


MIDNIGHT_AFTER_DS = datetime(DS.year, DS.month, DS.day, tzinfo=UTC) + timedelta(days=1)
STRANGE_EVENT = st.tuples(
    st.sampled_from(["anna", "bo", "zoë", "late 'x'"]),
    st.sampled_from(["a", "b", "c", "new", "unknown"]),
    st.sampled_from([0, 1, 59, 60, 61, 364, 365, 366, 400]),
    st.sampled_from(
        [1, 2, 43_200, 86_399, 86_400]
    ),  # seconds before the end of that UTC day, its first moment included
    st.sampled_from([-12, -5, 0, 5.75, 14]),  # the clock of whoever wrote the event: hours from UTC
)


def test_equals_plain_loops_for_any_days_clocks_and_repeats(spark_engine, deployment, tmp_path_factory, request):
    vectors = {"a": [1.0, 0.0, 0.0, 0.0], "b": [0.0, 0.6, 0.8, 0.0], "c": [0.5] * 4, "new": [0.0, 0.0, 0.0, 1.0]}

    # A lake an example takes Apache Spark ten seconds.
    @settings(max_examples=3 if "apache_spark" in request.node.name else 6)
    @given(written=st.lists(STRANGE_EVENT, min_size=1, max_size=25), count=st.sampled_from(["each", "distinct"]))
    def check(written, count):
        assume(any(age < LONG_DAYS for _, _, age, _, _ in written))  # without one, the job refuses the day
        lake = Lake(spark_engine, str(tmp_path_factory.mktemp("lake")))
        put_basis(lake, vectors, first_ds={"new": DS + timedelta(days=1)})
        moments = []
        for user, item, age, before, hours in written:
            when = MIDNIGHT_AFTER_DS - timedelta(days=age, seconds=before)
            moments.append((user, item, when.astimezone(timezone(timedelta(hours=hours)))))
        put_timed(lake, [*moments, *moments[:3]])  # a moment later again: both count
        configured = with_lte(deployment, count=count, half_life_days=30.0)
        write_lte(BasisDay(lake, configured, DS, BASIS))
        events = [Event(user, item, age) for user, item, age, _, _ in [*written, *written[:3]]]
        require_equal(rows_of(lake), naive_rows(vectors, events, configured.lte))

    check()


def test_population_is_everyone_since_the_windows_start(lake, deployment):
    # young: nothing in the long window yet: zero vector; gone: last seen on the day before the window.
    put_basis(lake, {"a": [1.0, 0.0, 0.0, 0.0]})
    put_events(lake, [Event("young", "a", 59), Event("edge", "a", 364), Event("gone", "a", 365), Event("odd", "?", 70)])
    write_lte(BasisDay(lake, with_lte(deployment, windows=("365-60",), methods=("uniform",)), DS, BASIS))
    rows = {user: (row["n_items"], row["n_unknown"], row["embedding"]) for (user, _, _), row in rows_of(lake).items()}
    zero = [0.0] * DIM
    assert rows == {"young": (0, 0, zero), "edge": (1, 0, [1.0, 0.0, 0.0, 0.0]), "odd": (0, 1, zero)}


def bits_of(df):
    rows = df.select("user_id", "method", "lte_window", "embedding", "n_items", "n_unknown").toArrow().to_pylist()
    key = lambda row: (row["user_id"], row["method"], row["lte_window"])  # noqa: E731
    return [(key(r), np.array(r["embedding"], np.float32).tobytes(), r["n_items"]) for r in sorted(rows, key=key)]


def computed(lake, partitions, *, order=None):
    interactions = lake.read(INTERACTIONS)
    rows = interactions if order is None else interactions.orderBy(order)
    section = LteSection(windows=WINDOWS, half_life_days=17.0)
    embeddings = read_basis(lake, BASIS)
    return bits_of(user_lte(rows, embeddings, DS, lte=section, basis=key_of(lake), partitions=partitions))


def test_same_bits_with_any_partitions_and_order(engine_lake):
    write_world(engine_lake, *random_world(12, n_users=15))
    once = computed(engine_lake, 1)
    assert len(once) > 20
    assert computed(engine_lake, 5) == once
    assert computed(engine_lake, 3, order="item_id") == once


@pytest.mark.spark
def test_same_bits_on_both_engines(sail, apache_spark, tmp_path):
    lakes = [Lake(engine, str(tmp_path / name)) for engine, name in ((sail, "sail"), (apache_spark, "spark"))]
    for each in lakes:
        write_world(each, *random_world(13, n_users=15))
    assert computed(lakes[0], 2) == computed(lakes[1], 3)


def test_rerun_replaces_and_leaves_no_slice_behind(lake, deployment):
    put_basis(lake, {"a": [1.0, 0.0, 0.0, 0.0]})
    put_events(lake, [Event("u", "a", 70)])
    write_lte(BasisDay(lake, with_lte(deployment), DS, BASIS))
    write_lte(BasisDay(lake, with_lte(deployment, windows=("365-60",), methods=("uniform",)), DS, BASIS))
    assert list(rows_of(lake)) == [("u", "uniform", "365-60")]


def test_main_writes_metrics_and_a_run_that_goes_stale_with_late_data(lake, deployment, deployment_file, monkeypatch):
    monkeypatch.setattr("jobs.compute_lte.configured_basis", lambda _: BASIS)
    put_basis(lake, {"a": [1.0, 0.0, 0.0, 0.0]})
    put_events(lake, [Event("u", "a", 70), Event("u", "?", 80), Event("v", "a", 5)])
    main(["--config", str(deployment_file), "--ds", DS.isoformat()])
    metrics = lte_metrics(lake, deployment.lte, DS)
    label = "uniform/365-60"
    names = ("n_users", "n_items", "n_unknown", "n_zero_users", "max_n_items")
    assert [metrics[name, label] for name in names] == [2, 1, 1, 1, 1]
    assert metrics["half_life_days", ""] == 90
    recorded = {(r["metric"], r["label"]): r["value"] for r in lake.read(METRICS, where={"ds": DS}).collect()}
    assert recorded == metrics
    run = lake.read(RUNS, where={"ds": DS}).collect()[0]
    assert (run["job"], run["basis_version"]) == ("compute_lte", BASIS)
    assert input_fingerprint_as_of(BasisDay(lake, deployment, DS, BASIS)) == run["input_fingerprint"]
    put_events(lake, [Event("w", "a", 366)])  # before every window: nothing to do with this run
    assert input_fingerprint_as_of(BasisDay(lake, deployment, DS, BASIS)) == run["input_fingerprint"]
    put_events(lake, [Event("w", "a", 300)])
    assert input_fingerprint_as_of(BasisDay(lake, deployment, DS, BASIS)) != run["input_fingerprint"]


def test_fingerprint_depends_on_all_that_lte_follow_from():
    days = [(DS, 3, "x"), (DS - timedelta(days=1), 2, "y")]
    base: dict[str, Any] = {"lte": LteSection(), "basis_version": BASIS, "n_known": 5}
    once = input_fingerprint(days, **base)
    assert input_fingerprint(days[::-1], **base) == once
    changes: list[dict[str, Any]] = [
        {"lte": LteSection(half_life_days=30.0)},
        {"lte": LteSection(count="distinct")},
        {"basis_version": "other"},
        {"n_known": 6},
    ]
    others = [input_fingerprint(days, **(base | change)) for change in changes]
    others.append(input_fingerprint([(DS, 3, "z"), days[1]], **base))
    assert len({once, *others}) == 6


def test_a_day_without_interactions_is_an_error(lake, deployment):
    put_basis(lake, {"a": [1.0, 0.0, 0.0, 0.0]})
    put_events(lake, [Event("u", "a", 400)])
    with pytest.raises(LteError, match=f"event_days: no interaction in the windows .'365-60'.* of ds={DS}"):
        write_lte(BasisDay(lake, deployment, DS, BASIS))
    assert lake.version(USER_LTE) is None


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ({"good": [1, 0], "bad": [0, float("nan")]}, "item bad: expected finite numbers in the vector, got nan"),
        ({"good": [1, 0], "bad": [0, float("inf")]}, "item bad: expected finite numbers in the vector, got inf"),
        ({"good": [1, 0], "bad": [0, 1, 0]}, "item bad: expected a vector of 2 numbers, got 3"),
    ],
)
def test_damaged_vectors_are_named_before_anything_is_written(lake, deployment, vectors, message):
    put_basis(lake, vectors)
    put_events(lake, [Event("u", "good", 70)])
    with pytest.raises(BasisError, match=f"item_embeddings .*basis_version {BASIS}, column embedding: {message}"):
        write_lte(BasisDay(lake, deployment, DS, BASIS))
    assert lake.version(USER_LTE) is None


def test_a_gap_in_the_numbering_is_named(lake):
    put_basis(lake, {"a": [1.0]}, start=0)
    put_basis(lake, {"b": [1.0]}, start=2)
    with pytest.raises(BasisError, match="item_index runs from 0 to 2, but there are 2 items"):
        load_matrix(key_of(lake))


def test_missing_basis_is_named(lake, deployment):
    with pytest.raises(BasisError, match="item_embeddings: not written yet"):
        pinned_basis(lake, BASIS)
    put_basis(lake, {"a": [1.0]})
    put_events(lake, [Event("u", "a", 70)])
    with pytest.raises(BasisError, match="no basis_version 'other'"):
        write_lte(BasisDay(lake, deployment, DS, "other"))


def test_matrix_is_pinned_and_only_one_basis(lake, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    put_basis(lake, {"a": [1.0, 2.0]})
    first = key_of(lake)
    put_basis(lake, {"z": [9.0, 9.0, 9.0]}, basis_version="other")
    put_basis(lake, {"b": [3.0, 4.0]}, start=1)
    np.testing.assert_array_equal(load_matrix(first).vectors, [[1, 2]])
    newest = load_matrix(key_of(lake))
    np.testing.assert_array_equal(newest.vectors, [[1, 2], [3, 4]])
    assert not newest.vectors.flags.writeable
    assert newest.known_ages(DS).tolist() == [(DS - LONG_AGO).days] * 2
    folders = [p.name for p in tmp_path.glob("lte-basis-*/*/*")]
    assert len(folders) == 1  # the older version is gone, and no half-built one stays


def test_a_cache_folder_of_others_is_refused(lake, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    put_basis(lake, {"a": [1.0, 2.0]})
    folder = tmp_path / f"lte-basis-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(BasisError, match="only user"):
        load_matrix(key_of(lake))


def test_partitions_are_bounded():
    assert n_partitions(10, 4) == 4
    assert n_partitions(20_000_001, 4) == 11
