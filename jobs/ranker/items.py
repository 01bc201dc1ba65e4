"""Items that the training and the evaluation of a ranker read from the lake, in row order, with daily counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import torch
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.basis.basis import catalogue_versions, known_items, read_basis
from jobs.basis.matrix import item_ids, load_matrix, pinned_basis
from jobs.config.models import RankerSection
from jobs.config.sections import LteSection
from jobs.config.window import LONG_DAYS, LteWindow, day_number, ranker_window
from jobs.lake.lake import Lake
from jobs.lte.windows import in_window
from jobs.registry.bundles import ModelError
from lte_models.ranker.logits.history_logits import DailyCounts
from lte_models.ranker.towers import Catalogue
from lte_models.training.sampling import rank_by_frequency
from schemas import INTERACTIONS, ITEMS

METADATA = ("category", "brand", "price_tier")

# One interaction is too little to learn an id vector; the content of such an item says as much.
MIN_ID_COUNT = 2
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CandidateItems:
    """The items that a ranker ranks on one day, most frequent first.

    Attributes:
        item_ids: Item ids; the position of an id is its row - 1.
        row_of_index: int64 [n], row of each item_index; 0 for an item that is not known yet.
        content: float32 [V + 1, C]; row 0 is zero.
        metadata: Category, brand and price tier of each item, at position row - 1; None for a missing value.
        counts: int64 [V + 1], interactions in the year before the test day.
        daily: Counts per day, for the popularity at any anchor.
    """

    item_ids: list[str]
    row_of_index: IntArray
    content: npt.NDArray[np.float32]
    metadata: Mapping[str, list[str | None]]
    counts: IntArray
    daily: DailyCounts


def load_candidates(lake: Lake, ds: date, basis_version: str, train_days: int) -> CandidateItems:
    """Read the items known at the end of ``ds`` - 1; the test day itself is not read.

    Args:
        lake: Reads interactions, items, item_embeddings.
        ds: Test day.
        basis_version: Basis of the items.
        train_days: Number of anchor days for which the popularity is computed.

    Raises:
        ModelError: No item is known.
    """
    last = ds - timedelta(days=1)
    known = known_items(read_basis(lake, basis_version), last)
    first = last - timedelta(days=LONG_DAYS + train_days)
    daily = _daily_counts(lake.read(INTERACTIONS), known, first, last)
    ids, matrix = item_ids(lake, basis_version), load_matrix(pinned_basis(lake, basis_version)).vectors
    is_known = np.zeros(len(ids), dtype=bool)
    is_known[known.toArrow()["item_index"].to_numpy()] = True
    if not is_known.any():
        raise ModelError(f"table item_embeddings, basis_version {basis_version}: no item is known on {last}")
    order, row_of_index, counts, cumulative = rows_by_frequency(daily, is_known, (last - first).days + 1)
    return CandidateItems(
        item_ids=[ids[index] for index in order],
        row_of_index=row_of_index,
        content=np.vstack([np.zeros((1, matrix.shape[1]), dtype=np.float32), matrix[order]]),
        metadata=_metadata(lake, last, [ids[index] for index in order]),
        counts=counts,
        daily=DailyCounts(day_number(first), cumulative),
    )


def rows_by_frequency(
    daily: tuple[IntArray, ...], is_known: npt.NDArray[np.bool_], n_days: int
) -> tuple[list[int], IntArray, IntArray, torch.Tensor]:
    """Give each known item its row, most frequent first.

    Args:
        daily: Days from the first one, item indices and counts of interactions, one entry per day and item.
        is_known: bool [n], by item_index.
        n_days: Days that ``daily`` may hold.

    Returns:
        The item_index of each row, the row of each item_index (0 for an unknown item), the counts of the last year in
        row order (int64 [V + 1]) and the cumulative counts by day (int32 [n_days + 1, V + 1]).
    """
    by_day = np.zeros((n_days + 1, len(is_known)), dtype=np.int32)
    np.add.at(by_day, (daily[0] + 1, daily[1]), daily[2])
    by_day = by_day.cumsum(axis=0, dtype=np.int32)
    counts = (by_day[-1] - by_day[-1 - LONG_DAYS]).astype(np.int64)
    order = [int(index) for index in rank_by_frequency(counts) if is_known[index]]
    row_of_index = np.zeros(len(is_known), dtype=np.int64)
    row_of_index[order] = np.arange(1, len(order) + 1)
    cumulative = torch.from_numpy(np.pad(by_day[:, order], ((0, 0), (1, 0))))
    return order, row_of_index, np.concatenate([[0], counts[order]]), cumulative


def _daily_counts(interactions: DataFrame, known: DataFrame, first: date, last: date) -> tuple[IntArray, ...]:
    """Days from ``first``, item indices and counts: one entry per day and item, not one per interaction."""
    events = interactions.where(in_window(last, LteWindow((last - first).days + 1, 0)))
    numbered = events.join(F.broadcast(known), "item_id")
    day = F.datediff(F.col("event_date"), F.lit(first)).alias("day")
    rows = numbered.groupBy(day, "item_index").count().toArrow()
    return tuple(rows[name].to_numpy().astype(np.int64) for name in ("day", "item_index", "count"))


def _metadata(lake: Lake, ds: date, ids: Sequence[str]) -> dict[str, list[str | None]]:
    items = lake.read(ITEMS)
    newest = catalogue_versions(items, ds).select("item_id", "landing_ds")
    rows = items.join(newest, ["item_id", "landing_ds"]).select("item_id", *METADATA).toArrow()
    found = {name: dict(zip(rows["item_id"].to_pylist(), rows[name].to_pylist(), strict=True)) for name in METADATA}
    return {name: [found[name].get(item_id) for item_id in ids] for name in METADATA}


Codes = Mapping[str, Sequence[str]]


def metadata_codes(shop: CandidateItems) -> dict[str, list[str]]:
    """Sorted values of each metadata column; the code of a value is its position + 1, and code 0 means unknown."""
    return {name: sorted({value for value in shop.metadata[name] if value}) for name in METADATA}


def catalogue(shop: CandidateItems, codes: Codes, id_rows: Mapping[str, int]) -> Catalogue:
    """The item side of a ranker, with the ids and codes of the model that will read it.

    Args:
        shop: Items in row order.
        codes: Result of :func:`metadata_codes` on the day on which the model was trained.
        id_rows: Item id to row of the model's id embedding. Other items get the out-of-vocabulary bucket.
    """
    columns = []
    for name in METADATA:
        code = {value: place + 1 for place, value in enumerate(codes[name])}
        columns.append(torch.tensor([0, *(code.get(value or "", 0) for value in shop.metadata[name])]))
    ids = torch.tensor([0, *(id_rows.get(item_id, 0) for item_id in shop.item_ids)])
    return Catalogue(torch.from_numpy(shop.content), ids, *columns)


def own_id_rows(shop: CandidateItems) -> dict[str, int]:
    """One row for each item with at least two interactions; all other items share row 0."""
    frequent = [item_id for item_id, count in zip(shop.item_ids, shop.counts[1:], strict=True) if count >= MIN_ID_COUNT]
    return {item_id: row for row, item_id in enumerate(frequent, start=1)}


def lte_window(settings: RankerSection) -> str:
    """Window of the LTEs that the ranker reads; empty when the ranker reads no LTEs."""
    if settings.lte == "none":
        return ""
    return ranker_window(is_lagged=settings.lagged)


def half_life_days(settings: RankerSection, lte: LteSection) -> float | None:
    """Half-life of the LTEs that the ranker reads; None when the ranker reads no recency averages."""
    return lte.half_life_days if settings.lte != "none" and settings.method == "recency" else None
