"""Sessions and lakes that tests share; rows are written in the tests themselves."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from pyspark.sql import SparkSession

from jobs.config import Deployment, EngineSection, load_deployment
from jobs.sessions import delta_jar, spark_session
from jobs.tables import Lake

settings.register_profile("default", deadline=None, print_blob=True, derandomize=True)
settings.load_profile("default")

CONFIG = """
[deployment]
name = "test"
[paths]
landing = "landing"
lake = "lake"
online_store = "online.lmdb"
reports = "reports"
data_docs = "data_docs"
[engine]
partitions = 2
[interactions]
types = ["click", "purchase"]
max_bad_share = 0.5
"""


@pytest.fixture(scope="session")
def sail() -> Iterator[SparkSession]:
    """A session of the default engine, shared by all tests: it keeps no state but temporary views."""
    with spark_session(EngineSection(master="sail", partitions=2), "tests") as session:
        yield session


def _why_no_apache_spark() -> str:
    """Why Apache Spark with Delta cannot run here; empty where it can."""
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        return "no Java: apt-get install openjdk-17-jre-headless"
    _, artifact, release = delta_jar().split(":")
    if list((Path.home() / ".ivy2.5.2" / "jars").glob(f"*{artifact}-{release}.jar")):
        return ""
    mirror = os.environ.get("LTE_ENGINE__MAVEN_MIRROR", "https://repo1.maven.org/maven2")
    url = f"{mirror.rstrip('/')}/io/delta/{artifact}/{release}/{artifact}-{release}.pom"
    try:
        urllib.request.urlopen(url, timeout=20).close()
    except (urllib.error.URLError, OSError) as error:
        return f"Delta's jars cannot be had ({error}): set LTE_ENGINE__MAVEN_MIRROR to a Maven repository (file: too)"
    return ""


@pytest.fixture(scope="session")
def apache_spark() -> Iterator[SparkSession]:
    """A session of Apache Spark with delta-spark; skipped with the way to get it where it is missing."""
    reason = _why_no_apache_spark()
    if reason:
        pytest.skip(reason)
    engine = EngineSection(master="local[2]", partitions=2, maven_mirror=os.environ.get("LTE_ENGINE__MAVEN_MIRROR", ""))
    with spark_session(engine, "tests") as session:
        yield session


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
