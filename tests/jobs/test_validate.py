"""The gate of a day: what it reads, what fails it, what it skips, and that a failure blocks publishing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from jobs.basis.basis import BasisError
from jobs.basis.matrix import load_matrix
from jobs.compute_drift import write_drift
from jobs.config.sections import Deployment, GatesSection
from jobs.gates.addresses import docs_page
from jobs.gates.autoencoder_measures import measure_autoencoder
from jobs.gates.checkpoints import GateOutcome, GateRun
from jobs.gates.measured import Measured
from jobs.gates.measures import (
    measure_basis,
    measure_catalogue,
    measure_drift,
    measure_input,
    measure_slices,
    usual_volume,
)
from jobs.ingest import ingest
from jobs.lake.day import BasisDay, Day
from jobs.lake.lake import Lake
from jobs.publish_snapshot import require_gates
from jobs.runtime.pages import docs_index
from jobs.store.publish import PublishRefusedError
from jobs.store.tables import slice_state, validated_state
from jobs.validate import (
    ROW_TEXT,
    GateError,
    landed_since,
    last_passed,
    require_success,
    summary,
    table_checks,
    validate_day,
)
from lte_builders import BASIS, DS, key_of, put, put_basis, schema_of
from lte_models.averages.drift import basis_extent
from schemas import (
    EVENT_DAYS,
    GATE_RESULTS,
    INGEST_LOG,
    INTERACTIONS,
    ITEM_EMBEDDINGS,
    LTE_DRIFT,
    METRICS,
    QUARANTINE,
    USER_LTE,
)
from two_days import VECTORS, YESTERDAY, fill, without_models

HOSTILE = "<script>alert(1)</script>"


def gated(deployment: Deployment, **limits: Any) -> Deployment:
    return dataclasses.replace(deployment, gates=dataclasses.replace(GatesSection(), **limits))


@pytest.fixture(scope="module")
def shop(sail: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Deployment, Path]:
    """A lake of two good days, which the tests of measures only read."""
    from deployments import CONFIG
    from jobs.config.loading import load_deployment

    folder = tmp_path_factory.mktemp("shop")
    (folder / "deployment.toml").write_text(CONFIG)
    deployment = without_models(load_deployment(folder / "deployment.toml", environ={}))
    lake = Lake(sail, deployment.paths.lake)
    fill(lake, deployment)
    return lake, deployment, folder / "deployment.toml"


def by_label(measured: list[Measured]) -> dict[str, Measured]:
    return {each.label: each for each in measured}


@pytest.mark.slow
def test_a_good_day_passes_and_leaves_results_metrics_and_pages(shop) -> None:
    lake, deployment, _ = shop
    outcomes = validate_day(Day(lake, deployment, DS))
    assert [outcome for outcome in outcomes if not outcome.success] == []
    require_success(outcomes, DS)
    require_gates(lake, DS)  # what publishing asks for
    assert validated_state(lake, DS) == slice_state(Day(lake, deployment, DS))
    rows = lake.read(GATE_RESULTS, where={"ds": DS}).collect()
    assert len(rows) == len(outcomes) == len({(row["table"], row["expectation"]) for row in rows})
    metrics = {(r["metric"], r["label"]): r["value"] for r in lake.read(METRICS, where={"job": "validate"}).collect()}
    assert metrics["n_expectations", ""] == len(outcomes)
    assert metrics["unknown_share", "uniform/365-60"] == pytest.approx(1 / 33)  # ghost of 31 + 2 in the window
    assert (metrics["n_users_lost", "uniform/365-60"], metrics["n_active_users", "uniform/365-60"]) == (0, 1)
    index = docs_index(deployment, DS)
    for row in rows:
        if row["skipped"] is None:
            assert (index.parent / docs_page(row["table"], row["expectation"], DS)).exists(), row
    pages = [path.read_text() for path in index.parent.rglob("*.html")]
    assert not [page for page in pages if "<script" in page or "<link" in page or "src=" in page]
    assert "Content-Security-Policy" in index.read_text()
    again = validate_day(Day(lake, deployment, DS))
    assert again == outcomes


def test_without_yesterday_comparisons_are_skipped_and_say_so(shop) -> None:
    lake, deployment, _ = shop
    measured = [
        *measure_slices(Day(lake, deployment, YESTERDAY), is_stale=False),
        *measure_drift(Day(lake, deployment, YESTERDAY)),
    ]
    run = GateRun(YESTERDAY)
    outcomes = [outcome for each in measured for outcome in run.measured(each)]
    skipped = {outcome.expectation: outcome.skipped for outcome in outcomes if outcome.skipped}
    assert all(outcome.success for outcome in outcomes)
    why = f"no LTEs of {YESTERDAY - timedelta(days=1)} to compare with"
    assert skipped["expect_column_max_to_be_between(users_lost_share) of uniform/365-60"] == why
    assert skipped["expect_column_min_to_be_between(cosine_p01) of recency/365-60"] == why
    assert why in summary(outcomes, YESTERDAY, Path("index.html"))


def hash_of(user_id: str) -> str:
    """What a log shows instead of the user."""
    return "#" + hashlib.sha256(user_id.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("expectation", "rows", "shown"),
    [
        (
            "expect_compound_columns_to_be_unique(user_id, item_id)",
            [{"user_id": "ann", "item_id": "i7"}, {"user_id": None, "item_id": "i8"}],
            [{"user_id": hash_of("ann"), "item_id": "i7"}, {"user_id": None, "item_id": "i8"}],
        ),
        ("expect_column_values_to_match_regex(user_id)", ["ann", None, 17], [hash_of("ann"), None, hash_of("17")]),
        ("expect_column_values_to_be_in_set(interaction_type)", ["gift"], ["gift"]),
        (
            "expect_column_values_to_be_in_set(reason)",
            [{"raw": '{"user_id": "ann"}', "detail": "user_id = ann", "found_user_id": "ann", "line": 3}],
            [{"raw": ROW_TEXT, "detail": ROW_TEXT, "found_user_id": hash_of("ann"), "line": 3}],
        ),
    ],
)
def test_the_message_of_a_failed_gate_names_no_user(expectation: str, rows: list[Any], shown: list[Any]) -> None:
    failed = GateOutcome("t", expectation, False, "1 of 2", "none", sample=json.dumps(rows))
    with pytest.raises(GateError) as error:
        require_success([failed], DS)
    assert json.loads(str(error.value).partition("; rows: ")[2]) == shown


@pytest.mark.slow
def test_a_failed_gate_names_all_and_blocks_publishing(lake, deployment, deployment_file) -> None:
    configured = without_models(deployment)
    fill(lake, configured)
    # v's LTE of ds is another vector than its interactions give: too far from yesterday's for any bound.
    rows = [
        (HOSTILE, [0.0, 1.0], 1, 0, BASIS, DS, "uniform", "365-60"),
        ("u", [0.9, 0.9], 31, 0, BASIS, DS, "uniform", "365-60"),
        ("v", [1.0, 0.0], 1, 1, BASIS, DS, "uniform", "365-60"),
        ("w", [0.0, 1.0], 0, 0, BASIS, DS, "uniform", "365-60"),
    ]
    where = {"ds": DS, "method": "uniform", "lte_window": "365-60"}
    lake.replace(lake.spark.createDataFrame(rows, schema_of(USER_LTE)), USER_LTE, where)
    write_drift(Day(lake, configured, DS))
    environment = {"LTE_AUTOENCODER__ENABLED": "false", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "jobs.validate", "--config", str(deployment_file), "--ds", str(DS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert f"GateError: ds={DS}: " in done.stderr
    for named in (  # u, v and w break the bound
        "table user_lte: expect_column_values_to_be_between(norm_share): observed 1 of 7 rows do not fit",
        "table user_lte: expect_column_values_to_be_in_set(is_zero_without_items)",
        "table user_lte: expect_column_max_to_be_between(n_interactions_missing) of uniform/365-60: observed 1,",
        "table lte_drift: expect_column_max_to_be_between(n_bound_violations) of uniform/365-60: observed 3,",
        "expected at most 0.0 (gates.max_bound_violations)",
        f'"user_id": "{hash_of("v")}"',
    ):
        assert named in done.stderr, done.stderr
    assert [user for user in "uvw" if f'"{user}"' in done.stderr] == []
    assert HOSTILE not in done.stderr
    with pytest.raises(PublishRefusedError, match="n_bound_violations"):
        require_gates(lake, DS)
    address = docs_page("user_lte", "expect_column_values_to_be_between(norm_share)", DS)
    page = docs_index(deployment, DS).parent / address
    assert HOSTILE not in page.read_text()
    assert last_passed(lake, DS + timedelta(days=1)) is None  # so the next day reads again what landed on this one


@pytest.mark.slow
def test_rows_that_change_while_the_gates_read_them_are_not_recorded(
    lake, deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = without_models(deployment)
    fill(lake, configured)
    where = {"ds": DS, "method": "uniform", "lte_window": "365-60"}
    seen = slice_state(Day(lake, configured, DS))
    assert seen.n_rows == 3

    def meddling(lake_: Lake, basis_version: str) -> Measured:
        lake.delete(USER_LTE, {**where, "user_id": "v"})
        return measure_basis(lake_, basis_version)

    monkeypatch.setattr("jobs.validate.measure_basis", meddling)
    with pytest.raises(
        GateError, match=rf"expected {re.escape(str(seen))} to the end .*, got 2 rows.*run validate again"
    ):
        validate_day(Day(lake, configured, DS))
    assert validated_state(lake, DS) is None
    assert lake.read(GATE_RESULTS, where={"ds": DS}).count() == 0


def test_user_lte_without_rows_is_named(lake, deployment) -> None:
    with pytest.raises(GateError, match=f"table user_lte, ds={DS}, method=uniform, lte_window=365-60: no rows"):
        validate_day(Day(lake, deployment, DS))


def test_an_earlier_pass_does_not_outlive_a_validation_that_stops(engine_lake, deployment) -> None:
    lake = engine_lake
    passes = [("t", "e", True, "", "", None, None, None, None, day) for day in (YESTERDAY, DS)]
    put(lake, GATE_RESULTS, passes)
    require_gates(lake, DS)
    with pytest.raises(GateError, match="no rows to validate"):
        validate_day(Day(lake, deployment, DS))
    with pytest.raises(PublishRefusedError, match=f"gate_results has no row of ds={DS}"):
        require_gates(lake, DS)
    require_gates(lake, YESTERDAY)  # another day's stays
    put(lake, GATE_RESULTS, passes[1:])
    put(lake, USER_LTE, [("u", [1.0, 0.0], 1, 0, BASIS, DS, "uniform", "365-60")])
    put_basis(lake, {"a": [1.0, 0.0]})
    put_basis(lake, {"b": [0.0, 1.0]}, start=4)  # positions 1 to 3 are gone
    with pytest.raises(BasisError):
        validate_day(Day(lake, deployment, DS))
    assert lake.read(GATE_RESULTS, where={"ds": DS}).count() == 0


def failing(measured: Measured) -> set[str]:
    outcomes = GateRun(DS).measured(measured)
    return {o.expectation.partition("(")[2].partition(")")[0] for o in outcomes if not o.success}


def test_every_limit_of_measured_values_can_fail(shop) -> None:
    lake, deployment, _ = shop
    strict = {
        "min_users": 4,
        "max_users_lost_share": -1.0,
        "max_users_change_share": -1.0,
        "max_unknown_share": 0.01,
        "max_zero_share": 0.3,
        "min_cosine_p01": 1.0,
        "max_drift_p99": 0.0,
        "max_bound_violations": -1,
        "max_unembedded_share": -1.0,
    }
    gates = GatesSection()
    for name, value in strict.items():  # past the configuration's own checks: what counts is the comparison
        object.__setattr__(gates, name, value)
    strictest = dataclasses.replace(deployment, gates=gates)
    served = by_label(measure_slices(Day(lake, strictest, DS), is_stale=False))["uniform/365-60"]
    assert failing(served) == {
        "n_users",
        "users_lost_share",
        "users_change_share",
        "unknown_share",
        "zero_share",
    }
    assert failing(by_label(measure_drift(Day(lake, strictest, DS)))["uniform/365-60"]) == {
        "n_bound_violations",
        "cosine_p01",
        "drift_p99",
    }
    assert failing(measure_catalogue(BasisDay(lake, strictest, DS, BASIS))) == {"unembedded_share"}


def put_days(lake: Lake, counts: dict[date, int]) -> None:
    put(lake, EVENT_DAYS, [(day, n, "0" * 32) for day, n in counts.items()])


def test_the_usual_volume_is_that_of_the_weekday_or_of_a_young_shop() -> None:
    monday = date(2024, 7, 1)

    def week(n: int) -> date:
        return monday - timedelta(days=7 * n)

    counts = {week(1): 100, week(2): 300, week(3): 50, week(4): 200, week(5): 9000}
    every_day = {monday - timedelta(days=n): 7 for n in range(1, 40)} | counts
    assert usual_volume(every_day, week(5), monday) == 100  # the lower median of 50, 100, 200, 300
    assert usual_volume(every_day, week(2), monday) == 100  # of 100 and 300: the shop is two weeks old
    closed = {day: n for day, n in every_day.items() if day.weekday() != 0}
    assert usual_volume(closed, week(5), monday) == 0
    # A week old: all seven days count, six of 7 and one of 100.
    assert usual_volume(every_day, week(1), monday) == 7
    assert usual_volume(every_day, monday - timedelta(days=2), monday) == 0


def test_a_day_without_data_or_with_a_tenth_fails_and_the_next_one_passes(lake, deployment) -> None:
    week = timedelta(days=7)
    usual = {DS - timedelta(days=n): 100 for n in range(2, 29)}
    put_days(lake, usual)
    nothing = measure_input(Day(lake, deployment, YESTERDAY))
    assert (nothing.values["n_events"], nothing.values["n_events_usual"], nothing.values["event_age_days"]) == (
        0,
        100,
        1,
    )
    outcomes = GateRun(YESTERDAY).measured(nothing)
    assert failing(nothing) == {"volume_share"}
    assert "HEADLINE: event_days: the day has far fewer" in summary(outcomes, YESTERDAY, Path("index.html"))
    with pytest.raises(GateError, match=r"volume_share.*observed 0,.*gates\.min_volume_share"):
        require_success(outcomes, YESTERDAY)
    put_days(lake, {YESTERDAY: 10, DS: 90, DS + week: 501})
    assert failing(measure_input(Day(lake, deployment, YESTERDAY))) == {"volume_share"}
    assert failing(measure_input(Day(lake, deployment, DS))) == set()  # the day after it is not blamed
    assert failing(measure_input(Day(lake, deployment, DS + week))) == {"volume_excess"}
    assert failing(measure_input(Day(lake, gated(deployment, max_volume_share=6.0), DS + week))) == set()
    late = measure_input(Day(lake, deployment, DS + 2 * week + timedelta(days=1)))
    assert late.values["event_age_days"] == 8
    assert "event_age_days" in failing(late)


def test_days_of_a_small_shop_are_not_judged_by_chance(lake, deployment) -> None:
    put_days(lake, {DS - timedelta(days=n): 10 for n in range(1, 29)})
    measured = measure_input(Day(lake, deployment, DS))
    assert failing(measured) == set()
    assert measured.skipped["volume_share"] == "10 interactions are usual, and 10 or fewer say nothing"
    assert (
        measure_input(Day(lake, deployment, DS - timedelta(days=90)))
        .skipped["event_age_days"]
        .startswith("no interaction")
    )


def test_zero_ltes_alone_are_a_headline_and_fail(lake, deployment) -> None:
    def rows(method: str) -> list[tuple]:
        return [(user, [0.0, 0.0], 0, 0, BASIS, DS, method, "365-60") for user in "abc"]

    put_days(lake, {DS - timedelta(days=100): 3})  # interactions in the window, which none of the LTEs has
    put(lake, USER_LTE, rows("uniform"))
    put(lake, USER_LTE, [*rows("recency"), ("d", [1.0, 0.0], 1, 0, BASIS, DS, "recency", "365-60")])
    served = by_label(measure_slices(Day(lake, without_models(deployment), DS), is_stale=True))
    assert (served["uniform/365-60"].values["zero_share"], served["recency/365-60"].values["zero_share"]) == (1.0, 0.75)
    assert failing(served["uniform/365-60"]) == {"zero_share"}
    assert failing(served["recency/365-60"]) == set()
    outcomes = GateRun(DS).measured(served["uniform/365-60"])
    assert "HEADLINE: user_lte: nearly every LTE is the zero vector" in summary(outcomes, DS, Path("index.html"))


def test_zero_ltes_of_a_shop_younger_than_the_windows_end_are_right(lake, deployment) -> None:
    put_days(lake, {DS - timedelta(days=3): 3})
    put(lake, USER_LTE, [("a", [0.0, 0.0], 0, 0, BASIS, DS, method, "365-60") for method in ("uniform", "recency")])
    served = by_label(measure_slices(Day(lake, without_models(deployment), DS), is_stale=True))["uniform/365-60"]
    assert served.skipped["zero_share"] == "no interaction in the window, or no users"
    assert failing(served) == set()


def test_a_basis_with_repeats_and_gaps_and_nan_do_not_pass(lake) -> None:
    put_basis(lake, {"a": [1.0, 0.0]})
    put_basis(lake, {"a": [0.0, 1.0]}, start=4)
    put_basis(lake, {"b": [0.0, 1.0]}, start=4)
    assert failing(measure_basis(lake, BASIS)) == {"n_repeated_items", "n_index_gaps", "n_repeated_indices"}
    assert failing(measure_basis(lake, "another")) == {"n_vectors"}
    good = measure_basis(lake, BASIS)
    odd = dataclasses.replace(good, values=dict.fromkeys(good.values, float("nan")))
    assert failing(odd) == {limit.column for limit in good.limits}


def test_users_who_are_lost_are_counted_and_shown(lake, deployment) -> None:
    rows = [(user, [1.0, 0.0], 1, 0, BASIS, day, "uniform", "365-60") for user, day in
            [("a", YESTERDAY), ("b", YESTERDAY), ("c", YESTERDAY), ("d", YESTERDAY), ("a", DS)]]  # fmt: skip
    put(lake, USER_LTE, rows)
    served = by_label(measure_slices(Day(lake, without_models(deployment), DS), is_stale=True))["uniform/365-60"]
    assert (served.values["users_lost_share"], served.values["users_change_share"]) == (0.75, 0.75)
    assert "stale" in served.skipped["n_interactions_missing"]
    lost = next(o for o in GateRun(DS).measured(served) if "users_lost_share" in o.expectation)
    assert not lost.success
    assert all(f'"user_id": "{user}"' in str(lost.sample) for user in "bcd")


def test_quantiles_are_of_active_fresh_users_at_one_day(lake, deployment) -> None:
    def row(user: str, n: int, cosine: float, *, offset: int = 1, stale: bool = False) -> tuple:
        return (user, offset, n, n, 0, 0, 0.0, 1 - cosine, 1.0, 1.0, cosine, None, "20-99", True, stale, DS, "uniform",
                "365-60")  # fmt: skip

    rows = [row("u1", 20, 0.9), row("u2", 20, 0.5), row("few", 19, -1.0), row("old", 99, -1.0, stale=True)]
    put(lake, LTE_DRIFT, [*rows, row("u1", 20, -1.0, offset=5)])
    found = by_label(measure_drift(Day(lake, deployment, DS)))["uniform/365-60"]
    assert found.values["n_active_users"] == 2
    assert found.values["cosine_p01"] == pytest.approx(0.504)  # 0.5 + 0.01 * 0.4
    assert found.values["drift_p99"] == pytest.approx(0.496)
    assert failing(found) == {"cosine_p01", "drift_p99"}


def test_the_autoencoder_against_yesterday_and_uniform(engine_lake, deployment) -> None:
    def rows(day: date, method: str, vectors: dict[str, list[float]]) -> list[tuple]:
        return [(user, vector, 20, 0, BASIS, day, method, "365-60") for user, vector in vectors.items()]

    now = {"same": [1.0, 0.0], "turned": [0.0, 2.0], "new": [1.0, 1.0]}
    put(engine_lake, USER_LTE, rows(DS, "autoencoder", now))
    put(engine_lake, USER_LTE, rows(YESTERDAY, "autoencoder", {"same": [1.0, 0.0], "turned": [1.0, 0.0]}))
    put(engine_lake, USER_LTE, rows(DS, "uniform", {"same": [1.0, 0.0], "new": [0.0, 1.0], "left": [1.0, 0.0]}))
    gates, *buckets = measure_autoencoder(Day(engine_lake, deployment, DS))
    values = gates.values
    assert (values["autoencoder_n_users"], values["autoencoder_n_with_yesterday"]) == (3, 2)
    assert values["autoencoder_cosine_p01"] == pytest.approx(0.01)  # of 0 and 1
    assert values["autoencoder_drift_p99"] == pytest.approx(0.99 * 5**0.5)  # of 0 and |(-1, 2)| / 1
    # less the means (2, 3) / 3 and (2, 1) / 3: (1, -3) with (1, -1) and (1, 0) with (-2, 2)
    alike, unlike = 4 / 20**0.5, -(0.5**0.5)
    assert values["autoencoder_uniform_cosine_p01"] == pytest.approx(unlike + 0.01 * (alike - unlike), abs=1e-6)
    assert values["autoencoder_uniform_cosine_p50"] == pytest.approx((unlike + alike) / 2, abs=1e-6)  # 0.09
    assert (values["n_autoencoder_users_missing"], values["n_autoencoder_users_extra"]) == (1, 1)
    assert [bucket.label for bucket in buckets] == ["autoencoder/365-60/20-99"]
    assert failing(gates) == {
        "n_autoencoder_users_missing",
        "n_autoencoder_users_extra",
        "autoencoder_cosine_p01",
        "autoencoder_drift_p99",
        "autoencoder_uniform_cosine_p50",
    }
    near = dataclasses.replace(GatesSection(), min_autoencoder_uniform_cosine_p50=0.09)
    [better, *_] = measure_autoencoder(Day(engine_lake, dataclasses.replace(deployment, gates=near), DS))
    assert "autoencoder_uniform_cosine_p50" not in failing(better)


def test_drift_leaves_the_autoencoder_alone(lake, deployment) -> None:
    fill(lake, deployment)
    for day in (YESTERDAY, DS):
        vector = [1.0, 0.0] if day == DS else [-1.0, 0.0]  # no bound covers it
        where = {"ds": day, "method": "autoencoder", "lte_window": "365-60"}
        rows = [(user, vector, 1, 0, BASIS, day, "autoencoder", "365-60") for user in "uvw"]
        lake.replace(lake.spark.createDataFrame(rows, schema_of(USER_LTE)), USER_LTE, where)
    metrics = write_drift(Day(lake, deployment, DS))
    methods = {row["method"] for row in lake.read(LTE_DRIFT, where={"ds": DS}).select("method").distinct().collect()}
    assert methods == {"uniform", "recency"}
    assert metrics["norm_max", "autoencoder/365-60"] == 1.0


def test_what_landed_since_the_last_passed_day(lake) -> None:
    def gate(day: int, success: bool) -> tuple:
        return ("t", f"e{success}", success, "", "", None, None, None, None, date(2025, 6, day))

    put(lake, GATE_RESULTS, [gate(1, True), gate(2, True), gate(3, True), gate(3, False), gate(9, True)])
    assert last_passed(lake, date(2025, 6, 5)) == date(2025, 6, 2)
    days = lake.spark.createDataFrame([(date(2025, 6, day),) for day in range(1, 8)], "landing_ds date")
    condition = landed_since(date(2025, 6, 2), date(2025, 6, 5))("landing_ds")
    assert sorted(row[0].day for row in days.where(condition).collect()) == [3, 4, 5]


def test_rows_of_a_file_that_came_late_into_an_older_day_are_validated(lake, deployment) -> None:
    def land(day: date, name: str, user: str) -> None:
        folder = Path(deployment.paths.landing) / f"interactions/ds={day}"
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["user_id,item_id,event_ts,interaction_type", f"{user},i1,{day}T10:00:00Z,click", f"{user},i1,no,click"]
        (folder / name).write_text("\n".join(lines))

    def files_read(day: date) -> tuple[set[str], ...]:
        matrix = load_matrix(key_of(lake))
        extent = basis_extent(matrix.vectors, matrix.known_ages(day) >= 0)
        slices = {
            table: rows for table, rows, _ in table_checks(BasisDay(lake, deployment, day, BASIS), matrix, extent)
        }
        of = ((INTERACTIONS, "user_id"), (INGEST_LOG, "source_file"), (QUARANTINE, "source_file"))
        return tuple({row[0] for row in slices[table].select(column).collect()} for table, column in of)

    put_basis(lake, VECTORS)
    before, late, passed, new, newest = (DS + timedelta(days=n) for n in range(-2, 3))
    for day in (before, late, passed):
        land(day, "a.csv", f"u{day}")
        ingest(Day(lake, deployment, day))
        put(lake, GATE_RESULTS, [("t", "e", True, "", "", None, None, None, None, day)])
    land(late, "late.csv", "late")
    land(new, "a.csv", "new")
    ingest(Day(lake, deployment, new))
    ingest(Day(lake, deployment, new))  # a rerun, which has no hole left to fill, may not forget
    users = {f"u{late}", f"u{passed}", "late", "new"}
    names = [f"ds={late}/a.csv", f"ds={late}/late.csv", f"ds={passed}/a.csv", f"ds={new}/a.csv"]
    files = {f"interactions/{name}" for name in names}
    assert files_read(new) == (users, files, files)
    put(lake, GATE_RESULTS, [("t", "e", False, "", "", None, None, None, None, new)])
    ingest(Day(lake, deployment, newest))  # brings nothing; what the gates of the day before refused is read again
    assert files_read(newest) == (users, files | {""}, files)
    lake.replace(lake.spark.createDataFrame([], schema_of(GATE_RESULTS)), GATE_RESULTS, {"ds": new})
    put(lake, GATE_RESULTS, [("t", "e", True, "", "", None, None, None, None, new)])
    assert files_read(newest) == (set(), {""}, set())


def test_the_basis_of_the_tests_is_what_the_matrix_holds(shop) -> None:
    lake, _, _ = shop
    assert load_matrix(key_of(lake)).vectors.shape == (3, 2)
    assert lake.read(ITEM_EMBEDDINGS).count() == 3
