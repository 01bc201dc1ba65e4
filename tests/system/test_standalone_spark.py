"""The LTE job on a real standalone Spark master with two workers, against the same job on Sail."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyspark
import pytest
from pyspark.sql import SparkSession

from jobs.basis.basis import configured_basis
from jobs.config.loading import load_deployment
from jobs.lake.delta_files import arrow_batches
from jobs.lake.lake import Lake
from schemas import EVENT_DAYS, INTERACTIONS, ITEM_EMBEDDINGS, USER_LTE

pytestmark = [pytest.mark.spark, pytest.mark.slow]

DS = date(2017, 6, 30)
N_USERS, N_ITEMS, DIM = 60, 25, 16


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1500):  # five minutes: a JVM needs seconds, unless the machine is busy
        assert process.poll() is None, "the Spark process ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail(f"nothing listens on port {port}")


@contextmanager
def spark_process(folder: Path, name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    script = Path(pyspark.__file__).parent / "bin" / "spark-class"
    environ = os.environ | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(["bash", str(script), *arguments], stdout=log, stderr=log, env=environ)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture
def standalone_master(apache_spark: SparkSession, tmp_path: Path) -> Iterator[str]:
    """URL of a master with two workers of one core; ``apache_spark`` has shown that Java and Delta's jars are there."""
    port, web, worker_web = free_port(), free_port(), (free_port(), free_port())
    package = "org.apache.spark.deploy"
    with ExitStack() as processes:
        flags = ["--host", "127.0.0.1", "--port", str(port), "--webui-port", str(web)]
        master = processes.enter_context(spark_process(tmp_path, "master", f"{package}.master.Master", *flags))
        wait_until_open(port, master)
        url = f"spark://127.0.0.1:{port}"
        for number, worker_port in enumerate(worker_web):
            flags = [
                "--cores",
                "1",
                "--memory",
                "1g",
                "--webui-port",
                str(worker_port),
                "--work-dir",
                str(tmp_path / "w"),
            ]
            arguments = [f"{package}.worker.Worker", *flags, url]
            worker = processes.enter_context(spark_process(tmp_path, f"worker{number}", *arguments))
            wait_until_open(worker_port, worker)
        yield url


def write_inputs(lake: Lake, basis_version: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(N_ITEMS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first = DS - timedelta(days=400)
    items = [
        (f"item_{n}", basis_version, n, "hash", "text", first, [float(x) for x in vectors[n]]) for n in range(N_ITEMS)
    ]
    schema = "item_id string, basis_version string, item_index int, content_hash string, source string, "
    schema += "first_ds date, embedding array<float>"
    lake.append(lake.spark.createDataFrame(items, schema), ITEM_EMBEDDINGS)
    numbers = rng.integers([N_USERS, N_ITEMS + 2, 380], size=(1500, 3))
    events = {(f"user_{user}", f"item_{item}", DS - timedelta(days=int(age))) for user, item, age in numbers}
    rows = [
        (user, item, datetime(day.year, day.month, day.day, 12, tzinfo=UTC), "click", "", None, DS, day)
        for user, item, day in sorted(events)
    ]
    schema = "user_id string, item_id string, event_ts timestamp, interaction_type string, market string, "
    schema += "session_id string, landing_ds date, event_date date"
    lake.append(lake.spark.createDataFrame(rows, schema), INTERACTIONS)
    days = sorted({row[-1] for row in rows})
    lake.append(lake.spark.createDataFrame([(day, 1, "x") for day in days], EVENT_DAYS.columns), EVENT_DAYS)


def computed(config: Path, master: str, lake: Path) -> list[dict[str, Any]]:
    """Run the job in a process of its own, as Airflow does, and read what it wrote."""
    environ = os.environ | {"LTE_ENGINE__MASTER": master, "LTE_PATHS__LAKE": str(lake)}
    command = [sys.executable, "-m", "jobs.compute_lte", "--config", str(config), "--ds", str(DS)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [row for batch in arrow_batches(str(lake / USER_LTE.name)) for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: (row["method"], row["user_id"]))


def test_a_cluster_and_this_process_compute_the_same_table(
    sail: SparkSession, standalone_master: str, deployment_file: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write_inputs(Lake(sail, str(here)), configured_basis(load_deployment(deployment_file, {})))
    shutil.copytree(here, there)
    on_sail = computed(deployment_file, "sail", here)
    on_cluster = computed(deployment_file, standalone_master, there)
    assert len(on_sail) == 2 * N_USERS
    assert max(row["n_unknown"] for row in on_sail) > 0
    assert on_cluster == on_sail  # to the last bit of every float
    logs = "".join(path.read_text(errors="replace") for path in tmp_path.glob("worker*.log"))
    assert logs.count("Launching executor") >= 2 or logs.count("Asked to launch executor") >= 2  # both did work
