"""The generated pages of docs/reference are those that the code makes now."""

from __future__ import annotations

import os
import subprocess
import sys

from checkout import ROOT


def test_the_pages_are_those_of_the_code() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LTE_")}
    command = [sys.executable, "scripts/reference_pages.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
