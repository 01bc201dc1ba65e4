"""Whether other accounts of this machine can reach the engine's port."""

from __future__ import annotations

import os
import pwd
import socket
import sys
from pathlib import Path

from jobs.lake.engine.connections import Before
from jobs.lake.engine.filters import DROP_ALL, attach
from jobs.runtime.text import counted

FIRST_PERSON = 1000  # lower user ids belong to the system's services
NO_LOGIN_SHELLS = frozenset({"nologin", "false", "sync"})


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
        Before.now()  # the filter is attached to the engine's own socket, which is found in /proc
        with socket.create_server(("127.0.0.1", 0)) as listener:
            attach(listener, DROP_ALL)
    except OSError as error:
        return str(error)
    return None
