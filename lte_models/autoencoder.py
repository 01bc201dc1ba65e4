"""The asymmetric autoencoder of the paper's section 9: a learned encoder in front of the frozen semantic basis.

The defaults of :class:`AutoencoderConfig` are the paper's form. In that form the bottleneck z must also explain how
frequent each item is, so z points away from the average of the user's items (ADR 0007). A fixed offset per item takes
the frequencies out of z, and a frozen whitened decoder takes out what all items share. Nothing learned comes after z.

Axes: B users, N items of all histories together, V items of the vocabulary, D embedding size, S sampled negatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lte_models.training.losses import sampled_bce_loss, sampled_multinomial_loss
from lte_models.training.sampling import LogUniformSampler

BCE, MULTINOMIAL = "bce", "multinomial"
SUM, ROOT, TFIDF = "sum", "root", "tfidf"


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape and objective of the autoencoder.

    Attributes:
        n_items: V.
        dim: D, the width of the basis.
        l2: Weight of the sum of squares of all encoder weights in the loss.
        n_negatives: S, sampled for each batch.
        power: Power factor of the log-uniform negatives.
        logq: Whether negatives are weighted to estimate the full loss; ``multinomial`` always does.
        seed: Seed of the initial weights.
        objective: ``bce`` (the paper's), or ``multinomial``: one softmax over all items (arXiv 1802.05814).
        input: ``sum``: the multi-hot history (the paper's). ``root``: divided by the root of its number of items.
            ``tfidf``: each item weighs the log of one over its share of users, and the history has length 1.
        input_dropout: Share of the input that is dropped in training; the items to reconstruct stay all.
        temperature: Divides z Eᵀ; fixed. It decides how long z becomes.
        has_offset: Whether each item's logit has a fixed offset, the log-odds of its share of users.
        whitened: Whether the decoder is the whitened basis. The LTE is then the mean item plus the unwhitened z: a
            vector of the basis, as an average is.
    """

    n_items: int
    dim: int
    l2: float = 1e-6
    n_negatives: int = 256
    power: float = 1.0
    logq: bool = False
    seed: int = 0
    objective: str = BCE
    input: str = SUM
    input_dropout: float = 0.0
    temperature: float = 1.0
    has_offset: bool = False
    whitened: bool = False

    def __post_init__(self) -> None:
        if self.objective not in (BCE, MULTINOMIAL):
            raise ValueError(f"objective: expected {BCE} or {MULTINOMIAL}, got {self.objective!r}")
        if self.input not in (SUM, ROOT, TFIDF):
            raise ValueError(f"input: expected {SUM}, {ROOT} or {TFIDF}, got {self.input!r}")
        if not 0 <= self.input_dropout < 1:
            raise ValueError(f"input_dropout: expected a share below 1, got {self.input_dropout}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature: expected a finite number above 0, got {self.temperature}")
        if self.n_items < 1:
            raise ValueError("the vocabulary holds no item: no autoencoder can be trained")
        if self.dim < 1:
            raise ValueError(f"dim: expected at least 1, got {self.dim}")
        if not 0 <= self.l2 < float("inf"):
            raise ValueError(f"l2: expected a finite number >= 0, got {self.l2}")


class ItemHistories(NamedTuple):
    """Distinct known items of each user, flat: user b owns ``items[offsets[b]:offsets[b + 1]]``.

    Attributes:
        items: int64 [N], positions in the vocabulary (popularity ranks).
        offsets: int64 [B], start of each user; an empty history is legal.
    """

    items: Tensor
    offsets: Tensor

    def users(self) -> Tensor:
        """Return int64 [N], the user of each item."""
        ends = torch.cat([self.offsets[1:], self.offsets.new_tensor([self.items.numel()])])
        return torch.repeat_interleave(
            torch.arange(self.offsets.numel(), device=self.items.device), ends - self.offsets
        )


def orthonormal_rows(rows: int, columns: int, *, seed: int) -> Tensor:
    """Random matrix P with P Pᵀ = I, so that x -> x P keeps inner products.

    Args:
        rows: At most ``columns``.
        columns: Width.
        seed: Decides the matrix.

    Returns:
        float32 [rows, columns].

    Raises:
        ValueError: There are more rows than columns.
    """
    if rows > columns:
        raise ValueError(f"{rows} orthonormal rows do not fit into {columns} columns")
    gaussian = torch.randn(columns, rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    signed: Tensor = q * torch.sign(torch.diagonal(r))  # a unique Q
    return signed.T.float().contiguous()


def check_basis(basis: Tensor, n_items: int, dim: int) -> None:
    """Refuse a basis that does not fit or holds a value that is not finite.

    Args:
        basis: float [V, D].
        n_items: V.
        dim: D.

    Raises:
        ValueError: The shape differs, or an embedding holds NaN or infinity (the message names its row).
    """
    if tuple(basis.shape) != (n_items, dim):
        raise ValueError(
            f"basis: expected shape {(n_items, dim)}, one vector for each item of the vocabulary, "
            f"got {tuple(basis.shape)}"
        )
    bad = (~torch.isfinite(basis)).any(dim=1).nonzero().flatten()
    if bad.numel():
        raise ValueError(f"embedding of vocabulary row {int(bad[0])} is not finite ({bad.numel()} such rows)")


class FittedParts(NamedTuple):
    """What a model takes from the data before training, and keeps.

    Attributes:
        share: Share of users that have each item, float [V], above 0 and at most 1.
        mean: Mean item of the basis, float [D].
        whiten: W of :class:`lte_models.averages.whitening.Whitening`, float [D, D].
    """

    share: Tensor
    mean: Tensor
    whiten: Tensor


class Autoencoder(nn.Module):
    """Multi-hot history -> 4D -> 2D -> D with ReLU between; logits against the frozen basis (paper, section 9.1)."""

    basis: Tensor
    offset: Tensor
    input_weight: Tensor
    mean: Tensor
    whiten: Tensor
    unwhiten: Tensor

    def __init__(self, config: AutoencoderConfig, basis: Tensor) -> None:
        """Initialise the first layer with E P, the others at random from ``config.seed``.

        Args:
            config: Shapes.
            basis: float [V, D], the frozen decoder E, rows in vocabulary order.

        Raises:
            ValueError: ``basis`` does not fit or is not finite.
        """
        super().__init__()
        check_basis(basis, config.n_items, config.dim)
        self.config = config
        d = config.dim
        self.register_buffer("basis", basis.detach().clone().float())
        self._register_parts()
        self.first = nn.EmbeddingBag(config.n_items, 4 * d, mode="sum", include_last_offset=False)
        self.first_bias = nn.Parameter(torch.zeros(4 * d))
        self.second = nn.Linear(4 * d, 2 * d)
        self.last = nn.Linear(2 * d, d)
        self._initialise()

    def _register_parts(self) -> None:
        """Only the parts that the configuration uses, so that a bundle of the paper's form holds what it always did."""
        n_items, d = self.config.n_items, self.config.dim
        if self.config.has_offset:
            self.register_buffer("offset", torch.zeros(n_items))
        if self.config.input == TFIDF:
            self.register_buffer("input_weight", torch.ones(n_items))
        if self.config.whitened:
            self.register_buffer("mean", torch.zeros(d))
            self.register_buffer("whiten", torch.eye(d))
            self.register_buffer("unwhiten", torch.eye(d))

    def fit(self, parts: FittedParts) -> None:
        """Take over what is fixed before training, and start the first layer from the decoder's vectors.

        Args:
            parts: Of the training users and of the basis.

        Raises:
            ValueError: A share is not in (0, 1].
        """
        is_bad = ~((parts.share > 0) & (parts.share <= 1))
        if bool(is_bad.any()):
            raise ValueError(f"share of item {int(is_bad.nonzero()[0])}: expected a number above 0 and at most 1")
        # the user who is about to come counts for and against each item, so that no log is infinite
        share = parts.share.double().clamp(max=1 - 1e-6)
        if self.config.has_offset:
            self.offset.copy_(torch.logit(share) if self.config.objective == BCE else share.log())
        if self.config.input == TFIDF:
            self.input_weight.copy_(-share.log())
        if self.config.whitened:
            self.mean.copy_(parts.mean)
            self.whiten.copy_(parts.whiten)
            self.unwhiten.copy_(torch.linalg.inv(parts.whiten.double()))
        self._initialise()

    def _initialise(self) -> None:
        generator = torch.Generator().manual_seed(self.config.seed)
        decoder = self.decoder()
        with torch.no_grad():
            if self.config.whitened:  # items of about length 1, as those of the basis
                decoder = decoder / self.config.dim**0.5
            self.first.weight.copy_(decoder @ orthonormal_rows(self.config.dim, 4 * self.config.dim, seed=0))
            for layer in (self.second, self.last):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)

    def decoder(self, items: Tensor | None = None) -> Tensor:
        """The frozen vectors that z is multiplied with.

        Args:
            items: int64 [I], or None for all items.

        Returns:
            float [I, D].
        """
        rows = self.basis if items is None else self.basis[items]
        return (rows - self.mean) @ self.whiten if self.config.whitened else rows

    def forward(self, histories: ItemHistories) -> Tensor:
        """Encode histories; an empty one gives the cold-start vector.

        A user with only unknown items also looks empty here. Such a user should get the uniform average of the items
        that the basis knows. The caller makes that choice, because only the caller sees the unknown items.

        Args:
            histories: Histories of B users.

        Returns:
            float [B, D], the fine-tuned LTE, a vector in the basis.
        """
        latent = self.latent(histories)
        return self.mean + latent @ self.unwhiten if self.config.whitened else latent

    def latent(self, histories: ItemHistories) -> Tensor:
        """Encode histories to the bottleneck z, in the space of :meth:`decoder`.

        Args:
            histories: Histories of B users.

        Returns:
            float [B, D].
        """
        weights = self._input_weights(histories)
        bags = self.first(histories.items, histories.offsets, per_sample_weights=weights)
        hidden = F.relu(bags + self.first_bias)  # [B, 4D]
        hidden = F.relu(self.second(hidden))  # [B, 2D]
        latent: Tensor = self.last(hidden)  # [B, D]
        return latent

    def _input_weights(self, histories: ItemHistories) -> Tensor | None:
        """Weight of each item of the input, float [N]; None where each weighs 1."""
        if self.config.input == SUM:
            weights = torch.ones(histories.items.shape, device=self.basis.device)
        else:
            weights = self._scaled_to_one(histories)
        if self.config.input_dropout:
            return F.dropout(weights, self.config.input_dropout, training=self.training)
        return None if self.config.input == SUM else weights

    def _scaled_to_one(self, histories: ItemHistories) -> Tensor:
        """Weights whose squares sum to 1 for each user: a long history is not a loud one."""
        is_weighted, users = self.config.input == TFIDF, histories.users()
        own = self.input_weight[histories.items] if is_weighted else torch.ones_like(users, dtype=torch.float32)
        squares = torch.zeros(histories.offsets.numel(), device=own.device).index_add(0, users, own.square())
        return own / squares.sqrt().clamp(min=torch.finfo(torch.float32).tiny)[users]

    def cold_start(self) -> Tensor:
        """Return float [D]: the vector of every user without history, which depends on the biases alone."""
        nothing = torch.empty(0, dtype=torch.int64, device=self.basis.device)
        offsets = torch.zeros(1, dtype=torch.int64, device=self.basis.device)
        latent: Tensor = self(ItemHistories(nothing, offsets))
        return latent[0]

    def logits(self, lte: Tensor) -> Tensor:
        """Reconstruction logits: z Eᵀ, and the offsets where there are any.

        Args:
            lte: float [B, D], from :meth:`forward`.

        Returns:
            float [B, V].
        """
        latent = (lte - self.mean) @ self.whiten if self.config.whitened else lte
        return self._scores(latent)

    def _scores(self, latent: Tensor, items: Tensor | None = None) -> Tensor:
        """Logits of some items, float [B, I]."""
        scores = latent @ self.decoder(items).T / self.config.temperature
        if not self.config.has_offset:
            return scores
        return scores + (self.offset if items is None else self.offset[items])

    def penalty(self) -> Tensor:
        """Return the sum of squares of all encoder weights, including the last projection, without biases."""
        weights = (self.first.weight, self.second.weight, self.last.weight)
        return torch.stack([weight.square().sum() for weight in weights]).sum()

    def loss(self, histories: ItemHistories, negatives: Tensor, log_expected: Tensor | None) -> Tensor:
        """Reconstruction loss with sampled negatives, plus the L2 penalty.

        Args:
            histories: Histories of B users.
            negatives: int64 [S], shared by the batch; items in a user's history do not count as negatives.
            log_expected: float [S] for weighted negatives, or None.

        Returns:
            float scalar.
        """
        latent = self.latent(histories)
        users = histories.users()
        wanted, place = torch.unique(torch.cat([histories.items, negatives]), return_inverse=True)
        logits = self._scores(latent, wanted)  # [B, items of the step]: far less to read than N pairs of vectors
        positive = logits[users, place[: users.numel()]]  # [N]
        negative = logits[:, place[users.numel() :]]  # [B, S]
        hits = self._hits(histories, users, negatives)
        if self.config.objective == MULTINOMIAL:
            reconstruction = sampled_multinomial_loss(positive, users, negative, hits, log_expected=log_expected)
        else:
            reconstruction = sampled_bce_loss(
                positive, users, negative, hits, log_expected=log_expected, n_items=self.config.n_items
            )
        return reconstruction + self.config.l2 * self.penalty()

    def _hits(self, histories: ItemHistories, users: Tensor, negatives: Tensor) -> Tensor:
        slot = torch.full((self.config.n_items,), -1, dtype=torch.int64, device=negatives.device)
        slot[negatives] = torch.arange(negatives.numel(), device=negatives.device)
        slots = slot[histories.items]  # [N], place of the item among the negatives
        drawn = slots >= 0
        hits = torch.zeros(histories.offsets.numel(), negatives.numel(), dtype=torch.bool, device=negatives.device)
        hits[users[drawn], slots[drawn]] = True
        return hits


def autoencoder_loss(
    model: Autoencoder, sampler: LogUniformSampler, histories: ItemHistories, rng: torch.Generator
) -> Tensor:
    """Draw the batch's negatives and return the training loss.

    Args:
        model: The autoencoder.
        sampler: Over the model's vocabulary, which is in rank order.
        histories: Of the batch's users.
        rng: CPU generator of the negatives.

    Returns:
        float scalar.
    """
    negatives = sampler.sample(rng)
    is_weighted = model.config.logq or model.config.objective == MULTINOMIAL
    log_expected = sampler.log_expected[negatives].to(model.basis.device) if is_weighted else None
    return model.loss(histories, negatives.to(model.basis.device), log_expected)


class HiddenScores(NamedTuple):
    """How well the model finds hidden items of validation users; sums over users, so that batches add up.

    Attributes:
        auc: Sum over users of the chance that a hidden item scores higher than an item that the user never had.
        recall: Sum of the shares of hidden items among the best k.
        precision: Sum of the shares of the best k that are hidden items.
        n_users: Users with something hidden.
    """

    auc: float
    recall: float
    precision: float
    n_users: int


def hide_items(histories: ItemHistories, share: float, rng: torch.Generator) -> tuple[ItemHistories, Tensor, Tensor]:
    """Hide items at random.

    Args:
        histories: Of B users.
        share: Expected share of hidden items.
        rng: CPU generator.

    Returns:
        The histories that stay visible; int64 [H] users and int64 [H] items of the hidden entries.
    """
    users = histories.users()
    hidden = torch.rand(histories.items.numel(), generator=rng).to(users.device) < share
    counts = torch.bincount(users[~hidden], minlength=histories.offsets.numel())
    offsets = torch.cumsum(counts, dim=0) - counts
    return ItemHistories(histories.items[~hidden], offsets), users[hidden], histories.items[hidden]


def hidden_scores(
    model: Autoencoder, histories: ItemHistories, *, share: float, k: int, rng: torch.Generator
) -> HiddenScores:
    """Hide a share of each history, encode the rest and look where the hidden items rank.

    Args:
        model: In eval mode.
        histories: Of validation users.
        share: Of items to hide.
        k: Cutoff of recall and precision.
        rng: CPU generator; decides what is hidden.

    Returns:
        Sums over the users that have a hidden item.
    """
    visible, users, items = hide_items(histories, share, rng)
    n_users = histories.offsets.numel()
    logits = model.logits(model(visible))  # [B, V]
    logits[visible.users(), visible.items] = -torch.inf  # what went in is no candidate
    order = torch.argsort(logits, dim=1, descending=True, stable=True)
    places = torch.empty_like(order).scatter_(1, order, torch.arange(logits.shape[1]).expand_as(order).to(order))
    ranks = places[users, items]  # [H], from 0
    n_hidden = torch.bincount(users, minlength=n_users).double()
    n_other = logits.shape[1] - torch.bincount(histories.users(), minlength=n_users).double()
    has = n_hidden > 0
    # of the ranks' sum, n (n - 1) / 2 is owed to hidden items above one another; the rest are lost comparisons
    lost = torch.bincount(users, weights=ranks.double(), minlength=n_users) - n_hidden * (n_hidden - 1) / 2
    auc = 1 - lost / (n_hidden * n_other).clamp(min=1)
    hits = torch.bincount(users, weights=(ranks < k).double(), minlength=n_users)
    recall, precision = hits / n_hidden.clamp(min=1), hits / k
    auc_sum, recall_sum, precision_sum = (float(value[has].sum()) for value in (auc, recall, precision))
    return HiddenScores(auc_sum, recall_sum, precision_sum, int(has.sum()))
