"""Make the data of a fashion shop, pictures included, in the landing layout. **Made data**: nobody in it is real.

The planted effects and their settings: see ``ShopConfig`` in :mod:`jobs.samples.fashion.users`. With ``--taste 0``
nothing about a user outlasts a few weeks, so no long-term embedding can help: the negative control.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.landing.catalogue import CatalogueError, picture_folder, read_catalogue
from jobs.runtime.entry import run_job, say
from jobs.samples.fashion.items import make_items
from jobs.samples.fashion.users import (
    ALL_YEAR,
    SEASONS,
    Shelf,
    ShopConfig,
    ShopError,
    check_setting,
    peak_days,
    simulate_interactions,
    stock_shelf,
)
from lte_models.encoders.images import ImageError, image_bytes
from lte_models.files import replacing

ITEM_COLUMNS = ("item_id", "title", "description", "category", "brand", "price", "price_tier", "season", "image")
MADE_FILE = "MADE_DATA.json"


def write_interactions(interactions: pd.DataFrame, folder: Path) -> int:
    """Write ``interactions/ds=…/part-0.parquet``, one file per UTC day.

    Returns:
        Number of days written.
    """
    table = pa.Table.from_pandas(interactions, preserve_index=False)
    day = interactions["event_ts"].dt.floor("D")
    starts = day.drop_duplicates().index.tolist()  # rows are ordered by time
    for start, end in zip(starts, [*starts[1:], len(interactions)], strict=True):
        _write(table.slice(start, end - start), folder / "interactions" / f"ds={day.iloc[start]:%Y-%m-%d}")
    return len(starts)


def write_items(items: pd.DataFrame, shelf: Shelf, config: ShopConfig, folder: Path) -> None:
    """Write ``items/ds=…/part-0.parquet``: each item on the day of its launch, at the latest on the last day.

    Items launched before the first day land on the first.
    """
    day = pd.Series(shelf.launched).clip(0, config.days - 1)
    landing_ds = (pd.Timestamp(config.first_day) + pd.to_timedelta(day, unit="D")).dt.strftime("%Y-%m-%d")
    columns = [name for name in (*ITEM_COLUMNS, "image_path") if name in items and items[name].notna().any()]
    for ds, rows in items.groupby(landing_ds.to_numpy(), sort=True):
        _write(pa.Table.from_pandas(rows[columns], preserve_index=False), folder / "items" / f"ds={ds}")


def _write(table: pa.Table, folder: Path) -> None:
    folder.mkdir(parents=True)
    pq.write_table(table.replace_schema_metadata(None), folder / "part-0.parquet")


def catalogue_with_pictures(path: Path) -> pd.DataFrame:
    """A catalogue of the user's own; pictures in files are read into the table, so that the landing folder is whole.

    Raises:
        CatalogueError: It cannot be read, or a picture file is missing or outside the catalogue's folder.
    """
    items = read_catalogue(path)
    folder = picture_folder(path)
    pairs = zip(items["item_id"], items["image"], items["image_path"], strict=True)
    items["image"] = pd.Series([_picture(path, folder, *pair) for pair in pairs], dtype=object)
    _tell_unknown_seasons(path, items["season"])
    return items.drop(columns="image_path")


def _tell_unknown_seasons(path: Path, seasons: pd.Series) -> None:
    unknown = seasons[seasons.notna() & (peak_days(seasons) == ALL_YEAR)].value_counts()
    if len(unknown):
        say(
            "make_fashion_data",
            f"catalogue {path}: column season: {unknown.head(5).to_dict()} of {len(seasons)} items is none of "
            f"{', '.join(SEASONS)}: these items sell all year",
        )


def _picture(path: Path, folder: Path, item_id: str, image: bytes | None, image_path: str | None) -> bytes | None:
    try:
        return image_bytes(image, image_path, folder)
    except ImageError as error:
        raise CatalogueError(f"catalogue {path}: item {item_id}: no picture file in {folder}: {error}") from error


def make_shop(items: pd.DataFrame, config: ShopConfig, out: Path) -> dict[str, object]:
    """Simulate a shop with these items and write its landing folder, whole or not at all.

    Args:
        items: From :func:`jobs.samples.fashion.items.make_items` or :func:`catalogue_with_pictures`.
        config: Settings.
        out: A folder that does not exist yet.

    Returns:
        Counts and settings, also written to ``MADE_DATA.json``.

    Raises:
        ShopError: ``out`` exists.
        ShopSettingError: There are so few users and days that nobody comes.
    """
    if out.exists():
        raise ShopError(f"{out} exists: remove it, or name another folder")
    shelf = stock_shelf(items, config)
    interactions = simulate_interactions(items, shelf, config)
    with replacing(out) as unfinished:
        return _write_shop(items, shelf, interactions, config, unfinished)


def _write_shop(
    items: pd.DataFrame, shelf: Shelf, interactions: pd.DataFrame, config: ShopConfig, folder: Path
) -> dict[str, object]:
    write_items(items, shelf, config, folder)
    summary: dict[str, object] = {
        "note": "Made data: simulated users; see jobs/samples/fashion.",
        "items": len(items),
        "interactions": len(interactions),
        "users_with_interactions": int(interactions["user_id"].nunique()),
        "markets": int(interactions["market"].nunique()),
        "days": write_interactions(interactions, folder),
        "types": interactions["interaction_type"].value_counts().to_dict(),
        "settings": asdict(config),
    }
    (folder / MADE_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make_fashion_data", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="landing folder to make; must not exist")
    parser.add_argument("--items", type=int, default=5000, help="made items (without --catalogue)")
    parser.add_argument(
        "--catalogue", type=Path, help="your own items, pictures as bytes or files, instead of made ones"
    )
    for setting in fields(ShopConfig):
        flag = f"--{setting.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(setting.default), default=setting.default)
    parser.add_argument("--json", action="store_true", help="as with every command; the answer is JSON anyway")
    return parser


def run(args: argparse.Namespace) -> dict[str, object]:
    """Make the shop that the flags describe; returns the summary.

    Raises:
        ShopSettingError: A flag is out of its range.
    """
    check_setting("items", args.items, 1, math.inf)
    config = ShopConfig(**{setting.name: getattr(args, setting.name) for setting in fields(ShopConfig)})
    items = catalogue_with_pictures(args.catalogue) if args.catalogue else make_items(args.items, config.seed)
    return make_shop(items, config, args.out)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the data; prints what was made."""
    print(json.dumps(run(_parser().parse_args(argv)), indent=2))


if __name__ == "__main__":
    run_job(main)
