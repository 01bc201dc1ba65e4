"""Each task leaves a record of its day; a process that is no task leaves none, and no record stops a task."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jobs.config.sections import Deployment
from jobs.runtime.task_records import begin_task, end_task, read_records, records_folder
from lte_builders import DS


def flags(deployment_file, *more: str) -> list[str]:
    return ["/x/jobs/ingest.py", "--config", str(deployment_file), "--ds", str(DS), *more]


def test_a_task_runs_and_ends(deployment: Deployment, deployment_file) -> None:
    task = begin_task(flags(deployment_file, "--other", "flag"))
    running = read_records(deployment, DS)["ingest"]
    assert (running.state, running.seconds, running.error) == ("running", None, "")  # what a kill leaves
    end_task(task, "")
    done = read_records(deployment, DS)["ingest"]
    assert (done.state, done.error, done.started) == ("success", "", running.started)
    assert done.seconds is not None
    assert done.seconds >= 0
    assert done.peak_mb is not None
    assert done.peak_mb > 1


def test_the_error_is_kept_without_secrets_and_of_limited_length(deployment: Deployment, deployment_file) -> None:
    end_task(begin_task(flags(deployment_file)), "RedisError: rediss://me:hush@host:1/ " + "x" * 9000)
    found = read_records(deployment, DS)["ingest"]
    assert found.state == "failed"
    assert "hush" not in found.error
    assert len(found.error.encode()) < 2000


@pytest.mark.parametrize(
    "argv",
    [
        ["/x/bin/lte", "status"],
        ["/x/jobs/ingest.py", "--help"],
        ["/x/jobs/ingest.py", "--config", "no-such.toml", "--ds", "2025-06-30"],
        ["/x/jobs/ingest.py", "--config", "x.toml", "--ds", "yesterday"],
        ["/x/jobs/ingest.py", "--config", "x.toml", "--ds", "2999-01-01"],
    ],
)
def test_what_is_no_task_of_a_day_leaves_no_record(argv: list[str]) -> None:
    assert begin_task(argv) is None


def test_a_folder_of_another_deployment_gets_no_record(deployment: Deployment, deployment_file) -> None:
    reports = records_folder(deployment, DS).parents[1]
    reports.mkdir(parents=True)
    (reports / ".deployment").write_text("other")
    assert begin_task(flags(deployment_file)) is None
    assert not records_folder(deployment, DS).exists()


def test_a_damaged_record_is_left_out(deployment: Deployment) -> None:
    records_folder(deployment, DS).mkdir(parents=True)
    (records_folder(deployment, DS) / "ingest.json").write_text('{"n": erased}')
    assert read_records(deployment, DS) == {}


def test_a_task_that_fails_leaves_its_sentence(deployment: Deployment, deployment_file) -> None:
    # There is no landing folder, so ingest fails; its sentence is on standard error and in the record.
    command = [sys.executable, "-P", "-m", "jobs.ingest", *flags(deployment_file)[1:]]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    found = read_records(deployment, DS)["ingest"]
    assert done.returncode == 1
    assert found.state == "failed"
    assert found.error
    assert found.error in done.stderr
