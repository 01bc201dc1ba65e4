"""The DAG under a real Airflow: its wiring with small recording jobs, and a backfill of the real ones."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path
from subprocess import PIPE, STDOUT
from time import monotonic, sleep
from typing import Any

import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from checkout import ROOT
from jobs.runtime.day import EXTRA_FLAGS, NEEDS, REPORT_TASK, TASKS

BIN = Path(sys.executable).parent
JOBS = (*TASKS, REPORT_TASK)

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(600)]

# Stands where a job of the project stands, to see when and how Airflow starts it; fails where it is told to.
RECORDER = """
import os, pathlib, sys
name = pathlib.Path(sys.argv[0]).stem
with open(os.environ["RECORD"], "a") as record:
    print(name, *sys.argv[1:], file=record)
print("reason on stderr", file=sys.stderr)
sys.exit(name == os.environ.get("FAILS"))
"""

# What `airflow dags test` does, for several runs in one process: importing Airflow takes as long as a run.
RUNS = """
import datetime, json, os, sys
from airflow.dag_processing.dagbag import DagBag
folder = os.environ["AIRFLOW__CORE__DAGS_FOLDER"]
sys.path.append(folder)
states = {}
for name, day, fails in json.loads(sys.argv[1]):
    os.environ |= {"RECORD": f"{os.environ['RECORDS']}/{name}", "FAILS": fails}
    date = day and datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC)
    print("run", name, flush=True)
    run = DagBag(folder).dags["lte_daily"].test(logical_date=date)
    states[name] = {"run": str(run.state), **{ti.task_id: str(ti.state) for ti in run.get_task_instances()}}
print(json.dumps(states))
"""
DAY = "2017-11-03"
# Name, data day, the job that fails.
CASES = (
    ("all_well", DAY, ""),
    ("gate_fails", DAY, "validate"),
    ("ranker_fails", DAY, "train_ranker"),
    ("report_fails", DAY, "build_report"),
    ("no_date", None, ""),
)


@dataclass(frozen=True)
class Wiring:
    """What became of each case: how the jobs were started, the states of run and tasks, and Airflow's output."""

    records: Path
    states: Mapping[str, Mapping[str, str]]
    output: Mapping[str, str]

    def started(self, case: str) -> list[str]:
        """The command lines of the jobs, in the order in which they started."""
        record = self.records / case
        return record.read_text().splitlines() if record.exists() else []


@pytest.fixture(scope="module")
def wiring(tmp_path_factory: pytest.TempPathFactory) -> Wiring:
    """The DAG in a folder whose jobs are recorders, run once for each case."""
    home = tmp_path_factory.mktemp("wiring")
    (home / "jobs").mkdir()
    (home / "records").mkdir()
    for name in ("__init__", *JOBS):
        (home / f"jobs/{name}.py").write_text(RECORDER if name in JOBS else "")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "LTE_"))}
    environment |= {
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": str(home),
        "RECORDS": str(home / "records"),
        "LTE_CONFIG": "/some/where.toml",
        "LTE_RETRIES": "0",
        "LTE_LAST_DAY": "2017-11-07",
    }

    def run(*command: str) -> str:
        done = subprocess.run(command, env=environment, check=False, stdout=PIPE, stderr=STDOUT, text=True, timeout=500)
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    run(str(BIN / "airflow"), "db", "migrate")
    output = run(sys.executable, "-W", "ignore", "-c", RUNS, json.dumps(CASES))
    said = dict(part.split("\n", 1) for part in f"\n{output}".split("\nrun ")[1:])
    [states] = [line for line in output.splitlines() if line.startswith('{"all_well"')]
    return Wiring(home / "records", json.loads(states), said)


def states_told(started: list[str]) -> dict[str, str]:
    """What the report is told of the other tasks."""
    [told] = [line.partition(" --states ")[2] for line in started if line.startswith(f"{REPORT_TASK} ")]
    return {task: state for task, state in json.loads(told).items() if task in TASKS}


def test_jobs_run_in_order_with_the_data_day_and_publishing_is_told_the_run_type(wiring: Wiring) -> None:
    started = wiring.started("all_well")
    assert set(wiring.states["all_well"].values()) == {"success"}
    flags = f" --config /some/where.toml --ds {DAY}"
    told = {name: f"{name}{flags}{' --run-type manual' if name in EXTRA_FLAGS else ''}" for name in JOBS}
    assert sorted(line.partition(" --states ")[0] for line in started) == sorted(told.values())
    assert states_told(started) == dict.fromkeys(TASKS, "success")
    order = [line.split()[0] for line in started]
    assert all(order.index(before) < order.index(name) for name, needed in NEEDS.items() for before in needed)
    assert order[-1] == REPORT_TASK
    said = wiring.output["all_well"].count("reason on stderr")
    assert said == len(JOBS), "what a job says must be in the task's log"


def test_failed_gate_blocks_publishing_and_fails_the_run_but_not_the_report(wiring: Wiring) -> None:
    started = wiring.started("gate_fails")
    assert {line.split()[0] for line in started} == {*JOBS} - {"publish_snapshot", "evaluate_ranker"}
    told = states_told(started)
    assert (told["compute_lte"], told["validate"], told["publish_snapshot"]) == ("success", "failed", "upstream_failed")
    assert started[-1].startswith("build_report "), "the report shows what the other jobs did, so it comes last"
    assert wiring.states["gate_fails"]["run"] == "failed"


def test_failed_ranker_fails_the_run_after_publishing(wiring: Wiring) -> None:
    assert {line.split()[0] for line in wiring.started("ranker_fails")} == {*JOBS} - {"evaluate_ranker"}
    assert wiring.states["ranker_fails"]["run"] == "failed"


def test_failed_report_fails_the_run_after_publishing(wiring: Wiring) -> None:
    assert {line.split()[0] for line in wiring.started("report_fails")} == set(JOBS)
    assert wiring.states["report_fails"]["run"] == "failed"
    assert wiring.states["report_fails"]["day_is_done"] == "upstream_failed"


def test_a_run_without_a_date_starts_no_job_and_says_which_date_to_give(wiring: Wiring) -> None:
    assert wiring.started("no_date") == []
    states = dict(wiring.states["no_date"])
    assert (states.pop("run"), states.pop("day_may_start")) == ("failed", "failed")
    assert set(states.values()) == {"upstream_failed"}
    said = "expected a run with a data day, got one without a date: airflow dags trigger lte_daily -l 2017-11-07"
    assert said in wiring.output["no_date"]
    assert "UndefinedError" not in wiring.output["no_date"]


# The backfill of the real jobs: 24 households' purchases over 130 days, a catalogue of 12 items, on the default engine.
N_USERS = 24
ITEMS = (
    "oat milk",
    "rye bread",
    "red wine",
    "cheddar",
    "apples",
    "candles",
    "soap",
    "coffee",
    "tea",
    "rice",
    "eggs",
    "salt",
)
FIRST_DAY, LAST_DAY = date(2017, 7, 1), date(2017, 11, 7)
SHORT_BACKFILL = 2
BACKFILL = "airflow backfill create --dag-id lte_daily"


def purchases(day: int) -> pa.Table:
    """Each user buys every fifth day, in turn, and then one item more than the last time modulo the catalogue."""
    start = datetime.combine(FIRST_DAY + timedelta(days=day), time(9), tzinfo=UTC)
    users = [user for user in range(N_USERS) if (day + user) % 5 == 0]
    return pa.table(
        {
            "user_id": [f"u{user}" for user in users],
            "item_id": [f"i{(user + day // 5) % len(ITEMS)}" for user in users],
            "event_ts": pa.array([start + timedelta(minutes=user) for user in users], pa.timestamp("us", "UTC")),
            "interaction_type": ["purchase"] * len(users),
            "market": ["US"] * len(users),
            "session_id": [f"s{day}-{user}" for user in users],
        }
    )


def write_landing(landing: Path) -> None:
    for day in range((LAST_DAY - FIRST_DAY).days + 1):
        folder = landing / f"interactions/ds={FIRST_DAY + timedelta(days=day)}"
        folder.mkdir(parents=True)
        pq.write_table(purchases(day), folder / "part.parquet")
    folder = landing / f"items/ds={FIRST_DAY}"
    folder.mkdir(parents=True)
    items = {"item_id": [f"i{n}" for n in range(len(ITEMS))], "title": list(ITEMS)}
    pq.write_table(pa.table(items), folder / "items.parquet")


CONFIG = """
[deployment]
name = "backfill_test"
[paths]
landing = "landing"
lake = "lake"
online_store = "online.lmdb"
reports = "reports"
data_docs = "data_docs"
[interactions]
types = ["purchase"]
[lte]
windows = ["120-60"]
methods = ["uniform"]
[publish]
window = "120-60"
[autoencoder]
window = "120-60"
epochs = 1
enabled = {models}
[ranker]
enabled = {models}
lte = "none"
train_days = 20
validation_days = 3
epochs = 1
dim = 16
"""


@dataclass(frozen=True)
class Served:
    """A clone's scripts and DAGs beside the project's own jobs, and `make airflow` running on it."""

    home: Path
    port: int

    def shell(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line in a shell that has sourced ``scripts/env.sh``, as a person's second shell."""
        command = ["bash", "-c", f"source scripts/env.sh shop.toml; {line}"]
        return subprocess.run(
            command, cwd=self.home, env=self.environment(), check=False, capture_output=True, text=True
        )

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "LTE_"))}
        return {**kept, "VENV": str(BIN.parent), "PORT": str(self.port), "OMP_NUM_THREADS": "1"}

    def ask(self, question: str) -> list[tuple[Any, ...]]:
        """Ask Airflow's database, which is up as long as `make airflow` is; Airflow's own commands take seconds."""
        url = self.shell('printf "%s" "$AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"').stdout.replace("+psycopg2", "")
        with closing(psycopg2.connect(url)) as database, database.cursor() as cursor:
            cursor.execute(question)
            return cursor.fetchall()

    def states(self) -> dict[str, str]:
        """State of the run of each data day."""
        return dict(self.ask("select to_char(logical_date, 'YYYY-MM-DD'), state from dag_run"))

    def times(self) -> dict[str, tuple[datetime, datetime]]:
        """When the first job of each data day started and the last one ended."""
        rows = self.ask(
            "select to_char(logical_date, 'YYYY-MM-DD'), min(task_instance.start_date), max(task_instance.end_date)"
            " from task_instance join dag_run using (dag_id, run_id)"
            " where task_id not in ('day_may_start', 'day_is_done') group by logical_date"
        )
        return {day: (first, last) for day, first, last in rows}

    def backfill(self, days: list[str], flags: str = "") -> None:
        """Order the days; Airflow refuses until its scheduler has closed the backfill before."""
        until = monotonic() + 120
        while (done := self.shell(f"{BACKFILL} --from-date {days[0]} --to-date {days[-1]} {flags}")).returncode:
            assert "Another backfill is running" in done.stderr, done.stderr[-2000:]
            assert monotonic() < until, done.stderr[-2000:]

    def wait_for(self, days: list[str], seconds: int) -> dict[str, str]:
        """Wait until the runs of these days have ended."""
        until = monotonic() + seconds
        while monotonic() < until:
            states = self.states()
            if all(states.get(day) in ("success", "failed") for day in days):
                return states
            sleep(1)
        raise AssertionError(f"not done after {seconds} s: {states}\n{self.log()}")

    def log(self) -> str:
        return (self.home / "served.log").read_text()[-2000:]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Served]:
    tmp_path = tmp_path_factory.mktemp("served")
    for folder in ("dags", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    # The models' five jobs are half of a day: the long suite runs them too.
    with_models = request.config.getoption("--backfill-days") > SHORT_BACKFILL
    (tmp_path / "shop.toml").write_text(CONFIG.format(models=str(with_models).lower()))
    write_landing(tmp_path / "landing")
    shop = Served(tmp_path, free_port())
    environment = {**shop.environment(), "LTE_LAST_DAY": LAST_DAY.isoformat()}
    with (tmp_path / "served.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "scripts/airflow.sh", "shop.toml"], cwd=tmp_path, env=environment, stdout=log, stderr=log
        )
    try:
        until = monotonic() + 600
        while "Airflow is ready" not in shop.log():
            assert process.poll() is None, shop.log()
            assert monotonic() < until, shop.log()
            sleep(1)
        yield shop
    finally:
        process.terminate()
        process.wait(timeout=120)


def rows(lake: Path, table: str, ds: str) -> list[dict[str, Any]]:
    """A day's rows in an order of their own: by all values."""
    found = DeltaTable(str(lake / table)).to_pyarrow_table(partitions=[("ds", "=", ds)]).to_pylist()
    return sorted(found, key=repr)


def written(lake: Path, days: list[str]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    return {(table, ds): rows(lake, table, ds) for table in ("user_lte", "lte_drift", "gate_results") for ds in days}


def in_order(times: Mapping[str, tuple[datetime, datetime]], days: list[str]) -> None:
    """One day after the other, although Airflow starts up to ten days of a backfill at once."""
    for earlier, later in pairwise(days):
        assert times[earlier][1] <= times[later][0], f"{later} began before {earlier} was over"


def test_passwords_and_keys_are_for_their_user_alone(served: Served) -> None:
    home = next((served.home / ".airflow").iterdir())
    assert home.stat().st_mode & 0o777 == 0o700
    for name in ("simple_auth_manager_passwords.json.generated", "airflow.cfg"):
        assert (home / name).stat().st_mode & 0o777 == 0o600, name


def test_a_second_make_airflow_is_refused(served: Served) -> None:
    command = ["bash", "scripts/airflow.sh", "shop.toml"]
    environment = {**served.environment(), "PORT": str(free_port())}
    second = subprocess.run(
        command, cwd=served.home, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert second.returncode == 1
    assert f"this deployment's Airflow is used by: make airflow on port {served.port}, process " in second.stderr


@pytest.mark.timeout(3600)
def test_backfill_fills_once_rewrites_identically_and_never_publishes(served: Served, backfill_days: int) -> None:
    days = [str(LAST_DAY - timedelta(days=back)) for back in reversed(range(backfill_days))]
    before = str(date.fromisoformat(days[0]) - timedelta(days=1))
    # As `make run` does where `make airflow` runs.
    followed = served.shell(f"python scripts/follow_run.py {before}")
    assert followed.returncode == 0, followed.stdout + followed.stderr
    assert "-- ingest" in followed.stdout
    assert "   day_is_done: success after" in followed.stdout
    assert "has run: nothing to do" in served.shell(f"python scripts/follow_run.py {before} --unless-done").stdout
    live = json.loads(served.shell("lte status --json").stdout)["live"]
    assert live["ds"] == before
    # The day before has run already; the backfill adds its own days and no other.
    all_well = dict.fromkeys([before, *days], "success")

    served.backfill(days)
    assert served.wait_for(days, 150 * len(days)) == all_well, served.log()
    first = written(served.home / "lake", days)
    assert all(first[table, ds] for table in ("user_lte", "gate_results") for ds in days)
    # All days are there, in order: each day from the second on is compared with the day before.
    assert all({row["offset_days"] for row in first["lte_drift", ds]} >= {1} for ds in days)

    in_order(served.times(), days)

    versions = DeltaTable(str(served.home / "lake/user_lte")).version()
    served.backfill(days)
    sleep(15)  # several rounds of the scheduler
    assert served.states() == all_well
    assert DeltaTable(str(served.home / "lake/user_lte")).version() == versions, "nothing may be written again"

    served.backfill(days, "--reprocess-behavior completed")
    assert served.wait_for(days, 150 * len(days)) == all_well, served.log()
    assert DeltaTable(str(served.home / "lake/user_lte")).version() > versions, "every day must be written again"
    assert written(served.home / "lake", days) == first
    in_order(served.times(), days)

    assert json.loads(served.shell("lte status --json").stdout)["live"] == live, "a backfill must never publish"
