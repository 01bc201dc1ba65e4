"""The items that a service ranks, read without an engine: the same as :func:`jobs.ranker.items.load_candidates`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.basis.matrix import BasisKey, load_matrix
from jobs.config.window import LONG_DAYS, day_number
from jobs.lake.reader import LakeReader
from jobs.ranker.items import METADATA, CandidateItems, IntArray, rows_by_frequency
from jobs.registry.bundles import ModelError
from lte_models.ranker.logits.history_logits import DailyCounts
from schemas import INTERACTIONS, ITEM_EMBEDDINGS, ITEMS


def read_candidates(lake: LakeReader, last: date, basis_version: str) -> tuple[CandidateItems, pa.Array, IntArray]:
    """Read the items known at the end of a day, with their popularity of the year before.

    Args:
        lake: Reads interactions, items, item_embeddings.
        last: Last day whose interactions count.
        basis_version: Basis of the items.

    Returns:
        The items in row order, the item ids by item_index, and the day (since 1970) from which each is known.

    Raises:
        ModelError: No item is known.
        jobs.basis.basis.BasisError: The basis is damaged.
    """
    matrix = load_matrix(basis_key(lake, basis_version))
    ids = _ids_by_index(lake, basis_version, len(matrix.vectors))
    is_known = matrix.first_day <= day_number(last)
    if not is_known.any():
        raise ModelError(f"table item_embeddings, basis_version {basis_version}: no item is known on {last}")
    first = last - timedelta(days=LONG_DAYS + 1)
    daily = _daily_counts(lake, ids, is_known, [first + timedelta(days=n) for n in range((last - first).days + 1)])
    order, row_of_index, counts, cumulative = rows_by_frequency(daily, is_known, (last - first).days + 1)
    item_ids = ids.take(pa.array(order)).to_pylist()
    items = CandidateItems(
        item_ids=item_ids,
        row_of_index=row_of_index,
        content=np.vstack([np.zeros((1, matrix.vectors.shape[1]), dtype=np.float32), matrix.vectors[order]]),
        metadata=_metadata(lake, last, item_ids),
        counts=counts,
        daily=DailyCounts(day_number(first), cumulative),
    )
    return items, ids, matrix.first_day.astype(np.int64)


def basis_key(lake: LakeReader, basis_version: str) -> BasisKey:
    """The key of a basis as the lake holds it now.

    Raises:
        ModelError: The table does not exist.
    """
    newest = lake.newest_commit(ITEM_EMBEDDINGS)
    if newest is None:
        raise ModelError("table item_embeddings: not written yet: run embed_items first")
    return BasisKey(lake.path(ITEM_EMBEDDINGS), newest["version"], str(newest["timestamp"]), basis_version)


def _ids_by_index(lake: LakeReader, basis_version: str, n_items: int) -> pa.Array:
    ids = np.empty(n_items, dtype=object)
    where = {"basis_version": basis_version}
    for batch in lake.batches(ITEM_EMBEDDINGS, columns=["item_index", "item_id"], where=where):
        ids[batch["item_index"].to_numpy()] = batch["item_id"].to_pylist()
    return pa.array(ids, pa.string())


def _daily_counts(
    lake: LakeReader, ids: pa.Array, is_known: np.ndarray[tuple[int], np.dtype[np.bool_]], days: Sequence[date]
) -> tuple[IntArray, ...]:
    """Days from the first one, item indices and counts: one entry per day and item."""
    found: dict[int, IntArray] = {}
    for batch in lake.batches(INTERACTIONS, columns=["item_id", "event_date"], where={"event_date": days}):
        if batch.num_rows:
            day = (batch["event_date"][0].as_py() - days[0]).days  # a partition is a day
            index = pc.index_in(batch["item_id"], value_set=ids).drop_null().to_numpy()
            found[day] = found.get(day, 0) + np.bincount(index, minlength=len(ids))
    parts = [(day, np.flatnonzero(counts * is_known), counts) for day, counts in sorted(found.items())]
    if not parts:
        return (np.zeros(0, np.int64),) * 3
    numbers = np.concatenate([np.full(len(index), day, dtype=np.int64) for day, index, _ in parts])
    indices = np.concatenate([index for _, index, _ in parts])
    return numbers, indices, np.concatenate([counts[index] for _, index, counts in parts])


def _metadata(lake: LakeReader, last: date, item_ids: Sequence[str]) -> dict[str, list[str | None]]:
    newest: dict[str, tuple[date, dict[str, str | None]]] = {}
    for batch in lake.batches(ITEMS, columns=["item_id", "landing_ds", *METADATA]):
        for row in batch.to_pylist():
            seen = newest.get(row["item_id"])
            if row["landing_ds"] <= last and (seen is None or row["landing_ds"] > seen[0]):
                newest[row["item_id"]] = row["landing_ds"], row
    nothing: dict[str, str | None] = {}
    return {name: [newest.get(i, (last, nothing))[1].get(name) for i in item_ids] for name in METADATA}
