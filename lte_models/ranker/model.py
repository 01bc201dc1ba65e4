"""Two-tower ranker: a causal transformer over the short window, the LTE as anchor (paper, sections 3 to 5).

Axes: B users, L history length (left-padded), D model width, C content width, V items, U rows embedded in a step,
Q queries, P past items of all users. Row 0 is padding; rows 1..V are items by falling frequency.
W is the width of the vectors whose inner product scores an item: D of the towers, and C more with the affinity.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lte_models.ranker.examples import ExampleBatch
from lte_models.ranker.logits.affinity import Affinity
from lte_models.ranker.logits.history_logits import DailyCounts, HistoryLogits
from lte_models.ranker.towers import Catalogue, ItemTower, RankerConfig, UserTower


class Context(NamedTuple):
    """Inputs of a batch in addition to its examples.

    Attributes:
        lte: float [B, C].
        has_lte: bool [B].
        popularity: Daily counts of the items, where history features are on.
    """

    lte: Tensor
    has_lte: Tensor
    popularity: DailyCounts | None = None


class Ranker(nn.Module):
    """Both towers; they are trained together and deployed separately."""

    def __init__(self, config: RankerConfig, catalogue: Catalogue) -> None:
        """Initialise from ``config.seed``, independent of the global generator.

        Args:
            config: Shapes.
            catalogue: The item side.

        Raises:
            ValueError: The catalogue is empty, misshapen or not finite.
        """
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.item_tower = ItemTower(config, catalogue)
            self.user_tower = UserTower(config)
            self.history = _history(config) if config.history_features else None
            content = self.item_tower.scaled(self.item_tower.content[1:])
            self.affinity = Affinity(content) if config.affinity else None

    @property
    def n_items(self) -> int:
        """V."""
        return self.item_tower.content.shape[0] - 1

    def embed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Embed each distinct row once.

        Args:
            rows: int64 [any], rows that the step needs; row 0 is added.

        Returns:
            float [U, W] embeddings and int64 [V + 1], position of each row in them (0 where it was not asked for).
        """
        # A step meets popular items hundreds of times: the item tower runs once for each.
        distinct = torch.unique(torch.cat([rows.new_zeros(1), rows.flatten()]))
        position = torch.zeros(self.n_items + 1, dtype=torch.int64, device=rows.device)
        position[distinct] = torch.arange(distinct.numel(), device=rows.device)
        vectors = self.item_tower(distinct)
        if self.affinity is not None:
            content = self.item_tower.scaled(self.item_tower.content[distinct]) * (distinct > 0).unsqueeze(1)
            vectors = torch.cat([vectors, content], dim=1)
        return vectors, position

    def queries(self, batch: ExampleBatch, context: Context, vectors: Tensor, position: Tensor) -> Tensor:
        """Encode the batch's queries.

        Args:
            batch: Examples.
            context: LTEs.
            vectors: float [U, W].
            position: int64 [V + 1].

        Returns:
            float [Q, W].
        """
        towers = vectors[:, : self.config.dim]
        encoded = self.user_tower(towers[position[batch.items]], batch, context.lte, context.has_lte)
        picked: Tensor = encoded[batch.query_user, batch.query_position]
        if self.affinity is None:
            return picked
        affinity = self.affinity(self.item_tower.scaled(context.lte), context.has_lte)
        return torch.cat([picked, affinity[batch.query_user]], dim=1)

    def candidate_logits(
        self,
        queries: Tensor,
        candidates: Tensor,
        batch: ExampleBatch,
        context: Context,
        embedded: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Score candidates shared by all queries.

        Args:
            queries: float [Q, W].
            candidates: int64 [S], distinct rows.
            batch: Examples.
            context: Popularity, where history features are on.
            embedded: Of :meth:`embed`; holds the past items, too, where history features are on.

        Returns:
            float [Q, S].
        """
        products = _products(queries, candidates, embedded)
        if self.history is None:
            return products
        logits = products + self._popularity(candidates, batch, context)
        # A user's past holds a few of V items: their logits are scattered into the matrix instead of computed for all.
        slots = self._slots(candidates)[batch.past.items]
        kept = slots >= 0
        own = products[self.query_of_user(batch)[batch.past.user], slots.clamp(min=0)] * kept
        added = self.past_logits(own, batch, context, embedded)[kept].to(logits.dtype)
        by_user = logits.new_zeros(len(batch.items), candidates.numel())
        by_user = by_user.index_put((batch.past.user[kept], slots[kept]), added)
        return logits + by_user[batch.query_user]

    def shared_logits(
        self,
        queries: Tensor,
        candidates: Tensor,
        batch: ExampleBatch,
        context: Context,
        embedded: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Score candidates by the towers and by their popularity: all that an index of items can retrieve by.

        Args:
            queries: float [Q, W].
            candidates: int64 [S], distinct rows.
            batch: Examples.
            context: Popularity, where history features are on.
            embedded: Of :meth:`embed`.

        Returns:
            float [Q, S].
        """
        products = _products(queries, candidates, embedded)
        return products if self.history is None else products + self._popularity(candidates, batch, context)

    def _popularity(self, candidates: Tensor, batch: ExampleBatch, context: Context) -> Tensor:
        """Logits of popularity, float [Q, S]; history features must be on."""
        assert self.history is not None
        # Popularity is the same for all users of a day, and a batch has few days.
        days, day_of_user = torch.unique(batch.anchor_day, return_inverse=True)
        by_day = self.history.of_popularity(_counts(context).recent(days.unsqueeze(1), candidates))  # [days, S]
        return by_day[day_of_user[batch.query_user]]

    def pair_logits(
        self,
        queries: Tensor,
        pairs: tuple[Tensor, Tensor],
        batch: ExampleBatch,
        context: Context,
        embedded: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Score one item for one query each, like :meth:`shared_logits`.

        Args:
            queries: float [Q, W].
            pairs: int64 [N] query and int64 [N] row.
            batch: Examples.
            context: Popularity, where history features are on.
            embedded: Of :meth:`embed`.

        Returns:
            float [N].
        """
        return self.pair_products(queries, pairs, embedded) + self.pair_popularity(pairs, batch, context)

    def pair_products(self, queries: Tensor, pairs: tuple[Tensor, Tensor], embedded: tuple[Tensor, Tensor]) -> Tensor:
        """Score one item for one query each by towers and affinity alone: float [N]; arguments as above."""
        (query, rows), (vectors, position) = pairs, embedded
        return (queries[query] * vectors[position[rows]]).sum(dim=1)

    def pair_popularity(self, pairs: tuple[Tensor, Tensor], batch: ExampleBatch, context: Context) -> Tensor:
        """Score one item for one query each by its popularity: float [N]; zeros without history features."""
        query, rows = pairs
        if self.history is None:
            return torch.zeros(len(rows), device=rows.device)
        return self.history.of_popularity(_counts(context).recent(batch.anchor_day[batch.query_user[query]], rows))

    def query_of_user(self, batch: ExampleBatch) -> Tensor:
        """The only query of each user, int64 [B]: history features are as of the anchor."""
        return torch.argsort(batch.query_user)

    def past_logits(
        self, products: Tensor, batch: ExampleBatch, context: Context, embedded: tuple[Tensor, Tensor]
    ) -> Tensor:
        """What the user's own past adds to the logit of each past item; history features must be on.

        Args:
            products: float [P], of :meth:`pair_products` for each past item; only an expert reads them.
            batch: Examples.
            context: Popularity.
            embedded: Of :meth:`embed`, with the past items.

        Returns:
            float [P].

        Raises:
            ValueError: History features are off.
        """
        if self.history is None:
            raise ValueError("history_features is off: there are no logits of the past")
        past, (vectors, position) = batch.past, embedded
        counts = _counts(context).recent(batch.anchor_day[past.user], past.items)
        towers = vectors[position[past.items], : self.config.dim]
        return self.history.of_past(past, towers, counts, products if self.config.repeat_expert else None)

    def _slots(self, candidates: Tensor) -> Tensor:
        """Place of each row among the candidates, -1 elsewhere: int64 [V + 1]."""
        slot = torch.full((self.n_items + 1,), -1, dtype=torch.int64, device=candidates.device)
        slot[candidates] = torch.arange(candidates.numel(), device=candidates.device)
        return slot

    def scores(self, batch: ExampleBatch, context: Context) -> Tensor:
        """Score the whole vocabulary for each query; call in eval mode.

        Args:
            batch: Examples.
            context: LTEs and popularity.

        Returns:
            float [Q, V], column j is row j + 1.
        """
        candidates = torch.arange(1, self.n_items + 1, device=batch.items.device)
        embedded = self.embed(candidates)
        queries = self.queries(batch, context, *embedded)
        return self.candidate_logits(queries, candidates, batch, context, embedded)


def _history(config: RankerConfig) -> HistoryLogits:
    return HistoryLogits(config.dim, config.history_hidden, is_expert=config.repeat_expert)


def _products(queries: Tensor, candidates: Tensor, embedded: tuple[Tensor, Tensor]) -> Tensor:
    """Score candidates shared by all queries by towers and affinity alone: float [Q, S]."""
    vectors, position = embedded
    return queries @ vectors[position[candidates]].T


def _counts(context: Context) -> DailyCounts:
    if context.popularity is None:
        raise ValueError("history_features is on: the batch needs popularity counts")
    return context.popularity
