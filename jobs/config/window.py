"""A window of whole UTC days before the end of ds, and the error of a configuration that cannot be right."""

from __future__ import annotations

import re
from dataclasses import dataclass

WINDOW = re.compile(r"^(\d+)-(\d+)$")

# Of a window, and of an offset before it: both together fit into the bits of an age.
LONGEST_DAYS = 3650


class ConfigError(ValueError):
    """A configuration that cannot be right; the message names the key and the value."""


def _require(is_good: bool, key: str, value: object, why: str) -> None:
    if not is_good:
        raise ConfigError(f"{key} = {value!r}: {why}")


@dataclass(frozen=True, order=True)
class LteWindow:
    """Half-open window of whole UTC days ``[E - start_days, E - end_days)``, E the end of ds (DESIGN section 1)."""

    start_days: int
    end_days: int

    @classmethod
    def parse(cls, text: str, key: str = "window") -> LteWindow:
        """Read ``365-60``.

        Args:
            text: The window.
            key: Setting that it comes from, for messages.

        Raises:
            ConfigError: ``text`` is no window, or it is empty or longer than ten years.
        """
        match = WINDOW.match(text)
        _require(match is not None, key, text, "write the days before the end of ds as oldest-newest: 365-60")
        assert match is not None  # for the type checker: _require has raised
        window = cls(int(match[1]), int(match[2]))
        _require(window.start_days > window.end_days, key, text, "the older end comes first and is the larger")
        _require(window.start_days <= LONGEST_DAYS, key, text, "longer than ten years")
        return window

    def __str__(self) -> str:
        return f"{self.start_days}-{self.end_days}"
