"""A year before the anchor, written row by row."""

from __future__ import annotations

import torch

from lte_models.ranker.examples import Past
from lte_models.ranker.logits.history_features import HISTORY_FEATURES


def past_of_rows(rows: list[tuple[int, int, float, float, float]]) -> Past:
    """Rows of (user, item row, n_short, n_long, last_age in days), sorted by user, then item."""
    user, items, short, long, age = (torch.tensor(column) for column in zip(*sorted(rows), strict=True))
    zeros = torch.zeros(len(rows))
    features = torch.zeros(len(rows), HISTORY_FEATURES)
    return Past(user, items, short.float(), long.float(), age.float(), zeros, zeros, features)
