import os
import re
import shutil
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest

from checkout import ROOT
from jobs.config.loading import load_deployment
from jobs.config.window import ConfigError, LteWindow
from jobs.runtime.code_version import code_version
from jobs.runtime.flags import parse_config

MINIMAL = """
[deployment]
name = "shop"
[paths]
landing = "in"
lake = "s3://bucket/lake"
online_store = "live"
reports = "/srv/reports"
data_docs = "docs"
"""


def load(tmp_path: Path, more: str = "", **environ: str):
    path = tmp_path / "shop.toml"
    path.write_text(MINIMAL + more)
    return load_deployment(path, environ)


def test_paths_are_relative_to_the_file_and_uris_stay(tmp_path: Path) -> None:
    paths = load(tmp_path).paths
    assert (paths.landing, paths.lake, paths.reports) == (str(tmp_path / "in"), "s3://bucket/lake", "/srv/reports")


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    settings = {
        "LTE_LTE__WINDOWS": "365-60, 365-0",
        "LTE_ENGINE__MASTER": "local[2]",
        "LTE_INTERACTIONS__EARLIEST": "2016-05-01",
        "LTE_GATES__MAX_UNKNOWN_SHARE": "0.5",
        "LTE_DRIFT__OFFSETS_DAYS": "1,7",
        "LTE_RANKER__ENABLED": "false",
        "LTE_CONFIG": "named by scripts, no setting",
        "PATH": "/bin",
    }
    found = load(tmp_path, '[engine]\nmaster = "sail"\n', **settings)
    assert found.lte.windows == ("365-60", "365-0")
    assert found.engine.master == "local[2]"
    assert found.interactions.earliest == date(2016, 5, 1)
    assert found.gates.max_unknown_share == 0.5
    assert found.drift.offsets_days == (1, 7)
    assert (found.ranker.enabled, found.autoencoder.enabled) == (False, True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('[engine]\nmastr = "sail"', r"engine\.mastr = 'sail': unknown key; known are master, "),
        ("[engines]\n", r"engines = \{\}: unknown section; known are deployment, paths"),
        ('[engine]\nmaster = "flink"', r"engine\.master = 'flink': use sail, local"),
        ('[engine]\npartitions = "4"', r"engine\.partitions = '4': int is wanted"),
        ("[engine]\npartitions = true", r"engine\.partitions = True: int is wanted"),
        ("[engine]\npartitions = 0", r"engine\.partitions = 0: at least 1"),
        ('[lte]\nwindows = ["60-365"]', r"lte\.windows = '60-365': the older end comes first"),
        ('[lte]\nwindows = ["60-60"]', r"lte\.windows = '60-60': the older end comes first"),
        ('[lte]\nwindows = ["-365-60"]', r"lte\.windows = '-365-60': write the days"),
        ("[lte]\nwindows = []", r"lte\.windows = \(\): at least one window"),
        ('[lte]\nmethods = ["median"]', r"lte\.methods = \('median',\)"),
        ("[lte]\nhalf_life_days = 0", r"lte\.half_life_days = 0\.0: above 0"),
        ("[interactions]\nmax_bad_share = 2", r"interactions\.max_bad_share = 2\.0: between 0 and 1"),
        ("[interactions]\nearliest = 5", r"interactions\.earliest = 5: date is wanted"),
        ("[interactions]\ntypes = []", r"interactions\.types = \(\)"),
        ('[publish]\nwindow = "180-30"', r"publish\.window = '180-30': not among lte\.windows \['365-60'\]"),
        ('[publish]\nstore = "memcached"', r"publish\.store = 'memcached': use lmdb or redis"),
        ('[basis]\nencoder = "bert"', r"basis\.encoder = 'bert': use minilm or open_clip"),
        ("[drift]\noffsets_days = [0]", r"drift\.offsets_days = \(0,\): whole days up to 3650"),
        ("[drift]\noffsets_days = [5, 7]", r"drift\.offsets_days = \(5, 7\): whole days .*, 1 among them"),
        ("[drift]\noffsets_days = []", r"drift\.offsets_days = \(\): whole days"),
        ("[drift]\noffsets_days = [1, 100000]", r"drift\.offsets_days = \(1, 100000\): whole days up to 3650"),
        ("[experiment]\ndim = 30", r"experiment\.dim = 30: a multiple of the 4 heads"),
        ("[[lte]]\n", r"lte = \[\{\}\]: a table is wanted: \[lte\]"),
        ("[retention]\nrollback_days = -1", r"retention\.rollback_days = -1: 0 or more"),
        (
            '[autoencoder]\nwindow = "365-0"',
            r"autoencoder\.window = '365-0': not among lte\.windows .* autoencoder\.enabled = false",
        ),
        (
            '[lte]\nmethods = ["recency"]\n[publish]\nmethod = "recency"',
            r"lte\.methods = \['recency'\]: the autoencoder needs uniform",
        ),
        ('[ranker]\nmethod = "recency"', r"ranker\.method = 'recency': publish\.method differs"),
        (
            '[lte]\ncount = "distinct"',
            r"lte\.count = 'distinct': a ranker with ranker\.lte = 'prefix_token' is trained",
        ),
        ("[ranker]\nlagged = false", r"ranker\.lagged = False: the ranker reads LTEs of window 365-0"),
        ("lte = 5", r"paths\.lte = 5: unknown key"),  # belongs to the section above it
        ("[gates", r"shop\.toml: Expected"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, more)


def test_a_value_where_a_section_is_wanted_is_named(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text('engine = "sail"\n')
    with pytest.raises(ConfigError, match=r"engine = 'sail': a table is wanted: \[engine\]"):
        load_deployment(path, environ={"LTE_ENGINE__PARTITIONS": "2"})


def test_the_code_version_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LTE_CODE_VERSION", raising=False)
    command = [sys.executable, "-c", "from jobs.runtime.code_version import code_version; print(code_version())"]
    again = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    assert re.fullmatch(rf"{re.escape(version('long-term-embeddings'))}\+[0-9a-f]{{8}}", code_version())
    assert again == code_version()
    monkeypatch.setenv("LTE_CODE_VERSION", "a1b2c3")
    assert code_version() == "a1b2c3"


def test_the_code_version_of_edited_code_is_another(tmp_path: Path) -> None:
    for package in ("jobs", "lte_models", "schemas"):
        shutil.copytree(ROOT / package, tmp_path / package)
    with (tmp_path / "lte_models/training/losses.py").open("a") as file:
        file.write("# edited\n")
    command = [sys.executable, "-c", "from jobs.runtime.code_version import code_version; print(code_version())"]
    environ = os.environ | {"PYTHONPATH": str(tmp_path)}
    edited = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environ).stdout
    assert edited.strip() != code_version()


def test_items_may_count_once_where_no_ranker_reads_the_ltes(tmp_path: Path) -> None:
    distinct = '[lte]\ncount = "distinct"\n'
    assert load(tmp_path, distinct + '[ranker]\nlte = "none"').lte.count == "distinct"
    assert load(tmp_path, distinct + "[ranker]\nenabled = false").lte.count == "distinct"


def test_a_wrong_variable_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"LTE_ENGINE__MASTR = 'x': no such setting"):
        load(tmp_path, LTE_ENGINE__MASTR="x")
    with pytest.raises(ConfigError, match=r"LTE_ENGINE__PARTITIONS = 'four': int is wanted"):
        load(tmp_path, LTE_ENGINE__PARTITIONS="four")
    with pytest.raises(ConfigError, match=r"LTE_RANKER__ENABLED = 'no': bool is wanted"):
        load(tmp_path, LTE_RANKER__ENABLED="no")


def test_a_missing_file_section_or_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_deployment(tmp_path / "none.toml", {})
    (tmp_path / "a.toml").write_text('[deployment]\nname = "x"\n')
    with pytest.raises(ConfigError, match="paths = None: this section is required"):
        load_deployment(tmp_path / "a.toml", {})
    (tmp_path / "b.toml").write_text(MINIMAL.replace('lake = "s3://bucket/lake"\n', ""))
    with pytest.raises(ConfigError, match=r"paths = \['lake'\]: missing"):
        load_deployment(tmp_path / "b.toml", {})


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    assert "hush" not in repr(load(tmp_path, LTE_PUBLISH__REDIS_PASSWORD="hush"))


def test_flags_of_a_job(deployment_file: Path) -> None:
    config = parse_config(["--config", str(deployment_file), "--ds", "2017-03-04"], "ingest")
    assert (config.ds, config.deployment.deployment.name) == (date(2017, 3, 4), "test")
    with pytest.raises(SystemExit):
        parse_config(["--config", str(deployment_file), "--ds", "04.03.2017"], "ingest")
    with pytest.raises(SystemExit):
        parse_config(["--config", str(deployment_file)], "ingest")


def test_a_window_is_written_as_it_is_read() -> None:
    assert str(LteWindow.parse("365-60")) == "365-60"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_every_shipped_configuration_is_good(path: Path) -> None:
    assert load_deployment(path, {}).deployment.name == path.stem
