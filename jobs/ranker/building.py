"""Builds a new ranker over the items of a day, for the daily training and for the experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.ranker.items import METADATA, CandidateItems, catalogue, metadata_codes, own_id_rows
from lte_models.ranker.model import Ranker
from lte_models.ranker.towers import RankerConfig


@dataclass(frozen=True)
class BuiltRanker:
    """A new ranker and the codes of its rows.

    Attributes:
        model: On the CPU.
        config: Plain JSON for the manifest: ``model``, ``codes`` of metadata, ``id_rows``, interaction ``types``.
    """

    model: Ranker
    config: Mapping[str, Any]


def build_ranker(items: CandidateItems, types: Sequence[str], **shape: Any) -> BuiltRanker:
    """Build a ranker, initialised from its seed.

    Args:
        items: Items to rank. They decide the width of the content and the numbers of ids and codes.
        types: Interaction types; the position of a type is its code.
        shape: All other fields of :class:`lte_models.ranker.towers.RankerConfig`.
    """
    codes, id_rows = metadata_codes(items), own_id_rows(items)
    n_categories, n_brands, n_price_tiers = (len(codes[name]) + 1 for name in METADATA)  # code 0 is unknown
    config = RankerConfig(
        content_dim=items.content.shape[1],
        n_types=len(types),
        n_ids=len(id_rows) + 1,  # row 0 is the out-of-vocabulary bucket
        n_categories=n_categories,
        n_brands=n_brands,
        n_price_tiers=n_price_tiers,
        **shape,
    )
    model = Ranker(config, catalogue(items, codes, id_rows))
    return BuiltRanker(model, {"model": asdict(config), "codes": codes, "id_rows": id_rows, "types": list(types)})
