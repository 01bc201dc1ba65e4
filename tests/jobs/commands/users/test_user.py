"""lte user: one line per title, and the categories of the user's own window."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.basis.nearest import NearItem
from jobs.commands.users.user import UserView, _by_title, user_text, user_view
from jobs.commands.users.user_page import parts_of, write_user_page
from jobs.config.sections import Deployment
from jobs.lake.lake import Lake
from jobs.lake.reader import lake_reader
from jobs.store.opening import open_store
from jobs.store.publish import SnapshotSource, publish
from lte_builders import values_of
from schemas import INTERACTIONS, ITEM_EMBEDDINGS, ITEMS

DS = date(2024, 3, 1)


def test_equal_titles_are_one_line() -> None:
    found = [
        NearItem("a", "Red dress", 0.9), NearItem("b", "", 0.8), NearItem("c", "red  dress ", 0.7),
        NearItem("d", None, 0.6), NearItem("e", "hat", 0.5),
    ]  # fmt: skip
    assert [(near.item_id, n) for near, n in _by_title(found, 3)] == [("a", 2), ("b", 1), ("d", 1)]


def test_the_view_of_a_user(lake: Lake, deployment: Deployment) -> None:
    lake.replace_rows(
        [
            _item("a", "red dress", "dresses"), _item("b", "red dress", "dresses"), _item("c", "hat", None),
            _item("a", "red dress", "gowns", landing_ds=date(2024, 2, 2)),  # the newest category counts
        ],
        ITEMS,
        {"landing_ds": [date(2024, 1, 1), date(2024, 2, 2)]},
    )  # fmt: skip
    # The window 5-1 before the end of 2024-03-01: 2024-02-26 to 2024-02-29.
    days = {"a": date(2024, 2, 26), "b": date(2024, 2, 29), "c": date(2024, 2, 29), "d": date(2024, 2, 25)}
    rows = [_event("ann", item, day) for item, day in days.items()]
    rows += [_event("ann", "a", date(2024, 3, 1)), _event("bob", "a", date(2024, 2, 29))]
    lake.replace_rows(rows, INTERACTIONS, {"event_date": sorted({*days.values(), date(2024, 3, 1)})})
    vectors = {"a": [1.0, 0.0], "b": [0.9, 0.1], "c": [0.0, 1.0]}
    embedded = [_embedding(item, index, vector) for index, (item, vector) in enumerate(vectors.items())]
    lake.replace_rows(embedded, ITEM_EMBEDDINGS, {"basis_version": "basis-a"})
    batch = pa.record_batch(
        {
            "user_id": pa.array(["ann"]),
            "embedding": pa.array([[1.0, 0.0]], pa.list_(pa.float32())),
            "n_items": pa.array([3], pa.int32()),
        }
    )
    store = open_store(deployment)
    publish(store, SnapshotSource(DS, "basis-a", "5-1", "uniform", "1", 1, lambda: [batch], lambda: [batch]))
    store.close()
    view = user_view(deployment, "ann")
    assert [(near.item_id, near.title) for near in view.nearest] == [("a", "red dress"), ("c", "hat")]
    assert view.n_same_title == {"a": 2}
    assert view.categories == {"dresses": 1, "gowns": 1, "no category": 1}
    text = user_text(view)
    assert "  1.000  a  red dress (2 items)" in text
    assert "categories  dresses 1, gowns 1, no category 1" in text
    assert json.loads(json.dumps(view.as_json()))["categories"]["gowns"] == 1
    assert_that_the_page_explains_the_vector(deployment, view)


def assert_that_the_page_explains_the_vector(deployment: Deployment, view: UserView) -> None:
    """Part of the test above, on the same tables."""
    parts = parts_of(lake_reader(deployment), deployment, view)
    third = pytest.approx(1 / 3)
    assert parts.categories == {"dresses": third, "gowns": third, "no category": third}
    assert (parts.months, parts.n_unknown) == ({"2024-02": 1.0}, 0)
    assert (parts.entered, parts.left) == (["red dress", "hat"], ["d"])  # the newest day; the day before the oldest
    # Half-life 1 day, before the end of 2024-03-01: ages are 4 days for a, 1 day for b and c: weights 1/16, 1/2, 1/2.
    halving = replace(deployment, lte=replace(deployment.lte, half_life_days=1.0))
    recent = parts_of(lake_reader(deployment), halving, replace(view, method="recency"))
    assert recent.categories["gowns"] == pytest.approx((1 / 16) / (1 / 16 + 1))
    page = Path(deployment.paths.lake).parent / "ann.html"
    write_user_page(deployment, "ann", page)
    text = page.read_text(encoding="utf-8")
    assert "33.33%" in text
    assert "No ranker is live." in text


def _item(item_id: str, title: str, category: str | None, landing_ds: date = date(2024, 1, 1)) -> tuple[object, ...]:
    row = {"item_id": item_id, "title": title, "category": category, "landing_ds": landing_ds}
    return values_of(dict.fromkeys(ITEMS.columns) | row, ITEMS)


def _event(user: str, item: str, day: date) -> tuple[object, ...]:
    stamp = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    row = {"user_id": user, "item_id": item, "event_ts": stamp, "interaction_type": "click", "market": ""}
    return values_of(row | {"session_id": None, "landing_ds": day, "event_date": day}, INTERACTIONS)


def _embedding(item: str, index: int, vector: list[float]) -> tuple[object, ...]:
    row: dict[str, object] = {
        "item_id": item,
        "embedding": vector,
        "source": "text",
        "content_hash": "h",
        "basis_version": "basis-a",
        "item_index": index,
    }
    row["first_ds"] = date(2024, 1, 1)
    return tuple(row.get(name) for name in ITEM_EMBEDDINGS.columns)
