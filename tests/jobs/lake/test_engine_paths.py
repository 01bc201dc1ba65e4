"""A lake in a folder whose name Sail escapes twice: blanks, umlauts and signs."""

import os
from datetime import date
from pathlib import Path

import pytest

from deployments import CONFIG
from jobs.config.loading import load_deployment
from jobs.ingest import main as ingest
from jobs.lake.delta_files import PLAIN_PATH, engine_folder
from jobs.lake.lake import open_lake
from jobs.lake.predicates import TableError
from jobs.lake.reader import lake_reader
from schemas import INTERACTIONS, METRICS

DAY = date(2024, 2, 29)


def test_a_plain_folder_and_an_address_stay_as_they_are() -> None:
    assert engine_folder("/srv/lake-1/x_y.z") == "/srv/lake-1/x_y.z"
    assert engine_folder("s3://bücket/a b") == "s3://bücket/a b"


def test_the_link_has_a_plain_name_and_leads_to_the_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    first, second = (engine_folder(str(tmp_path / name)) for name in ("größe x", "größe y"))
    assert first != second
    assert PLAIN_PATH.fullmatch(first)
    assert Path(first).readlink() == tmp_path / "größe x"
    assert engine_folder(str(tmp_path / "größe x")) == first
    Path(first).unlink()
    Path(first).symlink_to(tmp_path)  # left by an older lake
    assert Path(engine_folder(str(tmp_path / "größe x"))).readlink() == tmp_path / "größe x"


def test_a_folder_of_links_that_others_can_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"lte-lakes-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(TableError, match="expected a folder that only user"):
        engine_folder(str(tmp_path / "größe"))


@pytest.mark.parametrize("name", ["größe x", 'a%b c"d{e}'])
def test_a_day_is_ingested_and_read_in_such_a_folder(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    landing = home / "landing" / "interactions" / f"ds={DAY}"
    landing.mkdir(parents=True)
    (landing / "a.csv").write_text(
        "user_id,item_id,event_ts,interaction_type\nann,i1,2024-02-29T10:00:00Z,click\nbob,i1,2024-02-29T11:00:00Z,click\n"
    )
    file = home / "deployment.toml"
    file.write_text(CONFIG)
    ingest(["--config", str(file), "--ds", str(DAY)])
    deployment = load_deployment(file, environ={})
    with open_lake(deployment, "test") as lake:
        assert sorted(row["user_id"] for row in lake.read(INTERACTIONS).collect()) == ["ann", "bob"]  # the engine
        lake.record_metrics(DAY, "test", {"n": 1.0})
    assert sorted(row["user_id"] for row in lake_reader(deployment).rows(INTERACTIONS)) == ["ann", "bob"]  # Arrow
    assert [row["value"] for row in lake_reader(deployment).rows(METRICS, where={"job": "test"})] == [1.0]
    # Nothing was written beside the folder, under an escaped name.
    assert [path.name for path in tmp_path.iterdir()] == [name]
