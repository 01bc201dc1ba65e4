"""Logits that counting would give: from a user's own past with an item and from its recent popularity (ADR 0011).

Axes: B users, P past items of all users together, V items, S candidates. Row 0 is padding, rows 1..V are items.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lte_models.ranker.examples import Past
from lte_models.ranker.logits.history_features import FEATURE_SCALES, HISTORY_FEATURES

# The first three come first for those who read them by place; the last day says what is sold out or new.
POPULARITY_DAYS = (7, 28, 365, 1)
_ITEM_WIDTH = 8

# Before training, a past item has the score of counting, and any item the score of its sales. So training starts from
# the best simple ranking. The unit is logits per log(1 + count).
_PRIOR_PAST = {"log_n_year": 1.6, "log_n_short": 0.8, "log_recent": 0.6}
_PRIOR_BOUGHT = 1.0
_PRIOR_POPULARITY = (0.35, 0.35, 0.1, 0.0)

# Adam moves each weight by about the learning rate per step. The towers' rate is too slow for the few weights here, so
# the logits are this multiple of the layers' output.
_GAIN = 4.0


class DailyCounts(NamedTuple):
    """Interactions of each item up to each day, all users together.

    Attributes:
        first_day: Days since 1970 of the first day that is counted.
        cumulative: int32 [days + 1, V + 1], interactions before each day, from ``first_day``.
    """

    first_day: int
    cumulative: Tensor

    def recent(self, anchor_day: Tensor, rows: Tensor) -> Tensor:
        """Count interactions in the last 7, 28, 365 days and on the last one, up to the end of each anchor.

        Args:
            anchor_day: int64 [...], days since 1970.
            rows: int64 [...], broadcast against ``anchor_day``.

        Returns:
            float [..., 4].

        Raises:
            ValueError: An anchor lies after the last day that was counted.
        """
        end = anchor_day + 1 - self.first_day
        if end.numel() and int(end.max()) >= len(self.cumulative):
            raise ValueError(f"anchor {int(anchor_day.max())} lies after the days that were counted")
        now = self.cumulative[end.clamp(min=0), rows]
        before = (self.cumulative[(end - days).clamp(min=0), rows] for days in POPULARITY_DAYS)
        return torch.stack([now - earlier for earlier in before], dim=-1).float()


class HistoryLogits(nn.Module):
    """Two small networks beside two linear parts that count, trained with the towers.

    The value of a count depends on the item (milk is bought again, a wedding card is not) and on its current sales. So
    the network of the past also reads a few numbers of the item's embedding and its popularity.
    """

    def __init__(self, dim: int, hidden: int, *, is_expert: bool = False) -> None:
        """Make the networks.

        Args:
            dim: D of the item embeddings.
            hidden: Width of the network of the past.
            is_expert: Whether the past items have an expert of their own (:meth:`of_past`).
        """
        super().__init__()
        self.item = nn.Linear(dim, _ITEM_WIDTH)
        n_popularity = len(POPULARITY_DAYS)
        width = HISTORY_FEATURES + n_popularity + _ITEM_WIDTH + int(is_expert)
        # An own item is scored by (1 + tanh k) times its shared logit; k = 0 leaves that logit as it is.
        self.trust = nn.Parameter(torch.zeros(())) if is_expert else None
        self.past = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.popularity = nn.Sequential(nn.Linear(n_popularity, 16), nn.GELU(), nn.Linear(16, 1))
        self.counted = nn.Linear(HISTORY_FEATURES, 1)
        self.sold = nn.Linear(n_popularity, 1, bias=False)
        self._start_from_counting()

    def _start_from_counting(self) -> None:
        """Let the linear parts rank by counts, and the networks add nothing yet."""
        with torch.no_grad():
            for network in (self.past, self.popularity):
                last = network[-1]
                assert isinstance(last, nn.Linear)
                last.weight.zero_()
                last.bias.zero_()
            self.counted.weight.zero_()
            self.counted.bias.fill_(_PRIOR_BOUGHT)
            for place, (name, (usual, spread)) in enumerate(FEATURE_SCALES.items()):
                self.counted.weight[0, place] = _PRIOR_PAST.get(name, 0.0) * spread
                self.counted.bias.add_(_PRIOR_PAST.get(name, 0.0) * usual)
            self.sold.weight.copy_(torch.tensor([_PRIOR_POPULARITY]))
            for parameter in (*self.counted.parameters(), *self.sold.parameters()):
                parameter.div_(_GAIN)

    def of_past(self, past: Past, vectors: Tensor, counts: Tensor, shared: Tensor | None = None) -> Tensor:
        """Score past items for their users.

        What lifts new items may cost repeats when both share one logit t. An expert of its own for past items,
        h(features, t) + (1 + tanh k) t, learns how far to trust t.

        Args:
            past: The year before the anchor.
            vectors: float [P, D], embeddings of the past items.
            counts: float [P, 4], of :meth:`DailyCounts.recent`.
            shared: float [P], t: the items' logits from towers and affinity; with an expert only.

        Returns:
            float [P], to be added to the item's logits from the towers and from its popularity.

        Raises:
            ValueError: ``shared`` is missing with an expert, or given without one.
        """
        if (shared is None) != (self.trust is None):
            raise ValueError("shared: expected exactly where past items have an expert of their own")
        inputs = [past.features, torch.log1p(counts), self.item(vectors)]
        if shared is not None:
            inputs.append(shared.unsqueeze(1) / _GAIN)
        logits: Tensor = _GAIN * (self.past(torch.cat(inputs, dim=1)) + self.counted(past.features))
        if shared is None or self.trust is None:
            return logits.squeeze(1)
        return logits.squeeze(1) + torch.tanh(_GAIN * self.trust) * shared

    def of_popularity(self, counts: Tensor) -> Tensor:
        """Score recent popularity.

        Args:
            counts: float [..., 4], of :meth:`DailyCounts.recent`.

        Returns:
            float [...].
        """
        seen = torch.log1p(counts)
        logits: Tensor = _GAIN * (self.popularity(seen) + self.sold(seen))
        return logits.squeeze(-1)
