"""Judge the ranker of ds beside the live ranker and the baselines, and decide which ranker is live.

Every next item of a test day counts. The test day is ds. On a first run the ranker was trained without the last
``ranker.gate_days`` days, and all of them are test days. The scores per user are kept in table ranker_scores. The gate
pools the candidates of the last days, each on the day after its training.

The new ranker goes live only if all of this holds: its scores are finite, it is not below the best baseline on the
pooled days, it is not significantly worse than the live ranker, its coverage has not collapsed, and it reads the
published LTEs. Otherwise the live ranker stays, and the job exits 1 with the reasons.

When no user came on ds, or the pooled days have too few users, no comparison is possible: the live ranker stays, and
the job succeeds. The ranker of a backfill, or of a day before the live ranker's day, is judged and recorded but never
goes live.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from pyspark.sql import functions as F

from jobs.baselines.scorers import baseline_scorers
from jobs.baselines.tuning import best_baseline
from jobs.basis.basis import configured_basis, known_items, read_basis
from jobs.config.loading import load_deployment
from jobs.config.models import BASELINES
from jobs.config.sections import Deployment
from jobs.config.window import day_number
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake, open_lake
from jobs.ranker.items import CandidateItems, load_candidates
from jobs.ranker.judging.evaluation import DayFacts, Scored, day_facts, score
from jobs.ranker.judging.live import LteKind, live_bundle_folder, live_ranker, make_live, require_pair
from jobs.ranker.judging.pool import UserDays, earlier_scores, pooled, write_scores
from jobs.ranker.judging.verdict import LIVE, Verdict, judge, judge_pool, nobody_came
from jobs.ranker.readers import ExampleReader, days_with_examples, stage_examples, user_ids
from jobs.ranker.scorers import BATCH_USERS, TOP, Scorer, ranker_scorer
from jobs.registry.bundles import ModelError, bundle_folder
from jobs.registry.records import record_model
from jobs.registry.tracking import track_test_day
from jobs.runtime.entry import is_off, run_job, say
from jobs.runtime.flags import RUN_TYPES, job_parser
from jobs.runtime.text import counted
from lte_models.ranker.examples import ExampleCollate
from lte_models.training.bundle import Bundle, load_bundle
from lte_models.training.manifest import BundleError, Manifest, read_manifest
from lte_models.training.trainer import leave_a_core_free
from schemas import INTERACTIONS, LIVE_SNAPSHOT, METRICS

JOB = "evaluate_ranker"
RECENT_ANCHORS = 14

# Measured every day. The others, which search for neighbours, are measured where ranker.gate_baselines names them.
DAILY_BASELINES = BASELINES[:6]
MIN_USERS = 2


@dataclass(frozen=True)
class EvaluateConfig:
    """Flags of this job.

    Attributes:
        deployment: Where everything is.
        ds: Data day.
        is_backfill: Judge and record, but do not change the live ranker.
        force: Make the new ranker live although the gate found reasons against it, or a newer ranker is live.
    """

    deployment: Deployment
    ds: date
    is_backfill: bool = False
    force: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate on ``--ds`` and make the new ranker live if nothing speaks against it."""
    config = parse_flags(argv)
    if is_off(JOB, "ranker", enabled=config.deployment.ranker.enabled):
        return
    leave_a_core_free()
    basis_version = configured_basis(config.deployment)
    with open_lake(config.deployment, JOB, config.ds) as lake:
        if was_too_early(lake, config.ds):
            print(f"ds={config.ds}: train_ranker had too few days, nothing to judge; what is live stays", flush=True)
            lake.record_metrics(config.ds, JOB, nobody_came(0).metrics | {"went_live": 0.0})
            return
        day = BasisDay(lake, config.deployment, config.ds, basis_version)
        verdict = evaluate(day)
        outcome = decide(lake, config, verdict)
        counts = next_items(day)
        lake.record_metrics(config.ds, JOB, verdict.metrics | counts | {"went_live": float(outcome.name == "live")})
        manifest = read_manifest(bundle_folder(config.deployment, "ranker", config.ds))
        record_model(lake, JOB, manifest, outcome.name, outcome.text)
        track_test_day(config.deployment, manifest, of_models(verdict))
    if outcome.name == "refused":
        raise ModelError(outcome.text)
    print(outcome.text, flush=True)


def of_models(verdict: Verdict) -> dict[tuple[str, str], float]:
    """(metric, model) to value over all users, for MLflow: the candidate beside the live ranker and the baselines."""
    labelled = {key: value for key, value in verdict.metrics.items() if isinstance(key, tuple) and value is not None}
    models = {label for metric, label in labelled if metric == f"coverage_at_{TOP}"}
    return {(metric, label): float(value) for (metric, label), value in labelled.items() if label in models}


def next_items(day: BasisDay) -> dict[str, float]:
    """Count the next items of ``ds``, one per user and item, and the next items that no model can rank.

    Args:
        day: Test day; its lake holds interactions and the basis.

    Returns:
        ``n_next_items``, and ``n_next_items_unknown``: next items without a vector at the end of the day before.
    """
    taken = day.lake.read(INTERACTIONS, where={"event_date": day.ds}).select("user_id", "item_id").distinct()
    eve = day.ds - timedelta(days=1)
    known = known_items(read_basis(day.lake, day.basis_version), eve).select("item_id", "item_index")
    both = taken.join(F.broadcast(known), "item_id", "left")
    [counts] = both.agg(F.count("*").alias("taken"), F.count("item_index").alias("known")).collect()
    return {"n_next_items": float(counts.taken), "n_next_items_unknown": float(counts.taken - counts.known)}


def was_too_early(lake: Lake, ds: date) -> bool:
    """Whether the training of ``ds`` recorded that there was nothing to train on."""
    trained = lake.read(METRICS, where={"ds": ds, "job": "train_ranker"})
    return not trained.where("metric = 'n_epochs' and value = 0").isEmpty()


def parse_flags(argv: Sequence[str] | None) -> EvaluateConfig:
    """Read the flags and the configuration.

    Raises:
        ConfigError: See :func:`jobs.config.loading.load_deployment`.
        SystemExit: The flags are wrong (exit code 2).
    """
    parser = job_parser(JOB, __doc__)
    parser.add_argument("--backfill", action="store_true", help="a day filled in later: never goes live")
    parser.add_argument("--run-type", choices=RUN_TYPES, default="manual", help="what started the run")
    parser.add_argument("--force", action="store_true", help="go live whatever the gate says, unless LTEs do not match")
    flags = parser.parse_args(argv)
    is_backfill = flags.backfill or flags.run_type == "backfill"
    return EvaluateConfig(load_deployment(flags.config), flags.ds, is_backfill, flags.force)


def evaluate(day: BasisDay) -> Verdict:
    """Score the test days with every model, keep the scores, and judge the candidate by the pooled days.

    Args:
        day: Last test day; its lake holds training_examples, interactions and the basis, and keeps ranker_scores.

    Raises:
        jobs.registry.records.ModelError: A score is not finite.
        lte_models.training.bundle.BundleError: The bundle of ``ds`` is missing, damaged or of another basis.
    """
    settings, folder = day.deployment.ranker, bundle_folder(day.deployment, "ranker", day.ds)
    bundle = load_bundle(folder, kind="ranker", basis_version=day.basis_version)
    last = day.ds - timedelta(days=1)
    first = last - timedelta(days=settings.train_days + settings.gate_days)
    days = days_with_examples(day.lake, day.basis_version, first, last)
    if last not in days:
        return nobody_came(0)
    anchors = anchors_of(days, first_test_of(bundle.manifest), day.ds, settings.gate_days)
    try:
        return compared(day, bundle, anchors, folder / "evaluation")
    finally:
        shutil.rmtree(folder / "evaluation", ignore_errors=True)


def first_test_of(manifest: Manifest) -> date:
    """First day that a ranker did not train on: its data day, unless its manifest names an earlier one."""
    return date.fromisoformat(manifest.config.get("first_test_day", manifest.ds))


def anchors_of(days: Sequence[date], first_test: date, ds: date, gate_days: int) -> dict[str, list[date]]:
    """Anchors by their use. The targets of an anchor are interactions of the day after it.

    Args:
        days: Anchors with examples, oldest first.
        first_test: First test day of this run.
        ds: Last test day.
        gate_days: Days that the gate pools.

    Returns:
        "test": those of the test days. "recent": the 14 before them, which the baselines learn from. "earlier": those
        before all pooled days, which choose the best baseline; where a shop is too young, the recent ones.
    """
    test = [day for day in days if day >= first_test - timedelta(days=1)]
    recent = [day for day in days if day < test[0]][-RECENT_ANCHORS:]
    pooled_from = ds - timedelta(days=gate_days)
    earlier = [day for day in recent if day < pooled_from]
    return {"test": test, "recent": recent, "earlier": earlier or recent}


def compared(day: BasisDay, bundle: Bundle, anchors: Mapping[str, Sequence[date]], folder: Path) -> Verdict:
    """Stage the examples, score them with every model and judge the candidate.

    Args:
        day: Last test day; its lake holds training_examples, interactions and the basis, and keeps ranker_scores.
        bundle: The candidate.
        anchors: From :func:`anchors_of`.
        folder: Folder for the staged examples.
    """
    settings = day.deployment.ranker
    shop = load_candidates(day.lake, day.ds, day.basis_version, settings.train_days + settings.gate_days)
    collate = ExampleCollate(shop.row_of_index)
    test, recent, earlier = (
        ExampleReader(stage_examples(day.lake, anchors[name], day.basis_version, folder / name), collate, BATCH_USERS)
        for name in ("test", "recent", "earlier")
    )
    facts = day_facts(test.in_order())
    if facts.n_users < MIN_USERS:
        return nobody_came(facts.n_users)
    scorers: dict[str, Scorer] = {"candidate": ranker_scorer(bundle, shop, day.deployment.interactions.types)}
    scorers |= live_scorer(day, shop)
    names = [name for name in BASELINES if name in DAILY_BASELINES or name in settings.gate_baselines]
    baselines = baseline_scorers(shop, recent, names)
    results = scored(scorers | baselines, test, settings.cutoff)
    live = live_bundle_folder(day.deployment)
    if live is not None and LIVE in results:
        # On a first run of changed settings the live ranker was trained on most of the test days.
        first = day_number(first_test_of(read_manifest(live)))
        results[LIVE] = results[LIVE].since(np.asarray(facts.day), first)
    now = user_days(results, user_ids(test.rows), facts, settings.cutoff)
    write_scores(day, now)
    pool = pooled(now, earlier_scores(day))
    best = best_baseline({name: baselines[name] for name in settings.gate_baselines}, earlier, settings.cutoff)
    return judge_pool(judge(results, facts, shop, settings.cutoff, now), now, pool, best, settings)


def user_days(results: Mapping[str, Scored], users: Sequence[str], facts: DayFacts, cutoff: int) -> UserDays:
    """The NDCG that decides, per user-day and model.

    Args:
        results: Model name to results.
        users: User of each user-day.
        facts: Facts of the same user-days.
        cutoff: k of the NDCG that decides.
    """
    values = {model: result.values[f"ndcg_at_{cutoff}", "all"] for model, result in results.items()}
    return UserDays(users, np.asarray(facts.day), values)


def live_scorer(day: BasisDay, shop: CandidateItems) -> dict[str, Scorer]:
    """The scorer of the live ranker if the ranker can be compared; otherwise the log says why.

    The live ranker must have this basis and the configured interaction types. Its bundle must be complete, and it must
    not have been trained on ``ds``. A live ranker that cannot be compared must not block its successor.

    Args:
        day: Test day.
        shop: Items of the day.

    Returns:
        "live" to its scorer; empty if the live ranker cannot be compared.
    """
    folder = live_bundle_folder(day.deployment)
    if folder is None:
        return {}
    try:
        bundle = load_bundle(folder, kind="ranker", basis_version=day.basis_version)
        if date.fromisoformat(bundle.manifest.ds) > day.ds:
            raise ModelError(f"ranker of ds {bundle.manifest.ds}: trained on {day.ds}")
        return {"live": ranker_scorer(bundle, shop, day.deployment.interactions.types)}
    except (BundleError, ModelError) as error:
        say(JOB, f"ds {day.ds}: the live ranker is not compared: {error}")
        return {}


def scored(scorers: Mapping[str, Scorer], test: ExampleReader, cutoff: int) -> dict[str, Scored]:
    """Score the test day with every model.

    Args:
        scorers: Name to scorer.
        test: Examples.
        cutoff: k of the gate; metrics at 10 are reported too.

    Raises:
        ModelError: A score is not finite.
    """
    found = {}
    for name, scorer in scorers.items():
        try:
            found[name] = score(scorer, test, sorted({TOP, cutoff}))
        except ValueError as error:
            raise ModelError(f"{name}: {error}; the live ranker stays") from error
    return found


@dataclass(frozen=True)
class Outcome:
    """The decision.

    Attributes:
        name: "live": the ranker of ds is live now. "refused": the gate found a reason against the ranker of ds.
            "kept": nothing was decided, and the live ranker stays.
        text: The decision in words.
    """

    name: str
    text: str


def decide(lake: Lake, config: EvaluateConfig, verdict: Verdict) -> Outcome:
    """Make the ranker of ds live, unless there is a reason against it.

    Args:
        lake: Reads live_snapshot.
        config: Flags.
        verdict: Verdict of the gate.
    """
    kept = reason_to_keep(config, verdict)
    if kept:
        return Outcome("kept", f"ds={config.ds}: {kept}; what is live stays")
    reasons = mismatch(lake, config) or ([] if config.force else verdict.reasons)
    if reasons:
        return Outcome("refused", f"the ranker of ds {config.ds} does not go live: {'; '.join(reasons)}")
    pointer = make_live(config.deployment, bundle_folder(config.deployment, "ranker", config.ds))
    return Outcome("live", f"live: ranker of ds={config.ds}, weights {pointer.weights_sha256[:12]}")


def reason_to_keep(config: EvaluateConfig, verdict: Verdict) -> str:
    """Why this run decides nothing; empty when the gate decides.

    Args:
        config: Flags.
        verdict: Verdict of the gate.
    """
    if config.is_backfill:
        return "a backfill, judged and recorded"
    if verdict.n_users < MIN_USERS:
        return f"{counted(verdict.n_users, 'user')} with a known item, nothing to judge by"
    if verdict.too_few and not config.force:
        return verdict.too_few
    live = live_ranker(config.deployment)
    if live and date.fromisoformat(live.ds) > config.ds and not config.force:
        return f"the live ranker is of ds={live.ds}, which is newer"
    return ""


def mismatch(lake: Lake, config: EvaluateConfig) -> list[str]:
    """The reason against a ranker that does not read the published LTEs; no flag overrules this reason.

    Args:
        lake: Reads live_snapshot. Before the first publish, every ranker fits.
        config: Flags.
    """
    published = lake.read(LIVE_SNAPSHOT).orderBy("sequence", ascending=False).first()
    if published is None:
        return []
    snapshot = LteKind(*(published[name] for name in LteKind._fields))
    try:
        require_pair(read_manifest(bundle_folder(config.deployment, "ranker", config.ds)), snapshot, published["ds"])
    except ModelError as error:
        return [str(error)]
    return []


if __name__ == "__main__":
    run_job(main)
