"""lte serve as a process: its answers, its refusals, and a hundred switches under load."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from deployments import CONFIG
from jobs.commands.live.serve import serve
from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.lake.day import BasisDay
from jobs.lake.reader import lake_reader
from jobs.ranker.items import load_candidates
from jobs.ranker.judging.live import live_ranker, make_live, switch_back
from jobs.registry.bundles import bundle_folder
from jobs.serving.candidates import read_candidates
from jobs.serving.ranker import ServedRanker, events_of, example_of, ranked, served_ranker
from jobs.store.opening import open_store
from jobs.store.publish import SnapshotSource, publish, rollback
from jobs.store.reader import SnapshotReader
from jobs.store.snapshot import NoLiveSnapshotError
from jobs.train_ranker import train
from lte_models.training.bundle import load_bundle, save_bundle
from ranker_shop import BASIS, DIM, DS, SETTINGS, make_shop, settings

ANCHOR = DS - timedelta(days=1)
USERS = ("u00", "u01", "u12")
TOKEN = "a-token-of-the-test"


@dataclass(frozen=True)
class Shop:
    deployment: Deployment
    environ: dict[str, str]
    base: str


def _publish(deployment: Deployment, ds: Any, seed: int, window: str = "365-60") -> None:
    ltes = np.random.default_rng(seed).normal(size=(2, DIM)).astype(np.float32)
    vectors = pa.array(ltes.tolist(), pa.list_(pa.float32()))
    names = ["user_id", "embedding", "n_items"]
    batch = pa.record_batch([list(USERS[:2]), vectors, pa.array([9, 9], pa.int32())], names=names)
    store = open_store(deployment)
    publish(store, SnapshotSource(ds, BASIS, window, "uniform", "1", 2, lambda: [batch], lambda: [batch]), force=True)
    store.close()


@pytest.fixture(scope="module")
def shop(sail: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Two rankers, two snapshots of two days, and the service as a process of its own."""
    folder = tmp_path_factory.mktemp("service")
    file = folder / "deployment.toml"
    file.write_text(CONFIG)
    lake = make_shop(sail, folder / "lake", file)
    deployment = settings(lake, file)
    train(BasisDay(lake, deployment, DS, BASIS))
    first = bundle_folder(deployment, "ranker", DS)
    bundle = load_bundle(first, kind="ranker")
    shaken = {name: value * 1.5 if name.startswith("user_tower") else value for name, value in bundle.tensors.items()}
    save_bundle(folder / "second", bundle.manifest, shaken, bundle.item_ids)
    make_live(deployment, folder / "second")
    make_live(deployment, first)
    _publish(deployment, ANCHOR, 1)
    _publish(deployment, DS, 2)
    # as read without an engine
    mine, theirs = read_candidates(lake_reader(deployment), ANCHOR, BASIS)[0], load_candidates(lake, DS, BASIS, 1)
    assert (mine.item_ids, dict(mine.metadata)) == (theirs.item_ids, dict(theirs.metadata))
    assert np.array_equal(mine.counts, theirs.counts)
    assert mine.daily.first_day == theirs.daily.first_day
    assert bool((mine.daily.cumulative == theirs.daily.cumulative).all())
    environ = SETTINGS | {"LTE_PATHS__LAKE": lake.root, "LTE_CONFIG": str(file), "LTE_SERVE_TOKEN": TOKEN}
    with Running({**os.environ, **environ, "OMP_NUM_THREADS": "1"}) as base:
        yield Shop(deployment, environ, base)


class Running:
    """The command as a process; its standard error tells the port."""

    def __init__(self, environ: dict[str, str]) -> None:
        command = [sys.executable, "-m", "jobs.cli", "serve", "--port", "0"]
        self.process = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> str:
        assert self.process.stderr is not None
        told = []
        for line in self.process.stderr:
            told.append(line)
            if "listening on " in line:
                # the pipe must be read on, or the service waits once it is full
                threading.Thread(target=self.process.stderr.read, daemon=True).start()
                return f"http://{line.rpartition('listening on ')[2].strip()}"
        raise AssertionError("".join(told))

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        assert self.process.wait(30) in (0, -15)


@pytest.fixture
def client(shop: Shop) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shop.base, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30) as opened:
        yield opened


def _expected(shop: Shop, served: ServedRanker, user: str, k: int = 4) -> list[tuple[str, float]]:
    reader = SnapshotReader(open_store(shop.deployment))
    batch = example_of(shop.deployment, served, user, events_of(lake_reader(shop.deployment), served, user))
    found = ranked(served, reader.get_many([user]), batch, k)
    reader.close()
    return found


def _path(user: str, k: int = 4) -> str:
    return f"/v1/users/{user}/recommendations?k={k}"


def test_answers_are_those_of_the_ranker_and_say_what_is_known_of_the_user(shop: Shop, client: httpx.Client) -> None:
    served = served_ranker(lake_reader(shop.deployment), shop.deployment, DS)
    for user, known in (("u00", "known"), ("u12", "cold"), ("nobody", "unknown")):
        found = client.get(_path(user)).json()
        expected = _expected(shop, served, user)
        assert [item["item_id"] for item in found["items"]] == [item for item, _ in expected]
        assert [item["score"] for item in found["items"]] == pytest.approx([s for _, s in expected], abs=1e-4)
        assert (found["user"], found["ds"], found["items_ds"]) == (known, str(DS), str(DS))
        assert (found["fallback"] is None) == (known == "known")
    assert len(client.get(_path("u00", 500)).json()["items"]) == len(served.shop.item_ids)


def test_interactions_of_the_request_take_the_place_of_those_of_the_lake(shop: Shop, client: httpx.Client) -> None:
    """The user's own rows, sent: the same answer. A moment after the last day counts as its end, in order."""
    rows = []
    for batch in lake_reader(shop.deployment).batches(_interactions(), where={"user_id": "u00"}):
        rows += batch.to_pylist()
    sent = [
        {"item_id": row["item_id"], "type": row["interaction_type"], "ts": row["event_ts"].astimezone(UTC).isoformat()}
        for row in rows
    ]
    from_lake, from_body = (
        client.get(_path("u00")).json(),
        client.post(_path("u00"), json={"interactions": sent}).json(),
    )
    assert from_body["items"] == from_lake["items"]
    late = {"item_id": "i13", "type": "click", "ts": datetime(2021, 1, 5, tzinfo=UTC).isoformat()}
    more = client.post(_path("u00"), json={"interactions": [*sent, late]}).json()
    assert more["items"] != from_lake["items"]
    assert client.post(_path("nobody"), json={"interactions": [late]}).json()["user"] == "cold"
    assert client.post(_path("nobody"), json={"interactions": []}).json()["user"] == "unknown"


def _interactions() -> Any:
    from schemas import INTERACTIONS

    return INTERACTIONS


def test_the_other_routes(shop: Shop, client: httpx.Client) -> None:
    stored = client.get("/v1/users/u01/lte").json()
    reader = SnapshotReader(open_store(shop.deployment))
    assert stored["embedding"] == pytest.approx(reader.get("u01").embedding.tolist())  # type: ignore[union-attr]
    reader.close()
    assert client.get("/v1/users/nobody/lte").status_code == 404
    live = client.get("/v1/live").json()
    assert (live["snapshot"]["ds"], live["ranker"]["ds"]) == (str(DS), str(DS))
    assert live["ranker"]["weights_sha256"] == live_ranker(shop.deployment).weights_sha256  # type: ignore[union-attr]
    assert client.get("/healthz", headers={"Authorization": ""}).json() == {"status": "ok", "ds": str(DS)}
    text = client.get("/metrics").text
    assert 'lte_requests_total{route="/v1/users/{user_id}/lte",status="404"} 1' in text
    assert "u01" not in text


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (("GET", "/v1/users/u00/recommendations?k=0", None), 422),
        (("GET", "/v1/users/u00/recommendations?k=501", None), 422),
        (("GET", f"/v1/users/{'x' * 129}/lte", None), 422),
        (("GET", f"/v1/users/{'ü' * 100}/lte", None), 422),  # 200 bytes
        (("POST", "/v1/users/u00/recommendations", b"{"), 422),
        (("POST", "/v1/users/u00/recommendations", b'{"interactions": [{"item_id": 7, "type": "x", "ts": 0}]}'), 422),
        (("POST", "/v1/users/u00/recommendations", b'{"interactions": [], "x": 1}'), 422),
        (("POST", "/v1/users/u00/recommendations", b" " * 600_000), 413),
        (("POST", "/v1/users/u00/recommendations", iter([b" " * 300_000, b" " * 300_000])), 413),
        (("GET", "/v2", None), 404),
    ],
)
def test_wrong_requests_are_refused(client: httpx.Client, request_: tuple[str, str, Any], status: int) -> None:
    method, path, body = request_
    answer = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text


def test_a_body_in_chunks_is_read_whole(client: httpx.Client) -> None:
    parts = iter([b'{"interac', b'tions": []}'])
    answer = client.post(_path("u00"), content=parts, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}"])
def test_without_the_token_there_is_no_answer(client: httpx.Client, header: str) -> None:
    answer = client.get(_path("u00"), headers={"Authorization": header})
    assert (answer.status_code, TOKEN in answer.text) == (401, False)


Key = tuple[str, ...]  # ranker, snapshot, its day, day of the items, user


def _all_expected(shop: Shop) -> dict[Key, list[tuple[str, float]]]:
    """Answers of each ranker with each snapshot and the items of each day."""
    deployment, lake = shop.deployment, lake_reader(shop.deployment)
    expected: dict[Key, list[tuple[str, float]]] = {}
    for _ in range(2):
        pointer = switch_back(deployment)
        by_day = {str(ds): served_ranker(lake, deployment, ds) for ds in (ANCHOR, DS)}
        for _ in range(2):
            store = open_store(deployment)
            manifest = rollback(store).manifest
            store.close()
            for (items_ds, served), user in product(by_day.items(), USERS):
                key = (pointer.weights_sha256[:12], manifest.version, str(manifest.ds), items_ds, user)
                expected[key] = _expected(shop, served, user)
    return expected


def _problem(answer: httpx.Response, expected: dict[Key, list[tuple[str, float]]]) -> str | None:
    if answer.status_code != 200:
        return answer.text
    found = answer.json()
    wanted = expected.get(tuple(found[name] for name in ("ranker", "snapshot", "ds", "items_ds", "user_id")), [])
    is_same = [item["item_id"] for item in found["items"]] == [item for item, _ in wanted]
    scores = [item["score"] for item in found["items"]]
    return None if is_same and np.allclose(scores, [score for _, score in wanted], atol=1e-4) else answer.text


def test_a_hundred_switches_under_load_give_no_failed_and_no_mixed_answer(shop: Shop) -> None:
    """Each answer is exactly that of the ranker, the snapshot and the items that it names."""
    expected, done = _all_expected(shop), threading.Event()
    problems: list[str | None] = []

    def load(user: str) -> None:
        with httpx.Client(base_url=shop.base, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as client:
            while not done.is_set():
                problems.append(_problem(client.get(_path(user)), expected))

    threads = [threading.Thread(target=load, args=(user,)) for user in USERS[::2]]
    for thread in threads:
        thread.start()
    store = open_store(shop.deployment)
    for number in range(100):
        if number % 5 == 4:
            switch_back(shop.deployment)
        else:
            rollback(store)
        done.wait(0.02)
    store.close()
    done.set()
    for thread in threads:
        thread.join()
    assert len(problems) >= 2
    assert [problem for problem in problems if problem] == []


def test_a_pair_that_does_not_match_is_refused_and_served_again_after_the_way_back(
    shop: Shop, client: httpx.Client
) -> None:
    _publish(shop.deployment, DS, 3, window="365-0")
    answer = client.get(_path("u00"))
    assert answer.status_code == 503
    assert "lte_window '365-60' against '365-0'" in answer.json()["error"]
    assert client.get("/v1/users/u00/lte").json()["lte_window"] == "365-0"  # the store itself still answers
    store = open_store(shop.deployment)
    rollback(store)
    store.close()
    assert client.get(_path("u00")).status_code == 200


def test_the_service_does_not_start_where_it_must_not(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LTE_SERVE_TOKEN", raising=False)
    with pytest.raises(ConfigError, match=r"--host 192\.0\.2\.1: others can reach it, so set LTE_SERVE_TOKEN"):
        serve(shop.deployment, "192.0.2.1", 0)
    paths = replace(shop.deployment.paths, online_store=str(tmp_path / "empty.lmdb"))
    with pytest.raises(NoLiveSnapshotError):
        serve(replace(shop.deployment, paths=paths), "127.0.0.1", 0)
