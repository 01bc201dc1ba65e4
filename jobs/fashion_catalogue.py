"""Read a product catalogue of the user's own: a table of items with their pictures as bytes or as files."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset as pads
from PIL import Image

from lte_models.encoder_images import ImageError, decode_image, image_bytes
from lte_models.encoders import item_text

TEXT_COLUMNS = ("title", "description", "category", "brand", "price_tier", "season")
OPTIONAL_COLUMNS = (*TEXT_COLUMNS[1:], "price", "image", "image_path")
MAX_UNREADABLE_SHARE = 0.01
_FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".json": "json"}


class CatalogueError(ValueError):
    """A catalogue that cannot be used; the message names the file, the column or the item."""


@dataclass(frozen=True)
class PicturedItems:
    """Items whose picture could be read.

    Attributes:
        item_ids: N ids.
        texts: N texts, as the encoder of the basis writes them.
        pictures: N RGB pictures.
    """

    item_ids: list[str]
    texts: list[str]
    pictures: list[Image.Image]


def read_catalogue(path: Path) -> pd.DataFrame:
    """Read a catalogue file (Parquet, CSV, JSON lines), a landing folder, or its ``items`` folder.

    Args:
        path: File or folder. ``item_id`` and ``title`` are required, other columns of the landing contract optional.
            Pictures are bytes in ``image``, or files in ``image_path`` (see :func:`picture_folder`).

    Returns:
        One row an item (the newest of each ``ds`` folder), all columns of the contract, missing ones null.

    Raises:
        CatalogueError: There is no such file, a column is missing, or an id repeats.
    """
    items = _read(path)
    missing = {"item_id", "title"} - set(items.columns)
    if missing:
        raise CatalogueError(f"catalogue {path}: no column {sorted(missing)}")
    items = items.reindex(columns=["item_id", "title", *OPTIONAL_COLUMNS])
    items["item_id"] = items["item_id"].astype(str)
    items["image_path"] = items["image_path"].replace("", None)  # how CSV writes nothing
    repeated = items["item_id"][items["item_id"].duplicated()]
    if path.is_file() and len(repeated):
        raise CatalogueError(f"catalogue {path}: item_id {repeated.iloc[0]!r} occurs more than once")
    return items.drop_duplicates("item_id", keep="last").reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    folder = path / "items" if (path / "items").is_dir() else path
    files = sorted(folder.rglob("*.*")) if folder.is_dir() else [path]
    files = [file for file in files if file.suffix in _FORMATS]
    if not files or not files[0].is_file():
        raise CatalogueError(f"catalogue {path}: no Parquet, CSV or JSON lines file there")
    frames = [pads.dataset(file, format=_FORMATS[file.suffix]).to_table().to_pandas() for file in files]
    return pd.concat(frames, ignore_index=True)


def picture_folder(path: Path) -> Path:
    """Where ``image_path`` is relative to: the folder of a catalogue file, or the landing folder."""
    return path if (path / "items").is_dir() else path.parent


def texts_of(items: pd.DataFrame) -> list[str]:
    """The text of each item, by the rule of the basis: title, description, category, brand."""
    columns = [items[name].fillna("").astype(str) for name in ("title", "description", "category", "brand")]
    return [item_text(*parts) for parts in zip(*columns, strict=True)]


def pictured_items(items: pd.DataFrame, folder: Path) -> PicturedItems:
    """Decode the pictures; items without one are left out.

    Args:
        items: From :func:`read_catalogue`.
        folder: From :func:`picture_folder`.

    Raises:
        CatalogueError: More than one picture in a hundred cannot be read, or there is none.
    """
    pictures: dict[int, Image.Image] = {}
    reasons: Counter[str] = Counter()
    for row, (image, image_path) in enumerate(zip(items["image"], items["image_path"], strict=True)):
        try:
            encoded = image_bytes(_or_none(image), _or_none(image_path), folder)
            if encoded is not None:
                pictures[row] = decode_image(encoded)
        except ImageError as error:
            reasons[error.reason] += 1
    _check_readable(reasons, len(pictures), folder)
    kept = items.iloc[list(pictures)]
    return PicturedItems(kept["item_id"].tolist(), texts_of(kept), list(pictures.values()))


def _or_none(cell: Any) -> Any:
    return None if cell is None or cell is pd.NA or isinstance(cell, float) else cell


def _check_readable(reasons: Counter[str], n_readable: int, folder: Path) -> None:
    unreadable = reasons.total()
    if n_readable == 0 or unreadable > MAX_UNREADABLE_SHARE * (n_readable + unreadable):
        raise CatalogueError(
            f"catalogue {folder}: {n_readable} pictures can be read, {unreadable} not: {dict(reasons)}"
        )
    if unreadable:
        print(f"{folder}: {unreadable} pictures left out: {dict(reasons)}", file=sys.stderr)
