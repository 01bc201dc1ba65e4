"""Where the user tower looks: attention weights from an explicit path (paper, section 6).

The fused kernel keeps no weights. This module records the inputs of each block and computes the weights again, step by
step. Axes: B users, H heads, L positions (one more with a prefix token, which is position 0), D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lte_models.ranker.examples import ExampleBatch
from lte_models.ranker.model import Context, Ranker
from lte_models.ranker.towers import Block

BlockInputs = list[tuple[Block, Tensor, Tensor]]


def explicit_block(block: Block, x: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """What a block does, with its attention weights; without dropout.

    Args:
        block: The block.
        x: float [B, L, D], its input.
        allowed: bool [B, 1, L, L], True where a query (rows) may see a key (columns).

    Returns:
        Output float [B, L, D] and weights float [B, H, L, L]; each row of weights sums to 1.
    """
    n_users, length, dim = x.shape
    heads = block.qkv(block.attention_norm(x)).view(n_users, length, 3, block.n_heads, dim // block.n_heads)
    query, key, value = heads.permute(2, 0, 3, 1, 4)  # each [B, H, L, D / H]
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
    mixed = (weights @ value).transpose(1, 2).reshape(n_users, length, dim)
    x = x + block.out(mixed)
    fed: Tensor = x + block.feed(block.feed_norm(x))
    return fed, weights


@contextmanager
def recorded_inputs(blocks: Sequence[nn.Module]) -> Iterator[BlockInputs]:
    """Record what each block is called with, while the context is open."""
    found: BlockInputs = []

    def record(block: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        assert isinstance(block, Block)
        found.append((block, *inputs))

    hooks = [block.register_forward_pre_hook(record) for block in blocks]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def last_query_attention(model: Ranker, batch: ExampleBatch, context: Context) -> Tensor:
    """Attention of the last position, which predicts the next items, in each layer.

    Args:
        model: The ranker, in eval mode.
        batch: Examples.
        context: LTEs.

    Returns:
        float [layers, B, H, L]; with a prefix token L is one more, and the token is key 0.
    """
    with torch.no_grad():
        embedded = model.embed(batch.items)
        with recorded_inputs([*model.user_tower.blocks]) as inputs:
            model.user_tower(embedded[0][embedded[1][batch.items]], batch, context.lte, context.has_lte)
        return torch.stack([explicit_block(*each)[1][:, :, -1] for each in inputs])
