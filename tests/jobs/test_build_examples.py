import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql.types import StructType

from jobs.build_examples import missing_anchors, write_examples
from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake
from jobs.lake.predicates import TableError
from jobs.landing.event_days import refresh_event_days
from jobs.ranker.examples import ExamplesOfUser, first_landing, tie_order, user_events
from lte_models.averages.pooling import Weighting
from lte_models.ranker.examples import ExampleCollate, averaged_lte, lte_weights
from schemas import EVENT_DAYS, INTERACTIONS, ITEM_EMBEDDINGS, TRAINING_EXAMPLES, Table

DS = date(2020, 12, 31)
DAY = 86_400
ANCHOR = 20_000  # days since 1970


def _event(days_before_end: float, item: int, kind: int = 0) -> dict[str, int]:
    """An event so many days before the end of ANCHOR; negative ones lie after it."""
    return {"ts": int((ANCHOR + 1 - days_before_end) * DAY), "item": item, "type": kind}


def _example(events: Sequence[dict[str, int]], anchor: int = ANCHOR) -> dict[str, Any]:
    rows = list(ExamplesOfUser((anchor,), half_life_days=30.0).examples("u", events))
    assert len(rows) == 1
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in rows[0].items()}


TARGET = _event(-0.5, 7)


def test_an_example_by_hand() -> None:
    events = [_event(0.25, 3, 1), _event(61.5, 3), _event(61.25, 3), _event(2, 5), TARGET, _event(-0.2, 2)]
    row = _example(events)
    assert row["anchor_day"] == ANCHOR
    assert (row["items"], row["types"], row["ages_hours"]) == ([5, 3], [0, 1], [48, 6])
    assert row["targets"] == [2, 7]
    assert row["past_items"] == [3, 5]
    assert (row["past_n_short"], row["past_n_long"]) == ([1, 1], [2, 0])
    assert (row["past_n_week"], row["past_n_month"]) == ([1, 1], [1, 1])
    assert row["past_days"] == [2, 1]  # the two events 61 days back share a day
    assert row["past_last_gap"] == [61.0, 0.0]
    assert row["past_last_age"] == [0.25, 2.0]
    assert row["past_first_age"] == [61.5, 2.0]
    # ages in whole days: 0 on the anchor, 61 for the two old ones; exactly two days before the end is age 1
    assert row["past_w_short"] == pytest.approx([1.0, 2 ** (-1 / 30)])
    assert row["past_w_long"] == pytest.approx([2 * 2 ** (-61 / 30), 0.0])


def test_visits_by_hand() -> None:
    # days before the target: item 3 at 1, 7, 8 and 29; item 5 twice at 14; item 4 at 19
    events = [_event(ago - 0.5, 3) for ago in (1, 7, 8, 29)] + [_event(13.5, 5), _event(13.4, 5), _event(18.5, 4)]
    row = _example([*events, TARGET])
    assert row["past_items"] == [3, 4, 5]
    assert (row["past_n_week"], row["past_n_month"]) == ([2, 0, 0], [3, 1, 2])
    assert row["past_days"] == [4, 1, 1]
    assert row["past_weekday"] == [1, 0, 1]  # 7 and 14 days back is the target's weekday
    # the user came 1, 7, 8, 14, 19 and 29 days back
    assert row["past_visits_since"] == [0, 4, 3]
    assert row["past_visits_from"] == [6, 5, 4]
    assert row["past_last_gap"] == [6.0, 0.0, 0.0]


def test_windows_at_their_boundary_days() -> None:
    # one event a day, item = its age in whole days, for more days than any window holds
    events = [_event(age + 0.5, age) for age in range(400)]
    row = _example([*events, TARGET])
    assert row["past_items"] == list(range(365))
    for name, days in (("n_week", 7), ("n_month", 28), ("n_short", 60)):
        assert [n for n, count in zip(row["past_items"], row[f"past_{name}"], strict=True) if count] == list(
            range(days)
        )
    assert [n for n, count in zip(row["past_items"], row["past_n_long"], strict=True) if count] == list(range(60, 365))
    assert row["items"] == list(range(59, -1, -1))


def test_only_the_last_hundred_interactions_are_kept() -> None:
    row = _example([_event(10 - i / 100, i) for i in range(150)] + [TARGET])
    assert row["items"] == list(range(50, 150))


def test_a_midnight_event_belongs_to_the_day_it_opens() -> None:
    row = _example([_event(0, 9), _event(1, 4), _event(60, 5), _event(365, 6)])
    assert row["targets"] == [9]
    assert row["items"] == [5, 4]
    assert row["past_items"] == [4, 5, 6]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0.01, 400), st.integers(0, 5)), max_size=12),
    st.lists(st.tuples(st.floats(-30, -0.01), st.integers(0, 9)), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_no_example_sees_its_future(past: list[Any], future: list[Any], rng: Any) -> None:
    events = [_event(age, item) for age, item in past]
    later = [_event(age, item, kind=1) for age, item in future]
    before = _example([*events, TARGET])
    mixed = [*events, TARGET, *later]
    rng.shuffle(mixed)
    after = _example(mixed)
    assert {k: v for k, v in after.items() if k != "targets"} == {k: v for k, v in before.items() if k != "targets"}
    on_target_day = {event["item"] for event in [TARGET, *later] if event["ts"] < (ANCHOR + 2) * DAY}
    assert set(after["targets"]) == on_target_day


def test_ties_in_time_do_not_follow_item_numbers() -> None:
    """In one basket every item is as likely to be before as after an item of a higher number."""
    n_users, n_rising = 200, 0
    for number in range(n_users):
        events = [_event(0.5, item) for item in (50, 7, 33, 2, 90, 41)]
        task = ExamplesOfUser((ANCHOR,), 30.0)
        rows = [next(iter(task.examples(f"u{number}", [*part, TARGET]))) for part in (events, events[::-1])]
        assert rows[0]["items"].tolist() == rows[1]["items"].tolist()  # the same in any order of reading
        assert rows[0]["moments"].tolist() == [0] * 6
        n_rising += int(np.sum(np.diff(rows[0]["items"]) > 0))
    pairs = 5 * n_users  # half of them rise; neighbouring pairs of a permutation rise with variance (n + 1) / 12
    assert abs(n_rising - pairs / 2) < 5 * np.sqrt(n_users * 7 / 12)


def test_a_random_part_of_a_basket_above_the_cap_is_kept() -> None:
    events = [_event(0.5, item) for item in range(300)]
    kept = [
        next(iter(ExamplesOfUser((ANCHOR,), 30.0).examples(user, [*events, TARGET])))["items"] for user in ("a", "b")
    ]
    assert [len(items) for items in kept] == [100, 100]
    assert set(kept[0].tolist()) != set(kept[1].tolist())
    # The mean of 100 of the numbers 0 to 299 lies within 5 deviations (7.1 each) of 149.5.
    assert all(abs(items.mean() - 149.5) < 36 for items in kept)


def test_the_order_of_ties_is_the_same_on_every_machine() -> None:
    order = tie_order("u", np.array([1, 1, 2]), np.array([5, 6, 5]))
    # By splitmix64 in whole numbers of Python, which know no overflow.
    seed = int.from_bytes(hashlib.blake2b(b"u", digest_size=8).digest(), "little")
    assert order.tolist() == [_mixed(_mixed(seed, ts), item) for ts, item in ((1, 5), (1, 6), (2, 5))]


def _mixed(state: int, value: int) -> int:
    bits = 2**64
    z = (state + (value + 1) * 0x9E3779B97F4A7C15) % bits
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % bits
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % bits
    return z ^ (z >> 31)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0.01, 400), st.integers(0, 5), st.integers(0, 30)), max_size=12),
    st.lists(st.tuples(st.floats(0.01, 400), st.integers(0, 5), st.integers(1, 30)), max_size=12),
)
def test_no_example_sees_an_event_that_had_not_landed(
    on_time: list[tuple[float, int, int]], late: list[tuple[float, int, int]]
) -> None:
    """Late events change nothing of the past; as targets they count whenever they landed."""
    known = [_event(age, item) | {"landed": ANCHOR - ahead} for age, item, ahead in on_time]
    unknown = [_event(age, item, 1) | {"landed": ANCHOR + behind} for age, item, behind in late]
    target = TARGET | {"landed": ANCHOR + 9}
    assert _example([*unknown, target, *known]) == _example([*known, target])


def test_examples_are_one_a_day_that_the_user_came_and_an_anchor_was_asked_for() -> None:
    task = ExamplesOfUser((ANCHOR, ANCHOR + 1), 30.0)
    events = [_event(age, 1) for age in (5.5, -0.5, -1.5, -2.5)]
    assert [row["anchor_day"] for row in task.examples("u", events)] == [ANCHOR, ANCHOR + 1]
    assert list(task.examples("u", [_event(3, 1)])) == []
    unknown = [{"ts": TARGET["ts"], "item": -1, "type": 0}]
    assert list(task.examples("u", unknown)) == []


@pytest.mark.parametrize("method", ["uniform", "recency"])
def test_the_lte_of_an_example_is_the_lte_that_compute_lte_makes(method: str) -> None:
    rng = np.random.default_rng(1)
    events = [
        _event(float(age), int(item)) for age, item in zip(rng.uniform(1, 380, 60), rng.integers(0, 6, 60), strict=True)
    ]
    row = next(iter(ExamplesOfUser((ANCHOR,), 30.0).examples("u", [*events, TARGET])))
    arrays = {name: pa.array([value.tolist()]) for name, value in row.items() if isinstance(value, np.ndarray)}
    table = pa.table({**arrays, "anchor_day": pa.array([ANCHOR], pa.int32())})
    content = np.vstack([np.zeros(3), rng.normal(size=(8, 3))]).astype(np.float32)
    past = ExampleCollate(np.arange(1, 9))(table).past
    found, _ = averaged_lte(past, lte_weights(past, method=method, lagged=True), torch.from_numpy(content), 1)
    # by definition, from the events themselves
    days = np.array([ANCHOR - event["ts"] // DAY for event in events])
    items = np.array([event["item"] for event in events])
    inside = (days >= 60) & (days < 365)
    weights = (1.0 if method == "uniform" else 2.0 ** (-days[inside] / 30.0)) * np.ones(inside.sum())
    expected = (content[items[inside] + 1] * weights[:, None]).sum(0) / weights.sum()
    assert found[0].numpy() == pytest.approx(expected, abs=1e-6)
    assert Weighting(method, 30.0).method == method  # compute_lte knows the method by the same name


def _append(lake: Lake, rows: Sequence[tuple[object, ...]], table: Table) -> None:
    lake.append_rows(rows, table)


def _interaction(user: str, item: str, day: date, kind: str = "purchase", hour: int = 12) -> tuple[object, ...]:
    return (user, item, datetime(day.year, day.month, day.day, hour, tzinfo=UTC), kind, "", None, day, day)


def _shop(lake: Lake, rows: Sequence[tuple[object, ...]], *, lands: date = date(2020, 1, 1)) -> None:
    """Interactions as ingest writes them, and items 0 to 2, of which the last lands on a day of its own."""
    _land(lake, rows)
    first_ds = (date(2020, 1, 1), date(2020, 1, 1), lands)
    _append(
        lake,
        [(f"i{i}", "basis1", i, "hash", "text", day, [1.0, 0.0]) for i, day in enumerate(first_ds)],
        ITEM_EMBEDDINGS,
    )


def _land(lake: Lake, rows: Sequence[tuple[Any, ...]]) -> None:
    _append(lake, rows, INTERACTIONS)
    refresh_event_days(lake, sorted({row[-1] for row in rows}))


def _back(days: int) -> date:
    return DS - timedelta(days=days)


def _settings(file: Path, **changes: str) -> Deployment:
    environ = {"LTE_RANKER__TRAIN_DAYS": "10", "LTE_RANKER__GATE_DAYS": "1", "LTE_RANKER__VALIDATION_DAYS": "2"}
    return load_deployment(file, environ=environ | {f"LTE_{name.upper()}": value for name, value in changes.items()})


def _build(lake: Lake, deployment: Deployment, ds: date = DS) -> list[date]:
    """A run of ``ds``; returns the anchors that it built."""
    day = BasisDay(lake, deployment, ds, "basis1")
    anchors = missing_anchors(day)
    write_examples(day, anchors)
    return list(anchors)


def _rows(lake: Lake) -> list[dict[str, Any]]:
    rows = [row.asDict() for row in lake.read(TRAINING_EXAMPLES).collect()]
    return sorted(rows, key=lambda row: (row["anchor_ds"], row["user_id"]))


def test_the_table_holds_each_anchor_once_and_a_later_run_adds_a_day(lake: Lake, deployment_file: Path) -> None:
    deployment = _settings(deployment_file)
    rows = [_interaction("a", f"i{back % 3}", _back(back)) for back in range(12)]
    _shop(lake, [*rows, _interaction("b", "i1", DS, "click"), _interaction("b", "nowhere", _back(4))])
    day = BasisDay(lake, deployment, _back(1), "basis1")
    anchors = missing_anchors(day)
    assert list(anchors) == [_back(back) for back in range(12, 1, -1)]
    assert write_examples(day, anchors) == 11  # targets 1 to 11 days before ds
    assert _build(lake, deployment) == [_back(1)]
    assert _build(lake, deployment) == []  # nothing changed, nothing is built
    found = lake.read(TRAINING_EXAMPLES, where={"anchor_ds": _back(1)}).orderBy("user_id").collect()
    assert [(row["user_id"], row["targets"]) for row in found] == [("a", [0]), ("b", [1])]
    assert found[0]["items"] == [11 % 3, *(back % 3 for back in range(10, 0, -1))]
    assert set(found[0]["types"]) == {1}  # "purchase" is the second type of the test deployment
    assert (found[1]["items"], found[1]["past_items"]) == ([], [])
    assert lake.read(TRAINING_EXAMPLES).count() == 13


def test_a_late_event_has_the_anchors_that_it_reaches_built_again_and_no_others(
    lake: Lake, deployment_file: Path
) -> None:
    deployment = _settings(deployment_file)
    _shop(lake, [_interaction("a", "i0", _back(back)) for back in range(12) if back != 8])
    assert _build(lake, deployment) == [_back(back) for back in range(11, 0, -1) if back != 9]  # nobody came after it
    before = _rows(lake)
    _land(lake, [_interaction("a", "i1", _back(5), hour=8)])
    # a target of the anchor before it, in the past of the later ones
    assert _build(lake, deployment) == [_back(back) for back in range(6, 0, -1)]
    after = _rows(lake)
    assert [row for row in after if row["anchor_ds"] < _back(6)] == [
        row for row in before if row["anchor_ds"] < _back(6)
    ]
    assert [row["targets"] for row in after if row["anchor_ds"] == _back(6)] == [[0, 1]]
    assert all(row["past_items"] == [0, 1] for row in after if row["anchor_ds"] > _back(6))


def test_other_types_or_another_half_life_have_every_anchor_built_again(lake: Lake, deployment_file: Path) -> None:
    _shop(lake, [_interaction("a", "i0", _back(back)) for back in range(12)])
    kinds, weights = [], []
    for changes in ({}, {"interactions__types": "purchase,click"}, {"lte__half_life_days": "30"}):
        deployment = _settings(deployment_file, **changes)
        assert len(_build(lake, deployment)) == 11
        assert _build(lake, deployment) == []
        rows = _rows(lake)
        assert len(rows) == 11
        kinds.append({kind for row in rows for kind in row["types"]})
        weights.append(rows[-1]["past_w_short"])
    assert kinds == [{1}, {0}, {1}]  # "purchase" comes second, first, second
    for found, half_life in zip(weights, (90, 90, 30), strict=True):
        assert found == pytest.approx([sum(2 ** (-age / half_life) for age in range(11))])


def test_an_item_is_in_no_past_before_it_lands_in_a_first_run_as_in_daily_ones(
    lake: Lake, deployment_file: Path, tmp_path: Path
) -> None:
    deployment = _settings(deployment_file)
    # i2 was taken every day, and its catalogue row landed four days before ds
    rows = [_interaction("a", item, _back(back)) for back in range(12) for item in ("i0", "i2")]
    _shop(lake, rows, lands=_back(4))
    _build(lake, deployment)
    pasts = {row["anchor_ds"]: (row["past_items"], row["targets"]) for row in _rows(lake)}
    assert pasts[_back(6)] == ([0], [0])
    assert pasts[_back(5)] == ([0], [0, 2])  # landed on the target day: not in the past yet
    assert pasts[_back(4)] == ([0, 2], [0, 2])
    last = _rows(lake)[-1]
    pairs = [set(last["items"][at : at + 2]) for at in range(0, 22, 2)]  # both at one moment: a hash orders the two
    assert (len(last["items"]), pairs) == (22, [{0, 2}] * 11)  # from now on its older interactions count, too
    daily = Lake(lake.spark, str(tmp_path / "daily"))
    _shop(daily, rows, lands=_back(4))
    _build(daily, deployment, _back(5))
    assert _build(daily, deployment) == [_back(back) for back in range(5, 0, -1)]  # its landing changes no earlier one
    assert [row for row in _rows(daily) if row["anchor_ds"] >= _back(11)] == _rows(lake)


def test_a_table_of_the_version_before_is_built_again(lake: Lake, deployment_file: Path) -> None:
    deployment = _settings(deployment_file)
    _shop(lake, [_interaction("a", "i0", _back(back)) for back in range(12)])
    before = replace(
        TRAINING_EXAMPLES,
        schema=StructType([field for field in TRAINING_EXAMPLES.schema if field.name != "inputs_id"]),
    )
    _build(lake, deployment)
    rows, version = lake.read(TRAINING_EXAMPLES).drop("inputs_id"), lake.version(TRAINING_EXAMPLES)
    old = Lake(lake.spark, f"{lake.root}_old")
    old.append(rows, before)
    old.append(lake.read(INTERACTIONS), INTERACTIONS)
    old.append(lake.read(EVENT_DAYS), EVENT_DAYS)
    old.append(lake.read(ITEM_EMBEDDINGS), ITEM_EMBEDDINGS)
    with pytest.raises(TableError, match=r"expected columns .* on disk"):
        missing_anchors(BasisDay(old, deployment, DS, "basis1"))
    old.renew(TRAINING_EXAMPLES)
    assert len(_build(old, deployment)) == 11
    assert _rows(old) == _rows(lake)
    assert old.read(before, version=1).count() == 11  # its history stays
    lake.renew(TRAINING_EXAMPLES)  # of this version: nothing happens
    assert lake.version(TRAINING_EXAMPLES) == version


def test_a_late_event_is_in_no_past_before_it_landed_unless_the_first_load_brought_it(lake: Lake) -> None:
    first, anchor = date(2020, 6, 1), date(2020, 12, 1)
    rows = [
        ("u", "i0", "event", first - timedelta(days=100), first),  # history of the first load
        ("u", "i1", "on time", anchor, anchor),
        ("u", "i2", "late", anchor, anchor + timedelta(days=1)),
        ("u", "i0", "target", anchor + timedelta(days=1), anchor + timedelta(days=5)),
    ]
    _append(
        lake, [(*_interaction(user, item, day)[:6], landed, day) for user, item, _, day, landed in rows], INTERACTIONS
    )
    items = lake.spark.createDataFrame(
        [(f"i{n}", n, first) for n in range(3)], "item_id string, item_index int, first_ds date"
    )
    interactions = lake.read(INTERACTIONS)
    assert first_landing(interactions) == first
    for load, expected in ((first, [0, 1]), (None, [0, 1])):
        [user] = user_events(interactions, items, ["purchase"], [anchor], first_load=load).toArrow().to_pylist()
        landed = {(event["item"], event["ts"] // DAY): event["landed"] for event in user["events"]}
        [example] = ExamplesOfUser((_day(anchor),), 30.0).examples("u", user["events"])
        assert example["past_items"].tolist() == expected
        assert example["targets"].tolist() == [0]
        history = _day(first - timedelta(days=100))
        assert landed[0, history] == (history if load else _day(first))


def _day(day: date) -> int:
    return (day - date(1970, 1, 1)).days
