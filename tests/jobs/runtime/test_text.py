import pytest

from jobs.runtime.text import MAX_LINE_BYTES, log_line, printable, shown_user


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Röcke & Blusen, 時計, ❤️, a\u00a0b", "Röcke & Blusen, 時計, ❤️, a\u00a0b"),  # what can be seen stays
        ("\x1b[2Jgone\x7f", r"\x1b[2Jgone\x7f"),
        ("two\nlines\tand\rmore\x00", r"two\nlines\tand\rmore\x00"),
        ("\x85next\u2028line\u2029", r"\x85next\u2028line\u2029"),
        ("u\u202e1\u2066", r"u\u202e1\u2066"),  # bidi
        ("\ufeffu\u200b1\u00ad", r"\ufeffu\u200b1\xad"),  # byte-order mark, zero width, soft hyphen
        ("\u3164\u115f\u1160\uffa0\u034f\u2800", r"\u3164\u115f\u1160\uffa0\u034f\u2800"),
        ("a\U000e0041", r"a\U000e0041"),  # a tag
        (b"caf\xe9".decode("utf-8", "surrogateescape"), r"caf\xe9"),
        ("\ud800 and \udc00", r"\ud800 and \udc00"),
        (b"\xff".decode("utf-8", "surrogateescape") + "\ud800", r"\xff\ud800"),  # both kinds in one text
        ("back\\slash", "back\\slash"),
        ("", ""),
    ],
)
def test_what_a_reader_would_not_see_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode()


def test_no_character_of_unicode_breaks_utf8_or_a_line() -> None:
    everything = printable("".join(map(chr, range(0x110000))))
    assert len(everything.encode().splitlines()) == len(everything.splitlines()) == 1


def test_a_user_is_shown_as_the_start_of_the_sha256_of_the_id() -> None:
    assert shown_user("2375") == shown_user(b"2375") == "#ecf8103662b9"  # printf 2375 | sha256sum
    assert len({shown_user("\ud800"), shown_user("\ud801"), shown_user("")}) == 3  # also ids that are no UTF-8


def test_a_line_of_a_log_is_at_most_4_kb() -> None:
    assert log_line("a" * 4095) == "a" * 4095  # and its line break: 4096 bytes
    for text in ("a" * 4096, "ü" * 4000, "時" * 100_000, "\x00" * 2000):
        line = log_line(text)
        assert MAX_LINE_BYTES - 3 <= len(line.encode()) + 1 <= MAX_LINE_BYTES  # a split character has up to 3 bytes
        assert line.endswith(f"… ({len(printable(text).encode()):,} bytes, cut)")
