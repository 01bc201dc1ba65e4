"""Candidates at serving time: items that the towers retrieve and the user's own past items, ranked by the whole model.

The logits of a user's past change only the past items, so all other items keep the order of the retrieval. If n other
items are retrieved, the n best candidates are the n best items of the whole vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lte_models.evaluation.metrics import top_items
from lte_models.ranker.examples import ExampleBatch
from lte_models.ranker.logits.history_logits import DailyCounts
from lte_models.ranker.model import Context, Ranker

N_RETRIEVED = 500


class Retriever:
    """Serves one ranker; its items are embedded once."""

    def __init__(self, model: Ranker, n_retrieved: int = N_RETRIEVED) -> None:
        """Embed the vocabulary.

        Args:
            model: Trained; it is put into eval mode.
            n_retrieved: Items beside the user's own that the towers hand to the ranking step.

        Raises:
            ValueError: ``n_retrieved`` < 1.
        """
        if n_retrieved < 1:
            raise ValueError(f"n_retrieved: expected at least 1, got {n_retrieved}")
        self.model, self.n_retrieved = model.eval(), n_retrieved
        self.rows = torch.arange(1, model.n_items + 1, device=model.item_tower.content.device)
        with torch.no_grad():
            self.embedded = model.embed(self.rows)
            vectors, position = self.embedded
            self._matrix = vectors[position[self.rows]]  # [V, W]: taken once, not copied per request
        self._popular: tuple[DailyCounts | None, int, Tensor] | None = None

    def recommend(self, batch: ExampleBatch, context: Context, k: int) -> tuple[Tensor, Tensor]:
        """The k best items of one user, best first.

        Args:
            batch: One example; its targets are not read.
            context: The user's LTE and, where the model has history features, popularity as of the anchor.
            k: Items wanted, at most ``n_retrieved``.

        Returns:
            int64 [k] rows and float [k] scores.

        Raises:
            ValueError: There is not exactly one user, or ``k`` is out of range.
        """
        if len(batch.items) != 1:
            raise ValueError(f"one user at a time, not {len(batch.items)}")
        if not 1 <= k <= min(self.n_retrieved, self.model.n_items):
            raise ValueError(f"k = {k}: between 1 and {min(self.n_retrieved, self.model.n_items)} items can be served")
        with torch.no_grad():
            queries = self.model.queries(batch, context, *self.embedded)  # [1, D]
            candidates = self._candidates(queries, batch, context)
            scores = self.model.candidate_logits(queries, candidates, batch, context, self.embedded)
        best = top_items(scores, k)[0]
        return candidates[best], scores[0, best]

    def _candidates(self, queries: Tensor, batch: ExampleBatch, context: Context) -> Tensor:
        own = batch.past.items
        shared = queries @ self._matrix.T + self._of_all_users(queries, batch, context)
        # own items may be among them and drop in rank, so n other items must be retrieved as well
        retrieved = self.rows[top_items(shared, self.n_retrieved + own.numel())[0]]
        candidates: Tensor = torch.unique(torch.cat([retrieved, own]))
        return candidates  # ascending: ties keep the vocabulary's order

    def _of_all_users(self, queries: Tensor, batch: ExampleBatch, context: Context) -> Tensor:
        """What the shared logits add to the inner product: popularity, the same for all users of a day. float [1, V].

        It is computed once per day and set of counts: a service asks for the same day all day long.
        """
        day, known = int(batch.anchor_day[0]), self._popular
        if known is None or known[0] is not context.popularity or known[1] != day:
            nobody = torch.zeros_like(queries)
            logits = self.model.shared_logits(nobody, self.rows, batch, context, self.embedded)
            known = self._popular = (context.popularity, day, logits)
        return known[2]
