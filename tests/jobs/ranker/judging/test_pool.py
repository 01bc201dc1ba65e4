"""The gate over days: what a first run leaves out, what is pooled, and which candidates go live."""

from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark.sql import SparkSession
from torch import Tensor

from deployments import CONFIG
from jobs.config.sections import Deployment
from jobs.evaluate_ranker import EvaluateConfig, anchors_of, decide, evaluate
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake
from jobs.ranker.judging.live import live_ranker, make_live
from jobs.ranker.judging.pool import UserDays, earlier_scores, first_test_day, pooled, write_scores
from jobs.ranker.scorers import Scorer
from jobs.registry.bundles import bundle_folder
from jobs.train_ranker import train
from lte_models.ranker.examples import ExampleBatch
from lte_models.training.manifest import read_manifest
from ranker_shop import BASIS, DS, N_ITEMS, N_USERS, add_examples, copy_of, make_shop, put_rows, settings
from schemas import RANKER_SCORES

DAY = timedelta(days=1)
GATE = {"ranker__gate_days": 7, "ranker__gate_min_users": 20, "ranker__epochs": 1}
FIRST_TEST = DS - 6 * DAY


@pytest.fixture(scope="module")
def trained(sail: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Path]:
    """The shop with the candidate of a first run; tests only read it."""
    folder = tmp_path_factory.mktemp("pool")
    file = folder / "deployment.toml"
    file.write_text(CONFIG)
    lake = make_shop(sail, folder / "lake", file)
    deployment = settings(lake, file, **GATE)
    add_examples(lake, deployment, DS)  # the training days of a first run lie further back
    train(BasisDay(lake, deployment, DS, BASIS))
    return lake, file


@pytest.fixture
def own(trained: tuple[Lake, Path], tmp_path: Path) -> tuple[Lake, Deployment]:
    """A copy of the shop for a test that writes."""
    lake = copy_of(trained[0], tmp_path / "own")
    return lake, settings(lake, trained[1], **GATE)


def _weights(deployment: Deployment, ds: date = DS) -> str:
    return read_manifest(bundle_folder(deployment, "ranker", ds)).weights_sha256


def _first_test(deployment: Deployment, ds: date) -> str:
    found: str = read_manifest(bundle_folder(deployment, "ranker", ds)).config["first_test_day"]
    return found


def test_a_first_run_trains_on_nothing_of_the_days_that_it_is_judged_on(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    assert _first_test(deployment, DS) == FIRST_TEST.isoformat()
    before = _weights(deployment)
    put_rows(lake, [(f"u{user:02d}", "i13", FIRST_TEST + back * DAY) for user in range(20) for back in range(7)])
    train(BasisDay(lake, deployment, DS, BASIS))
    assert _weights(deployment) == before


def test_a_first_run_is_judged_on_all_days_and_the_next_run_adds_its_own(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    verdict = evaluate(BasisDay(lake, deployment, DS, BASIS))
    assert (verdict.metrics["n_gate_days", ""], verdict.metrics["n_gate_users", ""]) == (7.0, N_USERS)
    rows = lake.read(RANKER_SCORES).collect()
    assert sorted({row["test_day"] for row in rows}) == [FIRST_TEST + back * DAY for back in range(7)]
    assert len(rows) == 7 * verdict.n_users  # the candidate and six baselines; every user has a known target
    first = _weights(deployment)
    train(BasisDay(lake, deployment, DS, BASIS))
    assert _weights(deployment) == first  # a rerun does not read its own scores
    evaluate(BasisDay(lake, deployment, DS, BASIS))
    assert lake.read(RANKER_SCORES).count() == len(rows)
    put_rows(lake, [(f"u{user:02d}", "i00", DS + DAY) for user in range(6)])
    add_examples(lake, deployment, DS + DAY)
    train(BasisDay(lake, deployment, DS + DAY, BASIS))
    assert _first_test(deployment, DS + DAY) == (DS + DAY).isoformat()  # candidates were judged: nothing is left out
    later = evaluate(BasisDay(lake, deployment, DS + DAY, BASIS))
    assert (later.n_users, later.metrics["n_gate_days", ""]) == (6, 7.0)  # six days of the first run, and its own
    changed = replace(deployment, ranker=replace(deployment.ranker, dim=16))  # another procedure
    assert first_test_day(BasisDay(lake, changed, DS + DAY, BASIS)) == FIRST_TEST + DAY


def test_the_live_ranker_does_not_count_on_days_on_which_it_was_trained(own: tuple[Lake, Deployment]) -> None:
    lake, changed = own
    earlier = replace(changed, ranker=replace(changed.ranker, dim=16, gate_days=1))  # nothing was left out
    train(BasisDay(lake, earlier, DS - DAY, BASIS))
    make_live(earlier, bundle_folder(earlier, "ranker", DS - DAY))
    train(BasisDay(lake, changed, DS, BASIS))
    assert _first_test(changed, DS) == FIRST_TEST.isoformat()
    verdict = evaluate(BasisDay(lake, changed, DS, BASIS))
    rows = lake.read(RANKER_SCORES).collect()
    assert {row["test_day"] for row in rows if row["model"] == "live"} == {DS - DAY, DS}
    assert {row["test_day"] for row in rows if row["model"] == "candidate"} == {
        FIRST_TEST + back * DAY for back in range(7)
    }
    unseen = [row["ndcg"] for row in rows if row["model"] == "live"]
    assert verdict.metrics["ndcg_at_5", "live"] == pytest.approx(np.mean(unseen))


def test_a_young_shop_leaves_half_of_its_days_to_train_on(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    young = replace(deployment, ranker=replace(deployment.ranker, train_days=4, gate_days=4, validation_days=3))
    # anchors DS - 8 to DS - 2 are seven: with two test days, six lie before them, three of these for validation
    assert first_test_day(BasisDay(lake, young, DS, BASIS)) == DS - DAY
    youngest = replace(young, ranker=replace(young.ranker, train_days=4, gate_days=1))
    assert first_test_day(BasisDay(lake, youngest, DS, BASIS)) == DS


def _counting(batch: ExampleBatch) -> Tensor:
    scores = torch.zeros(len(batch.items), N_ITEMS, dtype=torch.float64)
    past = batch.past
    scores[past.user, past.items - 1] = (past.n_short + past.n_long + 1e-3 * past.n_short).double()
    return scores


def _worse(batch: ExampleBatch) -> Tensor:
    """Counting that forgets the most frequent item of some users."""
    scores = _counting(batch)
    forgetful = torch.arange(len(scores)) % 4 == 0
    scores[forgetful, scores[forgetful].argmax(dim=1)] = -1.0
    return scores


def _better(batch: ExampleBatch) -> Tensor:
    """Counting that knows one target of each user."""
    scores = _counting(batch)
    scores[batch.target_query, batch.targets - 1] += (torch.arange(len(batch.targets)) % 2) * 1e6
    return scores


@pytest.mark.parametrize(
    ("scorer", "low", "high", "outcome"), [(_worse, -0.2, -0.05, "refused"), (_better, 0.1, 1.0, "live")]
)
def test_a_ranker_ten_percent_below_counting_does_not_go_live_and_a_better_one_does(
    own: tuple[Lake, Deployment],
    monkeypatch: pytest.MonkeyPatch,
    scorer: Scorer,
    low: float,
    high: float,
    outcome: str,
) -> None:
    lake, deployment = own
    deployment = replace(deployment, ranker=replace(deployment.ranker, gate_baselines=("frequency_365d",)))
    monkeypatch.setattr("jobs.evaluate_ranker.ranker_scorer", lambda *args: scorer)
    verdict = evaluate(BasisDay(lake, deployment, DS, BASIS))
    assert low < verdict.metrics["uplift", "candidate over frequency_365d, 7 days"] < high
    found = decide(lake, EvaluateConfig(deployment, DS), verdict)
    assert found.name == outcome
    assert (live_ranker(deployment) is not None) == (outcome == "live")


def test_too_few_users_keep_what_is_live_and_the_run_says_so(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    deployment = replace(deployment, ranker=replace(deployment.ranker, gate_min_users=N_USERS + 1))
    verdict = evaluate(BasisDay(lake, deployment, DS, BASIS))
    outcome = decide(lake, EvaluateConfig(deployment, DS), verdict)
    assert outcome.name == "kept"
    said = "24 users over 7 days prove nothing, expected at least ranker.gate_min_users = 25; what is live stays"
    assert outcome.text == f"ds={DS}: {said}"
    assert live_ranker(deployment) is None
    assert decide(lake, EvaluateConfig(deployment, DS, force=True), verdict).name == "live"


def test_the_scores_of_the_run_nearest_to_a_day_count(own: tuple[Lake, Deployment]) -> None:
    lake, deployment = own
    number = (DS - date(1970, 1, 1)).days
    assert earlier_scores(BasisDay(lake, deployment, DS, BASIS)) is None
    first = UserDays(
        ["a", "b", "a"], np.array([number - 2, number - 2, number - 1]), {"candidate": np.array([0.1, 0.2, 0.3])}
    )
    write_scores(BasisDay(lake, deployment, DS - DAY, BASIS), first)
    values = {"candidate": np.array([0.9, np.nan]), "live": np.array([0.8, 0.7])}
    write_scores(
        BasisDay(lake, deployment, DS - 2 * DAY, BASIS), UserDays(["a", "c"], np.array([number - 2] * 2), values)
    )
    found = earlier_scores(BasisDay(lake, deployment, DS, BASIS))
    assert found is not None
    assert list(zip(found.user, found.day.tolist(), strict=True)) == [
        ("a", number - 2),
        ("a", number - 1),
        ("c", number - 2),
    ]
    assert found.values["candidate"].tolist() == pytest.approx([0.9, 0.3, np.nan], nan_ok=True)
    assert found.values["live"].tolist() == pytest.approx([0.8, np.nan, 0.7], nan_ok=True)
    # a run that judges one of these days itself: its own scores count
    now = UserDays(["d"], np.array([number - 1]), {"candidate": np.array([0.5])})
    whole = pooled(now, found)
    assert whole.user == ["a", "c", "d"]
    assert whole.values["live"].tolist() == pytest.approx([0.8, 0.7, np.nan], nan_ok=True)


def test_the_best_baseline_is_chosen_on_days_before_the_pooled_ones() -> None:
    days = [DS - back * DAY for back in range(30, 0, -1)]
    daily = anchors_of(days, DS, DS, 7)
    assert daily["test"] == [DS - DAY]
    assert daily["recent"][-1] == DS - 2 * DAY
    # the pooled days are DS - 6 to DS: their anchors are DS - 7 to DS - 1
    assert daily["earlier"] == daily["recent"][:8]
    assert daily["earlier"][-1] == DS - 8 * DAY
    first_run = anchors_of(days, FIRST_TEST, DS, 7)
    assert (len(first_run["test"]), first_run["earlier"]) == (7, first_run["recent"])
    young = anchors_of(days[-3:], DS, DS, 7)
    assert young["earlier"] == young["recent"] == days[-3:-1]
