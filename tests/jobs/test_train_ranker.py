import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.sql import SparkSession

import jobs.train_ranker as train_job
from deployments import CONFIG
from jobs import evaluate_ranker
from jobs.basis.basis import BasisError, configured_basis
from jobs.basis.matrix import load_matrix, pinned_basis
from jobs.config.sections import Deployment
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake
from jobs.ranker.items import half_life_days, load_candidates
from jobs.ranker.readers import ExampleReader, rebatched, user_ids
from jobs.registry.bundles import ModelError, bundle_folder, prune_bundles
from jobs.train_ranker import example_readers, falling_rate, train, training_anchors
from lte_builders import put, put_basis
from lte_models.ranker.examples import ExampleCollate
from lte_models.training.bundle import load_bundle
from lte_models.training.manifest import BundleError, Manifest, read_manifest, vocabulary_hash
from lte_models.training.stream import StagedRows
from lte_models.training.trainer import STATE, Progress
from ranker_shop import (
    BASIS,
    DIM,
    DS,
    N_ITEMS,
    add_examples,
    copy_of,
    make_shop,
    put_rows,
    settings,
    shop_rows,
    vectors,
)
from schemas import INTERACTIONS, ITEM_EMBEDDINGS, TRAINING_EXAMPLES

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def shop_lake(sail: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Path]:
    """The shop with a trained ranker of DS; tests only read it."""
    folder = tmp_path_factory.mktemp("ranker")
    file = folder / "deployment.toml"
    file.write_text(CONFIG)
    lake = make_shop(sail, folder / "lake", file)
    train(BasisDay(lake, settings(lake, file), DS, BASIS))
    return lake, file


@pytest.fixture
def own(shop_lake: tuple[Lake, Path], tmp_path: Path) -> tuple[Lake, Deployment]:
    """A copy of the shop for a test that writes."""
    lake = copy_of(shop_lake[0], tmp_path / "own")
    return lake, settings(lake, shop_lake[1])


def _manifest(deployment: Deployment, ds: date = DS) -> Manifest:
    return read_manifest(bundle_folder(deployment, "ranker", ds))


def test_the_bundle_says_what_it_is(shop_lake: tuple[Lake, Path]) -> None:
    lake, file = shop_lake
    deployment = settings(lake, file)
    bundle = load_bundle(bundle_folder(deployment, "ranker", DS), kind="ranker", basis_version=BASIS)
    manifest = bundle.manifest
    assert (manifest.lte_window, manifest.ds, manifest.kind) == ("365-60", "2020-12-31", "ranker")
    assert manifest.vocabulary_hash == vocabulary_hash(bundle.item_ids)
    assert manifest.metrics["validation_ndcg_at_5"] > 0.3
    assert manifest.config["types"] == ["click", "purchase"]
    # most frequent first: i00 and i06 are what their tastes like best, nobody ever took i13, i12 was taken once
    assert set(bundle.item_ids[:2]) == {"i00", "i06"}
    assert bundle.item_ids[-2:] == ["i12", "i13"]
    assert "i12" not in manifest.config["id_rows"]  # seen once: no id of its own
    rows = [int(item_id[1:]) for item_id in bundle.item_ids]
    assert np.array_equal(
        bundle.tensors["item_tower.content"][1:].numpy(), load_matrix(pinned_basis(lake, BASIS)).vectors[rows]
    )


def test_the_same_data_and_seed_give_the_same_weights_and_nothing_of_ds_is_read(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    first = _manifest(deployment).weights_sha256
    # what happens on ds and after it must not reach the ranker that ds will judge
    put_rows(lake, [(f"u{user:02d}", "i13", DS + after * DAY) for user in range(20) for after in range(3)])
    train(BasisDay(lake, deployment, DS, BASIS))
    assert _manifest(deployment).weights_sha256 == first


def test_only_a_ranker_of_recency_ltes_has_a_half_life(deployment: Deployment) -> None:
    lte = replace(deployment.lte, half_life_days=30.0)
    recency = replace(deployment.ranker, method="recency")
    assert half_life_days(recency, lte) == 30
    assert half_life_days(replace(recency, method="uniform"), lte) is None
    assert half_life_days(replace(recency, lte="none"), lte) is None


def test_another_seed_gives_other_weights(own: tuple[Lake, Deployment], shop_lake: tuple[Lake, Path]) -> None:
    lake, deployment = own
    first = _manifest(deployment).weights_sha256
    train(BasisDay(lake, settings(lake, shop_lake[1], ranker__seed=1), DS, BASIS))
    assert _manifest(deployment).weights_sha256 != first


def test_the_next_day_starts_warm_and_another_basis_cold(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    add_examples(lake, deployment, DS + DAY)
    assert train(BasisDay(lake, deployment, DS + DAY, BASIS))["n_warm"] == 12  # items with an id of their own
    put_basis(lake, {f"i{item:02d}": [1.0] * DIM for item in range(N_ITEMS)}, basis_version="basis-2")
    with pytest.raises(ModelError, match="basis_version basis-2, anchor_ds 2020-12-11 to 2020-12-30: 0 days"):
        train(BasisDay(lake, deployment, DS + DAY, "basis-2"))


def test_a_closed_day_is_no_anchor(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    train_days, validation = training_anchors(BasisDay(lake, deployment, DS, BASIS))
    assert validation == [DS - 4 * DAY, DS - 3 * DAY, DS - 2 * DAY]
    assert train_days[0] == DS - 21 * DAY
    assert len(train_days) == 17
    lake.delete(TRAINING_EXAMPLES, {"anchor_ds": [DS - 2 * DAY, DS - 3 * DAY]})
    train_days, validation = training_anchors(BasisDay(lake, deployment, DS, BASIS))
    assert validation == [DS - 6 * DAY, DS - 5 * DAY, DS - 4 * DAY]
    assert len(train_days) == 15


def test_a_killed_training_goes_on_from_its_checkpoint(
    own: tuple[Lake, Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, deployment = own
    expected, calls = _manifest(deployment).weights_sha256, []
    original = train_job.validation_ndcg

    def killed(*args: object) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(train_job, "validation_ndcg", killed)
    with pytest.raises(KeyboardInterrupt):
        train(BasisDay(lake, deployment, DS, BASIS))
    assert (bundle_folder(deployment, "ranker", DS) / STATE).exists()
    train(BasisDay(lake, deployment, DS, BASIS))
    assert len(calls) == 2 + 2  # one epoch and the kill, then only the two that were left
    assert _manifest(deployment).weights_sha256 == expected
    assert not (bundle_folder(deployment, "ranker", DS) / STATE).exists()


def test_an_unfinished_training_of_other_data_is_not_gone_on_with(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    (bundle_folder(deployment, "ranker", DS) / STATE).write_bytes(b"truncated")
    assert train(BasisDay(lake, deployment, DS, BASIS))["n_epochs"] == 3


@pytest.mark.slow
def test_a_process_that_is_killed_ends_with_the_weights_of_one_that_is_not(
    own: tuple[Lake, Deployment], tmp_path: Path
) -> None:
    lake, _ = own
    basis = configured_basis(own[1])
    lake.replace(lake.read(ITEM_EMBEDDINGS).limit(0), ITEM_EMBEDDINGS, {"basis_version": BASIS})
    put_basis(lake, vectors(), basis_version=basis)
    lake.delete(TRAINING_EXAMPLES, {"basis_version": BASIS})
    extra = "\n[ranker]\ntrain_days = 20\nvalidation_days = 3\nepochs = 10\npatience = 10\ndim = 8\nmax_length = 20\n"
    extra += 'cutoff = 5\nnegatives_share = 1.0\n[tracking]\nuri = ""\n'
    file = tmp_path / "killed.toml"
    file.write_text(CONFIG.replace('lake = "lake"', f'lake = "{lake.root}"') + extra)
    _job("build_examples", file).wait()
    folder = Path(lake.root) / "models" / "ranker" / f"ds={DS}"
    (folder / "manifest.json").unlink()
    assert _job("train_ranker", file).wait() == 0
    expected = json.loads((folder / "manifest.json").read_text())["weights_sha256"]
    (folder / "manifest.json").unlink()
    process = _job("train_ranker", file)
    while not (folder / STATE).exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (folder / STATE).exists()
    assert not (folder / "manifest.json").exists()
    assert _job("train_ranker", file).wait() == 0
    assert json.loads((folder / "manifest.json").read_text())["weights_sha256"] == expected


def _job(name: str, file: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", f"jobs.{name}", "--config", str(file), "--ds", DS.isoformat()])


def test_users_without_any_long_history_train_a_ranker_that_reads_no_lte(
    sail: SparkSession, tmp_path: Path, deployment_file: Path
) -> None:
    rows = [row for row in shop_rows() if row[2] > DS - timedelta(days=55)]  # all LTEs are zero
    lake = make_shop(sail, tmp_path / "short", deployment_file, rows)
    deployment = settings(lake, deployment_file, ranker__epochs=1)
    train(BasisDay(lake, deployment, DS, BASIS))
    bundle = load_bundle(bundle_folder(deployment, "ranker", DS), kind="ranker")
    assert not bundle.tensors["user_tower.projection.mean"].any()
    assert float(bundle.tensors["user_tower.projection.scale"]) == 1.0


def test_the_first_days_of_a_shop_have_nothing_to_train_on_and_fail_no_run(
    deployment_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for main in (train_job.main, evaluate_ranker.main):
        main(["--config", str(deployment_file), "--ds", str(DS)])
    said = "".join(capsys.readouterr())
    assert f"train_ranker: ds {DS}: table training_examples" in said
    assert "0 days with examples, of which ranker.validation_days = 7 are for validation; nothing to train on" in said
    assert "nothing to judge; what is live stays" in said
    assert not list((deployment_file.parent / "lake" / "models").rglob("manifest.json"))


def test_a_single_user_is_enough_to_train(sail: SparkSession, tmp_path: Path, deployment_file: Path) -> None:
    lake = make_shop(sail, tmp_path / "one", deployment_file, [row for row in shop_rows() if row[0] == "u00"])
    deployment = settings(lake, deployment_file, ranker__epochs=1)
    assert train(BasisDay(lake, deployment, DS, BASIS))["n_epochs"] == 1


def test_a_vocabulary_without_an_item_is_named(sail: SparkSession, tmp_path: Path) -> None:
    lake = Lake(sail, str(tmp_path / "empty"))
    put_rows(lake, shop_rows()[:5])
    with pytest.raises(BasisError, match="item_embeddings: no basis_version 'basis-1'"):
        load_candidates(lake, DS, BASIS, 20)
    put_basis(lake, {"i00": [1.0, 0.0]}, basis_version=BASIS, first_ds={"i00": DS})
    with pytest.raises(ModelError, match=r"item_embeddings, basis_version basis-1: no item is known on 2020-12-30"):
        load_candidates(lake, DS, BASIS, 20)


def test_an_embedding_that_is_not_a_number_is_named(sail: SparkSession, tmp_path: Path) -> None:
    lake = Lake(sail, str(tmp_path / "nan"))
    put_basis(lake, {"i00": [1.0, 0.0], "i01": [float("nan"), 1.0]}, basis_version=BASIS)
    with pytest.raises(BasisError, match="basis_version basis-1, column embedding: item i01: expected finite numbers"):
        load_matrix(pinned_basis(lake, BASIS))
    put(
        lake,
        ITEM_EMBEDDINGS,
        [("i02", "basis-3", 0, "h", "text", DS, [1.0]), ("i03", "basis-3", 1, "h", "text", DS, [1.0, 2.0])],
    )
    with pytest.raises(BasisError, match=r"expected a vector of [12] numbers, got [12]"):
        load_matrix(pinned_basis(lake, "basis-3"))


def test_a_damaged_bundle_of_yesterday_is_named(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    add_examples(lake, deployment, DS + DAY)
    manifest = _manifest(deployment)
    path = bundle_folder(deployment, "ranker", DS) / manifest.weights_file
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(BundleError, match="truncated or changed"):
        train(BasisDay(lake, deployment, DS + DAY, BASIS))


def test_the_daily_counts_are_those_of_the_interactions(shop_lake: tuple[Lake, Path]) -> None:
    lake, _ = shop_lake
    shop = load_candidates(lake, DS, BASIS, 20)
    anchor = DS - 3 * DAY
    naive = [
        [
            sum(item == wanted and anchor - timedelta(days=n) < day <= anchor for _, item, day in shop_rows())
            for n in (7, 28, 365)
        ]
        for wanted in shop.item_ids
    ]
    days = torch.tensor([(anchor - date(1970, 1, 1)).days])
    found = shop.daily.recent(days.unsqueeze(1), torch.arange(1, N_ITEMS + 1))[0]
    assert found[:, :3].tolist() == naive
    assert shop.counts[1:].tolist() == [
        sum(item == wanted and day < DS for _, item, day in shop_rows()) for wanted in shop.item_ids
    ]


def test_readers_yield_the_users_of_their_rows(own: tuple[Lake, Deployment], tmp_path: Path) -> None:
    lake, deployment = own
    shop = load_candidates(lake, DS, BASIS, 20)
    anchors = training_anchors(BasisDay(lake, deployment, DS, BASIS))
    reader, _ = example_readers(lake, anchors, shop, deployment.ranker, BASIS, tmp_path)
    lengths = torch.cat([torch.bincount(batch.target_query, minlength=len(batch.items)) for batch in reader.in_order()])
    assert len(user_ids(reader.rows)) == len(lengths)
    parts = list(lake.batches(INTERACTIONS, columns=("user_id",)))
    assert [p.num_rows for p in rebatched(parts, 10**9)] == [sum(part.num_rows for part in parts)]


def test_the_rate_falls_to_zero_over_all_epochs(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": ["a", "b", "c", "d", "e"]}), tmp_path / "rows.parquet")
    rows = StagedRows([tmp_path / "rows.parquet"], "")
    # five examples in batches of two are three steps per epoch, so six steps in two epochs
    rate = falling_rate(ExampleReader(rows, ExampleCollate(np.zeros(1, dtype=np.int64)), 2), 2)
    assert [rate(Progress(total_steps=n)) for n in (0, 3, 6, 7)] == [1, 0.5, 0, 0]


def test_old_bundles_go_and_the_horizon_stays(deployment: Deployment) -> None:
    folder = Path(deployment.paths.lake) / "models" / "ranker"
    for day in ("2020-12-10", "2020-12-17", "2020-12-31"):
        (folder / f"ds={day}").mkdir(parents=True)
    (folder / "live").mkdir()
    assert [path.name for path in prune_bundles(deployment, "ranker", DS)] == ["ds=2020-12-10"]
    assert sorted(path.name for path in folder.iterdir()) == ["ds=2020-12-17", "ds=2020-12-31", "live"]
