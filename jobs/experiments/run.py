"""Run experiments: prepare the inputs, run the missing trainings, compare, write the results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.basis.basis import configured_basis
from jobs.config.addresses import is_url
from jobs.config.sections import Deployment
from jobs.experiments.examples import (
    ExampleBuilder,
    event_days,
    experiment_candidates,
    experiment_days,
    leading_directions,
    save_candidates,
)
from jobs.experiments.plan import (
    AUTOENCODER,
    INTEGRATION,
    LIVE,
    LIVE_RANKER,
    LTE_SET,
    NO_LTE,
    PREFIX,
    SEQUENCE,
    Contrast,
    Variant,
    contrasts,
    variants,
)
from jobs.experiments.pool import Runner, read_result, say, worker_pool
from jobs.experiments.statistics import (
    Compared,
    JudgedUserDays,
    best_baseline,
    best_power,
    contrast_rows,
    plain_row,
    value_rows,
    with_verdicts,
)
from jobs.experiments.tables import experiment_text, write_csv, write_plot
from jobs.experiments.work import CUTOFF, AnyWork, AutoencoderWork, Work, remove_staged, result_name, sizes_of
from jobs.lake.lake import Lake, open_lake
from jobs.registry.bundles import ModelError
from jobs.runtime.code_version import code_version
from lte_models.files import write_atomically
from schemas import EXPERIMENTS

JOB = "experiment"

BASELINE_LABELS = {
    "popularity_7d": "popularity, 7 days",
    "last_basket": "last basket",
    "frequency_60d": "personal frequency, 60 days",
    "frequency_365d": "personal frequency, 365 days",
    "ease": "EASE",
    "decayed_and_popular": "own counts with decay, and popularity",
    "tifu_knn": "TIFU-KNN",
    "up_cf": "UP-CF@r",
    "boosted_trees": "boosted trees on counts (LambdaRank)",
}

# Seconds of one core: per example and epoch, and a fixed cost per training (measured, see docs/results.md).
EXAMPLE_SECONDS, FIXED_SECONDS = 2e-3, 15.0

# Variants that an experiment compares with the best baseline.
AGAINST_COUNTING: dict[str, tuple[Variant, ...]] = {INTEGRATION: (NO_LTE, PREFIX), LIVE: (NO_LTE, LIVE_RANKER)}

Row = dict[str, Any]
Arrays = Mapping[str, npt.NDArray[Any]]


def experiments_folder(deployment: Deployment) -> Path:
    """Folder of staged rows and results. It is under ``models``, because `lte erase` searches there for copies of rows.

    Raises:
        ModelError: The lake is not a folder.
    """
    if is_url(deployment.paths.lake):
        raise ModelError(f"paths.lake = {deployment.paths.lake!r}: experiments need a lake that is a mounted folder")
    return Path(deployment.paths.lake) / "models" / "experiments"


def run_experiments(
    deployment: Deployment, names: Sequence[str], *, ds: date | None = None, is_fresh: bool = False
) -> dict[str, list[Row]]:
    """Prepare the inputs, run the missing trainings, compare, write the results.

    Args:
        deployment: Settings and data.
        names: Experiments, each once.
        ds: Last test day; the last day with interactions by default.
        is_fresh: Whether finished trainings run again.

    Returns:
        Experiment to its rows of table experiments.

    Raises:
        ModelError: There are no data for an experiment.
        ExperimentError: The budget is used up before all trainings are finished.
    """
    started, folder = time.monotonic(), experiments_folder(deployment)
    say(announcement(deployment, names, folder))
    try:
        inputs = prepare(deployment, names, ds, folder)
        results = train_all(deployment, names, inputs, is_fresh, started)
    finally:
        remove_staged(folder)
    found = {}
    with open_lake(deployment, JOB) as lake:
        for name in names:
            found_rows = with_verdicts(experiment_rows(name, results, deployment, inputs))
            rows = [whole_row(row, name, deployment, inputs) for row in found_rows]
            write_rows(lake, rows, inputs.last_day, name)
            write_files(rows, deployment, name)
            found[name] = rows
    say(f"experiments: done in {(time.monotonic() - started) / 60:.1f} minutes")
    return found


# --- before ---------------------------------------------------------------------------------------------------


def announcement(deployment: Deployment, names: Sequence[str], folder: Path) -> str:
    """Text that says, before the start, what will be trained and about how long this takes.

    Args:
        deployment: Settings.
        names: Experiments.
        folder: Folder of earlier results, which tell how long a training takes on this machine.
    """
    settings = deployment.experiment
    n_rankers = len(variants(names, settings.sequence_days)) * len(settings.seeds)
    n_encoders = len(settings.powers) * len(settings.seeds) if AUTOENCODER in names else 0
    known = [float(np.load(file)["seconds"]) for file in sorted(folder.glob("results/ranker-*.npz"))[:100]]
    each = float(np.mean(known)) if known else settings.max_examples * settings.epochs * EXAMPLE_SECONDS + FIXED_SECONDS
    source = f"mean of {len(known)} earlier ones here" if known else "an estimate from the settings"
    minutes = (n_rankers + n_encoders) * each / settings.parallel / 60 + 1.5
    lines = [
        f"experiments: {', '.join(names)} on {deployment.deployment.name}",
        f"  {n_rankers} trainings of the ranker and {n_encoders} of the autoencoder ({len(settings.seeds)} seeds), at "
        f"most {settings.max_examples:,} examples x {settings.epochs} epochs each",
        f"  expected: {minutes:.0f} minutes; {settings.parallel} trainings at a time, one core each, {each:.0f} s "
        f"each ({source}), less what is finished already",
        f"  budget: {settings.budget_minutes:g} minutes; what is not trained by then is left for the next call",
    ]
    if minutes > settings.budget_minutes:
        lines.append("  this is MORE than the budget: raise --budget-minutes, or call again until all is trained")
    return "\n".join(lines)


@dataclass(frozen=True)
class Inputs:
    """The prepared inputs.

    Attributes:
        folder: Folder of staged rows, shop and results.
        basis_version: Basis of the items.
        last_day: Last test day.
        digests: Set of examples, "shop" or "histories" to a hash of its rows.
        prepare_seconds: Set of examples to the seconds that building it took.
        kept_share: Share of the basis' sum of squares that the leading directions hold.
    """

    folder: Path
    basis_version: str
    last_day: date
    digests: dict[str, str]
    prepare_seconds: dict[str, float]
    kept_share: float


def prepare(deployment: Deployment, names: Sequence[str], ds: date | None, folder: Path) -> Inputs:
    """Build and stage the inputs of the trainings.

    Args:
        deployment: Settings and data.
        names: Experiments.
        ds: Last test day.
        folder: Folder of the experiments.
    """
    settings, basis_version = deployment.experiment, configured_basis(deployment)
    sets = {variant.examples for variant in variants(names, settings.sequence_days)} | {LTE_SET}
    digests, seconds = {}, {}
    with open_lake(deployment, JOB) as lake:
        days = experiment_days(event_days(lake), settings, ds)
        say(f"  trained on {len(days.train)} days from {days.train[0]} to {days.train[-1]}; epochs are chosen on")
        say(f"  {len(days.validation)} days, results are of {len(days.test)} days: {days.cutoff} to {days.test[-1]}")
        builder = ExampleBuilder(lake, deployment, days, basis_version, folder)
        for examples in sorted(sets, key=lambda each: each.name):
            built = builder.build(examples)
            digests[examples.name], seconds[examples.name] = builder.stage(built), built.seconds
            say(f"  {examples.name}: {', '.join(f'{n:,} {part}' for part, n in built.n_rows.items())} examples")
        shop = experiment_candidates(lake, days, basis_version, settings.train_days)
        shop, kept_share = leading_directions(shop, settings.content_dim)
        digests["shop"] = save_candidates(shop, folder / "shop")
        if AUTOENCODER in names:
            digests["histories"] = builder.stage_histories()
    say(f"  {len(shop.item_ids):,} items; {kept_share:.1%} of the basis in {shop.content.shape[1]} directions")
    return Inputs(folder, basis_version, days.test[-1], digests, seconds, kept_share)


# --- training -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """Arrays of all trainings.

    Attributes:
        rankers: Variant to one result per seed.
        baselines: Ranks of the baselines and the facts of the test days.
        autoencoders: Power factor to one result per seed; empty if no experiment needs an autoencoder.
        power: The best power factor; 0 without autoencoders.
    """

    rankers: dict[Variant, list[Arrays]]
    baselines: Arrays
    autoencoders: dict[float, list[Arrays]]
    power: float


def train_all(deployment: Deployment, names: Sequence[str], inputs: Inputs, is_fresh: bool, started: float) -> Results:
    """Run all trainings that are not finished, in two stages, because the rankers need the best autoencoder.

    Args:
        deployment: Settings.
        names: Experiments.
        inputs: Inputs of the trainings.
        is_fresh: Whether finished trainings run again.
        started: Start of the call in seconds of the monotonic clock, for the budget.
    """
    settings = deployment.experiment
    encoders = autoencoder_works(deployment, inputs) if AUTOENCODER in names else {}
    baselines = _ranker_work(deployment, inputs, None, 0)
    with worker_pool(settings) as pool:
        runner = Runner(pool, settings, started, is_fresh)
        runner.run([baselines, *(work for works in encoders.values() for work in works)])
        autoencoders = {power: [read_result(work) for work in works] for power, works in encoders.items()}
        power = best_power({power: _mean_scores(found) for power, found in autoencoders.items()}) if encoders else 0.0
        chosen = [work.result for work in encoders[power]] if encoders else [""] * len(settings.seeds)
        works: dict[Variant, list[AnyWork]] = {}
        for variant in variants(names, settings.sequence_days):
            works[variant] = [
                _ranker_work(deployment, inputs, variant, seed, learned if _is_learned(variant) else "")
                for seed, learned in zip(settings.seeds, chosen, strict=True)
            ]
        runner.run([work for seeds in works.values() for work in seeds])
    rankers = {variant: [read_result(work) for work in seeds] for variant, seeds in works.items()}
    return Results(rankers, read_result(baselines), autoencoders, power)


def _is_learned(variant: Variant) -> bool:
    return variant.method == "autoencoder"


def _mean_scores(found: Sequence[Arrays]) -> dict[str, float]:
    return {name: float(np.mean([float(each[name]) for each in found])) for name in ("auc", "recall", "precision")}


def autoencoder_works(deployment: Deployment, inputs: Inputs) -> dict[float, list[AutoencoderWork]]:
    """Trainings of the autoencoder: each power factor with each seed."""
    settings = deployment.experiment
    sizes = {"items": settings.autoencoder_items, "epochs": settings.autoencoder_epochs}
    found: dict[float, list[AutoencoderWork]] = {}
    for power in settings.powers:
        found[power] = []
        for seed in settings.seeds:
            named = {"autoencoder": asdict(deployment.autoencoder), "power": power, "seed": seed, **sizes}
            data = [inputs.digests["shop"], inputs.digests["histories"]]
            result = f"autoencoder-{result_name(named | {'data': data})}"
            work = AutoencoderWork(inputs.folder, result, power, seed, settings, deployment.autoencoder)
            found[power].append(work)
    return found


def _ranker_work(
    deployment: Deployment, inputs: Inputs, variant: Variant | None, seed: int, autoencoder: str = ""
) -> Work:
    settings, n_types = deployment.experiment, len(deployment.interactions.types)
    examples = variant.examples.name if variant else LTE_SET.name
    named = {
        "variant": asdict(variant) if variant else None,
        "seed": seed,
        "settings": sizes_of(settings),
        "n_types": n_types,
        "autoencoder": autoencoder,
        "data": [inputs.digests["shop"], inputs.digests[examples]],
    }
    result = f"{'ranker' if variant else 'baselines'}-{result_name(named)}"
    return Work(inputs.folder, result, variant, seed, settings, n_types, autoencoder)


# --- after ----------------------------------------------------------------------------------------------------


def experiment_rows(name: str, results: Results, deployment: Deployment, inputs: Inputs) -> list[Row]:
    """All rows of one experiment.

    Args:
        name: The experiment.
        results: Results of the trainings.
        deployment: Settings.
        inputs: Seconds of preparation.
    """
    facts = ("user", "day", "n_short", "target_query", "is_repeat")
    judged = JudgedUserDays(**{fact: results.baselines[fact] for fact in facts})
    found = contrasts(name, deployment.experiment.sequence_days)
    rows: list[Row] = []
    if name in AGAINST_COUNTING:
        rows += _baseline_rows(results.baselines, judged)
    each = {variant: None for contrast in found for variant in (contrast.baseline, contrast.variant)}
    for variant in each:
        rows += _variant_rows(variant, results.rankers[variant], judged)
    pairs = [_pair(contrast, results) for contrast in found]
    if name in AGAINST_COUNTING:
        pairs += _against_counting(AGAINST_COUNTING[name], results, judged)
    for pair in pairs:
        rows += contrast_rows(pair, judged, CUTOFF)
    if name == SEQUENCE:
        counts = counts_of(judged)
        seconds = inputs.prepare_seconds
        rows += [
            plain_row(variant.label, "off", "prepare_seconds", [seconds[variant.examples.name]], **counts)
            for variant in each
        ]
    if name == AUTOENCODER:
        rows += _power_rows(results, judged)
    return rows


def _pair(contrast: Contrast, results: Results) -> Compared:
    variant, baseline = contrast.variant, contrast.baseline
    history = "on" if variant.history else "off"
    ranks, theirs = ([each["ranks"] for each in results.rankers[one]] for one in (variant, baseline))
    return Compared(variant.label, baseline.label, history, ranks, theirs, contrast.paper)


def _against_counting(chosen: Sequence[Variant], results: Results, judged: JudgedUserDays) -> Iterator[Compared]:
    """Compare rankers that could go live, with and without an LTE, with the best baseline.

    A ranker that beats the best baseline beats all baselines.
    """
    ranks = {name: results.baselines[f"ranks.{name}"] for name in BASELINE_LABELS}
    best = best_baseline(ranks, judged, CUTOFF)
    for variant in chosen:
        ours = [each["ranks"] for each in results.rankers[variant]]
        yield Compared(variant.label, BASELINE_LABELS[best], "on", ours, [ranks[best]])


def counts_of(judged: JudgedUserDays) -> dict[str, int]:
    """Numbers of users, user-days and days."""
    n_users, n_days = len(np.unique(judged.user)), len(np.unique(judged.day))
    return {"n_users": n_users, "n_queries": len(judged.user), "n_days": n_days}


def _variant_rows(variant: Variant, seeds: Sequence[Arrays], judged: JudgedUserDays) -> Iterator[Row]:
    history, counts = "on" if variant.history else "off", counts_of(judged)
    yield from value_rows(variant.label, history, [each["ranks"] for each in seeds], judged, CUTOFF)
    for metric, array in (("coverage_at_10", "coverage"), ("popularity_bias_at_10", "popularity_bias")):
        yield plain_row(variant.label, history, metric, [float(each[array]) for each in seeds], **counts)
    if variant.examples != LTE_SET:
        seconds = [float(each["train_seconds"]) for each in seeds]
        yield plain_row(variant.label, history, "train_seconds", seconds, **counts)


def _baseline_rows(found: Arrays, judged: JudgedUserDays) -> Iterator[Row]:
    counts = counts_of(judged)
    for name, label in BASELINE_LABELS.items():
        yield from value_rows(label, "none", [found[f"ranks.{name}"]], judged, CUTOFF)
        for metric, array in (("coverage_at_10", "coverage"), ("popularity_bias_at_10", "popularity_bias")):
            yield plain_row(label, "none", metric, [float(found[f"{array}.{name}"])], **counts)


def _power_rows(results: Results, judged: JudgedUserDays) -> Iterator[Row]:
    counts = counts_of(judged)
    for power, seeds in results.autoencoders.items():
        label = f"autoencoder, power factor {power:g}{' (chosen)' if power == results.power else ''}"
        for metric in ("auc", "recall", "precision"):
            values = [float(each[metric]) for each in seeds]
            yield plain_row(label, "none", f"{metric}_of_hidden_items", values, **counts)


def whole_row(row: Row, name: str, deployment: Deployment, inputs: Inputs) -> Row:
    """Add the values that all rows of a call share; columns without a value become null."""
    settings = json.dumps(asdict(deployment.experiment), default=list)
    shared = {
        "settings": settings,
        "basis_version": inputs.basis_version,
        "code_version": code_version(),
        "ds": inputs.last_day,
        "experiment": name,
    }
    return {**dict.fromkeys(EXPERIMENTS.columns), **row, **shared}


def write_rows(lake: Lake, rows: Sequence[Row], ds: date, name: str) -> None:
    """Replace the rows of one experiment and day.

    Args:
        lake: Holds table experiments.
        rows: Rows with all columns.
        ds: Last test day.
        name: The experiment.
    """
    values = [tuple(row[column] for column in EXPERIMENTS.columns) for row in rows]
    lake.replace_rows(values, EXPERIMENTS, {"ds": ds, "experiment": name})


def report_path(deployment: Deployment, name: str) -> Path:
    """Path of an experiment's files, without the suffix."""
    return Path(deployment.paths.reports) / "experiments" / deployment.deployment.name / name


def write_files(rows: Sequence[Row], deployment: Deployment, name: str) -> None:
    """Write CSV, tables and plot of one experiment under ``reports/experiments/<deployment>``.

    Args:
        rows: Rows of one experiment.
        deployment: Holds the path of the reports.
        name: The experiment.
    """
    path = report_path(deployment, name)
    write_csv(rows, EXPERIMENTS.columns, path.with_suffix(".csv"))
    write_plot([{**row, "deployment": deployment.deployment.name} for row in rows], CUTOFF, path.with_suffix(".png"))
    write_atomically(path.with_suffix(".md"), experiment_text(rows, CUTOFF))


def shown(deployment: Deployment, name: str, rows: Sequence[Row]) -> str:
    """Text of one experiment for standard output."""
    path = report_path(deployment, name)
    where = f"{path}.csv, .md and .png; table experiments, ds {rows[0]['ds']}, experiment {name}"
    return f"{experiment_text(rows, CUTOFF)}\n{where}"
