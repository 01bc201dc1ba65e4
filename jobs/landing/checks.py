"""Rules of landing values: checks and types each column of a whole batch, with a reason for each bad value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from jobs.landing.erased import ErasedUsers
from jobs.landing.formats.pieces import ReadLimits, RoundedFloat
from schemas import MAX_ID_BYTES

Values: TypeAlias = "pa.Array | list[Any]"
TIMESTAMP = pa.timestamp("us", "UTC")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ISO_8601 = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?(Z|[+-]\d{2}(:?[0-5]\d)?)?)?$"
ISO_ZONE = r"\d{2}:\d{2}.*(Z|[+-]\d{2}(:?\d{2})?)$"
# The calendar of ISO 8601 text begins in year 1: Arrow knows a year 0, Python does not.
NO_YEAR = "0000-"
BELOW_MICROSECONDS = r"(\.\d{6})\d+"
NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?$"

# Invisible characters: control and format characters, Unicode's default-ignorable code points (fillers, variation
# selectors, joiners), blanks that are not spaces (Braille, musical, Khitan), and code points without a character.
INVISIBLE = (
    r"\p{Cc}\p{Cf}\x{034F}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{180B}-\x{180F}\x{2060}-\x{206F}\x{2800}\x{3164}"
    r"\x{FE00}-\x{FE0F}\x{FFA0}\x{FFF0}-\x{FFF8}\x{16FE4}\x{1BCA0}-\x{1BCA3}\x{1D159}\x{1D173}-\x{1D17A}"
    r"\x{E0000}-\x{E0FFF}\x{FDD0}-\x{FDEF}" + "".join(rf"\x{{{plane:X}FFFE}}\x{{{plane:X}FFFF}}" for plane in range(17))
)
BLANK = rf"^[\s\p{{Z}}{INVISIBLE}]*$"

# Spaces that look like U+0020 within a text. The wide space of Japanese and Chinese names (U+3000) looks different.
OTHER_SPACES = r"\x{00A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}"

# Trimming could merge two users into one, so an id is accepted as it is or refused, never trimmed.
MALFORMED_ID = rf"^[\s\p{{Z}}]|[\s\p{{Z}}]$|[{INVISIBLE}{OTHER_SPACES}]"

# Ids that a program wrote as decimal fractions: 17 in another file and 17.0 are two users.
FRACTION_ID = r"^[+-]?\d+\.0+$"
OUTSIDE_LANDING = r"^[/\\]|(^|[/\\])\.\.([/\\]|$)|://"
SECONDS_TO_YEAR_10000 = 253_402_300_800
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

# From this number on, a float stands for more than one whole number: 2^53 + 1 is also rounded to 2^53.
FIRST_AMBIGUOUS = {pa.float16(): 2.0**11, pa.float32(): 2.0**24, pa.float64(): 2.0**53}


@dataclass(frozen=True)
class RowRules:
    """What a deployment allows.

    Attributes:
        types: Interaction types.
        earliest: First UTC day that an event may have.
        erased: Users whose rows stay out.
        limits: Decoded bytes of a file and of a batch.
    """

    types: tuple[str, ...]
    earliest: date
    erased: ErasedUsers | None = None
    limits: ReadLimits = field(default_factory=ReadLimits)


@dataclass(frozen=True)
class Checked:
    """A column after its check.

    Attributes:
        values: Typed values.
        reasons: Why a value is bad; null for a good value.
    """

    values: pa.Array
    reasons: pa.Array


Check: TypeAlias = Callable[[Values], Checked]


def reasons_of(n_rows: int, *pairs: tuple[pa.Array, str]) -> pa.Array:
    """First reason whose mask holds; null if no mask holds."""
    if n_rows == 0:
        return pa.nulls(0, pa.string())
    masks = pc.make_struct(*[pc.fill_null(mask, False) for mask, _ in pairs])
    return pc.case_when(masks, *[pa.scalar(reason) for _, reason in pairs])


def plain(values: Values) -> Values:
    """Values without an encoding around them: no dictionary, no runs."""
    if isinstance(values, list):
        return values
    if pa.types.is_dictionary(values.type):
        return plain(values.dictionary_decode())
    if pa.types.is_run_end_encoded(values.type):
        return plain(pc.run_end_decode(values))
    return values


def text_values(values: Values) -> Checked:
    """Values as strings: integers and whole floats in decimal, others ``wrong_type`` or ``wrong_encoding``.

    NaN becomes null, because tables without nulls hold NaN instead.
    """
    values = plain(values)
    if isinstance(values, list):
        return _each_text(values)
    kind = values.type
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return _good(values.cast(pa.string()))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _decoded(values.cast(pa.binary()))
    if _is_bytes(kind):
        return _decoded(values.cast(pa.binary()))
    if pa.types.is_decimal(kind):
        return _each_text(values.to_pylist())
    if pa.types.is_floating(kind):
        return _whole_floats(values)
    return Checked(pa.nulls(len(values), pa.string()), reasons_of(len(values), (values.is_valid(), "wrong_type")))


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    kinds = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(is_of(kind) for is_of in kinds)


def _whole_floats(values: pa.Array) -> Checked:
    """Whole numbers of a float column as text, if no other whole number is the same float."""
    wide = values.cast(pa.float64())
    is_there = pc.invert(wide.is_null(nan_is_null=True))
    is_exact = pc.and_(pc.less(pc.abs(wide), FIRST_AMBIGUOUS[values.type]), pc.equal(pc.floor(wide), wide))
    is_good = pc.and_(is_there, pc.fill_null(is_exact, False))
    whole = pc.if_else(is_good, wide, pa.scalar(None, pa.float64())).cast(pa.int64())
    return Checked(whole.cast(pa.string()), reasons_of(len(values), (pc.and_not(is_there, is_good), "wrong_type")))


def _good(values: pa.Array) -> Checked:
    return Checked(values, pa.nulls(len(values), pa.string()))


def _decoded(values: pa.Array) -> Checked:
    try:
        return _good(values.cast(pa.string()))
    except pa.ArrowInvalid:
        return _each_text(values.to_pylist())


def _each_text(values: list[Any]) -> Checked:
    pairs = [_one_text(value) for value in values]
    return Checked(pa.array([text for text, _ in pairs], pa.string()), pa.array([why for _, why in pairs], pa.string()))


def _one_text(value: Any) -> tuple[str | None, str | None]:
    if value is None or _is_nan(value):
        return None, None
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8"), None
        if isinstance(value, str):
            value.encode("utf-8")
            return value, None
    except UnicodeError:
        return None, "wrong_encoding"
    is_number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if not is_number or not (isinstance(value, int) or _is_whole(value)):
        return None, "wrong_type"
    return str(int(value)), None


def _is_whole(value: Any) -> bool:
    """Whether a float or decimal is a whole number, and no other number was rounded to it."""
    if isinstance(value, RoundedFloat) or not math.isfinite(value):
        return False
    is_exact = isinstance(value, Decimal) or abs(value) < FIRST_AMBIGUOUS[pa.float64()]
    return bool(is_exact and value == int(value))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def id_check(name: str, *, default: str | None = None, is_required: bool = True) -> Check:
    """Check of an id: 1 to 128 UTF-8 bytes, no invisible characters, no space at its ends, no look-alike space.

    Args:
        name: Column, for the reasons.
        default: Replaces a missing value if the column is not required.
        is_required: Whether null and blank (nothing visible) are bad (``null_…``).
    """

    def check(values: Values) -> Checked:
        text = text_values(values)
        is_long = pc.fill_null(pc.greater(pc.binary_length(text.values), MAX_ID_BYTES), False)
        short = pc.if_else(is_long, "x", text.values)  # a long text is oversize whatever is in it: not searched
        is_blank = pc.fill_null(pc.match_substring_regex(short, BLANK), True)
        own = reasons_of(
            len(text.values),
            (is_long, f"oversize_{name}"),
            (pc.and_(is_blank, is_required), f"null_{name}"),
            (pc.and_not(pc.match_substring_regex(short, MALFORMED_ID), is_blank), f"malformed_{name}"),
        )
        filled = pc.if_else(is_blank, pa.scalar(default, pa.string()), text.values)
        return Checked(filled, pc.coalesce(text.reasons, own))

    return check


def type_check(types: Sequence[str]) -> Check:
    """Check of interaction_type: one of the configured types."""

    def check(values: Values) -> Checked:
        text = text_values(values)
        is_known = pc.is_in(text.values, pa.array(types, pa.string()))
        own = reasons_of(len(text.values), (pc.invert(is_known), "unknown_interaction_type"))
        return Checked(text.values, pc.coalesce(text.reasons, own))

    return check


def text_check(values: Values) -> Checked:
    """Check of free text; blank is null."""
    text = text_values(values)
    is_blank = pc.fill_null(pc.match_substring_regex(text.values, BLANK), True)
    return Checked(pc.if_else(is_blank, pa.scalar(None, pa.string()), text.values), text.reasons)


def path_check(values: Values) -> Checked:
    """Check of image_path: the path must stay inside the landing folder."""
    text = text_check(values)
    own = reasons_of(len(text.values), (pc.match_substring_regex(text.values, OUTSIDE_LANDING), "malformed_image_path"))
    return Checked(text.values, pc.coalesce(text.reasons, own))


def price_check(values: Values) -> Checked:
    """Check of a price: a finite number, 0 or more."""
    numbers, reasons = _numbers(values)
    is_bad = pc.or_(pc.invert(pc.is_finite(numbers)), pc.less(numbers, 0.0))
    return Checked(numbers, pc.coalesce(reasons, reasons_of(len(numbers), (is_bad, "bad_price"))))


def _numbers(values: Values) -> tuple[pa.Array, pa.Array]:
    values = plain(values)
    if isinstance(values, list):
        is_number = [
            value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values
        ]
        floats = [_float(value) if good else None for value, good in zip(values, is_number, strict=True)]
        wrong = pa.array([not good for good in is_number], pa.bool_())
        return pa.array(floats, pa.float64()), reasons_of(len(values), (wrong, "wrong_type"))
    kind = values.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        numbers = values.cast(pa.float64(), safe=False)
        numbers = pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
        return numbers, pa.nulls(len(values), pa.string())
    text = text_values(values)
    is_number = pc.fill_null(pc.match_substring_regex(text.values, NUMBER), False)
    numbers = pc.if_else(is_number, text.values, pa.scalar(None, pa.string())).cast(pa.float64())
    return numbers, reasons_of(len(values), (pc.and_not(values.is_valid(), is_number), "wrong_type"))


def _float(value: float | None) -> float | None:
    try:
        return None if value is None or _is_nan(value) else float(value)
    except OverflowError:
        return math.inf


def bytes_check(values: Values) -> Checked:
    """Check of a picture: bytes, in Parquet only. The encoder finds out whether the bytes are a picture."""
    values = plain(values)
    if not isinstance(values, list) and _is_bytes(values.type):
        return _good(values.cast(pa.binary()))
    n_rows = len(values)
    is_there = pa.array([v is not None for v in values], pa.bool_()) if isinstance(values, list) else values.is_valid()
    return Checked(pa.nulls(n_rows, pa.binary()), reasons_of(n_rows, (is_there, "wrong_type")))


def timestamp_check(earliest: date, landing_ds: date) -> Check:
    """Check of event_ts: ISO 8601 text or an Arrow timestamp or date, from ``earliest`` to the end of the landing day.

    Numbers are ``wrong_type``, because seconds and milliseconds cannot be distinguished.
    """

    def check(values: Values) -> Checked:
        stamps, wrong = _timestamps(values)
        micros = stamps.cast(pa.int64())
        own = reasons_of(
            len(stamps),
            (stamps.is_null(), "bad_timestamp"),
            (pc.less(micros, _micros(earliest)), "timestamp_before_earliest"),
            (pc.greater_equal(micros, _micros(landing_ds + timedelta(days=1))), "future_timestamp"),
        )
        return Checked(stamps, pc.coalesce(wrong, own))

    return check


def _micros(day: date) -> int:
    return (day - EPOCH.date()).days * 86_400_000_000


def _timestamps(values: Values) -> tuple[pa.Array, pa.Array]:
    values = plain(values)
    if not isinstance(values, list) and pa.types.is_date(values.type):
        return _timestamps(values.cast(pa.timestamp("ms")))
    if not isinstance(values, list) and pa.types.is_timestamp(values.type):
        return _as_micros(values), pa.nulls(len(values), pa.string())
    is_number = _number_mask(values)
    text = text_values(values)
    wrong = pc.coalesce(text.reasons, reasons_of(len(text.values), (is_number, "wrong_type")))
    return parse_timestamps(pc.if_else(is_number, pa.scalar(None, pa.string()), text.values)), wrong


def _number_mask(values: Values) -> pa.Array:
    if isinstance(values, list):
        return pa.array([isinstance(value, int | float) and not _is_nan(value) for value in values], pa.bool_())
    kind = values.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return pc.and_not(is_number, values.is_null(nan_is_null=True))


def _as_micros(values: pa.Array) -> pa.Array:
    """Timestamps of any unit in microseconds UTC; null if the year is after 9999."""
    per_second = PER_SECOND[values.type.unit]
    ticks = values.cast(pa.int64())
    limit = min(SECONDS_TO_YEAR_10000 * per_second, 2**63 - 1)
    is_possible = pc.and_(pc.less(ticks, limit), pc.greater(ticks, -limit))
    ticks = pc.if_else(is_possible, ticks, pa.scalar(None, pa.int64()))
    scaled = pc.divide(ticks, 1000) if per_second == 10**9 else pc.multiply(ticks, 10**6 // per_second)
    return scaled.cast(TIMESTAMP)


def parse_timestamps(text: pa.Array) -> pa.Array:
    """ISO 8601 text as UTC; a text without a zone is in UTC. Null for other text, or an impossible day or hour."""
    is_iso = pc.and_not(pc.match_substring_regex(text, ISO_8601), pc.starts_with(text, NO_YEAR))
    iso = pc.if_else(pc.fill_null(is_iso, False), text, pa.scalar(None, pa.string()))
    # Arrow refuses finer fractions and Python cuts them. Cutting first gives the same result with both.
    iso = pc.replace_substring_regex(iso, BELOW_MICROSECONDS, r"\1")
    try:
        return _cast_iso(iso)
    except pa.ArrowInvalid:  # parse each text alone: an impossible day makes only its own row null
        return pa.array([_one_timestamp(value) for value in iso.to_pylist()], pa.int64()).cast(TIMESTAMP)


def _cast_iso(iso: pa.Array) -> pa.Array:
    has_zone = pc.match_substring_regex(iso, ISO_ZONE)
    nothing = pa.scalar(None, pa.string())
    zoned = pc.if_else(has_zone, iso, nothing).cast(TIMESTAMP)
    naive = pc.if_else(has_zone, nothing, iso).cast(pa.timestamp("us")).cast(pa.int64()).cast(TIMESTAMP)
    return pc.coalesce(zoned, naive)


def _one_timestamp(text: str | None) -> int | None:
    try:
        moment = datetime.fromisoformat(text) if text is not None else None
    except ValueError:
        return None
    if moment is None:
        return None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - EPOCH) // timedelta(microseconds=1)


def checks_of(target: str, rules: RowRules, landing_ds: date) -> dict[str, Check]:
    """Checks of a target's columns, in the order in which a row's first fault is named.

    Args:
        target: ``interactions`` or ``items``.
        rules: What the deployment allows.
        landing_ds: Landing day of the file.
    """
    if target == "interactions":
        return {
            "user_id": id_check("user_id"),
            "item_id": id_check("item_id"),
            "event_ts": timestamp_check(rules.earliest, landing_ds),
            "interaction_type": type_check(rules.types),
            "market": id_check("market", default="", is_required=False),
            "session_id": id_check("session_id", is_required=False),
        }
    texts = ("title", "description", "category", "brand", "price_tier", "season")
    return {
        "item_id": id_check("item_id"),
        **dict.fromkeys(texts, text_check),
        "price": price_check,
        "image": bytes_check,
        "image_path": path_check,
    }
