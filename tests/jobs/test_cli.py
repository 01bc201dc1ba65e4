"""The console script by itself: help, configuration, secrets, flags, exit codes. The whole day is in test_pipeline."""

from __future__ import annotations

import json
import pwd
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest

from deployments import CONFIG
from jobs import cli
from jobs.cli import TOOLS, _print, dispatch
from jobs.config.loading import load_deployment
from jobs.lake.engine import filters
from jobs.lake.engine.filters import SO_ATTACH_FILTER
from jobs.ranker.judging.live import POINTER, live_folder

NO_OPTION = 9999  # an option of sockets that no kernel has

COMMANDS = (
    "run",
    "status",
    "user",
    "recommend",
    "check-config",
    "items",
    "rollback",
    "erase",
    "maintain",
    "lease",
    "repair",
)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What help prints; argparse exits after it."""
    with pytest.raises(SystemExit) as ended:
        dispatch(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def code_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["lte", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_help_names_every_command_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help")
    assert [name for name in (*COMMANDS, *TOOLS) if f"\n    {name}" not in text] == []
    assert len(TOOLS) >= 3
    assert [name for name in COMMANDS if f"\n  lte {name}" not in text] == []
    assert "Exit codes" in text


@pytest.mark.parametrize("command", [*COMMANDS, *TOOLS])
def test_every_command_has_help_and_takes_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, command, "--help")
    assert "--json" in text
    assert len(text.splitlines()) > 5


def test_configuration_is_shown_without_its_secrets(
    deployment_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment_file.write_text(
        CONFIG.replace(
            "partitions = 2",
            'partitions = 2\nconf = { "spark.hadoop.fs.s3a.secret.key" = "hush1", a = "-Dx.keyPassword=hush6 -Db=c" }',
        )
        + '[publish]\nredis_url = "rediss://me:hush2@store:6380/0?password=hush4"\n'
        + '[tracking]\nuri = "postgresql://mlflow:hush5@db/mlflow"\n'
    )
    monkeypatch.setenv("LTE_PUBLISH__REDIS_PASSWORD", "hush3")
    monkeypatch.setenv("LTE_LTE__HALF_LIFE_DAYS", "30")
    dispatch(["check-config", "--config", str(deployment_file), "--json"])
    text = capsys.readouterr().out
    settings = json.loads(text)
    assert settings["lte"]["half_life_days"] == 30.0  # the variable overrides the default
    assert settings["publish"]["redis_password"] == "set"
    assert settings["publish"]["redis_url"] == "rediss://***@store:6380/0?password=***"
    assert settings["engine"]["conf"] == {
        "spark.hadoop.fs.s3a.secret.key": "***",
        "a": "-Dx.keyPassword=*** -Db=c",
    }
    dispatch(["check-config", "--config", str(deployment_file)])
    assert "hush" not in text + capsys.readouterr().out


def account(uid: int, shell: str) -> pwd.struct_passwd:
    return pwd.struct_passwd(("name", "x", uid, uid, "", "/home/name", shell))


@pytest.mark.parametrize(
    ("accounts", "filter_option", "engine", "warning"),
    [
        ([(1001, "/bin/bash"), (1002, "")], NO_OPTION, "sail", "2 other accounts of this machine can run code"),
        ([(1001, "/bin/bash")], NO_OPTION, "sail", "Protocol not available"),  # the kernel's own answer
        ([(1001, "/usr/sbin/nologin"), (999, "/bin/sh")], NO_OPTION, "sail", None),  # nobody who could log in
        ([(1001, "/bin/bash")], SO_ATTACH_FILTER, "sail", None),  # this kernel takes the filter
        ([(1001, "/bin/bash")], NO_OPTION, "local[2]", None),  # Spark Connect with a token
    ],
)
def test_check_config_warns_where_other_accounts_can_reach_the_engine(
    accounts: list[tuple[int, str]], filter_option: int, engine: str, warning: str | None,
    deployment_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(pwd, "getpwall", lambda: [account(*each) for each in accounts])
    monkeypatch.setattr(filters, "SO_ATTACH_FILTER", filter_option)
    monkeypatch.setenv("LTE_ENGINE__MASTER", engine)
    assert code_of(monkeypatch, "check-config", "--config", str(deployment_file)) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "other account" in line]
    assert len(lines) == (warning is not None)
    assert all(warning in line for line in lines if warning)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["user"], 2, "USER"),
        (["run", "yesterday"], 2, "yesterday"),
        (["run", "2017-02-30"], 2, "2017-02-30"),
        (["status", "--last", "few"], 2, "few"),
        (["recommend", "u1", "-k", "0"], 2, "expected a whole number of at least 1, got '0'"),
        (["run", "2024-W09-4"], 2, "expected a day like 2017-12-30, got '2024-W09-4'"),
        (["run", "20240229"], 2, "expected a day like"),
        (["items"], 2, "--like --like-image"),
        (["items", "--like", " "], 2, "expected words"),
        (["items", "--like", "red", "--like-image", "a.png"], 2, "not allowed with"),
        (["fly"], 2, "fly"),
        (["check-config", "--config", "no/such.toml"], 2, "no/such.toml"),
    ],
)
def test_wrong_flags_and_files_are_named_and_exit_two(
    arguments: list[str], code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(monkeypatch, *arguments) == code
    told = capsys.readouterr()
    assert words in told.err
    assert told.out == ""
    assert "Traceback" not in told.err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dispatch(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"lte {version('long-term-embeddings')}\n"


def test_a_day_after_today_is_refused_without_a_flag(
    deployment_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jobs.runtime.flags.today", lambda: date(2024, 2, 28))
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr("jobs.commands.days.run.run_day", lambda _, ds, *flags: started.append((str(ds), *flags)) or [])
    run = ("run", "--config", str(deployment_file))
    assert code_of(monkeypatch, *run, "2024-02-29") == 2
    assert "ds: expected a day up to today, 2024-02-28 (UTC), got 2024-02-29" in capsys.readouterr().err
    dispatch([*run, "2024-02-28"])
    dispatch([*run, "2024-02-29", "--allow-future"])
    assert started == [("2024-02-28",), ("2024-02-29", "--allow-future")]


def test_status_is_shown_again_until_it_is_interrupted(
    deployment_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waits: list[int] = []

    def sleep(seconds: int) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    assert code_of(monkeypatch, "status", "--watch", "7", "--config", str(deployment_file)) == 130
    assert waits == [7, 7]
    assert capsys.readouterr().out.count("live LTEs   nothing yet") == 2


def test_a_message_shows_what_is_hidden_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    _print(False, None, "title a\x1b[2Jb\n  \u202eid\udcff")
    assert capsys.readouterr().out == "title a\\x1b[2Jb\n  \\u202eid\\xff\n"


def test_before_the_first_day_every_command_says_so(
    deployment_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--config", str(deployment_file))
    dispatch(["status", *flags])
    assert "live LTEs   nothing yet" in capsys.readouterr().out
    dispatch(["status", "--json", *flags])
    assert json.loads(capsys.readouterr().out) == {
        "deployment": "test", "live": None, "ranker": None, "runs": [], "published": None, "age_days": None,
        "rollback": None,
    }  # fmt: skip
    folder = live_folder(load_deployment(deployment_file, environ={}))
    folder.mkdir(parents=True)
    pointer = {"bundle": "ds=2017-01-02-abc", "ds": "2017-01-02", "weights_sha256": "abc" * 9, "previous": ""}
    (folder / POINTER).write_text(json.dumps(pointer))
    dispatch(["status", *flags])
    assert "live ranker ds=2017-01-02, weights abcabcabcabc" in capsys.readouterr().out
    assert code_of(monkeypatch, "user", "u1", *flags) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "nothing was published yet" in told.err
    assert "Traceback" not in told.err
