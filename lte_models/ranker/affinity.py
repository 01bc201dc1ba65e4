"""How near each item lies to the user's LTE: one logit, read from the fixed basis without a learned projection.

Axes: B users, C content width, V items.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Directions that carry almost nothing of the basis are noise, and plain whitening would make them as loud as the rest.
_RIDGE = 0.1
# Adam moves each weight by about the learning rate per step, which is slow for a single number.
_GAIN = 4.0
_START = 0.1


class Affinity(nn.Module):
    """Row-standardised inner products of a whitened LTE with the whitened items, times one learned scale.

    Items are centred and scaled, x_i. The inner product of whitened vectors is y'x_i with y = P (z - mean), where P is
    the inverse of the items' covariance. Over all items y'x_i has the mean 0 and the variance y'Sy, so dividing by its
    root standardises the row. The whitening is computed from the basis once, and stored with the weights.
    """

    precision: Tensor
    covariance: Tensor

    def __init__(self, items: Tensor) -> None:
        """Compute the whitening.

        Args:
            items: float [V, C], centred and scaled content.
        """
        super().__init__()
        content = items.double().cpu()
        covariance = content.T @ content / len(content)
        values, vectors = torch.linalg.eigh(covariance)
        ridge = _RIDGE * values.mean().clamp(min=1e-12)
        precision = (vectors / (values.clamp(min=0) + ridge)) @ vectors.T
        self.register_buffer("precision", precision.float())
        self.register_buffer("covariance", covariance.float())
        self.scale = nn.Parameter(torch.tensor(_START))

    def forward(self, lte: Tensor, has_lte: Tensor) -> Tensor:
        """Turn LTEs into vectors whose inner product with an item is the item's affinity logit.

        Args:
            lte: float [B, C], centred and scaled like the items.
            has_lte: bool [B].

        Returns:
            float [B, C]; exactly zero for a user without LTE.
        """
        whitened = lte @ self.precision
        variance = ((whitened @ self.covariance) * whitened).sum(dim=1, keepdim=True)
        # an LTE on the mean of the items has no direction
        standardised = whitened / variance.clamp(min=1e-12).sqrt()
        return _GAIN * self.scale * standardised * has_lte.unsqueeze(1)
