"""Builds a new autoencoder and its loss, for the daily training and for the experiments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jobs.config.sections import AutoencoderSection
from lte_models.autoencoder import Autoencoder, AutoencoderConfig, ItemHistories, autoencoder_loss
from lte_models.training.sampling import LogUniformSampler, negatives_for_share


def build_autoencoder(settings: AutoencoderSection, basis: Tensor) -> Autoencoder:
    """Build an autoencoder, initialised from the basis and its seed.

    Args:
        settings: Objective and seed.
        basis: float [V, D], rows in vocabulary order.
    """
    n_items, dim = basis.shape
    config = AutoencoderConfig(
        n_items=n_items,
        dim=dim,
        l2=settings.l2,
        n_negatives=negatives_for_share(n_items, settings.negatives_share),
        power=settings.power,
        seed=settings.seed,
    )
    return Autoencoder(config, basis)


def sampled_loss(model: Autoencoder) -> Callable[[ItemHistories, torch.Generator], Tensor]:
    """Loss of a batch, on the model's device; each batch draws its own negatives.

    Args:
        model: The autoencoder, on its device.
    """
    sampler = LogUniformSampler(model.config.n_items, model.config.n_negatives, model.config.power)
    device = model.basis.device

    def loss(batch: ItemHistories, rng: torch.Generator) -> Tensor:
        return autoencoder_loss(model, sampler, ItemHistories(*(part.to(device) for part in batch)), rng)

    return loss


def needs_average(has_history: Tensor, n_known: Tensor) -> Tensor:
    """Tell which users get the uniform average: users with a history whose items the autoencoder does not know.

    A user without any history gets the cold-start vector instead.

    Args:
        has_history: bool [B].
        n_known: int [B], number of the user's items in the autoencoder's vocabulary.

    Returns:
        bool [B].
    """
    return has_history & (n_known == 0)
