"""Read a deployment's TOML file and its LTE_SECTION__KEY variables into the sections."""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from jobs.config.sections import BasisSection, Deployment, PathsSection
from jobs.config.window import ConfigError, _require

ENV_PREFIX = "LTE_"

# Names that scripts and Airflow tasks use beside the configuration.
RESERVED_ENV = frozenset({"LTE_CONFIG", "LTE_PYTHON", "LTE_HOME", "LTE_CODE_VERSION", "LTE_RETRIES", "LTE_LAST_DAY"})


def default_config() -> Path:
    """Configuration of a command that names none: ``LTE_CONFIG``, or the sample's."""
    return Path(os.environ.get("LTE_CONFIG", "configs/complete_journey.toml"))


def _typed(value: Any, hint: Any, key: str) -> Any:
    """Check a TOML value against a field's type; lists become tuples."""
    origin = typing.get_origin(hint)
    if origin is tuple:
        _require(isinstance(value, list), key, value, "a list is wanted")
        return tuple(_typed(each, typing.get_args(hint)[0], key) for each in value)
    if origin is not None:  # Mapping[str, str]
        _require(isinstance(value, dict), key, value, "a table is wanted")
        return types.MappingProxyType({name: str(each) for name, each in value.items()})
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    _require(type(value) is hint, key, value, f"{hint.__name__} is wanted")
    return value


def _truth(text: str) -> bool:
    """Read TOML's own words for a truth value.

    Raises:
        ValueError: ``text`` is neither ``true`` nor ``false``.
    """
    if text not in ("true", "false"):
        raise ValueError(text)
    return text == "true"


def _from_text(text: str, hint: Any, key: str) -> Any:
    """Read an environment variable as the field's type; lists are separated by commas."""
    if typing.get_origin(hint) is tuple:
        return [_from_text(part.strip(), typing.get_args(hint)[0], key) for part in text.split(",") if part.strip()]
    readers: dict[Any, Callable[[str], Any]] = {
        bool: _truth,
        int: int,
        float: float,
        date: date.fromisoformat,
        str: str,
    }
    _require(hint in readers, key, text, "cannot be set by an environment variable")
    try:
        return readers[hint](text)
    except ValueError as error:
        raise ConfigError(f"{key} = {text!r}: {hint.__name__} is wanted") from error


def _sections() -> dict[str, Any]:
    return typing.get_type_hints(Deployment)


def _overrides(environ: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Settings of ``LTE_SECTION__KEY`` variables; an unknown one is an error, as in the file."""
    found: dict[str, dict[str, Any]] = {}
    for name, text in environ.items():
        if not name.startswith(ENV_PREFIX) or name in RESERVED_ENV:
            continue
        section, _, key = name[len(ENV_PREFIX) :].lower().partition("__")
        hints = typing.get_type_hints(_sections()[section]) if section in _sections() else {}
        _require(key in hints, name, text, "no such setting; write LTE_SECTION__KEY, LTE_ENGINE__MASTER for one")
        found.setdefault(section, {})[key] = _from_text(text, hints[key], name)
    return found


def _section(cls: Any, name: str, values: dict[str, Any], base: Path) -> Any:
    """Build one section; names the unknown key, the missing key or the wrong value."""
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        _require(key in hints, f"{name}.{key}", value, f"unknown key; known are {', '.join(hints)}")
    required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    _require(required <= set(values), name, sorted(required - set(values)), "missing")
    typed = {key: _typed(value, hints[key], f"{name}.{key}") for key, value in values.items()}
    if cls is PathsSection:
        typed = {key: _resolved(path, base) for key, path in typed.items()}
    if cls is BasisSection and str(typed.get("weights", "")).startswith("."):
        typed["weights"] = _resolved(typed["weights"], base)
    return cls(**typed)


def _resolved(path: str, base: Path) -> str:
    return path if "://" in path else str((base / path).resolve())


def load_deployment(path: Path, environ: Mapping[str, str] = os.environ) -> Deployment:
    """Read a deployment's configuration.

    Args:
        path: TOML file; relative paths in it are relative to its folder.
        environ: Variables ``LTE_SECTION__KEY`` override the file.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: The file is missing or no TOML, or a key is unknown, missing, of another type or impossible.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path}: {error}") from error
    try:
        return _build(raw, _overrides(environ), path.resolve().parent)
    except ConfigError as error:
        raise ConfigError(f"configuration {path}: {error}") from error


def _build(raw: dict[str, Any], overrides: dict[str, dict[str, Any]], base: Path) -> Deployment:
    sections = _sections()
    for name, section in raw.items():
        _require(name in sections, name, section, f"unknown section; known are {', '.join(sections)}")
        _require(isinstance(section, dict), name, section, f"a table is wanted: [{name}]")
    for name in ("deployment", "paths"):
        _require(name in raw, name, None, "this section is required")
    merged = {name: {**raw.get(name, {}), **overrides.get(name, {})} for name in {*raw, *overrides}}
    return Deployment(**{name: _section(sections[name], name, values, base) for name, values in merged.items()})
