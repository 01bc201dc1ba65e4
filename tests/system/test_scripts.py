"""The shell side: what `make` offers, what `source scripts/env.sh` sets, what is shown of a run."""

import fcntl
import os
import re
import shutil
import socket
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest

from checkout import ROOT
from deployments import CONFIG
from jobs.cli import TOOLS
from jobs.samples.fashion.users import ShopConfig

CLI = ROOT / "jobs" / "cli.py"
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / "scripts/bin/airflow", ROOT / ".ci/run"]

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


DONE = """\
2026-11-24T04:11:48.175Z [info     ] [DAG TEST] starting task_id=day_is_done map_index=-1 [airflow.sdk.definitions.dag]
2026-11-24T04:11:48.275Z [info     ] Task instance state updated    [airflow.api] loc=x.py new_state=STATE rows=1
2026-11-24T04:11:48.302Z [info     ] [DAG TEST] end task task_id=day_is_done map_index=-1 [airflow.sdk.definitions.dag]
"""


def shown(log: str) -> tuple[int, list[str]]:
    command = [sys.executable, str(ROOT / "scripts/show_tasks.py")]
    done = subprocess.run(command, input=log, capture_output=True, text=True, check=False)
    return done.returncode, [re.sub(r"after [\d.]+ s", "after T s", line) for line in done.stdout.splitlines()]


def test_shown_run_has_the_jobs_lines_and_repeats_the_reason_of_a_failure_last() -> None:
    code, lines = shown(RUN)
    assert code == 1
    assert lines[:4] == ["-- ingest", "   17 rows in landing [all good]", "   ingest: success after T s", "-- validate"]
    assert "   validate: failed after T s" in lines
    assert "!! DagRun failed" in lines
    assert not [line for line in lines if "Running command" in line or "Traceback" in line]
    assert lines[-3:-1] == ["!! validate failed; it ended with:", "   gate: user_lte, ds 2017-11-03: 3 users"]


def test_a_run_is_green_only_if_its_last_task_succeeded() -> None:
    assert shown(RUN + DONE.replace("STATE", "success"))[0] == 0
    # No task at all, as for a day after the DAG's end, and a run that timed out: neither has a failed task.
    for log in ("", DONE.replace("STATE", "skipped")):
        code, lines = shown(log)
        assert code == 1
        assert "!! the run did not reach its end: day_is_done has not succeeded" in lines


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
    home = found["AIRFLOW_HOME"]
    assert re.fullmatch(rf"{re.escape(str(ROOT))}/\.airflow/complete_journey-[0-9a-f]{{8}}", home)
    sockets = found["AIRFLOW_DB_SOCKETS"]
    url = f"postgresql+psycopg2://airflow@/postgres?host={sockets}"
    assert found["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == url
    assert found["AIRFLOW__CORE__DAGS_FOLDER"] == f"{ROOT}/dags"
    assert found["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert found["PATH"].startswith(f"{ROOT}/scripts/bin:{ROOT}/.venv/bin:")
    # The path of a Unix socket has 107 bytes at most, wherever the clone lies.
    assert len(f"{sockets}/.s.PGSQL.5432") < 60


def test_sqlite_is_a_setting() -> None:
    found = env_after_sourcing(AIRFLOW_DB="sqlite")
    database = f"sqlite:///{found['AIRFLOW_HOME']}/airflow.db?timeout=60"
    assert found["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == database
    command = ["bash", "-c", "source scripts/env.sh"]
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": os.environ["PATH"], "AIRFLOW_DB": "mysql"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "AIRFLOW_DB: expected postgres or sqlite, got 'mysql'\n")


def test_each_deployment_has_an_airflow_of_its_own() -> None:
    paths = ("configs/complete_journey.toml", "configs/fashion.toml", "my.toml", "größe/my shop.toml", "/etc/my.toml")
    found = [env_after_sourcing(path) for path in paths]
    assert len({each["AIRFLOW_HOME"] for each in found}) == len(paths)
    assert len({each["AIRFLOW_DB_SOCKETS"] for each in found}) == len(paths)
    # The same file under another name of it, and from a shell that was another deployment's before.
    again = env_after_sourcing(
        "configs/../my.toml", **{name: found[0][name] for name in ("LTE_CONFIG", "AIRFLOW_HOME")}
    )
    assert again["AIRFLOW_HOME"] == found[2]["AIRFLOW_HOME"]


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


def test_make_works_in_a_folder_with_a_blank_and_an_umlaut(tmp_path: Path) -> None:
    clone = tmp_path / "größe und mehr"
    clone.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, clone / name)
    shutil.copytree(ROOT / "scripts", clone / "scripts")
    (clone / ".venv").mkdir()
    (clone / ".venv/bin").symlink_to(Path(sys.executable).parent)
    (clone / ".venv/.installed").touch()  # younger than what it was made from
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["make", "run", "CONFIG=mein shop.toml"],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "which data day? Say so: make run CONFIG=mein shop.toml DS=2017-12-31" in done.stderr
    # The programs are those of this clone's environment, wherever the shell stands.
    line = 'source "$0/scripts/env.sh" && type -p lte airflow && echo "$LTE_CONFIG" && echo "$AIRFLOW_HOME"'
    command = ["bash", "-c", line, str(clone)]
    shown = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=True).stdout
    lte, airflow, config, home = shown.splitlines()
    assert (lte, airflow) == (f"{clone}/.venv/bin/lte", f"{clone}/scripts/bin/airflow")
    assert config == f"{clone}/configs/complete_journey.toml"
    assert home.startswith(f"{clone}/.airflow/complete_journey-")


def test_run_of_a_day_after_the_last_one_is_refused() -> None:
    command = ["bash", "scripts/run.sh", "configs/complete_journey.toml", "2018-01-05"]
    environment = {"PATH": os.environ["PATH"], "VENV": str(Path(sys.executable).parents[1])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "expected DS up to 2017-12-31, the last day of this data set, got 2018-01-05" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("dags trigger lte_daily", "expected a data day, got none: airflow dags trigger lte_daily -l 2017-12-31"),
        ("dags trigger lte_daily -l 2018-01-05", "expected a data day up to LTE_LAST_DAY=2017-12-31, got 2018-01-05"),
        ("dags test lte_daily 2018-01-01", "expected a data day up to LTE_LAST_DAY=2017-12-31, got 2018-01-01"),
        (
            "backfill create --dag-id lte_daily --from-date=2017-12-30 --to-date=2018-01-02",
            "expected a data day up to LTE_LAST_DAY=2017-12-31, got 2018-01-02",
        ),
    ],
)
def test_airflow_refuses_a_day_that_cannot_be_before_it_starts(command: str, reason: str) -> None:
    line = f"source scripts/env.sh configs/complete_journey.toml; airflow {command}"
    environment = {"PATH": os.environ["PATH"], "VENV": str(Path(sys.executable).parents[1])}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("script", "owner"), [("run.sh", "make run"), ("airflow.sh", "make run"), ("airflow.sh", "make airflow on port 1")]
)
def test_a_second_make_on_one_airflow_is_refused(tmp_path: Path, script: str, owner: str) -> None:
    for folder in ("scripts", "dags"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "mine.toml").write_text(CONFIG)
    # env.sh finds its clone through the link's own place, so the home is the test's.
    environment = {"PATH": os.environ["PATH"], "VENV": str(Path(sys.executable).parents[1]), "AIRFLOW_DB": "sqlite"}
    shell = ["bash", "-c", 'source scripts/env.sh mine.toml; printf "%s" "$AIRFLOW_HOME"']
    home = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert home.startswith(str(tmp_path))
    Path(home).mkdir(parents=True)
    with (Path(home) / "owner").open("w") as held:
        print(f"{owner}, process 1", file=held, flush=True)
        fcntl.flock(held, fcntl.LOCK_EX)
        command = ["bash", f"scripts/{script}", "mine.toml", "2017-11-03"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        done = subprocess.run(
            command, cwd=tmp_path, env={**environment, "PORT": port}, capture_output=True, text=True, check=False
        )
    assert done.returncode == 1
    assert f"this deployment's Airflow is used by: {owner}, process 1" in done.stderr


def test_pre_commit_runs_what_make_lint_runs() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for program in ("ruff check", "ruff format", "mypy", "lint-imports"):
        assert f"bin/{program}" in hooks
        assert f"/{program}" in makefile


def test_commands_of_the_readme_and_the_guides_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = {*TOOLS, *re.findall(r'_command\(\s*commands, "([a-z-]+)"', CLI.read_text())}
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
