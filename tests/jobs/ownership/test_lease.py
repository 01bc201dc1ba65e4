"""One run writes a lake: real processes take, keep, share, lose and leave the lease."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import obstore
import pytest
from obstore.store import MemoryStore

from jobs import cli
from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.ownership import lease as leases
from jobs.ownership.lease import LeaseHeldError, LeaseLostError, break_lease, hold_lease, holders
from jobs.ownership.mark import claim_lake, lake_owner, require_own_lake
from jobs.ownership.objects import Objects, ObjectStoreError, objects_of

# Holds the lease until its standard input is closed; says so when it has the lease.
HOLD = """
import sys
from pathlib import Path
from jobs.config.loading import load_deployment
from jobs.ownership.lease import hold_lease
from jobs.runtime.entry import run_job
from datetime import date
def main():
    with hold_lease(load_deployment(Path(sys.argv[1])), "ingest", date(2020, 1, 2)):
        print("held", flush=True)
        sys.stdin.read()
run_job(main)
"""


def start(config: Path, **environ: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    environment = {**os.environ, **environ}
    command = [sys.executable, "-c", HOLD, str(config)]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


@contextmanager
def holding(config: Path, **environ: str) -> Iterator[subprocess.Popen[str]]:
    process = start(config, **environ)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n", process.communicate()[1]
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    error = process.communicate(timeout=120)[1]
    return process.returncode, error


def test_a_second_run_is_refused_with_exit_1_and_says_who_runs(deployment_file: Path) -> None:
    with holding(deployment_file) as first:
        code, error = ended(start(deployment_file))
        assert code == 1
        assert f"another run of ds=2020-01-02 (ingest) by {leases._account()}@" in error
        assert f"process {first.pid}, since 20" in error
        assert "Traceback" not in error
        assert "lte lease --break" in error


def test_the_lease_of_a_killed_run_is_dead_at_once(deployment_file: Path, deployment: Deployment) -> None:
    with holding(deployment_file) as first:
        first.send_signal(signal.SIGKILL)  # not waited for: the process stays as a zombie
        deadline = time.monotonic() + 60
        while leases._start_of(first.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        with hold_lease(deployment, "retry") as mine:
            mine.check()
            assert mine.generation == 2


def test_a_run_waits_for_another_where_it_is_told_to(deployment_file: Path, deployment: Deployment) -> None:
    with hold_lease(deployment, "lte run"):
        environ = {"LTE_WAIT_SECONDS": "120", "LTE_LEASE": ""}  # not a task of this process's run
        second = start(deployment_file, **environ)
        time.sleep(2)
        assert second.poll() is None
    assert second.stdout is not None
    assert second.stdout.readline() == "held\n"
    assert ended(second)[0] == 0


def test_tasks_share_the_lease_of_their_run_and_keep_others_away_after_its_death(
    deployment_file: Path, deployment: Deployment
) -> None:
    with holding(deployment_file) as run:
        with pytest.raises(LeaseHeldError):
            hold_lease(deployment, "other").__enter__()
        [(_, holder, _)] = holders(objects_of(deployment.paths.lake))
        token = f"{deployment.paths.lake}|1:{holder.token}"
        with holding(deployment_file, LTE_LEASE=token) as task:
            run.kill()
            run.wait()
            with pytest.raises(LeaseHeldError, match=f"process {task.pid},"):  # a zombie task of the dead run
                hold_lease(deployment, "other").__enter__()
            task.kill()
            task.wait()
            with hold_lease(deployment, "other"):
                code, error = ended(start(deployment_file, LTE_LEASE=token))  # a task that starts too late
                assert code == 1
                assert "does not hold the lake any more" in error


def test_a_broken_lease_stops_its_run_at_the_next_write(deployment: Deployment) -> None:
    objects = objects_of(deployment.paths.lake)
    with hold_lease(deployment, "ingest") as first:
        assert [holder.job for holder in break_lease(objects)] == ["ingest"]
        with pytest.raises(LeaseLostError, match="nothing more is written"):
            first.check()
        assert holders(objects) == []
    assert break_lease(objects) == []


def test_one_process_may_take_its_own_lease_again(deployment: Deployment) -> None:
    with hold_lease(deployment, "lte run") as outer:
        with hold_lease(deployment, "ingest") as inner:
            assert inner is outer
        outer.check()
    assert "LTE_LEASE" not in os.environ


def test_a_silent_run_of_another_machine_is_dead_after_the_time_that_the_run_itself_keeps(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(leases._myself("ingest", date(2020, 1, 2), "t"), machine="elsewhere", pid=1)
    assert other.is_alive(leases.EXPIRES_SECONDS - 1)
    assert not other.is_alive(leases.EXPIRES_SECONDS)
    with hold_lease(deployment, "ingest") as mine:
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + leases.EXPIRES_SECONDS + 1)
        with pytest.raises(LeaseLostError, match=r"30[0-9] s old"):
            mine.check()


def test_a_process_with_the_number_of_a_dead_one_is_not_the_dead_one() -> None:
    me = leases._myself("ingest", None, "t")
    assert me.is_alive(1e9)
    assert not replace(me, started="1").is_alive(0)


def test_of_many_processes_at_once_one_gets_the_lease(deployment_file: Path) -> None:
    started = [start(deployment_file) for _ in range(6)]
    try:
        refused = [process for process in started if process.stdout is not None and process.stdout.readline() == ""]
        assert len(refused) == 5
        assert {ended(process)[0] for process in refused} == {1}
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_an_object_store_keeps_a_lease_by_a_conditional_write(deployment: Deployment) -> None:
    objects = Objects("memory://lake", MemoryStore())
    claim_lake(objects, deployment)
    assert lake_owner(objects) == "test"
    first = leases._take(objects, "ingest", None)
    with pytest.raises(LeaseHeldError):
        leases._take(objects, "erase", None)
    assert not objects.create(first.name, b"{}")
    first.end()
    second = leases._take(objects, "erase", None)
    assert [holder.job for _, holder, _ in holders(objects)] == ["erase"]
    second.end()


def test_a_file_that_is_no_lease_is_named(deployment: Deployment) -> None:
    objects = objects_of(deployment.paths.lake)
    obstore.put(objects.store, "_lease/00000000000000000001.json", b"{}")
    with pytest.raises(ObjectStoreError, match=r"file _lease/0+1\.json: expected a lease"):
        hold_lease(deployment, "ingest").__enter__()


@pytest.mark.parametrize("seconds", ["-1", "soon", "inf", "nan"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(
    seconds: str, deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTE_WAIT_SECONDS", seconds)
    with pytest.raises(ConfigError, match=r"LTE_WAIT_SECONDS = .*: expected seconds, 0 or more"):
        hold_lease(deployment, "ingest").__enter__()


def test_a_lake_belongs_to_one_deployment(deployment: Deployment) -> None:
    require_own_lake(deployment)  # nobody's yet, and asking makes no mark
    assert not Path(deployment.paths.lake, ".deployment").exists()
    with hold_lease(deployment, "ingest"):
        pass
    other = replace(deployment, deployment=replace(deployment.deployment, name="other"))
    for refused in (lambda: require_own_lake(other), lambda: hold_lease(other, "ingest").__enter__()):
        with pytest.raises(ConfigError, match="belongs to deployment 'test', not to 'other'"):
            refused()
    Path(deployment.paths.lake, ".deployment").write_text("")  # a full disk or a kill left this
    with hold_lease(other, "ingest"):
        pass
    assert Path(deployment.paths.lake, ".deployment").read_text() == "other"


def test_a_uri_without_conditional_writes_is_refused() -> None:
    with pytest.raises(ConfigError, match="hdfs://name/lake': expected a folder or a URI"):
        objects_of("hdfs://name/lake")


def test_the_files_of_a_lease_are_json_without_personal_data(deployment: Deployment) -> None:
    with hold_lease(deployment, "lte erase"):
        content = json.loads(next(Path(deployment.paths.lake, "_lease").iterdir()).read_text())
    assert set(content) == {"is_held", "job", "ds", "who", "machine", "pid", "started", "since", "token"}


def test_commands_are_refused_beside_a_run_of_another_machine_until_its_lease_is_broken(
    deployment_file: Path, deployment: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = objects_of(deployment.paths.lake)
    other = replace(leases._myself("ingest", date(2020, 1, 2), "t"), machine="elsewhere", who="cook@kitchen", pid=7)
    objects.replace(leases._name(1), leases._content(other))

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["lte", *arguments, "--config", str(deployment_file)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    for arguments in (["run", "2020-01-02"], ["erase", "u1"], ["maintain"], ["repair"]):
        code, text = command(*arguments)
        assert code == 1
        assert "another run of ds=2020-01-02 (ingest) by cook@kitchen, process 7, since 20" in text
    assert command("lease")[1].startswith("run of ds=2020-01-02 (ingest) by cook@kitchen")
    assert command("lease", "--break")[1].startswith("ended: run of ds=2020-01-02")
    assert command("lease") == (0, "no run writes the lake\n")
    assert command("repair") == (
        1,
        "BasisError: table item_embeddings: not written yet, so there is nothing to repair\n",
    )
    deployment_file.write_text(deployment_file.read_text().replace('name = "test"', 'name = "other"'))
    code, text = command("check-config")
    assert code == 2
    assert "belongs to deployment 'test'" in text


class Bucket(BaseHTTPRequestHandler):
    """As much of S3 as a conditional write needs."""

    content: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_refused = self.headers.get("If-None-Match") == "*" and self.path in self.content
        if not is_refused:
            self.content[self.path] = body
        self.answer(412 if is_refused else 200)

    def do_GET(self) -> None:
        body = self.content.get(self.path)
        self.answer(404 if body is None else 200, body or b"")

    def answer(self, code: int, body: bytes = b"") -> None:
        self.send_response(code)
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 02 Jan 2020 00:00:00 GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


def test_s3_is_asked_for_a_conditional_write(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings = {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "REGION": "us-east-1", "ALLOW_HTTP": "true"}
    settings["ENDPOINT_URL"] = f"http://127.0.0.1:{server.server_port}"
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    try:
        objects = objects_of("s3://bucket/lake")
        assert objects.create(".deployment", b"mine")
        assert not objects.create(".deployment", b"yours")
        assert lake_owner(objects) == "mine"
        assert objects.read("other") is None
    finally:
        server.shutdown()
        server.server_close()
