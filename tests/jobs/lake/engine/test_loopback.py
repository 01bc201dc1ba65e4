"""Other users of the machine cannot reach the engine while a job runs."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.config.sections import EngineSection
from jobs.lake.engine.loopback import LoopbackError, PrivatePort, StrangerError, descriptors
from jobs.lake.engine.sessions import spark_session

# Watches for a new listening port on loopback, connects at once and speaks HTTP/2, as a Spark Connect client does. A
# server that reads a PING sends its eight bytes back.
STRANGER = r"""
import os, socket, sys, time
known = set()
def listening():
    lines = open("/proc/net/tcp").read().splitlines()[1:]
    return {line.split()[1] for line in lines if line.split()[3] == "0A" and line.split()[1].startswith("0100007F")}
if os.getuid() == 0:
    os.setgid(1001); os.setuid(1001)
known = listening()
print("ready", flush=True)
tried, answered, kept = 0, 0, []
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for place in listening() - known:
        known.add(place)
        one = socket.socket()
        one.settimeout(0.5)
        try:
            one.connect(("127.0.0.1", int(place.split(":")[1], 16)))
            tried += 1
            one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            one.sendall(bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"answer!?")
            heard = b""
            while b"answer!?" not in heard:
                more = one.recv(999)
                if not more:
                    break
                heard += more
            answered += b"answer!?" in heard
        except OSError:
            pass
        one.close()
print(tried, answered, flush=True)
"""


def stranger(seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STRANGER, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a process as another user")
def test_another_user_who_waits_for_the_port_gets_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    process = stranger(6)
    for _ in range(2):
        with spark_session(EngineSection(master="sail", partitions=1), "test") as spark:
            assert spark.range(10).mapInArrow(lambda batches: batches, "id long").count() == 10
    found, _ = process.communicate(timeout=60)
    tried, answered = map(int, found.split())
    # Whoever is faster than the first filter (some tenths of a millisecond) is noticed: the engine is started anew.
    assert tried >= 1
    assert answered <= caplog.text.count("the engine was stopped and is started anew")


def test_a_server_without_the_filter_does_answer() -> None:
    """The stranger of the test above is one who would get in."""
    from pysail.spark import SparkConnectServer

    process = stranger(4)
    server = SparkConnectServer()
    server.start()
    found, _ = process.communicate(timeout=60)
    server.stop()
    assert int(found.split()[1]) >= 1


def test_a_port_is_closed_to_this_process_too(sail: object) -> None:
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    inodes = {name for path in Path("/proc/self/fd").iterdir() if (name := _target(path))}
    ports = [int(line[1].split(":")[1], 16) for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in inodes]
    assert ports
    for port in ports:
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", port), timeout=0.3)


def _target(descriptor: Path) -> str | None:
    try:
        return str(descriptor.readlink())
    except OSError:
        return None


@pytest.fixture
def echo() -> Iterator[Callable[[], int]]:
    """Starts servers that send back what they read; returns their ports."""
    listeners: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            while data := connection.recv(100):
                connection.sendall(data)

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    def start() -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.close()


def test_one_connection_of_this_process_is_admitted_and_no_other(echo: Callable[[], int]) -> None:
    port = echo()
    private = PrivatePort(port)
    own = socket.create_connection(("127.0.0.1", port), timeout=5)
    own.sendall(b"data that is dropped first and sent again by TCP")
    private.admit_own()
    assert own.recv(99) == b"data that is dropped first and sent again by TCP"
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", port), timeout=0.3)
    own.sendall(b"more")
    assert own.recv(9) == b"more"
    own.close()


@pytest.mark.parametrize("is_closed", [False, True])
def test_who_came_before_the_filter_is_found_and_cut(echo: Callable[[], int], is_closed: bool) -> None:
    port = echo()
    early = socket.create_connection(("127.0.0.1", port), timeout=2)
    early.sendall(b"early")
    assert early.recv(9) == b"early"
    if is_closed:  # in and out again
        early.close()
    with pytest.raises(StrangerError, match="another process"):
        PrivatePort(port)
    if not is_closed:
        assert early.recv(9) == b""
        early.close()


def test_a_port_of_nobody_is_an_error() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(LoopbackError, match=f"port {port}: no socket of this process listens"):
        PrivatePort(port)


def test_the_engines_own_connection_stays_in_the_mode_that_the_engine_gave_it() -> None:
    """A thread of the engine that blocks in a read sends no answer more: jobs hung for ever in a fetch or in stop."""
    before = descriptors()
    with spark_session(EngineSection(master="sail", partitions=1), "test") as spark:
        assert spark.range(10).count() == 10
        opened = [each for each in descriptors() - before if stat.S_ISSOCK(os.fstat(each).st_mode)]
        assert len(opened) >= 3, "the listener and both ends of the connection, at least"
        assert [each for each in opened if _is_internet(each) and os.get_blocking(each)] == []


def _is_internet(descriptor: int) -> bool:
    with socket.socket(fileno=os.dup(descriptor)) as copy:
        return copy.family in (socket.AF_INET, socket.AF_INET6)
