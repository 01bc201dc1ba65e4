import math

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from lte_builders import naive_lte, naive_weights
from lte_models.averages import drift
from lte_models.averages.pooling import (
    Histories,
    Weighting,
    WindowPairs,
    long_term_embeddings,
    packed_keys,
    window_pairs,
)

WINDOW, N_ITEMS, DIM = (12, 3), 6, 2
AGES = range(WINDOW[1], WINDOW[0])
EVENTS = st.tuples(st.integers(-1, N_ITEMS - 1), st.integers(0, 20))
VECTORS = st.lists(st.lists(st.floats(-1, 1, width=32), min_size=DIM, max_size=DIM), min_size=N_ITEMS, max_size=N_ITEMS)
WEIGHTINGS = st.builds(
    Weighting,
    st.sampled_from(["uniform", "recency"]),
    st.sampled_from([0.3, 4.0, 1000.0]),
    st.sampled_from(["each", "distinct"]),
)
KNOWN_AGES = st.lists(st.integers(0, 9), min_size=N_ITEMS, max_size=N_ITEMS)
ALWAYS_KNOWN = [1000] * N_ITEMS


def histories_of(events):
    columns = np.array([(0, item, age) for item, age in events], np.int64).reshape(-1, 3).T
    return Histories(np.sort(packed_keys(*columns)), 1)


def windows_of(events, offset, known_ages=ALWAYS_KNOWN) -> tuple[WindowPairs, WindowPairs]:
    histories = histories_of(events)
    now = window_pairs(histories, AGES)
    before = drift.earlier_window(histories, AGES, offset_days=offset, known_age=np.array(known_ages))
    return now, before


def earlier_lte(events, offset, known_ages, vectors, weighting):
    """The LTE as a run ``offset`` days earlier stored it: from the items known then, with ages as of that day."""
    then = [(i if i >= 0 and known_ages[i] >= offset else -1, age - offset) for i, age in events if age >= offset]
    return long_term_embeddings(window_pairs(histories_of(then), AGES), vectors, weighting)


@settings(max_examples=400)
@given(st.lists(EVENTS, max_size=15), st.integers(1, 8), KNOWN_AGES, VECTORS, WEIGHTINGS)
def test_bounds_that_hold_always(events, offset, known_ages, vectors, weighting):
    vectors = np.array(vectors, np.float32)
    now, before = windows_of(events, offset, known_ages)
    changes = drift.turnover(now, before, weighting, N_ITEMS)
    stored_now = long_term_embeddings(now, vectors, weighting)
    stored_before = earlier_lte(events, offset, known_ages, vectors, weighting)
    assert changes.n_before.tolist() == stored_before.n_items.tolist()
    moved = drift.distances(stored_now.vectors, stored_before.vectors)
    extent = drift.basis_extent(vectors, np.ones(N_ITEMS, bool))
    tolerance = drift.rounding_tolerance(changes.n_now, changes.n_before, extent.max_norm)
    bound, tv_bound = drift.drift_bound(changes, extent.max_norm), drift.total_variation_bound(changes, extent)
    assert moved[0] <= tv_bound[0] + tolerance[0]
    assert tv_bound[0] <= bound[0] + 1e-9  # the sharper one
    if weighting.method == "uniform" and changes.n_now[0] and changes.n_before[0]:
        n_in, n_out = changes.n_in[0] / changes.n_now[0], changes.n_out[0] / changes.n_before[0]
        assert math.isclose(bound[0], 2 * max(n_in, n_out) * extent.max_norm, abs_tol=1e-9)


@given(st.lists(EVENTS, max_size=15), st.integers(1, 8), WEIGHTINGS)
def test_turnover_equals_plain_loops(events, offset, weighting):
    changes = drift.turnover(*windows_of(events, offset), weighting, N_ITEMS)
    now = [(item, age) for item, age in events if item >= 0 and age in AGES]
    before = [(item, age - offset) for item, age in events if item >= 0 and age - offset in AGES]
    if weighting.count == "distinct":
        sides = [{item for item, _ in side} for side in (now, before)]
        entered, left = len(sides[0] - sides[1]), len(sides[1] - sides[0])
    else:
        remaining, entered = [item for item, _ in before], 0
        for item, _ in now:
            if item in remaining:
                remaining.remove(item)
            else:
                entered += 1
        left = len(remaining)
    assert (changes.n_in[0], changes.n_out[0]) == (entered, left)
    settings_of = {"method": weighting.method, "half_life": weighting.half_life_days, "count": weighting.count}
    weights = [naive_weights([(str(i), a) for i, a in side], WINDOW, **settings_of) for side in (now, before)]
    distance = sum(abs(weights[0].get(str(i), 0) - weights[1].get(str(i), 0)) for i in range(N_ITEMS))
    assert math.isclose(changes.weight_distance[0], distance, abs_tol=1e-9)


def test_the_papers_bound_fails_where_the_windows_differ_in_size():
    # Ten copies of e = item 0; one -e = item 1 enters. LTE goes from e to (10 - 1)/11 e: drift 2/11 = .1818.
    events = [(0, 8)] * 10 + [(1, 3)]
    vectors = np.array([[1, 0], [-1, 0], *[[0, 0]] * 4], np.float32)
    now, before = windows_of(events, 1)
    changes = drift.turnover(now, before, Weighting("uniform"), N_ITEMS)
    stored = long_term_embeddings(now, vectors, Weighting("uniform"))
    earlier = earlier_lte(events, 1, ALWAYS_KNOWN, vectors, Weighting("uniform"))
    moved = drift.distances(stored.vectors, earlier.vectors)[0]
    extent = drift.basis_extent(vectors, np.ones(N_ITEMS, bool))
    assert moved == pytest.approx(2 / 11, abs=1e-6)
    assert drift.paper_tau(changes)[0] == pytest.approx(1 / 11)
    assert moved > 1 / 10  # nor does it hold with the earlier window's ten
    assert drift.drift_bound(changes, extent.max_norm)[0] == pytest.approx(2 / 11)  # tight
    assert drift.total_variation_bound(changes, extent)[0] == pytest.approx(2 / 11)


def a_day_of(events):
    """Distance that a uniform LTE over orthonormal items moves in a day, and the turnover behind it."""
    now, before = windows_of(events, 1)
    lte = long_term_embeddings(now, np.eye(N_ITEMS, dtype=np.float32), Weighting("uniform")).vectors
    earlier = earlier_lte(events, 1, ALWAYS_KNOWN, np.eye(N_ITEMS, dtype=np.float32), Weighting("uniform")).vectors
    return drift.distances(lte, earlier)[0], drift.turnover(now, before, Weighting("uniform"), N_ITEMS)


def exceeds_the_papers_bound(events):
    moved, changes = a_day_of(events)
    assert moved <= drift.drift_bound(changes, 1.0)[0] + 1e-6  # ours holds in whatever the search tries
    return bool(changes.n_now[0]) and moved > drift.paper_tau(changes)[0] + 1e-3


def test_hypothesis_finds_where_the_papers_bound_fails():
    known = st.tuples(st.integers(0, N_ITEMS - 1), st.integers(0, 20))
    found = find(
        st.lists(known, max_size=15), exceeds_the_papers_bound, settings=settings(database=None, max_examples=2000)
    )
    moved, changes = a_day_of(found)
    assert moved > drift.paper_tau(changes)[0]
    assert changes.n_now[0] != changes.n_before[0]  # with windows of one size the paper is right


def test_the_papers_bound_fails_in_random_trials_and_ours_does_not():
    rng = np.random.default_rng(3)
    n_broken = n_ours = 0
    for _ in range(500):
        vectors = rng.standard_normal((N_ITEMS, DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        events = [(int(rng.integers(N_ITEMS)), int(rng.integers(21))) for _ in range(int(rng.integers(1, 12)))]
        now, before = windows_of(events, 2)
        changes = drift.turnover(now, before, Weighting("uniform"), N_ITEMS)
        lte = long_term_embeddings(now, vectors, Weighting("uniform")).vectors
        earlier = earlier_lte(events, 2, ALWAYS_KNOWN, vectors, Weighting("uniform")).vectors
        moved = drift.distances(lte, earlier)[0]
        n_broken += bool(changes.n_now[0] and moved > drift.paper_tau(changes)[0] + 1e-6)
        n_ours += bool(moved > drift.drift_bound(changes, 1.0)[0] + 1e-6)
    assert n_broken > 0
    assert n_ours == 0


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], (0, 0, 0.0)),  # empty on both days: nothing moved
        ([(0, 3)], (1, 0, 1.0)),  # first interaction: from 0 to e
        ([(0, 12)], (0, 1, 1.0)),  # last one left: from e to 0
    ],
)
@pytest.mark.parametrize("method", ["uniform", "recency"])
def test_an_empty_day_bounds_by_the_largest_norm(events, expected, method):
    changes = drift.turnover(*windows_of(events, 1), Weighting(method), N_ITEMS)
    extent = drift.BasisExtent(max_norm=3.0, radius=0.5)  # a centre does not help against 0
    assert (changes.n_now[0], changes.n_before[0], changes.mass_factor[0]) == expected
    assert drift.drift_bound(changes, 3.0)[0] == 3.0 * expected[2]
    assert drift.total_variation_bound(changes, extent)[0] == 3.0 * expected[2]
    assert drift.paper_tau(changes)[0] == (1.0 if expected[0] else 0.0)


def test_recency_weighs_what_leaves_by_its_age():
    # Item 1, age 12, leaves; item 0, age 4, stays. Half-life 4: masses 1 and 1/4, so 1/5 of the weight went.
    changes = drift.turnover(*windows_of([(0, 4), (1, 12)], 1), Weighting("recency", 4.0), N_ITEMS)
    assert changes.mass_factor[0] == pytest.approx(2 / 5)
    assert changes.weight_distance[0] == pytest.approx(2 / 5)


def test_an_item_that_became_known_enters():
    changes = drift.turnover(*windows_of([(0, 8), (1, 8)], 5, [4, 5, 9, 9, 9, 9]), Weighting("uniform"), N_ITEMS)
    assert (changes.n_now[0], changes.n_before[0], changes.n_in[0], changes.n_out[0]) == (2, 1, 1, 0)


def test_tolerance_covers_float32_and_little_more():
    # 20,000 equal weights on 6 vectors: rounding moves the LTE, and less than the tolerance.
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((20_000, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keys = np.sort(packed_keys(np.zeros(20_000, np.int64), np.arange(20_000), np.full(20_000, 5)))
    stored = long_term_embeddings(window_pairs(Histories(keys, 1), AGES), vectors, Weighting("uniform")).vectors
    error = np.linalg.norm(stored[0] - vectors.astype(np.float64).mean(axis=0))
    one_side = drift.rounding_tolerance(np.array([20_000]), np.array([0]), 1.0)[0]
    assert 0 < error < one_side < 2e-3


def test_cosine_activity_and_own_neighbour_by_hand():
    now = np.array([[1, 0], [0, 2], [0, 0]], np.float32)
    before = np.array([[1, 1], [0, 1], [1, 0]], np.float32)
    np.testing.assert_allclose(drift.cosines(now, before), [math.sqrt(0.5), 1, math.nan])
    assert drift.activity_buckets(np.array([0, 1, 4, 5, 19, 20, 99, 100])) == [
        *("0", "1-4", "1-4", "5-19", "5-19", "20-99", "20-99", "100+")
    ]
    # User 0 at (1,0) is nearest to (1,0), user 2's; users 1 and 2: (0,2) to (0,1) is own; (0,0) ties (0,1) and own.
    assert drift.own_nearest_share(now, before) == pytest.approx(2 / 3)
    assert math.isnan(drift.own_nearest_share(now[:0], before[:0]))


def test_extent_measures_known_vectors_only():
    vectors = np.array([[3, 0], [5, 0], [100, 0]], np.float32)
    extent = drift.basis_extent(vectors, np.array([True, True, False]))
    assert extent == drift.BasisExtent(max_norm=5.0, radius=1.0)  # mean (4, 0)
    assert drift.basis_extent(vectors, np.zeros(3, bool)) == drift.BasisExtent(0.0, 0.0)


def test_naive_lte_agrees_with_the_stored_one():
    events = [(0, 4), (1, 5), (1, 6)]
    vectors = np.eye(N_ITEMS, DIM, dtype=np.float32)
    stored = long_term_embeddings(window_pairs(histories_of(events), AGES), vectors, Weighting("uniform"))
    weights = naive_weights([(str(i), a) for i, a in events], WINDOW, method="uniform", half_life=1.0, count="each")
    expected = naive_lte(weights, {str(i): list(map(float, v)) for i, v in enumerate(vectors)}, DIM)
    np.testing.assert_allclose(stored.vectors[0], expected, rtol=1e-6)
