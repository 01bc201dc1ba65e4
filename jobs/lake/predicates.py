"""Conditions on columns, for Spark, for deltalake and for Arrow."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date

Value = str | int | date
Predicate = Mapping[str, Value | Sequence[Value]]


class TableError(ValueError):
    """Rows, columns or a table that do not fit the declaration; the message names table, column and value."""


def _values(wanted: Value | Sequence[Value]) -> list[Value]:
    return [wanted] if isinstance(wanted, str | int | date) else list(wanted)


def _spark_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _delta_text(text: str) -> str:
    """Text for the deltalake package, whose SQL has no backslash escapes."""
    return "'" + text.replace("'", "''") + "'"


def standing_alone(text: str) -> str:
    r"""Regular expression for ``text`` as a value of a row: between quotes, commas, blanks, tabs, bars or the ends.

    ``17`` is found in ``{"user_id": 17}``, in ``17.0`` and in ``17,item_1``, not in ``178`` and not in ``10:17:00``. A
    control character that JSON escapes (``\t17``) is a blank, too.
    """
    return rf"""(^|[\s"',;|]|":|\\[bfnrt]|\\u[0-9a-f]{{4}}){re.escape(text)}(\.0*)?($|[\s"',;|}}\\])"""


def _literal(value: Value, quoted: Callable[[str], str]) -> str:
    if isinstance(value, date):
        return f"DATE '{value.isoformat()}'"
    return quoted(value) if isinstance(value, str) else str(value)


def predicate_sql(where: Predicate, quoted: Callable[[str], str] = _spark_text) -> str:
    """SQL condition of a predicate.

    Raises:
        TableError: A column has no value at all.
    """
    parts = []
    for name, wanted in where.items():
        literals = [_literal(value, quoted) for value in _values(wanted)]
        if not literals:
            raise TableError(f"predicate on {name} has no value")
        parts.append(f"{name} = {literals[0]}" if len(literals) == 1 else f"{name} IN ({', '.join(literals)})")
    return " AND ".join(parts)
