from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lte_models.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    ItemHistories,
    autoencoder_loss,
    hidden_scores,
    hide_items,
    orthonormal_rows,
)
from lte_models.training.losses import full_bce_loss
from lte_models.training.sampling import LogUniformSampler

V, D = 9, 4


def _basis() -> torch.Tensor:
    return F.normalize(torch.randn(V, D, generator=torch.Generator().manual_seed(11)), dim=1)


def _model(**changes: Any) -> Autoencoder:
    return Autoencoder(AutoencoderConfig(n_items=V, dim=D, **changes), _basis())


def _histories(*users: list[int]) -> ItemHistories:
    offsets = [sum(len(user) for user in users[:i]) for i in range(len(users))]
    return ItemHistories(
        torch.tensor([item for user in users for item in user], dtype=torch.int64), torch.tensor(offsets)
    )


def test_p_has_orthonormal_rows_and_the_first_layer_keeps_inner_products() -> None:
    p = orthonormal_rows(D, 4 * D, seed=0)
    torch.testing.assert_close(p @ p.T, torch.eye(D))
    first = _model().first.weight
    torch.testing.assert_close(first @ first.T, _basis() @ _basis().T)


def test_the_embedding_bag_is_the_dense_multi_hot_network() -> None:
    model = _model()
    multi_hot = torch.zeros(3, V)
    multi_hot[0, [1, 4]], multi_hot[2, [0, 7, 8]] = 1, 1
    hidden = torch.relu(multi_hot @ model.first.weight + model.first_bias)
    expected = torch.relu(hidden @ model.second.weight.T + model.second.bias) @ model.last.weight.T + model.last.bias
    torch.testing.assert_close(model(_histories([1, 4], [], [0, 7, 8])), expected)


def test_layers_are_four_two_and_one_times_the_basis() -> None:
    model = _model()
    assert model.first.weight.shape == (V, 4 * D)
    assert model.second.weight.shape == (2 * D, 4 * D)
    assert model.last.weight.shape == (D, 2 * D)


def test_cold_start_is_constant_and_the_last_bias_at_first() -> None:
    model = _model()
    with torch.no_grad():
        model.last.bias.copy_(torch.arange(D).float())
    # all other biases are zero, so nothing else reaches the bottleneck
    assert model.cold_start().tolist() == [0.0, 1.0, 2.0, 3.0]
    torch.testing.assert_close(model(_histories([2], [], []))[1:], model.cold_start().expand(2, D))


def test_order_of_users_and_items_changes_nothing() -> None:
    model = _model()
    torch.testing.assert_close(model(_histories([3, 1], [5])), model(_histories([5], [1, 3])).flip(0))


def test_the_decoder_is_frozen_and_the_encoder_learns() -> None:
    model = _model(l2=0.0)
    before = model.basis.clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    histories, sampler = _histories([0, 1], [5, 6, 7]), LogUniformSampler(V, V)
    losses = []
    for step in range(60):
        loss = autoencoder_loss(model, sampler, histories, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert "basis" not in dict(model.named_parameters())
    assert torch.equal(model.basis, before)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("logq", [False, True])
def test_exhaustive_sampling_is_the_full_loss_plus_the_penalty_on_all_encoder_weights(logq: bool) -> None:
    model = _model(l2=0.5, logq=logq)
    histories = _histories([1, 4], [], [0])
    multi_hot = torch.zeros(3, V)
    multi_hot[0, [1, 4]], multi_hot[2, 0] = 1, 1
    squares = sum(parameter.square().sum() for name, parameter in model.named_parameters() if name.endswith("weight"))
    expected = full_bce_loss(model.logits(model(histories)), multi_hot) + 0.5 * squares
    loss = autoencoder_loss(model, LogUniformSampler(V, V), histories, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, expected)


def test_the_seed_decides_the_initial_weights() -> None:
    assert torch.equal(_model(seed=1).last.weight, _model(seed=1).last.weight)
    assert not torch.equal(_model(seed=1).last.weight, _model(seed=2).last.weight)


def test_bad_input_is_named() -> None:
    basis = _basis()
    basis[6, 2] = float("nan")
    with pytest.raises(ValueError, match="row 6 is not finite"):
        Autoencoder(AutoencoderConfig(n_items=V, dim=D), basis)
    with pytest.raises(ValueError, match="holds no item"):
        AutoencoderConfig(n_items=0, dim=D)
    with pytest.raises(ValueError, match=r"basis: expected shape \(8, 4\), .*, got \(9, 4\)"):
        Autoencoder(AutoencoderConfig(n_items=8, dim=D), _basis())
    with pytest.raises(ValueError, match="5 orthonormal rows"):
        orthonormal_rows(5, 4, seed=0)
    with pytest.raises(ValueError, match="got -1"):
        AutoencoderConfig(n_items=V, dim=D, l2=-1)


def test_one_user_and_one_item_train() -> None:
    model = Autoencoder(AutoencoderConfig(n_items=1, dim=D), _basis()[:1])
    loss = autoencoder_loss(model, LogUniformSampler(1, 1), _histories([0]), torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss)


def test_hidden_items_are_found_by_hand() -> None:
    model = Autoencoder(AutoencoderConfig(n_items=5, dim=5), torch.eye(5)).eval()
    with torch.no_grad():  # whatever goes in, item j has logit 5 - j
        model.last.weight.zero_()
        model.last.bias.copy_(torch.tensor([5.0, 4, 3, 2, 1]))
    histories = _histories([0, 2], [1])
    rng = torch.Generator().manual_seed(0)
    scores = hidden_scores(model, histories, share=1.0, k=2, rng=rng)
    # user 0: ranks 0 and 2, items 1, 3, 4 are others: 5 of 6 pairs won; user 1: rank 1 of item 1, 3 of 4 pairs won
    assert scores.auc == pytest.approx(5 / 6 + 3 / 4)
    assert scores.recall == pytest.approx(1 / 2 + 1)
    assert scores.precision == pytest.approx(1 / 2 + 1 / 2)
    assert scores.n_users == 2


def test_hiding_splits_histories_and_loses_nothing() -> None:
    histories = _histories([0, 2, 4], [1], [3, 5, 6, 7])
    visible, users, items = hide_items(histories, 0.5, torch.Generator().manual_seed(1))
    assert 0 < len(items) < 8
    together = sorted(
        pair
        for some_users, some_items in ((visible.users(), visible.items), (users, items))
        for pair in zip(some_users.tolist(), some_items.tolist(), strict=True)
    )
    assert together == sorted(zip(histories.users().tolist(), histories.items.tolist(), strict=True))
    assert hidden_scores(_model().eval(), histories, share=0.0, k=1, rng=torch.Generator()).n_users == 0
