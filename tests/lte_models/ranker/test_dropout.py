import pytest
import torch
import torch.nn.functional as F

from lte_models.ranker.dropout import Dropout, attention, dropout

B, H, L, D = 2, 3, 5, 4


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_the_rate_wherever_an_entry_stands(rate: float) -> None:
    torch.manual_seed(0)
    dropped = dropout(torch.ones(4, 100_001), rate)  # not a multiple of the four masks that one number gives
    is_zero = dropped == 0
    assert dropped[~is_zero].unique().tolist() == pytest.approx([1 / (1 - rate)], rel=1e-3)
    # five deviations of a share of 100,000: .0079 at a rate of one half
    for place in range(4):
        assert is_zero.flatten()[place::4].float().mean().item() == pytest.approx(rate, abs=0.008)
    pairs = is_zero.flatten()[:-1] & is_zero.flatten()[1:]
    assert pairs.float().mean().item() == pytest.approx(rate**2, abs=0.008), "neighbours must be independent"


def test_what_is_dropped_has_no_gradient() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 9, requires_grad=True)
    dropped = dropout(x, 0.5)
    torch.autograd.backward(dropped.sum())
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.where(dropped == 0, 0.0, 2.0))


def test_the_seed_decides_and_evaluation_drops_nothing() -> None:
    x, layer = torch.ones(50), Dropout(0.5)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(layer(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], layer(x))
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(dropout(x, 1e-6), x)  # less than the mask can tell


def heads() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    causal = torch.ones(L, L, dtype=torch.bool).tril().expand(B, 1, L, L)
    return *(torch.randn(B, H, L, D) for _ in range(3)), causal


def test_attention_averages_to_attention_without_dropout() -> None:
    query, key, value, allowed = heads()
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    torch.testing.assert_close(attention(query, key, value, allowed, 0.0), expected)
    mean = torch.stack([attention(query, key, value, allowed, 0.2) for _ in range(4000)]).mean(dim=0)
    torch.testing.assert_close(mean, expected, atol=0.06, rtol=0)


def test_attention_with_dropout_sees_only_what_is_allowed() -> None:
    query, key, value, allowed = heads()
    torch.manual_seed(2)
    before = attention(query, key, value, allowed, 0.2)
    key[:, :, 3:], value[:, :, 3:] = 50.0, -50.0
    torch.manual_seed(2)
    after = attention(query, key, value, allowed, 0.2)
    torch.testing.assert_close(after[:, :, :3], before[:, :, :3])
    assert not torch.allclose(after[:, :, 3:], before[:, :, 3:])
