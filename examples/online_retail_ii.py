"""An example of your own data: UCI Online Retail II as landing files (docs/landing.md).

The tables of the shop have other names, no interaction types, one line per basket position, and returns. Copy this file
and change what is different in your tables. ``ingest`` checks each landed row again.

    python examples/online_retail_ii.py FOLDER --out data/online_retail_ii/landing
    make run CONFIG=configs/online_retail_ii.toml DS=2011-12-08

FOLDER holds ``interactions.parquet`` (user_id, item_id, ts, Quantity, Price, Country) and ``items.parquet`` (item_id,
Description): the data set's sheets (doi 10.24432/C5CG6D, CC BY 4.0) as Parquet, customers and stock codes as ids.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

SALES = ("user_id", "item_id", "ts", "Quantity", "Price", "Country")
PRODUCTS = ("item_id", "Description")
NO_COUNTRY = "Unspecified"
# Upper ends of the price tiers, in pounds; fixed, so that no later price decides an earlier day's tier.
PRICE_TIERS = {"budget": 1.0, "low": 2.5, "mid": 5.0, "premium": float("inf")}


class SourceError(ValueError):
    """Files that this converter cannot read; the message names the file and the column."""


@dataclass(frozen=True)
class Landed:
    """What was written, and what was left out on purpose."""

    n_interactions: int
    n_days: int
    n_items: int
    n_not_sold: int
    n_merged: int


def read_source(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read some columns of a Parquet file.

    Raises:
        SourceError: The file is missing, empty or no Parquet, a column is missing, or a value is null.
    """
    try:
        found = pq.read_schema(path).names
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path}: cannot be read as Parquet: {error}") from error
    missing = [name for name in columns if name not in found]
    if missing:
        raise SourceError(f"{path}: no column {', '.join(missing)}; found {', '.join(found)}")
    rows = pq.read_table(path, columns=list(columns)).to_pandas()
    if rows.empty:
        raise SourceError(f"{path}: no rows")
    holes = rows.columns[rows.isna().any()].tolist()
    if holes:
        row = int(rows[holes[0]].isna().to_numpy().argmax())
        raise SourceError(f"{path}: column {holes[0]} is null in row {row}: {rows.iloc[row].to_dict()}")
    return rows


def sold(sales: pd.DataFrame) -> pd.DataFrame:
    """Sales alone: returns and cancellations (no quantity) and gifts and corrections (no price) are no interactions."""
    return sales[(sales["Quantity"] > 0) & (sales["Price"] > 0)].reset_index(drop=True)


def landing_interactions(sales: pd.DataFrame) -> pd.DataFrame:
    """Sales as landing rows, by time; two lines of one basket for the same item are one interaction.

    Timestamps are the shop's own clock. They are taken as UTC, so that a data day is a trading day.
    """
    rows = pd.DataFrame(
        {
            "user_id": sales["user_id"].astype(str),
            "item_id": sales["item_id"].astype(str),
            "event_ts": sales["ts"].dt.tz_localize("UTC"),
            "interaction_type": "purchase",
            "market": sales["Country"].where(sales["Country"] != NO_COUNTRY),
        }
    )
    rows = rows.drop_duplicates(["user_id", "item_id", "event_ts"])
    return rows.sort_values(["event_ts", "user_id", "item_id"], ignore_index=True)


def landing_items(products: pd.DataFrame, sales: pd.DataFrame) -> pd.DataFrame:
    """Products as landing rows with ``ds``, the day of their first sale; its median price is their price.

    A product that was never sold is left out: nobody can tell when it came into the shop.
    """
    first = sales.assign(ds=sales["ts"].dt.floor("D"), item_id=sales["item_id"].astype(str))
    first = first[first["ds"] == first.groupby("item_id")["ds"].transform("min")]
    price = first.groupby("item_id").agg(ds=("ds", "min"), price=("Price", "median")).reset_index()
    titles = products.assign(item_id=products["item_id"].astype(str), title=products["Description"].str.capitalize())
    rows = titles[["item_id", "title"]].merge(price, on="item_id").sort_values("item_id", ignore_index=True)
    ends = [0.0, *PRICE_TIERS.values()]
    rows["price_tier"] = pd.cut(rows["price"], ends, labels=list(PRICE_TIERS)).astype(str)
    return rows


def write_days(rows: pd.DataFrame, day: pd.Series, folder: Path) -> int:
    """Write ``folder/ds=YYYY-MM-DD/part-0.parquet`` for each day; returns how many.

    Each file is renamed into place, so that ``ingest`` never meets half of one; it skips names that begin with ``_``.
    """
    days = rows.groupby(day, sort=True)
    for ds, part in days:
        path = folder / f"ds={ds:%Y-%m-%d}" / "part-0.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"_{path.name}.partial")
        pq.write_table(pa.Table.from_pandas(part, preserve_index=False).replace_schema_metadata(None), unfinished)
        unfinished.replace(path)
    return len(days)


def convert(source: Path, landing: Path) -> Landed:
    """Read the shop's two tables and write the landing folder; a rerun writes the same bytes.

    Raises:
        SourceError: See :func:`read_source`; or ts is no timestamp, or nothing was sold.
    """
    sales = read_source(source / "interactions.parquet", SALES)
    products = read_source(source / "items.parquet", PRODUCTS)
    if not pd.api.types.is_datetime64_any_dtype(sales["ts"]):
        raise SourceError(f"{source}/interactions.parquet: column ts holds {sales['ts'].dtype}, expected timestamps")
    kept = sold(sales)
    if kept.empty:
        raise SourceError(
            f"{source}/interactions.parquet: none of {len(sales):,} rows has a Quantity and a Price above 0"
        )
    interactions, items = landing_interactions(kept), landing_items(products, kept)
    write_days(items.drop(columns="ds"), items["ds"], landing / "items")
    n_days = write_days(interactions, interactions["event_ts"].dt.floor("D"), landing / "interactions")
    return Landed(
        n_interactions=len(interactions),
        n_days=n_days,
        n_items=len(items),
        n_not_sold=len(sales) - len(kept),
        n_merged=len(kept) - len(interactions),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FOLDER", help="folder of interactions.parquet and items.parquet")
    parser.add_argument("--out", type=Path, required=True, help="landing folder: [paths] landing of the configuration")
    args = parser.parse_args(argv)
    try:
        done = convert(args.source, args.out)
    except SourceError as error:
        print(f"online_retail_ii: {error}", file=sys.stderr)
        return 1
    print(f"{done.n_interactions:,} purchases of {done.n_days} days and {done.n_items:,} items -> {args.out}")
    print(
        f"left out: {done.n_not_sold:,} lines that are no sale, {done.n_merged:,} second lines of an item in a basket"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
