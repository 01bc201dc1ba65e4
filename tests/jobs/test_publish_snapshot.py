"""The publish job: from tables on a real engine to a real store."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyspark.sql import SparkSession

from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.lake.day import Day
from jobs.lake.lake import Lake
from jobs.lake.predicates import Predicate
from jobs.publish_snapshot import (
    PublishConfig,
    main,
    parse_flags,
    publish_and_log,
    publish_day,
    require_gates,
    snapshot_source,
)
from jobs.ranker.judging.live import make_live
from jobs.registry.bundles import bundle_folder
from jobs.store.opening import open_store
from jobs.store.publish import PublishRefusedError, audit, publish, rollback
from jobs.store.reader import SnapshotReader
from jobs.store.redis_store import RedisStore
from jobs.store.snapshot import StoreAuthError
from jobs.store.tables import (
    SERVED_COLUMNS,
    SliceState,
    forget_validated,
    log_switches,
    record_validated,
    rows_checksum,
)
from lte_models.training.bundle import save_bundle
from lte_models.training.manifest import Manifest
from schemas import GATE_RESULTS, LIVE_SNAPSHOT, USER_LTE, Table
from store_kit import certificates, free_port, redis_server

DAY = date(2017, 11, 5)
BEFORE = DAY - timedelta(days=1)


def frame(spark: SparkSession, table: Table, rows: list[dict[str, Any]]) -> Any:
    columns = pa.Table.from_pylist(rows)
    if "embedding" in columns.column_names:
        at = columns.column_names.index("embedding")
        floats = columns.column(at).cast(pa.list_(pa.float32()))
        columns = columns.set_column(at, "embedding", floats)
    if "n_unexpected" in columns.column_names:
        at = columns.column_names.index("n_unexpected")
        columns = columns.set_column(at, "n_unexpected", columns.column(at).cast(pa.int64()))
    return spark.createDataFrame(columns)


def write_ltes(
    lake: Lake, ds: date, vectors: dict[str, list[float]], *, method: str = "uniform", basis: str = "basis-a"
) -> None:
    rows = [
        {"user_id": user_id, "embedding": vector, "n_items": 3, "n_unknown": 0, "basis_version": basis, "ds": ds,
         "method": method, "lte_window": "365-60"}
        for user_id, vector in vectors.items()
    ]  # fmt: skip
    lake.replace(frame(lake.spark, USER_LTE, rows), USER_LTE, {"ds": ds, "method": method, "lte_window": "365-60"})


def write_gates(lake: Lake, ds: date, *, failed: tuple[str, ...] = ()) -> None:
    rows = [
        {"table": "user_lte", "expectation": name, "success": name not in failed, "observed": "0.31", "expected": "0.2",
         "n_unexpected": 0, "sample": "[]", "skipped": None, "refused_method": None, "ds": ds}
        for name in ("norm at most 1", "drift p99", "no nulls")
    ]  # fmt: skip
    lake.replace(frame(lake.spark, GATE_RESULTS, rows), GATE_RESULTS, {"ds": ds})
    record_seen(lake, ds)


def record_seen(lake: Lake, ds: date) -> None:
    """What validate records of the slice that the test deployment serves."""
    where: Predicate = {"ds": ds, "method": "uniform", "lte_window": "365-60"}
    checksum, n_rows = rows_checksum(lake.batches(USER_LTE, columns=SERVED_COLUMNS, where=where))
    record_validated(lake, ds, "basis-a", SliceState(lake.version(USER_LTE) or 0, n_rows, checksum))


@pytest.fixture
def job_lake(sail: SparkSession, deployment: Deployment) -> Lake:
    """The lake of the test deployment, for writing what the jobs before this one write."""
    return Lake(sail, deployment.paths.lake)


def log_rows(lake: Lake) -> list[tuple[Any, ...]]:
    rows = lake.read(LIVE_SNAPSHOT).orderBy("sequence").collect()
    return [(row["sequence"], row["action"], row["ds"], row["n_rows"], row["store"]) for row in rows]


def test_the_slice_that_is_configured_goes_live(engine_lake: Lake, deployment: Deployment) -> None:
    """Both engines: other methods and days stay out; every vector arrives bit for bit."""
    numbers = np.random.default_rng(5)
    vectors = {f"user {row}": numbers.normal(size=6).astype(np.float32).tolist() for row in range(300)}
    write_ltes(engine_lake, DAY, vectors)
    write_ltes(engine_lake, DAY, {"user 1": [9.0] * 6}, method="recency")
    write_ltes(engine_lake, BEFORE, {"user 1": [8.0] * 6})
    store = open_store(deployment)
    source = snapshot_source(Day(engine_lake, deployment, DAY))
    assert (source.row_count, source.basis_version, source.lte_window) == (300, "basis-a", "365-60")
    assert sum(part.num_rows for part in source.sample()) == 200
    done = publish_and_log(engine_lake, store, source, PublishConfig(deployment, DAY))
    assert done.action == "publish"
    many = SnapshotReader(store).get_many(list(vectors))
    assert many.is_found.all()
    np.testing.assert_array_equal(many.embeddings, np.array(list(vectors.values()), dtype=np.float32))
    row = engine_lake.read(LIVE_SNAPSHOT).collect()[0].asDict()
    manifest = audit(store)
    assert row == {
        "sequence": 1,
        "action": "publish",
        "ds": DAY,
        "basis_version": "basis-a",
        "method": "uniform",
        "lte_window": "365-60",
        "half_life_days": None,
        "dim": 6,
        "n_rows": 300,
        "checksum": manifest.checksum,
        "store": "lmdb",
        "code_version": manifest.code_version,
    }
    store.close()


def test_one_user_is_no_users(job_lake: Lake, deployment: Deployment) -> None:
    write_ltes(job_lake, DAY, {"ann": [1.0, 0.0]})
    write_gates(job_lake, DAY)
    assert publish_day(PublishConfig(deployment, DAY)).startswith("live: ds=2017-11-05, 1 user, uniform 365-60")


def test_the_same_day_again_says_so_and_logs_nothing(
    job_lake: Lake, deployment_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ltes(job_lake, DAY, {"ann": [1.0, 0.0], "bob": [0.0, 0.0]})
    write_gates(job_lake, DAY)
    flags = ["--config", str(deployment_file), "--ds", str(DAY)]
    main(flags)
    first = capsys.readouterr()
    assert "live: ds=2017-11-05, 2 users, uniform 365-60, basis basis-a" in first.out
    assert [line.split()[1] for line in first.err.splitlines() if line.startswith("publish_snapshot: ")] == [
        "clean", "create", "load", "seal", "verify", "swap", "prune", "done",
    ]  # fmt: skip
    main([*flags, "--run-type", "scheduled"])
    assert "unchanged, these rows were live already: ds=2017-11-05" in capsys.readouterr().out
    assert log_rows(job_lake) == [(1, "publish", DAY, 2, "lmdb")]
    write_ltes(job_lake, DAY, {"ann": [1.0, 0.5], "bob": [0.0, 0.0]})  # late events: the day was computed again
    with pytest.raises(PublishRefusedError, match=r"expected checksum .* of the rows that the gates saw"):
        main(flags)
    record_seen(job_lake, DAY)
    main(flags)
    assert log_rows(job_lake) == [(1, "publish", DAY, 2, "lmdb"), (2, "publish", DAY, 2, "lmdb")]


def test_rows_that_are_not_those_that_the_gates_saw_are_refused(job_lake: Lake, deployment: Deployment) -> None:
    users = {f"u{number}": [1.0, float(number)] for number in range(20)}
    write_ltes(job_lake, BEFORE, users)
    write_gates(job_lake, BEFORE)
    publish_day(PublishConfig(deployment, BEFORE))
    write_ltes(job_lake, DAY, users)
    write_gates(job_lake, DAY)
    job_lake.delete(USER_LTE, {"ds": DAY, "user_id": [f"u{number}" for number in range(15)]})
    for force in (False, True):
        with pytest.raises(PublishRefusedError, match=r"expected 20 rows with checksum .*, got 5 rows.*run validate"):
            publish_day(PublishConfig(deployment, DAY, force=force))
    write_ltes(job_lake, DAY, users | {"u7": [1.0, 7.5]})  # as many rows, one of them another
    with pytest.raises(PublishRefusedError, match="expected checksum"):
        publish_day(PublishConfig(deployment, DAY))
    assert [row[2] for row in log_rows(job_lake)] == [BEFORE]
    write_ltes(job_lake, DAY, users)  # the same rows in another Delta version
    assert publish_day(PublishConfig(deployment, DAY)).startswith("live: ds=2017-11-05, 20 users")


def test_a_flipped_byte_does_not_go_live(job_lake: Lake, deployment: Deployment) -> None:
    value = 1.2345678
    write_ltes(job_lake, DAY, {f"u{number}": [value, 1.0 + number] for number in range(20)})
    write_gates(job_lake, DAY)
    stored = np.float32(value).tobytes()
    [path] = [file for file in (Path(job_lake.root) / "user_lte").rglob("*.parquet") if stored in file.read_bytes()]
    content = bytearray(path.read_bytes())
    content[content.index(stored)] ^= 1
    path.write_bytes(content)
    with pytest.raises(PublishRefusedError, match="expected checksum"):
        publish_day(PublishConfig(deployment, DAY))


def test_a_day_whose_gates_recorded_no_rows_is_refused(job_lake: Lake, deployment: Deployment) -> None:
    write_ltes(job_lake, DAY, {"ann": [1.0, 0.0]})
    write_gates(job_lake, DAY)
    forget_validated(job_lake, DAY)
    with pytest.raises(PublishRefusedError, match="table runs has no row of validate for ds=2017-11-05"):
        publish_day(PublishConfig(deployment, DAY))


@pytest.mark.parametrize("flags", [["--run-type", "backfill"], ["--backfill"], ["--backfill", "--run-type", "manual"]])
def test_a_backfill_never_publishes(
    flags: list[str], job_lake: Lake, deployment: Deployment, deployment_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ltes(job_lake, DAY, {"ann": [1.0, 0.0]})
    write_gates(job_lake, DAY)
    main(["--config", str(deployment_file), "--ds", str(DAY), *flags, "--force"])
    assert "a backfill never publishes" in capsys.readouterr().out
    assert not Path(deployment.paths.online_store).exists()
    assert log_rows(job_lake) == []


def test_an_unknown_run_type_is_a_usage_error(deployment_file: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_flags(["--config", str(deployment_file), "--ds", "2017-11-05", "--run-type", "bakcfill"])
    assert stopped.value.code == 2


def test_a_day_that_was_not_validated_is_refused(job_lake: Lake, deployment: Deployment) -> None:
    write_ltes(job_lake, DAY, {"ann": [1.0, 0.0]})
    write_gates(job_lake, BEFORE)
    with pytest.raises(PublishRefusedError, match="table gate_results has no row of ds=2017-11-05"):
        publish_day(PublishConfig(deployment, DAY))
    assert not Path(deployment.paths.online_store).exists()


def test_a_failed_gate_leaves_live_what_is_live(job_lake: Lake, deployment: Deployment) -> None:
    for ds in (BEFORE, DAY):
        write_ltes(job_lake, ds, {"ann": [1.0, float(ds.day)]})
    write_gates(job_lake, BEFORE)
    write_gates(job_lake, DAY, failed=("drift p99",))
    publish_day(PublishConfig(deployment, BEFORE))
    with pytest.raises(PublishRefusedError, match=r"user_lte: drift p99 \(observed 0.31, expected 0.2\)$"):
        publish_day(PublishConfig(deployment, DAY, force=True))
    store = open_store(deployment)
    assert audit(store).ds == BEFORE
    store.close()
    write_gates(job_lake, DAY)
    require_gates(job_lake, DAY)


def test_an_older_day_again_is_no_failure_and_leaves_live_alone(
    job_lake: Lake, deployment: Deployment, deployment_file: Path
) -> None:
    for ds in (BEFORE, DAY):
        write_ltes(job_lake, ds, {"ann": [1.0, 0.0]})
        write_gates(job_lake, ds)
    publish_day(PublishConfig(deployment, DAY))
    command = [sys.executable, "-m", "jobs.publish_snapshot", "--config", str(deployment_file), "--ds", str(BEFORE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0,
        "not published, what is live stays: user_lte ds=2017-11-04 method=uniform lte_window=365-60: ds=2017-11-05 is "
        "live, and live only moves forward; --force publishes the older day",
    )
    assert SnapshotReader(open_store(deployment)).manifest().ds == DAY
    forced = subprocess.run([*command, "--force"], capture_output=True, text=True, check=False)
    assert (forced.returncode, "live: ds=2017-11-04" in forced.stdout) == (0, True)


def test_a_slice_of_two_bases_or_of_none_is_refused(job_lake: Lake, deployment: Deployment) -> None:
    write_gates(job_lake, DAY)
    with pytest.raises(
        PublishRefusedError, match=r"user_lte, ds=2017-11-05 method=uniform lte_window=365-60: expected rows.*got none"
    ):
        publish_day(PublishConfig(deployment, DAY))
    write_ltes(job_lake, DAY, {"ann": [1.0, 0.0]})
    both = [
        {"user_id": user, "embedding": [1.0, 0.0], "n_items": 1, "n_unknown": 0, "basis_version": basis, "ds": DAY,
         "method": "uniform", "lte_window": "365-60"}
        for user, basis in (("ann", "basis-a"), ("bob", "basis-b"))
    ]  # fmt: skip
    lake_slice: Predicate = {"ds": DAY, "method": "uniform", "lte_window": "365-60"}
    job_lake.replace(frame(job_lake.spark, USER_LTE, both), USER_LTE, lake_slice)
    with pytest.raises(PublishRefusedError, match=r"expected rows of one basis, got .*'basis-b': 1"):
        publish_day(PublishConfig(deployment, DAY))


def test_another_basis_needs_its_flag(job_lake: Lake, deployment: Deployment) -> None:
    write_ltes(job_lake, BEFORE, {"ann": [1.0, 0.0]}, basis="basis-a")
    write_ltes(job_lake, DAY, {"ann": [1.0, 0.0, 0.0]}, basis="basis-b")
    for ds in (BEFORE, DAY):
        write_gates(job_lake, ds)
    publish_day(PublishConfig(deployment, BEFORE))
    with pytest.raises(PublishRefusedError, match="--allow-basis-change"):
        publish_day(PublishConfig(deployment, DAY))
    assert "live: ds=2017-11-05" in publish_day(PublishConfig(deployment, DAY, allow_basis_change=True))


def test_a_log_row_that_a_killed_run_left_out_is_written_by_the_next(job_lake: Lake, deployment: Deployment) -> None:
    write_ltes(job_lake, BEFORE, {"ann": [1.0, 0.0]})
    write_ltes(job_lake, DAY, {"ann": [0.5, 0.0]})
    for ds in (BEFORE, DAY):
        write_gates(job_lake, ds)
    publish_day(PublishConfig(deployment, BEFORE))
    store = open_store(deployment)
    publish(store, snapshot_source(Day(job_lake, deployment, DAY)))  # live, but the process ended before the log
    rollback(store)
    rollback(store)
    assert len(log_rows(job_lake)) == 1
    assert publish_day(PublishConfig(deployment, DAY)).startswith("unchanged")
    wanted = [
        (1, "publish", BEFORE, 1, "lmdb"),
        (2, "publish", DAY, 1, "lmdb"),
        (3, "rollback", BEFORE, 1, "lmdb"),
        (4, "rollback", DAY, 1, "lmdb"),
    ]
    assert log_rows(job_lake) == wanted
    assert log_switches(job_lake, store) == 4
    assert log_rows(job_lake) == wanted
    store.close()


def test_a_store_that_was_emptied_does_not_reuse_numbers(
    job_lake: Lake, deployment: Deployment, tmp_path: Path
) -> None:
    write_ltes(job_lake, DAY, {"ann": [1.0, 0.0]})
    write_gates(job_lake, DAY)
    publish_day(PublishConfig(deployment, DAY))
    Path(deployment.paths.online_store).rename(tmp_path / "lost")
    publish_day(PublishConfig(deployment, DAY))
    assert log_rows(job_lake) == [(1, "publish", DAY, 1, "lmdb"), (2, "publish", DAY, 1, "lmdb")]


@pytest.fixture
def redis_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    port = free_port()
    with redis_server(tmp_path / "redis", port):
        yield {
            "LTE_PUBLISH__STORE": "redis",
            "LTE_PUBLISH__REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "LTE_PUBLISH__REDIS_PREFIX": "shop",
        }


def test_redis_is_a_setting(job_lake: Lake, deployment_file: Path, redis_environment: dict[str, str]) -> None:
    write_ltes(job_lake, DAY, {"ann": [1.0, -1.0]})
    write_gates(job_lake, DAY)
    deployment = load_deployment(deployment_file, environ=redis_environment)
    assert "(redis, switch 1)" in publish_day(PublishConfig(deployment, DAY))
    reader = SnapshotReader(open_store(deployment), basis_version="basis-a")
    found = reader.get("ann")
    assert found is not None
    assert found.embedding.tolist() == [1.0, -1.0]
    assert log_rows(job_lake) == [(1, "publish", DAY, 1, "redis")]
    reader.close()


def test_settings_of_redis_that_cannot_be_right_name_the_key(deployment_file: Path) -> None:
    environ = {"LTE_PUBLISH__STORE": "redis", "LTE_PUBLISH__REDIS_URL": "redis://u:pass-word@h/0"}
    with pytest.raises(ConfigError, match=r"publish\.redis_url") as caught:
        open_store(load_deployment(deployment_file, environ=environ))
    assert "pass-word" not in str(caught.value)
    good = {"LTE_PUBLISH__STORE": "redis", "LTE_PUBLISH__REDIS_PASSWORD": "pass-word"}
    store = open_store(load_deployment(deployment_file, environ=good))
    assert isinstance(store, RedisStore)
    assert "pass-word" not in repr(store)


def test_user_password_and_certificates_come_from_the_environment(
    job_lake: Lake, deployment_file: Path, tmp_path: Path
) -> None:
    ca, certificate, key = certificates(tmp_path / "tls")
    port, plain = free_port(), free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", ca]
    acl = [
        "--user",
        "shop",
        "on",
        ">s3cret-word",
        "~shop:*",
        "+@read",
        "+@write",
        "+@transaction",
        "+@connection",
        "+info",
    ]
    environ = {
        "LTE_PUBLISH__STORE": "redis",
        "LTE_PUBLISH__REDIS_URL": f"rediss://127.0.0.1:{port}/0",
        "LTE_PUBLISH__REDIS_PREFIX": "shop",
        "LTE_PUBLISH__REDIS_USERNAME": "shop",
        "LTE_PUBLISH__REDIS_PASSWORD": "s3cret-word",
        "LTE_PUBLISH__REDIS_CA_FILE": ca,
        "LTE_PUBLISH__REDIS_CERT_FILE": certificate,
        "LTE_PUBLISH__REDIS_KEY_FILE": key,
    }
    write_ltes(job_lake, DAY, {"ann": [1.0, -1.0]})
    write_gates(job_lake, DAY)
    with redis_server(tmp_path / "redis", plain, *tls, *acl):
        deployment = load_deployment(deployment_file, environ=environ)
        assert "(redis, switch 1)" in publish_day(PublishConfig(deployment, DAY))
        wrong = load_deployment(deployment_file, environ=environ | {"LTE_PUBLISH__REDIS_PASSWORD": "guess"})
        with pytest.raises(StoreAuthError, match="refused"):
            SnapshotReader(open_store(wrong)).manifest()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"REDIS_CA_FILE": __file__}, r"publish\.redis_ca_file '.*': needs a rediss:// URL"),
        ({"REDIS_URL": "foo"}, r"publish\.redis_url: expected redis://host:port/db or rediss://.*, got 'foo'"),
        (
            {"REDIS_URL": "rediss://h", "REDIS_KEY_FILE": "gone.pem"},
            r"publish\.redis_key_file 'gone.pem': no such file",
        ),
        ({"REDIS_URL": "rediss://h", "REDIS_CERT_FILE": __file__}, r"publish\.redis_key_file '': .* go together"),
    ],
)
def test_check_config_refuses_settings_of_redis_that_cannot_be_right(
    deployment_file: Path, changed: dict[str, str], message: str
) -> None:
    environ = {"LTE_PUBLISH__STORE": "redis"} | {f"LTE_PUBLISH__{name}": text for name, text in changed.items()}
    command = [sys.executable, "-m", "jobs.cli", "check-config", "--config", str(deployment_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(message, done.stderr)


def make_ranker_live(deployment: Deployment, *, basis: str = "basis-a", window: str = "365-60") -> None:
    """A live ranker that reads uniform LTEs of this basis and window."""
    folder = bundle_folder(deployment, "ranker", BEFORE)
    manifest = Manifest(
        kind="ranker",
        config={"settings": {"method": "uniform"}},
        basis_version=basis,
        lte_window=window,
        ds=BEFORE.isoformat(),
        vocabulary_hash="",
        code_version="1",
    )
    save_bundle(folder, manifest, {"weight": torch.ones(1)}, ["i1"])
    make_live(deployment, folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"basis": "basis-b"}, "basis_version 'basis-b' against 'basis-a'"),
        ({"window": "365-0"}, "lte_window '365-0' against '365-60'"),
    ],
)
def test_ltes_that_the_live_ranker_does_not_read_are_refused_unless_meant(
    job_lake: Lake, deployment: Deployment, changes: dict[str, str], message: str
) -> None:
    write_ltes(job_lake, DAY, {"ann": [1.0, 0.0]})
    write_gates(job_lake, DAY)
    make_ranker_live(deployment, **changes)
    with pytest.raises(PublishRefusedError, match=f"{message}.*--allow-basis-change"):
        publish_day(PublishConfig(deployment, DAY))
    assert job_lake.read(LIVE_SNAPSHOT).count() == 0
    assert publish_day(PublishConfig(deployment, DAY, allow_basis_change=True)).startswith("live: ds=2017-11-05")


def test_a_recency_snapshot_holds_the_half_life_that_its_ltes_were_computed_with(
    job_lake: Lake, deployment: Deployment
) -> None:
    recency = replace(
        deployment,
        publish=replace(deployment.publish, method="recency"),
        ranker=replace(deployment.ranker, enabled=False),
    )
    write_ltes(job_lake, DAY, {"ann": [1.0, 0.0]}, method="recency")
    assert snapshot_source(Day(job_lake, recency, DAY)).half_life_days is None  # compute_lte recorded nothing
    job_lake.record_metrics(DAY, "compute_lte", {"half_life_days": 12.5})  # the configuration has 90 by now
    source = snapshot_source(Day(job_lake, recency, DAY))
    store = open_store(recency)
    publish_and_log(job_lake, store, source, PublishConfig(recency, DAY))
    assert SnapshotReader(store).manifest().half_life_days == 12.5
    assert job_lake.read(LIVE_SNAPSHOT).collect()[0]["half_life_days"] == 12.5
    store.close()


def test_ltes_that_the_live_ranker_reads_or_does_without_are_published(job_lake: Lake, deployment: Deployment) -> None:
    write_ltes(job_lake, DAY, {"ann": [1.0, 0.0]})
    write_gates(job_lake, DAY)
    make_ranker_live(deployment, basis="basis-b", window="")  # takes no LTE
    assert publish_day(PublishConfig(deployment, DAY)).startswith("live")
    make_ranker_live(deployment)
    assert publish_day(PublishConfig(deployment, DAY)).startswith("unchanged")


def test_a_deployment_without_a_ranker_publishes_as_it_likes(job_lake: Lake, deployment: Deployment) -> None:
    write_ltes(job_lake, DAY, {"ann": [1.0, 0.0]})
    write_gates(job_lake, DAY)
    make_ranker_live(deployment, basis="basis-b")
    without = replace(deployment, ranker=replace(deployment.ranker, enabled=False))
    assert publish_day(PublishConfig(without, DAY)).startswith("live")
