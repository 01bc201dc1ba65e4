"""Read a product catalogue of the user's own, in the landing contract: items with pictures as bytes or as files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Generic, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from jobs.landing.checks import RowRules
from jobs.landing.files import FORMATS, LandingFile, landing_files
from jobs.landing.rows import FILE_LINE, TALLY_LINE, file_batches
from jobs.runtime.entry import say
from lte_models.encoders.base import item_text
from lte_models.encoders.images import ImageError, decode_image, image_bytes

COLUMNS = (
    "item_id",
    "title",
    "description",
    "category",
    "brand",
    "price_tier",
    "season",
    "price",
    "image",
    "image_path",
)

MAX_UNREADABLE_SHARE = 0.01

# The rules of a deployment are about interactions; there are no rules for items.
_RULES = RowRules(types=(), earliest=date.min)
_NO_DAY = date.min
Kept = TypeVar("Kept")


class CatalogueError(ValueError):
    """A catalogue that cannot be used; the message names the file, the column or the item."""


@dataclass(frozen=True)
class PicturedItems(Generic[Kept]):
    """Items whose picture could be read.

    Attributes:
        item_ids: N ids.
        texts: N texts, as the encoder of the basis writes them.
        pictures: Result of ``keep`` for each of the N pictures.
    """

    item_ids: list[str]
    texts: list[str]
    pictures: list[Kept]


def read_catalogue(path: Path) -> pd.DataFrame:
    """Read a catalogue as ingest reads items (docs/landing.md): one file, a landing folder, or its ``items`` folder.

    Args:
        path: File or folder. ``item_id`` and ``title`` are required, other columns of the landing contract optional.
            Pictures are bytes in ``image`` (Parquet), or files in ``image_path`` (see :func:`picture_folder`).

    Returns:
        One row per item (the newest of the ``ds`` folders), all columns of the contract: ids and texts as strings,
        price as a float, missing values null, a missing title empty.

    Raises:
        CatalogueError: The file does not exist or holds no item, a file or a row breaks the contract, or an id repeats
            in a catalogue without landing days.
        jobs.landing.files.LandingError: A folder ``ds=…`` names no day, or a file may not be read.
    """
    root, files = _files(path)
    rows = pa.Table.from_batches([batch for file in files for batch in file_batches(str(root), file, _RULES)])
    rows = rows.filter(pc.not_equal(rows["line"], TALLY_LINE))
    _refuse_bad_rows(path, rows.filter(rows["reason"].is_valid()))
    repeated = rows.select(["landing_ds", "item_id"]).to_pandas().duplicated().to_numpy()
    _refuse_or_tell_repeated(path, rows.filter(pa.array(repeated)))
    if not rows.num_rows:
        raise CatalogueError(f"catalogue {path}: there is no item in it")
    items = rows.filter(pa.array(~repeated)).select(list(COLUMNS)).to_pandas()
    return items.drop_duplicates("item_id", keep="last").reset_index(drop=True)


def _files(path: Path) -> tuple[Path, list[LandingFile]]:
    """The files of a catalogue in order of landing day and name, and the folder that their names are relative to."""
    path = path.resolve()
    if path.is_file():
        return path.parent, [LandingFile(_NO_DAY, "items", path.name, path.stat().st_size)]
    folder = path / "items" if (path / "items").is_dir() else path
    files = landing_files(str(folder.parent), folder.name) or list(_files_without_day(folder))
    if not files:
        found = (
            f"no file {', '.join(f'*.{name}' for name in FORMATS)} in it" if path.exists() else "no such file or folder"
        )
        raise CatalogueError(
            f"catalogue {path}: {found}; docs/fashion.md says what a catalogue is and where to get one"
        )
    return folder.parent, [replace(file, target="items") for file in files]


def _files_without_day(folder: Path) -> Iterator[LandingFile]:
    """Files of a folder without landing days, such as a folder that Spark wrote; it may hold pictures, too."""
    for file in sorted(folder.glob("*")):
        found = LandingFile(_NO_DAY, "items", f"{folder.name}/{file.name}", 0)
        if found.format and file.is_file() and file.name[0] not in "_.":
            yield found


def _refuse_bad_rows(path: Path, bad: pa.Table) -> None:
    if not bad.num_rows:
        return
    first = bad.slice(0, 1).to_pylist()[0]
    place = first["source_file"] + (f", line {first['line']}" if first["line"] != FILE_LINE else "")
    count = f"{bad.num_rows} bad rows {dict(Counter(bad['reason'].to_pylist()))}, first " if bad.num_rows > 1 else ""
    raise CatalogueError(
        f"catalogue {path}: {count}{place}: {first['reason']}: {first['detail']} (docs/landing.md has the columns)"
    )


def _refuse_or_tell_repeated(path: Path, repeated: pa.Table) -> None:
    """Keep the first row of an item per landing day, as ingest does; in a file without a day, refuse a repeated id."""
    if not repeated.num_rows:
        return
    first = repeated.slice(0, 1).to_pylist()[0]
    place = f"{first['source_file']}, line {first['line']}: item_id {first['item_id']!r} occurs more than once"
    if first["landing_ds"] == _NO_DAY:
        raise CatalogueError(f"catalogue {path}: {place} ({repeated.num_rows} rows repeat an earlier one)")
    say("catalogue", f"{path}: {place} on its day; {repeated.num_rows} such rows left out")


def picture_folder(path: Path) -> Path:
    """Folder that ``image_path`` is relative to: the folder of a catalogue file, or the landing folder."""
    return path if (path / "items").is_dir() else path.parent


def texts_of(items: pd.DataFrame) -> list[str]:
    """The text of each item, by the rule of the basis: title, description, category, brand."""
    columns = [items[name].fillna("").astype(str) for name in ("title", "description", "category", "brand")]
    return [item_text(*parts) for parts in zip(*columns, strict=True)]


def pictured_items(items: pd.DataFrame, folder: Path, keep: Callable[[Image.Image], Kept]) -> PicturedItems[Kept]:
    """Decode the pictures one by one; items without a picture are left out.

    Args:
        items: From :func:`read_catalogue`.
        folder: From :func:`picture_folder`.
        keep: Reduces a decoded picture (RGB, full size) to the part that stays in memory. Resize here: the decoded
            photos of a catalogue do not fit into memory.

    Raises:
        CatalogueError: More than one picture in a hundred cannot be read, or there is no picture.
    """
    pictures: dict[int, Kept] = {}
    reasons: Counter[str] = Counter()
    for row, (image, image_path) in enumerate(zip(items["image"], items["image_path"], strict=True)):
        try:
            encoded = image_bytes(image, image_path, folder)
            if encoded is not None:
                pictures[row] = keep(decode_image(encoded))
        except ImageError as error:
            reasons[error.reason] += 1
    _check_readable(reasons, len(pictures), folder)
    kept = items.iloc[list(pictures)]
    return PicturedItems(kept["item_id"].tolist(), texts_of(kept), list(pictures.values()))


def _check_readable(reasons: Counter[str], n_readable: int, folder: Path) -> None:
    unreadable = reasons.total()
    if n_readable == 0 or unreadable > MAX_UNREADABLE_SHARE * (n_readable + unreadable):
        raise CatalogueError(
            f"catalogue {folder}: {n_readable} pictures can be read, {unreadable} not: {dict(reasons)}"
        )
    if unreadable:
        say("catalogue", f"{folder}: {unreadable} pictures left out: {dict(reasons)}")
