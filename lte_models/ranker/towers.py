"""The two towers: items by content, id and metadata; users by a causal transformer with the LTE mixed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lte_models.ranker.dropout import Dropout, attention, dropout
from lte_models.ranker.examples import AGE_BUCKETS, ExampleBatch

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
        repeat_expert: Whether past items have an expert of their own, which also weighs their logit from the towers.
        affinity: Whether the whitened inner product of LTE and item adds a logit.
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
    repeat_expert: bool = False
    affinity: bool = False
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
            "repeat_expert": self.repeat_expert and not self.history_features,
            "n_types": self.n_types < 1,
            "max_length": self.max_length < 1,
            "dropout": not 0 <= self.dropout < 1,
            "id_dropout": not 0 <= self.id_dropout < 1,
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise ValueError(f"RankerConfig.{name} = {getattr(self, name)!r} cannot be (dim = {self.dim})")


class Catalogue(NamedTuple):
    """The item side, one row per item; row 0 is padding.

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
        ValueError: The catalogue is wrong; the message names the fault and the row.
    """
    content_dim = config.content_dim
    limits = (config.n_ids, config.n_categories, config.n_brands, config.n_price_tiers)
    n_rows = catalogue.content.shape[0]
    if n_rows < 2:
        raise ValueError("the vocabulary holds no item: no ranker can be trained")
    if catalogue.content.shape[1] != content_dim:
        raise ValueError(f"basis has {catalogue.content.shape[1]} floats per item, expected {content_dim}")
    for name, codes, limit in zip(Catalogue._fields[1:], catalogue[1:], limits, strict=True):
        if codes.shape != (n_rows,):
            raise ValueError(f"catalogue.{name}: expected shape ({n_rows},), got {tuple(codes.shape)}")
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
        # one scalar: unit vectors have entries near 1 / sqrt(C), which are too small for the next layer
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
            self.scaled(self.content[rows]),
            self.categories(self.category[rows]),
            self.brands(self.brand[rows]),
            self.price_tiers(self.price_tier[rows]),
        ]
        if self.ids is not None:
            parts.append(self.ids(self._visible_ids(rows)))
        vectors: Tensor = self.out(F.gelu(self.hidden(torch.cat(parts, dim=1))))  # [U, D]
        return vectors * (rows > 0).unsqueeze(1)  # row 0 is padding: the layers' biases must not give it a vector

    def scaled(self, content: Tensor) -> Tensor:
        """Centre and scale vectors of the basis or averages of them: float [..., C]."""
        return (content - self.content_mean) / self.content_scale

    def _visible_ids(self, rows: Tensor) -> Tensor:
        ids = self.id_row[rows]
        # Hidden ids train row 0, which represents every item without an id of its own, mainly new items.
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
        # one product for all three: fewer kernel starts, which are the main cost at this size
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
        # One scalar for all directions: a deviation for each direction would blow up those that say nothing.
        projected: Tensor = self.layers((lte - self.mean) / self.scale)
        return projected * has_lte.unsqueeze(1)


class LteStatistics:
    """Running mean and one scalar deviation of the training LTEs, users without one left out."""

    def __init__(self, dim: int) -> None:
        self.count, self.square = 0, 0.0
        self.total = torch.zeros(dim, dtype=torch.float64)

    def add(self, lte: Tensor, has_lte: Tensor) -> None:
        """Count a batch: float [B, C] and bool [B]."""
        rows = lte[has_lte].double().cpu()  # float32 sums over millions of users would lose the last digits
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
            # from N(0, 1) they would dominate the items, whose vectors start five times as small
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
            x = x + anchor.unsqueeze(1)  # at every position; zero for a user without LTE
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
