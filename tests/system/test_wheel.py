"""The wheel holds all that runs: without the checkout beside it, ``lte`` starts and finds its data files."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from checkout import ROOT

PACKAGES = ("jobs", "lte_models", "schemas")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools would take what an earlier build has left in ``build/``."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-c", BUILD, str(folder)]
    done = subprocess.run(command, cwd=source, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / done.stdout.splitlines()[-1]


def test_the_wheel_holds_every_file_of_the_packages_and_no_test(wheel: Path) -> None:
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert sorted(expected - found) == []
    assert sorted(found - expected) == []
    assert any(name.endswith(".j2") for name in found)
    assert any(name.endswith(".safetensors") for name in found)


def test_the_wheel_alone_runs_lte(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True)
    # The requirements are those of this environment. A path in a .pth file is searched, but the .pth files in
    # it are not read: the editable installation of the checkout stays out.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = "import jobs, lte_models, schemas; print(jobs.__file__, lte_models.__file__, schemas.__file__)"
    files = subprocess.run([python, "-c", where], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert [Path(file).is_relative_to(site) for file in files.split()] == [True, True, True]
    done = subprocess.run([home / "bin" / "lte", "--help"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("usage: lte")
