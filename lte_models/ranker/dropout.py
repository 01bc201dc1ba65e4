"""Dropout, and attention with it, at the speed of a processor without a GPU.

On the CPU, torch draws a mask one number at a time, and its fused attention has no dropout. Together they took more
than half of a training step of the ranker. Axes: B users, H heads, L positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STEPS = 1 << 16


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zero each entry with probability ``rate`` and divide the others by ``1 - rate``.

    On the CPU four masks come from one 64-bit number, and the rate is rounded to 1/65536.

    Args:
        x: float, any shape.
        rate: In [0, 1).

    Returns:
        Like ``x``.
    """
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    n_kept = max(1, round((1 - rate) * _STEPS))
    if n_kept == _STEPS:
        return x
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    is_kept = bits.view(torch.int16)[: x.numel()].view(x.shape) < n_kept - _STEPS // 2
    return x * is_kept.to(x.dtype).mul_(_STEPS / n_kept)


class Dropout(nn.Module):
    """:func:`dropout` while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout to ``x``, float of any shape."""
        return dropout(x, self.rate) if self.training else x


def attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, rate: float) -> Tensor:
    """Scaled dot-product attention with dropout on its weights, fused wherever torch can.

    Args:
        query: float [B, H, L, D / H].
        key: float [B, H, L, D / H].
        value: float [B, H, L, D / H].
        allowed: bool, broadcasts to [B, H, L, L]; each query (rows) may see at least one key (columns).
        rate: Of dropout, in [0, 1).

    Returns:
        float [B, H, L, D / H].
    """
    if rate == 0 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=rate)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # [B, H, L, L]
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    return dropout(weights, rate) @ value
