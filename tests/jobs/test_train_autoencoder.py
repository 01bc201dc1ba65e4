import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark.sql import DataFrame

import jobs.autoencoder.training as train_job
from jobs.autoencoder.encoding import autoencoder_ltes, encode_task, knows_an_item
from jobs.autoencoder.histories import user_histories, write_histories
from jobs.autoencoder.training import NoKnownItemError, train, vocabulary
from jobs.basis.basis import BasisError
from jobs.basis.matrix import load_matrix, pinned_basis
from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment
from jobs.config.window import LteWindow
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake
from jobs.registry.bundles import bundle_folder
from lte_models.training.bundle import load_bundle
from lte_models.training.manifest import BundleError
from lte_models.training.trainer import STATE
from schemas import INTERACTIONS, ITEM_EMBEDDINGS, USER_LTE, Table

DS = date(2020, 12, 31)
END = DS + timedelta(days=1)
BASIS = "basis1"
WINDOW = LteWindow(365, 60)
N_ITEMS = 8


def _interaction(user: str, item: str, days_before_end: int) -> tuple[object, ...]:
    """An interaction on the UTC day that begins ``days_before_end`` days before the end of ds."""
    day = END - timedelta(days=days_before_end)
    ts = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    return (user, item, ts, "purchase", "", None, day, day)


def _append(lake: Lake, rows: Sequence[tuple[object, ...]], table: Table) -> None:
    lake.append_rows(rows, table)


def _write(lake: Lake, rows: list[tuple[object, ...]]) -> None:
    _append(lake, rows, INTERACTIONS)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(N_ITEMS, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    landed = [DS if i == N_ITEMS - 1 else date(2020, 1, 1) for i in range(N_ITEMS)]
    basis = [(f"i{i}", BASIS, i, "hash", "text", landed[i], [float(x) for x in vectors[i]]) for i in range(N_ITEMS)]
    _append(lake, basis, ITEM_EMBEDDINGS)


def _histories(lake: Lake, ds: date = DS) -> DataFrame:
    return user_histories(lake.read(INTERACTIONS), lake.read(ITEM_EMBEDDINGS), ds, WINDOW)


def test_histories_keep_the_windows_days_and_each_known_item_once(lake: Lake) -> None:
    rows = [
        _interaction("a", "i3", 365),  # first day of the window
        _interaction("a", "i1", 61),  # last day of the window
        _interaction("a", "i1", 70),
        _interaction("a", "i5", 60),  # first day of the short window
        _interaction("a", "i6", 366),  # too old
        _interaction("a", "gone", 100),
        _interaction("b", "i2", 1),  # in the population, with an empty long window
        _interaction("c", "i2", 366),  # not in the population
    ]
    _write(lake, rows)
    found = {row["user_id"]: (row["items"], row["n_unknown"]) for row in _histories(lake).collect()}
    assert found == {"a": ([1, 3], 1), "b": ([], 0)}


def test_an_item_is_unknown_before_it_lands(lake: Lake) -> None:
    _write(lake, [_interaction("a", "i7", 100), _interaction("a", "i0", 100)])
    yesterday = DS - timedelta(days=1)
    assert _histories(lake, yesterday).collect()[0]["items"] == [0]
    assert _histories(lake, yesterday).collect()[0]["n_unknown"] == 1
    assert _histories(lake).collect()[0]["items"] == [0, 7]


def _crowd() -> list[tuple[object, ...]]:
    """Users of two tastes: items 0-2 and items 3-5; some are new, some know only the item nobody else has."""
    rows = []
    for number in range(40):
        taste = 3 * (number % 2)
        rows += [_interaction(f"u{number}", f"i{taste + k}", 100 + number) for k in range(3)]
    return [*rows, _interaction("new", "i0", 2), _interaction("lost", "nowhere", 100)]


@pytest.fixture
def trained(lake: Lake, deployment_file: Path) -> tuple[Lake, Deployment]:
    deployment = load_deployment(
        deployment_file,
        environ={"LTE_AUTOENCODER__EPOCHS": "3", "LTE_PATHS__LAKE": lake.root, "LTE_TRACKING__URI": ""},
    )
    _write(lake, _crowd())
    write_histories(BasisDay(lake, deployment, DS, BASIS))
    train(BasisDay(lake, deployment, DS, BASIS))
    return lake, deployment


def _uniform(lake: Lake) -> None:
    rows = [
        (user, [9.0, 9.0, 9.0, 9.0], 1, 0, BASIS, DS, "uniform", str(WINDOW))
        for user in [*(f"u{n}" for n in range(40)), "new", "lost"]
    ]
    _append(lake, rows, USER_LTE)


def _ltes(lake: Lake, folder: Path) -> dict[str, list[float]]:
    task = encode_task(lake, folder, BASIS, str(WINDOW))
    return {row["user_id"]: row["embedding"] for row in autoencoder_ltes(lake, task, DS, str(WINDOW)).collect()}


def test_every_user_gets_a_vector_with_cold_start_and_fall_back(trained: tuple[Lake, Deployment]) -> None:
    lake, deployment = trained
    _uniform(lake)
    folder = bundle_folder(deployment, "autoencoder", DS)
    found = _ltes(lake, folder)
    assert set(found) == {*(f"u{n}" for n in range(40)), "new", "lost"}
    bundle = load_bundle(folder, kind="autoencoder", basis_version=BASIS, lte_window=str(WINDOW))
    # independent of the job: the bundle's own matrices, dense
    hidden = torch.relu(bundle.tensors["first_bias"])
    hidden = torch.relu(bundle.tensors["second.weight"] @ hidden + bundle.tensors["second.bias"])
    cold_start = bundle.tensors["last.weight"] @ hidden + bundle.tensors["last.bias"]
    assert found["new"] == pytest.approx(cold_start.tolist(), abs=1e-5)
    assert found["lost"] == [9.0, 9.0, 9.0, 9.0]
    assert found["u0"] == pytest.approx(found["u2"])  # the same items
    assert found["u0"] != pytest.approx(found["u1"])


MENDED = {
    "LTE_AUTOENCODER__OBJECTIVE": "multinomial",
    "LTE_AUTOENCODER__INPUT": "tfidf",
    "LTE_AUTOENCODER__INPUT_DROPOUT": "0.5",
    "LTE_AUTOENCODER__TEMPERATURE": "2.5",
    "LTE_AUTOENCODER__HAS_OFFSET": "true",
    "LTE_AUTOENCODER__WHITENED": "true",
}


def test_another_form_starts_anew_and_its_ltes_lie_in_the_basis(
    trained: tuple[Lake, Deployment], deployment_file: Path
) -> None:
    lake, papers = trained
    environ = {"LTE_AUTOENCODER__EPOCHS": "2", "LTE_PATHS__LAKE": lake.root, "LTE_TRACKING__URI": "", **MENDED}
    deployment = load_deployment(deployment_file, environ=environ)
    ds = DS + timedelta(days=1)
    write_histories(BasisDay(lake, deployment, ds, BASIS))
    assert train(BasisDay(lake, deployment, ds, BASIS))["n_warm"] == 0  # yesterday's bundle has the paper's form
    _append(lake, [("new", [0.0] * 4, 0, 0, BASIS, ds, "uniform", str(WINDOW))], USER_LTE)
    task = encode_task(lake, bundle_folder(deployment, "autoencoder", ds), BASIS, str(WINDOW))
    found = {row["user_id"]: row["embedding"] for row in autoencoder_ltes(lake, task, ds, str(WINDOW)).collect()}
    # 1 is the longest average; a vector of the whitened space would be several times as long
    assert max(np.linalg.norm(found[user]) for user in ("u0", "u1", "new")) < 2
    ds += timedelta(days=1)
    write_histories(BasisDay(lake, deployment, ds, BASIS))
    assert train(BasisDay(lake, deployment, ds, BASIS))["n_warm"] > 0
    assert papers.autoencoder.objective == "bce"


def test_the_frozen_decoder_of_the_bundle_is_the_basis(trained: tuple[Lake, Deployment]) -> None:
    lake, deployment = trained
    bundle = load_bundle(bundle_folder(deployment, "autoencoder", DS), kind="autoencoder")
    rows = [int(item_id[1:]) for item_id in bundle.item_ids]
    assert sorted(rows) == [0, 1, 2, 3, 4, 5]  # only items of histories
    assert np.array_equal(bundle.tensors["basis"].numpy(), load_matrix(pinned_basis(lake, BASIS)).vectors[rows])


def test_training_again_gives_the_same_weights_also_from_rewritten_files(trained: tuple[Lake, Deployment]) -> None:
    lake, deployment = trained
    folder = bundle_folder(deployment, "autoencoder", DS)
    first = load_bundle(folder, kind="autoencoder").tensors
    write_histories(BasisDay(lake, deployment, DS, BASIS))
    train(BasisDay(lake, deployment, DS, BASIS))
    second = load_bundle(folder, kind="autoencoder").tensors
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_killed_training_goes_on_and_ends_the_same(
    trained: tuple[Lake, Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, deployment = trained
    folder = bundle_folder(deployment, "autoencoder", DS)
    expected = load_bundle(folder, kind="autoencoder").tensors
    calls = []
    original = train_job.validation_scores

    def killed(*args: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(train_job, "validation_scores", killed)
    with pytest.raises(KeyboardInterrupt):
        train(BasisDay(lake, deployment, DS, BASIS))
    assert (folder / STATE).exists()
    write_histories(BasisDay(lake, deployment, DS, BASIS))  # a rerun of the whole job
    train(BasisDay(lake, deployment, DS, BASIS))
    # one call before the kill, the killed one, then the two epochs that were left and the final scores
    assert len(calls) == 2 + 2 + 1
    found = load_bundle(folder, kind="autoencoder").tensors
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_late_data_start_the_training_again(trained: tuple[Lake, Deployment], monkeypatch: pytest.MonkeyPatch) -> None:
    lake, deployment = trained
    folder = bundle_folder(deployment, "autoencoder", DS)
    (folder / STATE).write_bytes(b"of a training that was killed")
    _append(lake, [_interaction("late", "i5", 80)], INTERACTIONS)
    write_histories(BasisDay(lake, deployment, DS, BASIS))
    assert train(BasisDay(lake, deployment, DS, BASIS))["n_epochs"] == 3
    assert not (folder / STATE).exists()
    assert not (folder / "rows").exists()


def test_the_next_day_starts_warm_and_another_basis_cold(trained: tuple[Lake, Deployment]) -> None:
    lake, deployment = trained
    tomorrow = DS + timedelta(days=1)
    write_histories(BasisDay(lake, deployment, tomorrow, BASIS))
    assert train(BasisDay(lake, deployment, tomorrow, BASIS))["n_warm"] == 6


def test_only_the_most_frequent_items_are_known_and_their_names_are_read_once(
    lake: Lake, deployment_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"LTE_AUTOENCODER__EPOCHS": "1", "LTE_AUTOENCODER__MAX_ITEMS": "2", "LTE_PATHS__LAKE": lake.root}
    deployment = load_deployment(deployment_file, environ=environ | {"LTE_TRACKING__URI": ""})
    # three users have i4, two have i2, one each of the others
    taken = [("a", "i4"), ("b", "i4"), ("c", "i4"), ("a", "i2"), ("b", "i2"), ("c", "i0"), ("d", "i1"), ("d", "i3")]
    _write(lake, [_interaction(user, item, 100) for user, item in taken])
    write_histories(BasisDay(lake, deployment, DS, BASIS))
    reads = []
    original = train_job.item_ids
    monkeypatch.setattr(train_job, "item_ids", lambda *args: reads.append(1) or original(*args))
    train(BasisDay(lake, deployment, DS, BASIS))
    assert load_bundle(bundle_folder(deployment, "autoencoder", DS), kind="autoencoder").item_ids == ["i4", "i2"]
    assert len(reads) == 1
    _append(lake, [(user, [9.0] * 4, 1, 0, BASIS, DS, "uniform", str(WINDOW)) for user in "abcd"], USER_LTE)
    found = _ltes(lake, bundle_folder(deployment, "autoencoder", DS))
    assert found["d"] == [9.0] * 4  # knows items, but none of these two: the uniform average
    assert found["a"] != [9.0] * 4


def test_a_bundle_of_another_basis_or_window_is_refused(trained: tuple[Lake, Deployment]) -> None:
    lake, deployment = trained
    folder = bundle_folder(deployment, "autoencoder", DS)
    with pytest.raises(BundleError, match="expected basis_version 'basis2', got 'basis1'"):
        encode_task(lake, folder, "basis2", str(WINDOW))
    with pytest.raises(BundleError, match="expected lte_window '365-0', got '365-60'"):
        encode_task(lake, folder, BASIS, "365-0")


@pytest.mark.parametrize("user", ["u9", "u17", "u43"])  # each alone is in fold 0, which is validation otherwise
def test_a_shop_whose_users_are_all_in_the_validation_fold_trains_on_them(
    lake: Lake, deployment_file: Path, user: str
) -> None:
    environ = {"LTE_AUTOENCODER__EPOCHS": "2", "LTE_PATHS__LAKE": lake.root, "LTE_TRACKING__URI": ""}
    deployment = load_deployment(deployment_file, environ=environ)
    # "new" is in another fold, but knows no item: nothing to train on
    _write(lake, [_interaction(user, f"i{item}", 100) for item in range(3)] + [_interaction("new", "i0", 2)])
    write_histories(BasisDay(lake, deployment, DS, BASIS))
    folds = {row["user_id"]: row["fold"] for row in _histories(lake).collect()}
    assert folds[user] == 0 != folds["new"]
    assert train(BasisDay(lake, deployment, DS, BASIS))["n_epochs"] == 2
    assert len(load_bundle(bundle_folder(deployment, "autoencoder", DS), kind="autoencoder").item_ids) == 3


def test_before_any_known_item_is_in_the_window_everybody_gets_the_uniform_average(
    lake: Lake, deployment_file: Path
) -> None:
    deployment = load_deployment(deployment_file, environ={"LTE_PATHS__LAKE": lake.root})
    _write(lake, [_interaction("young", "i0", 30), _interaction("lost", "nowhere", 100)])
    write_histories(BasisDay(lake, deployment, DS, BASIS))
    with pytest.raises(
        NoKnownItemError, match=r"user_histories, ds 2020-12-31, lte_window 365-60: no user has a known"
    ):
        train(BasisDay(lake, deployment, DS, BASIS))
    assert not bundle_folder(deployment, "autoencoder", DS).exists()
    assert not knows_an_item(lake, DS, str(WINDOW))
    zero = [0.0] * 4
    slices = [("young", zero, 0, 0), ("lost", zero, 0, 1)]
    _append(lake, [(*row, BASIS, DS, "uniform", str(WINDOW)) for row in slices], USER_LTE)
    rows = autoencoder_ltes(lake, None, DS, str(WINDOW)).collect()
    found = sorted((row["user_id"], row["embedding"], row["n_items"], row["n_unknown"]) for row in rows)
    assert found == sorted(slices)
    assert {row["method"] for row in rows} == {"autoencoder"}


def test_missing_input_is_named(lake: Lake, deployment_file: Path) -> None:
    deployment = load_deployment(deployment_file, environ={"LTE_PATHS__LAKE": lake.root})
    _write(lake, [_interaction("lost", "nowhere", 100)])
    with pytest.raises(BasisError, match=r"item_embeddings .*basis_version other: no items"):
        load_matrix(pinned_basis(lake, "other"))
    with pytest.raises(NoKnownItemError, match=r"ds 2020-12-31.*no user has a known item"):
        vocabulary(_histories(lake), N_ITEMS, f"table user_histories, ds {DS}")
    with pytest.raises(BundleError, match="there is no bundle"):
        encode_task(lake, bundle_folder(deployment, "autoencoder", DS), BASIS, str(WINDOW))


OFF = """
import runpy, sys
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
except SystemExit as done:
    assert done.code == 0, done.code
print("torch" in sys.modules)
"""


@pytest.mark.parametrize("task", ["train_autoencoder", "embed_users", "build_examples"])
def test_a_task_that_is_turned_off_does_not_load_torch(task: str, deployment_file: Path) -> None:
    environment = os.environ | {"LTE_AUTOENCODER__ENABLED": "false", "LTE_RANKER__ENABLED": "false"}
    command = [sys.executable, "-c", OFF, f"jobs.{task}", "--config", str(deployment_file), "--ds", str(DS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    assert "enabled = false, nothing to do" in done.stderr
