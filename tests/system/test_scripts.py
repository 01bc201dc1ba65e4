"""The shell side: what `make` offers, what `source scripts/env.sh` sets, what is shown of a run."""

import os
import re
import shutil
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest

from checkout import ROOT
from jobs.cli import TOOLS
from jobs.samples.fashion.users import ShopConfig

CLI = ROOT / "jobs" / "cli.py"
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci/run"]

# As Airflow 3.3.2 prints them, cut at the right; the job's own lines are "17 rows in landing" and "gate: ...".
HOOK = "[airflow.task.hooks.airflow.providers.standard.hooks.subprocess.SubprocessHook] loc=subprocess.py:106"
RUN = f"""\
2026-11-24T04:10:43.686356Z [info     ] [DAG TEST] starting task_id=ingest map_index=-1 [airflow.sdk.definitions.dag]
2026-11-24T04:10:49.084420Z [info     ] Running command: ['/usr/bin/bash', '-c', 'exec python'] {HOOK}
2026-11-24T04:10:49.092588Z [info     ] Output:                        {HOOK}
2026-11-24T04:10:49.124444Z [info     ] 17 rows in landing [all good]  {HOOK}
2026-11-24T04:10:49.334337Z [info     ] Command exited with return code 0 {HOOK}
2026-11-24T04:10:49.381063Z [info     ] Task instance state updated    [airflow.api] loc=x.py new_state=success rows=1
2026-11-24T04:10:49.395709Z [info     ] [DAG TEST] end task task_id=ingest map_index=-1 [airflow.sdk.definitions.dag]
2026-11-24T04:10:50.489916Z [info     ] [DAG TEST] starting task_id=validate map_index=-1 [airflow.sdk.definitions.dag]
2026-11-24T04:10:50.785387Z [info     ] gate: user_lte, ds 2017-11-03: 3 users {HOOK}
2026-11-24T04:10:50.790895Z [error    ] Task failed with exception     [task] loc=task_runner.py:1651
Traceback (most recent call last):
  File "task_runner.py", line 1579, in _run_task_and_map_outcome
airflow.sdk.exceptions.AirflowException: Bash command failed. The command returned a non-zero exit code 1.
2026-11-24T04:10:56.198536Z [info     ] Task instance state updated    [airflow.api] loc=x.py new_state=failed rows=1
2026-11-24T04:10:56.208570Z [info     ] [DAG TEST] end task task_id=validate map_index=-1 [airflow.sdk.definitions.dag]
DagRun failed
"""


def test_shown_run_has_the_jobs_lines_and_repeats_the_reason_of_a_failure_last() -> None:
    command = [sys.executable, str(ROOT / "scripts/show_tasks.py")]
    shown = subprocess.run(command, input=RUN, capture_output=True, text=True, check=True).stdout
    lines = [re.sub(r"after [\d.]+ s", "after T s", line) for line in shown.splitlines()]
    assert lines[:4] == ["-- ingest", "   17 rows in landing [all good]", "   ingest: success after T s", "-- validate"]
    assert "   validate: failed after T s" in lines
    assert "!! DagRun failed" in lines
    assert not [line for line in lines if "Running command" in line or "Traceback" in line]
    assert lines[-2:] == ["!! validate failed; it ended with:", "   gate: user_lte, ds 2017-11-03: 3 users"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_bash(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], check=False, capture_output=True, text=True).stderr == ""
    sourced = "# shellcheck shell=bash" in script.read_text()
    assert sourced or (os.access(script, os.X_OK) and "set -euo pipefail" in script.read_text())
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", str(script)], cwd=ROOT, check=False, capture_output=True, text=True)
        assert found.stdout == ""


def env_after_sourcing(*arguments: str, **variables: str) -> dict[str, str]:
    command = ["bash", "-c", 'source scripts/env.sh "$@"; env -0', "bash", *arguments]
    environment = {"PATH": os.environ["PATH"], **variables}
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return dict(entry.split("=", 1) for entry in shown.split("\0") if "=" in entry)


def test_environment_is_this_clones_whatever_another_airflow_has_set() -> None:
    foreign = {
        "AIRFLOW_HOME": "/elsewhere",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://production/airflow",
        "AIRFLOW__CORE__DAGS_FOLDER": "/elsewhere/dags",
    }
    found = env_after_sourcing(**foreign)
    assert found["AIRFLOW_HOME"] == f"{ROOT}/.airflow"
    assert found["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == f"sqlite:///{ROOT}/.airflow/airflow.db?timeout=60"
    assert found["AIRFLOW__CORE__DAGS_FOLDER"] == f"{ROOT}/dags"
    assert found["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert found["PATH"].startswith(f"{ROOT}/.venv/bin:")


def test_only_the_samples_have_a_last_day() -> None:
    sample = env_after_sourcing()
    assert sample["LTE_CONFIG"] == f"{ROOT}/configs/complete_journey.toml"
    assert sample["LTE_LAST_DAY"] == "2017-12-31"
    # A shell that was the sample's before: its last day must not end the schedule of another data set.
    other = env_after_sourcing("my.toml", LTE_LAST_DAY=sample["LTE_LAST_DAY"])
    assert other["LTE_CONFIG"] == f"{ROOT}/my.toml"
    assert "LTE_LAST_DAY" not in other
    assert env_after_sourcing("my.toml", LTE_LAST_DAY="2020-02-01")["LTE_LAST_DAY"] == "2020-02-01"
    fashion = env_after_sourcing("configs/fashion.toml", LTE_LAST_DAY=sample["LTE_LAST_DAY"])
    shop = ShopConfig()  # what `make run` makes where there is none yet
    assert fashion["LTE_LAST_DAY"] == str(date.fromisoformat(shop.first_day) + timedelta(days=shop.days - 1))
    assert "LTE_LAST_DAY" not in env_after_sourcing("my.toml", LTE_LAST_DAY=fashion["LTE_LAST_DAY"])


def test_make_without_a_target_lists_every_target() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert [name for name in phony[1].split() if f"  make {name} " not in shown] == []


def test_run_without_a_day_for_ones_own_data_says_how(tmp_path: Path) -> None:
    command = ["bash", "scripts/run.sh", str(tmp_path / "mine.toml"), ""]
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": os.environ["PATH"]}, check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"make run CONFIG={tmp_path / 'mine.toml'} DS=2017-12-31" in done.stderr


def test_pre_commit_runs_what_make_lint_runs() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for program in ("ruff check", "ruff format", "mypy", "lint-imports"):
        assert f"bin/{program}" in hooks
        assert f"/{program}" in makefile


def test_commands_of_the_readme_and_the_guides_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = {*TOOLS, *re.findall(r'^    _command\(commands, "([a-z-]+)"', CLI.read_text(), re.MULTILINE)}
    assert {"run", "status", "user", "check-config", "erase"} <= commands
    known = {"make": targets, "lte": commands}
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        shown = re.findall(r"^(?:\$ )?(make|lte) ([a-z][a-z-]+)", page.read_text(), re.MULTILINE)
        shown += re.findall(r"`(make|lte) ([a-z][a-z-]+)[^`]*`", page.read_text())
        assert [(page.name, *pair) for pair in shown if pair[1] not in known[pair[0]]] == []
    assert len(re.findall(r"`?lte [a-z]", (ROOT / "README.md").read_text())) > 4
    for path in re.findall(r"\]\(((?:docs|configs|examples)/[^)#]+)", (ROOT / "README.md").read_text()):
        assert (ROOT / path).exists(), path


def test_what_continuous_integration_runs_of_the_readme_is_in_the_readme() -> None:
    script, readme = (ROOT / "scripts/ci_readme.sh").read_text(), (ROOT / "README.md").read_text()
    run = set(re.findall(r"\blte ([a-z][a-z-]+)", script))
    named = set(re.findall(r"\blte ([a-z][a-z-]+)", readme)) & {
        "status",
        "user",
        "run",
        "rollback",
        "erase",
        "maintain",
    }
    assert named - run == set()
    assert "airflow backfill create --dag-id lte_daily --from-date 2017-11-01 --to-date 2017-11-07" in readme
    assert "airflow backfill create --dag-id lte_daily --from-date 2017-11-01 --to-date 2017-11-07" in script
