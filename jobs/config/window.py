"""A window of whole UTC days before the end of ds, and the error of a configuration that is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

WINDOW = re.compile(r"([0-9]+)-([0-9]+)", re.ASCII)

# Longest window, and longest offset before a window: both together fit into the bits of an age.
LONGEST_DAYS = 3650


class ConfigError(ValueError):
    """A configuration that is wrong; the message names the key and the value."""


@dataclass(frozen=True, order=True)
class LteWindow:
    """Half-open window of whole UTC days ``[E - start_days, E - end_days)``, where E is the end of ds."""

    start_days: int
    end_days: int

    @classmethod
    def parse(cls, text: str) -> LteWindow:
        """Read ``365-60``.

        Raises:
            ConfigError: ``text`` is not a window, or the window is empty or longer than ten years; the message says
                what was expected.
        """
        match = WINDOW.fullmatch(text)
        if match is None:
            raise ConfigError(f"expected the days before the end of ds as OLDEST-NEWEST, like 365-60, got {text!r}")
        window = cls(int(match[1]), int(match[2]))
        if window.start_days <= window.end_days:
            raise ConfigError(f"expected the older end, which is the larger, first, like 365-60, got {text!r}")
        if window.start_days > LONGEST_DAYS:
            raise ConfigError(f"expected at most {LONGEST_DAYS} days, got {text!r}")
        return window

    def __str__(self) -> str:
        return f"{self.start_days}-{self.end_days}"


# The windows of the ranker (paper, section 3): the user tower reads at most MAX_SEQUENCE interactions of the last
# SHORT_DAYS days; the long-term side reads LONG_DAYS days, with or without the short window.
LONG_DAYS, SHORT_DAYS, MAX_SEQUENCE = 365, 60, 100


def ranker_window(*, is_lagged: bool) -> str:
    """The LTE window of a ranker, ``365-60`` or ``365-0``.

    Args:
        is_lagged: Whether the LTE leaves out the short window, which the user tower reads itself.
    """
    return str(LteWindow(LONG_DAYS, SHORT_DAYS if is_lagged else 0))


# Days as numbers: days since EPOCH_DAY, which is day 0. Spark, numpy and Delta count alike.
EPOCH_DAY = date(1970, 1, 1)


def day_number(day: date) -> int:
    """Days from 1970-01-01 to ``day``."""
    return (day - EPOCH_DAY).days
