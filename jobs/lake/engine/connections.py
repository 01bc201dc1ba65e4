"""What the kernel lists of this process's sockets and of all TCP connections of the machine."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

LISTENING, TIME_WAIT = "0A", "06"  # in /proc/net/tcp
REUSE_SECONDS = 1.0  # TCP_TIMEWAIT's shortest delay before the same ends are used again
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def descriptors() -> frozenset[int]:
    """File descriptors of this process, to distinguish them from descriptors that a server opens."""
    # One of the numbers belonged to the folder while it was listed. That number is free again.
    return frozenset(number for number in _numbers() if _is_open(number))


def _numbers() -> frozenset[int]:
    return frozenset(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Connection:
    """A line of /proc/net/tcp.

    Attributes:
        ports: Both ends, as two numbers or as one if they are equal.
        place: Both ends with their addresses, in the kernel's form.
        state: In the kernel's form.
        ends: Time of the monotonic clock at which the kernel's timer of the line fires, in seconds. While a connection
            is in TIME_WAIT it does not change.
        waiting: For a port that listens: connections that the server has not accepted yet.
    """

    ports: frozenset[int]
    place: tuple[str, str]
    state: str
    ends: float
    waiting: int


@dataclass(frozen=True)
class Before:
    """What was there before a server started, so none of it belongs to the server.

    Attributes:
        descriptors: File descriptors of this process.
        closed: Connections in TIME_WAIT. The kernel lists them for a minute, and a new server may get the number of
            an old port.
    """

    descriptors: frozenset[int]
    closed: dict[tuple[str, str], float]

    @classmethod
    def now(cls) -> Before:
        """Take the picture; call it directly before the server starts."""
        return cls(descriptors(), {each.place: each.ends for each in connections() if each.state == TIME_WAIT})

    def has(self, each: Connection) -> bool:
        """Whether the connection was closed before.

        The kernel takes a second, at least, before it gives both ends of a closed connection to a new one. Then its
        timer starts again.
        """
        return each.state == TIME_WAIT and each.ends < self.closed.get(each.place, 0.0) + REUSE_SECONDS / 2


def connections() -> Iterator[Connection]:
    """All TCP connections and listening ports of the machine, of any user."""
    for name in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):  # a system without IPv6
            for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]:
                here, there, state, queues, timer = line.split()[1:6]
                ports = frozenset(int(place.rpartition(":")[2], 16) for place in (here, there))
                ticks, waiting = (int(pair.rpartition(":")[2], 16) for pair in (timer, queues))
                yield Connection(ports, (here, there), state, time.monotonic() + ticks / TICKS_PER_SECOND, waiting)


def all_sockets(opened: ExitStack, before: frozenset[int] = frozenset()) -> Iterator[socket.socket]:
    """Copies of the TCP sockets of this process, without the descriptors ``before``; ``opened`` closes the copies."""
    # While a server's new port is not filtered, every microsecond counts: only new descriptors are looked at.
    for descriptor in _numbers() - before:
        # A descriptor that another thread closes at the same time can be ignored.
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                each = opened.enter_context(socket.socket(fileno=os.dup(descriptor)))
                is_internet = each.family in (socket.AF_INET, socket.AF_INET6)
                if is_internet and each.type == socket.SOCK_STREAM:
                    yield each
