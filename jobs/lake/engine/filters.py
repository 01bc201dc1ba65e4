"""Socket filters on a listening socket: programs that the kernel runs on each packet that comes for it."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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


@contextmanager
def packed(program: Sequence[Instruction]) -> Iterator[bytes]:
    """The program as the kernel reads it (struct sock_fprog), for as long as the context is open."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    yield struct.pack("HL", len(program), ctypes.addressof(code))


def attach(listener: socket.socket, program: Sequence[Instruction]) -> None:
    """Run the program on each packet that comes for the socket, and for connections that it accepts."""
    with packed(program) as code:
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, code)


def detach(connection: socket.socket) -> None:
    """Let all data of the connection pass again."""
    connection.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
