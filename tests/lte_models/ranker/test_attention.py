"""The explicit attention path gives what the fused one gives."""

from __future__ import annotations

import torch

from lte_models.ranker.attention import explicit_block, last_query_attention, recorded_inputs
from tiny_ranker import MODES, batch_of, context_of, model_of

ITEMS = [[0, 0, 1, 2, 3, 4], [5, 6, 1, 2, 3, 4], [0, 0, 0, 0, 0, 0]]


@MODES
def test_the_explicit_path_equals_the_fused_one(lte: str) -> None:
    model, batch, context = model_of(lte=lte), batch_of(ITEMS), context_of(len(ITEMS))
    vectors, position = model.embed(batch.items)
    with torch.no_grad(), recorded_inputs([*model.user_tower.blocks]) as inputs:
        model.user_tower(vectors[position[batch.items]], batch, context.lte, context.has_lte)
    assert len(inputs) == model.config.n_blocks
    for block, x, allowed in inputs:
        with torch.no_grad():
            output, weights = explicit_block(block, x, allowed)
            torch.testing.assert_close(output, block(x, allowed), rtol=0, atol=1e-5)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]), rtol=0, atol=1e-5)
        assert float(weights.masked_select(~allowed.expand_as(weights)).abs().sum()) == 0


def test_the_token_is_key_0_and_a_user_without_lte_does_not_see_it() -> None:
    model, batch = model_of(lte="prefix_token"), batch_of(ITEMS)
    weights = last_query_attention(model, batch, context_of(len(ITEMS)))
    assert weights.shape == (2, 3, 4, 7)  # layers, users, heads, the token and six positions
    assert bool((weights[..., 0] > 0).all())
    assert float(weights[:, 0, :, 1:3].abs().sum()) == 0  # padding of the first user
    unknown = last_query_attention(model, batch, context_of(len(ITEMS), known=False))
    assert float(unknown[..., 0].abs().sum()) == 0
    torch.testing.assert_close(unknown.sum(dim=-1), torch.ones(2, 3, 4), rtol=0, atol=1e-5)


def test_no_hook_stays_behind() -> None:
    model = model_of()
    last_query_attention(model, batch_of(ITEMS), context_of(len(ITEMS)))
    assert not any(block._forward_pre_hooks for block in model.user_tower.blocks)
