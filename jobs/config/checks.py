"""Declares a section of the configuration: kinds of values with bounds, and one sentence per wrong value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails

from jobs.config.secrets import MASK, is_secret, masked
from jobs.config.window import LONGEST_DAYS, ConfigError, LteWindow

Section = TypeVar("Section")

# pydantic's own messages speak about Python; these messages speak about a TOML file.
EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "date_type": "a day like 2017-12-30",
    "tuple_type": "a list",
    "dict_type": "a table",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "string_too_short": "text that is not empty",
}


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def section(cls: type[Section]) -> type[Section]:
    """Make a class a frozen dataclass that checks its values strictly: a text is never accepted as a number.

    A wrong value is a :class:`ConfigError` whose message names section, key and value. ``XSection`` is section ``x``.
    """
    made: Any = dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))(cls)
    name, check = cls.__name__.removesuffix("Section").lower(), made.__init__

    def checked_init(self: Section, *args: Any, **values: Any) -> None:
        try:
            check(self, *args, **values)
        except ValidationError as error:
            sentences = [_sentence(name, each, list(made.__dataclass_fields__)) for each in error.errors()]
            raise ConfigError("; ".join(sentences)) from None

    made.__init__ = checked_init
    return cast(type[Section], made)


def expect(is_good: bool, key: str, what: str, value: object) -> None:
    """Refuse a setting unless it is good.

    Args:
        is_good: Whether the setting is good.
        key: Section and key of the setting.
        what: Which values are good, and what a person can do.
        value: The setting's value.

    Raises:
        ConfigError: The setting is not good.
    """
    if not is_good:
        raise _refusal(key, what, value)


def _refusal(key: str, what: str, value: object) -> ConfigError:
    shown = MASK if is_secret(key) else masked(repr(list(value) if isinstance(value, tuple) else value))
    return ConfigError(f"{key}: expected {what}, got {shown}")


def _sentence(section_name: str, error: ErrorDetails, known: list[str]) -> str:
    place, context = [str(part) for part in error["loc"] if isinstance(part, str)], error.get("ctx", {})
    if not place:  # raised by a check that looks at several settings: its sentence names them
        return str(context["error"])
    key = ".".join([section_name, *place])
    if error["type"] == "missing":
        return f"{key}: missing; add {place[0]} to [{section_name}]"
    if error["type"] == "unexpected_keyword_argument":
        return f"{key}: unknown key; known are {', '.join(known)}"
    known_kind = error["type"] in EXPECTED
    what = EXPECTED[error["type"]].format(**context) if known_kind else str(context.get("error", error["msg"]))
    return str(_refusal(key, what, error["input"]))


def only(is_good: Callable[[Any], object], what: str) -> AfterValidator:
    """A check of one value.

    Args:
        is_good: Tells good values.
        what: Which values are good, for the message.
    """

    def check(value: Any) -> Any:
        if not is_good(value):
            raise ValueError(what)
        return value

    return AfterValidator(check)


def _is_window(text: str) -> bool:
    try:
        return LteWindow.parse(text) is not None
    except ConfigError:
        return False


# Kinds of values: pydantic checks the type strictly and the bounds here.
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Width = Annotated[int, Field(gt=0, multiple_of=4)]  # of a model with four heads
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Window = Annotated[str, only(_is_window, f"OLDEST-NEWEST days before the end of ds, like 365-60, up to {LONGEST_DAYS}")]
EachOnce = only(lambda values: 0 < len(set(values)) == len(values), "at least one value, each once")
