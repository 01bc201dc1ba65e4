"""The asymmetric autoencoder of the paper's section 9: a learned encoder in front of the frozen semantic basis.

Axes: B users, N items of all histories together, V items of the vocabulary, D embedding size, S sampled negatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lte_models.training.losses import sampled_bce_loss
from lte_models.training.sampling import LogUniformSampler


@dataclass(frozen=True)
class AutoencoderConfig:
    """Shape and objective of the autoencoder.

    Attributes:
        n_items: V.
        dim: D, the width of the basis.
        l2: Weight of the sum of squares of all encoder weights in the loss.
        n_negatives: S, sampled for each batch.
        power: Power factor of the log-uniform negatives.
        logq: Whether negatives are weighted to estimate the full loss.
        seed: Seed of the initial weights.
    """

    n_items: int
    dim: int
    l2: float = 1e-6
    n_negatives: int = 256
    power: float = 1.0
    logq: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
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


class Autoencoder(nn.Module):
    """Multi-hot history -> 4D -> 2D -> D with ReLU between; logits against the frozen basis (paper, section 9.1)."""

    basis: Tensor

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
        self.first = nn.EmbeddingBag(config.n_items, 4 * d, mode="sum", include_last_offset=False)
        self.first_bias = nn.Parameter(torch.zeros(4 * d))
        self.second = nn.Linear(4 * d, 2 * d)
        self.last = nn.Linear(2 * d, d)
        self._initialise()

    def _initialise(self) -> None:
        generator = torch.Generator().manual_seed(self.config.seed)
        with torch.no_grad():
            self.first.weight.copy_(self.basis @ orthonormal_rows(self.config.dim, 4 * self.config.dim, seed=0))
            for layer in (self.second, self.last):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, histories: ItemHistories) -> Tensor:
        """Encode histories; an empty one gives the cold-start vector.

        A user with only unknown items also looks empty here. Such a user should get the uniform average of the items
        that the basis knows. The caller makes that choice, because only the caller sees the unknown items.

        Args:
            histories: Histories of B users.

        Returns:
            float [B, D], the fine-tuned LTE z.
        """
        hidden = F.relu(self.first(histories.items, histories.offsets) + self.first_bias)  # [B, 4D]
        hidden = F.relu(self.second(hidden))  # [B, 2D]
        latent: Tensor = self.last(hidden)  # [B, D]
        return latent

    def cold_start(self) -> Tensor:
        """Return float [D]: the vector of every user without history, which depends on the biases alone."""
        nothing = torch.empty(0, dtype=torch.int64, device=self.basis.device)
        offsets = torch.zeros(1, dtype=torch.int64, device=self.basis.device)
        latent: Tensor = self(ItemHistories(nothing, offsets))
        return latent[0]

    def logits(self, latent: Tensor) -> Tensor:
        """Reconstruction logits z Eᵀ.

        Args:
            latent: float [B, D].

        Returns:
            float [B, V].
        """
        return latent @ self.basis.T

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
        latent = self(histories)
        users = histories.users()
        wanted, place = torch.unique(torch.cat([histories.items, negatives]), return_inverse=True)
        logits = latent @ self.basis[wanted].T  # [B, items of the step]: far less to read than N pairs of vectors
        positive = logits[users, place[: users.numel()]]  # [N]
        negative = logits[:, place[users.numel() :]]  # [B, S]
        hits = self._hits(histories, users, negatives)
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
    log_expected = sampler.log_expected[negatives].to(model.basis.device) if model.config.logq else None
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
