import logging
import subprocess
import sys

import pytest

from jobs.runtime.progress import say, show_progress, warn
from jobs.runtime.text import MAX_LINE_BYTES


def test_a_job_tells_its_progress_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say("ingest", "ds 2017-03-04: 2 files")
    warn("ingest", "no files")
    told = capsys.readouterr()
    assert told.err == "ingest: ds 2017-03-04: 2 files\ningest: WARNING: no files\n"
    assert told.out == ""


def test_a_line_is_one_line_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    say("ingest", "100 % of \x1b[2J\nforged: line\u202e \udcff " + "x" * 10_000)
    [line] = capsys.readouterr().err.splitlines(keepends=True)
    assert line.startswith(r"ingest: 100 % of \x1b[2J\nforged: line\u202e \xff xxx")
    assert len(line.encode()) <= MAX_LINE_BYTES


def test_a_secret_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    say("train_ranker", "tracking.uri postgresql://me:hush@db/x does not answer")
    assert capsys.readouterr().err == "train_ranker: tracking.uri postgresql://***@db/x does not answer\n"


def test_the_loggers_of_our_rooms_are_shown_once_and_others_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/any/where/publish_snapshot.py"])
    show_progress()
    show_progress()
    logging.getLogger("jobs.store.publish").info("version %s stays", "3")
    logging.getLogger("jobs.store.publish").debug("not shown")
    logging.getLogger("elsewhere").info("not shown")
    try:
        raise OSError("no\nroute")
    except OSError:
        logging.getLogger("jobs.store.publish").exception("cannot connect")
    assert capsys.readouterr().err == (
        "publish_snapshot: version 3 stays\npublish_snapshot: ERROR: cannot connect: OSError: no\\nroute\n"
    )


def test_a_reader_of_standard_error_that_leaves_does_not_stop_the_job() -> None:
    code = "from jobs.runtime.progress import say; say('a', 'b'); print('done')"
    shell = f'{sys.executable} -c "{code}" 2>&-'
    done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"
