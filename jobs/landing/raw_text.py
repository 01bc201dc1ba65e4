"""Rows as text for the quarantine: JSON with long values cut, and escapes for invisible or undecodable text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from jobs.runtime.text import printable

# Largest number of characters that is kept per value, and about the largest number per row.
MAX_RAW_VALUE = 200
MAX_RAW_ROW = 4000


def scalar_value(value: pa.Scalar) -> Any:
    """The Python value of an Arrow scalar; if Python cannot hold the value, a text that shows it."""
    try:
        return value.as_py()
    except (ValueError, OverflowError, LookupError):
        return _not_for_python(value)


def _not_for_python(value: pa.Scalar) -> Any:
    """Text for a scalar that Python cannot hold: not UTF-8, a year after 9999, or an unknown time zone."""
    kind = value.type
    if isinstance(value, pa.DictionaryScalar | pa.ExtensionScalar):
        return scalar_value(value.value)
    if pa.types.is_nested(kind):
        return f"<{kind}>"
    if pa.types.is_timestamp(kind) and kind.tz not in (None, "UTC"):  # Arrow's numbers are in UTC, whatever the zone
        return scalar_value(value.cast(pa.timestamp(kind.unit, "UTC")))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return value.cast(pa.binary()).as_py()
    return str(value.value)


def raw_json(row: Mapping[str, Any]) -> str:
    """A row as JSON text for a person: long values are cut, invisible text is escaped, a wide row ends early."""
    shown: dict[str, Any] = {}
    room = MAX_RAW_ROW
    for name, value in row.items():
        key = printable(_cut(name))
        shown[key] = _jsonable(value)
        room -= len(key) + len(str(shown[key]))
        if room < 0:
            shown["…"] = f"{len(row) - len(shown)} more"
            break
    return json.dumps(shown, ensure_ascii=False)


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 10**MAX_RAW_VALUE:
        return value
    if isinstance(value, bytes):
        value = value[:MAX_RAW_VALUE].decode("utf-8", "backslashreplace")
    return printable(_cut(value if isinstance(value, str) else _text(value)))


def _text(value: Any) -> str:
    try:
        return str(value)
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, or lists nested as deeply
        return f"<{type(value).__name__}: {error}>"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_RAW_VALUE else f"{text[:MAX_RAW_VALUE]}…"
