"""Pairs of jobs as real processes on one tiny lake, some killed at a random moment, and the tables afterwards.

The processes are forked from a server that has the libraries in memory, so that a pair takes seconds. Each has its own
process number, its own engine, and dies by SIGKILL.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from deployments import CONFIG
from jobs.lake.delta_files import arrow_batches, table_path, table_version
from schemas import EVENT_DAYS, INGEST_LOG, INTERACTIONS, ITEM_EMBEDDINGS, ITEMS, QUARANTINE, RUNS, USER_LTE
from tiny_clip import write_clip

FIRST, SECOND = "2020-03-01", "2020-03-02"
USER = "u1"
SETTINGS = """
[basis]
encoder = "open_clip"
weights = "{weights}"
[lte]
windows = ["60-0"]
[publish]
window = "60-0"
[autoencoder]
enabled = false
[ranker]
enabled = false
"""

# Metrics are left out: after a kill and a rerun they describe the work of the second run alone.
COMPARED = (INTERACTIONS, EVENT_DAYS, ITEMS, QUARANTINE, INGEST_LOG, ITEM_EMBEDDINGS, USER_LTE, RUNS)
# Vectors of one text differ in the last bits by the batch in which the text was encoded.
TOLERANCE = 1e-4

Job = tuple[str, ...]
INGEST = [("ingest", FIRST), ("ingest", SECOND)]
EMBED = [("embed_items", FIRST), ("embed_items", SECOND)]
AVERAGE: list[Job] = [("compute_lte", FIRST), ("compute_lte", SECOND)]
BY_HAND: list[Job] = [("erase", USER), ("maintain",)]

# For each state of a lake before the pair: the jobs that made the state, and the jobs that can run on it.
STATES: dict[str, tuple[Sequence[Job], Sequence[Job]]] = {
    "empty": ((), INGEST),
    "ingested": (INGEST, [*INGEST, *EMBED, *BY_HAND]),
    "embedded": ([*INGEST, *EMBED, *AVERAGE], [*INGEST, *EMBED, *AVERAGE, *BY_HAND]),
}

PRELOADED = ["pysail", "torch", "open_clip", "jobs.ingest", "jobs.embed_items", "jobs.compute_lte", "jobs.cli"]
TYPICAL_SECONDS = 4.0
LIMIT_SECONDS = 600.0


@dataclass(frozen=True)
class Pair:
    """Two jobs at once.

    Attributes:
        state: What the lake holds before.
        jobs: The two jobs.
        delay_seconds: How long after the first one the second one starts.
        kills_seconds: When each job is killed after its start; None where it runs to its end.
        wait_seconds: How long each job waits for the other one's lease.
    """

    state: str
    jobs: tuple[Job, Job]
    delay_seconds: float
    kills_seconds: tuple[float | None, float | None]
    wait_seconds: int


def draw(random_number: random.Random) -> Pair:
    """A random pair; one job in three is killed."""
    state = random_number.choice(["empty", "ingested", "ingested", "embedded"])
    jobs = random_number.choice(STATES[state][1]), random_number.choice(STATES[state][1])
    kills = [random_number.uniform(0, TYPICAL_SECONDS) if random_number.random() < 1 / 3 else None for _ in range(2)]
    return Pair(
        state=state,
        jobs=jobs,
        delay_seconds=random_number.choice([0.0, random_number.uniform(0, TYPICAL_SECONDS)]),
        kills_seconds=(kills[0], kills[1]),
        wait_seconds=random_number.choice([0, 120]),
    )


def _run(job: Job, config: str, log: str, wait_seconds: int) -> None:
    """What the process of a job does."""
    from jobs import cli
    from jobs.runtime.entry import run_job

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ["LTE_WAIT_SECONDS"] = str(wait_seconds)
    os.environ["RUST_LOG"] = "error"
    name, *arguments = job
    if name in ("erase", "maintain"):
        run_job(lambda: cli.dispatch([name, *arguments, "--config", config]))
    module = __import__(f"jobs.{name}", fromlist=["main"])
    run_job(lambda: module.main(["--config", config, "--ds", arguments[0]]))


class PairRunner:
    """Runs pairs in folders of their own, and knows what the tables hold after the same jobs one after the other."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._weights = write_clip(root / "clip")
        self._serial: dict[tuple[str, Job, Job], dict[str, list[dict[str, Any]]]] = {}
        self._n_folders = 0

    def run(self, pair: Pair) -> str:
        """Run a pair, then what was killed or refused again, and compare; returns how it went, for a person."""
        folder = self._copy_of(pair.state)
        logs = [folder / "job_0.log", folder / "job_1.log"]
        processes = self._both(pair, folder, logs)
        codes = [self._code(process) for process in processes]
        for number, (code, log) in enumerate(zip(codes, logs, strict=True)):
            self._require_clean(code, log, was_killed=pair.kills_seconds[number] is not None, pair=pair)
        again = [job for job, code in zip(pair.jobs, codes, strict=True) if code != 0]
        for job in again:
            self.must(job, folder)
        found = tables(folder / "lake")
        orders = [pair.jobs, pair.jobs[::-1]]
        if not any(is_same(found, self.serial(pair.state, *order)) for order in orders):
            problems = [difference(found, self.serial(pair.state, *order)) for order in orders]
            raise AssertionError(f"{pair}: exit codes {codes}; {' and '.join(problems)}; see {folder}")
        shutil.rmtree(folder)
        return f"{pair.state}: {' beside '.join(' '.join(job) for job in pair.jobs)}: exit codes {codes}"

    def _both(self, pair: Pair, folder: Path, logs: Sequence[Path]) -> list[ForkServerProcess]:
        import time

        started, processes = time.monotonic(), []
        moments = [(0.0, "start", 0), (pair.delay_seconds, "start", 1)]
        starts = (0.0, pair.delay_seconds)
        moments += [(starts[n] + at, "kill", n) for n, at in enumerate(pair.kills_seconds) if at is not None]
        for at, what, number in sorted(moments, key=lambda moment: (moment[0], moment[1] == "kill")):
            time.sleep(max(0.0, started + at - time.monotonic()))
            if what == "start":
                processes.append(self._start(pair.jobs[number], folder, logs[number], pair.wait_seconds))
            else:
                processes[number].kill()
        return processes

    def _start(self, job: Job, folder: Path, log: Path, wait_seconds: int) -> ForkServerProcess:
        arguments = (job, str(folder / "deployment.toml"), str(log), wait_seconds)
        process = self._context.Process(target=_run, args=arguments)
        process.start()
        return process

    def _code(self, process: ForkServerProcess) -> int | None:
        process.join(LIMIT_SECONDS)
        if process.exitcode is None:
            process.kill()
            raise AssertionError("a job hangs")
        return process.exitcode

    @staticmethod
    def _require_clean(code: int | None, log: Path, *, was_killed: bool, pair: Pair) -> None:
        """A job exits with 0, or is refused in one sentence because the other job runs, or was killed."""
        text = log.read_text() if log.exists() else ""
        is_refused = code == 1 and "another run of" in text
        if "Traceback" in text or not (code == 0 or is_refused or (was_killed and code == -9)):
            raise AssertionError(f"{pair}: exit code {code}:\n{text}")

    def must(self, job: Job, folder: Path) -> None:
        """Run a job alone, to its end."""
        log = folder / "alone.log"
        if code := self._code(self._start(job, folder, log, 0)):
            raise AssertionError(f"{job} alone: exit code {code}:\n{log.read_text()}")

    def serial(self, state: str, first: Job, second: Job) -> dict[str, list[dict[str, Any]]]:
        """Tables after one job and then the other."""
        if (state, first, second) not in self._serial:
            folder = self._copy_of(state)
            self.must(first, folder)
            self.must(second, folder)
            self._serial[state, first, second] = tables(folder / "lake")
            shutil.rmtree(folder)
        return self._serial[state, first, second]

    def _copy_of(self, state: str) -> Path:
        made = self._root / state
        if not made.exists():
            made.mkdir()
            text = CONFIG.replace('name = "test"', 'name = "pairs"') + SETTINGS.format(weights=self._weights)
            (made / "deployment.toml").write_text(text)
            write_landing(made / "landing")
            for job in STATES[state][0]:
                self.must(job, made)
        self._n_folders += 1
        folder = self._root / f"pair_{self._n_folders}"
        shutil.copytree(made, folder)
        return folder


def write_landing(folder: Path) -> None:
    """Two landing days: three users, and items of which the second day brings two new ones."""
    events = {FIRST: [("u1", "i1"), ("u2", "i2"), ("u1", "i3")], SECOND: [("u1", "i4"), ("u3", "i1"), ("u3", "i5")]}
    titles = {FIRST: ["i1", "i2", "i3"], SECOND: ["i4", "i5"]}
    for day, pairs in events.items():
        rows = [
            {"user_id": user, "item_id": item, "event_ts": f"{day}T0{hour}:00:00Z", "interaction_type": "click"}
            for hour, (user, item) in enumerate(pairs)
        ]
        rows.append({"user_id": "", "item_id": "i1", "event_ts": f"{day}T09:00:00Z", "interaction_type": "click"})
        _write_lines(folder / "interactions" / f"ds={day}" / "events.jsonl", rows)
        items = [{"item_id": item, "title": f"dress number {item}"} for item in titles[day]]
        _write_lines(folder / "items" / f"ds={day}" / "items.jsonl", items)


def _write_lines(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _sorted_by(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: [str(row[name]) for name in names])


def tables(lake: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of the compared tables, sorted by their keys."""
    found = {}
    for table in COMPARED:
        path = table_path(str(lake), table)
        batches = arrow_batches(path) if table_version(path) is not None else ()
        rows = [row for batch in batches for row in batch.to_pylist()]
        plain = [name for name in table.columns if not any(isinstance(row[name], float | list) for row in rows)]
        found[table.name] = _sorted_by(plain, rows)
    return found


def is_same(found: dict[str, list[dict[str, Any]]], expected: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether two lakes hold the same rows; floats to :data:`TOLERANCE`."""
    return difference(found, expected) == ""


def difference(found: dict[str, list[dict[str, Any]]], expected: dict[str, list[dict[str, Any]]]) -> str:
    """The first table, row and column that differ; empty where none does."""
    for name, rows in expected.items():
        if len(found[name]) != len(rows):
            return f"table {name}: {len(found[name])} rows, {len(rows)} expected"
        for row, other in zip(found[name], rows, strict=True):
            for column, value in other.items():
                if not _equal(row[column], value):
                    return f"table {name}, column {column}: {row[column]!r}, expected {value!r}"
    return ""


def _equal(value: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return len(value) == len(expected) and all(map(_equal, value, expected))
    if isinstance(expected, float):
        return math.isclose(value, expected, abs_tol=TOLERANCE)
    return bool(value == expected)
