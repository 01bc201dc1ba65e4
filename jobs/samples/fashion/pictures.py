"""Draw the products of the made fashion shop: the shape of each kind of garment, on the canvas of ``sheet``.

Coordinates are shares of the canvas: x in 0..1 from left to right, y in 0..1 from top to bottom, on a 3:4 picture.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from jobs.samples.fashion.sheet import HEIGHT, WIDTH, Garment, Point, Sheet, mirrored, rounded


def draw_garment(garment: Garment, seed: int) -> bytes:
    """Draw one product picture.

    Args:
        garment: What to draw.
        seed: Chance of this picture: place, size, scatter of the pattern.

    Returns:
        A JPEG of 144x192 px. The same arguments give the same bytes (with one version of Pillow).
    """
    rng = np.random.default_rng(seed)
    sheet = Sheet(garment, rng)
    SHAPES[garment.kind](sheet, garment.cut)
    picture = sheet.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, format="JPEG", quality=85)
    return out.getvalue()


# --- garments: tops -------------------------------------------------------------------------------------------------


def _sleeves(sheet: Sheet, reach: int, drop: float = 0.0) -> None:
    """Both sleeves: ``reach`` 0 short, 1 to the elbow, 2 to the wrist."""
    cuff_y = (0.36, 0.50, 0.74)[reach] + drop
    cuff_x = (0.93, 0.95, 0.93)[reach]
    half = [(0.70, 0.165), (0.78, 0.20), (cuff_x, cuff_y - 0.03), (cuff_x - 0.13, cuff_y + 0.01), (0.70, 0.36)]
    for points in (half, [(1 - x, y) for x, y in half]):
        sheet.part(points, light=0.92)
    if reach == 2:
        for side in (1, -1):
            edge = [(0.5 + side * (cuff_x - 0.52), cuff_y - 0.07), (0.5 + side * (cuff_x - 0.615), cuff_y - 0.035)]
            sheet.seam(edge, 0.55, 3)


def _torso(sheet: Sheet, bottom: float, waist: float = 0.27, neck: float = 0.12) -> None:
    half = [(0.5 + neck, 0.14), (0.72, 0.175), (0.76, 0.24), (0.73, 0.36), (0.5 + waist - 0.02, 0.55)]
    sheet.part(mirrored([*half, (0.5 + waist, bottom)]), soft=1)


def _crew_neck(sheet: Sheet, depth: float = 0.055) -> None:
    opening = mirrored([(0.5, 0.128), (0.56, 0.13), (0.615, 0.138), (0.58, 0.138 + depth * 0.7), (0.5, 0.14 + depth)])
    sheet.plain(opening, sheet.colour * 0.45, soft=2)
    rim = [(0.375, 0.135), (0.41, 0.14 + depth * 0.8), (0.5, 0.145 + depth * 1.15)]
    rim += [(1 - x, y) for x, y in reversed(rim[:-1])]
    sheet.seam(rim, 0.62, 4)


def _v_neck(sheet: Sheet, depth: float = 0.15) -> None:
    sheet.plain([(0.40, 0.135), (0.5, 0.12), (0.60, 0.135), (0.5, 0.135 + depth)], sheet.colour * 0.45, soft=0)
    sheet.seam([(0.39, 0.137), (0.5, 0.145 + depth), (0.61, 0.137)], 0.62, 4)


def _tshirt(sheet: Sheet, cut: int) -> None:
    _sleeves(sheet, (0, 0, 2)[cut])
    _torso(sheet, 0.82)
    (_crew_neck, _v_neck, _crew_neck)[cut](sheet)
    sheet.print_motif(0.5, 0.45, 0.15)
    sheet.seam([(0.25, 0.795), (0.75, 0.795)], 0.7)
    sheet.mark(0.61, 0.30)


def _shirt(sheet: Sheet, cut: int) -> None:
    _sleeves(sheet, (2, 0, 2)[cut])
    _torso(sheet, 0.85, waist=0.25)
    sheet.seam([(0.5, 0.20), (0.5, 0.845)], 0.55, 3)
    for y in np.arange(0.26, 0.84, 0.11):
        sheet.disc(0.515, float(y), 0.011, (235, 232, 224), outline=True)
    for side in (1, -1):
        collar = [(0.5, 0.20), (0.5 + side * 0.045, 0.12), (0.5 + side * 0.13, 0.135), (0.5 + side * 0.10, 0.225)]
        sheet.trim(collar, light=0.95)
    if cut != 2:
        sheet.seam([(0.57, 0.33), (0.68, 0.33), (0.68, 0.43), (0.57, 0.43), (0.57, 0.33)], 0.6)
    sheet.mark(0.625, 0.36, 0.03)


def _sweater(sheet: Sheet, cut: int) -> None:
    _sleeves(sheet, 2)
    _torso(sheet, 0.82, waist=0.26)
    (_crew_neck, _v_neck, _roll_neck)[cut](sheet)
    sheet.trim(mirrored([(0.5, 0.775), (0.755, 0.775), (0.75, 0.835), (0.5, 0.835)]), light=0.8)
    for x in np.arange(0.26, 0.75, 0.03):
        sheet.seam([(float(x), 0.78), (float(x), 0.83)], 0.6, 1)
    sheet.mark(0.62, 0.32)


def _roll_neck(sheet: Sheet) -> None:
    sheet.trim(mirrored([(0.5, 0.07), (0.60, 0.075), (0.62, 0.165), (0.5, 0.185)]), light=0.85)
    sheet.seam([(0.40, 0.12), (0.60, 0.12)], 0.6)


def _hoodie(sheet: Sheet, cut: int) -> None:
    sheet.part(mirrored([(0.5, 0.05), (0.61, 0.06), (0.67, 0.13), (0.64, 0.20), (0.5, 0.24)]), light=0.8)
    _sleeves(sheet, 2)
    _torso(sheet, 0.82, waist=0.27, neck=0.14)
    sheet.plain(mirrored([(0.5, 0.09), (0.58, 0.10), (0.60, 0.155), (0.5, 0.215)]), sheet.colour * 0.4)
    for side in (1, -1):
        sheet.line([(0.5 + side * 0.05, 0.205), (0.5 + side * 0.055, 0.34)], (245, 245, 240), 3)
    pocket = mirrored([(0.5, 0.56), (0.62, 0.56), (0.70, 0.66), (0.70, 0.745), (0.5, 0.745)])
    sheet.outline(pocket, 0.6)
    if cut == 1:
        sheet.line([(0.5, 0.215), (0.5, 0.82)], (200, 200, 204), 4)
    sheet.trim(mirrored([(0.5, 0.785), (0.765, 0.785), (0.76, 0.835), (0.5, 0.835)]), light=0.8)
    sheet.print_motif(0.5, 0.44, 0.12)
    sheet.mark(0.63, 0.33)


def _top(sheet: Sheet, cut: int) -> None:
    bottom = (0.76, 0.66, 0.80)[cut]
    strap = (0.035, 0.02, 0.07)[cut]
    half = [(0.58, 0.27), (0.60, 0.12), (0.60 + strap, 0.12), (0.66, 0.27), (0.71, 0.36), (0.69, 0.54)]
    sheet.part(mirrored([(0.5, 0.31), *half, (0.74, bottom)]), soft=1)
    sheet.seam([(0.295, bottom - 0.025), (0.705, bottom - 0.025)], 0.7)
    sheet.print_motif(0.5, 0.48, 0.12)
    sheet.mark(0.60, 0.36)


def _jacket(sheet: Sheet, cut: int) -> None:
    bottom = (0.76, 0.80, 0.95)[cut]  # zip jacket, blazer, coat
    _sleeves(sheet, 2)
    _torso(sheet, bottom, waist=0.265 + 0.02 * (cut == 2), neck=0.13)
    sheet.plain([(0.40, 0.13), (0.5, 0.12), (0.60, 0.13), (0.5, 0.20 if cut == 0 else 0.46)], (232, 232, 228), soft=0)
    if cut == 0:
        sheet.trim(mirrored([(0.5, 0.20), (0.545, 0.095), (0.63, 0.12), (0.60, 0.20)]), light=0.8)
        sheet.line([(0.5, 0.19), (0.5, bottom)], (190, 190, 196), 5)
        sheet.trim(mirrored([(0.5, bottom - 0.05), (0.765, bottom - 0.05), (0.76, bottom), (0.5, bottom)]), light=0.75)
    else:
        _lapels(sheet, bottom)
    for side in (1, -1):
        pocket_y = bottom - (0.16 if cut < 2 else 0.27)
        sheet.seam([(0.5 + side * 0.10, pocket_y), (0.5 + side * 0.21, pocket_y - 0.02)], 0.5, 4)
    sheet.mark(0.63, 0.33)


def _lapels(sheet: Sheet, bottom: float) -> None:
    sheet.seam([(0.5, 0.45), (0.5, bottom)], 0.5, 3)
    for side in (1, -1):
        sheet.trim([(0.5, 0.47), (0.5 + side * 0.13, 0.27), (0.5 + side * 0.145, 0.21), (0.5 + side * 0.10, 0.115)])
    for y in np.arange(0.52, bottom - 0.08, 0.10):
        sheet.disc(0.53, float(y), 0.016, (40, 36, 34) if sheet.colour.mean() > 90 else (190, 186, 176), outline=True)


# --- garments: dresses and bottoms ----------------------------------------------------------------------------------


def _dress(sheet: Sheet, cut: int) -> None:
    hem, flare = ((0.70, 0.30), (0.83, 0.33), (0.95, 0.36))[cut]
    if cut == 1:
        _short_cap_sleeves(sheet)
    half = [(0.56, 0.19), (0.585, 0.07), (0.63, 0.07), (0.66, 0.20), (0.655, 0.30), (0.61, 0.42)]
    sheet.part(mirrored([(0.5, 0.22), *half]), soft=1)
    sheet.part(mirrored([(0.5, 0.415), (0.612, 0.415), (0.5 + flare * 0.72, hem * 0.8), (0.5 + flare, hem)]), soft=1)
    for x, spread in ((0.44, -0.10), (0.5, 0.0), (0.56, 0.10)):
        sheet.seam([(x, 0.46), (x + spread * flare * 3, hem - 0.02)], 0.72)
    sheet.plain(mirrored([(0.5, 0.405), (0.615, 0.405), (0.617, 0.435), (0.5, 0.437)]), sheet.accent * 0.8, soft=0)
    sheet.mark(0.56, 0.29, 0.025)


def _short_cap_sleeves(sheet: Sheet) -> None:
    half = [(0.60, 0.075), (0.70, 0.10), (0.80, 0.22), (0.71, 0.25), (0.63, 0.22)]
    for points in (half, [(1 - x, y) for x, y in half]):
        sheet.part(points, light=0.92)


def _skirt(sheet: Sheet, cut: int) -> None:
    hem, flare = ((0.62, 0.31), (0.80, 0.20), (0.86, 0.38))[cut]  # mini, pencil, long
    sheet.part(mirrored([(0.5, 0.18), (0.64, 0.18), (0.67, 0.30), (0.5 + flare * 0.9, hem - 0.08), (0.5 + flare, hem)]))
    sheet.trim(mirrored([(0.5, 0.155), (0.645, 0.155), (0.65, 0.205), (0.5, 0.205)]), light=0.75)
    folds = (-0.6, -0.3, 0.0, 0.3, 0.6) if cut != 1 else (0.0,)
    for fold in folds:
        sheet.seam([(0.5 + fold * 0.14, 0.26), (0.5 + fold * flare, hem - 0.03)], 0.7)
    sheet.mark(0.58, 0.255, 0.025)


def _legs(sheet: Sheet, hem: float, ankle: float, flare: float) -> None:
    leg = [(0.50, 0.10), (0.67, 0.10), (0.715, 0.30), (0.66 + flare, hem), (0.66 + flare - ankle, hem), (0.505, 0.40)]
    sheet.part(leg, soft=1)
    sheet.part([(1 - x, y) for x, y in leg], soft=1, light=0.96)
    sheet.trim(mirrored([(0.5, 0.075), (0.67, 0.075), (0.675, 0.125), (0.5, 0.125)]), light=0.85)
    sheet.seam([(0.5, 0.12), (0.5, 0.38)], 0.5, 3)
    for side in (1, -1):
        sheet.seam([(0.5 + side * 0.06, 0.13), (0.5 + side * 0.10, 0.19), (0.5 + side * 0.185, 0.205)], 0.55)
        for x in (0.07, 0.14):
            sheet.seam([(0.5 + side * x, 0.07), (0.5 + side * x, 0.13)], 0.5, 3)
    sheet.disc(0.5, 0.10, 0.013, (200, 170, 90), outline=True)
    sheet.mark(0.62, 0.17, 0.022)


def _trousers(sheet: Sheet, cut: int) -> None:
    ankle, flare = ((0.10, -0.02), (0.14, 0.01), (0.22, 0.10))[cut]  # skinny, straight, wide
    _legs(sheet, 0.95, ankle, flare)
    for side in (1, -1):
        sheet.seam([(0.5 + side * 0.10, 0.24), (0.5 + side * (0.15 + flare - ankle / 2), 0.92)], 0.78)


def _shorts(sheet: Sheet, cut: int) -> None:
    _legs(sheet, (0.52, 0.60, 0.68)[cut], 0.24, 0.12)


# --- garments: shoes ------------------------------------------------------------------------------------------------


def _trainers(sheet: Sheet, cut: int) -> None:
    collar = (0.36, 0.36, 0.22)[cut]
    upper = [(0.07, 0.60), (0.08, collar + 0.02), (0.20, collar), (0.34, collar + 0.02), (0.40, 0.43)]
    sheet.part([*upper, (0.62, 0.52), (0.86, 0.565), (0.94, 0.63), (0.93, 0.67), (0.07, 0.67)])
    sole = (244, 244, 240) if sheet.colour.mean() < 200 else sheet.accent
    sheet.plain([(0.05, 0.65), (0.95, 0.65), (0.955, 0.70), (0.92, 0.735), (0.07, 0.735), (0.045, 0.70)], sole)
    sheet.plain([(0.70, 0.55), (0.86, 0.57), (0.94, 0.635), (0.93, 0.655), (0.74, 0.655)], sheet.colour * 0.82)
    sheet.plain([(0.06, 0.50), (0.16, 0.48), (0.18, 0.655), (0.06, 0.655)], sheet.accent)
    for step in range(4):
        x, y = 0.42 + 0.065 * step, 0.45 + 0.03 * step
        sheet.line([(x - 0.035, y + 0.035), (x + 0.045, y - 0.012)], (250, 250, 250) if step % 2 else sheet.accent, 5)
    sheet.mark(0.38, 0.58, 0.06)


def _boots(sheet: Sheet, cut: int) -> None:
    top, heel = ((0.30, 0.02), (0.14, 0.03), (0.16, 0.075))[cut]  # ankle, tall, heeled
    ground = 0.80
    sole = ground - heel
    shaft = [(0.25, top), (0.53, top), (0.545, 0.50), (0.60, 0.59), (0.80, 0.635), (0.875, 0.70)]
    sheet.part([*shaft, (0.875, ground - 0.02), (0.60, ground - 0.02), (0.42, sole - 0.02), (0.22, sole - 0.02)])
    sheet.plain(
        [(0.43, sole - 0.025), (0.58, ground - 0.03), (0.885, ground - 0.03), (0.885, ground), (0.56, ground)],
        (52, 40, 34),
        soft=1,
    )
    sheet.plain([(0.22, sole - 0.03), (0.42, sole - 0.03), (0.40, ground), (0.24, ground)], (52, 40, 34), soft=0)
    sheet.seam([(0.265, top + 0.05), (0.515, top + 0.05)], 0.6, 3)
    if cut == 0:
        for step in range(4):
            sheet.line([(0.46, 0.40 + 0.05 * step), (0.58, 0.38 + 0.05 * step)], sheet.accent, 4)
    else:
        sheet.seam([(0.33, top + 0.08), (0.33, 0.66)], 0.6)
    sheet.mark(0.40, top + 0.12, 0.035)


def _heels(sheet: Sheet, cut: int) -> None:
    height = (0.10, 0.17, 0.24)[cut]
    back = 0.70 - height
    upper = [(0.10, back), (0.22, back + 0.01), (0.40, back + height * 0.45), (0.60, 0.64), (0.84, 0.67), (0.95, 0.725)]
    under = [
        (0.93, 0.745),
        (0.62, 0.745),
        (0.40, back + height * 0.72 + 0.04),
        (0.22, back + 0.10),
        (0.10, back + 0.09),
    ]
    sheet.part([*upper, *under])
    thick = (0.095, 0.045, 0.016)[cut]
    heel = [(0.11, back + 0.075), (0.15 + thick, back + 0.09), (0.125 + thick, 0.75), (0.12, 0.75)]
    sheet.plain(heel, sheet.colour * 0.7, soft=0)
    sheet.plain(
        [(0.24, back + 0.01), (0.40, back + height * 0.45), (0.60, 0.642), (0.44, back + height * 0.66)],
        (226, 204, 178),
        soft=1,
    )
    if cut == 1:
        sheet.line(
            [(0.105, back + 0.01), (0.17, back - 0.04), (0.26, back - 0.035), (0.37, back + 0.07)],
            sheet.colour * 0.8,
            5,
        )
    sheet.mark(0.78, 0.70, 0.03)


# --- accessories ----------------------------------------------------------------------------------------------------


def _arc(x: float, y: float, rx: float, ry: float, start: float, stop: float) -> list[Point]:
    angles = np.radians(np.linspace(start, stop, 24))
    return [(float(x + rx * np.cos(a)), float(y + ry * np.sin(a))) for a in angles]


def _handbag(sheet: Sheet, cut: int) -> None:
    if cut == 2:  # shoulder bag with a long strap and a flap
        sheet.line(_arc(0.5, 0.50, 0.36, 0.42, 180, 360), sheet.colour * 0.6, 7)
        sheet.part(mirrored([(0.5, 0.47), (0.87, 0.47), (0.89, 0.80), (0.5, 0.81)]), soft=2)
        sheet.part(mirrored([(0.5, 0.46), (0.88, 0.46), (0.87, 0.60), (0.5, 0.68)]), light=0.85)
        sheet.disc(0.5, 0.65, 0.03, (212, 178, 92), outline=True)
    else:
        reach = (0.17, 0.20)[cut]
        sheet.line(_arc(0.5, 0.42, reach, 0.21, 180, 360), sheet.colour * 0.6, 9)
        top, base = ((0.30, 0.39), (0.40, 0.33))[cut]
        sheet.part(mirrored([(0.5, 0.40), (0.5 + top, 0.40), (0.5 + base, 0.82), (0.5, 0.83)]))
        sheet.seam([(0.535 - top, 0.46), (0.465 + top, 0.46)], 0.6, 3)
        sheet.disc(0.5, 0.46, 0.022, (212, 178, 92), outline=True)
    sheet.mark(0.5, 0.73, 0.05)


def _backpack(sheet: Sheet, cut: int) -> None:
    sheet.line(_arc(0.5, 0.20, 0.10, 0.07, 180, 360), sheet.colour * 0.5, 8)
    for side in (1, -1):
        sheet.line(
            [(0.5 + side * 0.27, 0.36), (0.5 + side * 0.37, 0.52), (0.5 + side * 0.30, 0.80)], sheet.accent * 0.6, 11
        )
    sheet.part(mirrored([(0.5, 0.17), (0.70, 0.18), (0.80, 0.30), (0.82, 0.84), (0.5, 0.87)]))
    sheet.part(mirrored([(0.5, 0.56), (0.73, 0.56), (0.74, 0.80), (0.5, 0.81)]), light=0.8)
    sheet.line([(0.29, 0.60), (0.71, 0.60)], (205, 205, 208), 4)
    sheet.line([(0.27, 0.34), (0.36, 0.27), (0.64, 0.27), (0.73, 0.34)], (205, 205, 208) if cut else sheet.accent, 4)
    if cut == 2:
        sheet.plain(mirrored([(0.5, 0.30), (0.62, 0.30), (0.62, 0.46), (0.5, 0.46)]), sheet.accent)
    sheet.mark(0.5, 0.70, 0.05)


def _cap(sheet: Sheet, cut: int) -> None:
    if cut == 2:  # woollen hat
        sheet.part(mirrored([(0.5, 0.24), (0.66, 0.27), (0.76, 0.42), (0.78, 0.60), (0.5, 0.62)]))
        sheet.trim(mirrored([(0.5, 0.57), (0.80, 0.55), (0.81, 0.69), (0.5, 0.71)]), light=0.8)
        sheet.disc(0.5, 0.22, 0.075, sheet.accent, outline=True)
    else:
        sheet.part([(0.14, 0.60), (0.16, 0.44), (0.28, 0.33), (0.46, 0.30), (0.62, 0.36), (0.70, 0.48), (0.71, 0.60)])
        sheet.plain(
            [(0.52, 0.575), (0.72, 0.57), (0.92, 0.62), (0.96, 0.665), (0.72, 0.645), (0.50, 0.64)],
            sheet.accent if cut else sheet.colour * 0.75,
        )
        sheet.seam([(0.44, 0.305), (0.40, 0.46), (0.42, 0.60)], 0.6)
        sheet.disc(0.44, 0.30, 0.022, sheet.colour * 0.7, outline=True)
    sheet.mark(0.57, 0.50, 0.05)


def _scarf(sheet: Sheet, cut: int) -> None:
    length = (0.78, 0.86, 0.70)[cut]
    tail = [(0.52, 0.30), (0.68, 0.32), (0.70, length), (0.53, length)]
    sheet.part(tail, light=0.9, soft=1)
    sheet.part([(0.34, 0.30), (0.50, 0.32), (0.46, length - 0.08), (0.30, length - 0.09)], soft=1)
    sheet.part(mirrored([(0.5, 0.13), (0.66, 0.16), (0.74, 0.25), (0.67, 0.345), (0.5, 0.38)]))
    sheet.plain(mirrored([(0.5, 0.165), (0.60, 0.175), (0.62, 0.215), (0.5, 0.245)]), (214, 214, 212))
    for x in np.arange(0.54, 0.70, 0.025):
        sheet.seam([(float(x), length), (float(x), length + 0.04)], 0.7)
    for x in np.arange(0.31, 0.46, 0.025):
        sheet.seam([(float(x), length - 0.085), (float(x), length - 0.045)], 0.7)


def _sunglasses(sheet: Sheet, cut: int) -> None:
    lens = sheet.accent * 0.45
    for side in (1, -1):
        x = 0.5 + side * 0.22
        if cut == 0:
            shape = _arc(x, 0.50, 0.17, 0.125, 0, 360)[:-1]
        elif cut == 1:
            shape = [(x - 0.18, 0.42), (x + 0.18, 0.42), (x + 0.165, 0.58), (x - 0.165, 0.58)]
        else:  # cat eye
            shape = [(x - side * 0.17, 0.45), (x + side * 0.20, 0.38), (x + side * 0.14, 0.58), (x - side * 0.12, 0.58)]
        sheet.plain(shape, lens, soft=2)
        outline = rounded(shape)
        sheet.line([*outline, outline[0]], sheet.colour, 10)
        sheet.line([(x - 0.06, 0.47), (x, 0.44)], (235, 240, 245), 4)
        sheet.line([(0.5 + side * 0.39, 0.45), (0.5 + side * 0.455, 0.40)], sheet.colour * 0.8, 9)
    sheet.line([(0.44, 0.475), (0.5, 0.455), (0.56, 0.475)], sheet.colour, 9)


def _watch(sheet: Sheet, cut: int) -> None:
    for sign in (1, -1):
        strap = [(0.40, 0.5), (0.60, 0.5), (0.575, 0.5 + sign * 0.40), (0.425, 0.5 + sign * 0.40)]
        sheet.part(strap, soft=1, light=0.95)
    for y in (0.80, 0.84, 0.88):
        sheet.disc(0.5, y, 0.012, sheet.colour * 0.4)
    case = (206, 172, 88) if cut == 1 else (188, 192, 198)
    if cut == 2:
        sheet.plain(mirrored([(0.5, 0.37), (0.68, 0.37), (0.68, 0.63), (0.5, 0.63)]), case)
        sheet.plain(mirrored([(0.5, 0.40), (0.64, 0.40), (0.64, 0.60), (0.5, 0.60)]), sheet.accent)
    else:
        sheet.disc(0.5, 0.5, 0.215, case, outline=True)
        sheet.disc(0.5, 0.5, 0.165, sheet.accent, outline=True)
    ink = (20, 20, 20) if sheet.accent.mean() > 120 else (245, 245, 245)
    for angle in np.arange(0, 360, 30):
        a = np.radians(angle)
        sheet.disc(0.5 + 0.13 * np.cos(a), 0.5 + 0.13 * 0.75 * np.sin(a), 0.008, ink)
    sheet.line([(0.5, 0.42), (0.5, 0.5), (0.58, 0.535)], ink, 4)
    sheet.disc(0.5 + 0.225, 0.5, 0.02, case, outline=True)


def _socks(sheet: Sheet, cut: int) -> None:
    top = (0.18, 0.36, 0.12)[cut]
    foot = [(0.60, 0.60), (0.64, 0.70), (0.86, 0.78), (0.90, 0.85), (0.84, 0.90), (0.50, 0.88), (0.36, 0.78)]
    for shift, light in ((0.02, 0.88), (-0.14, 1.0)):
        sheet.part([(x + shift, y) for x, y in [(0.36, top), (0.60, top), *foot]], light=light)
        band = [(0.355, top - 0.005), (0.605, top - 0.005), (0.605, top + 0.06), (0.355, top + 0.06)]
        sheet.plain([(x + shift, y) for x, y in band], sheet.accent, soft=0)
    sheet.plain([(0.26, 0.70), (0.225, 0.79), (0.37, 0.88), (0.42, 0.86)], sheet.accent)
    sheet.mark(0.34, top + 0.16, 0.04)


SHAPES: dict[str, Callable[[Sheet, int], None]] = {
    "t-shirt": _tshirt,
    "shirt": _shirt,
    "sweater": _sweater,
    "hoodie": _hoodie,
    "top": _top,
    "jacket": _jacket,
    "dress": _dress,
    "skirt": _skirt,
    "trousers": _trousers,
    "shorts": _shorts,
    "trainers": _trainers,
    "boots": _boots,
    "heels": _heels,
    "handbag": _handbag,
    "backpack": _backpack,
    "hat": _cap,
    "scarf": _scarf,
    "sunglasses": _sunglasses,
    "watch": _watch,
    "socks": _socks,
}
