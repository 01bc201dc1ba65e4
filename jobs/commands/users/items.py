"""Search the semantic basis by words or by a picture, and draw the items found, so that a person can judge the basis.

The query is encoded by the encoder of the configuration; items are ranked by the cosine of their vector in the basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from jobs.basis.basis import encoder_config
from jobs.basis.nearest import NearItem, nearest_items
from jobs.config.sections import Deployment
from jobs.lake.reader import LakeReader, lake_reader
from lte_models.encoders.base import EncoderConfig, Float32Array, unit_rows
from lte_models.encoders.images import ImageError, decode_image, image_bytes
from lte_models.encoders.loading import basis_version, load_encoder
from lte_models.files import replacing
from schemas import ITEMS

TILE, LABEL, COLUMNS, MARGIN = 150, 44, 8, 8
_BLANK = (228, 228, 228)


class SearchError(ValueError):
    """A search that is impossible; the message names what is missing."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        query: The words, or the name of the picture file.
        picture: The picture of the query; None for a query of words.
        items: Nearest first.
    """

    query: str
    picture: Image.Image | None
    items: tuple[NearItem, ...]

    def as_json(self) -> dict[str, object]:
        """Query and items as plain values."""
        return {"query": self.query, "items": [dict(vars(item)) for item in self.items]}


def search_items(
    deployment: Deployment, *, like: str | None = None, like_image: Path | None = None, n: int = 24
) -> Found:
    """Find the items of the basis that are most like a text or a picture.

    Args:
        deployment: Names encoder and tables.
        like: Words, such as ``red floral dress``.
        like_image: A picture file (JPEG, PNG, WebP, GIF). Give exactly one of the two.
        n: How many items.

    Raises:
        SearchError: The query is missing or double, the picture is unreadable, or this basis has no items yet.
        lte_models.encoders.base.EncoderError: The encoder cannot be built, or reads no pictures.
    """
    if bool(like and like.strip()) == bool(like_image):
        raise SearchError("search by words or by a picture: give exactly one of --like and --like-image")
    config = encoder_config(deployment.basis)
    picture = _read_picture(like_image) if like_image else None
    vector = _encode(config, like or "", picture)
    version = basis_version(config)
    items = nearest_items(lake_reader(deployment), vector, version, n)
    if not items:
        raise SearchError(f"table item_embeddings: nothing in basis {version} yet; run embed_items first")
    return Found(like or str(like_image and like_image.name), picture, items)


def _read_picture(path: Path) -> Image.Image:
    try:
        return decode_image(path.read_bytes())
    except (ImageError, OSError) as error:
        raise SearchError(f"--like-image {path}: {error}") from error


def _encode(config: EncoderConfig, words: str, picture: Image.Image | None) -> Float32Array:
    """Unit vector of the query: float32 [D]."""
    encoder = load_encoder(config)
    rows = encoder.encode_texts([words]) if picture is None else encoder.encode_images([picture])
    vector: Float32Array = unit_rows(rows, [words or "picture"])[0]
    return vector


def pictures_of(deployment: Deployment, item_ids: Sequence[str]) -> dict[str, Image.Image]:
    """The newest readable picture of each item; items without one are left out."""
    newest: dict[str, Image.Image] = {}
    for row in _picture_rows(lake_reader(deployment), item_ids):
        try:
            encoded = image_bytes(row["image"], row["image_path"], Path(deployment.paths.landing))
            if encoded is not None:
                newest[row["item_id"]] = decode_image(encoded)
        except ImageError:
            continue  # embed_items counts unreadable pictures; the sheet shows an older one, or a grey tile
    return newest


def _picture_rows(lake: LakeReader, item_ids: Sequence[str]) -> list[dict[str, Any]]:
    columns = ["item_id", "image", "image_path", "landing_ds"]
    rows = lake.rows(ITEMS, columns=columns, where={"item_id": list(item_ids)})
    return sorted(rows, key=lambda row: row["landing_ds"])


def contact_sheet(found: Found, pictures: dict[str, Image.Image]) -> Image.Image:
    """Draw the query and the items found, nearest first: picture, cosine and title per item.

    Args:
        found: From :func:`search_items`.
        pictures: Picture by item id; a missing one is a grey tile.
    """
    rows = -(-len(found.items) // COLUMNS)
    head = TILE + MARGIN if found.picture else 28
    sheet = Image.new("RGB", (COLUMNS * (TILE + MARGIN) + MARGIN, head + rows * (TILE + LABEL) + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    if found.picture:
        sheet.paste(_tile(found.picture), (MARGIN, MARGIN // 2))
    pen.text(
        (MARGIN + (TILE + MARGIN if found.picture else 0), 6),
        f"like: {found.query}",
        "black",
        ImageFont.load_default(15),
    )
    for place, item in enumerate(found.items):
        x = MARGIN + place % COLUMNS * (TILE + MARGIN)
        y = head + place // COLUMNS * (TILE + LABEL)
        sheet.paste(_tile(pictures.get(item.item_id)), (x, y))
        pen.multiline_text((x, y + TILE), _label(item), "black", ImageFont.load_default(10), spacing=1)
    return sheet


def _tile(picture: Image.Image | None) -> Image.Image:
    if picture is None:
        return Image.new("RGB", (TILE, TILE), _BLANK)
    return ImageOps.pad(picture, (TILE, TILE), color="white")


def _label(item: NearItem, width: int = 27) -> str:
    """Cosine and title in at most three lines."""
    lines, line = [], f"{item.cosine:.3f}"
    for word in (item.title or "").split():
        if len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}"
    return "\n".join([*lines, line][:3])


def write_sheet(deployment: Deployment, found: Found, out: Path) -> None:
    """Draw the contact sheet and write it to a PNG file; a failure leaves no partial file."""
    sheet = contact_sheet(found, pictures_of(deployment, [item.item_id for item in found.items]))
    with replacing(out) as unfinished:
        sheet.save(unfinished, format="PNG")


def found_text(found: Found) -> str:
    """The items found, for a terminal."""
    return "\n".join(f"{item.cosine:.3f}  {item.item_id}  {item.title or ''}".rstrip() for item in found.items)
