"""Holds back the accept of a server that starts, so that its port can be closed before anybody is let in.

A server listens before any other code can look at its socket, and a stranger who watches the machine's ports connects
within some tenths of a millisecond. The kernel completes that connection, but no byte of it reaches the server before
the server has accepted it. So the thread that starts the server gets a filter of system calls which hands each accept
to this process (seccomp_unotify(2)); the threads that it starts inherit the filter. The filter needs no privilege.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Thread

from jobs.lake.engine.filters import Instruction, packed

# Per machine: the audit architecture of <linux/audit.h>, and the numbers of accept4 and seccomp.
CALLS = {"x86_64": (0xC000003E, 288, 317), "aarch64": (0xC00000B7, 242, 277)}
NOTIFY, ALLOW = (0x06, 0, 0, 0x7FC00000), (0x06, 0, 0, 0x7FFF0000)
PR_SET_NO_NEW_PRIVS = 38
SET_MODE_FILTER, NEW_LISTENER = 1, 1 << 3
# ioctl(2) of <linux/seccomp.h>, with the sizes of struct seccomp_notif and struct seccomp_notif_resp.
RECEIVE, SEND, NOTICE_BYTES = 0xC0502100, 0xC0182101, 80
CONTINUE = 1
HELD_MILLISECONDS = 2000  # a server that starts accepts at once; one that has not after this time is not held


class AcceptGate:
    """Starts a server whose accept waits until :meth:`open`.

    Where the system has no such filter, the server starts as usual and :meth:`holds` says False.
    """

    def __init__(self, start: Callable[[], object]) -> None:
        """Start the server.

        Args:
            start: Starts the server, and the thread that accepts its connections.
        """
        self._notices: int | None = None
        self._held: int | None = None
        with ThreadPoolExecutor(1) as starter:  # a filter stays with its thread for ever, so the thread is a new one
            starter.submit(self._start, start).result()

    def holds(self) -> bool:
        """Wait for the server's first accept, as soon as a connection waits for it; False if it is not held back."""
        if self._notices is None:
            return False
        self._held = _received(self._notices, HELD_MILLISECONDS)
        return self._held is not None

    def open(self) -> None:
        """Let the server accept, now and later."""
        if self._notices is not None:
            Thread(target=_let_go, args=(self._notices, self._held), daemon=True).start()
        self._notices = None

    def _start(self, start: Callable[[], object]) -> None:
        with suppress(OSError):
            self._notices = _filter_this_thread()
        try:
            start()
        except BaseException:
            self.open()
            raise


def _filter_this_thread() -> int:
    """Hand each accept4 of this thread and of threads that it starts to the returned descriptor.

    Raises:
        OSError: The system does not have this filter or forbids it.
    """
    if platform.system() != "Linux" or platform.machine() not in CALLS:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    architecture, accept4, seccomp = CALLS[platform.machine()]
    program: tuple[Instruction, ...] = (
        (0x20, 0, 0, 4),  # the architecture of the call
        (0x15, 0, 3, architecture),  # another: allow
        (0x20, 0, 0, 0),  # the number of the call
        (0x15, 0, 1, accept4),
        NOTIFY,
        ALLOW,
    )
    libc = ctypes.CDLL(None, use_errno=True)
    # Without it the kernel takes a filter from root alone. Programs that these threads start gain no privileges by it.
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with packed(program) as code:
        notices = int(libc.syscall(seccomp, SET_MODE_FILTER, NEW_LISTENER, code))
    if notices < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return notices


def _received(notices: int, milliseconds: int | None) -> int | None:
    """The number of the next call that waits; None if none came in time, or if the threads have ended."""
    poll = select.poll()
    poll.register(notices, select.POLLIN)
    for _, event in poll.poll(milliseconds):
        if event & select.POLLIN:
            with suppress(FileNotFoundError):  # the call was interrupted and comes again
                notice = fcntl.ioctl(notices, RECEIVE, bytes(NOTICE_BYTES))
                return int(struct.unpack_from("Q", notice)[0])
    return None


def _let_go(notices: int, held: int | None) -> None:
    """Let every call go on, until no thread has the filter."""
    while True:
        if held is not None:
            with suppress(FileNotFoundError):
                fcntl.ioctl(notices, SEND, struct.pack("QqiI", held, 0, 0, CONTINUE))
        held = _received(notices, None)
        if held is None and _has_ended(notices):
            os.close(notices)
            return


def _has_ended(notices: int) -> bool:
    poll = select.poll()
    poll.register(notices, select.POLLIN)
    return any(event & select.POLLHUP for _, event in poll.poll(0))
