"""The lease of a lake: at most one run writes the tables, no matter what started it (``lte run``, Airflow, a person).

A lease is a file ``_lease/N.json`` in the lake. The run that makes the file N + 1, by a conditional write, holds the
lake after N. The holder writes its file again every few seconds. A lease is dead as soon as its process has ended, if
the process ran on this machine. A lease of another machine is dead after :data:`EXPIRES_SECONDS` without a write.

Tasks of one run inherit the lease through the variable ``LTE_LEASE``, and each task has a file ``_lease/N-ID.json`` of
its own. So a task that outlives its run still keeps other runs away.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

import psutil

from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.ownership.mark import claim_lake
from jobs.ownership.objects import Objects, ObjectStoreError, objects_of

FOLDER = "_lease"
TOKEN_VARIABLE = "LTE_LEASE"  # noqa: S105 - names a run, opens nothing
WAIT_VARIABLE = "LTE_WAIT_SECONDS"
HEARTBEAT_SECONDS = 15.0
EXPIRES_SECONDS = 300.0
POLL_SECONDS = 1.0


class LeaseHeldError(RuntimeError):
    """Another run holds the lake; the message names its ds, job, process and start."""


class LeaseLostError(RuntimeError):
    """Another run took the lake over, so this run must not write any more."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        is_held: False after the run gave the lease back.
        job: Task or command.
        ds: Data day; empty for a command without one.
        who: Account and host.
        machine: Boot and process namespace, because process numbers are valid on one machine only.
        pid: Process number.
        started: Start of the process in the kernel's ticks: distinguishes a later process with the same number.
        since: When the lease was taken, UTC.
        token: Secret that only the tasks of this run know.
    """

    is_held: bool
    job: str
    ds: str
    who: str
    machine: str
    pid: int
    started: str
    since: str
    token: str

    def __str__(self) -> str:
        day = f"ds={self.ds} ({self.job})" if self.ds else self.job
        return f"run of {day} by {self.who}, process {self.pid}, since {self.since}"

    def is_alive(self, silent_seconds: float) -> bool:
        """Whether the process may still write.

        Args:
            silent_seconds: Time since the lease's file was written.
        """
        if not self.is_held:
            return False
        if self.machine == _machine():
            return _start_of(self.pid) == self.started
        return silent_seconds < EXPIRES_SECONDS


def _myself(job: str, ds: date | None, token: str) -> Holder:
    return Holder(
        is_held=True,
        job=job,
        ds=ds.isoformat() if ds else "",
        who=f"{_account()}@{socket.gethostname()}",
        machine=_machine(),
        pid=os.getpid(),
        started=_start_of(os.getpid()),
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        token=token,
    )


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number without a name
        return str(os.getuid())


def _machine() -> str:
    """The space in which process numbers are unique. Containers may share a host name, but not a process namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}/{psutil.boot_time():.0f}"


def _start_of(pid: int) -> str:
    """Start of a process in ticks since boot; empty if the process has ended, also if its parent has not waited yet."""
    try:
        if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return ""
        # the name of the program, in brackets, may hold blanks: counted from its end, the start is field 20
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except psutil.NoSuchProcess:
        return ""
    except psutil.AccessDenied:
        return "unknown"
    except OSError:  # no /proc here, or the process has just ended
        return f"{psutil.Process(pid).create_time():.0f}" if psutil.pid_exists(pid) else ""


def _name(generation: int, member: str = "") -> str:
    return f"{FOLDER}/{generation:020d}{'-' if member else ''}{member}.json"


def _generation(name: str) -> int:
    return int(name.removeprefix(f"{FOLDER}/")[:20])


def _content(holder: Holder) -> bytes:
    return json.dumps(asdict(holder), indent=1).encode()


def _holder(objects: Objects, name: str) -> Holder | None:
    content = objects.read(name)
    if content is None:
        return None
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError) as error:
        raise ObjectStoreError(
            f"{objects.root}, file {name}: expected a lease, got {content[:80]!r}: delete the file if no job is running"
        ) from error


class Lease:
    """A lease that this process holds, alone or as a task of the run that holds it."""

    def __init__(self, objects: Objects, generation: int, name: str, holder: Holder) -> None:
        self._objects, self.generation, self.name, self._holder = objects, generation, name, holder
        self._written = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        """Text that a task of this run presents to share the lease."""
        return f"{self.generation}:{self._holder.token}"

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                if self._is_taken():
                    return  # the next check says so
                self._objects.replace(self.name, _content(self._holder))
                self._written = time.monotonic()
            except ObjectStoreError:
                continue  # a store that does not answer for long ends the lease: see check

    def _is_taken(self) -> bool:
        is_gone = self._objects.age_seconds(self.name) is None
        return is_gone or self._objects.age_seconds(_name(self.generation + 1)) is not None

    def check(self) -> None:
        """Check before each write that this run still holds the lake.

        Raises:
            LeaseLostError: Another run holds the lake, or may hold it because this process was silent too long.
        """
        silent = time.monotonic() - self._written
        if silent > EXPIRES_SECONDS or self._is_taken():
            raise LeaseLostError(
                f"lake {self._objects.root}: the lease of {self._holder.job} was taken over or is {silent:.0f} s old; "
                "nothing more is written: run the job again"
            )

    def end(self) -> None:
        """Give the lease back; a lease that another run took over is not changed."""
        self._stop.set()
        self._thread.join()
        if self.name != _name(self.generation):
            self._objects.delete(self.name)  # a task's file goes in any case: others wait for it
        elif not self._is_taken():
            self._objects.replace(self.name, _content(replace(self._holder, is_held=False)))


def holders(objects: Objects) -> list[tuple[str, Holder, float]]:
    """File, holder and seconds of silence of every process that may still write; dead leases are left out."""
    found = []
    for name in objects.names(FOLDER):
        holder, silent = _holder(objects, name), objects.age_seconds(name)
        if holder is not None and silent is not None and holder.is_alive(silent):
            found.append((name, holder, silent))
    return found


def _refuse(objects: Objects, others: list[tuple[str, Holder, float]]) -> None:
    if others:
        _, holder, silent = others[0]
        raise LeaseHeldError(
            f"lake {objects.root}: another {holder}, last sign of life {silent:.0f} s ago, writes the tables: wait for "
            f"its end ({WAIT_VARIABLE}=600 waits up to 600 s); `lte lease --break` ends the lease of a run that is dead"
        )


def _take(objects: Objects, job: str, ds: date | None) -> Lease:
    """Take the lake, if no lease exists or every lease is dead.

    Raises:
        LeaseHeldError: Another process that holds the lake is alive.
    """
    _refuse(objects, holders(objects))
    older = objects.names(FOLDER)
    generation = max((_generation(name) for name in older), default=0) + 1
    holder = _myself(job, ds, secrets.token_hex(8))
    if not objects.create(_name(generation), _content(holder)):
        _refuse(objects, holders(objects))
        return _take(objects, job, ds)  # whoever was faster has ended already
    lease = Lease(objects, generation, _name(generation), holder)
    # A task of an older run may have joined between the check above and the file just made. Either that task sees this
    # file when it checks again after joining, or this check sees the task: one of the two stops.
    late = [each for each in holders(objects) if _generation(each[0]) < generation]
    if late:
        lease.end()
        _refuse(objects, late)
    for name in older:
        objects.delete(name)
    return lease


def _join(objects: Objects, token: str, job: str, ds: date | None) -> Lease:
    """Share the lease of the run that this process is a task of.

    Raises:
        LeaseLostError: The run does not hold the lake any more.
    """
    generation, _, secret = token.partition(":")
    number = int(generation)
    holder = _myself(job, ds, secret)
    name = _name(number, f"{os.getpid()}{secrets.token_hex(4)}")
    objects.replace(name, _content(holder))
    lease = Lease(objects, number, name, holder)
    run = _holder(objects, _name(number))
    if run is None or not run.is_held or run.token != secret:
        lease.end()
        raise LeaseLostError(f"lake {objects.root}: the run that {job} is a task of does not hold the lake any more")
    try:
        lease.check()
    except LeaseLostError:
        lease.end()
        raise
    return lease


def _wait_seconds() -> float:
    text = os.environ.get(WAIT_VARIABLE, "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"{WAIT_VARIABLE} = {text!r}: expected seconds, 0 or more")
    return seconds


def _taken(objects: Objects, job: str, ds: date | None) -> Lease:
    deadline = time.monotonic() + _wait_seconds()
    while True:
        try:
            return _take(objects, job, ds)
        except LeaseHeldError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(POLL_SECONDS)


# The leases of this process, by lake: a command that holds a lease may call a function that takes the same lease.
_held: dict[str, Lease] = {}


@contextmanager
def hold_lease(deployment: Deployment, job: str, ds: date | None = None) -> Iterator[Lease]:
    """Hold the lake of a deployment, for code that writes tables, bundles or the online store.

    Inside a lease of the same process or of the run that started this process, the lease is shared.

    Args:
        deployment: Owner of the lake; the lake is marked with the deployment's name.
        job: Task or command, for the messages of other runs.
        ds: Data day.

    Yields:
        The lease; ``check`` says whether it still holds.

    Raises:
        LeaseHeldError: Another run holds the lake, and did not end within ``LTE_WAIT_SECONDS``.
        LeaseLostError: The run that started this process does not hold the lake any more.
        jobs.config.window.ConfigError: The lake belongs to another deployment.
    """
    objects = objects_of(deployment.paths.lake)
    if objects.root in _held:
        yield _held[objects.root]
        return
    claim_lake(objects, deployment)
    root, _, token = os.environ.get(TOKEN_VARIABLE, "").rpartition("|")
    is_task = root == objects.root
    lease = _join(objects, token, job, ds) if is_task else _taken(objects, job, ds)
    before = os.environ.get(TOKEN_VARIABLE)
    _held[objects.root], os.environ[TOKEN_VARIABLE] = lease, f"{objects.root}|{lease.token}"
    try:
        yield lease
    finally:
        del _held[objects.root]
        if before is None:
            del os.environ[TOKEN_VARIABLE]
        else:
            os.environ[TOKEN_VARIABLE] = before
        lease.end()


def break_lease(objects: Objects) -> list[Holder]:
    """End every lease of a lake, also of other runs; a run that is still alive stops at its next write.

    Returns:
        Holders of the leases that were ended.
    """
    ended = [holder for _, holder, _ in holders(objects)]
    older = objects.names(FOLDER)
    generation = max((_generation(name) for name in older), default=0) + 1
    broken = replace(_myself("lte lease --break", None, secrets.token_hex(8)), is_held=False)
    if objects.create(_name(generation), _content(broken)):
        for name in older:
            objects.delete(name)
    return ended
