"""Serving: what a server finds for a user is what the evaluation of that user's example would rank first."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from deployments import CONFIG
from jobs.commands.live.rollback import roll_back, roll_back_ranker
from jobs.commands.users.recommend import recommendations, recommendations_text
from jobs.config.sections import Deployment
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake
from jobs.lake.reader import lake_reader
from jobs.landing.erased import user_hash
from jobs.ranker.judging.live import live_ranker, make_live
from jobs.ranker.readers import ExampleReader, stage_examples, user_ids
from jobs.ranker.scorers import ranker_scorer
from jobs.registry.bundles import ModelError, bundle_folder
from jobs.serving.history import serving_rows
from jobs.serving.ranker import ServedRanker, events_of, example_of, ranked, served_ranker
from jobs.store.opening import open_store
from jobs.store.publish import SnapshotSource, publish
from jobs.store.reader import SnapshotReader
from jobs.store.snapshot import NoLiveSnapshotError
from jobs.train_ranker import train
from lte_builders import values_of
from lte_models.ranker.examples import ExampleBatch, ExampleCollate
from lte_models.training.bundle import load_bundle
from ranker_shop import BASIS, DIM, DS, N_ITEMS, make_shop, settings, shop_rows, vectors
from schemas import ERASURES

ANCHOR = DS - timedelta(days=1)


@pytest.fixture(scope="module")
def shop(sail: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Deployment]:
    """The shop with a live ranker of DS."""
    folder = tmp_path_factory.mktemp("serve")
    file = folder / "deployment.toml"
    file.write_text(CONFIG)
    lake = make_shop(sail, folder / "lake", file)
    deployment = settings(lake, file)
    train(BasisDay(lake, deployment, DS, BASIS))
    make_live(deployment, bundle_folder(deployment, "ranker", DS))
    return lake, deployment


def _lte(user: str) -> tuple[list[float], int]:
    """Mean vector of the user's items of the long window, by hand."""
    first, after = ANCHOR - timedelta(days=364), ANCHOR - timedelta(days=59)
    items = [item for who, item, day in shop_rows() if who == user and first <= day < after]
    own = np.array([vectors()[item] for item in items], dtype=np.float32)
    return (own.mean(axis=0) if items else np.zeros(DIM)).tolist(), len(items)


def _published(deployment: Deployment, users: list[str], *, window: str = "365-60") -> SnapshotReader:
    ltes = [_lte(user) for user in users]
    batch = pa.record_batch(
        {
            "user_id": pa.array(users),
            "embedding": pa.array([lte for lte, _ in ltes], pa.list_(pa.float32())),
            "n_items": pa.array([n for _, n in ltes], pa.int32()),
        }
    )
    source = SnapshotSource(ANCHOR, BASIS, window, "uniform", "1", len(users), lambda: [batch], lambda: [batch])
    store = open_store(deployment)
    publish(store, source)
    return SnapshotReader(store)


def _example(lake: Lake, deployment: Deployment, served: ServedRanker, user: str) -> ExampleBatch:
    return example_of(deployment, served, user, events_of(lake_reader(deployment), served, user))


@pytest.fixture
def online(shop: tuple[Lake, Deployment], tmp_path: Path) -> Deployment:
    """The deployment with an online store of its own."""
    return replace(shop[1], paths=replace(shop[1].paths, online_store=str(tmp_path / "online.lmdb")))


# u00 has five months behind it, u12 forty days and so no LTE; both came on DS
@pytest.mark.parametrize("user", ["u00", "u12"])
def test_a_server_finds_what_the_evaluation_ranks_first(
    shop: tuple[Lake, Deployment], online: Deployment, tmp_path: Path, user: str
) -> None:
    lake, _ = shop
    served = served_ranker(lake_reader(online), online, ANCHOR)
    reader = _published(online, ["u00", "u12"])
    found = ranked(served, reader.get_many([user]), _example(lake, online, served, user), 5)
    # the example that training and evaluation read, with the LTE of its own past
    rows = stage_examples(lake, [ANCHOR], BASIS, tmp_path / "rows")
    batch = next(iter(ExampleReader(rows, ExampleCollate(served.shop.row_of_index), 1000).in_order()))
    bundle = load_bundle(bundle_folder(online, "ranker", DS), kind="ranker")
    scores = ranker_scorer(bundle, served.shop, online.interactions.types)(batch)[user_ids(rows).index(user)]
    order = sorted(range(N_ITEMS), key=lambda column: (-float(scores[column]), column))[:5]
    assert [item for item, _ in found] == [served.shop.item_ids[column] for column in order]
    assert [score for _, score in found] == pytest.approx([float(scores[column]) for column in order], abs=1e-4)
    assert (_lte(user)[1] > 0) == (user == "u00")


def test_the_command_shows_what_a_server_would_find_on_the_live_day(
    shop: tuple[Lake, Deployment], online: Deployment
) -> None:
    lake, _ = shop
    served = served_ranker(lake_reader(online), online, ANCHOR)
    expected = ranked(served, _published(online, ["u00"]).get_many(["u00"]), _example(lake, online, served, "u00"), 3)
    found = recommendations(online, "u00", k=3)
    assert (found["user_id"], found["ds"], found["ranker_ds"]) == ("u00", str(ANCHOR), str(DS))
    assert [item["item_id"] for item in found["items"]] == [item_id for item_id, _ in expected]
    assert [item["score"] for item in found["items"]] == [round(score, 4) for _, score in expected]
    text = recommendations_text(found)
    assert text.startswith(f"user u00, up to ds={ANCHOR}, ranker of ds={DS}\n")
    assert all(f"  {item['item_id']}  {item['title']}" in text for item in found["items"])
    assert json.loads(json.dumps(found)) == found
    assert found["notes"] == []


def test_what_the_items_are_not_based_on_is_said(shop: tuple[Lake, Deployment], online: Deployment) -> None:
    lake, _ = shop
    _published(online, ["u00"])
    [note] = recommendations(online, "nobody", k=1)["notes"]
    assert note.startswith(f"user nobody has no interactions up to ds={ANCHOR} and no LTE; the items are those for")
    salt = "00ff"
    row_hash = user_hash(salt, "gone")
    row = {"user_hash": row_hash, "salt": salt, "erased_ts": datetime(2024, 1, 1, tzinfo=UTC)}
    counts = {"n_rows": 1, "n_files": 0, "n_versions": 0, "is_kept_out": True, "bundles": "[]"}
    lake.replace_rows([values_of(row | counts, ERASURES)], ERASURES, {"user_hash": row_hash})
    later = recommendations(online, "gone", ds=DS + timedelta(days=9), k=1)
    beyond, erased = later["notes"]
    assert beyond == f"ds={DS + timedelta(days=9)} is beyond the data: the last interactions are of {DS}"
    assert erased.startswith("user gone was erased; the items are those for")
    assert recommendations_text(later).splitlines()[1:3] == [beyond, erased]


def test_interactions_are_coded_as_the_ranker_was_trained(shop: tuple[Lake, Deployment], online: Deployment) -> None:
    lake, _ = shop
    served = served_ranker(lake_reader(online), online, ANCHOR)
    expected = _example(lake, online, served, "u00").types
    assert expected.unique().tolist() == [2]  # "purchase" comes second
    for types in (("purchase", "click"), ("cart", "click", "purchase")):  # as configured after the training
        changed = replace(online, interactions=replace(online.interactions, types=types))
        assert _example(lake, changed, served, "u00").types.equal(expected)
    # a type that the ranker does not know is none to it: code 0
    manifest = replace(served.manifest, config={**served.manifest.config, "types": ["click"]})
    unknown = _example(lake, online, replace(served, manifest=manifest), "u00")
    assert unknown.types.unique().tolist() == [0]


def test_more_items_than_are_retrieved_by_default_can_be_wanted(
    shop: tuple[Lake, Deployment], online: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.serving.ranker.N_RETRIEVED", 3)  # the shop has 14 items, not 500
    _published(online, ["u00"])
    assert len(recommendations(online, "u00", k=2)["items"]) == 2
    assert len(recommendations(online, "u00", k=7)["items"]) == 7
    everything = recommendations(online, "u00", k=501)["items"]
    assert len({item["item_id"] for item in everything}) == N_ITEMS


def test_a_stranger_gets_recommendations_too(shop: tuple[Lake, Deployment], online: Deployment) -> None:
    lake, _ = shop
    served = served_ranker(lake_reader(online), online, ANCHOR)
    reader = _published(online, ["u00"])
    assert len(ranked(served, reader.get_many(["nobody"]), _example(lake, online, served, "nobody"), 3)) == 3


def test_a_pair_that_does_not_match_is_not_served(shop: tuple[Lake, Deployment], online: Deployment) -> None:
    lake, _ = shop
    served = served_ranker(lake_reader(online), online, ANCHOR)
    batch = _example(lake, online, served, "u00")
    with pytest.raises(NoLiveSnapshotError):
        ranked(served, SnapshotReader(open_store(online)).get_many(["u00"]), batch, 3)
    with pytest.raises(ModelError, match="lte_window '365-60' against '365-0'"):
        ranked(served, _published(online, ["u00"], window="365-0").get_many(["u00"]), batch, 3)


def test_a_rollback_to_what_does_not_match_needs_force(
    shop: tuple[Lake, Deployment], online: Deployment, tmp_path: Path
) -> None:
    # the live ranker reads 365-60; the LTEs before these are of another window
    _published(online, ["u00"], window="365-0")
    with_ranker = replace(online, paths=replace(online.paths, lake=str(tmp_path / "lake")))
    shutil.copytree(shop[0].root, tmp_path / "lake")
    _published(online, ["u00"])
    hint = "lte rollback --force switches all the same, lte rollback --ranker then"
    with pytest.raises(ModelError, match=f"lte_window '365-60' against '365-0'; {hint}"):
        roll_back(with_ranker)
    reader = SnapshotReader(open_store(online))
    assert reader.manifest().lte_window == "365-60"
    assert roll_back(with_ranker, force=True)["lte_window"] == "365-0"
    assert reader.manifest().lte_window == "365-0"
    # a second ranker that reads 365-0 goes live; the one before it does not read what is live now
    bundle = tmp_path / "other"
    shutil.copytree(bundle_folder(with_ranker, "ranker", DS), bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest |= {"lte_window": "365-0", "ds": str(DS + timedelta(days=1))}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    second = make_live(with_ranker, bundle)
    with pytest.raises(
        ModelError, match="'365-60' against '365-0'; lte rollback --ranker --force switches all the same"
    ):
        roll_back_ranker(with_ranker)
    assert live_ranker(with_ranker) == second
    assert roll_back_ranker(with_ranker, force=True).ds == str(DS)
    assert roll_back(with_ranker)["lte_window"] == "365-60"  # matches again: no force is needed
    with pytest.raises(ModelError, match="'365-0' against '365-60'"):
        roll_back_ranker(with_ranker)


def test_a_ranker_rolls_back_where_nothing_was_published(online: Deployment, shop: tuple[Lake, Deployment]) -> None:
    with pytest.raises(ModelError, match="no earlier ranker to switch back to"):
        roll_back_ranker(online)


def test_nothing_is_served_before_a_ranker_is_live(shop: tuple[Lake, Deployment], deployment: Deployment) -> None:
    with pytest.raises(ModelError, match="no ranker is live"):
        served_ranker(lake_reader(deployment), deployment, ANCHOR)


def test_an_example_to_serve_holds_nothing_after_its_day() -> None:
    end = ((ANCHOR - date(1970, 1, 1)).days + 1) * 86_400
    events = [{"ts": end - 3600, "item": 3, "type": 1}, {"ts": end, "item": 5, "type": 0}]
    rows = serving_rows("u", events, ANCHOR, 90.0).to_pylist()
    assert [(row["items"], row["types"], row["past_items"]) for row in rows] == [([3], [1], [3])]
