"""Rows as text for the quarantine: JSON with long values cut and undecodable bytes escaped."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

MAX_RAW_VALUE = 200


def _scalar(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError, LookupError):
        return _not_for_python(value)


def _not_for_python(value: pa.Scalar) -> Any:
    """What can be shown of a scalar that Python cannot hold: no UTF-8, a year past 9999, a zone unknown here."""
    kind = value.type
    if isinstance(value, pa.DictionaryScalar | pa.ExtensionScalar):
        return _scalar(value.value)
    if pa.types.is_nested(kind):
        return f"<{kind}>"
    if pa.types.is_timestamp(kind) and kind.tz not in (None, "UTC"):  # Arrow's moments are in UTC whatever their zone
        return _scalar(value.cast(pa.timestamp(kind.unit, "UTC")))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return value.cast(pa.binary()).as_py()
    return str(value.value)


def raw_json(row: dict[str, Any]) -> str:
    """A row as JSON text; long values are cut, bytes that are no UTF-8 are escaped."""
    return json.dumps({name: _jsonable(value) for name, value in row.items()}, ensure_ascii=False)


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, bytes):
        value = value[:MAX_RAW_VALUE].decode("utf-8", "backslashreplace")
    text = value if isinstance(value, str) else str(value)
    return printable(text if len(text) <= MAX_RAW_VALUE else f"{text[:MAX_RAW_VALUE]}…")


def printable(text: str) -> str:
    r"""Text that UTF-8 can hold: undecodable bytes as ``\xff``, lone surrogates as ``\udc00``."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
