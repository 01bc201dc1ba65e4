"""Sessions and lakes that tests share; rows are written in the tests themselves."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from hypothesis import settings
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from deployments import CONFIG
from jobs.config.loading import load_deployment
from jobs.config.sections import Deployment, EngineSection
from jobs.lake.engine.sessions import delta_jar, spark_session
from jobs.lake.lake import Lake

settings.register_profile("default", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Sizes of what `make test` runs small."""
    parser.addoption("--backfill-days", type=int, default=2, help="days of the backfill under a real scheduler (2)")
    parser.addoption("--pairs", type=int, default=200, help="random pairs of jobs of make test-concurrency (200)")
    parser.addoption("--pairs-seed", type=int, default=1, help="seed of the random pairs (1)")
    which = ("all", "none", "only")
    parser.addoption(
        "--spark-jobs",
        choices=which,
        default="all",
        help="tests on Apache Spark: `make test` leaves them to `make test-spark`",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose whether tests run on Apache Spark: `make test` has them on Sail."""
    wanted = config.getoption("--spark-jobs")
    if wanted == "all":
        return
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        is_spark = item.get_closest_marker("spark") is not None
        (kept if is_spark == (wanted == "only") else left_out).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start the global generators anew: a draw without a seed of its own does not depend on the tests before it."""
    np.random.seed(0)
    if "torch" in sys.modules:  # most tests never load it
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def backfill_days(request: pytest.FixtureRequest) -> int:
    """Days that the backfill test fills; `make test-backfill` fills seven, with the ranker."""
    return int(request.config.getoption("--backfill-days"))


@pytest.fixture(scope="session")
def sail() -> Iterator[SparkSession]:
    """A session of the default engine, shared by all tests: it keeps no state but temporary views."""
    with spark_session(EngineSection(master="sail", partitions=2), "tests") as session:
        yield session


def _without_apache_spark(reason: str) -> NoReturn:
    """Skip with the way to get it; where both halves must run (CI), fail instead."""
    if os.environ.get("REQUIRE_APACHE_SPARK"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def apache_spark() -> Iterator[SparkSession]:
    """A session of Apache Spark with delta-spark; skipped with the way to get it where it is missing."""
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        _without_apache_spark("no Java: apt-get install openjdk-17-jre-headless")
    engine = EngineSection(master="local[2]", partitions=2, maven_mirror=os.environ.get("LTE_ENGINE__MAVEN_MIRROR", ""))
    with ExitStack() as opened:
        yield _started(engine, opened)


def _started(engine: EngineSection, opened: ExitStack) -> SparkSession:
    """A session that ``opened`` closes. The first start fetches 33 jars over the network, so it has a second try."""
    reason = ""
    for _ in range(2):
        try:
            return opened.enter_context(spark_session(engine, "tests"))
        except (PySparkException, RuntimeError) as error:
            reason = (
                f"Apache Spark did not start, {delta_jar()} may be out of reach: set LTE_ENGINE__MAVEN_MIRROR to a "
                f"Maven repository (https: or file:). {str(error)[:300]}"
            )
    return _without_apache_spark(reason)


@pytest.fixture(params=["sail", pytest.param("apache_spark", marks=pytest.mark.spark)])
def spark_engine(request: pytest.FixtureRequest) -> SparkSession:
    """Each engine in turn: a test that takes this runs on both."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def lake(sail: SparkSession, tmp_path: Path) -> Lake:
    """An empty lake on the default engine."""
    return Lake(sail, str(tmp_path / "lake"))


@pytest.fixture
def engine_lake(spark_engine: SparkSession, tmp_path: Path) -> Lake:
    """An empty lake on each engine in turn."""
    return Lake(spark_engine, str(tmp_path / "lake"))


@pytest.fixture
def deployment_file(tmp_path: Path) -> Path:
    """A small deployment's configuration file under tmp_path."""
    path = tmp_path / "deployment.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def deployment(deployment_file: Path) -> Deployment:
    """The same, loaded."""
    return load_deployment(deployment_file, environ={})
