"""Items of the basis nearest to a vector, with their titles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jobs.lake.reader import LakeReader
from jobs.lake.vectors import FloatMatrix, vector_matrix
from schemas import ITEM_EMBEDDINGS, ITEMS


@dataclass(frozen=True)
class NearItem:
    """An item near the LTE; ``cosine`` is between the item's vector and the LTE. ``title`` may be missing."""

    item_id: str
    title: str | None
    cosine: float


def nearest_items(lake: LakeReader, embedding: FloatMatrix, basis_version: str, n: int) -> tuple[NearItem, ...]:
    """The items whose vectors lie nearest.

    Args:
        lake: Where the basis and the catalogue are.
        embedding: float32 [D].
        basis_version: Basis of ``embedding``.
        n: Number of items.

    Returns:
        Nearest first; ties by item_id.
    """
    best: list[tuple[float, str]] = []
    unit = embedding / np.linalg.norm(embedding)
    where = {"basis_version": basis_version}
    for batch in lake.batches(ITEM_EMBEDDINGS, columns=["item_id", "embedding"], where=where):
        vectors = vector_matrix(batch.column("embedding"))
        cosines = vectors @ unit  # [rows]
        top = np.argsort(-cosines, kind="stable")[:n]
        best += [(-float(cosines[row]), batch.column("item_id")[int(row)].as_py()) for row in top]
        best = sorted(best)[:n]
    titles = item_titles(lake, [item_id for _, item_id in best])
    return tuple(NearItem(item_id, titles.get(item_id) or "", round(-distance, 4)) for distance, item_id in best)


def item_titles(lake: LakeReader, item_ids: list[str]) -> dict[str, str]:
    """Newest title of each item that the catalogue knows; empty for an item that has only a picture."""
    columns = ["item_id", "title", "landing_ds"]
    rows = lake.rows(ITEMS, columns=columns, where={"item_id": item_ids}) if item_ids else []
    return {row["item_id"]: row["title"] or "" for row in sorted(rows, key=lambda row: row["landing_ds"])}
