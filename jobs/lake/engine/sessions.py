"""Spark sessions on every engine, through one API: Spark Connect (ADR 0002)."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, cast

import grpc
from pyspark.sql import SparkSession
from pyspark.sql.connect.client import DefaultChannelBuilder
from pyspark.sql.connect.session import SparkSession as RemoteSparkSession

from jobs.config.sections import EngineSection
from jobs.config.window import ConfigError
from jobs.lake.engine.connections import Before
from jobs.lake.engine.gate import AcceptGate
from jobs.lake.engine.port import WAIT_SECONDS, LoopbackError, PrivatePort, StrangerError

LOG = logging.getLogger(__name__)
SCALA_VERSION = "2.13"
SPARK_LINE = "4.2"
SERVER_ATTEMPTS = 5


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
    """Set UTC for the process: PySpark converts collected timestamps to the process's zone, not the session's."""
    os.environ["TZ"] = "UTC"
    time.tzset()


@contextmanager
def _sail_session(engine: EngineSection, app_name: str) -> Iterator[SparkSession]:
    """A server in this process; a server that is not stopped would keep the process alive for ever."""
    os.environ.setdefault("RUST_LOG", "error")
    os.environ.setdefault("SAIL_EXECUTION__DEFAULT_PARALLELISM", str(engine.partitions))
    from pysail.spark import SparkConnectServer  # reads the environment when it is loaded

    server, builder = _private_server(SparkConnectServer)
    try:
        os.environ["SPARK_CONNECT_MODE_ENABLED"] = "1"  # functions make columns of Connect then
        spark = cast(SparkSession, RemoteSparkSession.builder.channelBuilder(builder).appName(app_name).create())
        for name, value in engine.conf.items():
            spark.conf.set(name, value)
        try:
            yield spark
        finally:
            _stop_alone(spark)
    finally:
        server.stop()


class _OneConnection(DefaultChannelBuilder):
    """Gives every session the same channel, because the engine's port admits no second connection."""

    def __init__(self, url: str) -> None:
        # An idle channel would be closed after 30 minutes, which a training between two queries can take.
        super().__init__(url, channelOptions=[("grpc.client_idle_timeout_ms", 2**31 - 1)])
        self._channel = super().toChannel()

    def toChannel(self) -> grpc.Channel:  # noqa: N802, PySpark's name
        """The channel."""
        return self._channel


def _private_server(new_server: Callable[[], Any]) -> tuple[Any, _OneConnection]:
    """Start an engine in this process and connect to it; its port is closed to every other process of the machine.

    If another process reaches the server before its port is closed, the server is stopped and a new one is started.

    Raises:
        LoopbackError: Other processes reached every server of several attempts.
    """
    for _ in range(SERVER_ATTEMPTS):
        server, before = new_server(), Before.now()
        gate = AcceptGate(server.start)
        try:
            return server, _private_channel(server.listening_address[1], before, gate)
        except StrangerError as error:
            server.stop()
            LOG.warning("%s; the engine was stopped and is started anew", error)
        except BaseException:
            server.stop()
            raise
    raise LoopbackError(f"other processes of this machine reached the engine {SERVER_ATTEMPTS} times: who are they?")


def _private_channel(port: int, before: Before, gate: AcceptGate) -> _OneConnection:
    try:
        private = PrivatePort(port, before, gate)
    except StrangerError:
        raise
    except (LoopbackError, OSError) as error:
        LOG.warning("other users of this machine can reach the engine while the job runs: %s", error)
        return _OneConnection(f"sc://localhost:{port}")
    builder = _OneConnection(f"sc://localhost:{port}")
    ready = grpc.channel_ready_future(builder.toChannel())  # connects now, in gRPC's own threads
    private.admit_own()
    ready.result(timeout=WAIT_SECONDS)
    return builder


def _stop_alone(spark: SparkSession) -> None:
    """Stop only this session: PySpark would also stop the local Apache Spark of another session of this process."""
    local = os.environ.pop("SPARK_LOCAL_REMOTE", None)
    try:
        spark.stop()
    finally:
        if local is not None:
            os.environ["SPARK_LOCAL_REMOTE"] = local


def _connect_session_conf(engine: EngineSection) -> dict[str, str]:
    """Settings that Delta needs, and settings for speed on a small machine; ``engine.conf`` overrides both."""
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
    """Apache Spark: a new server (local, standalone, YARN, Kubernetes), or a server that already runs (``sc://``)."""
    if engine.master.startswith("sc://"):
        spark = SparkSession.builder.appName(app_name).remote(engine.master).getOrCreate()
    else:
        _prepare_java(engine)
        spark = _own_server(engine, app_name)
    try:
        yield spark
    finally:
        spark.stop()


def _own_server(engine: EngineSection, app_name: str) -> SparkSession:
    """Start a Connect server in a JVM of this process and connect to it.

    PySpark's builder does the same, but always on port 15002. A second job on the machine would then fail to start, or
    would connect to the server of the first job.
    """
    port = _free_port()
    conf = _connect_session_conf(engine) | {"spark.app.name": app_name, "spark.connect.grpc.binding.port": str(port)}
    os.environ["SPARK_LOCAL_REMOTE"] = "1"  # PySpark's sign that stopping the session stops the server too
    RemoteSparkSession._start_connect_server(engine.master, conf)
    os.environ["SPARK_CONNECT_MODE_ENABLED"] = "1"  # functions make columns of Connect then
    # Not SparkSession.builder, which overwrites the address while a server of this process runs.
    return cast(SparkSession, RemoteSparkSession.builder.remote(f"sc://localhost:{port}").create())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _prepare_java(engine: EngineSection) -> None:
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        raise ConfigError(
            f"engine.master = {engine.master!r} needs Java 17 or 21 (Debian: apt-get install openjdk-17-jre-headless); "
            "engine.master = 'sail' needs none"
        )
    os.environ["PYSPARK_PYTHON"] = sys.executable
    if engine.maven_mirror:
        os.environ["DEFAULT_ARTIFACT_REPOSITORY"] = engine.maven_mirror.rstrip("/") + "/"
