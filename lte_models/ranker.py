"""Two-tower ranker: a causal transformer over the short window, the LTE as anchor (paper, sections 3 to 5).

Axes: B users, L history length (left-padded), D model width, C content width, V items, U rows embedded in a step,
Q queries, P past items of all users. Row 0 is padding; rows 1..V are items by falling frequency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lte_models.data import AGE_BUCKETS, ExampleBatch
from lte_models.dropout import Dropout, attention, dropout
from lte_models.history_logits import DailyCounts, HistoryLogits
from lte_models.losses import (
    OwnItems,
    full_softmax_loss,
    grouped_logsumexp,
    linear_softmax_loss,
    sampled_softmax_loss,
)
from lte_models.sampling import LogUniformSampler

LTE_MODES = ("none", "late_fusion", "feature_injection", "prefix_token")


@dataclass(frozen=True)
class RankerConfig:
    """Shape of the ranker.

    Attributes:
        content_dim: C, of the basis and the LTEs.
        n_types: Interaction types.
        dim: D.
        n_blocks: Residual blocks of the user tower.
        n_heads: Heads; must divide ``dim``.
        max_length: Longest history.
        dropout: In the user tower, while training.
        id_dropout: Share of items whose id is hidden in a training step; trains the out-of-vocabulary row.
        id_dim: Width of the learned id embedding; 0 leaves ids out.
        lte: One of ``LTE_MODES``.
        lte_layers: Layers of the projection, 1 or 2.
        lte_gelu: GELU after the (first) layer instead of nothing.
        lte_hidden: Width between two layers, 128 to 1024.
        history_features: Whether the user's own past and recent popularity add learned logits.
        history_hidden: Width of the network that scores the past.
        n_ids: Rows of the id embedding, the out-of-vocabulary bucket included.
        n_categories: Codes of categories, unknown included.
        n_brands: Codes of brands, unknown included.
        n_price_tiers: Codes of price tiers, unknown included.
        seed: Of the initial weights.
    """

    content_dim: int
    n_types: int
    dim: int = 64
    n_blocks: int = 2
    n_heads: int = 4
    max_length: int = 100
    dropout: float = 0.1
    id_dropout: float = 0.05
    id_dim: int = 32
    lte: str = "prefix_token"
    lte_layers: int = 1
    lte_gelu: bool = False
    lte_hidden: int = 256
    history_features: bool = False
    history_hidden: int = 64
    n_ids: int = 1
    n_categories: int = 1
    n_brands: int = 1
    n_price_tiers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = {
            "lte": self.lte not in LTE_MODES,
            "lte_layers": self.lte_layers not in (1, 2),
            "lte_hidden": not 128 <= self.lte_hidden <= 1024,
            "n_heads": self.n_heads < 1 or self.dim % self.n_heads != 0,
            "history_hidden": self.history_hidden < 1,
            "n_types": self.n_types < 1,
            "max_length": self.max_length < 1,
            "dropout": not 0 <= self.dropout < 1,
            "id_dropout": not 0 <= self.id_dropout < 1,
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise ValueError(f"RankerConfig.{name} = {getattr(self, name)!r} cannot be (dim = {self.dim})")


class Catalogue(NamedTuple):
    """The item side, one row an item; row 0 is padding.

    Attributes:
        content: float [V + 1, C], the basis.
        id_row: int64 [V + 1], row of the id embedding; 0 is the out-of-vocabulary bucket.
        category: int64 [V + 1], code; 0 is unknown.
        brand: int64 [V + 1], code; 0 is unknown.
        price_tier: int64 [V + 1], code; 0 is unknown.
    """

    content: Tensor
    id_row: Tensor
    category: Tensor
    brand: Tensor
    price_tier: Tensor


def check_catalogue(catalogue: Catalogue, config: RankerConfig) -> None:
    """Refuse a catalogue that is empty, misshapen or holds an embedding that is not finite.

    Args:
        catalogue: The item side.
        config: Widths and numbers of codes.

    Raises:
        ValueError: Names what is wrong, with the row.
    """
    content_dim = config.content_dim
    limits = (config.n_ids, config.n_categories, config.n_brands, config.n_price_tiers)
    n_rows = catalogue.content.shape[0]
    if n_rows < 2:
        raise ValueError("the vocabulary holds no item: no ranker can be trained")
    if catalogue.content.shape[1] != content_dim:
        raise ValueError(f"basis has {catalogue.content.shape[1]} floats an item, the model wants {content_dim}")
    for name, codes, limit in zip(Catalogue._fields[1:], catalogue[1:], limits, strict=True):
        if codes.shape != (n_rows,):
            raise ValueError(f"catalogue.{name} has shape {tuple(codes.shape)}, wanted ({n_rows},)")
        if not 0 <= int(codes.min()) <= int(codes.max()) < limit:
            raise ValueError(f"catalogue.{name} holds code {int(codes.max())}, the model has {limit}")
    bad = (~torch.isfinite(catalogue.content)).any(dim=1).nonzero().flatten()
    if bad.numel():
        raise ValueError(f"embedding of vocabulary row {int(bad[0])} is not finite ({bad.numel()} such rows)")


class ItemTower(nn.Module):
    """Feed-forward over content, id and metadata; makes the item embeddings A of the paper's equation 2."""

    content: Tensor
    id_row: Tensor
    category: Tensor
    brand: Tensor
    price_tier: Tensor
    content_mean: Tensor
    content_scale: Tensor

    def __init__(self, config: RankerConfig, catalogue: Catalogue) -> None:
        super().__init__()
        check_catalogue(catalogue, config)
        self.register_buffer("content", catalogue.content.detach().clone().float())
        mean = self.content[1:].mean(dim=0)
        self.register_buffer("content_mean", mean)
        # one scalar: unit vectors have entries near 1 / sqrt(C), which starve the layer behind them
        self.register_buffer("content_scale", (self.content[1:] - mean).square().mean().sqrt().clamp(min=1e-6))
        for name, codes in zip(Catalogue._fields[1:], catalogue[1:], strict=True):
            self.register_buffer(name, codes.clone())
        self.id_dropout = config.id_dropout
        self.ids = nn.Embedding(config.n_ids, config.id_dim) if config.id_dim else None
        self.categories = nn.Embedding(config.n_categories, 8)
        self.brands = nn.Embedding(config.n_brands, 8)
        self.price_tiers = nn.Embedding(config.n_price_tiers, 4)
        width = config.content_dim + config.id_dim + 8 + 8 + 4
        self.hidden = nn.Linear(width, 2 * config.dim)
        self.out = nn.Linear(2 * config.dim, config.dim)

    def forward(self, rows: Tensor) -> Tensor:
        """Embed items.

        Args:
            rows: int64 [U], 0..V.

        Returns:
            float [U, D]; zeros for row 0.
        """
        parts = [
            (self.content[rows] - self.content_mean) / self.content_scale,
            self.categories(self.category[rows]),
            self.brands(self.brand[rows]),
            self.price_tiers(self.price_tier[rows]),
        ]
        if self.ids is not None:
            parts.append(self.ids(self._visible_ids(rows)))
        vectors: Tensor = self.out(F.gelu(self.hidden(torch.cat(parts, dim=1))))  # [U, D]
        return vectors * (rows > 0).unsqueeze(1)

    def _visible_ids(self, rows: Tensor) -> Tensor:
        ids = self.id_row[rows]
        if not self.training or self.id_dropout == 0:
            return ids
        return ids.masked_fill(torch.rand(rows.shape, device=rows.device) < self.id_dropout, 0)


class Block(nn.Module):
    """Pre-norm residual block: attention, then feed-forward."""

    def __init__(self, dim: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.attention_norm, self.feed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), Dropout(dropout), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: float [B, L, D].
            allowed: bool [B, 1, L, L], True where a query (rows) may see a key (columns).

        Returns:
            float [B, L, D].
        """
        n_users, length, dim = x.shape
        heads = self.qkv(self.attention_norm(x)).view(n_users, length, 3, self.n_heads, dim // self.n_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [B, heads, L, D / heads]
        rate = self.dropout if self.training else 0.0
        mixed = attention(query, key, value, allowed, rate)
        x = x + dropout(self.out(mixed.transpose(1, 2).reshape(n_users, length, dim)), rate)
        fed: Tensor = x + dropout(self.feed(self.feed_norm(x)), rate)
        return fed


class LteProjection(nn.Module):
    """Centres and scales LTEs by the training statistics, then projects them into the item space."""

    mean: Tensor
    scale: Tensor

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(config.content_dim))
        self.register_buffer("scale", torch.ones(()))
        activation = nn.GELU() if config.lte_gelu else nn.Identity()
        if config.lte_layers == 1:
            self.layers = nn.Sequential(nn.Linear(config.content_dim, config.dim), activation)
        else:
            first, last = nn.Linear(config.content_dim, config.lte_hidden), nn.Linear(config.lte_hidden, config.dim)
            self.layers = nn.Sequential(first, activation, last)

    def forward(self, lte: Tensor, has_lte: Tensor) -> Tensor:
        """Project.

        Args:
            lte: float [B, C].
            has_lte: bool [B].

        Returns:
            float [B, D]; exactly zero for a user without LTE.
        """
        projected: Tensor = self.layers((lte - self.mean) / self.scale)
        return projected * has_lte.unsqueeze(1)


class LteStatistics:
    """Running mean and one scalar deviation of the training LTEs, users without one left out."""

    def __init__(self, dim: int) -> None:
        self.count, self.square = 0, 0.0
        self.total = torch.zeros(dim, dtype=torch.float64)

    def add(self, lte: Tensor, has_lte: Tensor) -> None:
        """Count a batch: float [B, C] and bool [B]."""
        rows = lte[has_lte].double().cpu()
        self.count += len(rows)
        self.total += rows.sum(dim=0)
        self.square += float(rows.square().sum())

    def store(self, projection: LteProjection) -> None:
        """Write mean and deviation into the projection's buffers; without any LTE they stay 0 and 1."""
        if self.count == 0:
            return
        mean = self.total / self.count
        variance = self.square / (self.count * mean.numel()) - float(mean.square().mean())
        projection.mean.copy_(mean)
        # one user, or users all alike: there is nothing to scale by
        projection.scale.fill_(variance**0.5 if variance > 1e-12 else 1.0)


class UserTower(nn.Module):
    """SASRec-style: item ++ type ++ age through causal pre-norm blocks, the LTE mixed in as configured."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        self.types = nn.Embedding(config.n_types + 1, 8, padding_idx=0)
        self.ages = nn.Embedding(AGE_BUCKETS, 16, padding_idx=0)
        self.input = nn.Linear(config.dim + 8 + 16, config.dim)
        self.positions = nn.Embedding(config.max_length, config.dim)  # by distance from the end: padding moves nothing
        for table in (self.types, self.ages, self.positions):
            # drawn from N(0, 1) they would drown the items, whose vectors start five times as small
            table.weight.data.mul_(0.1)
        self.blocks = nn.ModuleList(Block(config.dim, config.n_heads, config.dropout) for _ in range(config.n_blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.w_o = nn.Linear(config.dim, config.dim, bias=False)
        if config.lte != "none":
            self.projection = LteProjection(config)
        if config.lte == "prefix_token":
            self.prefix = nn.Parameter(torch.zeros(config.dim))

    def forward(self, vectors: Tensor, batch: ExampleBatch, lte: Tensor, has_lte: Tensor) -> Tensor:
        """Encode histories.

        Args:
            vectors: float [B, L, D], item embeddings.
            batch: Items, types and ages, each [B, L].
            lte: float [B, C].
            has_lte: bool [B]; a user without one is encoded as if there were no LTE.

        Returns:
            float [B, L, D]: (X + 1 L) W_O for late fusion, X W_O otherwise.
        """
        x, allowed = self._input(vectors, batch), self._allowed(batch.items)
        anchor = self.projection(lte, has_lte) if self.config.lte != "none" else None
        if anchor is not None and self.config.lte == "feature_injection":
            x = x + anchor.unsqueeze(1)
        if anchor is not None and self.config.lte == "prefix_token":
            x = torch.cat([(anchor + self.prefix).unsqueeze(1), x], dim=1)  # [B, 1 + L, D]
            allowed = _with_prefix(allowed, has_lte)
        for block in self.blocks:
            x = block(x, allowed)
        x = self.norm(x[:, -batch.items.shape[1] :])  # the prefix predicts nothing
        if anchor is not None and self.config.lte == "late_fusion":
            x = x + anchor.unsqueeze(1)
        projected: Tensor = self.w_o(x)
        return projected

    def _input(self, vectors: Tensor, batch: ExampleBatch) -> Tensor:
        length = batch.items.shape[1]
        if length > self.config.max_length:
            raise ValueError(f"history of {length} items, the model holds {self.config.max_length}")
        joined = torch.cat([vectors, self.types(batch.types), self.ages(batch.ages)], dim=2)
        distance = torch.arange(length - 1, -1, -1, device=vectors.device)
        x = self.input(joined) + self.positions(distance)
        return dropout(x, self.config.dropout) if self.training else x

    def _allowed(self, items: Tensor) -> Tensor:
        length = items.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=items.device).tril()
        itself = torch.eye(length, dtype=torch.bool, device=items.device)  # a row that sees nothing would be NaN
        return ((causal & (items > 0).unsqueeze(1)) | itself).unsqueeze(1)


def _with_prefix(allowed: Tensor, has_lte: Tensor) -> Tensor:
    seen = has_lte.view(-1, 1, 1, 1).expand(-1, 1, allowed.shape[2], 1)
    below = torch.cat([seen, allowed], dim=3)  # [B, 1, L, 1 + L]
    own = torch.zeros_like(below[:, :, :1])
    own[..., 0] = True
    return torch.cat([own, below], dim=2)


class Context(NamedTuple):
    """What a batch needs beside its examples.

    Attributes:
        lte: float [B, C].
        has_lte: bool [B].
        popularity: Daily counts of the items, where history features are on.
    """

    lte: Tensor
    has_lte: Tensor
    popularity: DailyCounts | None = None


class Ranker(nn.Module):
    """Both towers, trained together, deployed apart."""

    def __init__(self, config: RankerConfig, catalogue: Catalogue) -> None:
        """Initialise from ``config.seed``, whatever the global generator holds.

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
            self.history = HistoryLogits(config.dim, config.history_hidden) if config.history_features else None

    @property
    def n_items(self) -> int:
        """V."""
        return self.item_tower.content.shape[0] - 1

    def embed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Embed each distinct row once.

        Args:
            rows: int64 [any], rows that the step needs; row 0 is added.

        Returns:
            float [U, D] embeddings and int64 [V + 1], position of each row in them (0 where it was not asked for).
        """
        distinct = torch.unique(torch.cat([rows.new_zeros(1), rows.flatten()]))
        position = torch.zeros(self.n_items + 1, dtype=torch.int64, device=rows.device)
        position[distinct] = torch.arange(distinct.numel(), device=rows.device)
        return self.item_tower(distinct), position

    def queries(self, batch: ExampleBatch, context: Context, vectors: Tensor, position: Tensor) -> Tensor:
        """Encode the batch's queries.

        Args:
            batch: Examples.
            context: LTEs.
            vectors: float [U, D].
            position: int64 [V + 1].

        Returns:
            float [Q, D].
        """
        encoded = self.user_tower(vectors[position[batch.items]], batch, context.lte, context.has_lte)
        picked: Tensor = encoded[batch.query_user, batch.query_position]
        return picked

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
            queries: float [Q, D].
            candidates: int64 [S], distinct rows.
            batch: Examples.
            context: Popularity, where history features are on.
            embedded: Of :meth:`embed`; holds the past items, too, where history features are on.

        Returns:
            float [Q, S].
        """
        logits = self.shared_logits(queries, candidates, batch, context, embedded)
        if self.history is None:
            return logits
        slots = self._slots(candidates)[batch.past.items]
        kept = slots >= 0
        added = self.past_logits(batch, context, embedded)[kept].to(logits.dtype)
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
            queries: float [Q, D].
            candidates: int64 [S], distinct rows.
            batch: Examples.
            context: Popularity, where history features are on.
            embedded: Of :meth:`embed`.

        Returns:
            float [Q, S].
        """
        vectors, position = embedded
        logits = queries @ vectors[position[candidates]].T
        if self.history is None:
            return logits
        days, day_of_user = torch.unique(batch.anchor_day, return_inverse=True)
        by_day = self.history.of_popularity(_popularity(context).recent(days.unsqueeze(1), candidates))  # [days, S]
        return logits + by_day[day_of_user[batch.query_user]]

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
            queries: float [Q, D].
            pairs: int64 [N] query and int64 [N] row.
            batch: Examples.
            context: Popularity, where history features are on.
            embedded: Of :meth:`embed`.

        Returns:
            float [N].
        """
        (query, rows), (vectors, position) = pairs, embedded
        logits = (queries[query] * vectors[position[rows]]).sum(dim=1)
        if self.history is None:
            return logits
        counts = _popularity(context).recent(batch.anchor_day[batch.query_user[query]], rows)
        return logits + self.history.of_popularity(counts)

    def past_logits(self, batch: ExampleBatch, context: Context, embedded: tuple[Tensor, Tensor]) -> Tensor:
        """What the user's own past adds to the logit of each past item; history features must be on.

        Args:
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
        counts = _popularity(context).recent(batch.anchor_day[past.user], past.items)
        return self.history.of_past(past, vectors[position[past.items]], counts)

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


def _popularity(context: Context) -> DailyCounts:
    if context.popularity is None:
        raise ValueError("history_features is on: the batch needs popularity counts")
    return context.popularity


def has_lte(lte: Tensor) -> Tensor:
    """Tell which users have an LTE: the zero vector stands for none (paper, section 5.4).

    Args:
        lte: float [B, C].

    Returns:
        bool [B].
    """
    return (lte != 0).any(dim=1)


@dataclass(frozen=True)
class Objective:
    """How the ranker is trained.

    Attributes:
        sampler: Draws negatives (ranks; row = rank + 1); None trains on the full softmax.
        logq: Whether sampled negatives are weighted to estimate the full softmax.
        equal_users: Whether each query weighs the same however many targets it has; otherwise each target does.
    """

    sampler: LogUniformSampler | None = None
    logq: bool = True
    equal_users: bool = False


def ranker_loss(
    model: Ranker, batch: ExampleBatch, context: Context, objective: Objective, rng: torch.Generator
) -> Tensor:
    """Training loss of a batch (paper, sections 3.2 and 5.1).

    Args:
        model: The ranker.
        batch: Examples.
        context: LTEs and popularity.
        objective: Full or sampled softmax.
        rng: CPU generator of the negatives.

    Returns:
        float scalar.

    Raises:
        ValueError: A query lies inside the sequence while history features, which are as of the anchor, are on.
    """
    if model.history is not None and bool((batch.query_position != batch.items.shape[1] - 1).any()):
        raise ValueError("history features are as of the anchor: they would show earlier positions their future")
    weights = _target_weights(batch) if objective.equal_users else None
    if objective.sampler is None:
        return _full_loss(model, batch, context, weights)
    return _sampled_loss(model, batch, context, objective.sampler, objective.logq, weights, rng)


def _full_loss(model: Ranker, batch: ExampleBatch, context: Context, weights: Tensor | None) -> Tensor:
    rows = torch.arange(1, model.n_items + 1, device=batch.items.device)
    embedded = model.embed(rows)
    queries = model.queries(batch, context, *embedded)
    has_one_target_each = batch.target_query.numel() == queries.shape[0]
    if model.history is None and weights is None and has_one_target_each:
        vectors, position = embedded
        return linear_softmax_loss(queries[batch.target_query], vectors[position[rows]], batch.targets - 1)
    logits = model.candidate_logits(queries, rows, batch, context, embedded)
    return full_softmax_loss(logits, batch.target_query, batch.targets - 1, weights)


def _sampled_loss(
    model: Ranker,
    batch: ExampleBatch,
    context: Context,
    sampler: LogUniformSampler,
    logq: bool,
    weights: Tensor | None,
    rng: torch.Generator,
) -> Tensor:
    ranks = sampler.sample(rng)
    log_expected = sampler.log_expected[ranks].to(batch.items.device) if logq else None
    negatives = (ranks + 1).to(batch.items.device)
    rows = [batch.items.flatten(), batch.targets, negatives]
    embedded = model.embed(torch.cat(rows if model.history is None else [*rows, batch.past.items]))
    queries = model.queries(batch, context, *embedded)
    logits = model.shared_logits(queries, negatives, batch, context, embedded)[batch.target_query]
    positives = model.pair_logits(queries, (batch.target_query, batch.targets), batch, context, embedded)
    own = None
    if model.history is not None:
        positives, own = _own_items(model, queries, negatives, positives, batch, context, embedded)
    return sampled_softmax_loss(
        positives, logits, batch.targets, negatives, log_expected=log_expected, weights=weights, own=own
    )


def _own_items(
    model: Ranker,
    queries: Tensor,
    negatives: Tensor,
    positives: Tensor,
    batch: ExampleBatch,
    context: Context,
    embedded: tuple[Tensor, Tensor],
) -> tuple[Tensor, OwnItems]:
    """Make every past item a candidate of its user's only query: the items that counting would confuse.

    Returns:
        float [T] logits of the targets with what the past adds, and the candidates.
    """
    past, user, n_users = batch.past, batch.query_user[batch.target_query], len(batch.items)
    added = model.past_logits(batch, context, embedded)  # [P]
    query_of_user = torch.argsort(batch.query_user)  # one query a user: history features are as of the anchor
    logits = model.pair_logits(queries, (query_of_user[past.user], past.items), batch, context, embedded) + added
    place, holds_target = _find(past.user, past.items, user, batch.targets, model.n_items + 1)
    if added.numel():
        positives = positives + added[place] * holds_target
    slots = model._slots(negatives)[past.items]
    is_own = torch.zeros(n_users, negatives.numel(), dtype=torch.bool, device=negatives.device)
    is_own[past.user[slots >= 0], slots[slots >= 0]] = True
    return positives, OwnItems(grouped_logsumexp(logits, past.user, n_users)[user], holds_target, is_own[user])


def _find(user: Tensor, items: Tensor, wanted_user: Tensor, wanted_item: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Place of each wanted pair among pairs sorted by user, then item: int64 [T], and bool [T], whether it is there."""
    keys, wanted = user * width + items, wanted_user * width + wanted_item
    if keys.numel() == 0:
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    place = torch.searchsorted(keys, wanted).clamp(max=keys.numel() - 1)
    return place, keys[place] == wanted


def _target_weights(batch: ExampleBatch) -> Tensor:
    counts = torch.bincount(batch.target_query, minlength=batch.query_user.numel())
    return 1 / counts[batch.target_query].float()
