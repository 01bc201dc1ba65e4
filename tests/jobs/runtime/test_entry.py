import errno
import os
import sqlite3
import subprocess
import sys

import pytest

from jobs.config.window import ConfigError
from jobs.runtime.entry import run_job
from jobs.runtime.faults import sentence_of


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[str | int | None, str]:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run_job(main)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device: '/lake/x': free disk space"),
        (errno.EROFS, "Read-only file system: '/lake/x': the file system is read-only"),
        (errno.EACCES, "Permission denied: '/lake/x': this account may not"),
    ],
)
def test_a_fault_of_the_machine_is_one_sentence(number: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = ended(OSError(number, os.strerror(number), "/lake/x"), capsys)
    assert (code, told.count("\n")) == (1, 1)
    assert words in told
    # A library that wraps it in an error of its own.
    wrapped = RuntimeError("commit failed")
    wrapped.__cause__ = OSError(number, os.strerror(number), "/lake/x")
    code, told = ended(wrapped, capsys)
    assert (code, told.count("\n")) == (1, 1)
    assert words in told


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (sqlite3.OperationalError("database or disk is full"), "database or disk is full: free disk space"),
        (sqlite3.OperationalError("attempt to write a readonly database"), "readonly database: the file system is"),
        (RuntimeError("Job aborted:\n  IO error: /x: Permission denied (os error 13)\n  at a\n  at b"),
         "IO error: /x: Permission denied (os error 13): this account may not"),
    ],
)  # fmt: skip
def test_a_fault_in_the_words_of_a_library(error: Exception, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = ended(error, capsys)
    assert (code, told.count("\n")) == (1, 1)
    assert words in told


def test_an_error_of_our_own_is_one_sentence_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(ConfigError("tracking.uri: expected x, got 'http://me:hush@h/'"), capsys) == (
        2, "ConfigError: tracking.uri: expected x, got 'http://***@h/'\n",
    )  # fmt: skip


def test_a_defect_keeps_its_trace_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = ended(KeyError("redis://me:hush@h/\x1b[2J"), capsys)
    assert code == 1
    assert "Traceback" in told
    assert "test_entry.py" in told
    assert "hush" not in told
    assert "\x1b" not in told


def test_other_errors_of_files_are_defects() -> None:
    assert sentence_of(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert sentence_of(ValueError("Permission")) is None


def test_an_interrupt_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(KeyboardInterrupt(), capsys) == (130, "")


def test_the_code_of_a_job_that_exits_stays(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(SystemExit(3), capsys) == (3, "")


PRINTS = "from jobs.runtime.entry import run_job; run_job(lambda: [print('x' * 99) for _ in range({n})] and None)"


@pytest.mark.parametrize("n", [1, 100_000])  # noticed at the last flush, and in the middle
def test_a_broken_pipe_is_silent(n: int) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", PRINTS.format(n=n)], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_standard_output_is_no_fault() -> None:
    shell = f'{sys.executable} -c "{PRINTS.format(n=1)}" >&-'
    done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("n", [1, 100_000])
def test_a_full_disk_behind_standard_output_is_one_sentence(n: int) -> None:
    shell = f'{sys.executable} -c "{PRINTS.format(n=n)}" >/dev/full'
    done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
