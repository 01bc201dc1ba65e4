"""Keeps other users of a machine away from the engine's port on loopback.

Sail's Spark Connect server runs any code that a client sends, and has no authentication. Without this module, any local
user could run code as the job's user while a job runs. TCP on loopback does not tell which user made a connection. So
this module tells the kernel to admit one connection, which this process makes itself, and to drop all later ones. The
means is a socket filter on the listening socket. The filter needs no privilege and does not touch the traffic of the
admitted connection.

While this process connects, a filter drops every packet that carries data. A stranger may connect at that time, but no
byte from a stranger reaches the server, and the stranger's connection is cut. A gap of some tenths of a millisecond
remains between the server's start and the first filter. A stranger who connects in the gap is found, and the server
must be stopped.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from jobs.runtime.text import counted

# <linux/filter.h>: instructions of the classic BPF machine, (code, jump if true, jump if false, constant).
Instruction = tuple[int, int, int, int]
PASS, DROP = (0x06, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 0)
DROP_ALL: tuple[Instruction, ...] = (DROP,)
DROP_DATA: tuple[Instruction, ...] = (
    (0x30, 0, 0, 12),  # the byte of the TCP header whose upper half is the header's length in words
    (0x54, 0, 0, 0xF0),
    (0x74, 0, 0, 2),  # in bytes
    (0x07, 0, 0, 0),  # keep it
    (0x80, 0, 0, 0),  # length of the segment
    (0x1C, 0, 0, 0),  # less the header: bytes of data
    (0x15, 0, 1, 0),  # none: pass, otherwise drop
    PASS,
    DROP,
)
SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27
LISTENING = "0A"  # in /proc/net/tcp
POLL_SECONDS = 0.001
WAIT_SECONDS = 30.0

FIRST_PERSON = 1000  # lower user ids belong to the system's services
NO_LOGIN_SHELLS = frozenset({"nologin", "false", "sync"})


class LoopbackError(RuntimeError):
    """The engine's port could not be closed to other users of the machine."""


class StrangerError(LoopbackError):
    """Another process connected before the port was closed; code that it sent may have run."""


def exposure() -> str | None:
    """Say in one sentence that other accounts of this machine can reach the engine's port; None if they cannot.

    Other accounts are accounts of persons: with a user id of 1000 or more, and a shell to log in with.
    """
    n_others = len(_other_accounts())
    reason = _why_no_filter() if n_others else None
    if reason is None:
        return None
    return (
        f"engine.master = 'sail': {counted(n_others, 'other account')} of this machine can run code as this account "
        f"while a job runs, because the engine's port cannot be closed to others ({reason}): use a machine or a "
        "container that nobody else uses, or engine.master = 'local[*]'"
    )


def _other_accounts() -> set[int]:
    return {
        each.pw_uid
        for each in pwd.getpwall()
        if each.pw_uid >= FIRST_PERSON
        and each.pw_uid != os.getuid()
        and Path(each.pw_shell).name not in NO_LOGIN_SHELLS  # an empty field is a shell too: passwd(5) takes /bin/sh
    }


def _why_no_filter() -> str | None:
    """Why this system refuses a filter on a listening socket; None if it takes one."""
    if not sys.platform.startswith("linux"):
        return f"{sys.platform} has no socket filters"
    try:
        descriptors()  # the filter is attached to the engine's own socket, which is found in /proc
        with socket.create_server(("127.0.0.1", 0)) as listener:
            _attach(listener, DROP_ALL)
    except OSError as error:
        return str(error)
    return None


def descriptors() -> frozenset[int]:
    """File descriptors of this process, to distinguish them from descriptors that a server opens."""
    # One of the numbers belonged to the folder while it was listed. That number is free again.
    return frozenset(number for number in map(int, os.listdir("/proc/self/fd")) if _is_open(number))  # noqa: PTH208


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


class PrivatePort:
    """A listening port of this process that admits one connection of this process and no other connection.

    Use: make the object as soon as the server listens, start the own connection, then call :meth:`admit_own`.
    """

    def __init__(self, port: int, before: frozenset[int] = frozenset()) -> None:
        """Drop all data from now on, and cut earlier connections.

        Args:
            port: Port on 127.0.0.1 where a server of this process listens.
            before: Descriptors that were open before the server started; every microsecond counts here.

        Raises:
            StrangerError: Another process connected before: stop the server.
            LoopbackError: The system has no socket filters, or no socket listens on the port.
        """
        if not sys.platform.startswith("linux"):
            raise LoopbackError(
                f"port {port}: expected Linux, which has socket filters, got {sys.platform}: run the job on Linux"
            )
        self._port = port
        self._filter_listener(DROP_DATA, before)
        # Connections are accepted in order: once this one is accepted, so is every one that came before the filter.
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS) as last:
            barrier = last.getsockname()[1]
            self._accepted_from(barrier).close()
            if self._cut_all_but(barrier) + self._n_others(barrier):
                raise StrangerError(
                    f"port {port}: another process of this machine connected before the port was closed"
                )

    def admit_own(self) -> None:
        """Wait for a connection of this process, admit its data, close the port to all others.

        Raises:
            LoopbackError: No connection of this process came.
        """
        own = self._own_source_port()
        with self._accepted_from(own) as accepted:
            self._filter_listener(DROP_ALL)
            self._cut_all_but(own)
            accepted.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)

    def _filter_listener(self, program: Sequence[Instruction], before: frozenset[int] = frozenset()) -> None:
        with ExitStack() as opened:
            listeners = [each for each in self._sockets(opened, before) if _is_listening(each)]
            if not listeners:
                raise LoopbackError(f"port {self._port}: no socket of this process listens there")
            for listener in listeners:
                _attach(listener, program)

    def _own_source_port(self) -> int:
        """Port of the client's side of this process's connection; the peer of that socket is the server's port."""
        for _ in _polls():
            with ExitStack() as opened:
                for each in _all_sockets(opened):
                    if _peer_port(each) == self._port:
                        return int(each.getsockname()[1])
        raise LoopbackError(f"port {self._port}: no connection of this process within {WAIT_SECONDS:g} s")

    def _accepted_from(self, source_port: int) -> socket.socket:
        """The server's socket of a connection, as soon as the server accepted it; the caller closes the copy."""
        for _ in _polls():
            with ExitStack() as opened:
                for each in self._sockets(opened):
                    if _peer_port(each) == source_port:
                        # Not each.dup(): that sets a mode for the copy, and the mode is the server's, too. A thread of
                        # the engine would then block in a read and leave its answers unsent for ever.
                        return socket.socket(fileno=os.dup(each.fileno()))
        raise LoopbackError(f"port {self._port}: a connection was not accepted within {WAIT_SECONDS:g} s")

    def _cut_all_but(self, source_port: int) -> int:
        """Cut the server's other connections; returns the number of connections cut."""
        n_cut = 0
        with ExitStack() as opened:
            for each in self._sockets(opened):
                if not _is_listening(each) and _peer_port(each) != source_port:
                    n_cut += 1
                    with suppress(OSError):  # gone by itself
                        each.shutdown(socket.SHUT_RDWR)
        return n_cut

    def _n_others(self, source_port: int) -> int:
        """Other connections of any user that the kernel lists, including normally closed ones for a minute."""
        ours = {self._port, source_port}
        n_others = 0
        for name in ("tcp", "tcp6"):
            with suppress(FileNotFoundError):  # a system without IPv6
                lines = Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]
                for here, there, state in (line.split()[1:4] for line in lines):
                    ports = {int(place.rpartition(":")[2], 16) for place in (here, there)}
                    n_others += state != LISTENING and self._port in ports and ports != ours
        return n_others

    def _sockets(self, opened: ExitStack, before: frozenset[int] = frozenset()) -> Iterator[socket.socket]:
        """The server's sockets: sockets of this process whose local port is the server's port."""
        return (each for each in _all_sockets(opened, before) if each.getsockname()[1] == self._port)


def _attach(listener: socket.socket, program: Sequence[Instruction]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    address = struct.pack("HL", len(program), ctypes.addressof(code))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, address)


def _all_sockets(opened: ExitStack, before: frozenset[int] = frozenset()) -> Iterator[socket.socket]:
    """Copies of the TCP sockets of this process, without the descriptors ``before``; ``opened`` closes the copies."""
    for descriptor in descriptors() - before:
        # A descriptor that another thread closes at the same time can be ignored.
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                each = opened.enter_context(socket.socket(fileno=os.dup(descriptor)))
                is_internet = each.family in (socket.AF_INET, socket.AF_INET6)
                if is_internet and each.type == socket.SOCK_STREAM:
                    yield each


def _is_listening(each: socket.socket) -> bool:
    return bool(each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _peer_port(each: socket.socket) -> int | None:
    try:
        return int(each.getpeername()[1])
    except OSError:
        return None


def _polls() -> Iterator[None]:
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        yield
        time.sleep(POLL_SECONDS)
