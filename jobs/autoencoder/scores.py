"""Measures how well the autoencoder finds the hidden items of validation users."""

from __future__ import annotations

import numpy as np
import torch

from jobs.autoencoder.histories import HistoryReader
from lte_models.autoencoder import Autoencoder, HiddenScores, ItemHistories, hidden_scores

HIDDEN_SHARE = 0.2
CUTOFF = 100


def validation_scores(model: Autoencoder, reader: HistoryReader) -> dict[str, float]:
    """Score hidden items of the validation users, or of the training users when tiny data have no validation users.

    Args:
        model: In eval mode.
        reader: Streams the histories.

    Returns:
        Means over users of ``auc``, ``recall`` and ``precision`` at 100; zeros where no user has a hidden item.
    """
    for batches_ in (reader.validation(), reader.epoch(0)):
        rng, sums = torch.Generator().manual_seed(0), np.zeros(4)
        with torch.no_grad():
            for batch in batches_:
                moved = ItemHistories(*(part.to(model.basis.device) for part in batch))
                sums += hidden_scores(model, moved, share=HIDDEN_SHARE, k=CUTOFF, rng=rng)
        if sums[3]:
            return dict(zip(HiddenScores._fields[:3], (sums[:3] / sums[3]).tolist(), strict=True))
    return {"auc": 0.0, "recall": 0.0, "precision": 0.0}
