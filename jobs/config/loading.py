"""Read a deployment's TOML file and its LTE_SECTION__KEY variables into the sections."""

from __future__ import annotations

import os
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.config.addresses import is_url
from jobs.config.checks import expect
from jobs.config.renamed import refuse_old_keys
from jobs.config.sections import Deployment
from jobs.config.window import ConfigError

ENV_PREFIX = "LTE_"

# Variables that scripts and Airflow tasks use in addition to the configuration.
RESERVED_ENV = frozenset(
    {
        "LTE_CONFIG",
        "LTE_PYTHON",
        "LTE_HOME",
        "LTE_CODE_VERSION",
        "LTE_RETRIES",
        "LTE_LAST_DAY",
        "LTE_LEASE",  # the run that a task belongs to, see jobs.ownership.lease
        "LTE_SERVE_TOKEN",
        "LTE_WAIT_SECONDS",
    }
)


def default_config() -> Path:
    """Configuration of a command without ``--config``: ``LTE_CONFIG``, or the sample's configuration."""
    return Path(os.environ.get("LTE_CONFIG", "configs/complete_journey.toml"))


def _from_text(text: str, hint: Any) -> Any:
    """Read a variable as a TOML value. A text needs no quotes. A list needs no brackets, only commas."""
    if typing.get_origin(hint) is tuple:
        return tuple(_from_text(part.strip(), typing.get_args(hint)[0]) for part in text.split(",") if part.strip())
    if hint is str or typing.get_origin(hint) is typing.Literal:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # the section refuses the text and names what it expected


def _sections() -> dict[str, Any]:
    return typing.get_type_hints(Deployment)


def _overrides(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Settings of ``LTE_SECTION__KEY`` variables; an unknown setting is an error, as in the file."""
    found: dict[str, dict[str, Any]] = {}
    sections = _sections()
    for name, text in environ.items():
        if not name.startswith(ENV_PREFIX) or name in RESERVED_ENV:
            continue
        section, _, key = name[len(ENV_PREFIX) :].lower().partition("__")
        refuse_old_keys(section, [key])
        hints = typing.get_type_hints(sections[section]) if section in sections else {}
        expect(key in hints, name, "the name of a setting, LTE_SECTION__KEY, like LTE_ENGINE__MASTER", text)
        found.setdefault(section, {})[key] = _from_text(text, hints[key])
    return found


def load_deployment(path: Path, environ: Mapping[str, str] = os.environ) -> Deployment:
    """Read a deployment's configuration.

    Args:
        path: TOML file; relative paths in it are relative to its folder.
        environ: Variables ``LTE_SECTION__KEY`` override the file.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: The file is missing or is not TOML, or a key is unknown, missing, of another type or impossible.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows write a byte-order mark
        return _build(raw, _overrides(environ), path.resolve().parent)
    except OSError as error:
        hint = "name the deployment's TOML file with --config or the variable LTE_CONFIG"
        raise ConfigError(f"configuration {path}: {error.strerror}; {hint}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(f"configuration {path}: {error}") from error


def _build(raw: dict[str, Any], overrides: dict[str, dict[str, Any]], base: Path) -> Deployment:
    sections = _sections()
    for name, values in raw.items():
        expect(name in sections, name, f"one of the sections {', '.join(sections)}", values)
        expect(isinstance(values, dict), name, f"a table: [{name}]", values)
    for name, values in raw.items():
        refuse_old_keys(name, values)
    for name in ("deployment", "paths"):  # all others have defaults
        expect(name in raw, name, f"this section: [{name}]", None)
    made = {}
    for name in {*raw, *overrides}:
        values = _placed(name, {**raw.get(name, {}), **overrides.get(name, {})}, base)
        made[name] = _section(sections[name], values, [f"LTE_{name}__{key}".upper() for key in overrides.get(name, {})])
    return Deployment(**made)


def _section(cls: Any, values: dict[str, Any], variables: list[str]) -> Any:
    try:
        return cls(**values)
    except ConfigError as error:
        hint = f" (set by {', '.join(variables)})" if variables else ""
        raise ConfigError(f"{error}{hint}") from error


def _placed(section: str, values: dict[str, Any], base: Path) -> dict[str, Any]:
    """A section's values: lists as tuples, and relative paths taken from the file's folder."""
    placed = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    for key, value in placed.items():
        is_path = section == "paths" or ((section, key) == ("basis", "weights") and str(value).startswith("."))
        if is_path and isinstance(value, str) and not is_url(value):
            placed[key] = str((base / value).resolve())
    return placed
