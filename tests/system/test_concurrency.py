"""Two jobs at once on one lake, some killed: the tables end as after the same jobs one after the other.

``make test-concurrency`` runs 200 random pairs. ``make test`` runs the pairs that once destroyed a lake.
"""

from __future__ import annotations

import random

import pytest

from job_pairs import FIRST, SECOND, USER, Pair, PairRunner, draw


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> PairRunner:
    return PairRunner(tmp_path_factory.mktemp("pairs"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "pair",
    [
        Pair("empty", (("ingest", SECOND), ("ingest", SECOND)), 0.0, (None, None), 0),
        Pair("ingested", (("embed_items", FIRST), ("embed_items", SECOND)), 0.0, (None, None), 120),
        Pair("embedded", (("compute_lte", SECOND), ("erase", USER)), 0.5, (1.5, None), 120),
    ],
    ids=["two ingests", "two bases", "an average that is killed beside an erasure"],
)
def test_pairs_that_once_destroyed_a_lake(pair: Pair, runner: PairRunner) -> None:
    runner.run(pair)


@pytest.mark.pairs
@pytest.mark.timeout(0)
def test_random_pairs_end_as_some_serial_order(runner: PairRunner, request: pytest.FixtureRequest) -> None:
    """The seed and the number of pairs are printed, so that a failure can be made again."""
    n_pairs, seed = (request.config.getoption(name) for name in ("--pairs", "--pairs-seed"))
    numbers = random.Random(seed)
    pairs = [draw(numbers) for _ in range(n_pairs)]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{n_pairs} pairs, seed {seed}")
        for number, pair in enumerate(pairs, start=1):
            print(f"{number} of {n_pairs}: {runner.run(pair)}", flush=True)
