"""A method that nothing published reads is refused alone; everything else still stops the day."""

import dataclasses
from datetime import timedelta

import pytest

from jobs.config.loading import ConfigError
from jobs.gates.checkpoints import GateOutcome
from jobs.gates.refusals import is_blocking, refusal_text, refusing
from jobs.lake.day import Day
from jobs.publish_snapshot import require_gates
from jobs.validate import GateError, last_passed, require_success, summary, validate_day
from lte_builders import BASIS, DS, put
from schemas import GATE_RESULTS, METRICS, USER_LTE
from two_days import YESTERDAY, fill, without_models

FAILED = GateOutcome("user_lte", "expect_column_min_to_be_between(autoencoder_cosine_p01)", False, "-1", "at least 0.5")


def test_only_a_failure_of_a_learned_method_is_marked():
    assert refusing(FAILED, "autoencoder/365-60").refused_method == "autoencoder"
    assert refusing(FAILED, "uniform/365-60") is FAILED
    assert refusing(FAILED, "behaviour/365-60") is FAILED  # an average: its bound is a law, and a breach is a defect
    held = dataclasses.replace(FAILED, success=True)
    assert refusing(held, "autoencoder/365-60") is held


def test_a_refusal_does_not_stop_the_day_but_another_failure_beside_it_does():
    refused = refusing(FAILED, "autoencoder/365-60")
    require_success([refused], DS)
    with pytest.raises(GateError, match="1 of 2 expectations failed:\n  table lte_drift: bound"):
        require_success([refused, GateOutcome("lte_drift", "bound", False, "3", "0")], DS)


def test_rows_of_an_earlier_version_have_no_such_column():
    assert is_blocking({"success": False})
    assert not is_blocking({"success": True})
    assert not is_blocking({"success": False, "refused_method": "autoencoder"})


def test_no_served_part_can_read_a_learned_method(deployment):
    with pytest.raises(ConfigError, match=r"publish\.method: expected one of lte\.methods"):
        dataclasses.replace(deployment, publish=dataclasses.replace(deployment.publish, method="autoencoder"))


@pytest.mark.slow
def test_a_refused_autoencoder_leaves_the_day_to_be_published(lake, deployment):
    fill(lake, without_models(deployment))
    for day, turned in ((YESTERDAY, [1.0, 0.0]), (DS, [-1.0, 0.0])):  # u's encoder turned round over night
        vectors = {"u": (turned, 31), "v": ([0.0, 1.0], 1), "w": ([0.5, 0.5], 0)}
        rows = [(user, z, n, 0, BASIS, day, "autoencoder", "365-60") for user, (z, n) in vectors.items()]
        put(lake, USER_LTE, rows)
    outcomes = validate_day(Day(lake, deployment, DS))
    refused = [outcome for outcome in outcomes if outcome.refused_method]

    assert [outcome for outcome in outcomes if not outcome.success] == refused
    assert {outcome.refused_method for outcome in refused} == {"autoencoder"}
    assert "autoencoder_cosine_p01" in refused[0].expectation + refused[1].expectation
    require_success(outcomes, DS)
    require_gates(lake, DS)  # what publishing asks for
    assert last_passed(lake, DS + timedelta(days=1)) == DS
    marked = lake.read(GATE_RESULTS, where={"ds": DS}).where("refused_method = 'autoencoder'")
    assert marked.count() == len(refused)
    counted = lake.read(METRICS, where={"ds": DS, "job": "validate", "metric": "n_refused"}).collect()
    assert [row["value"] for row in counted] == [len(refused)]
    text = summary(outcomes, DS, deployment.paths.data_docs)
    assert refusal_text(refused[0]) in text
    assert "nothing published reads it" in text
    assert "autoencoder.enabled = false" in text
