"""The DAG under a real Airflow: its wiring with small recording jobs, and a backfill of the real ones."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.pipeline import REPORT_TASK, TASKS

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
JOBS = (*TASKS, REPORT_TASK)

pytestmark = [pytest.mark.airflow, pytest.mark.slow, pytest.mark.timeout(900)]

# Stands where a job of the project stands, to see when and how Airflow starts it; fails where it is told to.
RECORDER = """
import os, pathlib, sys
name = pathlib.Path(sys.argv[0]).stem
with open(os.environ["RECORD"], "a") as record:
    print(name, *sys.argv[1:], file=record)
print("reason on stderr", file=sys.stderr)
sys.exit(name == os.environ.get("FAILS"))
"""


@dataclass(frozen=True)
class Airflow:
    """An Airflow home of its own, with the project's DAGs in a folder whose jobs are not the project's."""

    home: Path
    environment: Mapping[str, str]

    def command(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **variables}
        return subprocess.run(
            [str(BIN / "airflow"), *words], env=environment, capture_output=True, text=True, timeout=300
        )


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    home = tmp_path_factory.mktemp("wiring")
    shutil.copytree(ROOT / "dags", home / "dags")
    (home / "jobs").mkdir()
    for name in JOBS:
        (home / f"jobs/{name}.py").write_text(RECORDER)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "LTE_"))}
    environment |= {
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "LTE_CONFIG": "/some/where.toml",
        "LTE_RETRIES": "0",
    }
    prepared = Airflow(home, environment)
    assert prepared.command("db", "migrate").returncode == 0
    return prepared


def run_of(airflow: Airflow, tmp_path: Path, **variables: str) -> tuple[int, list[str], str]:
    """Run one day; returns the exit code, what the jobs were started with, and Airflow's output."""
    record = tmp_path / "record"
    done = airflow.command("dags", "test", "lte_daily", "2017-11-03", RECORD=str(record), **variables)
    return done.returncode, record.read_text().splitlines(), done.stdout + done.stderr


def test_jobs_run_in_order_with_the_data_day_and_publishing_is_told_the_run_type(
    airflow: Airflow, tmp_path: Path
) -> None:
    code, started, output = run_of(airflow, tmp_path)
    assert code == 0
    flags = " --config /some/where.toml --ds 2017-11-03"
    assert started == [f"{name}{flags}{' --run-type manual' if name == 'publish_snapshot' else ''}" for name in JOBS]
    assert output.count("reason on stderr") == len(JOBS), "what a job says must be in the task's log"


def test_failed_gate_blocks_publishing_and_fails_the_run_but_not_the_report(airflow: Airflow, tmp_path: Path) -> None:
    code, started, _ = run_of(airflow, tmp_path, FAILS="validate")
    assert [line.split()[0] for line in started] == [*JOBS[:5], "build_report"]
    assert code != 0


def test_failed_report_fails_the_run_after_publishing(airflow: Airflow, tmp_path: Path) -> None:
    code, started, _ = run_of(airflow, tmp_path, FAILS="build_report")
    assert [line.split()[0] for line in started] == list(JOBS)
    assert code != 0
