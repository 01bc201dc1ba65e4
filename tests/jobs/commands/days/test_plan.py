"""lte plan: what a run would do, without doing it."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from jobs.commands.days.plan import plan_day, plan_text
from jobs.config.models import AutoencoderSection, RankerSection
from jobs.config.sections import Deployment
from jobs.ingest import ingest
from jobs.lake.day import Day
from jobs.lake.lake import Lake
from jobs.landing.files import LandingError
from jobs.store.opening import open_store
from jobs.store.publish import publish
from store_kit import marked_source

FIRST, DS = date(2017, 1, 1), date(2017, 1, 2)


def land(deployment: Deployment, target: str, ds: date, text: str) -> int:
    """Put a file into the landing folder; returns its size in bytes."""
    path = Path(deployment.paths.landing) / target / f"ds={ds}" / "a.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.write_text(text)


def tree(folder: str) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in Path(folder).rglob("*"))


@pytest.fixture
def shop(deployment: Deployment) -> Deployment:
    models = {"autoencoder": AutoencoderSection(enabled=False), "ranker": RankerSection(enabled=False)}
    return replace(deployment, **models)  # type: ignore[arg-type]


def test_the_plan_counts_what_ingest_then_takes_and_changes_nothing(lake: Lake, shop: Deployment) -> None:
    events = "user_id,item_id,event_ts,interaction_type\n"
    sizes = [
        land(shop, "items", FIRST, "item_id,title\ni1,red dress\ni2,blue shirt\n"),
        land(shop, "interactions", FIRST, events + "u1,i1,2017-01-01T10:00:00Z,click\n"),
        land(shop, "interactions", DS, events + "u1,i2,2017-01-02T10:00:00Z,click\n"),
    ]
    plan = plan_day(shop, DS)
    assert (plan.landing_days, plan.n_files, plan.n_bytes) == ((FIRST, DS), 3, sum(sizes))
    assert (plan.n_items, plan.n_anchors, plan.n_examples, plan.models) == (0, 0, 0, ())
    assert (plan.live_ds, plan.would_publish) == (None, True)
    assert "  ingest    2 landing days (2017-01-01 to 2017-01-02), 3 files" in plan_text(plan)
    ingest(Day(lake, shop, DS))
    before = tree(shop.paths.lake)
    plan = plan_day(shop, DS)
    assert plan.landing_days == (DS,)  # the day itself is always read again
    assert plan.n_items == 2
    assert "  encode    2 items without a vector" in plan_text(plan)
    assert tree(shop.paths.lake) == before


def test_a_day_before_the_live_one_would_not_be_published(shop: Deployment) -> None:
    land(shop, "interactions", DS, "user_id,item_id,event_ts,interaction_type\n")
    land(shop, "items", DS, "item_id,title\n")
    store = open_store(shop)
    publish(store, marked_source(1.0, ds=date(2017, 1, 3), users=1))
    store.close()
    plan = plan_day(shop, DS)
    assert (plan.live_ds, plan.would_publish) == ("2017-01-03", False)
    assert "is not published, because ds=2017-01-03 is live" in plan_text(plan)


def test_a_plan_without_a_landing_folder_names_it(shop: Deployment) -> None:
    with pytest.raises(LandingError, match="landing"):
        plan_day(shop, DS)
