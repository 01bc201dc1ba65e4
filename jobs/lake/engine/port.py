"""Keeps other users of a machine away from the engine's port on loopback.

Sail's Spark Connect server runs any code that a client sends, and has no authentication. Without this module, any local
user could run code as the job's user while a job runs. TCP on loopback does not tell which user made a connection. So
this module tells the kernel to admit one connection, which this process makes itself, and to drop all later ones. The
means is a socket filter on the listening socket. The filter needs no privilege and does not touch the traffic of the
admitted connection.

While this process connects, a filter drops every packet that carries data. A stranger may connect at that time, but no
byte from a stranger reaches the server, and the stranger's connection is cut. Between the server's start and the first
filter an :class:`AcceptGate` holds the server back, and who connected in that gap is refused unheard. Where the system
has no such gate, a stranger who connects in the gap is found, and the server must be stopped.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress

from jobs.lake.engine.connections import LISTENING, Before, Connection, all_sockets, connections
from jobs.lake.engine.filters import DROP_ALL, DROP_DATA, Instruction, attach, detach
from jobs.lake.engine.gate import AcceptGate

POLL_SECONDS = 0.001
WAIT_SECONDS = 30.0


class LoopbackError(RuntimeError):
    """The engine's port could not be closed to other users of the machine."""


class StrangerError(LoopbackError):
    """Another process connected before the port was closed; code that it sent may have run."""


class PrivatePort:
    """A listening port of this process that admits one connection of this process and no other connection.

    Use: make the object as soon as the server listens, start the own connection, then call :meth:`admit_own`.
    """

    def __init__(self, port: int, before: Before, gate: AcceptGate) -> None:
        """Drop all data from now on, and cut earlier connections.

        Args:
            port: Port on 127.0.0.1 where a server of this process listens.
            before: What was there before the server started.
            gate: The gate that the server was started behind. It is open afterwards, also after an error.

        Raises:
            StrangerError: Another process connected before, and no gate held the server back: stop the server.
            LoopbackError: The system has no socket filters, or no socket listens on the port.
        """
        if not sys.platform.startswith("linux"):
            raise LoopbackError(
                f"port {port}: expected Linux, which has socket filters, got {sys.platform}: run the job on Linux"
            )
        self._port = port
        try:
            self._filter_listener(DROP_DATA, before.descriptors)
            with socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS) as last:
                barrier = last.getsockname()[1]
                if gate.holds():
                    self._refuse_waiting()
                    return
                n_strangers = self._n_strangers(barrier, before)
        finally:
            gate.open()
        if n_strangers:
            self.close()
            raise StrangerError(f"port {port}: another process of this machine connected before the port was closed")

    def _refuse_waiting(self) -> None:
        """Accept in the server's place, and close, who connected before the filter and until now."""
        with ExitStack() as opened:
            for listener in self._sockets(opened):
                if _is_listening(listener):
                    # The copy shares the server's mode: a call that blocks here would never end.
                    while select.select([listener], [], [], 0)[0]:
                        with suppress(BlockingIOError):  # it was gone again
                            listener.accept()[0].close()

    def _n_strangers(self, barrier: int, before: Before) -> int:
        # Connections are accepted in order: once this one is accepted, so is every one that came before the filter.
        self._accepted_from(barrier).close()
        return self._cut_all_but(barrier) + self._n_others(barrier, before)

    def admit_own(self) -> None:
        """Wait for a connection of this process, admit its data, close the port to all others.

        Raises:
            LoopbackError: No connection of this process came.
        """
        own = self._own_source_port()
        with self._accepted_from(own) as accepted:
            self._close_to_all_but(own)
            detach(accepted)

    def close(self) -> None:
        """Admit nobody and cut every connection, so that the server can stop at once."""
        self._close_to_all_but(0)

    def _close_to_all_but(self, source_port: int) -> None:
        self._filter_listener(DROP_ALL)
        # A connection that the server accepts after the cut keeps a filter that drops its data, its end included. The
        # server's stop would wait two minutes for it.
        for _ in _polls():
            if not any(each.waiting for each in connections() if self._is_listener(each)):
                break
        self._cut_all_but(source_port)

    def _is_listener(self, each: Connection) -> bool:
        return each.state == LISTENING and self._port in each.ports

    def _filter_listener(self, program: Sequence[Instruction], before: frozenset[int] = frozenset()) -> None:
        with ExitStack() as opened:
            listeners = [each for each in self._sockets(opened, before) if _is_listening(each)]
            # Another thread may have closed a descriptor since, and the server's socket has its number now.
            listeners = listeners or [each for each in self._sockets(opened) if _is_listening(each)]
            if not listeners:
                raise LoopbackError(f"port {self._port}: no socket of this process listens there")
            for listener in listeners:
                attach(listener, program)

    def _own_source_port(self) -> int:
        """Port of the client's side of this process's connection; the peer of that socket is the server's port."""
        for _ in _polls():
            with ExitStack() as opened:
                for each in all_sockets(opened):
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

    def _n_others(self, source_port: int, before: Before) -> int:
        """Other connections of any user that the kernel lists, including normally closed ones for a minute."""
        ours = {self._port, source_port}
        others = (each for each in connections() if self._port in each.ports and each.ports != ours)
        return sum(each.state != LISTENING and not before.has(each) for each in others)

    def _sockets(self, opened: ExitStack, before: frozenset[int] = frozenset()) -> Iterator[socket.socket]:
        """The server's sockets: sockets of this process whose local port is the server's port."""
        return (each for each in all_sockets(opened, before) if each.getsockname()[1] == self._port)


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
