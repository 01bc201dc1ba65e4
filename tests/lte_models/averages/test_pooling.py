import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lte_builders import naive_lte, naive_weights
from lte_models.averages.pooling import (
    MAX_AGE_DAYS,
    MAX_ITEMS,
    MAX_USERS,
    Histories,
    PoolingError,
    Weighting,
    long_term_embeddings,
    packed_keys,
    pooled,
    window_pairs,
)

N_ITEMS, DIM = 7, 3
VECTORS = np.random.default_rng(1).standard_normal((N_ITEMS, DIM)).astype(np.float32)
BY_NAME = {str(item): [float(x) for x in vector] for item, vector in enumerate(VECTORS)}
# Items -1 have no vector; ages crowd the edges of the windows that are tested.
EVENTS = st.tuples(st.integers(-1, N_ITEMS - 1), st.sampled_from([0, 1, 59, 60, 61, 200, 364, 365, 366]))
USERS = st.lists(st.lists(EVENTS, max_size=12), min_size=1, max_size=6)
WINDOWS = st.sampled_from([(365, 60), (60, 0), (365, 0), (61, 60)])
WEIGHTINGS = st.builds(
    Weighting,
    st.sampled_from(["uniform", "recency"]),
    st.sampled_from([0.05, 1.0, 90.0, 1e6]),
    st.sampled_from(["each", "distinct"]),
)


def histories_of(users):
    events = [(row, item, age) for row, user in enumerate(users) for item, age in user]
    columns = np.array(events, np.int64).reshape(-1, 3).T
    return Histories(np.sort(packed_keys(*columns)), len(users))


def lte_of(users, window, weighting):
    return long_term_embeddings(window_pairs(histories_of(users), range(window[1], window[0])), VECTORS, weighting)


@given(USERS, WINDOWS, WEIGHTINGS)
def test_equals_plain_loops(users, window, weighting):
    lte = lte_of(users, window, weighting)
    for row, user in enumerate(users):
        inside = [(item, age) for item, age in user if window[1] <= age < window[0]]
        known = [(str(item), age) for item, age in inside if item >= 0]
        # Ages from the newest on: a half-life of .05 days makes every other weight of 2^(-age/half-life) vanish.
        newest = min((age for _, age in known), default=0)
        shifted = [(item, age - newest) for item, age in known]
        weights = naive_weights(
            shifted, (10**6, 0), method=weighting.method, half_life=weighting.half_life_days, count=weighting.count
        )
        expected = naive_lte(weights, BY_NAME, DIM)
        np.testing.assert_allclose(lte.vectors[row], expected, atol=2e-6)
        assert lte.n_items[row] == (len(known) if weighting.count == "each" else len({item for item, _ in known}))
        assert lte.n_unknown[row] == len(inside) - len(known)


@given(USERS, WINDOWS, WEIGHTINGS, st.randoms(use_true_random=False))
def test_order_of_events_and_cutting_into_blocks_change_no_bit(users, window, weighting, random):
    whole = lte_of(users, window, weighting)
    shuffled = [random.sample(user, len(user)) for user in users]
    np.testing.assert_array_equal(lte_of(shuffled, window, weighting).vectors, whole.vectors)
    cut = random.randint(0, len(users))
    parts = [histories_of(users).block(*edges) for edges in ((0, cut), (cut, len(users)))]
    pieces = [
        long_term_embeddings(window_pairs(part, range(window[1], window[0])), VECTORS, weighting).vectors
        for part in parts
    ]
    np.testing.assert_array_equal(np.concatenate(pieces), whole.vectors)


def test_by_hand():
    # Items 0 and 1 at ages 60 and 150: with a half-life of 90 days the second weighs half, so 2/3 and 1/3.
    users = [[(0, 60), (1, 150)], [(0, 70), (0, 80), (1, 90)], [(-1, 100), (2, 59)]]
    e = VECTORS.astype(np.float64)
    recency = lte_of(users[:1], (365, 60), Weighting("recency", 90.0))
    np.testing.assert_allclose(recency.vectors[0], (2 * e[0] + e[1]) / 3, rtol=1e-6)
    uniform = lte_of(users, (365, 60), Weighting("uniform"))
    np.testing.assert_allclose(uniform.vectors[1], (2 * e[0] + e[1]) / 3, rtol=1e-6)
    np.testing.assert_array_equal(uniform.vectors[2], np.zeros(DIM))  # one unknown item; the other is too young
    assert uniform.n_items.tolist() == [2, 3, 0]
    assert uniform.n_unknown.tolist() == [0, 0, 1]
    distinct = lte_of(users, (365, 60), Weighting("uniform", count="distinct"))
    np.testing.assert_allclose(distinct.vectors[1], (e[0] + e[1]) / 2, rtol=1e-6)


def test_one_event_a_day_lies_in_one_of_two_windows():
    user = [[(0, age) for age in range(400)]]
    n_items = {window: int(lte_of(user, window, Weighting("uniform")).n_items[0]) for window in [(365, 60), (60, 0)]}
    assert n_items == {(365, 60): 305, (60, 0): 60}


def test_largest_numbers_fit_beside_each_other():
    keys = packed_keys(*(np.array([value]) for value in (MAX_USERS - 1, MAX_ITEMS - 1, MAX_AGE_DAYS)))
    histories = Histories(keys, MAX_USERS)
    assert keys[0] > 0
    assert (histories.rows[0], histories.item_indices[0], histories.ages[0]) == (
        MAX_USERS - 1,
        MAX_ITEMS - 1,
        MAX_AGE_DAYS,
    )


def test_no_weight_vanishes_with_a_short_half_life():
    # 2^(-364 / 0.01) is 0 in float64; the newest item still gets all the weight.
    lte = lte_of([[(3, 363), (4, 364)]], (365, 60), Weighting("recency", 0.01))
    np.testing.assert_allclose(lte.vectors[0], VECTORS[3], rtol=1e-6)
    assert math.isclose(float(lte.n_items[0]), 2)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Weighting("median"), "median"),
        (lambda: Weighting("uniform", count="twice"), "twice"),
        (lambda: Weighting("recency", half_life_days=0.0), "0.0"),
        (lambda: Weighting("recency", half_life_days=float("nan")), "nan"),
        (lambda: lte_of([[(N_ITEMS - 1, 70), (0, 70)]], (365, 60), Weighting("uniform")), None),
        (lambda: lte_of([[(N_ITEMS, 70)]], (365, 60), Weighting("uniform")), f"item_index {N_ITEMS}"),
    ],
)
def test_what_cannot_be_pooled_is_named(make, named):
    if named is None:
        assert make().n_items.tolist() == [2]
        return
    with pytest.raises(PoolingError, match=named):
        make()


def test_shapes_and_types_are_checked():
    pairs = window_pairs(histories_of([[(0, 70)]]), range(60, 365))
    weights = pairs.matrix(np.ones(1, np.float32), N_ITEMS)
    with pytest.raises(PoolingError, match=r"\(1, 7\) do not fit vectors \(6, 3\)"):
        pooled(weights, VECTORS[:-1])
    with pytest.raises(PoolingError, match="float64"):
        pooled(weights, VECTORS.astype(np.float64))
