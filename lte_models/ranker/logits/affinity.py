"""How near each item lies to the user's LTE: one logit, read from the fixed basis without a learned projection.

Axes: B users, C content width, V items.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lte_models.averages.whitening import whitening

# Adam moves each weight by about the learning rate per step, which is slow for a single number.
_GAIN = 4.0
_START = 0.1


class Affinity(nn.Module):
    """Row-standardised inner products of a whitened LTE with the whitened items, times one learned scale.

    With W from :func:`whitening`, items x_i and LTE z centred and scaled, the inner product of the whitened vectors is
    y'x_i with y = WW'z. Over all items it has the mean 0 and the variance y'Sy, S the items' covariance. So dividing
    by the root of y'Sy standardises the row. W comes from the basis once, and is stored with the weights.
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
        matrix = torch.from_numpy(whitening(items.float().cpu().numpy()).matrix)
        self.register_buffer("precision", (matrix @ matrix.T).float())
        self.register_buffer("covariance", (content.T @ content / len(content)).float())
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
