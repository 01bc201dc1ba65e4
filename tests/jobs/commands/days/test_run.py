"""lte run: a line when a task starts and one when it ends, with its seconds and what it noted."""

import re
import subprocess
from datetime import date
from pathlib import Path

import pytest

from jobs.commands.days.run import run_day
from jobs.lake.lake import Lake
from jobs.runtime.day import NEEDS, REPORT_TASK

DS = date(2024, 2, 29)


def test_each_task_is_told_as_it_goes(
    lake: Lake, deployment_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lake.record_metrics(DS, "ingest", {"n_users": 1234.0, "share": 0.5, ("n_rows", "a label"): 3.0})
    commands: list[list[str]] = []

    def ended(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1 if "jobs.compute_lte" in command else 0)

    monkeypatch.setattr(subprocess, "run", ended)
    results = run_day(deployment_file, DS, "--allow-future")
    assert [result.task for result in results] == [*NEEDS, REPORT_TASK]
    assert all("--allow-future" in command for command in commands)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"run: ingest of ds={DS} starts"
    assert re.fullmatch(rf"run: ingest of ds={DS}: success after [0-9.]+ s \(n_users 1,234\)", told[1])
    assert any(re.fullmatch(rf"run: compute_lte of ds={DS}: failed after [0-9.]+ s", line) for line in told)
    assert not any("train_autoencoder" in line for line in told)  # it waits for compute_lte and does not start
