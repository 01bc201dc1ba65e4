"""Users who asked to be forgotten: ingest keeps their rows out, also when old landing files are read again.

The lake keeps no id of an erased user, only a salted hash. A hash keeps a user out without naming the user. A person
with access to the table can still test a guessed id, so access to the lake needs the same care as before.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.lake.lake import Lake
from jobs.lake.reader import LakeReader
from schemas import ERASURES

ERASED_USER = "erased_user"
REDACTED = "erased"
MAX_PLAIN_BYTES = 128
WHOLE_NUMBER = re.compile(r"([+-]?[0-9]+)\.0*")


def plain_id(value: Any) -> str | None:
    """The id that a damaged value stands for; None if the value stands for no id.

    Blanks at the ends, control characters and invisible characters are dropped, and ``740017.0`` is ``740017``.
    Good ids stay as they are.

    Args:
        value: As the reader found it: text, number, bytes or None.
    """
    if value is None or isinstance(value, bool | list | dict):
        return None
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if not (text.isascii() and text.isalnum()):
        # Category C: control and invisible characters, surrogates. A blank inside an id is part of the id.
        text = "".join(char for char in text if not unicodedata.category(char).startswith("C")).strip()
        whole = WHOLE_NUMBER.fullmatch(text)
        text = whole[1] if whole else text
    return text.encode()[:MAX_PLAIN_BYTES].decode("utf-8", "ignore") or None


def user_hash(salt: str, user_id: str) -> str:
    """Keyed BLAKE2b of an id: 32 hex digits.

    Args:
        salt: Hex digits, the same for all rows of one lake.
        user_id: The user.
    """
    return hashlib.blake2b(user_id.encode(), key=bytes.fromhex(salt), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ErasedUsers:
    """Hashes of the users whose rows stay out.

    Attributes:
        salt: Key of the hashes, hex digits.
        hashes: One hash per user.
    """

    salt: str
    hashes: frozenset[str]

    def holds(self, value: Any) -> bool:
        """Whether a value of column user_id names an erased user, even if the value is damaged."""
        user_id = plain_id(value)
        return user_id is not None and user_hash(self.salt, user_id) in self.hashes

    def mask(self, values: pa.Array | Sequence[Any]) -> pa.Array:
        """Which values name an erased user; each distinct value is hashed once per batch."""
        found = values.to_pylist() if isinstance(values, pa.Array) else list(values)
        plain = [value if isinstance(value, str | int | float | bytes) else None for value in found]
        is_erased = {value: self.holds(value) for value in set(plain)}
        return pa.array([is_erased[value] for value in plain], pa.bool_())


def erased_users(lake: Lake | LakeReader) -> ErasedUsers | None:
    """The users that ingest keeps out; None if there are no such users."""
    batches = lake.batches(ERASURES, columns=["salt", "user_hash"], where={"is_kept_out": True})
    rows = [row for batch in batches for row in batch.to_pylist()]
    return ErasedUsers(rows[0]["salt"], frozenset(row["user_hash"] for row in rows)) if rows else None
