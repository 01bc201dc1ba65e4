"""Two calls of lte experiment on one lake: one after the other, also if the first one is killed."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs.config.loading import load_deployment
from jobs.experiment import alone
from jobs.registry.bundles import ModelError

FIRST_CALL = """
import sys
from pathlib import Path
from jobs.config.loading import load_deployment
from jobs.experiment import alone
with alone(load_deployment(Path(sys.argv[1]), environ={})):
    print("works", flush=True)
    sys.stdin.read()
"""


def test_a_second_call_waits_for_the_first_and_goes_on_after_its_kill(
    deployment_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = load_deployment(deployment_file, environ={})
    command = [sys.executable, "-c", FIRST_CALL, str(deployment_file)]
    works = threading.Event()

    def second() -> None:
        with alone(deployment):
            works.set()

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout
        assert first.stdout.readline() == "works\n"
        thread = threading.Thread(target=second)
        thread.start()
        assert not works.wait(0.5)
        first.kill()
    thread.join(timeout=60)
    assert works.is_set()
    assert "another call works on this lake: waiting for its end" in capsys.readouterr().err


def test_a_lake_that_is_no_folder_is_refused(deployment_file: Path) -> None:
    deployment = load_deployment(deployment_file, environ={"LTE_PATHS__LAKE": "s3://bucket/lake"})
    with pytest.raises(ModelError, match="mounted folder"), alone(deployment):
        pass
