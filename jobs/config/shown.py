"""Settings as a person may see them: plain values, secrets hidden."""

from __future__ import annotations

from datetime import date
from typing import Any

from jobs.config.secrets import MASK, is_secret, masked
from jobs.config.sections import Deployment


def asdict_plain(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """Settings as plain values. The password of Redis, credentials in addresses and secrets in conf are hidden."""
    sections = {name: dict(vars(section)) for name, section in vars(deployment).items()}
    for name, key in (("publish", "redis_password"), ("alerts", "webhook"), ("alerts", "smtp_password")):
        sections[name][key] = "set" if sections[name][key] else "not set"
    return {name: {key: _plain(value) for key, value in values.items()} for name, values in sections.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, int | float | bool):
        return value
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, date):
        return str(value)
    return {key: MASK if is_secret(key) else _plain(each) for key, each in value.items()}
