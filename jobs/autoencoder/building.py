"""Builds a new autoencoder and its loss, for the daily training and for the experiments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jobs.config.models import AutoencoderSection
from jobs.lake.vectors import FloatMatrix
from lte_models.arrays import IntArray
from lte_models.autoencoder import Autoencoder, AutoencoderConfig, FittedParts, ItemHistories, autoencoder_loss
from lte_models.averages.whitening import whitening
from lte_models.training.sampling import LogUniformSampler, negatives_for_share

# The paper's form, and the settings that name a form: weights of another form mean something else.
PAPER_FORM: dict[str, Any] = {
    "objective": "bce",
    "input": "sum",
    "input_dropout": 0.0,
    "temperature": 1.0,
    "has_offset": False,
    "whitened": False,
}


def build_autoencoder(settings: AutoencoderSection, basis: Tensor, parts: FittedParts | None = None) -> Autoencoder:
    """Build an autoencoder, initialised from the basis and its seed.

    Args:
        settings: Form, objective and seed.
        basis: float [V, D], rows in vocabulary order.
        parts: Shares of users and whitening, from :func:`fitted_parts`; the paper's form needs none.

    Raises:
        ValueError: The form needs ``parts`` and there are none.
    """
    form = {name: getattr(settings, name) for name in PAPER_FORM}
    if parts is None and needs_parts(settings):
        raise ValueError(f"an autoencoder of the form {form} needs the shares of users and the whitening")
    n_items, dim = basis.shape
    config = AutoencoderConfig(
        n_items=n_items,
        dim=dim,
        l2=settings.l2,
        n_negatives=negatives_for_share(n_items, settings.negatives_share),
        power=settings.power,
        seed=settings.seed,
        **form,
    )
    model = Autoencoder(config, basis)
    if parts is not None:
        model.fit(parts)
    return model


def needs_parts(settings: AutoencoderSection) -> bool:
    """Whether the form takes shares of users or the whitening from the data."""
    return settings.has_offset or settings.whitened or settings.input == "tfidf"


def fitted_parts(matrix: FloatMatrix, n_users_with: IntArray, n_users: int) -> FittedParts:
    """Shares of users and the whitening of the basis.

    Args:
        matrix: The whole basis, float32 [all items, D].
        n_users_with: Users that have each item of the vocabulary, int64 [V].
        n_users: Users with a known item.
    """
    white = whitening(matrix)
    share = (n_users_with + 0.5) / (n_users + 1)  # half a user more, so that no share is 0 or 1
    return FittedParts(torch.from_numpy(share), torch.from_numpy(white.mean), torch.from_numpy(white.matrix))


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
