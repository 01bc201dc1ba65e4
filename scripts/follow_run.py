"""Run a data day through the Airflow that `make airflow` has started.

Triggers the day, or clears the day if it has run. Shows each task as it starts and ends, and waits for the end.
The exit code is 0 only if ``day_is_done`` has succeeded. A run that timed out or was marked by hand gives 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

DAG = "lte_daily"
LAST_TASK = "day_is_done"
ENDED = frozenset({"success", "failed", "upstream_failed", "skipped", "removed"})
LOOK_SECONDS = 2.0
PATIENCE_SECONDS = 300  # limit of one answer: the machine may be busy with the jobs
LOG_LINES = 25


class Airflow:
    """The REST API of a running Airflow, as the user admin."""

    def __init__(self, url: str, home: Path) -> None:
        """Log in.

        Args:
            url: Address of the API server.
            home: ``AIRFLOW_HOME``, where the password is.
        """
        passwords = json.loads((home / "simple_auth_manager_passwords.json.generated").read_text())
        self.url, self.headers = url, {"Content-Type": "application/json"}
        login = {"username": "admin", "password": passwords["admin"]}
        self.headers["Authorization"] = f"Bearer {self.call('/auth/token', login)['access_token']}"

    def call(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Get a path, or post to the path if there is a body.

        Raises:
            urllib.error.HTTPError: Airflow refuses.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self.headers)  # noqa: S310  the address of airflow.sh
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:  # noqa: S310
            return json.load(answer)


def started_run(airflow: Airflow, ds: str, *, unless_done: bool) -> str | None:
    """Trigger the day, or clear the day if it has ended.

    Args:
        airflow: The running Airflow.
        ds: Data day.
        unless_done: Whether a day that has succeeded is left alone.

    Returns:
        Id of the run; None if there is nothing to do.
    """
    runs = f"/api/v2/dags/{DAG}/dagRuns"
    day = f"{ds}T00:00:00Z"
    found = airflow.call(f"{runs}?logical_date_gte={day}&logical_date_lte={day}")["dag_runs"]
    if not found:
        return str(airflow.call(runs, {"logical_date": day})["dag_run_id"])
    run_id, state = str(found[0]["dag_run_id"]), found[0]["state"]
    if state == "success" and unless_done:
        return None
    if state in ENDED:
        airflow.call(f"{runs}/{quote(run_id, safe='')}/clear", {"dry_run": False})
    return run_id


def follow(airflow: Airflow, run_id: str) -> bool:
    """Show the tasks of a run until it has ended; tell whether the last task succeeded."""
    run = f"/api/v2/dags/{DAG}/dagRuns/{quote(run_id, safe='')}"
    shown: dict[str, str] = {}
    while True:
        state = airflow.call(run)["state"]
        tasks = airflow.call(f"{run}/taskInstances?limit=100")["task_instances"]
        for task in sorted(tasks, key=lambda each: each["start_date"] or "9"):
            _show(airflow, run, task, shown)
        if state in ENDED:
            return shown.get(LAST_TASK) == "success"
        time.sleep(LOOK_SECONDS)


def _show(airflow: Airflow, run: str, task: Mapping[str, Any], shown: dict[str, str]) -> None:
    name, state = task["task_id"], task["state"] or "none"
    if shown.get(name) == state or not (state == "running" or state in ENDED):
        return
    shown[name] = state
    if state == "running":
        print(f"-- {name}", flush=True)
        return
    print(f"   {name}: {state} after {task['duration'] or 0:.1f} s", flush=True)
    if state == "failed":
        lines = _log(airflow, f"{run}/taskInstances/{name}/logs/{task['try_number']}?full_content=true")
        print(f"!! {name} failed; its log ends with:", *(f"   {line}" for line in lines), sep="\n", flush=True)


def _log(airflow: Airflow, path: str) -> list[str]:
    """The last lines that the job itself printed, or the reason why Airflow started no job."""
    events = [entry for entry in airflow.call(path)["content"] if isinstance(entry, dict)]
    said = [entry["event"] for entry in events if "SubprocessHook" in str(entry.get("logger"))]
    reasons = [each["exc_value"] for entry in events for each in entry.get("error_detail") or ()]
    return (said or reasons)[-LOG_LINES:]


def main() -> int:
    """Run and follow the day of the command line."""
    parser = argparse.ArgumentParser(prog="follow_run.py")
    parser.add_argument("ds", metavar="DS", help="data day, YYYY-MM-DD")
    parser.add_argument("--unless-done", action="store_true", help="leave a day alone that has succeeded")
    flags = parser.parse_args()
    home = Path(os.environ["AIRFLOW_HOME"])
    try:
        airflow = Airflow((home / "url").read_text().strip(), home)
        run_id = started_run(airflow, flags.ds, unless_done=flags.unless_done)
        if run_id is None:
            print(f"   {flags.ds} has run: nothing to do")
            return 0
        return 0 if follow(airflow, run_id) else 1
    except (OSError, urllib.error.HTTPError) as error:
        told = error.read().decode()[:500] if isinstance(error, urllib.error.HTTPError) else ""
        print(f"!! the running Airflow does not answer: {error} {told}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
