import json
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession
from torch import Tensor

from deployments import CONFIG
from jobs.baselines.scorers import baseline_scorers
from jobs.baselines.tuning import best_of
from jobs.config.sections import Deployment
from jobs.evaluate_ranker import (
    DAILY_BASELINES,
    EvaluateConfig,
    decide,
    evaluate,
    next_items,
    parse_flags,
    reason_to_keep,
)
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake, Metrics
from jobs.ranker.items import CandidateItems, load_candidates
from jobs.ranker.judging.evaluation import DayFacts, Scored, day_facts, score, table_rows
from jobs.ranker.judging.live import (
    LteKind,
    live_bundle_folder,
    live_folder,
    live_ranker,
    make_live,
    require_pair,
    switch_back,
)
from jobs.ranker.judging.verdict import collapsed, nobody_came
from jobs.ranker.readers import ExampleReader, stage_examples, user_ids
from jobs.ranker.scorers import Scorer, newest, scores_of
from jobs.registry.bundles import ModelError, bundle_folder
from jobs.train_ranker import train
from lte_builders import put, put_basis
from lte_models.ranker.examples import ExampleBatch, ExampleCollate
from lte_models.training.manifest import BundleError, read_manifest
from ranker_shop import (
    BASIS,
    DIM,
    DS,
    N_ITEMS,
    N_USERS,
    add_examples,
    copy_of,
    make_shop,
    put_rows,
    settings,
    shop_rows,
)
from schemas import LIVE_SNAPSHOT, TRAINING_EXAMPLES

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def trained(sail: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Path]:
    """The shop with a trained ranker of DS; tests only read it."""
    folder = tmp_path_factory.mktemp("evaluate")
    file = folder / "deployment.toml"
    file.write_text(CONFIG)
    lake = make_shop(sail, folder / "lake", file)
    train(BasisDay(lake, settings(lake, file, ranker__epochs=6), DS, BASIS))
    return lake, file


@pytest.fixture
def own(trained: tuple[Lake, Path], tmp_path: Path) -> tuple[Lake, Deployment]:
    """A copy of the shop for a test that writes."""
    lake = copy_of(trained[0], tmp_path / "own")
    return lake, settings(lake, trained[1])


@pytest.fixture(scope="module")
def judged_day(
    trained: tuple[Lake, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[CandidateItems, ExampleReader]:
    """Items as of DS - 1 and the examples of DS."""
    lake, _ = trained
    shop = load_candidates(lake, DS, BASIS, 20)
    rows = stage_examples(lake, [DS - DAY], BASIS, tmp_path_factory.mktemp("test"))
    return shop, ExampleReader(rows, ExampleCollate(shop.row_of_index), 5)


def _naive_ndcg(judged_day: tuple[CandidateItems, ExampleReader], days: int) -> float:
    """NDCG at 5 of counting a user's last days, ties by the week's popularity, then by the vocabulary's order."""
    shop, _ = judged_day
    rows = shop_rows()
    week = [sum(item == other and DS - 7 * DAY <= day < DS for _, other, day in rows) for item in shop.item_ids]
    values = []
    for user in sorted({user for user, _, day in rows if day == DS}):
        wanted = {item for who, item, day in rows if who == user and day == DS}
        own = [item for who, item, day in rows if who == user and DS - days * DAY <= day < DS]
        places = range(len(shop.item_ids))
        order = sorted(places, key=lambda j: (-own.count(shop.item_ids[j]), -week[j], j))
        ranks = [1 + order.index(shop.item_ids.index(item)) for item in wanted]
        ideal = sum(1 / np.log2(1 + r) for r in range(1, 1 + len(wanted)))
        values.append(sum(1 / np.log2(1 + r) for r in ranks if r <= 5) / ideal)
    return float(np.mean(values))


@pytest.mark.parametrize(("name", "days"), [("popularity_7d", 0), ("frequency_60d", 60), ("frequency_365d", 365)])
def test_counting_baselines_score_what_a_plain_loop_does(
    judged_day: tuple[CandidateItems, ExampleReader], name: str, days: int
) -> None:
    shop, reader = judged_day
    found = score(baseline_scorers(shop, reader, [name])[name], reader, [5]).values["ndcg_at_5", "all"]
    assert float(np.nanmean(found)) == pytest.approx(_naive_ndcg(judged_day, days))


def test_ease_knows_the_most_frequent_items_and_ranks_the_others_last(
    judged_day: tuple[CandidateItems, ExampleReader],
) -> None:
    shop, reader = judged_day
    scorer = baseline_scorers(shop, reader, ["ease"], ease_items=4)["ease"]
    top = scores_of(scorer, next(iter(reader.in_order()))).top(N_ITEMS)
    assert top.shape == (5, N_ITEMS)
    assert bool((np.sort(top[:, :4]) == np.arange(4)).all())
    assert bool((top[:, 4:] == np.arange(4, N_ITEMS)).all())


def test_the_parameters_of_a_baseline_are_those_that_are_best_on_earlier_days(
    judged_day: tuple[CandidateItems, ExampleReader],
) -> None:
    _, reader = judged_day

    def oracle(batch: ExampleBatch, share: float) -> Tensor:
        scores = torch.zeros(len(batch.items), N_ITEMS)
        scores[batch.target_query, batch.targets - 1] = share  # 0: nothing is known; 1: all targets come first
        return scores

    choices: list[Scorer] = [partial(oracle, share=share) for share in (0.0, 1.0, 0.5)]
    assert best_of(choices, reader) is choices[1]  # the third ranks alike: of equals the first
    assert best_of(choices[:1], reader) is choices[0]


@pytest.mark.parametrize("name", ["decayed_and_popular", "tifu_knn", "up_cf"])
def test_a_tuned_baseline_ranks_own_items_before_what_others_take(
    judged_day: tuple[CandidateItems, ExampleReader], name: str
) -> None:
    shop, reader = judged_day
    batch = next(iter(reader.in_order()))
    best = scores_of(baseline_scorers(shop, reader, [name])[name], batch).top(1)[:, 0]
    own = torch.zeros((len(batch.items), N_ITEMS), dtype=torch.bool)
    own[batch.past.user, batch.past.items - 1] = True
    assert bool(own[torch.arange(len(best)), best].all())  # in this shop a user returns to the same six items


def test_the_trained_ranker_beats_popularity_and_goes_live(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    verdict = evaluate(BasisDay(lake, deployment, DS, BASIS))
    models = {key[1] for key in verdict.metrics if key[0] == "ndcg_at_5" and "/" not in key[1]}
    assert models == {*DAILY_BASELINES, "candidate"}
    assert verdict.metrics["ndcg_at_5", "candidate"] > verdict.metrics["ndcg_at_5", "popularity_7d"]
    assert verdict.n_users == verdict.metrics["n_users", ""] == N_USERS // 2  # every second user came on DS
    assert verdict.metrics["ndcg_at_5", "candidate/>20"] > 0
    assert not list(bundle_folder(deployment, "ranker", DS).glob("evaluation"))
    outcome = decide(lake, EvaluateConfig(deployment, DS), replace(verdict, reasons=[]))
    assert outcome.name == "live"
    live = live_ranker(deployment)
    assert live is not None
    assert (live.ds, live.previous) == (DS.isoformat(), "")
    assert live.weights_sha256 == read_manifest(bundle_folder(deployment, "ranker", DS)).weights_sha256


def test_the_live_ranker_is_judged_beside_the_new_one(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    make_live(deployment, bundle_folder(deployment, "ranker", DS))
    put_rows(lake, [(f"u{user:02d}", "i00", DS + DAY) for user in range(6)])
    add_examples(lake, deployment, DS + DAY)
    train(BasisDay(lake, deployment, DS + DAY, BASIS))
    verdict = evaluate(BasisDay(lake, deployment, DS + DAY, BASIS))
    assert ("ndcg_at_5", "live") in verdict.metrics
    assert ("uplift", "candidate over live") in verdict.metrics
    # a rerun of the first day: the live ranker is trained on that day, so it is no fair rival there
    make_live(deployment, bundle_folder(deployment, "ranker", DS + DAY))
    again = evaluate(BasisDay(lake, deployment, DS, BASIS))
    assert ("ndcg_at_5", "live") not in again.metrics
    assert (
        "is of ds=2021-01-01, which is newer; what is live stays"
        in decide(lake, EvaluateConfig(deployment, DS), again).text
    )
    assert live_ranker(deployment).ds == "2021-01-01"  # type: ignore[union-attr]


def test_a_day_on_which_nobody_came_keeps_what_is_live(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    make_live(deployment, bundle_folder(deployment, "ranker", DS))
    before = live_ranker(deployment)
    add_examples(lake, deployment, DS + DAY)  # nobody came on the day after DS
    train(BasisDay(lake, deployment, DS + DAY, BASIS))
    verdict = evaluate(BasisDay(lake, deployment, DS + DAY, BASIS))
    outcome = decide(lake, EvaluateConfig(deployment, DS + DAY), verdict)
    assert (verdict.n_users, outcome.name) == (0, "kept")
    assert "nothing to judge by" in outcome.text
    assert reason_to_keep(EvaluateConfig(deployment, DS), nobody_came(1)).startswith("1 user with a known item, ")
    assert live_ranker(deployment) == before


def test_next_items_that_no_model_can_rank_are_counted(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    day = BasisDay(lake, deployment, DS, BASIS)
    before = next_items(day)
    n_taken = len({row for row in shop_rows() if row[2] == DS})
    assert before == {"n_next_items": n_taken, "n_next_items_unknown": 0}
    # without a vector, twice; with one only from DS on
    put_basis(lake, {"late": [1.0] + [0.0] * (DIM - 1)}, basis_version=BASIS, first_ds={"late": DS}, start=N_ITEMS)
    put_rows(lake, [("u00", "ghost", DS), ("u00", "ghost", DS), ("u01", "late", DS), ("u01", "late", DS - DAY)])
    assert next_items(day) == {"n_next_items": n_taken + 2, "n_next_items_unknown": 2}
    assert next_items(BasisDay(lake, deployment, DS + DAY, BASIS)) == {"n_next_items": 0, "n_next_items_unknown": 0}


def test_one_user_is_too_few_to_judge_by(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    put_rows(lake, [("u00", "i00", DS + DAY)])
    add_examples(lake, deployment, DS + DAY)
    train(BasisDay(lake, deployment, DS + DAY, BASIS))
    assert evaluate(BasisDay(lake, deployment, DS + DAY, BASIS)).n_users == 1


@pytest.mark.parametrize("why", ["types", "truncated", "basis"])
def test_a_live_ranker_that_cannot_be_compared_does_not_hold_its_successor_back(
    own: tuple[Lake, Deployment], capsys: pytest.CaptureFixture[str], why: str
) -> None:
    lake, deployment = own
    live = make_live(deployment, bundle_folder(deployment, "ranker", DS))
    folder = live_folder(deployment) / live.bundle
    manifest = json.loads((folder / "manifest.json").read_text())
    if why == "types":  # a type was added after the live ranker was trained
        manifest["config"]["types"] = ["click"]
        said = "trained with interactions.types ['click'], configured: ['click', 'purchase']"
    elif why == "basis":
        manifest["basis_version"], said = "basis-0", "expected basis_version 'basis-1', got 'basis-0'"
    else:
        weights = folder / manifest["weights_file"]
        weights.write_bytes(weights.read_bytes()[:-100])
        said = weights.name
    (folder / "manifest.json").write_text(json.dumps(manifest))
    verdict = evaluate(BasisDay(lake, deployment, DS, BASIS))
    assert ("ndcg_at_5", "live") not in verdict.metrics
    assert ("ndcg_at_5", "candidate") in verdict.metrics
    shown = capsys.readouterr().err
    assert f"evaluate_ranker: ds {DS}: the live ranker is not compared: " in shown
    assert said in shown


def test_missing_or_foreign_bundles_are_refused(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    with pytest.raises(BundleError, match=r"ds=2021-01-01/manifest\.json: there is no bundle"):
        evaluate(BasisDay(lake, deployment, DS + DAY, BASIS))
    with pytest.raises(BundleError, match="expected basis_version 'basis-2', got 'basis-1': use the configuration"):
        evaluate(BasisDay(lake, deployment, DS, "basis-2"))
    other = replace(deployment, interactions=replace(deployment.interactions, types=("purchase", "click")))
    with pytest.raises(ModelError, match=r"trained with interactions.types \['click', 'purchase'\]"):
        evaluate(BasisDay(lake, other, DS, BASIS))


def test_scores_that_are_not_finite_stop_the_gate(
    own: tuple[Lake, Deployment], monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, deployment = own

    def broken(batch: ExampleBatch) -> Tensor:
        return torch.full((len(batch.items), N_ITEMS), float("nan"))

    monkeypatch.setattr("jobs.evaluate_ranker.ranker_scorer", lambda *args: broken)
    with pytest.raises(ModelError, match="candidate: a score of query 0 is not finite; the live ranker stays"):
        evaluate(BasisDay(lake, deployment, DS, BASIS))


FACTS = DayFacts(
    day=np.full(5, 18_000),
    n_short=np.array([0, 1, 5, 21, 100]),  # groups 0, 1-5, 1-5, >20, >20
    target_query=np.arange(5),
    targets=np.arange(5),
    is_repeat=np.zeros(5, dtype=bool),
)
NARROW = [[0, 1]] * 5


def test_a_collapsed_coverage_holds_a_candidate_back() -> None:
    coverage: Metrics = {("coverage_at_10", "candidate"): 2 / 14, ("coverage_at_10", "live"): 10 / 14}
    assert collapsed(coverage) == ["coverage at 10 is 0.143, less than 50% of the live ranker's 0.714"]
    assert collapsed(coverage | {("coverage_at_10", "candidate"): 5 / 14}) == []
    assert collapsed({("coverage_at_10", "candidate"): 0.0}) == []  # nothing to compare with


def test_the_table_splits_by_length_of_history_and_by_kind_of_target(
    judged_day: tuple[CandidateItems, ExampleReader],
) -> None:
    shop, _ = judged_day
    values = {
        ("ndcg_at_5", "all"): np.array([0.1, 0.2, 0.4, 0.5, np.nan]),
        ("ndcg_at_5", "repeated"): np.array([0.3, np.nan, np.nan, 0.5, np.nan]),
        ("ndcg_at_5", "new"): np.array([np.nan] * 5),
    }
    rows = table_rows("m", Scored(values, np.array(NARROW)), FACTS, shop)
    assert {key[1]: round(value, 6) for key, value in rows.items() if key[0] == "ndcg_at_5"} == {
        "m": 0.3,
        "m/0": 0.1,
        "m/1-5": 0.3,
        "m/>20": 0.5,
        "m/repeated": 0.4,
    }
    assert rows["coverage_at_10", "m"] == pytest.approx(2 / N_ITEMS)


def test_repeated_and_new_targets_are_those_of_the_users_own_year(own: tuple[Lake, Deployment]) -> None:
    lake, _ = own
    rows = [row for row in shop_rows() if row[2] < DS]
    put_rows(lake, [("u03", "i13", DS), ("u03", "i06", DS)])  # u03 never took i13
    lake.delete(TRAINING_EXAMPLES, {"anchor_ds": DS - DAY})
    add_examples(lake, own[1], DS)
    shop = load_candidates(lake, DS, BASIS, 20)
    staged = stage_examples(lake, [DS - DAY], BASIS, Path(lake.root) / "test")
    reader = ExampleReader(staged, ExampleCollate(shop.row_of_index), 100)

    def perfect(batch: ExampleBatch) -> Tensor:
        scores = torch.zeros(len(batch.items), N_ITEMS)
        scores[batch.target_query, batch.targets - 1] = 1.0
        return scores

    found = score(perfect, reader, [5])
    # u00 took i12 a month ago; i13 is new to u03, and so is whatever a user took on DS for the first time
    known = {(user, item) for user, item, _ in rows}
    on_ds = [(user, item) for user, item, day in [*shop_rows(), ("u03", "i13", DS), ("u03", "i06", DS)] if day == DS]
    with_new = {user for user, item in on_ds if (user, item) not in known}
    assert "u03" in with_new
    order = user_ids(staged)
    new, repeated = (~np.isnan(found.values["recall_at_5", kind]) for kind in ("new", "repeated"))
    assert {order[i] for i in np.flatnonzero(new)} == with_new
    assert {order[i] for i in np.flatnonzero(repeated)} == {user for user, item in on_ds if (user, item) in known}
    assert np.nanmean(found.values["ndcg_at_5", "all"]) == pytest.approx(1.0)
    facts = day_facts(reader.in_order())
    assert facts.n_users == np.sum(~np.isnan(found.values["ndcg_at_5", "all"]))


def test_a_model_reads_the_newest_interactions_that_it_holds(judged_day: tuple[CandidateItems, ExampleReader]) -> None:
    batch = next(iter(judged_day[1].in_order()))
    cut = newest(batch, 3)
    assert torch.equal(cut.items, batch.items[:, -3:])
    assert cut.query_position.tolist() == [2] * len(batch.items)
    assert newest(batch, 1000) is batch


def _published(lake: Lake, basis: str = BASIS, window: str = "365-60", method: str = "uniform") -> None:
    row = {"sequence": 1, "action": "publish", "ds": DS, "basis_version": basis, "method": method, "lte_window": window,
           "half_life_days": None, "dim": 6, "n_rows": 1, "checksum": "c", "store": "lmdb",
           "code_version": "1"}  # fmt: skip
    put(lake, LIVE_SNAPSHOT, [tuple(row[name] for name in LIVE_SNAPSHOT.columns)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"basis": "basis-2"}, "basis_version 'basis-1' against 'basis-2'"),
        ({"window": "365-0"}, "lte_window '365-60' against '365-0'"),
        ({"method": "recency"}, "method 'uniform' against 'recency'"),
    ],
)
def test_a_ranker_that_reads_other_ltes_than_are_published_never_goes_live(
    own: tuple[Lake, Deployment], changes: dict[str, str], message: str
) -> None:
    lake, deployment = own
    _published(lake, **changes)
    verdict = evaluate(BasisDay(lake, deployment, DS, BASIS))
    for force in (False, True):
        outcome = decide(lake, EvaluateConfig(deployment, DS, force=force), replace(verdict, reasons=[]))
        assert outcome.name == "refused"
        assert message in outcome.text
    assert live_ranker(deployment) is None


def test_a_matching_pair_goes_live_and_a_ranker_without_lte_fits_any(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    _published(lake)
    manifest = read_manifest(bundle_folder(deployment, "ranker", DS))
    require_pair(manifest, LteKind(BASIS, "365-60", "uniform"), DS)
    require_pair(replace(manifest, lte_window=""), LteKind("other", "365-0", "recency"), DS)
    verdict = replace(evaluate(BasisDay(lake, deployment, DS, BASIS)), reasons=[])
    assert decide(lake, EvaluateConfig(deployment, DS), verdict).name == "live"


def test_half_lives_must_be_equal_where_both_are_known(own: tuple[Lake, Deployment]) -> None:
    manifest = read_manifest(bundle_folder(own[1], "ranker", DS))
    assert manifest.half_life_days is None  # uniform LTEs have none
    config = {**manifest.config, "settings": {**manifest.config["settings"], "method": "recency"}}
    recency = replace(manifest, config=config, half_life_days=30.0)
    snapshot = LteKind(BASIS, "365-60", "recency", 30.0)
    require_pair(recency, snapshot, DS)
    with pytest.raises(ModelError, match=r"do not match: half_life_days 30 against 90\.5$"):
        require_pair(recency, snapshot._replace(half_life_days=90.5), DS)
    require_pair(recency, snapshot._replace(half_life_days=None), DS)  # a snapshot from before the field
    require_pair(replace(recency, half_life_days=None), snapshot, DS)


def test_backfills_and_refusals_change_nothing_that_is_live(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    verdict = evaluate(BasisDay(lake, deployment, DS, BASIS))
    assert "a backfill" in decide(lake, EvaluateConfig(deployment, DS, is_backfill=True), verdict).text
    refused = decide(lake, EvaluateConfig(deployment, DS), replace(verdict, reasons=["NDCG is below"]))
    assert refused.name == "refused"
    assert live_ranker(deployment) is None
    forced = decide(lake, EvaluateConfig(deployment, DS, force=True), replace(verdict, reasons=["NDCG is below"]))
    assert forced.name == "live"


def test_flags(deployment_file: Path) -> None:
    common = ["--config", str(deployment_file), "--ds", "2020-12-31"]
    assert parse_flags([*common, "--run-type", "backfill"]).is_backfill
    assert not parse_flags([*common, "--run-type", "scheduled"]).is_backfill
    assert parse_flags([*common, "--force"]).force


def test_the_live_bundle_outlives_a_rerun_and_can_be_switched_back(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    folder = bundle_folder(deployment, "ranker", DS)
    first = make_live(deployment, folder)
    assert make_live(deployment, folder) == first  # again changes nothing
    with pytest.raises(ModelError, match="no earlier ranker"):
        switch_back(deployment)
    train(BasisDay(lake, replace(deployment, ranker=replace(deployment.ranker, seed=3)), DS, BASIS))
    assert read_manifest(folder).weights_sha256 != first.weights_sha256
    live = live_bundle_folder(deployment)
    assert live is not None
    assert read_manifest(live).weights_sha256 == first.weights_sha256
    second = make_live(deployment, folder)
    assert second.previous == first.bundle
    assert switch_back(deployment).weights_sha256 == first.weights_sha256
    train(BasisDay(lake, replace(deployment, ranker=replace(deployment.ranker, seed=4)), DS, BASIS))
    make_live(deployment, folder)
    assert len(list(live_folder(deployment).glob("ds=*"))) == 2  # the live one and the one before it


def test_a_pointer_that_is_torn_is_named(deployment: Deployment) -> None:
    assert live_ranker(deployment) is None
    live_folder(deployment).mkdir(parents=True)
    (live_folder(deployment) / "live.json").write_text('{"bundle": ')
    with pytest.raises(ModelError, match=r"live\.json: not a pointer to a ranker"):
        live_ranker(deployment)
