"""Experiments: the statistics by hand, what is trained on by invariants, and all of them for real on a tiny shop."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pyspark.sql import SparkSession
from safetensors.torch import load_file

from experiment_shop import DS, N_ITEMS, shop_events, shop_lake
from jobs import experiment as task
from jobs.basis.basis import configured_basis
from jobs.config.loading import load_deployment
from jobs.config.models import ExperimentSection, RankerSection
from jobs.config.sections import Deployment
from jobs.config.window import ConfigError
from jobs.experiments import pool
from jobs.experiments import run as job
from jobs.experiments.autoencoder import encoder_of_batches
from jobs.experiments.examples import (
    PARTS,
    TEST,
    TRAIN,
    VALIDATION,
    ExampleBuilder,
    event_days,
    experiment_candidates,
    experiment_days,
    leading_directions,
    read_candidates,
    sampled,
    save_candidates,
)
from jobs.experiments.plan import EXPERIMENT_NAMES, LTE_SET, ExampleSet, Variant, contrasts, sequence_set, variants
from jobs.experiments.pool import ExperimentError
from jobs.experiments.statistics import (
    Compared,
    JudgedUserDays,
    best_baseline,
    best_power,
    contrast_rows,
    groups,
    with_verdicts,
)
from jobs.experiments.tables import GROUP_NAMES, experiment_text, percent, signs, write_plot
from jobs.experiments.training import Prepared, lte_maker, new_ranker, ranked, run_work
from jobs.experiments.work import AutoencoderWork, fit, train_config
from jobs.experiments.work import Work as RankerWork
from jobs.lake.lake import Lake
from jobs.ranker.items import CandidateItems
from jobs.registry.bundles import ModelError
from lte_models.evaluation.comparison import compare, spread, verdict
from lte_models.evaluation.metrics import target_ranks
from lte_models.ranker.examples import ExampleCollate, averaged_lte, lte_weights
from lte_models.ranker.logits.history_logits import DailyCounts
from lte_models.ranker.model import Context
from schemas import EXPERIMENTS

# --- plan -----------------------------------------------------------------------------------------------------


def test_integration_tries_each_strategy_method_and_window_of_the_papers_table_against_no_lte() -> None:
    found = contrasts("integration", [60])
    tried = {(c.variant.lte, c.variant.method, c.variant.lagged, c.variant.history) for c in found}
    windows = {"late_fusion": (True, False), "feature_injection": (True,), "prefix_token": (True,)}
    wanted = {
        (lte, method, lagged, history)
        for lte, both in windows.items()
        for lagged in both
        for method in ("uniform", "recency")
        for history in (True, False)
    }
    assert tried == wanted
    assert len(found) == 16
    assert {c.baseline for c in found} == {Variant(history=True), Variant(history=False)}
    assert all(c.baseline.history == c.variant.history for c in found)
    # Table 1 of the paper, row by row; it has no late fusion over the lagged window.
    paper = {(c.variant.label, c.paper) for c in found if not c.variant.history}
    assert paper == {
        ("late fusion, uniform, [365,0]", -0.0070),
        ("late fusion, recency, [365,0]", -0.0305),
        ("late fusion, uniform, [365,60]", None),
        ("late fusion, recency, [365,60]", None),
        ("feature injection, uniform, [365,60]", 0.0045),
        ("feature injection, recency, [365,60]", 0.0042),
        ("prefix token, uniform, [365,60]", 0.0131),
        ("prefix token, recency, [365,60]", 0.0087),
    }


def test_leakage_is_looked_for_under_both_objectives_and_causal_training_has_no_history_features() -> None:
    found = {
        (c.variant.objective, c.variant.history, c.variant.lagged, c.baseline.label) for c in contrasts("leakage", [])
    }
    assert ("clm", False, False, "prefix token, uniform, [365,60], causal training") in found
    assert ("next_day", True, False, "prefix token, uniform, [365,60]") in found
    assert not any(history for objective, history, _, _ in found if objective == "clm")


def test_the_live_ranker_is_compared_with_no_lte_of_the_same_architecture_and_so_is_its_control() -> None:
    found = {(c.variant.label, c.baseline.label) for c in contrasts("live", [])}
    live = "prefix token, uniform, [365,60], affinity, repeat expert"
    assert {(live, "no LTE"), (live, "no LTE, repeat expert")} < found
    assert (f"{live}, LTE of another user", "no LTE, repeat expert") in found
    # the settings' defaults are the variant that the experiment calls live
    assert (RankerSection().lte, RankerSection().affinity, RankerSection().repeat_expert) == (
        "prefix_token",
        True,
        True,
    )


def test_longer_histories_have_as_many_more_interactions() -> None:
    assert [sequence_set(days).max_sequence for days in (60, 120, 360)] == [100, 200, 600]
    found = contrasts("sequence-length", (60, 120, 360))
    assert [c.variant.examples.sequence_days for c in found] == [120, 360]
    assert {c.baseline.examples.name for c in found} == {"sequence-60"}


def test_experiments_share_variants_so_that_none_is_trained_twice() -> None:
    alone = {name: set(variants([name], (60, 120))) for name in EXPERIMENT_NAMES}
    together = variants(EXPERIMENT_NAMES, (60, 120))
    assert len(together) == len(set(together)) == len(set().union(*alone.values()))
    assert (
        len(alone["integration"] & alone["autoencoder"]) == 6
    )  # no LTE, prefix uniform and recency; history off and on


# --- statistics, by hand --------------------------------------------------------------------------------------

# Two users on each of two days; one target each. NDCG of a single target: rank 1 is 1, rank 3 is .5.
JUDGED_BY_HAND = JudgedUserDays(
    user=np.array([0, 1, 0, 1]),
    day=np.array([10, 10, 11, 11]),
    n_short=np.array([0, 3, 7, 100]),
    target_query=np.arange(4),
    is_repeat=np.array([False, True, False, True]),
)


def _contrast_rows(model: list[list[int]], baseline: list[list[int]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    ranks, theirs = ([np.array(each) for each in seeds] for seeds in (model, baseline))
    rows = with_verdicts(contrast_rows(Compared("ours", "theirs", "off", ranks, theirs), JUDGED_BY_HAND, 500))
    return {(row["metric"], row["targets"], row["short_history"]): row for row in rows}


def test_a_comparison_by_hand() -> None:
    # seed 0: 1, 1, .5, .5; seed 1: 1, .5, .5, .5; the baseline is .5 everywhere
    rows = _contrast_rows([[1, 1, 3, 3], [1, 3, 3, 3]], [[3, 3, 3, 3], [3, 3, 3, 3]])
    row = rows["ndcg_at_500", "all", "all"]
    assert row["value"] == pytest.approx((0.75 + 0.625) / 2)
    assert (row["seed_low"], row["seed_high"]) == (pytest.approx(0.625), pytest.approx(0.75))
    assert row["baseline_value"] == pytest.approx(0.5)
    assert row["uplift"] == pytest.approx(0.6875 / 0.5 - 1)
    assert (row["uplift_seed_low"], row["uplift_seed_high"]) == (pytest.approx(0.25), pytest.approx(0.5))
    # seed-days: +100 %, 0; +50 %, 0
    assert (row["n_same_sign"], row["n_seed_days"]) == (2, 4)
    assert (row["n_users"], row["n_queries"], row["n_seeds"], row["n_days"]) == (2, 4, 2, 2)
    # new items are user 0's: means over seeds 1 and .5 against .5, .5; one user is no pair
    assert ("ndcg_at_500", "new", "all") not in rows
    assert ("ndcg_at_500", "all", "0") not in rows


def test_seeds_are_compared_with_a_baseline_that_has_none() -> None:
    rows = _contrast_rows([[1, 1, 3, 3], [1, 3, 3, 3]], [[3, 3, 3, 3]])
    assert rows == _contrast_rows([[1, 1, 3, 3], [1, 3, 3, 3]], [[3, 3, 3, 3], [3, 3, 3, 3]])
    ranks = {"worse": np.array([1, 9, 9, 9]), "best": np.array([1, 3, 3, 9]), "worst": np.array([9, 9, 9, 9])}
    assert best_baseline(ranks, JUDGED_BY_HAND, 500) == "best"


def test_new_and_repeated_targets_are_told_apart_within_a_user_day() -> None:
    # each user-day has a new target at rank 1 and a repeated one at rank 3
    judged = JudgedUserDays(
        np.array([0, 1]), np.array([5, 5]), np.array([1, 1]), np.array([0, 0, 1, 1]), np.array([False, True] * 2)
    )
    ranks = np.array([1, 3, 1, 3])
    assert judged.values(ranks, "new", 500)["ndcg"].tolist() == [1.0, 1.0]
    assert judged.values(ranks, "repeated", 500)["ndcg"].tolist() == [0.5, 0.5]
    # both: (1 + .5) / (1 + 1 / log2(3)); each next item on its own: (1 + .5) / 2
    assert judged.values(ranks, "all", 500)["ndcg"] == pytest.approx([1.5 / (1 + 1 / np.log2(3))] * 2)
    assert judged.values(ranks, "all", 500)["next_item_ndcg"].tolist() == [0.75, 0.75]
    assert judged.values(ranks, "repeated", 2)["recall"].tolist() == [0.0, 0.0]  # rank 3 is beyond 2
    with pytest.raises(ValueError, match="3 ranks for 4 targets"):
        judged.values(ranks[:3], "all", 500)


def _judged(model: Any, baseline: Any, days: Sequence[int]) -> str:
    ours, theirs, day = np.array(model, float), np.array(baseline, float), np.array(days)
    found = compare(ours.mean(axis=0), np.broadcast_to(theirs, ours.shape).mean(axis=0), np.arange(ours.shape[1]))
    return verdict(found.p, found.p, spread(ours, theirs, day, found.uplift))


def test_a_difference_that_does_not_hold_is_called_what_it_is() -> None:
    days = [1] * 4 + [2] * 4 + [3] * 4
    base = np.full((3, 12), 0.5)
    noise = np.tile([0.01, -0.01, 0.02, -0.02], 3)
    assert _judged(base + 0.1 + noise, base, days) == "holds in 9 of 9 seed-days, 3 of 3 seeds, 3 of 3 days"
    assert _judged(base + noise, base, days).startswith("does not hold: not significant")
    # one seed of three says the opposite
    seeds = np.array([[0.2], [0.2], [-0.05]])
    assert _judged(base + seeds + noise, base, days) == (
        "does not hold over seeds and days (6 of 9 seed-days, 2 of 3 seeds, 3 of 3 days)"
    )
    # one day of three does
    by_day = np.repeat([0.2, 0.2, -0.05], 4)
    assert _judged(base + by_day + noise, base, days) == (
        "does not hold over seeds and days (6 of 9 seed-days, 3 of 3 seeds, 2 of 3 days)"
    )
    # one day of five may: four of five have the sign
    wide, five = np.full((2, 20), 0.5), np.repeat([1, 2, 3, 4, 5], 4)
    assert _judged(wide + np.repeat([0.2, 0.2, 0.2, 0.2, -0.05], 4), wide, five.tolist()).startswith("holds in 8 of 10")


def test_p_is_adjusted_over_the_cells_of_one_metric() -> None:
    steady = spread(np.full((1, 4), 0.6), np.full((1, 4), 0.5), np.zeros(4, int), 0.2)
    cells = [("ndcg", 0.01), ("ndcg", 0.03), ("ndcg", 0.04), ("recall", 0.04)]
    rows = with_verdicts(
        [{"metric": metric, "p": p, "verdict": steady} for metric, p in cells] + [{"metric": "ndcg", "value": 0.5}]
    )
    # of three cells: .01 x 3, then .03 x 2 and the larger of .04 x 1 and .06; the only cell of recall keeps its p
    held = [row["verdict"].startswith("holds") for row in rows[:4]]
    assert held == [True, False, False, True]
    assert "among the cells of the table, Holm's p = 0.06" in rows[1]["verdict"]
    assert "Holm's p = 0.06" in rows[2]["verdict"]
    assert rows[4] == {"metric": "ndcg", "value": 0.5}


def test_the_power_is_the_best_in_auc_recall_and_precision_together() -> None:
    scores = {
        0.5: {"auc": 0.9, "recall": 0.1, "precision": 0.1},
        1.0: {"auc": 0.8, "recall": 0.3, "precision": 0.2},
        2.0: {"auc": 0.7, "recall": 0.2, "precision": 0.3},
    }
    assert best_power(scores) == 1.0  # places beaten by others: 0.5: 0+2+2, 1.0: 1+0+1, 2.0: 2+1+0
    assert best_power({0.5: scores[0.5], 1.25: scores[0.5]}) == 1.25  # equal: the one nearer to 1


def test_a_sign_that_differs_from_the_papers_is_said_plainly() -> None:
    row = {
        "variant": "prefix token", "baseline": "no LTE", "history": "off", "metric": "ndcg_at_500", "targets": "all",
        "short_history": "all", "uplift": -0.02, "paper_uplift": 0.0131, "verdict": "holds in 9 of 9 seed-days",
    }  # fmt: skip
    assert signs([row], 500) == (
        "- prefix token against no LTE, history off: -2.00 %, ANOTHER SIGN than the paper's +1.31 %."
    )
    weak = row | {"uplift": 0.001, "verdict": "does not hold: not significant (5 of 9 seed-days)"}
    assert signs([weak], 500).endswith(
        "+0.10 %, the same sign as the paper's +1.31 %, and does not hold: not significant (5 of 9 seed-days)."
    )
    assert percent(None) == "" == percent(float("inf"))


def test_a_plot_of_nothing_to_compare_says_so(tmp_path: Path) -> None:
    level = {"baseline": "", "metric": "ndcg_at_500", "targets": "all", "short_history": "all", "history": "off"}
    row = level | {"experiment": "integration", "deployment": "shop", "ds": DS, "variant": "no LTE", "value": 0.1}
    write_plot([row], 500, tmp_path / "plots" / "one.png")
    assert Image.open(tmp_path / "plots" / "one.png").size == (680, 112)


# --- days and rows --------------------------------------------------------------------------------------------


def test_days_are_days_on_which_anybody_came_and_never_overlap() -> None:
    open_days = [DS - timedelta(days=back) for back in range(60) if back % 7]  # closed once a week
    settings = ExperimentSection(test_days=3, validation_days=2, train_days=30, stride_days=2)
    days = experiment_days(open_days, settings, None)
    ordered = sorted(open_days)
    assert list(days.test) == ordered[-3:]
    assert list(days.validation) == ordered[-5:-3]
    assert days.train[-1] == ordered[-6]
    assert days.train[-2] == ordered[-8]
    assert days.train[0] >= days.cutoff - timedelta(days=30)
    assert days.anchors(TEST)[0] == days.cutoff - timedelta(days=1)
    earlier = experiment_days(open_days, settings, ordered[-10])
    assert earlier.test[-1] == ordered[-10]


@pytest.mark.parametrize("ds", [None, DS, DS + timedelta(days=9)])
def test_too_few_days_or_a_ds_without_data_is_refused(ds: date | None) -> None:
    with pytest.raises(ModelError, match="table event_days"):
        experiment_days([DS] * 3, ExperimentSection(), ds)


def test_days_to_train_on_that_are_all_kept_from_training_are_refused() -> None:
    days = [DS - timedelta(days=back) for back in range(60)]
    settings = ExperimentSection(test_days=3, validation_days=3, train_days=3)
    with pytest.raises(ModelError, match=r"experiment.train_days = 3: no day .* from 2021-03-26 on is left"):
        experiment_days(days, settings, None)


def test_the_same_user_days_are_chosen_from_every_set() -> None:
    keys = {"user_id": [f"u{i}" for i in range(500)], "anchor_day": [18_000 + i % 7 for i in range(500)]}
    short = pa.record_batch(keys | {"items": list(range(500))})
    long = pa.record_batch(keys | {"items": [-1] * 500}).take(pa.array(range(499, -1, -1)))
    ours, theirs = (pa.Table.from_batches(sampled([rows], 0.3)) for rows in (short, long))
    assert sorted(ours["user_id"].to_pylist()) == sorted(theirs["user_id"].to_pylist())
    assert 100 < ours.num_rows < 200
    assert sum(part.num_rows for part in sampled([short], 1.0)) == 500


def test_leading_directions_keep_inner_products_and_say_what_they_leave_out() -> None:
    rng = np.random.default_rng(0)
    content = np.vstack([np.zeros(3), rng.normal(size=(20, 3)) * [3, 2, 0.1]]).astype(np.float32)
    shop = CandidateItems([], np.arange(1), content, {}, np.zeros(21, np.int64), DailyCounts(0, torch.zeros(1, 21)))
    turned, share = leading_directions(shop, 2)
    assert turned.content.shape == (21, 2)
    assert share == pytest.approx(
        1 - np.square(content - content @ _projector(content, 2)).sum() / np.square(content).sum()
    )
    assert turned.content @ turned.content.T == pytest.approx(content @ content.T, abs=0.3)
    assert leading_directions(shop, 3) == (shop, 1.0)


def _projector(content: Any, n: int) -> Any:
    _, _, directions = np.linalg.svd(content.astype(float))
    return directions[:n].T @ directions[:n]


# --- a tiny shop ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(sail: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Deployment]:
    return shop_lake(sail, tmp_path_factory.mktemp("shop"), shop_events())


def _staged(lake: Lake, deployment: Deployment, folder: Path, examples: ExampleSet = LTE_SET) -> dict[str, pa.Table]:
    days = experiment_days(event_days(lake), deployment.experiment, None)
    builder = ExampleBuilder(lake, deployment, days, configured_basis(deployment), folder)
    builder.stage(builder.build(examples))
    files = {part: sorted((folder / examples.name / part).glob("*.parquet")) for part in PARTS}
    return {part: pa.concat_tables(pq.read_table(file) for file in found) for part, found in files.items()}


def test_nothing_of_the_test_days_is_trained_on(tiny: Any, sail: SparkSession, tmp_path: Path) -> None:
    lake, deployment = tiny
    cutoff = datetime(DS.year, DS.month, DS.day, tzinfo=UTC) - timedelta(days=1)  # two test days
    changed = [(user, "i0" if ts >= cutoff else item, ts) for user, item, ts in shop_events()]
    (tmp_path / "other").mkdir()
    other, _ = shop_lake(sail, tmp_path / "other", changed)
    before = _staged(lake, deployment, tmp_path / "a")
    after = _staged(other, replace(deployment, paths=replace(deployment.paths, lake=other.root)), tmp_path / "b")
    assert before[TRAIN].equals(after[TRAIN])
    assert before[VALIDATION].equals(after[VALIDATION])
    assert not before[TEST].equals(after[TEST])
    # the first test day's examples are as of its eve: only their targets may differ
    eve = (DS - timedelta(days=2) - date(1970, 1, 1)).days
    first, second = (
        each[TEST].filter(pa.compute.equal(each[TEST]["anchor_day"], eve)).drop_columns(["targets"])
        for each in (before, after)
    )
    assert first.num_rows > 0
    assert first.equals(second)


def test_longer_sequences_are_really_built(tiny: Any, tmp_path: Path) -> None:
    lake, deployment = tiny
    short, long = (_staged(lake, deployment, tmp_path, sequence_set(days))[TRAIN] for days in (60, 120))
    assert short["user_id"].equals(long["user_id"])
    assert short["targets"].equals(long["targets"])
    for ours, theirs in zip(short["items"].to_pylist(), long["items"].to_pylist(), strict=True):
        assert theirs[len(theirs) - len(ours) :] == ours
    ages = [hours for row in long["ages_hours"].to_pylist() for hours in row]
    assert 60 * 24 < max(ages) <= 120 * 24
    assert max(len(row) for row in short["past_items"].to_pylist()) == 0  # no LTE, no history: nothing but sequences


def test_a_shop_comes_back_as_it_was_written_with_counts_up_to_the_last_test_eve(tiny: Any, tmp_path: Path) -> None:
    lake, deployment = tiny
    days = experiment_days(event_days(lake), deployment.experiment, None)
    shop = experiment_candidates(lake, days, configured_basis(deployment), deployment.experiment.train_days)
    save_candidates(shop, tmp_path)
    found = read_candidates(tmp_path)
    assert found.item_ids == shop.item_ids
    assert np.array_equal(found.content, shop.content)
    eve = days.test[-1] - timedelta(days=1)
    counted = found.daily.recent(
        torch.tensor([(eve - date(1970, 1, 1)).days]), torch.arange(1, N_ITEMS + 1).unsqueeze(1)
    )
    week = [item for _, item, ts in shop_events() if eve - timedelta(days=7) < ts.date() <= eve]
    assert counted[:, 0, 0].tolist() == [week.count(item) for item in found.item_ids]


@pytest.fixture(scope="module")
def staged(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Deployment, CandidateItems]:
    lake, deployment = tiny
    folder = tmp_path_factory.mktemp("staged")
    days = experiment_days(event_days(lake), deployment.experiment, None)
    basis = configured_basis(deployment)
    builder = ExampleBuilder(lake, deployment, days, basis, folder)
    builder.stage(builder.build(LTE_SET))
    builder.stage_histories()
    shop, _ = leading_directions(experiment_candidates(lake, days, basis, 40), 6)
    save_candidates(shop, folder / "shop")
    return folder, deployment, shop


def _judged_batch(staged: Any) -> Any:
    folder, _, shop = staged
    rows = pa.concat_tables(pq.read_table(file) for file in sorted((folder / "lte" / TEST).glob("*.parquet")))
    return ExampleCollate(shop.row_of_index)(rows)


@pytest.mark.parametrize(
    "variant", [Variant(), Variant("prefix_token", history=True), Variant("late_fusion", "recency", False)]
)
def test_ranks_are_those_of_the_models_own_scores(staged: Any, variant: Variant) -> None:
    folder, deployment, shop = staged
    model = new_ranker(RankerWork(folder, "", variant, 0, deployment.experiment, 1), variant, shop).eval()
    batch = _judged_batch(staged)
    context = Context(*lte_maker(variant, shop, None)(batch), shop.daily)
    ranks, top = ranked(model, [Prepared(batch, context)])
    with torch.no_grad():
        scores = model.scores(batch, context)
    assert ranks.tolist() == target_ranks(scores, batch.target_query, batch.targets - 1).tolist()
    assert top[:, 0].tolist() == scores.argmax(dim=1).tolist()


def test_the_control_gives_each_user_the_lte_of_another(staged: Any) -> None:
    _, _, shop = staged
    batch = _judged_batch(staged)
    true, control = (
        lte_maker(Variant("prefix_token", history=True, shuffled=shuffled), shop, None)(batch)
        for shuffled in (False, True)
    )
    assert torch.equal(control[0][1:], true[0][:-1])
    assert torch.equal(control[1][1:], true[1][:-1])
    assert not torch.allclose(control[0], true[0])


def test_each_step_is_smaller_than_the_one_before_and_the_last_epoch_is_kept() -> None:
    model, seen = torch.nn.Linear(1, 1, bias=False), []

    def loss(_: int, __: torch.Generator) -> torch.Tensor:
        seen.append(model.weight.item())
        total: torch.Tensor = model(torch.ones(1)).sum()  # gradient 1 in every step
        return total

    progress = fit(model, loss, lambda _: [0, 1], None, train_config(2, 0.5, 0), 2)
    steps = -np.diff([*seen, model.weight.item()])
    # Adam moves a weight by the rate where the gradient is constant: shares 1, 3/4, 2/4, 1/4 of .5
    assert steps == pytest.approx([0.5, 0.375, 0.25, 0.125], rel=1e-3)
    assert progress.best_epoch == 1


def test_the_autoencoder_stands_in_as_embed_users_does(staged: Any) -> None:
    folder, deployment, shop = staged
    work = AutoencoderWork(folder, "encoder", 1.0, 0, deployment.experiment, deployment.autoencoder)
    run_work(work)
    encode = encoder_of_batches(folder / "results" / "encoder.safetensors", shop)
    batch = _judged_batch(staged)
    known = set(load_file(folder / "results" / "encoder.safetensors")["rows"].tolist())
    assert len(known) == deployment.experiment.autoencoder_items == 20
    outside = next(row for row in range(1, N_ITEMS + 1) if row not in known)
    past = batch.past
    # user 0 has no long history, all of user 1's long history is an item that the autoencoder does not know
    n_long = torch.where(past.user == 0, 0.0, past.n_long)
    items = torch.where(past.user == 1, outside, past.items)
    changed = batch._replace(past=past._replace(n_long=n_long, items=items))
    ltes, has_lte = encode(changed)
    assert has_lte.all()
    nobody = encode(batch._replace(past=past._replace(n_long=torch.zeros_like(n_long))))[0]
    assert torch.allclose(ltes[0], nobody[1], atol=1e-6)  # the cold-start vector, whoever it is
    uniform, _ = averaged_lte(
        changed.past,
        lte_weights(changed.past, method="uniform", lagged=True),
        torch.from_numpy(shop.content),
        len(ltes),
    )
    assert torch.allclose(ltes[1], uniform[1])
    assert not torch.allclose(ltes[2], uniform[2])


# --- all of it ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_run(tiny: Any) -> Iterator[tuple[Deployment, dict[str, list[dict[str, Any]]], list[str]]]:
    _, deployment = tiny
    said: list[str] = []
    patch = pytest.MonkeyPatch()
    for module in (job, pool):  # run says the plan, pool says what is trained
        patch.setattr(module, "say", said.append)
    yield deployment, job.run_experiments(deployment, EXPERIMENT_NAMES), said
    patch.undo()


@pytest.mark.slow
def test_every_experiment_writes_delta_rows_a_csv_and_a_plot(tiny: Any, all_run: Any) -> None:
    lake, _ = tiny
    deployment, found, said = all_run
    for name in EXPERIMENT_NAMES:
        stored = lake.read(EXPERIMENTS, where={"experiment": name, "ds": DS}).toPandas()
        assert len(stored) == len(found[name]) > 0
        keys = stored[list(EXPERIMENTS.key)]
        assert not keys.duplicated().any()
        main = [row for row in found[name] if row["baseline"] and row["metric"] == "ndcg_at_500"]
        whole = [row for row in main if row["targets"] == row["short_history"] == "all"]
        # what goes live, without and with an LTE, is also compared with the best baseline
        assert len(whole) == len(contrasts(name, (60, 120))) + 2 * (name in ("integration", "live"))
        assert all(0 < row["value"] <= 1 and row["n_seeds"] == 2 and row["n_days"] == 2 for row in whole)
        assert all(row["uplift_low"] <= row["uplift"] <= row["uplift_high"] for row in whole)
        path = Path(deployment.paths.reports) / "experiments" / "tiny" / name
        with path.with_suffix(".csv").open() as stream:
            read = list(csv.DictReader(stream))
        assert [row["variant"] for row in read] == [row["variant"] for row in found[name]]
        assert float(read[0]["value"]) == found[name][0]["value"]
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert "95 % interval" in path.with_suffix(".md").read_text()
    assert "expected" in said[0]
    assert "budget: 25 minutes" in said[0]
    assert not (job.experiments_folder(deployment) / "lte").exists()  # no copy of users' rows is left


@pytest.mark.slow
def test_tables_hold_what_the_issue_asks_for(all_run: Any) -> None:
    _, found, _ = all_run
    labels = {row["variant"] for row in found["integration"]}
    assert {*job.BASELINE_LABELS.values(), "no LTE", "prefix token, uniform, [365,60]"} <= labels
    lengths = {row["short_history"] for row in found["integration"]}
    assert {"all", "6-20", ">20"} <= lengths
    assert {row["targets"] for row in found["integration"]} == {"all", "new", "repeated"}
    metrics = {row["metric"] for row in found["sequence-length"]}
    assert {"train_seconds", "prepare_seconds"} <= metrics
    powers = {row["variant"] for row in found["autoencoder"] if row["metric"] == "auc_of_hidden_items"}
    assert len(powers) == 2
    assert sum(" (chosen)" in power for power in powers) == 1
    text = experiment_text(found["integration"], 500)
    assert "the paper's +1.31 %" in text
    head, ease = (
        [cell.strip() for cell in line.split("|")]
        for line in text.splitlines()
        if "popularity bias@10" in line or line.startswith("| EASE ")
    )
    wanted = {"variant": "EASE", "baseline": "", "metric": "ndcg_at_500"}
    of_ease = [row for row in found["integration"] if all(row[key] == value for key, value in wanted.items())]
    shown = {(row["targets"], row["short_history"]): f"{row['value']:.4f}" for row in of_ease}
    in_groups = dict(zip(head, ease, strict=True))
    assert len(shown) > 3
    for name, group in zip(GROUP_NAMES, groups()[1:], strict=True):
        assert in_groups[f"NDCG, {name}"] == shown.get(group, "")
    levels = [row for row in found["integration"] if _is_main(row, row["variant"], "")]
    counted = {row["variant"]: row["value"] for row in levels if row["variant"] in job.BASELINE_LABELS.values()}
    best = max(counted, key=lambda name: counted[name])
    for label in ("no LTE", "prefix token, uniform, [365,60]"):
        [row] = [row for row in found["integration"] if _is_main(row, label, best)]
        assert (row["history"], row["baseline_value"]) == ("on", pytest.approx(counted[best]))


def _is_main(row: dict[str, Any], variant: str, baseline: str) -> bool:
    wanted = (variant, baseline, "ndcg_at_500", "all", "all")
    return (row["variant"], row["baseline"], row["metric"], row["targets"], row["short_history"]) == wanted


@pytest.mark.slow
def test_a_second_call_trains_nothing_and_finds_the_same_and_fresh_trainings_agree_with_it(all_run: Any) -> None:
    deployment, found, said = all_run
    said.clear()
    again = job.run_experiments(deployment, ["leakage"])
    assert not [line for line in said if line.startswith("  [")]
    # no LTE and both windows: causal, next day, next day with history features; two seeds each
    assert "18 of 18 trainings are finished already" in "".join(said)
    assert again["leakage"] == found["leakage"]
    fresh = job.run_experiments(deployment, ["leakage"], is_fresh=True)
    assert [line for line in said if line.startswith("  [")]
    assert fresh["leakage"] == found["leakage"]


@pytest.mark.slow
def test_a_budget_that_is_used_up_stops_and_the_next_call_goes_on(all_run: Any) -> None:
    deployment, _, said = all_run
    other = replace(deployment, experiment=replace(deployment.experiment, seeds=(7, 8), budget_minutes=0.001))
    with pytest.raises(ExperimentError, match=r"budget of 0\.001 minutes is used up with \d+ trainings left"):
        job.run_experiments(other, ["leakage"])
    said.clear()
    found = job.run_experiments(replace(other, experiment=replace(other.experiment, budget_minutes=25.0)), ["leakage"])
    finished = [line for line in said if "are finished already" in line]
    assert not finished[0].strip().startswith("0 of")  # the baselines are not scored again
    assert found["leakage"]


# --- flags ----------------------------------------------------------------------------------------------------


def test_flags_override_settings_and_are_checked_like_them(tiny: Any, tmp_path: Path) -> None:
    parser = task.experiment_parser()
    args = parser.parse_args(["all", "--config", "x", "--seeds", "4,5", "--budget-minutes", "1.5"])
    given = task.setting_variables(args)
    assert given == {"LTE_EXPERIMENT__SEEDS": "4,5", "LTE_EXPERIMENT__BUDGET_MINUTES": "1.5"}
    assert task.chosen_names(args.names) == [*EXPERIMENT_NAMES, "stability", "attention"]
    assert task.chosen_names(["leakage", "integration", "leakage"]) == ["integration", "leakage"]
    config = tmp_path / "a.toml"
    config.write_text((Path(tiny[1].paths.lake).parent / "deployment.toml").read_text())
    assert load_deployment(config, environ=given).experiment.seeds == (4, 5)
    for name, value in (("seeds", "1,1"), ("epochs", "0"), ("negatives_share", "2"), ("powers", "0")):
        with pytest.raises(ConfigError, match=f"experiment.{name}"):
            load_deployment(config, environ={f"LTE_EXPERIMENT__{name.upper()}": value})


def test_the_plan_is_announced_with_its_budget_and_says_when_it_is_more(tiny: Any, tmp_path: Path) -> None:
    _, deployment = tiny
    text = job.announcement(deployment, ["integration"], tmp_path)
    assert "36 trainings of the ranker" in text  # 9 variants, history off and on, 2 seeds
    assert "MORE than the budget" not in text
    settings = replace(deployment.experiment, budget_minutes=0.5)
    assert "MORE than the budget" in job.announcement(
        replace(deployment, experiment=settings), ["integration"], tmp_path
    )


def test_an_empty_lake_says_what_to_run(sail: SparkSession, tmp_path: Path, tiny: Any) -> None:
    empty = replace(tiny[1], paths=replace(tiny[1].paths, lake=str(tmp_path / "nothing")))
    with pytest.raises(ModelError, match=r"table event_days: 0 days with interactions.*run ingest"):
        job.run_experiments(empty, ["leakage"])
    with pytest.raises(ModelError, match="mounted folder"):
        job.experiments_folder(replace(empty, paths=replace(empty.paths, lake="s3://bucket/lake")))


@pytest.mark.slow
def test_rows_are_one_json_value(all_run: Any) -> None:
    _, found, _ = all_run
    assert json.loads(json.dumps(found, default=str))["leakage"][0]["ds"] == str(DS)
