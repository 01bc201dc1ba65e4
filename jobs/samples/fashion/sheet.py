"""The canvas of a product picture of the made fashion shop, and the fabric that fills a garment's shape.

Coordinates are shares of the canvas: x in 0..1 from left to right, y in 0..1 from top to bottom, on a 3:4 picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

WIDTH, HEIGHT = 144, 192
_SCALE = 2  # drawn larger, then reduced, for smooth edges
_W, _H = WIDTH * _SCALE, HEIGHT * _SCALE
Point = tuple[float, float]
Colour = tuple[int, int, int]
Ink = Sequence[float] | NDArray[np.floating[Any]]

COLOURS: dict[str, Colour] = {
    "white": (244, 244, 240),
    "black": (34, 34, 38),
    "grey": (140, 144, 150),
    "navy": (30, 42, 88),
    "blue": (44, 98, 196),
    "light blue": (148, 192, 232),
    "green": (44, 132, 72),
    "olive": (110, 112, 58),
    "red": (200, 34, 44),
    "burgundy": (112, 24, 46),
    "pink": (240, 150, 180),
    "purple": (118, 62, 152),
    "yellow": (246, 206, 64),
    "orange": (236, 126, 40),
    "brown": (112, 70, 42),
    "beige": (216, 194, 158),
}

PATTERNS = ("plain", "striped", "pinstriped", "checked", "dotted", "floral", "camouflage", "graphic")
MATERIALS = ("cotton", "denim", "leather", "knit", "satin", "linen", "canvas", "suede")


@dataclass(frozen=True)
class Garment:
    """What a picture shows.

    Attributes:
        kind: A key of :data:`jobs.samples.fashion.pictures.SHAPES`.
        cut: Variant of the kind: 0, 1 or 2 (sleeve, length, heel height).
        colour: A key of :data:`COLOURS`.
        accent: A second colour, for patterns and trimmings.
        pattern: One of :data:`PATTERNS`.
        material: One of :data:`MATERIALS`.
        logo: Number of the brand's mark; -1 for none.
    """

    kind: str
    cut: int
    colour: str
    accent: str
    pattern: str
    material: str
    logo: int = -1


def mirrored(half: Sequence[Point]) -> list[Point]:
    """Close a right half (x >= .5) with its mirror image."""
    return [*half, *((1 - x, y) for x, y in reversed(half))]


def rounded(points: Sequence[Point], times: int = 2) -> list[Point]:
    """Round the corners of a closed polygon (Chaikin's corner cutting)."""
    corners = np.asarray(points, dtype=float)
    for _ in range(times):
        following = np.roll(corners, -1, axis=0)
        cut = np.stack([0.8 * corners + 0.2 * following, 0.2 * corners + 0.8 * following], axis=1)
        corners = cut.reshape(-1, 2)
    return [(float(x), float(y)) for x, y in corners]


class Sheet:
    """A canvas with the fabric of one garment."""

    def __init__(self, garment: Garment, rng: np.random.Generator) -> None:
        shade = int(rng.integers(238, 256))
        self.image = Image.new("RGB", (_W, _H), (shade, shade, shade))
        self.rng = rng
        self.colour = np.array(COLOURS[garment.colour], dtype=float)
        self.accent = np.array(COLOURS[garment.accent], dtype=float)
        self.logo = garment.logo
        self.graphic = garment.pattern == "graphic"
        self.fabric = Image.fromarray(fabric(garment, rng))
        self.zoom = rng.uniform(0.92, 1.04)
        self.shift = rng.uniform(-0.025, 0.025, 2)

    def pixels(self, points: Sequence[Point]) -> list[tuple[float, float]]:
        """Points of the garment as pixels of the enlarged canvas."""
        centred = (np.asarray(points, dtype=float) - 0.5) * self.zoom + 0.5 + self.shift
        return [(float(x * _W), float(y * _H)) for x, y in centred]

    def part(self, points: Sequence[Point], *, light: float = 1.0, soft: int = 2) -> None:
        """Cut a shape out of the fabric: shaded towards its edge, with a darker outline."""
        mask = self._mask(rounded(points, soft))
        self._paste(self.fabric, mask, light)
        self.outline(rounded(points, soft), 0.55)

    def plain(self, points: Sequence[Point], colour: Ink, *, soft: int = 2, light: float = 1.0) -> None:
        """A shape in one flat colour, such as a sole or a button."""
        solid = Image.new("RGB", (_W, _H), tuple(int(c) for c in colour))
        self._paste(solid, self._mask(rounded(points, soft)), light)
        self.outline(rounded(points, soft), 0.6, colour)

    def trim(self, points: Sequence[Point], *, soft: int = 1, light: float = 0.85) -> None:
        """A shape in the garment's colour without its pattern, such as a collar."""
        self.plain(points, self.colour * light, soft=soft)

    def outline(self, points: Sequence[Point], light: float, colour: Ink | None = None) -> None:
        """Draw the edge of a closed shape, in the garment's colour by default; ``light`` 1 keeps the colour."""
        base = self.colour if colour is None else np.asarray(colour, dtype=float)
        line = self.pixels([*points, points[0]])
        ImageDraw.Draw(self.image).line(line, fill=_ink(base * light), width=2, joint="curve")

    def seam(self, points: Sequence[Point], light: float = 0.6, width: int = 2) -> None:
        """An open line in a darker (``light`` < 1) or lighter shade of the garment."""
        ink = _ink(self.colour * light if light <= 1 else 255 - (255 - self.colour) / light)
        ImageDraw.Draw(self.image).line(self.pixels(points), fill=ink, width=width, joint="curve")

    def line(self, points: Sequence[Point], colour: Ink, width: int) -> None:
        """Draw a line of ``width`` pixels of the enlarged canvas."""
        ImageDraw.Draw(self.image).line(self.pixels(points), fill=_ink(np.asarray(colour)), width=width, joint="curve")

    def disc(self, x: float, y: float, radius: float, colour: Ink, outline: bool = False) -> None:
        """A circle; ``radius`` as a share of the width."""
        (px, py), reach = self.pixels([(x, y)])[0], radius * _W * self.zoom
        edge = _ink(np.asarray(colour) * 0.5) if outline else None
        box = (px - reach, py - reach, px + reach, py + reach)
        ImageDraw.Draw(self.image).ellipse(box, fill=_ink(np.asarray(colour)), outline=edge, width=2)

    def mark(self, x: float, y: float, size: float = 0.035) -> None:
        """The brand's mark: one of twelve, six shapes in two inks."""
        if self.logo < 0:
            return
        dark = self.colour.mean() > 120
        ink = (20, 20, 24) if dark else (250, 250, 250)
        ink = ink if self.logo % 2 else ((190, 30, 40) if dark else (250, 210, 60))
        self.line(_MARKS[self.logo // 2 % len(_MARKS)](x, y, size), ink, 4)

    def print_motif(self, x: float, y: float, size: float) -> None:
        """A large print on the front of a garment with the pattern ``graphic``."""
        if not self.graphic:
            return
        points, ink = int(self.rng.integers(3, 9)), self.accent
        angles = np.linspace(0, 2 * np.pi, 2 * points, endpoint=False) - np.pi / 2
        reach = np.where(np.arange(2 * points) % 2 == 0, 1.0, self.rng.uniform(0.35, 0.8)) * size
        star = [(x + r * np.cos(a), y + 0.75 * r * np.sin(a)) for r, a in zip(reach, angles, strict=True)]
        self.plain(star, ink, soft=0)
        self.disc(x, y, size * 0.3, self.colour)

    def _mask(self, points: Sequence[Point]) -> Image.Image:
        mask = Image.new("L", (_W, _H), 0)
        ImageDraw.Draw(mask).polygon(self.pixels(points), fill=255)
        return mask

    def _paste(self, filling: Image.Image, mask: Image.Image, light: float) -> None:
        box = mask.getbbox()
        if box is None:
            return
        mask, filling = mask.crop(box), filling.crop(box)
        framed = ImageOps.expand(mask, 8)  # so that the blur sees the outside also where the shape ends
        depth = framed.filter(ImageFilter.BoxBlur(7)).crop((8, 8, mask.width + 8, mask.height + 8))
        shade = depth.point([int(255 * min(1.0, light) * (0.62 + 0.38 * value / 255)) for value in range(256)])
        self.image.paste(ImageChops.multiply(filling, Image.merge("RGB", [shade] * 3)), box[:2], mask)


_MARKS: tuple[Callable[[float, float, float], list[Point]], ...] = (
    lambda x, y, s: [(x - s, y), (x - s / 3, y + s * 0.7), (x + s, y - s * 0.6)],  # tick
    lambda x, y, s: [(x - s, y + s / 2), (x, y - s / 2), (x + s, y + s / 2), (x - s, y + s / 2)],  # triangle
    lambda x, y, s: [
        (x - s, y - s / 2),
        (x + s, y - s / 2),
        (x + s, y + s / 2),
        (x - s, y + s / 2),
        (x - s, y - s / 2),
    ],
    lambda x, y, s: [
        (x - s, y + s / 2),
        (x - s / 2, y - s / 2),
        (x, y + s / 2),
        (x + s / 2, y - s / 2),
        (x + s, y + s / 2),
    ],
    lambda x, y, s: [(x, y - s * 0.8), (x + s * 0.7, y), (x, y + s * 0.8), (x - s * 0.7, y), (x, y - s * 0.8)],
    lambda x, y, s: [(x - s, y), (x + s, y), (x, y), (x, y - s * 0.7), (x, y + s * 0.7)],  # cross
)


def _ink(colour: Ink) -> tuple[int, int, int]:
    red, green, blue = (int(min(255, max(0, value))) for value in colour)
    return red, green, blue


# --- fabric ---------------------------------------------------------------------------------------------------------


def fabric(garment: Garment, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A sheet of fabric, uint8 [384, 288, 3]: the pattern in two colours, then the look of the material."""
    y, x = np.ogrid[0:_H, 0:_W]
    share = _pattern_share(garment.pattern, _floats(x), _floats(y), rng)  # 1 where the accent shows
    light = _material_light(garment.material, _floats(x), _floats(y), rng)
    gloss = np.clip(light - 1, 0, 1) * np.float32(160)  # shiny materials show white lights even on black
    tint = rng.uniform(-8, 8, 3)
    sheet = np.empty((_H, _W, 3), dtype=np.uint8)
    for channel, (colour, accent) in enumerate(zip(COLOURS[garment.colour], COLOURS[garment.accent], strict=True)):
        base = np.float32(colour + tint[channel])
        cloth = (base + (np.float32(accent) - base) * share) * light + gloss
        sheet[..., channel] = np.clip(cloth, 0, 255)
    return sheet


_Grid = NDArray[np.floating[Any]]


def _floats(values: NDArray[Any]) -> _Grid:
    return values.astype(np.float32)


def _pattern_share(pattern: str, x: _Grid, y: _Grid, rng: np.random.Generator) -> _Grid:
    pitch = float(rng.uniform(0.85, 1.2))
    if pattern == "striped":
        return _floats((y // (14 * pitch)) % 2)
    if pattern == "pinstriped":
        return _floats((x % (15 * pitch)) < 3)
    if pattern == "checked":
        return _floats(0.5 * ((x // (16 * pitch)) % 2) + 0.5 * ((y // (16 * pitch)) % 2))
    if pattern == "dotted":
        return _dots(x, y, 24 * pitch)
    if pattern == "floral":
        return _flowers(rng)
    if pattern == "camouflage":
        return _blobs(rng)
    return np.zeros((1, 1), dtype=np.float32)


def _dots(x: _Grid, y: _Grid, pitch: float) -> _Grid:
    across = (x + (y // pitch % 2) * pitch / 2) % pitch - pitch / 2
    return _floats(across**2 + (y % pitch - pitch / 2) ** 2 < (pitch * 0.27) ** 2)


def _flowers(rng: np.random.Generator) -> _Grid:
    sheet = Image.new("L", (_W, _H), 0)
    pen = ImageDraw.Draw(sheet)
    for row in range(0, _H + 40, 40):
        for column in range(0, _W + 40, 40):
            x, y = np.array([column + 20 * (row // 40 % 2), row]) + rng.uniform(-7, 7, 2)
            _flower(pen, x, y, turn=rng.uniform(0, 2 * np.pi), size=rng.uniform(5, 7.5))
    share: _Grid = np.asarray(sheet, dtype=np.float32) / 255
    return share


def _flower(pen: ImageDraw.ImageDraw, x: float, y: float, *, turn: float, size: float) -> None:
    for angle in turn + np.arange(5) * 2 * np.pi / 5:
        px, py = x + 1.25 * size * np.cos(angle), y + 1.25 * size * np.sin(angle)
        pen.ellipse((px - size, py - size, px + size, py + size), fill=255)
    pen.ellipse((x - size / 2, y - size / 2, x + size / 2, y + size / 2), fill=60)


def _blobs(rng: np.random.Generator) -> _Grid:
    coarse = Image.fromarray(rng.integers(0, 256, (18, 13), dtype=np.uint8))
    cloud = np.asarray(coarse.resize((_W, _H), Image.Resampling.BICUBIC))
    share: _Grid = np.array([0, 0.45, 0.9], dtype=np.float32)[np.digitize(cloud, [100, 150])]
    return share


def _material_light(material: str, x: _Grid, y: _Grid, rng: np.random.Generator) -> _Grid:
    grain: _Grid = rng.standard_normal((_H, _W), dtype=np.float32)
    phase = float(rng.uniform(0, 6))
    if material == "denim":
        twill: _Grid = np.sign(np.sin((x + y) * 1.1))
        return 0.97 + 0.07 * twill + 0.06 * grain
    if material == "leather":
        shine: _Grid = np.clip(np.sin(x / 31 + y / 67 + phase), 0, 1)
        return 0.92 + 0.55 * shine**6 + 0.02 * grain
    if material == "knit":
        rows: _Grid = np.sign(np.sin(y * 0.35 + np.abs((x % 7) - 3.5) * 0.5))
        columns: _Grid = np.sin(x * 0.9)
        return 0.92 + 0.14 * columns * rows
    if material == "satin":
        folds: _Grid = np.sin(x / 26 + np.sin(y / 45) * 1.6 + phase)
        return 0.95 + 0.32 * folds
    if material == "linen":
        across: _Grid = np.sin(x * 1.6)
        down: _Grid = np.sin(y * 1.6)
        light: _Grid = 0.97 + 0.06 * across + 0.06 * down + 0.05 * grain
        return light
    if material == "suede":
        return 0.94 + 0.09 * grain
    return 0.99 + (0.045 if material == "canvas" else 0.02) * grain
