"""Runs trainings in parallel worker processes, within a budget of minutes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from jobs.config.models import ExperimentSection
from jobs.experiments.training import run_work
from jobs.experiments.work import result_file
from jobs.runtime import progress


class ExperimentError(RuntimeError):
    """An experiment could not be finished; the message says what is left."""


def say(text: str) -> None:
    """Log progress, one log line per line of ``text``; standard output is only for results."""
    for line in text.splitlines():
        progress.say("experiment", line)


class NamedWork(Protocol):
    """One piece of work whose result is kept in a folder under a name."""

    @property
    def folder(self) -> Path:
        """Folder of the results."""

    @property
    def result(self) -> str:
        """Name of the result."""


def read_result(work: NamedWork) -> Mapping[str, npt.NDArray[Any]]:
    """Arrays of a finished piece of work."""
    with np.load(result_file(work.folder, work.result)) as found:
        return dict(found)


@contextmanager
def worker_pool(settings: ExperimentSection) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, as many as ``experiment.parallel``."""
    # Workers are spawned, not forked: a fork would copy the locks of the engine's threads in an unknown state.
    context = get_context("spawn")
    with ProcessPoolExecutor(settings.parallel, context, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        yield pool


def _end_with(parent: int) -> None:
    """End this worker when its parent has ended, so that a killed experiment leaves no process."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@dataclass
class Runner:
    """Runs trainings in a pool until all are done or the time is used up.

    Attributes:
        pool: Pool of worker processes.
        settings: Holds the budget.
        started: Start of the call, in seconds of the monotonic clock.
        is_fresh: Whether finished trainings run again.
        run_one: Does one piece of work in a worker process; returns a line for the log.
    """

    pool: ProcessPoolExecutor
    settings: ExperimentSection
    started: float
    is_fresh: bool
    run_one: Callable[[Any], str] = run_work

    def run(self, works: Sequence[NamedWork]) -> None:
        """Run the trainings that are not finished.

        Raises:
            ExperimentError: The budget is used up; finished trainings are kept.
        """
        left = [work for work in works if self.is_fresh or not result_file(work.folder, work.result).exists()]
        say(f"  {len(works) - len(left)} of {len(works)} trainings are finished already")
        pending = {self.pool.submit(self.run_one, work) for work in left}
        n_done, began = 0, time.monotonic()
        try:
            while pending:
                done, pending = wait(pending, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    n_done += 1
                    self._report(future, n_done, len(left), began)
                self._check_time(len(pending))
        except BaseException:
            self.pool.shutdown(wait=False, cancel_futures=True)
            raise

    def _report(self, future: Future[str], n_done: int, n_all: int, began: float) -> None:
        line = future.result()
        minutes = (time.monotonic() - began) / n_done * (n_all - n_done) / 60
        say(f"  [{n_done}/{n_all}] {line}; about {minutes:.1f} minutes left")

    def _check_time(self, n_left: int) -> None:
        if n_left and time.monotonic() - self.started > self.settings.budget_minutes * 60:
            raise ExperimentError(
                f"the budget of {self.settings.budget_minutes:g} minutes is used up with {n_left} trainings left; what "
                "is finished is kept: call again to go on, or raise --budget-minutes"
            )
