import os
import pickle
import re
import shutil
import subprocess
import sys
import typing
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest

from checkout import ROOT
from jobs.config.loading import load_deployment
from jobs.config.models import LteMode, RankerSection
from jobs.config.renamed import with_new_keys
from jobs.config.sections import clip_models
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
        ('[engine]\nmastr = "sail"', r"engine\.mastr: unknown key; known are master, "),
        ("[engines]\n", r"engines: expected one of the sections deployment, paths, .*, got \{\}"),
        ("[ranker]\nheld_out_days = 2", r"ranker\.held_out_days: expected the new name ranker\.validation_days, got"),
        ("[experiment]\nholdout_days = 2", r"expected the new name experiment\.test_days, got the old one; rename it"),
        ("[experiment]\nmax_holdout = 2", r"expected the new name experiment\.max_test_examples"),
        ('[engine]\nmaster = "flink"', r"engine\.master: expected sail, local\[N\], .*, got 'flink'"),
        ('[engine]\npartitions = "4"', r"engine\.partitions: expected a whole number, got '4'"),
        ("[engine]\npartitions = true", r"engine\.partitions: expected a whole number, got True"),
        ("[engine]\npartitions = 4.0", r"engine\.partitions: expected a whole number, got 4\.0"),
        ("[engine]\npartitions = 0", r"engine\.partitions: expected 1 or more, got 0"),
        ("[engine.conf]\na.b = 1", r"engine\.conf\.a: expected text in quotes, got \{'b': 1\}"),
        ("[engine]\nconf = 1", r"engine\.conf: expected a table, got 1"),
        ('[lte]\nwindows = ["60-365"]', r"lte\.windows: expected OLDEST-NEWEST days .*, got '60-365'"),
        ('[lte]\nwindows = ["60-60"]', r"lte\.windows: expected OLDEST-NEWEST days .*, got '60-60'"),
        ('[lte]\nwindows = ["-365-60"]', r"lte\.windows: expected OLDEST-NEWEST days .*, got '-365-60'"),
        ('[lte]\nwindows = ["365-60\\n"]', r"lte\.windows: expected OLDEST-NEWEST days .*, got '365-60\\n'"),
        ('[lte]\nwindows = ["3651-0"]', r"lte\.windows: expected .* up to 3650, got '3651-0'"),
        ("[lte]\nwindows = []", r"lte\.windows: expected at least one value, each once, got \[\]"),
        (
            '[lte]\nwindows = ["9-0", "9-0"]',
            r"lte\.windows: expected at least one value, each once, got \['9-0', '9-0'\]",
        ),
        ('[lte]\nwindows = "365-60"', r"lte\.windows: expected a list, got '365-60'"),
        ('[lte]\nmethods = ["median"]', r"lte\.methods: expected 'uniform', 'recency' or 'behaviour', got 'median'"),
        ("[lte]\nhalf_life_days = 0", r"lte\.half_life_days: expected more than 0, got 0"),
        ("[lte]\nhalf_life_days = nan", r"lte\.half_life_days: expected more than 0, got nan"),
        ("[lte]\nhalf_life_days = true", r"lte\.half_life_days: expected a number, got True"),
        ("[interactions]\nmax_bad_share = 2", r"interactions\.max_bad_share: expected 1 or less, got 2"),
        ("[interactions]\nearliest = 5", r"interactions\.earliest: expected a day like 2017-12-30, got 5"),
        ("[interactions]\nearliest = 2017-12-30T00:00:00", r"interactions\.earliest: expected a day like"),
        ("[interactions]\ntypes = []", r"interactions\.types: expected at least one value, each once, got \[\]"),
        ('[interactions]\ntypes = [""]', r"interactions\.types: expected text that is not empty, got ''"),
        ('[publish]\nwindow = "180-30"', r"publish\.window: expected one of lte\.windows \['365-60'\], got '180-30'"),
        ('[publish]\nstore = "memcached"', r"publish\.store: expected 'lmdb' or 'redis', got 'memcached'"),
        ('[basis]\nencoder = "bert"', r"basis\.encoder: expected 'minilm' or 'open_clip', got 'bert'"),
        ("[drift]\noffsets_days = [0]", r"drift\.offsets_days: expected 1 or more, got 0"),
        ("[drift]\noffsets_days = [5, 7]", r"drift\.offsets_days: expected days .*, 1 among them.*, got \[5, 7\]"),
        ("[drift]\noffsets_days = []", r"drift\.offsets_days: expected at least one value, each once, got \[\]"),
        ("[drift]\noffsets_days = [1, 3651]", r"drift\.offsets_days: expected days up to 3650, .*, got \[1, 3651\]"),
        ("[experiment]\ndim = 30", r"experiment\.dim: expected a multiple of 4, got 30"),
        ("[[lte]]\n", r"lte: expected a table: \[lte\], got \[\{\}\]"),
        ("[retention]\nrollback_days = -1", r"retention\.rollback_days: expected 0 or more, got -1"),
        ("[ranker]\nvalidation_days = 9\ntrain_days = 9", r"ranker\.validation_days: expected less than .* = 9, got 9"),
        ('[ranker]\nobjective = "clm"', r"ranker\.objective: expected next_day, because .*, got 'clm'"),
        ("[ranker]\nmax_length = 101", r"ranker\.max_length: expected 100 or less, got 101"),
        (
            '[autoencoder]\nwindow = "365-0"',
            r"autoencoder\.window: expected one of lte\.windows .* autoencoder\.enabled = false, got '365-0'",
        ),
        (
            '[lte]\nmethods = ["recency"]\n[publish]\nmethod = "recency"',
            r"lte\.methods: expected uniform among them for the autoencoder, .*, got \['recency'\]",
        ),
        ('[ranker]\nmethod = "recency"', r"ranker\.method: expected publish\.method = 'uniform', .*, got 'recency'"),
        (
            '[lte]\ncount = "distinct"',
            r"lte\.count: expected each for a ranker with ranker\.lte = 'prefix_token', .*, got 'distinct'",
        ),
        ("[ranker]\nlagged = false", r"ranker\.lagged: expected the one that reads publish\.window = .*, got False"),
        ("lte = 5", r"paths\.lte: unknown key"),  # belongs to the section above it
        ("[gates", r"shop\.toml: Expected"),
        ("[publish]\nredis_password = 12345", r"publish\.redis_password: expected text in quotes, got \*\*\*$"),
        # Two wrong settings of one section: both are named.
        ("[engine]\npartitions = 0\nmaster = 5", r"engine\.master: expected .*, got 5; engine\.partitions: expected"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, more)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('weights = "x"', r"basis\.weights: expected nothing, because minilm has its own; .*, got 'x'"),
        ('model = "ViT-B-32"', r"basis\.model: expected nothing, because minilm has its own; .*, got 'ViT-B-32'"),
        (
            'encoder = "open_clip"\nweights = "./mine"\nmodel = "ViT-B-32"',
            r"basis\.model: expected nothing, because the folder basis\.weights names its own model; .*'ViT-B-32'",
        ),
        ('encoder = "open_clip"\nmodel = "ViT-C-1"', r"basis\.model: expected one of .*, ViT-B-32, .*, got 'ViT-C-1'"),
    ],
)
def test_weights_and_models_that_would_be_ignored_are_refused(tmp_path: Path, settings: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, f"[basis]\n{settings}")


def test_the_weights_of_an_encoder(tmp_path: Path) -> None:
    clip = '[basis]\nencoder = "open_clip"\n'
    basis = load(tmp_path, clip).basis
    assert (basis.model, basis.weights) == ("ViT-B-32", "laion2b_s34b_b79k")
    basis = load(tmp_path, clip, LTE_BASIS__WEIGHTS="./mine").basis  # a checkpoint folder has a model of its own
    assert (basis.model, basis.weights) == ("", str(tmp_path / "mine"))
    basis = load(tmp_path, f'{clip}weights = "./a.safetensors"\nmodel = "ViT-B-16"').basis
    assert (basis.model, basis.weights) == ("ViT-B-16", str(tmp_path / "a.safetensors"))


def test_the_models_are_those_of_open_clip() -> None:
    import open_clip

    assert clip_models() == sorted(open_clip.list_models())


def test_a_configuration_loads_no_torch(deployment_file: Path) -> None:
    text = deployment_file.read_text() + '[basis]\nencoder = "open_clip"\n'
    deployment_file.write_text(text)
    load_it = f"from jobs.config.loading import load_deployment; load_deployment(Path({str(deployment_file)!r}))"
    code = f"import sys; from pathlib import Path; {load_it}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_modes_of_the_ranker_are_those_of_its_towers() -> None:
    from lte_models.ranker.towers import LTE_MODES

    assert typing.get_args(LteMode) == LTE_MODES


def test_sections_are_made_in_code_as_in_a_file(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert replace(found, engine=replace(found.engine, partitions=2)).engine.partitions == 2
    with pytest.raises(ConfigError, match=r"^engine\.partitions: expected 1 or more, got 0$"):
        replace(found.engine, partitions=0)
    assert pickle.loads(pickle.dumps(found)) == found
    with pytest.raises(FrozenInstanceError):
        found.engine.partitions = 3


@pytest.mark.parametrize("name", ["a[b", "a|b", "a^b", "a#b", "a\\b", "a?b", "a%20b", "a\nb"])
def test_a_lake_that_delta_cannot_read_is_refused(tmp_path: Path, name: str) -> None:
    paths = load(tmp_path).paths
    with pytest.raises(ConfigError, match=r"^paths\.lake: expected a folder without .*; rename it, got "):
        replace(paths, lake=str(tmp_path / name))
    assert replace(paths, lake=f"s3://bucket/{name}").lake.endswith(name)  # an object store has rules of its own
    assert replace(paths, lake=str(tmp_path / 'größe x%"{}')).lake.endswith('größe x%"{}')


def test_spark_settings_are_texts(tmp_path: Path) -> None:
    conf = load(tmp_path, '[engine.conf]\n"a.b" = "c"\n"d.e" = 5\n"f.g" = true').engine.conf
    assert conf == {"a.b": "c", "d.e": "5", "f.g": "true"}


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text(MINIMAL, encoding="utf-8-sig")
    assert load_deployment(tmp_path / "shop.toml", {}).deployment.name == "shop"


def test_a_value_where_a_section_is_wanted_is_named(tmp_path: Path) -> None:
    path = tmp_path / "shop.toml"
    path.write_text('engine = "sail"\n')
    with pytest.raises(ConfigError, match=r"engine: expected a table: \[engine\], got 'sail'"):
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
    with pytest.raises(ConfigError, match=r"LTE_ENGINE__MASTR: expected the name of a setting, .*, got 'x'"):
        load(tmp_path, LTE_ENGINE__MASTR="x")
    named = r"engine\.partitions: expected a whole number, got 'four' \(set by LTE_ENGINE__PARTITIONS\)"
    with pytest.raises(ConfigError, match=named):
        load(tmp_path, LTE_ENGINE__PARTITIONS="four")
    with pytest.raises(ConfigError, match=r"ranker\.enabled: expected true or false, got 'no' \(set by LTE_RANKER__EN"):
        load(tmp_path, LTE_RANKER__ENABLED="no")
    with pytest.raises(ConfigError, match=r"interactions\.earliest: expected a day like .*, got '2024-W09-4'"):
        load(tmp_path, LTE_INTERACTIONS__EARLIEST="2024-W09-4")


def test_a_missing_file_section_or_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file .* --config or the variable LTE_CONFIG"):
        load_deployment(tmp_path / "none.toml", {})
    (tmp_path / "a.toml").write_text('[deployment]\nname = "x"\n')
    with pytest.raises(ConfigError, match=r"paths: expected this section: \[paths\], got None"):
        load_deployment(tmp_path / "a.toml", {})
    (tmp_path / "b.toml").write_text(MINIMAL.replace('lake = "s3://bucket/lake"\n', ""))
    with pytest.raises(ConfigError, match=r"paths\.lake: missing; add lake to \[paths\]"):
        load_deployment(tmp_path / "b.toml", {})


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    assert "hush" not in repr(load(tmp_path, LTE_PUBLISH__REDIS_PASSWORD="hush"))


def test_flags_of_a_job(deployment_file: Path) -> None:
    config = parse_config(["--config", str(deployment_file), "--ds", "2017-03-04"], "ingest")
    assert (config.ds, config.deployment.deployment.name) == (date(2017, 3, 4), "test")
    with pytest.raises(SystemExit):
        parse_config(["--config", str(deployment_file), "--ds", "04.03.2017"], "ingest")
    tomorrow = str(datetime.now(UTC).date() + timedelta(days=2))  # two days: midnight may pass in between
    with pytest.raises(SystemExit):
        parse_config(["--config", str(deployment_file), "--ds", tomorrow], "ingest")
    parse_config(["--config", str(deployment_file), "--ds", tomorrow, "--allow-future"], "ingest")
    with pytest.raises(SystemExit):
        parse_config(["--config", str(deployment_file)], "ingest")


def test_a_window_is_written_as_it_is_read() -> None:
    assert str(LteWindow.parse("365-60")) == "365-60"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_every_shipped_configuration_is_good(path: Path) -> None:
    assert load_deployment(path, {}).deployment.name == path.stem


def test_an_old_key_in_a_variable_names_the_new_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ranker\.held_out_days: expected the new name ranker\.validation_days"):
        load(tmp_path, LTE_RANKER__HELD_OUT_DAYS="2")


def test_settings_that_an_earlier_version_saved_with_a_model_are_read() -> None:
    saved = {"held_out_days": 3, "train_days": 30, "dim": 8}
    # settings that came later describe the earlier version, whatever the default is today
    later = {"repeat_expert": False, "affinity": False}
    assert with_new_keys("ranker", saved) == {"validation_days": 3, "train_days": 30, "dim": 8, **later}
    found = RankerSection(**with_new_keys("ranker", saved))
    assert (found.validation_days, found.repeat_expert, found.affinity) == (3, False, False)
    assert with_new_keys("ranker", {"affinity": True})["affinity"]
    with_list = with_new_keys("ranker", {"gate_baselines": ["ease"]})  # JSON has no tuples
    assert RankerSection(**with_list).gate_baselines == ("ease",)
