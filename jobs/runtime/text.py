"""Makes text from outside safe for a terminal or a log: no invisible text, no cursor movement, limited length."""

from __future__ import annotations

import hashlib
import unicodedata

# Longest line of a log in bytes of UTF-8, with its line break. A pipe writes this many bytes at once, so lines of two
# processes that share a log do not mix.
MAX_LINE_BYTES = 4096

# Control characters, formats (bidi marks, zero-width characters, the soft hyphen, tags), lone surrogates, and the two
# separators that some terminals and editors break a line at.
HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

# Invisible although Unicode calls them letters, marks or symbols: grapheme joiner, Hangul fillers, Khmer inherent
# vowels, the blank Braille pattern. Variation selectors stay: they choose the look of a visible emoji.
HIDDEN_LETTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")

# Hex digits of a SHA-256 that stand for a user in a log. Among a million users, two share their digits in one lake of
# about 560.
USER_DIGITS = 12

# Python reads a byte that is not UTF-8 as one of these surrogates ("surrogateescape").
ESCAPED_BYTES = range(0xDC80, 0xDD00)

SHORT_ESCAPES = {"\t": r"\t", "\n": r"\n", "\r": r"\r"}


def printable(text: str) -> str:
    r"""Escape characters that a reader would not see, or that would control the terminal.

    Escaped are control characters (``\x1b``, ``\n``), bidi and zero-width marks (``\u202e``), fillers, and lone
    surrogates (``\udc00``; a byte that was not UTF-8 as ``\xff``). The result is always valid UTF-8.
    ``printable(printable(text)) == printable(text)``.

    Args:
        text: Anything from a file: a name, a header, a key, a title, an id.
    """
    return text.translate(_ESCAPES)


class _Escapes(dict[int, str]):
    """Code point to the text that is shown for it, computed once per code point."""

    def __missing__(self, code: int) -> str:
        self[code] = shown = _shown(code)
        return shown


def _shown(code: int) -> str:
    character = chr(code)
    if character in SHORT_ESCAPES:
        return SHORT_ESCAPES[character]
    if unicodedata.category(character) not in HIDDEN_CATEGORIES and character not in HIDDEN_LETTERS:
        return character
    if code in ESCAPED_BYTES:
        return f"\\x{code - 0xDC00:02x}"
    width, letter = (2, "x") if code < 0x100 else (4, "u") if code < 0x10000 else (8, "U")
    return f"\\{letter}{code:0{width}x}"


_ESCAPES = _Escapes()


def counted(n: int, noun: str) -> str:
    """A count with its noun: ``1 user``, ``2,375 users``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def shown_user(user_id: str | bytes) -> str:
    """What a log shows in the place of a user's id, like ``#ab12cd34ef56``: an erasure does not change logs.

    The digits are the first ones of the id's SHA-256, so SQL finds the user: ``left(sha2(user_id, 256), 12)``. The hash
    has no salt: a person who guesses the id can test the guess.

    Args:
        user_id: The id, or its UTF-8.
    """
    encoded = user_id if isinstance(user_id, bytes) else user_id.encode(errors="surrogatepass")
    return f"#{hashlib.sha256(encoded).hexdigest()[:USER_DIGITS]}"


def log_line(text: str, limit: int = MAX_LINE_BYTES) -> str:
    """Make one line of a log: printable, and cut if it is too long, with the number of missing bytes.

    Args:
        text: The message; line breaks in it are escaped.
        limit: Longest line in bytes of UTF-8, with the line break that the log adds.
    """
    shown = printable(text)
    encoded = shown.encode()
    if len(encoded) < limit:
        return shown
    note = f"… ({len(encoded):,} bytes, cut)"
    kept = encoded[: limit - 1 - len(note.encode())]
    return kept.decode(errors="ignore") + note  # "ignore" drops a character that the cut has split
