"""The whole day, as an operator runs it: console script, real processes, 20 users whose LTEs are known by hand."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from deployments import CONFIG
from jobs.cli import dispatch
from jobs.config.loading import load_deployment
from jobs.lake.delta_files import arrow_batches
from jobs.lake.predicates import Predicate
from jobs.runtime.day import REPORT_TASK, TASKS
from jobs.store.opening import open_store
from jobs.store.reader import SnapshotReader

pytestmark = pytest.mark.slow

FIRST, SECOND = date(2017, 6, 29), date(2017, 6, 30)
GOLDEN = json.loads((Path(__file__).parent / "golden" / "user_lte.json").read_text())
TITLES = ["red floral summer dress", "steel kitchen knife", "dog food, 5 kg", "garden hose", "strawberry yoghurt"]


# Models small enough for five items; half of the jobs are theirs, so only the first day trains them.
MODELS = """
[autoencoder]
epochs = 1
[ranker]
train_days = 30
validation_days = 2
epochs = 1
dim = 8
"""
WITHOUT_MODELS = {"LTE_AUTOENCODER__ENABLED": "false", "LTE_RANKER__ENABLED": "false"}


def python(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments, "--config", str(folder / "deployment.toml")]
    environ = os.environ | variables
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=550, env=environ)


def lte(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return python(folder, "jobs.cli", *arguments, **variables)


def answer(folder: Path, *arguments: str) -> Any:
    """What a command prints as JSON; in this process, since to import the project takes longer than to answer."""
    with redirect_stdout(io.StringIO()) as said:
        dispatch([*arguments, "--config", str(folder / "deployment.toml"), "--json"])
    return json.loads(said.getvalue())


def event(user: str, item: str, day: date) -> dict[str, str]:
    return {"user_id": user, "item_id": item, "event_ts": f"{day}T12:00:00Z", "interaction_type": "purchase"}


def history() -> Iterator[dict[str, str]]:
    """User i bought item i mod 5 on i days of the long window, and everybody something in the last 60 days."""
    start = date(2016, 9, 1)
    for number in range(20):
        user = f"user_{number:02}"
        for day in range(number):
            yield event(user, f"item_{number % 5}", start + timedelta(days=3 * day))
        for day in range(12, 28):  # the short window: what the ranker trains on, and no LTE reads
            yield event(user, f"item_{day % 5}", date(2017, 6, day))
    yield event("user_07", "item_1", FIRST)  # one user is nothing to judge a ranker by
    yield event("user_03", "ghost", start)  # no catalogue row: counted, not averaged
    yield event("user_19", "item_0", start)  # 19 times item 4 and once item 0


def write_landing(folder: Path) -> None:
    # The catalogue landed before all interactions: models learn from items that were known then.
    for target, day, name in (("interactions", FIRST, "history.csv"), ("items", date(2016, 8, 31), "items.jsonl")):
        path = folder / "landing" / target / f"ds={day}" / name
        path.parent.mkdir(parents=True)
        with path.open("w", newline="") as file:
            if target == "items":
                rows = [{"item_id": f"item_{number}", "title": title} for number, title in enumerate(TITLES)]
                file.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                writer = csv.DictWriter(file, ["user_id", "item_id", "event_ts", "interaction_type"])
                writer.writeheader()
                writer.writerows(history())
    second = folder / "landing" / "interactions" / f"ds={SECOND}"
    second.mkdir()
    rows = [
        event("user_01", "item_2", SECOND),
        event("user_02", "item_2", date(2017, 1, 5)),  # late: it lands in its own day, in yesterday's long window
        event("user_02", "item_2", date(2017, 1, 5)),  # the same row twice
        event("user_04", "item_4", date(2017, 7, 1)),  # not yet possible on that day
    ]
    (second / "day.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment after its first data day."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "deployment.toml").write_text(CONFIG + MODELS)
    write_landing(folder)
    done = lte(folder, "run", str(FIRST), "--json")
    assert done.returncode == 0, done.stderr
    tasks = [task["task"] for task in json.loads(done.stdout)["tasks"]]
    assert tasks == [*TASKS, REPORT_TASK]
    page = (folder / "reports" / f"ds={FIRST}" / "index.html").read_text()
    assert all(f'<tr><td>{task}</td><td><b class="good">success</b>' in page for task in TASKS)
    return folder


def slice_of(shop: Path, ds: date) -> list[dict[str, Any]]:
    where: Predicate = {"ds": ds, "method": "uniform", "lte_window": "365-60"}
    batches = arrow_batches(str(shop / "lake" / "user_lte"), where=where)
    return sorted((row for batch in batches for row in batch.to_pylist()), key=lambda row: row["user_id"])


def test_the_first_day_equals_the_golden_file(shop: Path) -> None:
    rows = slice_of(shop, FIRST)
    counts = [(row["user_id"], row["n_items"], row["n_unknown"]) for row in rows]
    assert counts == [(row["user_id"], row["n_items"], row["n_unknown"]) for row in GOLDEN]
    basis = {
        row["item_id"]: np.array(row["embedding"])
        for batch in arrow_batches(str(shop / "lake" / "item_embeddings"))
        for row in batch.to_pylist()
    }
    for row, golden in zip(rows, GOLDEN, strict=True):
        found = np.array(row["embedding"])
        if golden["nearest"] is None:
            assert not found.any()
            continue
        expected = basis[golden["nearest"]]  # the mean of equal vectors is that vector
        if row["user_id"] == "user_19":
            expected = (19 * basis["item_4"] + basis["item_0"]) / 20
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_is_live_and_how_a_user_looks(shop: Path) -> None:
    status = answer(shop, "status")
    assert (status["live"]["ds"], status["live"]["row_count"]) == (str(FIRST), 20)
    [run] = status["runs"]
    assert run["gates_failed"] == []
    assert run["gates_passed"] > 20
    assert run["stale"] is None
    user = answer(shop, "user", "user_09")
    assert (user["n_items"], user["drift"]) == (9, None)
    assert user["nearest"][0] == {"item_id": "item_4", "title": "strawberry yoghurt", "cosine": 1.0}
    assert answer(shop, "user", "user_00")["nearest"] == []
    nobody = lte(shop, "user", "nobody")
    assert nobody.returncode == 1
    assert "user_id 'nobody' has no LTE in the live snapshot, ds=2017-06-29" in nobody.stderr
    assert "Traceback" not in nobody.stderr
    assert "user_09" in lte(shop, "user", "user_09").stdout


def test_a_second_day_moves_live_and_shows_the_first_as_stale(shop: Path) -> None:
    done = lte(shop, "run", str(SECOND), **WITHOUT_MODELS)
    assert done.returncode == 0, done.stderr
    status = answer(shop, "status")
    assert status["live"]["ds"] == str(SECOND)
    by_day = {run["ds"]: run for run in status["runs"]}
    assert by_day[str(SECOND)]["stale"] is None
    assert "2017-01-05" in by_day[str(FIRST)]["stale"]
    assert "STALE" in lte(shop, "status").stdout
    counts = {row["user_id"]: row["n_items"] for row in slice_of(shop, SECOND)}
    assert (counts["user_01"], counts["user_02"], counts["user_04"]) == (1, 3, 4)
    drift = answer(shop, "user", "user_05")["drift"]
    assert (drift["n_in"], drift["n_out"], drift["drift"]) == (0, 0, 0.0)


def test_an_old_day_again_takes_late_events_in_equals_itself_and_never_goes_live(shop: Path) -> None:
    live = answer(shop, "status")["live"]
    assert {row["user_id"]: row["n_items"] for row in slice_of(shop, FIRST)}["user_02"] == 2
    flags = ("--ds", str(FIRST))
    assert python(shop, "jobs.compute_lte", *flags).returncode == 0
    once = slice_of(shop, FIRST)
    assert {row["user_id"]: row["n_items"] for row in once}["user_02"] == 3
    assert python(shop, "jobs.compute_lte", *flags).returncode == 0
    assert slice_of(shop, FIRST) == once
    assert {run["ds"]: run["stale"] for run in answer(shop, "status")["runs"]}[str(FIRST)] is None
    kept = python(shop, "jobs.publish_snapshot", *flags)
    assert (kept.returncode, f"ds={SECOND} is live" in kept.stdout) == (0, True), kept.stderr
    assert "backfill never publishes" in python(shop, "jobs.publish_snapshot", *flags, "--backfill").stdout
    whole = lte(shop, "run", str(FIRST), **WITHOUT_MODELS)
    assert whole.returncode == 0, whole.stderr
    assert slice_of(shop, FIRST) == once
    assert answer(shop, "status")["live"] == live


def test_rolling_back_and_forth(shop: Path) -> None:
    assert answer(shop, "rollback")["ds"] == str(FIRST)
    assert answer(shop, "status")["live"]["ds"] == str(FIRST)
    assert answer(shop, "rollback")["ds"] == str(SECOND)


def test_maintenance_keeps_every_row(shop: Path) -> None:
    before = slice_of(shop, SECOND)
    done = answer(shop, "maintain")
    assert done["user_lte"]["files_compacted"] >= 0
    assert slice_of(shop, SECOND) == before


def test_an_erased_user_is_nowhere(shop: Path) -> None:
    done = answer(shop, "erase", "user_02")
    assert done["tables"]["interactions"] == 2 + 16 + 1  # long window, short window, the late one
    assert done["tables"]["quarantine"] == 1  # the duplicate row
    assert done["versions"] == 2
    assert lte(shop, "user", "user_02").returncode == 1
    assert "user_02" not in {row["user_id"] for row in slice_of(shop, SECOND)}
    files = [path for path in (shop / "lake").rglob("*") if path.is_file()]
    for path in files:
        held = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text(errors="replace")
        assert "user_02" not in held, path
    assert "user_03" in {row["user_id"] for row in slice_of(shop, SECOND)}


def test_a_shop_younger_than_the_windows_end_publishes_from_its_first_days_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The long window lies before the shop's first day: the autoencoder, which is on, has nothing to train on.
    # Its last day holds one of twenty interactions: a gate of its own judges that.
    (tmp_path / "deployment.toml").write_text(CONFIG + MODELS + "[gates]\nmin_volume_share = 0\n")
    write_landing(tmp_path)
    landed = tmp_path / "landing" / "interactions" / f"ds={FIRST}" / "history.csv"
    lines = landed.read_text().splitlines(keepends=True)
    landed.write_text("".join(line for line in lines if "2017-06-2" in line or line.startswith("user_id")))
    needed = ("train_autoencoder", "embed_users", "compute_drift", "validate", "publish_snapshot")
    for job in ("ingest", "embed_items", "compute_lte", *needed):
        module = importlib.import_module(f"jobs.{job}")
        module.main(["--config", str(tmp_path / "deployment.toml"), "--ds", str(FIRST)])
    said = capsys.readouterr()
    assert "no user has a known item; there is nothing to train on; embed_users writes the uniform" in said.err
    assert "0 failed" in said.out
    assert not list((tmp_path / "lake" / "models").rglob("manifest.json"))
    rows = [row for part in arrow_batches(str(tmp_path / "lake" / "user_lte")) for row in part.to_pylist()]
    assert {row["method"] for row in rows} == {"uniform", "recency", "autoencoder"}
    assert all(not any(row["embedding"]) and row["n_items"] == 0 for row in rows)
    store = open_store(load_deployment(tmp_path / "deployment.toml"))
    try:
        live = SnapshotReader(store).manifest()
    finally:
        store.close()
    assert (live.ds, live.row_count) == (FIRST, 20)


def test_a_configuration_that_is_wrong_exits_two(shop: Path) -> None:
    good = answer(shop, "check-config")
    assert good["lte"]["windows"] == ["365-60"]
    assert good["publish"]["redis_password"] == "not set"
    (shop / "deployment.toml").write_text(CONFIG + '[engin]\nmaster = "sail"\n')
    bad = lte(shop, "check-config")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "engin: expected one of the" in bad.stderr
    assert "got {'master': 'sail'}" in bad.stderr
