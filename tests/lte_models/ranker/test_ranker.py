from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lte_models.ranker.examples import ExampleBatch, Past
from lte_models.ranker.logits.history_logits import DailyCounts
from lte_models.ranker.loss import Objective, ranker_loss
from lte_models.ranker.model import Context, Ranker
from lte_models.ranker.towers import Catalogue, LteStatistics, RankerConfig
from lte_models.training.sampling import LogUniformSampler
from tiny_ranker import (
    CONFIG,
    MODES,
    SHAPES,
    C,
    V,
    batch_of,
    catalogue_of_six,
    context_of,
    generator,
    model_of,
    past_of,
)


def _encode(model: Ranker, batch: ExampleBatch, context: Context) -> torch.Tensor:
    vectors, position = model.embed(batch.items)
    encoded: torch.Tensor = model.user_tower(vectors[position[batch.items]], batch, context.lte, context.has_lte)
    return encoded


@MODES
@SHAPES
def test_padding_changes_nothing(lte: str, shape: dict[str, Any]) -> None:
    model, context = model_of(lte=lte, **shape), context_of(2)
    short, long = batch_of([[1, 2], [0, 4]]), batch_of([[0, 0, 0, 1, 2], [0, 0, 0, 0, 4]])
    long = long._replace(ages=F.pad(short.ages, (3, 0)))
    torch.testing.assert_close(model.scores(short, context), model.scores(long, context))


@MODES
def test_order_of_the_batch_changes_nothing(lte: str) -> None:
    model, context = model_of(lte=lte), context_of(2)
    flipped = Context(context.lte.flip(0), context.has_lte, context.popularity)
    scores = model.scores(batch_of([[1, 2, 3], [0, 4, 5]]), context)
    torch.testing.assert_close(model.scores(batch_of([[0, 4, 5], [1, 2, 3]]), flipped).flip(0), scores)


@MODES
def test_a_later_item_never_changes_an_earlier_output(lte: str) -> None:
    model, context = model_of(lte=lte), context_of(1)
    before = _encode(model, batch_of([[1, 2, 3, 4, 5]]), context)
    for changed in range(1, 5):
        items = [1, 2, 3, 4, 5]
        items[changed] = 6
        after = _encode(model, batch_of([items]), context)
        torch.testing.assert_close(after[:, :changed], before[:, :changed])
        assert not torch.allclose(after[:, changed:], before[:, changed:])


@MODES
def test_the_lte_changes_the_scores_unless_the_user_has_none(lte: str) -> None:
    model, batch = model_of(lte=lte), batch_of([[1, 2, 3]])
    other = Context(torch.full((1, C), 3.0), torch.tensor([True]))
    changed = not torch.allclose(model.scores(batch, context_of(1)), model.scores(batch, other))
    assert changed == (lte != "none")
    absent = model.scores(batch, context_of(1, known=False))
    torch.testing.assert_close(absent, model.scores(batch, Context(other.lte, torch.tensor([False]))))


@MODES
def test_a_user_without_lte_is_scored_as_by_the_model_without_lte(lte: str) -> None:
    model, bare = model_of(lte=lte), model_of(lte="none")
    bare.load_state_dict({name: value for name, value in model.state_dict().items() if name in bare.state_dict()})
    batch, context = batch_of([[0, 1, 2], [3, 4, 5]]), Context(torch.zeros(2, C), torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(model.scores(batch, context), bare.scores(batch, context))


def test_late_fusion_is_the_papers_equation() -> None:
    model, context, batch = model_of(lte="late_fusion"), context_of(2), batch_of([[1, 2], [3, 4]])
    bare = Context(context.lte, torch.zeros(2, dtype=torch.bool))
    w_o = model.user_tower.w_o.weight.T
    x_w_o = _encode(model, batch, bare)  # X W_O: without the LTE
    anchor = model.user_tower.projection(context.lte, context.has_lte)
    a = model.item_tower(torch.arange(1, V + 1))
    expected = (x_w_o[:, -1] + anchor @ w_o) @ a.T  # (X + LTE) W_O Aᵀ, equation 2
    # two orders of sums of D = 8 terms of size 1 or so, twice: 2 sqrt(8) units of 6e-8, and the values reach 10
    torch.testing.assert_close(model.scores(batch, context), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("layers", "gelu"), [(1, False), (1, True), (2, False), (2, True)])
def test_projections_by_hand(layers: int, gelu: bool) -> None:
    projection = model_of(lte_layers=layers, lte_gelu=gelu, lte_hidden=128).user_tower.projection
    projection.mean.fill_(0.5)
    projection.scale.fill_(2.0)
    lte = torch.randn(3, C, generator=generator(2))
    x = (lte - 0.5) / 2
    linears = [layer for layer in projection.layers if isinstance(layer, torch.nn.Linear)]
    x = x @ linears[0].weight.T + linears[0].bias
    x = F.gelu(x) if gelu else x
    if layers == 2:
        assert linears[0].weight.shape == (128, C)
        x = x @ linears[1].weight.T + linears[1].bias
    has = torch.tensor([True, False, True])
    torch.testing.assert_close(projection(lte, has), x * has.unsqueeze(1))


def test_statistics_of_training_ltes_leave_out_users_without_one() -> None:
    projection, statistics = model_of().user_tower.projection, LteStatistics(C)
    statistics.store(projection)
    assert (projection.mean.tolist(), projection.scale.item()) == ([0.0] * C, 1.0)
    statistics.add(torch.tensor([[1.0] * C, [9.0] * C]), torch.tensor([True, False]))
    statistics.add(torch.tensor([[3.0] * C]), torch.tensor([True]))
    statistics.store(projection)
    assert projection.mean.tolist() == [2.0] * C
    assert projection.scale.item() == pytest.approx(1.0)  # values 1 and 3 around 2


def test_ltes_all_alike_are_centred_but_not_blown_up() -> None:
    projection, statistics = model_of().user_tower.projection, LteStatistics(C)
    statistics.add(torch.full((3, C), 0.7), torch.ones(3, dtype=torch.bool))
    statistics.store(projection)
    assert projection.scale.item() == 1.0


NEW_PARTS = {"repeat_expert": True, "affinity": True}
TARGETS = [(0, 2), (0, 3), (1, 6)]


@MODES
@SHAPES
@pytest.mark.parametrize("logq", [False, True])
def test_exhaustive_sampling_is_the_full_softmax_of_the_model(lte: str, shape: dict[str, Any], logq: bool) -> None:
    model, context = model_of(lte=lte, **shape), context_of(2)
    batch = batch_of([[1, 2, 3], [0, 4, 5]], TARGETS)
    log_p = F.log_softmax(model.scores(batch, context), dim=1)
    expected = -(log_p[0, 1] + log_p[0, 2] + log_p[1, 5]) / 3
    full = ranker_loss(model, batch, context, Objective(), generator(0))
    sampled = ranker_loss(model, batch, context, Objective(LogUniformSampler(V, V), logq=logq), generator(0))
    torch.testing.assert_close(full, expected)
    torch.testing.assert_close(sampled, expected)


def test_one_target_a_query_is_the_same_full_softmax_without_its_logits() -> None:
    # as under causal training: every position has one target, here out of order
    model, context = model_of(), context_of(2)
    batch = batch_of([[1, 2, 3], [0, 4, 5]], [(1, 6), (0, 2)])
    log_p = F.log_softmax(model.scores(batch, context), dim=1)
    expected = -(log_p[1, 5] + log_p[0, 1]) / 2
    names, parameters = zip(*model.named_parameters(), strict=True)
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    loss = ranker_loss(model, batch, context, Objective(), generator(0))
    torch.testing.assert_close(loss, expected)
    for name, ours, theirs in zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_equal_users_weigh_each_query_once() -> None:
    model, context = model_of(), context_of(2)
    batch = batch_of([[1, 2, 3], [0, 4, 5]], TARGETS)
    log_p = F.log_softmax(model.scores(batch, context), dim=1)
    expected = -((log_p[0, 1] + log_p[0, 2]) / 2 + log_p[1, 5]) / 2
    torch.testing.assert_close(ranker_loss(model, batch, context, Objective(equal_users=True), generator(0)), expected)


def test_history_logits_reach_only_the_users_own_items() -> None:
    model, context = model_of(history_features=True), context_of(2)
    batch = batch_of([[1, 2, 3], [0, 4, 5]])
    moved = batch._replace(
        past=batch.past._replace(features=batch.past.features + torch.tensor([0, 0, 1, 0]).view(-1, 1))
    )
    difference = model.scores(moved, context) - model.scores(batch, context)
    assert (difference.abs() > 1e-6).nonzero().tolist() == [[1, 0]]  # user 1's first past item, row 1


def test_the_users_own_items_are_always_negatives() -> None:
    # one sampled negative, row 6; each user's past holds rows 1 and 3, so the target of user 0 (row 3) is one of them
    model, context = model_of(history_features=True, **NEW_PARTS), context_of(2)
    batch = batch_of([[1, 2, 3], [0, 4, 5]], [(0, 3), (1, 2)])
    sampler = LogUniformSampler(V, 1)
    seed = next(seed for seed in range(99) if sampler.sample(generator(seed)).item() == 5)
    scores = model.scores(batch, context)
    corrected = scores[:, 5] - sampler.log_expected[5]
    first = torch.logsumexp(torch.stack([scores[0, 0], scores[0, 2], corrected[0]]), 0) - scores[0, 2]
    second = torch.logsumexp(torch.stack([scores[1, 0], scores[1, 2], corrected[1], scores[1, 1]]), 0) - scores[1, 1]
    found = ranker_loss(model, batch, context, Objective(sampler), generator(seed))
    torch.testing.assert_close(found, (first + second) / 2)


def test_sampling_with_own_items_estimates_the_full_softmax() -> None:
    # the mean of exp(loss) over draws of a single target is unbiased: a sum of included items over inclusion rates
    model, context = model_of(history_features=True), context_of(1)
    batch, sampler, rng = batch_of([[1, 2, 3]], [(0, 2)]), LogUniformSampler(V, 2), generator(3)
    with torch.no_grad():
        full = ranker_loss(model, batch, context, Objective(), rng).exp()
        draws = torch.stack([ranker_loss(model, batch, context, Objective(sampler), rng).exp() for _ in range(1500)])
    assert draws.mean().item() == pytest.approx(full.item(), abs=4 * draws.std().item() / 1500**0.5)


@SHAPES
@pytest.mark.parametrize("n_samples", [None, 3])
def test_bfloat16_gives_nearly_the_loss_of_float32(shape: dict[str, Any], n_samples: int | None) -> None:
    model, context = model_of(**shape), context_of(2)
    batch = batch_of([[1, 2, 3], [0, 4, 5]], TARGETS)
    objective = Objective(LogUniformSampler(V, n_samples) if n_samples else None)
    exact = ranker_loss(model, batch, context, objective, generator(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = ranker_loss(model, batch, context, objective, generator(0))
    torch.autograd.backward(rounded)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_a_user_without_past_trains_finitely_beside_one_with() -> None:
    model, context = model_of(history_features=True).train(), context_of(2)
    batch = batch_of([[1, 2, 3], [0, 0, 5]], TARGETS)
    kept = batch.past.user == 0
    batch = batch._replace(past=Past(*(part[kept] for part in batch.past)))
    loss = ranker_loss(model, batch, context, Objective(LogUniformSampler(V, 2)), generator(0))
    torch.autograd.backward(loss)
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    nobody = batch._replace(past=Past(*(part[:0] for part in batch.past)))
    assert torch.isfinite(ranker_loss(model, nobody, context, Objective(LogUniformSampler(V, 2)), generator(0)))


@pytest.mark.parametrize("is_live", [False, True])
def test_shared_and_past_logits_add_up(is_live: bool) -> None:
    model, context = model_of(history_features=True, repeat_expert=is_live, affinity=is_live), context_of(2)
    batch, rows = batch_of([[1, 2, 3], [0, 4, 5]]), torch.arange(1, V + 1)
    with torch.no_grad():
        embedded = model.embed(rows)
        queries = model.queries(batch, context, *embedded)
        shared = model.shared_logits(queries, rows, batch, context, embedded)
        own = model.pair_products(queries, (batch.past.user, batch.past.items), embedded)
        added = model.past_logits(own, batch, context, embedded)
        pairs = (torch.tensor([0, 1, 1]), torch.tensor([2, 1, 6]))
        paired = model.pair_logits(queries, pairs, batch, context, embedded)
    expected = shared.clone()
    expected[batch.past.user, batch.past.items - 1] += added
    torch.testing.assert_close(model.scores(batch, context), expected)
    torch.testing.assert_close(paired, shared[[0, 1, 1], [1, 0, 5]])
    with pytest.raises(ValueError, match="history_features is off"):
        model_of().past_logits(own, batch, context, embedded)


def test_an_expert_weighs_what_towers_and_affinity_say_of_an_own_item() -> None:
    # The expert's network reads nothing here, so that only (1 + tanh k) t and the linear part are left.
    model, context = model_of(history_features=True, repeat_expert=True, affinity=True), context_of(2)
    batch, rows = batch_of([[1, 2, 3], [0, 4, 5]]), torch.arange(1, V + 1)
    history = model.history
    assert history is not None
    assert history.trust is not None
    with torch.no_grad():
        for parameter in history.past.parameters():
            parameter.zero_()
        history.trust.fill_(-0.1)
        embedded = model.embed(rows)
        queries = model.queries(batch, context, *embedded)
        towers = queries @ embedded[0][1:].T  # [2, V], without popularity
        counted = 4 * history.counted(batch.past.features).squeeze(1)
        own = towers[batch.past.user, batch.past.items - 1]
        added = model.past_logits(own, batch, context, embedded)
    expected = counted + np.tanh(-0.4) * own
    torch.testing.assert_close(added, expected)
    with pytest.raises(ValueError, match="expected exactly where past items have an expert"):
        history.of_past(batch.past, embedded[0][batch.past.items, : CONFIG.dim], torch.zeros(4, 4))


def test_affinity_is_the_whitened_inner_product_with_each_row_standardised() -> None:
    model, context = model_of(affinity=True), context_of(2)
    affinity = model.affinity
    assert affinity is not None
    items = model.item_tower.scaled(model.item_tower.content[1:]).double().numpy()
    lte = model.item_tower.scaled(context.lte).double().numpy()
    # another road to the same number: whiten both sides by hand, then standardise over the items
    covariance = items.T @ items / V
    share = C / (C + V)  # a basis of few items is shrunk this far to a multiple of the identity
    shrunk = (1 - share) * covariance + share * np.trace(covariance) / C * np.eye(C)
    whitening = np.linalg.inv(np.linalg.cholesky(shrunk)).T
    raw = (lte @ whitening) @ (items @ whitening).T
    expected = 4 * affinity.scale.item() * (raw - raw.mean(axis=1, keepdims=True)) / raw.std(axis=1, keepdims=True)
    batch = batch_of([[1, 2, 3], [0, 4, 5]])
    with torch.no_grad():
        embedded = model.embed(torch.arange(1, V + 1))
        queries = model.queries(batch, context, *embedded)
        found = queries[:, CONFIG.dim :] @ embedded[0][1:, CONFIG.dim :].T
    # float32 against float64: sums of C = 5 terms of size 1, behind a division by a variance of .4 at the least
    assert found.numpy() == pytest.approx(expected, abs=1e-4)


def test_an_lte_on_the_mean_of_the_items_and_a_missing_one_give_no_affinity() -> None:
    model = model_of(lte="none", affinity=True)
    mean = model.item_tower.content_mean.expand(2, C)
    batch, unaware = batch_of([[1, 2, 3], [1, 2, 3]]), model_of(lte="none")
    unaware.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("affinity")})
    scores = model.scores(batch, Context(mean, torch.tensor([True, False])))
    torch.testing.assert_close(scores, unaware.scores(batch, context_of(2)))


def test_one_item_has_no_spread_to_standardise_by() -> None:
    catalogue = Catalogue(*(part[:2] for part in catalogue_of_six()))
    model = Ranker(replace(CONFIG, affinity=True), catalogue).eval()
    assert torch.isfinite(model.scores(batch_of([[1]])._replace(past=past_of(0)), context_of(1))).all()


def test_without_the_new_parts_a_ranker_has_the_weights_it_had() -> None:
    old, new = (set(model_of(history_features=True, **each).state_dict()) for each in ({}, NEW_PARTS))
    assert new - old == {"affinity.scale", "affinity.precision", "affinity.covariance", "history.trust"}
    saved = {name: value for name, value in asdict(CONFIG).items() if name not in NEW_PARTS}
    assert RankerConfig(**saved) == CONFIG  # the configuration in an earlier bundle's manifest
    with pytest.raises(ValueError, match="repeat_expert = True cannot be"):
        replace(CONFIG, repeat_expert=True)


def test_recent_counts_by_hand() -> None:
    # day 100: 5 of item 1; day 130: 2 of item 1, 3 of item 2; nothing else up to day 140
    cumulative = torch.zeros(42, 3, dtype=torch.int32)
    cumulative[1:, 1] += 5
    cumulative[31:, 1] += 2
    cumulative[31:, 2] += 3
    counts = DailyCounts(100, cumulative)
    recent = counts.recent(torch.tensor([[129], [130], [137], [128]]), torch.tensor([1, 2]))
    # in 7, 28 and 365 days, and on the anchor itself
    assert recent[:, 0].tolist() == [[0, 0, 5, 0], [2, 2, 7, 2], [0, 2, 7, 0], [0, 0, 5, 0]]
    assert recent[:, 1].tolist() == [[0, 0, 0, 0], [3, 3, 3, 3], [0, 3, 3, 0], [0, 0, 0, 0]]
    assert counts.recent(torch.tensor([100, 127]), torch.tensor([1, 1])).tolist() == [[5, 5, 5, 5], [0, 5, 5, 0]]
    with pytest.raises(ValueError, match="anchor 141 lies after"):
        counts.recent(torch.tensor([141]), torch.tensor([1]))


def test_history_features_refuse_positions_before_the_anchor() -> None:
    model, batch = model_of(history_features=True), batch_of([[1, 2, 3]], [(0, 2)])
    with pytest.raises(ValueError, match="would show earlier positions their future"):
        ranker_loss(model, batch._replace(query_position=torch.tensor([1])), context_of(1), Objective(), generator(0))
    with pytest.raises(ValueError, match="needs popularity"):
        model.scores(batch, Context(torch.zeros(1, C), torch.tensor([False])))


def test_hidden_ids_train_the_out_of_vocabulary_row() -> None:
    model = model_of(id_dropout=0.5).train()
    assert model.item_tower.ids is not None
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        vectors = torch.stack([model.item_tower(torch.tensor([1]))[0] for _ in range(400)])
        with torch.enable_grad():
            torch.autograd.backward(model.item_tower(torch.ones(400, dtype=torch.int64)).sum())
    hidden = model_of().item_tower
    hidden.id_row[1] = 0
    gap = (hidden(torch.tensor([1])) - model_of().item_tower(torch.tensor([1]))).abs().sum()
    matches = (vectors - hidden(torch.tensor([1]))).abs().sum(dim=1) < gap / 1000
    # each draw hides the id with probability .5: 200 of 400, give or take five deviations of 10
    assert 150 <= matches.sum() <= 250
    gradient = model.item_tower.ids.weight.grad
    assert gradient is not None
    assert gradient[0].abs().sum() > 0


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first, second = Ranker(CONFIG, catalogue_of_six()), Ranker(CONFIG, catalogue_of_six())
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"lte": "suffix"},
        {"history_hidden": 0},
        {"lte_layers": 3},
        {"lte_hidden": 64},
        {"n_heads": 3},
        {"n_types": 0},
        {"dropout": 1.0},
    ],
)
def test_impossible_configurations_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"RankerConfig.{next(iter(changes))} = "):
        replace(CONFIG, **changes)


def test_bad_catalogues_and_histories_are_named() -> None:
    catalogue = catalogue_of_six()
    with pytest.raises(ValueError, match="holds no item"):
        Ranker(CONFIG, Catalogue(*(part[:1] for part in catalogue)))
    with pytest.raises(ValueError, match="5 floats per item, expected 7"):
        Ranker(replace(CONFIG, content_dim=7), catalogue)
    with pytest.raises(ValueError, match=r"catalogue\.brand: expected shape \(7,\), got \(2,\)"):
        Ranker(CONFIG, catalogue._replace(brand=torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(ValueError, match=r"catalogue\.id_row holds code 5, the model has 5"):
        Ranker(replace(CONFIG, n_ids=5), catalogue)
    catalogue.content[4, 1] = float("nan")
    with pytest.raises(ValueError, match="row 4 is not finite"):
        Ranker(CONFIG, catalogue)
    with pytest.raises(ValueError, match="history of 7 items"):
        model_of().scores(batch_of([[1] * 7]), context_of(1))


def test_one_user_without_history_is_ranked() -> None:
    scores = model_of().scores(batch_of([[0]]), context_of(1))
    assert scores.shape == (1, V)
    assert torch.isfinite(scores).all()
