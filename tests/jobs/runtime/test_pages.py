"""Marks of ownership: what a full disk or a kill leaves of a mark never stops a deployment."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.runtime.pages import OWNER, claim, read_owner


def named(deployment: Deployment, name: str) -> Deployment:
    return replace(deployment, deployment=replace(deployment.deployment, name=name))


def test_a_folder_belongs_to_the_first_deployment(deployment: Deployment, tmp_path: Path) -> None:
    claim(tmp_path / "pages", deployment, "paths.reports")
    claim(tmp_path / "pages", deployment, "paths.reports")
    with pytest.raises(ConfigError, match=r"paths\.reports = .* of deployment 'test', not of 'other'.*delete"):
        claim(tmp_path / "pages", named(deployment, "other"), "paths.reports")
    assert [path.name for path in (tmp_path / "pages").iterdir()] == [OWNER]


@pytest.mark.parametrize("left", [b"", b"\0\0\0\0", b"\n", b"\xff\xfe"])
def test_an_empty_or_torn_mark_is_written_again_and_said(
    deployment: Deployment, tmp_path: Path, caplog: pytest.LogCaptureFixture, left: bytes
) -> None:
    (tmp_path / OWNER).write_bytes(left)
    claim(tmp_path, deployment, "paths.reports")
    assert (tmp_path / OWNER).read_text() == "test"
    assert f"{OWNER} is empty" in caplog.text
    caplog.clear()
    claim(tmp_path, deployment, "paths.reports")
    assert caplog.text == ""


def test_a_disk_without_room_leaves_no_mark(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        claim(tmp_path, deployment, "paths.reports")
    assert read_owner(tmp_path) is None
    monkeypatch.undo()
    claim(tmp_path, deployment, "paths.reports")
    assert read_owner(tmp_path) == "test"


def test_of_deployments_that_claim_a_folder_at_once_one_wins(deployment: Deployment, tmp_path: Path) -> None:
    refused: list[str] = []

    def race(name: str) -> None:
        try:
            claim(tmp_path, named(deployment, name), "paths.reports")
        except ConfigError:
            refused.append(name)

    names = [f"shop-{number}" for number in range(8)]
    threads = [threading.Thread(target=race, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted([*refused, str(read_owner(tmp_path))]) == names
