"""Spark sessions on every engine, through one API: Spark Connect (DESIGN section 2)."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from pyspark.sql import SparkSession

from jobs.config import ConfigError, EngineSection

SCALA_VERSION = "2.13"
SPARK_LINE = "4.2"


def delta_jar() -> str:
    """Maven coordinate of the Delta jar that fits the installed packages."""
    return f"io.delta:delta-spark_{SPARK_LINE}_{SCALA_VERSION}:{version('delta-spark')}"


@contextmanager
def spark_session(engine: EngineSection, app_name: str) -> Iterator[SparkSession]:
    """Open a Spark Connect session on the configured engine and close it, also when the job fails.

    Args:
        engine: Which engine; ``sail`` runs in this process and needs no Java.
        app_name: Shown in the engine's own logs and UI.

    Yields:
        A session in UTC.

    Raises:
        ConfigError: The engine needs Java and there is none.
    """
    _process_in_utc()
    opener = _sail_session if engine.master == "sail" else _connect_session
    with opener(engine, app_name) as spark:
        spark.conf.set("spark.sql.session.timeZone", "UTC")
        spark.conf.set("spark.sql.shuffle.partitions", str(engine.partitions))
        yield spark


def _process_in_utc() -> None:
    """PySpark turns timestamps into the process's own zone when it collects them, whatever the session's zone is."""
    os.environ["TZ"] = "UTC"
    time.tzset()


@contextmanager
def _sail_session(engine: EngineSection, app_name: str) -> Iterator[SparkSession]:
    """A server in this process; one that is not stopped would keep the process alive for ever."""
    os.environ.setdefault("RUST_LOG", "error")
    os.environ.setdefault("SAIL_EXECUTION__DEFAULT_PARALLELISM", str(engine.partitions))
    from pysail.spark import SparkConnectServer  # reads the environment when it is loaded

    server = SparkConnectServer()
    server.start()
    _, port = server.listening_address
    try:
        spark = SparkSession.builder.remote(f"sc://localhost:{port}").appName(app_name).create()
        for name, value in engine.conf.items():
            spark.conf.set(name, value)
        try:
            yield spark
        finally:
            _stop_alone(spark)
    finally:
        server.stop()


def _stop_alone(spark: SparkSession) -> None:
    """Stop this session only: PySpark would also stop the local Apache Spark of another session of this process."""
    local = os.environ.pop("SPARK_LOCAL_REMOTE", None)
    try:
        spark.stop()
    finally:
        if local is not None:
            os.environ["SPARK_LOCAL_REMOTE"] = local


def _connect_session_conf(engine: EngineSection) -> dict[str, str]:
    """Settings that Delta needs, and those that keep it fast on a small machine; ``engine.conf`` overrides them."""
    return {
        "spark.jars.packages": delta_jar(),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.shuffle.partitions": str(engine.partitions),
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "4",
        "spark.ui.showConsoleProgress": "false",
        "spark.ui.enabled": "false",
        "spark.sql.session.timeZone": "UTC",
        **engine.conf,
    }


@contextmanager
def _connect_session(engine: EngineSection, app_name: str) -> Iterator[SparkSession]:
    """Apache Spark: a server of our own (local, standalone, YARN, Kubernetes), or one that runs already (``sc://``)."""
    builder = SparkSession.builder.appName(app_name)
    if engine.master.startswith("sc://"):
        builder = builder.remote(engine.master)
    else:
        _prepare_java(engine)
        for name, value in _connect_session_conf(engine).items():
            builder = builder.config(name, value)
        if engine.master.startswith("local"):
            builder = builder.remote(engine.master)
        else:
            builder = builder.master(engine.master).config("spark.api.mode", "connect")
    spark = builder.getOrCreate()
    try:
        yield spark
    finally:
        spark.stop()


def _prepare_java(engine: EngineSection) -> None:
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        raise ConfigError(
            f"engine.master = {engine.master!r} needs Java 17 or 21 (Debian: apt-get install openjdk-17-jre-headless); "
            "engine.master = 'sail' needs none"
        )
    os.environ["PYSPARK_PYTHON"] = sys.executable
    if engine.maven_mirror:
        os.environ["DEFAULT_ARTIFACT_REPOSITORY"] = engine.maven_mirror.rstrip("/") + "/"
