"""The autoencoder's forms beside the paper's: objective, input, offset, temperature and whitened decoder."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lte_models.autoencoder import Autoencoder, AutoencoderConfig, FittedParts, ItemHistories, autoencoder_loss
from lte_models.averages.whitening import whitening
from lte_models.training.losses import sampled_multinomial_loss
from lte_models.training.sampling import LogUniformSampler

V, D = 24, 6
MENDED = {"objective": "multinomial", "input": "root", "has_offset": True, "temperature": 5.0, "whitened": True}


def _basis() -> torch.Tensor:
    """Unit vectors that share a large mean, as those of a language model do."""
    noise = torch.randn(V, D, generator=torch.Generator().manual_seed(3))
    return F.normalize(noise + 2 * torch.ones(D), dim=1)


def _parts(share: torch.Tensor | None = None) -> FittedParts:
    white = whitening(_basis().numpy())
    shares = torch.linspace(0.6, 0.05, V) if share is None else share
    return FittedParts(shares, torch.from_numpy(white.mean), torch.from_numpy(white.matrix))


def _model(**form: Any) -> Autoencoder:
    model = Autoencoder(AutoencoderConfig(n_items=V, dim=D, l2=0.0, **form), _basis())
    model.fit(_parts())
    return model


def _histories(*users: list[int]) -> ItemHistories:
    offsets = [sum(len(user) for user in users[:i]) for i in range(len(users))]
    items = [item for user in users for item in user]
    return ItemHistories(torch.tensor(items, dtype=torch.int64), torch.tensor(offsets))


def test_the_papers_form_keeps_the_tensors_that_its_bundles_have() -> None:
    names = {"basis", "first.weight", "first_bias", "second.weight", "second.bias", "last.weight", "last.bias"}
    assert set(_model().state_dict()) == names
    assert set(_model(**MENDED).state_dict()) == {*names, "offset", "mean", "whiten", "unwhiten"}


def test_exhaustive_sampling_is_the_full_multinomial_loss() -> None:
    model, histories = _model(**MENDED), _histories([1, 4], [], [0])
    log_p = torch.log_softmax(model.logits(model(histories)), dim=1)
    expected = (-(log_p[0, 1] + log_p[0, 4]) / 2 - log_p[2, 0]) / 2  # mean over items, then over users with items
    loss = autoencoder_loss(model, LogUniformSampler(V, V), histories, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)


def test_a_sampled_item_stands_for_one_over_its_rate() -> None:
    # one user, logit 0 everywhere, one own item; one negative with inclusion rate 1/4 stands for four: p = 1 / 5
    loss = sampled_multinomial_loss(
        torch.zeros(1),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, 1),
        torch.zeros(1, 1, dtype=torch.bool),
        log_expected=torch.tensor([0.25]).log(),
    )
    assert loss.item() == pytest.approx(np.log(5), rel=1e-6)


def test_the_lte_is_the_mean_item_plus_the_unwhitened_bottleneck() -> None:
    model, histories, white = _model(**MENDED), _histories([1, 4], [7]), whitening(_basis().numpy())
    latent, lte = model.latent(histories).detach(), model(histories).detach()
    torch.testing.assert_close(white.items(lte.numpy()), latent.numpy(), atol=1e-3, rtol=1e-3)
    # logits: z times the whitened items over the temperature, plus the log of each item's share of users
    items = torch.from_numpy(white.items(_basis().numpy()))
    expected = latent @ items.T / 5.0 + torch.linspace(0.6, 0.05, V).log()
    torch.testing.assert_close(model.logits(lte).detach(), expected, atol=1e-3, rtol=1e-3)


def test_the_offset_of_bce_is_the_log_odds() -> None:
    model = _model(has_offset=True)
    torch.testing.assert_close(model.offset, torch.logit(torch.linspace(0.6, 0.05, V)))


def test_a_long_history_is_not_a_loud_one() -> None:
    plain, root = _model(), _model(input="root")
    four = root.first(_histories([0, 3, 5, 9]).items, torch.tensor([0]))
    weights = root._input_weights(_histories([0, 3, 5, 9], [2]))
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0]))
    with torch.no_grad():  # a history of one item is what it is in the paper's form
        torch.testing.assert_close(root(_histories([2])), plain(_histories([2])))
    assert four.shape == (1, 4 * D)


def test_tfidf_weighs_rare_items_more() -> None:
    model = Autoencoder(AutoencoderConfig(n_items=V, dim=D, input="tfidf"), _basis())
    share = torch.full((V,), 0.5)
    share[1] = 0.25  # log 4 is twice log 2: weights 1 and 2, over the root of 5
    model.fit(_parts(share))
    weights = model._input_weights(_histories([0, 1]))
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([1.0, 2.0]) / 5**0.5)


def test_input_is_dropped_in_training_only() -> None:
    model, histories = _model(input="root", input_dropout=0.5), _histories(list(range(20)))
    torch.manual_seed(0)
    dropped = model._input_weights(histories)
    assert dropped is not None
    assert 0 < int((dropped == 0).sum()) < 20
    kept = model.eval()._input_weights(histories)
    assert kept is not None
    torch.testing.assert_close(kept, torch.full((20,), 20**-0.5))


def test_trained_cold_and_averaged_ltes_have_one_scale_and_direction() -> None:
    torch.manual_seed(0)
    model, sampler = _model(**MENDED, input_dropout=0.5), LogUniformSampler(V, V)
    rng = np.random.default_rng(0)
    users = [sorted(rng.choice(12, 5, replace=False) + 12 * (user % 2)) for user in range(40)]
    histories = _histories(*[[int(item) for item in user] for user in users])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(80):
        optimizer.zero_grad()
        autoencoder_loss(model, sampler, histories, torch.Generator().manual_seed(step)).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        learned, cold = model(histories), model.cold_start()
    averages = torch.stack([_basis()[torch.tensor(user)].mean(dim=0) for user in users])

    # a user who falls back to the average, and one without history, are no strangers among the others
    for one, others in ((averages.norm(dim=1), learned.norm(dim=1)), (cold.norm(), learned.norm(dim=1))):
        assert 0.5 < float(one.median() / others.median()) < 2
    assert float(F.cosine_similarity(learned, averages).min()) > 0
    centred = learned - learned.mean(dim=0), averages - averages.mean(dim=0)
    assert float(F.cosine_similarity(*centred).median()) > 0.3  # the paper's form turns away from the average


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"objective": "hinge"}, "objective: expected bce or multinomial, got 'hinge'"),
        ({"input": "mean"}, "input: expected sum, root or tfidf, got 'mean'"),
        ({"input_dropout": 1.0}, "input_dropout: expected a share below 1, got 1.0"),
        ({"temperature": 0.0}, "temperature: expected a finite number above 0, got 0.0"),
    ],
)
def test_a_wrong_form_is_named(form: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(n_items=V, dim=D, **form)


def test_a_share_of_zero_is_refused() -> None:
    model = Autoencoder(AutoencoderConfig(n_items=V, dim=D, has_offset=True), _basis())
    share = torch.full((V,), 0.5)
    share[2] = 0
    with pytest.raises(ValueError, match="share of item 2"):
        model.fit(_parts(share))
