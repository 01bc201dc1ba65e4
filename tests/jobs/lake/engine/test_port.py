"""Other users of the machine cannot reach the engine while a job runs."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from jobs.config.sections import EngineSection
from jobs.lake.engine import gate
from jobs.lake.engine.connections import Before, descriptors
from jobs.lake.engine.gate import AcceptGate
from jobs.lake.engine.port import LoopbackError, PrivatePort, StrangerError
from jobs.lake.engine.sessions import spark_session

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PING = PREFACE + bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"answer!?"

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
            one.sendall(bytes.fromhex(sys.argv[2]))
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


@contextmanager
def stranger(seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A stranger who is gone afterwards: one who stayed would reach the servers of the next tests."""
    command = [sys.executable, "-c", STRANGER, str(seconds), PING.hex()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose kernel has no filter of system calls."""
    monkeypatch.setattr(gate, "CALLS", {})


def no_hold() -> AcceptGate:
    """A gate in front of a server that was started without it."""
    return AcceptGate(lambda: None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a process as another user")
def test_another_user_who_waits_for_the_port_gets_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    with stranger(6) as process:
        for _ in range(2):
            with spark_session(EngineSection(master="sail", partitions=1), "test") as spark:
                assert spark.range(10).mapInArrow(lambda batches: batches, "id long").count() == 10
        found, _ = process.communicate(timeout=60)
    tried, answered = map(int, found.split())
    assert tried >= 1
    assert answered == 0
    assert "is started anew" not in caplog.text


@pytest.mark.timeout(90)
@pytest.mark.usefixtures("no_gate")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a process as another user")
def test_without_a_gate_another_user_who_was_faster_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """The stranger may be faster than the first filter each time; then there is no session at all."""
    with stranger(4) as process:
        with suppress(LoopbackError), spark_session(EngineSection(master="sail", partitions=1), "test") as spark:
            assert spark.range(10).count() == 10
        found, _ = process.communicate(timeout=60)
    tried, answered = map(int, found.split())
    assert tried >= 1
    assert answered <= caplog.text.count("the engine was stopped and is started anew")


def test_who_connects_before_the_first_filter_is_refused_unheard() -> None:
    before = Before.now()
    with sail_server() as (port, held), socket.create_connection(("127.0.0.1", port), timeout=5) as early:
        early.sendall(PING)
        PrivatePort(port, before, held)
        with pytest.raises(ConnectionResetError):
            early.recv(99)


@contextmanager
def sail_server() -> Iterator[tuple[int, AcceptGate]]:
    """A bare server of Sail; gives its port and the gate before it."""
    from pysail.spark import SparkConnectServer

    server = SparkConnectServer()
    held = AcceptGate(server.start)
    try:
        yield server.listening_address[1], held
    finally:
        held.open()
        server.stop()


def test_a_server_without_the_filter_does_answer() -> None:
    """The stranger of the test above is one who would get in."""
    with stranger(4) as process, sail_server() as (_, held):
        held.open()
        found, _ = process.communicate(timeout=60)
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
def echo() -> Iterator[Callable[..., int]]:
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

    def start(port: int = 0) -> int:
        listener = socket.create_server(("127.0.0.1", port))
        listeners.append(listener)
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.close()


def test_one_connection_of_this_process_is_admitted_and_no_other(echo: Callable[..., int]) -> None:
    before = Before.now()
    port = echo()
    private = PrivatePort(port, before, no_hold())
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
def test_who_came_before_the_filter_is_found_and_cut(echo: Callable[..., int], is_closed: bool) -> None:
    before = Before.now()
    port = echo()
    early = socket.create_connection(("127.0.0.1", port), timeout=2)
    early.sendall(b"early")
    assert early.recv(9) == b"early"
    if is_closed:  # in and out again
        early.close()
    with pytest.raises(StrangerError, match="another process"):
        PrivatePort(port, before, no_hold())
    if not is_closed:
        assert early.recv(9) == b""
        early.close()


def test_a_port_of_nobody_is_an_error() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(LoopbackError, match=f"port {port}: no socket of this process listens"):
        PrivatePort(port, Before.now(), no_hold())


def test_a_connection_that_an_older_server_closed_is_not_a_strangers(echo: Callable[..., int]) -> None:
    """The kernel lists it for a minute, and the new server has the number of the old one's port."""
    port = _closed_connection(0)
    before = Before.now()
    PrivatePort(echo(port), before, no_hold())


def test_a_connection_between_the_same_ends_as_an_older_one_is_a_strangers(echo: Callable[..., int]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        source = probe.getsockname()[1]
    port = _closed_connection(0, source)
    before = Before.now()
    time.sleep(1.1)  # the kernel gives the pair of a closed connection to a new one after a second
    assert _closed_connection(port, source) == port
    with pytest.raises(StrangerError, match="another process"):
        PrivatePort(echo(port), before, no_hold())


def _closed_connection(port: int, source: int = 0) -> int:
    """Make a connection whose server closes first and stops; returns the server's port, which it may reuse."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        place = listener.getsockname()
        with socket.create_connection(place, timeout=5, source_address=("127.0.0.1", source)) as client:
            listener.accept()[0].close()
            assert client.recv(1) == b""
    return int(place[1])


@pytest.mark.timeout(90)
def test_a_stranger_whose_data_are_dropped_does_not_delay_the_engines_stop() -> None:
    """The stranger's end was dropped with its data, and the engine waited for it, for 138 s."""
    before = Before.now()
    with sail_server() as (port, held):
        private = PrivatePort(port, before, held)
        with socket.create_connection(("127.0.0.1", port), timeout=5) as late:
            late.sendall(PING)
        private.close()


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
