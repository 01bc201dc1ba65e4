"""The forms that a user's id takes in texts and in binary files."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable

from jobs.landing.erased import plain_id

# Shorter ids are searched only between quotes or tags, because a 17 without quotes is nearly always a count.
MIN_BARE_CHARACTERS = 6


def spellings(user_id: str) -> set[str]:
    """Forms of the id in plain text, in JSON and in HTML."""
    as_json = {json.dumps(user_id, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)}
    return {user_id, *as_json, html.escape(user_id), html.escape(user_id, quote=False)}


def same_person(user_id: str) -> set[str]:
    """The id and the id that ingest treats as equal: ``740017`` for ``740017.0``."""
    plain = plain_id(user_id)
    return {user_id, plain} if plain else {user_id}


def is_bare(user_id: str) -> bool:
    """Whether the id differs from other words and numbers even without quotes around it."""
    return len(user_id) >= MIN_BARE_CHARACTERS


def text_pattern(user_ids: Iterable[str]) -> re.Pattern[str]:
    """Pattern of the ids in pages, logs and JSON; group ``id`` is the id.

    An id counts between quotes or tags, after ``user_id``, or as the first field of a line. A long id also counts as
    a separate word. So a table cell that shows the same number as an id counts, too.
    """
    found = sorted({text for user_id in user_ids for text in spellings(user_id)}, key=len, reverse=True)
    bare = [re.escape(text) for text in found if is_bare(text)]
    ids = "|".join(re.escape(text) for text in found)
    parts = [
        rf"""(?<=["'>;])(?:{ids})(?=(?:\.0+)?["'<&\\])""",
        rf"""(?<=user_id":)(?:{ids})(?!\w)""",
        rf"""(?<=user_id": )(?:{ids})(?!\w)""",
        rf"""^(?:{ids})(?=[,;\t|])""",
        *([rf"(?<![\w.])(?:{'|'.join(bare)})(?!\w)"] if bare else []),
    ]
    return re.compile(f"(?P<id>{'|'.join(parts)})", re.MULTILINE)
