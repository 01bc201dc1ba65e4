"""Policy of all DAGs: what a DAG file may do when it is parsed, and what every task must say of itself."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from checkout import ROOT
from jobs.experiment import ALL_NAMES
from jobs.runtime.day import EXTRA_FLAGS, NEEDS, REPORT_TASK, TASKS

# What the DAG files share; Airflow looks for no DAG in there.
SHARED = ("tasks", "turns")
DAG_FILES = sorted(path for path in (ROOT / "dags").glob("*.py") if path.stem not in SHARED)
OUR_PACKAGES = {"jobs", "lte_models", "schemas"}

# Imports Airflow first, so that only what a DAG file itself does is timed and watched.
PARSE = """
import json, os, runpy, sys, time
from pathlib import Path
from airflow.providers.standard.operators import bash, empty
from airflow.sdk import DAG, BaseSensorOperator, CronDataIntervalTimetable, TriggerRule
sys.path.append(os.environ["FOLDER"])  # as Airflow does
os.environ["LTE_CONFIG"] = "/nowhere.toml"  # parsing must not care
seen = []
def watch(event, details):
    if event.startswith(("socket.", "sqlite3.", "subprocess.", "urllib.")):
        seen.append(event)
    if event == "open" and isinstance(details[0], str) and str(details[1]).startswith(("w", "a", "x")):
        seen.append(f"write {details[0]}")
sys.dont_write_bytecode = True
sys.addaudithook(watch)
facts = {}
before = set(sys.modules)
for name in json.loads(sys.argv[1]):
    seen.clear()
    for loaded in set(sys.modules) - before:
        del sys.modules[loaded]
    started = time.perf_counter()
    runpy.run_path(f"{os.environ['FOLDER']}/{name}.py")
    modules = {module.split(".")[0] for module in set(sys.modules) - before}
    facts[name] = {"seconds": time.perf_counter() - started, "seen": list(seen), "modules": sorted(modules)}
print(json.dumps(facts))
"""

LOAD = """
import json, os, sys
sys.path.append(os.environ["FOLDER"])
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
def facts(task):
    return {
        "kind": task.task_type, "pool": task.pool, "owner": task.owner, "at_once": task.max_active_tis_per_dag,
        "retries": task.retries, "delay": task.retry_delay.total_seconds(), "rule": task.trigger_rule,
        "timeout": task.execution_timeout and task.execution_timeout.total_seconds(),
        "command": getattr(task, "bash_command", None), "start_in": getattr(task, "cwd", None),
        "variables": getattr(task, "env", None),
        "after": sorted(task.upstream_task_ids),
    }
def loaded(variables):
    for module in ("tasks", "turns"):
        sys.modules.pop(module, None)
    os.environ.update(variables)
    bag = DagBag(os.environ["FOLDER"])
    for name in variables:
        del os.environ[name]
    dags = {dag_id: DagSerialization.to_dict(dag)["dag"] for dag_id, dag in bag.dags.items()}
    tasks = {dag_id: {task.task_id: facts(task) for task in dag.tasks} for dag_id, dag in bag.dags.items()}
    return {"errors": bag.import_errors, "dags": dags, "tasks": tasks}
print(json.dumps([loaded(variables) for variables in json.loads(sys.argv[1])], default=str))
"""


def airflow_python(program: str, argument: Any, home: Path) -> Any:
    """Run a program in a process of its own: Airflow takes over logging and settings of the one that imports it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "LTE_"))}
    environment |= {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "FOLDER": str(ROOT / "dags")}
    command = [sys.executable, "-W", "ignore", "-c", program, json.dumps(argument)]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The DAGs as Airflow loads them, under different variables: one process, since importing Airflow takes seconds."""
    variables = {
        "plain": {},
        "ended": {"LTE_LAST_DAY": "2017-12-31"},
        "broken": {"LTE_LAST_DAY": "31.12.2017"},
        "without retries": {"LTE_RETRIES": "0"},
    }
    loaded = airflow_python(LOAD, list(variables.values()), tmp_path_factory.mktemp("airflow"))
    return dict(zip(variables, loaded, strict=True))


@pytest.fixture(scope="module")
def bag(bags: dict[str, Any]) -> Any:
    return bags["plain"]


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What parsing each DAG file did."""
    return airflow_python(PARSE, [path.stem for path in DAG_FILES], tmp_path_factory.mktemp("parsed"))


@pytest.fixture(scope="module")
def tasks(bag: Any) -> dict[str, dict[str, Any]]:
    return dict(bag["tasks"]["lte_daily"])


def test_every_file_defines_its_dag_without_an_error(bag: Any) -> None:
    assert bag["errors"] == {}
    assert set(bag["dags"]) == {path.stem for path in DAG_FILES}


def test_airflow_looks_for_no_dag_in_what_the_files_share() -> None:
    ignored = (ROOT / "dags/.airflowignore").read_text().splitlines()
    assert {line.removesuffix(".py") for line in ignored if not line.startswith("#")} == set(SHARED)
    for name in SHARED:
        source = (ROOT / f"dags/{name}.py").read_text()
        assert not OUR_PACKAGES & set(re.findall(r"^(?:from|import) (\w+)", source, re.MULTILINE))


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_parsing_is_fast_opens_nothing_and_loads_none_of_our_code(path: Path, parsed: Any) -> None:
    facts = parsed[path.stem]
    assert facts["seconds"] < 1
    assert facts["seen"] == []
    assert not OUR_PACKAGES & set(facts["modules"])
    assert {"tasks"} <= set(facts["modules"]), "what the file imports was loaded anew, and watched too"


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_file_is_wiring_only(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in imported}
    assert not OUR_PACKAGES & roots
    assert roots <= {"__future__", "airflow", "datetime", "os", "pathlib", "sys", "typing", *SHARED}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not {"Variable", "PythonOperator", "task"} & names
    assert not re.search(r"\bvar\.|\bnow\(|\btoday\(|\butcnow\(", path.read_text())


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_dag_says_what_it_is(path: Path, bag: Any) -> None:
    dag = bag["dags"][path.stem]
    assert dag["doc_md"] == ast.get_docstring(ast.parse(path.read_text()), clean=False)
    assert dag["tags"]
    assert dag["catchup"] is False
    assert dag["max_active_runs"] == 1
    assert dag["dagrun_timeout"] > 0
    # A plain cron string shifts ds by a day; experiments are started by hand.
    timetable = "NullTimetable" if path.stem == "lte_experiments" else "CronDataIntervalTimetable"
    assert dag["timetable"]["__type"].endswith(timetable)


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.stem)
def test_every_job_has_pool_retries_and_limits(path: Path, bag: Any) -> None:
    for name, task in bag["tasks"][path.stem].items():
        assert task["owner"] != "airflow", name
        if name == "day_may_start":  # no job: it must not take the slot of the day that it waits for
            assert (task["pool"], task["at_once"]) == ("default_pool", 1)
        elif task["kind"] != "EmptyOperator":  # never runs: the scheduler only marks it
            assert task["pool"] == "lte_heavy", name
            assert 1 <= task["retries"] <= 3, name
            assert 30 <= task["delay"] <= 600, name
            assert 0 < task["timeout"] <= 6 * 3600, name
            assert task["at_once"] == 1, name


def test_everything_that_starts_airflow_creates_the_pool() -> None:
    for name in ("scripts/airflow_db.sh", "docker-compose.yml"):
        assert "pools set lte_heavy 1" in (ROOT / name).read_text(), name


def test_daily_jobs_are_those_of_the_command_line_and_need_the_same(tasks: dict[str, Any]) -> None:
    no_job = (REPORT_TASK, "day_may_start", "day_is_done")
    after = {name: task["after"] for name, task in tasks.items() if name not in no_job}
    assert after == {name: sorted(needed or ["day_may_start"]) for name, needed in NEEDS.items()}
    assert tasks["day_may_start"]["after"] == []
    assert [name for name in (*TASKS, REPORT_TASK) if not (ROOT / f"jobs/{name}.py").is_file()] == []


def test_the_command_line_starts_no_job_before_what_it_needs() -> None:
    for place, (name, needed) in enumerate(NEEDS.items()):
        assert set(needed) <= set(TASKS[:place]), name


def test_what_goes_wrong_with_the_ranker_keeps_no_lte_from_being_published() -> None:
    needed, todo = set(), ["publish_snapshot"]
    while todo:
        needed |= set(more := NEEDS[todo.pop()])
        todo += more
    assert not {"build_examples", "train_ranker", "evaluate_ranker"} & needed
    assert "validate" in needed


def test_report_runs_whatever_failed_and_the_run_still_fails(tasks: dict[str, Any]) -> None:
    # `day_may_start` is the one success where every job failed; where it refused the run there is no day to report on.
    assert tasks["build_report"]["rule"] == "all_done_min_one_success"
    # Every job that nothing else waits for: the report shows all of them, and each decides the colour of the run.
    assert tasks["build_report"]["after"] == ["day_may_start", "evaluate_ranker", "publish_snapshot", "train_ranker"]
    assert tasks["day_is_done"]["after"] == ["build_report", "evaluate_ranker", "publish_snapshot"]
    others = {name: task["rule"] for name, task in tasks.items() if name != "build_report"}
    assert set(others.values()) == {"all_success"}


def test_jobs_are_processes_with_explicit_flags(tasks: dict[str, Any]) -> None:
    for name, task in tasks.items():
        if name in ("day_may_start", "day_is_done"):
            continue
        assert task["command"].startswith("exec "), "a shell in between would keep the kill from the job"
        assert f" -P -m jobs.{name} --config " in task["command"]
        assert "--ds {{ ds }}" in task["command"]
        assert task["start_in"] == str(ROOT)
        # Shorter than the task may take, so that the reason is in its log.
        assert 60 <= int(task["variables"]["LTE_WAIT_SECONDS"]) < task["timeout"]
    with_run_type = {
        name for name, task in tasks.items() if "--run-type {{ dag_run.run_type.value }}" in str(task["command"])
    }
    assert with_run_type == {"publish_snapshot", "evaluate_ranker"} == set(EXTRA_FLAGS)


def test_config_is_looked_up_when_the_task_runs_and_its_absence_is_said(tasks: dict[str, Any]) -> None:
    command = tasks["ingest"]["command"].replace("{{ ds }}", "2017-11-07")
    environment = {name: value for name, value in os.environ.items() if name != "LTE_CONFIG"}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "LTE_CONFIG: names the TOML file of the deployment and is not set" in done.stderr
    # An interpreter that only shows its arguments: a path with a space stays one argument.
    environment |= {"LTE_CONFIG": "/my configs/a.toml", "LTE_PYTHON": "/usr/bin/printf"}
    shown = subprocess.run(
        ["bash", "-c", command.replace("-P -m", "'%s\\n'")],
        env=environment, cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.stdout.splitlines() == ["jobs.ingest", "--config", "/my configs/a.toml", "--ds", "2017-11-07"]


def test_a_data_set_that_ended_schedules_nothing_after_its_last_day(bags: dict[str, Any]) -> None:
    # Seconds since 1970 of 2017-12-31T00:00Z: 17,531 days.
    assert bags["ended"]["dags"]["lte_daily"]["end_date"] == 17_531 * 86_400
    assert "end_date" not in bags["plain"]["dags"]["lte_daily"]
    assert "31.12.2017" in json.dumps(bags["broken"]["errors"])


def test_retries_can_be_turned_off_for_a_person_who_watches(bags: dict[str, Any]) -> None:
    assert {task["retries"] for task in bags["without retries"]["tasks"]["lte_daily"].values()} == {0}


def test_experiments_are_one_task_each_with_the_runs_own_day_and_flags(bag: Any) -> None:
    found = bag["tasks"]["lte_experiments"]
    # One after the other: they use the same folder.
    before = {name: task["after"] for name, task in found.items()}
    assert before == {name: list(ALL_NAMES[at - 1 : at]) for at, name in enumerate(ALL_NAMES)}
    for name, task in found.items():
        assert task["command"].startswith(
            f'exec "${{LTE_PYTHON:-{sys.executable}}}" -P -m jobs.experiment {name} --config '
        )
        assert "{% if params.ds %}--ds {{ params.ds }}{% endif %} {{ params.flags }}" in task["command"]
        assert task["start_in"] == str(ROOT)


@pytest.mark.parametrize("flags", ["", "--seeds 0,1,2", "--fresh", "--seeds 0,1 --budget-minutes 2.5 --fresh"])
def test_flags_of_an_experiment_are_flags(bag: Any, flags: str) -> None:
    assert re.search(_pattern(bag, "flags"), flags)


@pytest.mark.parametrize("flags", ["; rm x", "--seeds $(id)", "--fresh && id", "--seeds `id`", "id", "--seeds 1 | id"])
def test_nothing_else_gets_into_the_shell_of_an_experiment(bag: Any, flags: str) -> None:
    assert not re.search(_pattern(bag, "flags"), flags)
    assert not re.search(_pattern(bag, "ds"), flags)


def _pattern(bag: Any, name: str) -> str:
    return dict(bag["dags"]["lte_experiments"]["params"])[name]["schema"]["__var"]["pattern"]


def test_erasures_take_the_requests_and_name_no_user_in_a_command(bag: Any) -> None:
    (task,) = bag["tasks"]["lte_erasure"].values()
    start = f'exec "${{LTE_PYTHON:-{sys.executable}}}" -P -m jobs.cli erase --config '
    assert task["command"].startswith(start)
    assert task["command"].endswith(" --requests")
