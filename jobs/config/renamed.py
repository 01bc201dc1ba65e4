"""Settings that had another name in an earlier version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jobs.config.window import ConfigError

# Section and old key to the new key; the version that renamed the key is in CHANGELOG.md.
RENAMED = {
    ("ranker", "held_out_days"): "validation_days",
    ("experiment", "held_out_days"): "validation_days",
    ("experiment", "holdout_days"): "test_days",
    ("experiment", "max_holdout"): "max_test_examples",
}

# What an earlier version did where it knew no such setting; a saved model must not get today's default.
BEFORE = {"ranker": {"repeat_expert": False, "affinity": False}}


def refuse_old_keys(section: str, keys: Iterable[str]) -> None:
    """Refuse an old key and name the new one. If old keys were read silently, people would keep writing them.

    Args:
        section: Section of the configuration.
        keys: Keys that the section sets.

    Raises:
        ConfigError: A key was renamed.
    """
    for key in keys:
        if (section, key) in RENAMED:
            new = RENAMED[section, key]
            raise ConfigError(f"{section}.{key}: expected the new name {section}.{new}, got the old one; rename it")


def with_new_keys(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version saved with a model, under the names of this version.

    Settings that came later have the value that describes the earlier version.

    Args:
        section: Section of the configuration.
        values: Setting to value.
    """
    # A model's settings are saved as JSON, which turns a tuple into a list.
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    renamed = {RENAMED.get((section, key), key): value for key, value in plain.items()}
    return BEFORE.get(section, {}) | renamed
