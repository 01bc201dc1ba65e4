"""Train the catalogue CLIP with open_clip's loss, and measure it on test pairs. Arrays in, weights out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lte_models.clip.model import PAD_ID, UNKNOWN_ID, normalise
from lte_models.training.trainer import Progress, Task, TrainConfig, Trainer

RECALL_AT = (1, 5, 10)
MAX_LOGIT_SCALE = math.log(100)

# open_clip's value: squared gradients of a contrastive loss change too fast for AdamW's usual .999.
BETAS = (0.9, 0.98)


class ClipTrainError(ValueError):
    """A training that cannot start, or that diverged; the message names the setting."""


@dataclass(frozen=True)
class ClipTrainConfig:
    """How a catalogue CLIP is trained.

    Attributes:
        epochs: Passes over the training pairs.
        batch_size: Pairs per step; the others of a batch are the negatives.
        learning_rate: Peak of the cosine schedule.
        weight_decay: Weight decay of AdamW, on matrices only.
        warmup_share: Share of the steps in which the learning rate rises.
        unknown_share: Share of the word pieces of a training text that are replaced by the unknown token, so that
            the model learns to handle a word that it has never seen.
        cut_share: Share of the training texts that are cut short, so that the model learns to read short queries.
        smallest_crop: Side of the smallest random crop of a picture, as a share of the whole.
        seed: Seed of weights, order and augmentation.
        bfloat16: Whether to multiply matrices in bfloat16; weights stay float32.
    """

    epochs: int = 14
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup_share: float = 0.05
    unknown_share: float = 0.1
    cut_share: float = 0.15
    smallest_crop: float = 0.8
    seed: int = 0
    bfloat16: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        if self.epochs < 1 or self.batch_size < 2 or self.learning_rate <= 0:
            raise ClipTrainError(
                f"epochs {self.epochs}, batch {self.batch_size}, rate {self.learning_rate} cannot train"
            )
        shares = (self.warmup_share, self.unknown_share, self.cut_share)
        if not all(0 <= share < 1 for share in shares) or not 0 < self.smallest_crop <= 1:
            raise ClipTrainError(f"shares {shares} must lie in [0, 1), the crop {self.smallest_crop} in (0, 1]")


@dataclass(frozen=True)
class Pairs:
    """Picture-text pairs.

    Attributes:
        pixels: uint8 [N, 3, H, W].
        tokens: long [N, L], ids of the model's token table.
    """

    pixels: Tensor
    tokens: Tensor

    def __post_init__(self) -> None:
        """Refuse parts of different lengths."""
        if len(self.pixels) != len(self.tokens):
            raise ClipTrainError(f"pairs: {len(self.pixels)} pictures, {len(self.tokens)} texts")

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Tensor) -> Pairs:
        """The pairs at ``rows``."""
        return Pairs(self.pixels[rows], self.tokens[rows])


def in_test_set(item_ids: Sequence[str], share: float, seed: int) -> NDArray[np.bool_]:
    """Decide by a hash of each item id which items are test items: no other item has an influence.

    Args:
        item_ids: N ids.
        share: Expected share of test items, in [0, 1].
        seed: Another seed gives another split.

    Returns:
        bool [N].
    """
    digests = [hashlib.sha256(f"{seed}:{item_id}".encode()).digest()[:8] for item_id in item_ids]
    places = np.array([int.from_bytes(digest) for digest in digests], dtype=np.uint64)
    return places < np.uint64(share * 2**63) * np.uint64(2)


def random_crops(pixels: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """Crop each picture at random (side ``smallest``..1, aspect kept), mirror half of them, resize to the old size.

    Args:
        pixels: float [B, 3, H, W].
        smallest: Side of the smallest crop as a share.
        generator: Generator of the random numbers.

    Returns:
        float [B, 3, H, W].
    """
    n = len(pixels)
    side = smallest + (1 - smallest) * torch.rand(n, generator=generator)
    shift = (2 * torch.rand(n, 2, generator=generator) - 1) * (1 - side).unsqueeze(1)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    zero = torch.zeros(n)
    rows = torch.stack([side * mirror, zero, shift[:, 0], zero, side, shift[:, 1]], dim=1)
    grid = F.affine_grid(rows.view(n, 2, 3), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


def hide_words(tokens: Tensor, share: float, end_id: int, generator: torch.Generator) -> Tensor:
    """Replace a share of the word pieces by the unknown token: long [B, L] to long [B, L].

    Padding, start (``end_id - 1``) and end of text stay.
    """
    is_word = (tokens != PAD_ID) & (tokens < end_id - 1)
    hidden = is_word & (torch.rand(tokens.shape, generator=generator) < share)
    return torch.where(hidden, UNKNOWN_ID, tokens)


def cut_texts(tokens: Tensor, share: float, end_id: int, generator: torch.Generator) -> Tensor:
    """Cut a share of the texts after a random number (at least 1) of word pieces: long [B, L] to long [B, L]."""
    n_words = tokens.argmax(1) - 1  # the end of text is the largest id
    drawn = 1 + (torch.rand(len(tokens), generator=generator) * n_words).long()
    is_cut = (torch.rand(len(tokens), generator=generator) < share) & (drawn < n_words)
    last = torch.where(is_cut, drawn, n_words).unsqueeze(1)
    place = torch.arange(tokens.shape[1])
    return torch.where(place <= last, tokens, torch.where(place == last + 1, end_id, PAD_ID))


def epoch_batches(n_pairs: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers of each batch of one epoch, in random order; an incomplete last batch is left out."""
    order = torch.randperm(n_pairs, generator=generator)
    n_batches = max(1, n_pairs // batch_size)
    yield from torch.split(order[: n_batches * batch_size], batch_size)


def train_clip(
    model: nn.Module,
    pairs: Pairs,
    *,
    open_config: dict[str, Any],
    config: ClipTrainConfig,
    say: Callable[[str], None] = lambda _: None,
) -> Progress:
    """Train in place. With one seed, one build of torch and one number of threads, weights are the same bit for bit.

    Args:
        model: open_clip's CLIP.
        pairs: Training pairs, N >= 2.
        open_config: The open_clip config of the model (for the normalisation of pictures).
        config: Hyperparameters.
        say: Called with the progress after each epoch, and sometimes within an epoch.

    Returns:
        The progress at the end; its curve has one ``loss`` per epoch.

    Raises:
        ClipTrainError: There are fewer than two pairs, or the loss is not finite.
    """
    if len(pairs) < 2:
        raise ClipTrainError(f"a contrastive loss: expected two pairs or more, got {len(pairs)}")
    steps = config.epochs * max(1, len(pairs) // config.batch_size)

    def batches(epoch: int) -> Iterator[Pairs]:
        order = torch.Generator().manual_seed(config.seed * 100_003 + epoch)  # another order in each epoch
        return (pairs.take(rows) for rows in epoch_batches(len(pairs), config.batch_size, order))

    task = Task(
        model,
        loss=lambda batch, rng: _loss(model, batch, open_config, config, rng),
        batches=batches,
        validate=None,  # the shipped model is the last one: the measured items must not choose it
        fingerprint="",
        say=say,
        rate=lambda progress: _rate(progress.total_steps, steps, config.warmup_share),
        undecayed=[name for name, p in model.named_parameters() if p.ndim < 2 or "embedding" in name],
    )
    try:
        return Trainer(task, _train_config(config), None).run()
    except FloatingPointError as error:
        raise ClipTrainError(
            f"{error}, which is not finite; lower the learning rate, which is {config.learning_rate}"
        ) from error


def _train_config(config: ClipTrainConfig) -> TrainConfig:
    return TrainConfig(
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=BETAS,
        patience=config.epochs,
        clip_norm=math.inf,  # the clamped logit scale bounds the gradient already
        seed=config.seed,
    )


def _loss(
    model: Any, batch: Pairs, open_config: dict[str, Any], config: ClipTrainConfig, generator: torch.Generator
) -> Tensor:
    pictures = random_crops(normalise(batch.pixels, open_config), config.smallest_crop, generator)
    end_id = model.vocab_size - 1
    tokens = cut_texts(batch.tokens, config.cut_share, end_id, generator)
    tokens = hide_words(tokens, config.unknown_share, end_id, generator)
    # For the short sequences here, the backward pass of the plain attention kernel is faster than of the fused kernel.
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16), sdpa_kernel(SDPBackend.MATH):
        out = model(pictures, tokens)
    scale = model.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
    loss: Tensor = ClipLoss()(out["image_features"].float(), out["text_features"].float(), scale)
    return loss


def _rate(step: int, steps: int, warmup_share: float) -> float:
    warmup = max(1, int(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.inference_mode()
def encode_pairs(model: Any, pairs: Pairs, open_config: dict[str, Any], batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Unit vectors of pictures and texts: two float32 [N, D]."""
    model.eval()
    images, texts = [], []
    for rows in torch.split(torch.arange(len(pairs)), batch_size):
        batch = pairs.take(rows)
        images.append(model.encode_image(normalise(batch.pixels, open_config), normalize=True))
        texts.append(model.encode_text(batch.tokens, normalize=True))
    return torch.cat(images), torch.cat(texts)


def image_to_text_recall(
    images: Tensor, texts: Tensor, text_ids: Tensor, counted: Tensor | None = None
) -> dict[int, float]:
    """Share of pictures whose own text is among the k nearest of all N texts, k in 1, 5, 10.

    Each picture has one right answer, its own text. Items that share one text tie, and the order among ties is
    random. So each such picture counts with the probability that a random order puts its own text in the first k.

    Args:
        images: float [N, D], unit.
        texts: float [N, D], unit, row i belongs to picture i.
        text_ids: long [N], equal where the texts are equal.
        counted: bool [N], the pictures that count, all by default; each is always compared with all N texts.

    Returns:
        k to recall in [0, 1].
    """
    _, first, labels = np.unique(text_ids.numpy(), return_index=True, return_inverse=True)
    copies = torch.from_numpy(np.bincount(labels))  # [U]
    own = torch.from_numpy(labels)  # [N]
    scores = images @ texts[torch.from_numpy(first)].T  # [N, U], each different text once
    ahead = ((scores > scores.gather(1, own.unsqueeze(1))) * copies).sum(1)  # [N]
    rows = torch.ones(len(own), dtype=torch.bool) if counted is None else counted
    return {k: float(((k - ahead) / copies[own]).clamp(0, 1)[rows].mean()) for k in RECALL_AT}
