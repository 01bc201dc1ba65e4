"""The made fashion shop's catalogue: brands with a style and a price tier, and the items that they sell."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
import pandas as pd

from jobs.samples.fashion.pictures import draw_garment
from jobs.samples.fashion.sheet import COLOURS, PATTERNS, Garment

STYLES = ("casual", "sporty", "elegant", "boho", "streetwear", "business", "romantic", "outdoor")
TIERS = ("budget", "mid", "premium", "luxury")

# Below this number of pictures per process, starting processes takes longer than drawing.
FEW_PICTURES = 400
SEASONS = ("spring", "summer", "autumn", "winter", "all year")


@dataclass(frozen=True)
class Kind:
    """A kind of product.

    Attributes:
        price: Median price in the mid tier, EUR.
        cuts: Word of each of the three cuts.
        materials: What it can be made of.
        season: Season it sells in.
        patterned: Whether it comes in patterns.
    """

    price: float
    cuts: tuple[str, str, str]
    materials: tuple[str, ...]
    season: str
    patterned: bool = True


KINDS: dict[str, Kind] = {
    "t-shirt": Kind(20, ("crew-neck", "v-neck", "long-sleeved"), ("cotton", "linen"), "summer"),
    "shirt": Kind(45, ("long-sleeved", "short-sleeved", "slim"), ("cotton", "linen", "denim", "satin"), "all year"),
    "sweater": Kind(60, ("crew-neck", "v-neck", "roll-neck"), ("knit",), "winter"),
    "hoodie": Kind(55, ("pullover", "zip", "oversized"), ("cotton", "knit"), "autumn"),
    "top": Kind(25, ("tank", "cropped", "sleeveless"), ("cotton", "satin", "linen", "knit"), "summer"),
    "jacket": Kind(110, ("zip", "blazer-style", "long"), ("denim", "leather", "cotton", "suede", "knit"), "autumn"),
    "dress": Kind(70, ("mini", "midi", "maxi"), ("cotton", "satin", "linen", "knit", "denim"), "summer"),
    "skirt": Kind(40, ("mini", "pencil", "flared"), ("cotton", "denim", "leather", "satin", "suede"), "spring"),
    "trousers": Kind(60, ("skinny", "straight", "wide-leg"), ("denim", "cotton", "linen", "leather"), "all year"),
    "shorts": Kind(30, ("short", "mid-length", "long"), ("denim", "cotton", "linen"), "summer"),
    "trainers": Kind(85, ("low", "running", "high-top"), ("canvas", "leather", "suede"), "all year", False),
    "boots": Kind(120, ("ankle", "tall", "heeled"), ("leather", "suede"), "winter", False),
    "heels": Kind(80, ("low", "slingback", "stiletto"), ("leather", "satin", "suede"), "all year", False),
    "handbag": Kind(90, ("tote", "bowling", "shoulder"), ("leather", "suede", "canvas"), "all year", False),
    "backpack": Kind(65, ("classic", "city", "hiking"), ("canvas", "leather"), "autumn"),
    "hat": Kind(22, ("baseball", "two-tone", "bobble"), ("cotton", "canvas", "knit"), "winter"),
    "scarf": Kind(30, ("short", "long", "chunky"), ("knit", "satin", "cotton"), "winter"),
    "sunglasses": Kind(75, ("round", "rectangular", "cat-eye"), ("cotton",), "summer", False),
    "watch": Kind(130, ("round", "gold-cased", "square"), ("leather", "canvas"), "all year", False),
    "socks": Kind(10, ("crew", "ankle", "knee-high"), ("cotton", "knit"), "winter"),
}

_TIER_PRICE = {"budget": 0.55, "mid": 1.0, "premium": 1.9, "luxury": 4.2}

# How much each style likes each colour, pattern, material and kind; what is not named counts 1.
_STYLE_LIKES: dict[str, dict[str, float]] = {
    "casual": {"blue": 4, "grey": 4, "white": 3, "cotton": 3, "denim": 3, "plain": 3, "t-shirt": 3, "trousers": 3},
    "sporty": {
        "red": 4,
        "light blue": 4,
        "black": 3,
        "graphic": 3,
        "trainers": 6,
        "hoodie": 4,
        "shorts": 3,
        "socks": 3,
    },
    "elegant": {"black": 5, "burgundy": 4, "satin": 6, "plain": 5, "heels": 5, "dress": 4, "handbag": 3, "watch": 2},
    "boho": {
        "orange": 5,
        "brown": 4,
        "yellow": 3,
        "floral": 7,
        "suede": 5,
        "linen": 3,
        "skirt": 4,
        "scarf": 3,
        "hat": 2,
    },
    "streetwear": {"black": 4, "purple": 3, "graphic": 7, "camouflage": 3, "hoodie": 5, "hat": 4, "trainers": 4},
    "business": {"navy": 7, "grey": 4, "white": 4, "pinstriped": 7, "shirt": 6, "jacket": 4, "watch": 4, "trousers": 3},
    "romantic": {"pink": 8, "light blue": 3, "dotted": 5, "floral": 4, "dress": 5, "top": 3, "skirt": 3, "satin": 2},
    "outdoor": {
        "olive": 7,
        "green": 4,
        "beige": 3,
        "checked": 5,
        "camouflage": 4,
        "boots": 5,
        "backpack": 6,
        "jacket": 3,
    },
}

_SYLLABLES = (
    "al",
    "be",
    "cor",
    "da",
    "el",
    "fi",
    "gra",
    "ho",
    "is",
    "ka",
    "lu",
    "mo",
    "nor",
    "o",
    "pe",
    "ri",
    "sa",
    "ti",
)

_ENDINGS = ("va", "ne", "lle", "ro", "mark", "sten", "dia", "no", "rra", "by", "ti", "lo")


def make_brands(n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Draw ``n`` brands: name, style, price tier, mark and weight (a few are large)."""
    names: list[str] = []
    while len(names) < n:
        name = (str(rng.choice(_SYLLABLES)) + str(rng.choice(_SYLLABLES)) + str(rng.choice(_ENDINGS))).capitalize()
        names += [name] if name not in names else []
    weight = rng.pareto(1.6, n) + 0.3
    return pd.DataFrame(
        {
            "brand": names,
            "style": rng.permutation(np.resize(STYLES, n)),
            "tier": rng.choice(TIERS, n, p=[0.3, 0.4, 0.2, 0.1]),
            "logo": rng.permutation(np.arange(n) % 12),
            "weight": weight / weight.sum(),
        }
    )


def make_items(n: int, seed: int, n_brands: int = 48) -> pd.DataFrame:
    """Draw a catalogue.

    An item takes its brand's style (seven times in ten) and tier; the style decides which kind, colour, pattern and
    material are likely, so that a taste for a style can be seen in pictures and read in texts.

    Args:
        n: Items.
        seed: The same seed gives the same catalogue.
        n_brands: Number of brands that share the items.

    Returns:
        One row per item: item_id, title, description, category, brand, price, price_tier, season, style, image.
    """
    rng = np.random.default_rng([seed, 1])
    brands = make_brands(n_brands, rng)
    rows = rng.choice(n_brands, n, p=brands["weight"])
    made = [_make_item(number, brands.iloc[row], rng) for number, row in enumerate(rows)]
    items = pd.DataFrame([item for item, _ in made])
    items["image"] = draw_all([garment for _, garment in made], seed * 1_000_003)
    return items


def draw_all(garments: Sequence[Garment], first_seed: int) -> list[bytes]:
    """Draw a picture of each, on all cores where there are many.

    Args:
        garments: What to draw.
        first_seed: Seed of the first picture; each further picture has the next number.
    """
    seeds = range(first_seed, first_seed + len(garments))
    n_processes = min(len(os.sched_getaffinity(0)), len(garments) // FEW_PICTURES)
    if n_processes < 2:
        return list(map(draw_garment, garments, seeds))
    # spawn: a forked child of a process with threads (Arrow's) may hang
    with ProcessPoolExecutor(n_processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(draw_garment, garments, seeds, chunksize=50))


def _make_item(number: int, brand: pd.Series, rng: np.random.Generator) -> tuple[dict[str, object], Garment]:
    style = brand["style"] if rng.random() < 0.7 else str(rng.choice(STYLES))
    name = _liked(tuple(KINDS), style, rng)
    kind = KINDS[name]
    colour, accent = _two_colours(style, rng)
    pattern = _liked(PATTERNS, style, rng, {"plain": 4.0}) if kind.patterned and rng.random() < 0.8 else "plain"
    garment = Garment(
        kind=name,
        cut=int(rng.integers(3)),
        colour=colour,
        accent=accent,
        pattern=pattern,
        material=_liked(kind.materials, style, rng),
        logo=int(brand["logo"]),
    )
    tier = str(brand["tier"])
    price = round(kind.price * _TIER_PRICE[tier] * float(rng.lognormal(0, 0.2)), 2)
    item: dict[str, object] = {
        "item_id": f"F{number:06d}",
        "title": item_title(garment, str(brand["brand"])),
        "description": item_description(garment, style),
        "category": name,
        "brand": str(brand["brand"]),
        "price": price,
        "price_tier": tier,
        "season": kind.season,
        "style": style,
    }
    return item, garment


def item_title(garment: Garment, brand: str) -> str:
    """The title in the shop, such as ``Corlumark red floral midi satin dress``."""
    pattern = "" if garment.pattern == "plain" else garment.pattern
    words = (brand, garment.colour, pattern, KINDS[garment.kind].cuts[garment.cut], _material(garment), garment.kind)
    return " ".join(word for word in words if word)


def item_description(garment: Garment, style: str) -> str:
    """One sentence: style, material, pattern and the second colour where it shows."""
    made = f"made of {_material(garment)}, " if _material(garment) else ""
    return f"{style.capitalize()} {garment.kind}, {made}{_look(garment)}"


# Where the second colour shows also on a plain item: dial, lenses, heel tab, cuffs.
_ACCENTED = {"trainers": "details", "watch": "dial", "sunglasses": "lenses", "socks": "cuffs"}


def _look(garment: Garment) -> str:
    if garment.pattern != "plain":
        return f"{garment.pattern} with {garment.accent}"
    part = _ACCENTED.get(garment.kind)
    return f"with {garment.accent} {part}" if part else "in one colour"


def _material(garment: Garment) -> str:
    return "" if garment.kind == "sunglasses" else garment.material


def _liked(
    options: tuple[str, ...], style: str, rng: np.random.Generator, extra: dict[str, float] | None = None
) -> str:
    likes = _STYLE_LIKES[style]
    weights = np.array([likes.get(option, 1.0) * (extra or {}).get(option, 1.0) for option in options])
    return str(rng.choice(options, p=weights / weights.sum()))


def _two_colours(style: str, rng: np.random.Generator) -> tuple[str, str]:
    """A colour that the style likes, and a second colour that looks different."""
    first = _liked(tuple(COLOURS), style, rng)
    distance = {
        name: sum(abs(a - b) for a, b in zip(COLOURS[first], rgb, strict=True)) for name, rgb in COLOURS.items()
    }
    return first, _liked(tuple(name for name in COLOURS if distance[name] > 180), style, rng)
