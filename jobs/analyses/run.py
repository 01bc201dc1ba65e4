"""Run an analysis: prepare the inputs, run the missing trainings, write rows, tables and figures."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from jobs.analyses.attention import (
    AttentionResult,
    AttentionWork,
    attention_rows,
    attention_text,
    attention_variants,
    run_attention,
    write_figure,
)
from jobs.analyses.inputs import OffsetInputs, Prepared, prepare
from jobs.analyses.stability import (
    EXAMPLES,
    NONE,
    AgedRanks,
    AgedWork,
    ChainWork,
    Key,
    StabilityResult,
    encoder_file,
    encoder_of,
    run_stability,
    stability_rows,
    stability_text,
    stability_variant,
)
from jobs.analyses.windows import Moved, UserWindows, Vectors, moved, read_windows
from jobs.autoencoder.histories import write_histories
from jobs.config.sections import Deployment
from jobs.config.window import day_number
from jobs.experiments.examples import TEST
from jobs.experiments.plan import Variant
from jobs.experiments.pool import NamedWork, Runner, read_result, say, worker_pool
from jobs.experiments.run import JOB, experiments_folder, report_path, write_rows
from jobs.experiments.statistics import JudgedUserDays, with_verdicts
from jobs.experiments.tables import write_csv
from jobs.experiments.training import judged_user_days
from jobs.experiments.work import Work, result_name, sizes_of, staged_files, staged_shop
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake, open_lake
from jobs.ranker.readers import ExampleReader
from jobs.runtime.code_version import code_version
from lte_models.arrays import IntArray
from lte_models.averages.pooling import Weighting
from lte_models.files import write_atomically
from lte_models.ranker.examples import ExampleCollate
from lte_models.training.stream import StagedRows, stage
from schemas import EXPERIMENTS, USER_HISTORIES

STABILITY, ATTENTION = "stability", "attention"
ANALYSIS_NAMES = (STABILITY, ATTENTION)
AUTOENCODER = "autoencoder"
Row = dict[str, Any]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Analysed:
    """Result of an analysis: its rows of table experiments, and its text for a person."""

    rows: list[Row]
    text: str


def run_analysis(deployment: Deployment, name: str, *, ds: date | None = None, is_fresh: bool = False) -> Analysed:
    """Run one analysis.

    Args:
        deployment: Settings and data.
        name: One of ``ANALYSIS_NAMES``.
        ds: Last evaluation day; the last day with interactions by default.
        is_fresh: Whether finished trainings run again.

    Raises:
        jobs.registry.bundles.ModelError: There are no data.
        jobs.experiments.pool.ExperimentError: The budget is used up.
    """
    started, folder = time.monotonic(), experiments_folder(deployment) / "analysis"
    analyse = _stability if name == STABILITY else _attention
    say(f"analysis {name} on {deployment.deployment.name}: {len(deployment.experiment.seeds)} seeds")
    try:
        call = Call(deployment, folder, ds, is_fresh, started)
        rows, text = analyse(call)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # staged rows hold ids of users; results lie beside
    write_atomically(report_path(deployment, name).with_suffix(".md"), text)
    write_csv(rows, EXPERIMENTS.columns, report_path(deployment, name).with_suffix(".csv"))
    say(f"analysis {name}: done in {(time.monotonic() - started) / 60:.1f} minutes")
    return Analysed(rows, f"{text}\n{report_path(deployment, name)}.csv and .md; table experiments, experiment {name}")


@dataclass(frozen=True)
class Call:
    """One call of an analysis.

    Attributes:
        deployment: Settings and data.
        folder: Folder of staged rows; it is deleted at the end.
        ds: Last evaluation day.
        is_fresh: Whether finished trainings run again.
        started: Start in seconds of the monotonic clock, for the budget.
    """

    deployment: Deployment
    folder: Path
    ds: date | None
    is_fresh: bool
    started: float

    @property
    def results(self) -> Path:
        """Folder of the results of all trainings."""
        return experiments_folder(self.deployment)

    def run(self, works: Sequence[NamedWork], run_one: Callable[[Any], str]) -> None:
        """Run the works that are not finished."""
        settings = self.deployment.experiment
        with worker_pool(settings) as pool:
            Runner(pool, settings, self.started, self.is_fresh, run_one).run(works)

    def named(self, kind: str, inputs: OffsetInputs, variant: Variant, seed: int, **more: Any) -> str:
        """Name of a result: the hash of everything that decides it."""
        settings = sizes_of(self.deployment.experiment)
        named = {"variant": asdict(variant), "seed": seed, "settings": settings, "data": inputs.digest, **more}
        return f"{kind}-{result_name(named)}"

    def training(self, inputs: OffsetInputs, variant: Variant, seed: int) -> Work:
        """The training of a ranker on the rows of an offset."""
        deployment = self.deployment
        return Work(inputs.folder, "", variant, seed, deployment.experiment, len(deployment.interactions.types))

    def write(self, lake: Lake, rows: Sequence[Row], prepared: Prepared, name: str) -> list[Row]:
        """Write the rows to table experiments; returns them with all columns."""
        shared = {
            "settings": result_settings(self.deployment),
            "basis_version": prepared.basis_version,
            "code_version": code_version(),
            "ds": prepared.days.test[-1],
            "experiment": name,
        }
        whole = [{**dict.fromkeys(EXPERIMENTS.columns), **row, **shared} for row in rows]
        write_rows(lake, whole, prepared.days.test[-1], name)
        return whole

    def head(self, prepared: Prepared, judged: JudgedUserDays, name: str) -> str:
        """First lines of the text: what was trained and judged."""
        settings, days = self.deployment.experiment, prepared.days
        return (
            f"## {name}, up to {days.test[-1]}\n\n{len(settings.seeds)} seeds, {len(days.test)} evaluation days from "
            f"{days.test[0]}, {len(judged.user):,} user-days of {len(np.unique(judged.user)):,} users; at most "
            f"{settings.max_examples:,} examples x {settings.epochs} epochs per training."
        )


def result_settings(deployment: Deployment) -> str:
    """Section [experiment] as JSON."""
    return json.dumps(asdict(deployment.experiment), default=list)


def judged_days(inputs: OffsetInputs) -> JudgedUserDays:
    """The user-days of the evaluation days, in the order of the staged rows."""
    files = staged_files(inputs.folder, EXAMPLES.name, TEST)
    collate = ExampleCollate(staged_shop(inputs.folder).row_of_index)
    batches = list(ExampleReader(StagedRows(files, ""), collate, 256, 0).in_order())
    facts = judged_user_days(files, batches)
    return JudgedUserDays(**{name: facts[name] for name in ("user", "day", "n_short", "target_query", "is_repeat")})


# --- attention --------------------------------------------------------------------------------------------------


def _attention(call: Call) -> tuple[list[Row], str]:
    settings = call.deployment.experiment
    with open_lake(call.deployment, JOB) as lake:
        prepared = prepare(lake, call.deployment, call.ds, call.folder, offsets=(0,), examples=EXAMPLES)
    inputs = prepared.offsets[0]
    works = {
        variant: [
            AttentionWork(
                call.results, call.named("attention", inputs, variant, seed), call.training(inputs, variant, seed)
            )
            for seed in settings.seeds
        ]
        for variant in attention_variants(settings.history)
    }
    call.run([work for seeds in works.values() for work in seeds], run_attention)
    judged = judged_days(inputs)
    found = {variant: [read_result(work) for work in seeds] for variant, seeds in works.items()}
    results = [_attention_result(found, history, judged) for history in settings.history]
    rows = [row for result in results for row in attention_rows(result)]
    name = call.deployment.deployment.name
    write_figure(results, f"attention migration, {name}, up to {prepared.days.test[-1]}", _figure(call.deployment))
    with open_lake(call.deployment, JOB) as lake:
        rows = call.write(lake, rows, prepared, ATTENTION)
    return rows, attention_text(results, call.head(prepared, judged, ATTENTION))


def _figure(deployment: Deployment) -> Path:
    return report_path(deployment, ATTENTION).with_suffix(".png")


def _attention_result(found: Mapping[Variant, list[Arrays]], history: str, judged: JudgedUserDays) -> AttentionResult:
    of = {variant.lte: seeds for variant, seeds in found.items() if variant.history == (history == "on")}
    return AttentionResult(history, of["none"], of["prefix_token"], judged.user, judged.day)


# --- stability --------------------------------------------------------------------------------------------------


def _stability(call: Call) -> tuple[list[Row], str]:
    deployment, settings = call.deployment, call.deployment.experiment
    offsets = (0, *settings.offsets_days)
    with open_lake(deployment, JOB) as lake:
        prepared = prepare(lake, deployment, call.ds, call.folder, offsets=offsets, examples=EXAMPLES)
        days = prepared.days
        anchors = days.anchors(TEST)
        windows = read_windows(
            lake, prepared.basis_version, prepared.shop, anchors[0], last=anchors[-1], offset_days=max(offsets)
        )
        if AUTOENCODER in settings.stability_methods:
            _stage_histories(lake, call, prepared)
    chains = _chains(call, prepared) if AUTOENCODER in settings.stability_methods else []
    call.run(chains, run_stability)
    files: dict[tuple[str, int, int], Path] = {
        (method, offset.offset, at): _write_ltes(
            windows, call, prepared, method, offset, chains[at] if chains else None
        )
        for method in settings.stability_methods
        for offset in prepared.offsets
        for at in (range(len(settings.seeds)) if method == AUTOENCODER else (0,))
    }
    works = _aged_works(call, prepared, files, chains)
    call.run([work for seeds in works.values() for work in seeds], run_stability)
    judged = judged_days(prepared.offsets[0])
    ranks = {key: AgedRanks(*zip(*map(_both, seeds), strict=True)) for key, seeds in works.items()}
    result = StabilityResult(ranks, _all_moved(windows, call, prepared, chains), judged)
    rows = with_verdicts(stability_rows(result))
    with open_lake(deployment, JOB) as lake:
        rows = call.write(lake, rows, prepared, STABILITY)
    return rows, stability_text(result, call.head(prepared, judged, STABILITY))


def _both(work: AgedWork) -> tuple[IntArray, IntArray]:
    arrays = read_result(work)
    return arrays["today"], arrays["own"]


def _stage_histories(lake: Lake, call: Call, prepared: Prepared) -> None:
    """Histories that the autoencoder of each offset learns from, as of the day before its first unseen day."""
    window = call.deployment.autoencoder.window
    for inputs in prepared.offsets:
        eve = date.fromordinal(prepared.days.cutoff.toordinal() - 1 - inputs.offset)
        write_histories(BasisDay(lake, call.deployment, eve, prepared.basis_version))
        where: dict[str, Any] = {"ds": eve, "lte_window": window}
        rows = lake.batches(USER_HISTORIES, columns=("user_id", "items", "fold"), where=where)
        stage(rows, ("user_id",), inputs.folder / "histories")


def _chains(call: Call, prepared: Prepared) -> list[ChainWork]:
    oldest_first = sorted(prepared.offsets, key=lambda inputs: -inputs.offset)
    places = tuple((inputs.offset, inputs.folder) for inputs in oldest_first)
    digests = [inputs.digest for inputs in oldest_first]
    found = []
    for seed in call.deployment.experiment.seeds:
        named = {
            "data": digests,
            "seed": seed,
            "settings": sizes_of(call.deployment.experiment),
            "autoencoder": asdict(call.deployment.autoencoder),
        }
        name = f"chain-{result_name(named)}"
        found.append(
            ChainWork(call.results, name, places, seed, call.deployment.experiment, call.deployment.autoencoder)
        )
    return found


Ltes = Callable[[int], Vectors]  # day as days since 1970, to the LTEs of all users as of its end


def _maker(windows: UserWindows, call: Call, prepared: Prepared, method: str, encoder: Path | None) -> Ltes:
    if encoder is None:
        weighting = Weighting(method, call.deployment.lte.half_life_days)
        return lambda day: windows.averages(day, weighting)
    encode = encoder_of(encoder, prepared.shop.content, prepared.shop.row_of_index)
    return lambda day: windows.learned(day, encode)


def _makers(
    windows: UserWindows, call: Call, prepared: Prepared, method: str, offset: int, chain: ChainWork | None
) -> tuple[Ltes, Ltes]:
    """What makes today's LTEs, and what made the LTEs of ``offset`` days ago."""
    chosen = chain if method == AUTOENCODER else None
    files = [encoder_file(chosen, each) if chosen else None for each in (0, offset)]
    now, then = (_maker(windows, call, prepared, method, file) for file in files)
    return now, then


def _write_ltes(
    windows: UserWindows, call: Call, prepared: Prepared, method: str, inputs: OffsetInputs, chain: ChainWork | None
) -> Path:
    """Write the LTEs of the evaluation rows: as of their anchors, and as of ``offset`` days before."""
    tables = [
        pq.read_table(file, columns=["user_id", "anchor_day"])
        for file in staged_files(inputs.folder, EXAMPLES.name, TEST)
    ]
    users = [user for table in tables for user in table["user_id"].to_pylist()]
    anchors = np.concatenate([table["anchor_day"].to_numpy() for table in tables])
    makers = _makers(windows, call, prepared, method, inputs.offset, chain)
    rows = windows.row_of(users)
    arrays: dict[str, Vectors] = {}
    has_lte: dict[str, npt.NDArray[np.bool_]] = {}
    for name, make, back in (("today", makers[0], 0), ("own", makers[1], inputs.offset)):
        vectors = np.zeros((len(users), windows.vectors.shape[1]), dtype=np.float32)
        for anchor in np.unique(anchors):
            chosen = np.flatnonzero((anchors == anchor) & (rows >= 0))
            vectors[chosen] = make(int(anchor) - back)[rows[chosen]]
        arrays[name] = vectors
        has_lte[f"has_{name}"] = np.asarray(vectors.any(axis=1))
    path = inputs.folder / f"ltes-{method}-{chain.seed if chain else 0}.npz"
    np.savez(path, allow_pickle=False, **arrays, **has_lte)
    return path


def _aged_works(
    call: Call, prepared: Prepared, files: Mapping[tuple[str, int, int], Path], chains: Sequence[ChainWork]
) -> dict[Key, list[AgedWork]]:
    settings = call.deployment.experiment
    works: dict[Key, list[AgedWork]] = {}
    for history in settings.history:
        for method in (NONE, *settings.stability_methods):
            variant = stability_variant(method, history=history == "on")
            for inputs in prepared.offsets:
                works[method, history, inputs.offset] = [
                    _aged_work(call, inputs, variant, at, files, chains) for at in range(len(settings.seeds))
                ]
    return works


def _aged_work(
    call: Call,
    inputs: OffsetInputs,
    variant: Variant,
    at: int,
    files: Mapping[tuple[str, int, int], Path],
    chains: Sequence[ChainWork],
) -> AgedWork:
    seed = call.deployment.experiment.seeds[at]
    is_learned = variant.method == AUTOENCODER
    encoder = encoder_file(chains[at], inputs.offset) if is_learned else None
    ltes = None if variant.lte == NONE else files[variant.method, inputs.offset, at if is_learned else 0]
    more = {
        "offset": inputs.offset,
        "encoder": encoder.name if encoder else "",
        "half_life": call.deployment.lte.half_life_days,
    }
    name = call.named("aged", inputs, variant, seed, **more)
    return AgedWork(call.results, name, call.training(inputs, variant, seed), ltes, encoder)


def _all_moved(
    windows: UserWindows, call: Call, prepared: Prepared, chains: Sequence[ChainWork]
) -> dict[tuple[str, int], list[Moved]]:
    """What moved over all users and evaluation days, one entry per seed of an autoencoder."""
    settings = call.deployment.experiment
    found: dict[tuple[str, int], list[Moved]] = {}
    for method in settings.stability_methods:
        for offset in settings.offsets_days:
            chosen: Sequence[ChainWork | None] = chains if method == AUTOENCODER else [None]
            found[method, offset] = [_moved_days(windows, call, prepared, method, offset, chain) for chain in chosen]
    return found


def _moved_days(
    windows: UserWindows, call: Call, prepared: Prepared, method: str, offset: int, chain: ChainWork | None
) -> Moved:
    now, then = _makers(windows, call, prepared, method, offset, chain)
    # No bound holds for an encoder that is trained again (ADR 0006); its turnover is that of the histories.
    weighting = Weighting("uniform" if chain else method, call.deployment.lte.half_life_days)
    parts = []
    for anchor in prepared.days.anchors(TEST):
        day = day_number(anchor)
        parts.append(moved(windows, day, offset, (now(day), then(day - offset)), weighting))
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    if chain:
        joined["bound"] = np.full_like(joined["bound"], np.nan)
    return Moved(**joined)
