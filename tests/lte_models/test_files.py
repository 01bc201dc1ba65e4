"""What stands at a path is whole or as it was, whatever happens to its writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lte_models.files import LEFTOVER_SECONDS, replacing, write_atomically


def test_an_error_leaves_the_old_content_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    write_atomically(path, "old ü")
    with pytest.raises(UnicodeEncodeError), replacing(path) as unfinished:
        unfinished.write_bytes(b"ne" + "\ud800".encode())
    assert path.read_bytes() == "old ü".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_takes_its_place_as_a_whole_and_never_over_another(tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    with replacing(folder) as unfinished:
        (unfinished / "items").mkdir(parents=True)
        (unfinished / "items" / "a").write_text("1")
        assert not folder.exists()
    assert [str(path.relative_to(tmp_path)) for path in sorted(folder.rglob("*"))] == ["shop/items", "shop/items/a"]
    with pytest.raises(OSError, match="not empty"), replacing(folder) as unfinished:
        unfinished.mkdir()
    assert (folder / "items" / "a").read_text() == "1"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_killed_writer_leaves_the_old_content_and_its_leftover_goes_later(tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    path.write_text("old")
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom lte_models.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as unfinished:\n"
        "    unfinished.write_text('new')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (leftover,) = [each for each in tmp_path.iterdir() if each != path]
    write_atomically(path, "second")
    assert leftover.exists()  # a living writer's file looks the same
    old = leftover.stat().st_mtime - LEFTOVER_SECONDS - 60
    os.utime(leftover, (old, old))
    write_atomically(path, "third")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"index.html": "third"}
