"""lte rollback --drill: what an earlier ranker would lose today, and that the drill changes nothing that is live."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession

from deployments import CONFIG
from jobs.cli import dispatch
from jobs.commands.live.drill import DrillError, LiveState, drill, over_limit, require_same
from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake
from jobs.ranker.judging.live import live_folder, make_live
from jobs.registry.bundles import ModelError, bundle_folder
from jobs.store.opening import live_snapshot, open_store
from jobs.store.publish import publish
from jobs.train_ranker import train
from lte_builders import put
from lte_models.training.bundle import load_bundle, save_bundle
from ranker_shop import BASIS, DIM, DS, N_USERS, SETTINGS, copy_of, make_shop, settings
from schemas import METRICS, USER_LTE
from store_kit import batch, marked_source

USERS = {f"u{user:02d}": [float(value) for value in np.random.default_rng(user).normal(size=DIM)] for user in range(24)}


def aged(deployment: Deployment, days: int, *, sign: float = 1.0, basis: str = BASIS) -> None:
    """A ranker of ``days`` days ago: the weights of DS, or with another sign those that rank from the worst."""
    bundle = load_bundle(bundle_folder(deployment, "ranker", DS), kind="ranker")
    tensors = {
        name: sign * tensor if name.startswith(("history", "user_tower.w_o")) else tensor
        for name, tensor in bundle.tensors.items()
    }
    manifest = replace(bundle.manifest, ds=str(DS - timedelta(days=days)), basis_version=basis)
    save_bundle(bundle_folder(deployment, "ranker", DS - timedelta(days=days)), manifest, tensors, bundle.item_ids)


@pytest.fixture(scope="module")
def trained(sail: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The shop with the rankers of DS and of 1, 5 and 10 days before, and a table of LTEs; tests only read it."""
    folder = tmp_path_factory.mktemp("drill")
    file = folder / "deployment.toml"
    file.write_text(CONFIG)
    lake = make_shop(sail, folder / "lake", file)
    deployment = settings(lake, file)
    train(BasisDay(lake, deployment, DS, BASIS))
    aged(deployment, 1)
    aged(deployment, 5, sign=-1.0)
    aged(deployment, 10, basis="basis-2")
    put(lake, USER_LTE, [(user, vector, 5, 0, BASIS, DS, "uniform", "365-60") for user, vector in USERS.items()])
    return lake


@pytest.fixture
def own(trained: Lake, tmp_path: Path, deployment_file: Path) -> tuple[Lake, Deployment]:
    """A copy of the shop; the LTEs of DS are published, and the ranker of DS is live."""
    lake = copy_of(trained, tmp_path / "own")
    deployment = settings(lake, deployment_file)
    store = open_store(deployment)
    rows = [batch(USERS, n_items=5)]
    publish(store, marked_source(0, ds=DS, basis_version=BASIS, row_count=N_USERS, batches=lambda: rows,
                                 sample=lambda: rows))  # fmt: skip
    store.close()
    make_live(deployment, bundle_folder(deployment, "ranker", DS))
    return lake, deployment


def live_files(lake: Lake, deployment: Deployment) -> dict[str, str]:
    """Checksum of every file of the LTE table, the online store and the live ranker."""
    folders = [Path(lake.path(USER_LTE)), live_folder(deployment), Path(deployment.paths.online_store)]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != "lock.mdb"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def drill_values(lake: Lake) -> dict[tuple[str, str], float]:
    rows = lake.read(METRICS, where={"ds": DS, "job": "rollback_drill"}).collect()
    return {(row["metric"], row["label"]): row["value"] for row in rows}


def test_old_rankers_are_scored_or_refused_and_nothing_that_is_live_changes(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    files, snapshot = live_files(lake, deployment), live_snapshot(deployment)
    promised = drill(deployment, is_dry_run=True)
    assert drill_values(lake) == {}
    found = drill(deployment)
    assert found == promised
    assert live_files(lake, deployment) == files
    assert len(files) > 4
    assert snapshot is not None
    assert found.checksum == snapshot.checksum
    same, reversed_, other = found.rankers
    assert (same.loss, same.loss_low) == (0, 0)  # the same weights
    assert reversed_.loss is not None
    assert reversed_.loss > 0.2  # it ranks from the worst item on
    assert other.loss is None
    assert "basis_version 'basis-2' against 'basis-1'" in other.reason
    assert [text.split(" loses")[0] for text in found.failed] == [f"the ranker of ds {DS - timedelta(days=5)}"]
    metrics = drill_values(lake)
    assert metrics["ndcg_loss", "5 days"] == reversed_.loss
    scored = [metrics["is_scored", f"{days} days"] for days in (1, 5, 10)]
    assert (scored, metrics["n_failed", ""], metrics["n_users", ""]) == ([1, 1, 0], 1, N_USERS // 2)
    assert list(live_folder(deployment).parent.glob("drill*")) == []  # staged rows hold ids of users


def test_a_loss_above_the_limit_ends_the_command_with_1(
    own: tuple[Lake, Deployment], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, _ = own
    file = Path(lake.root).parent / "deployment.toml"
    for name, value in (("PATHS__LAKE", lake.root), ("RANKER__CUTOFF", "5"), ("RANKER__TRAIN_DAYS", "20")):
        monkeypatch.setenv(f"LTE_{name}", value)
    with pytest.raises(SystemExit) as ended:
        dispatch(["rollback", "--drill", "--config", str(file), "--dry-run"])
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    assert "ranker of 1 days ago" in shown
    assert "FAILED: the ranker of ds 2020-12-26 loses" in shown
    assert "gates.max_drill_loss is 5.00%" in shown
    monkeypatch.setenv("LTE_GATES__MAX_DRILL_LOSS", "1.0")
    dispatch(["rollback", "--drill", "--config", str(file), "--dry-run", "--json"])
    assert json.loads(capsys.readouterr().out)["failed"] == []
    with pytest.raises(ConfigError, match="without --ranker"):
        dispatch(["rollback", "--drill", "--ranker", "--config", str(file)])


def test_two_drills_at_once_find_what_one_finds(own: tuple[Lake, Deployment]) -> None:
    """A drill that only reads holds no lease, so two can run at the same time, each with staged rows of its own."""
    lake, deployment = own
    alone = drill(deployment, is_dry_run=True)
    file = Path(lake.root).parent / "deployment.toml"
    changes = {"LTE_PATHS__LAKE": lake.root, "LTE_GATES__MAX_DRILL_LOSS": "1.0"}
    environ = {**os.environ, **SETTINGS, **changes}
    command = [sys.executable, "-m", "jobs.cli", "rollback", "--drill", "--dry-run", "--json", "--config", str(file)]
    both = [subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    expected = [asdict(ranker) for ranker in alone.rankers]
    assert [each["rankers"] for each in found] == [expected, expected]
    assert list(live_folder(deployment).parent.glob("drill*")) == []  # staged rows hold ids of users


def test_a_day_without_users_a_newer_ranker_and_no_ranker(own: tuple[Lake, Deployment]) -> None:
    _, deployment = own
    newer = load_bundle(bundle_folder(deployment, "ranker", DS), kind="ranker")
    folder = bundle_folder(deployment, "ranker", DS + timedelta(days=1))
    manifest = replace(newer.manifest, ds=str(DS + timedelta(days=1)))
    save_bundle(folder, manifest, newer.tensors, newer.item_ids)
    make_live(deployment, folder)
    with pytest.raises(ModelError, match="publish a newer day"):
        drill(deployment)
    store = open_store(deployment)
    rows = [batch(USERS, n_items=5)]
    publish(store, marked_source(0, ds=DS + timedelta(days=1), basis_version=BASIS, row_count=N_USERS,
                                 batches=lambda: rows, sample=lambda: rows))  # fmt: skip
    store.close()
    found = drill(deployment)  # nobody came on the day after DS
    assert (found.n_users, found.rankers, found.failed) == (0, [], [])
    (live_folder(deployment) / "live.json").unlink()
    with pytest.raises(ModelError, match="no ranker is live"):
        drill(deployment)


def test_a_change_during_the_drill_is_named(own: tuple[Lake, Deployment]) -> None:
    snapshot = live_snapshot(own[1])
    assert snapshot is not None
    before = LiveState(snapshot, None, 3)
    require_same(before, LiveState(snapshot, None, 3))
    with pytest.raises(DrillError, match=r"lte_version 3 became 4$"):
        require_same(before, LiveState(snapshot, None, 4))


def test_the_low_end_of_the_interval_is_judged(own: tuple[Lake, Deployment]) -> None:
    found = drill(own[1], is_dry_run=True).rankers[1]
    assert found.loss_low is not None
    assert over_limit([found], found.loss_low) == []
    assert len(over_limit([found], found.loss_low - 0.001)) == 1
