"""lte why: the parts are what removal takes away, and add up to the score that the service gives."""

from datetime import timedelta

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from deployments import CONFIG
from jobs.commands.users.recommend import recommendations
from jobs.commands.users.why import why, why_text
from jobs.config.sections import Deployment
from jobs.lake.day import BasisDay
from jobs.ranker.judging.live import make_live
from jobs.registry.bundles import ModelError, bundle_folder
from jobs.store.opening import open_store
from jobs.store.publish import SnapshotSource, publish
from jobs.train_ranker import train
from ranker_shop import BASIS, DIM, DS, N_ITEMS, make_shop, settings, shop_rows

ANCHOR = DS - timedelta(days=1)
PARTS = ("lte", "own_past", "sequence", "popularity", "stranger")


@pytest.fixture(scope="module")
def shop(sail: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """A live ranker; the user u00 has an LTE, the user u12 has none."""
    folder = tmp_path_factory.mktemp("why")
    file = folder / "deployment.toml"
    file.write_text(CONFIG)
    lake = make_shop(sail, folder / "lake", file)
    deployment = settings(lake, file, ranker__epochs=1)
    train(BasisDay(lake, deployment, DS, BASIS))
    make_live(deployment, bundle_folder(deployment, "ranker", DS))
    vectors, names = pa.array([[0.5] * DIM], pa.list_(pa.float32())), ["user_id", "embedding", "n_items"]
    batch = pa.record_batch([["u00"], vectors, pa.array([9], pa.int32())], names=names)
    store = open_store(deployment)
    publish(store, SnapshotSource(ANCHOR, BASIS, "365-60", "uniform", "1", 1, lambda: [batch], lambda: [batch]))
    store.close()
    return deployment


def test_the_parts_add_up_to_the_score_and_the_rank_that_the_service_gives(shop: Deployment) -> None:
    served = recommendations(shop, "u00", k=N_ITEMS)["items"]
    for place in (0, 5, N_ITEMS - 1):
        found = why(shop, "u00", served[place]["item_id"])
        assert sum(found["parts"][name] for name in PARTS) == pytest.approx(served[place]["score"], abs=1e-4)
        assert found["rank"] == place + 1


def test_a_user_without_lte_or_past_has_no_part_of_them(shop: Deployment) -> None:
    known, cold, stranger = (why(shop, user, "i00")["parts"] for user in ("u00", "u12", "nobody"))
    assert known["lte"] != 0
    assert (cold["lte"], stranger["lte"]) == (0, 0)
    assert cold["own_past"] != 0
    assert (stranger["own_past"], stranger["sequence"]) == (0, 0)
    # nothing of the user is in these two
    assert known["popularity"] == pytest.approx(stranger["popularity"], abs=1e-5)
    assert known["stranger"] == pytest.approx(stranger["stranger"], abs=1e-5)


def test_the_interactions_are_the_users_own_with_this_item(shop: Deployment) -> None:
    found = why(shop, "u00", "i00")
    days = sorted({day for user, item, day in shop_rows() if (user, item) == ("u00", "i00") and day <= ANCHOR})
    assert [row["event_ts"][:10] for row in found["interactions"]] == [str(day) for day in reversed(days)]
    text = why_text(found)
    assert f"rank {found['rank']} of {N_ITEMS} on ds={ANCHOR}" in text
    assert "no file in ingest_log" in text
    assert "no interaction of the user" in why_text(why(shop, "u00", "i13"))


def test_an_unknown_item_is_refused(shop: Deployment) -> None:
    with pytest.raises(ModelError, match="item_id 'i99': table item_embeddings has no vector"):
        why(shop, "u00", "i99")
