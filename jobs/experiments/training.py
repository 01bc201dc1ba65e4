"""One training of an experiment, in a separate process with one core: staged examples in, ranks of targets out.

A training takes seconds, so it keeps no checkpoint. A killed training starts again. A finished training is kept under
the hash of everything that decides its result, and does not run twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from jobs.baselines.scorers import PopularityByDay, baseline_scorers
from jobs.baselines.trees import fit_trees
from jobs.config.models import BASELINES, ExperimentSection
from jobs.experiments.autoencoder import autoencoder_result, encoder_of_batches
from jobs.experiments.examples import TEST, TRAIN, user_numbers
from jobs.experiments.plan import LTE_SET, Variant
from jobs.experiments.work import (
    TOP,
    AutoencoderWork,
    LteMaker,
    Work,
    curve_arrays,
    fit,
    prepare_worker,
    result_file,
    staged_files,
    staged_shop,
    train_config,
    write_result,
)
from jobs.ranker.building import build_ranker
from jobs.ranker.items import CandidateItems
from jobs.ranker.judging.evaluation import day_facts
from jobs.ranker.readers import ExampleReader
from jobs.ranker.scorers import Scorer, scores_of
from lte_models.arrays import IntArray
from lte_models.evaluation.metrics import coverage, popularity_bias, target_ranks, top_items
from lte_models.ranker.examples import EXAMPLE_COLUMNS, ExampleBatch, ExampleCollate, Past, averaged_lte, lte_weights
from lte_models.ranker.loss import Objective, ranker_loss
from lte_models.ranker.model import Context, Ranker
from lte_models.ranker.towers import LteStatistics
from lte_models.training.sampling import LogUniformSampler, negatives_for_share
from lte_models.training.stream import StagedRows, list_parts
from lte_models.training.trainer import Progress

# Causal training has a query at each position, so fewer negatives and fewer examples are enough.
CLM_NEGATIVES = 256
CLM_SHARE = 8


def run_work(work: Work | AutoencoderWork) -> str:
    """Do one piece of work and keep its result; a kill leaves no incomplete result.

    Args:
        work: The training, or the scoring of the baselines.

    Returns:
        A line that says what was done.
    """
    prepare_worker()
    started = time.monotonic()
    if isinstance(work, AutoencoderWork):
        name, arrays = f"autoencoder, power {work.power:g}, seed {work.seed}", autoencoder_result(work)
    elif work.variant is None:
        name, arrays = "baselines", _baseline_result(work)
    else:
        history = "on" if work.variant.history else "off"
        name = f"{work.variant.label}, history {history}, seed {work.seed}"
        arrays = _ranker_result(work, work.variant)
    seconds = time.monotonic() - started
    write_result(result_file(work.folder, work.result), seconds, arrays)
    return f"{name}: {seconds:.1f} s"


# --- examples ---------------------------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """A batch and the LTEs of its users as of their anchors."""

    batch: ExampleBatch
    context: Context


@lru_cache(maxsize=1)
def _train_batches(folder: Path, examples: str, max_length: int, objective: str, size: int) -> list[ExampleBatch]:
    """Training batches, collated once for all seeds.

    Every seed uses the same batches, in its own order. Sequences of about the same length share a batch, so that few
    positions are padding.
    """
    rows = pa.concat_tables(
        pq.read_table(file, columns=list(EXAMPLE_COLUMNS)) for file in staged_files(folder, examples, TRAIN)
    )
    order = np.random.default_rng(0).permutation(rows.num_rows)
    if objective == "clm":
        order = order[: max(1, rows.num_rows // CLM_SHARE)]
        size = max(1, size // CLM_SHARE)
    lengths = list_parts(rows["items"])[1][order]
    chunk = np.arange(len(order)) // (16 * size)
    order = order[np.lexsort((lengths, chunk))]
    collate = ExampleCollate(staged_shop(folder).row_of_index, max_length, objective)
    found = (collate(rows.take(order[start : start + size])) for start in range(0, len(order), size))
    return [batch for batch in found if batch.targets.numel()]


@lru_cache(maxsize=2)
def _batches(folder: Path, examples: str, max_length: int, part: str, size: int) -> list[ExampleBatch]:
    collate = ExampleCollate(staged_shop(folder).row_of_index, max_length)
    reader = ExampleReader(StagedRows(staged_files(folder, examples, part), ""), collate, size, 0)
    return list(reader.in_order())


def _prepared(
    batches: Iterable[ExampleBatch], variant: Variant, ltes: LteMaker, shop: CandidateItems
) -> list[Prepared]:
    """Compute the LTEs of all batches once, not in each epoch; the past is dropped when only the LTE needs it."""
    found = []
    for batch in batches:
        kept = batch if variant.history else batch._replace(past=Past(*(part[:0] for part in batch.past)))
        found.append(Prepared(kept, Context(*ltes(batch), shop.daily)))
    return found


def lte_maker(variant: Variant, shop: CandidateItems, encoder: LteMaker | None) -> LteMaker:
    """Function that computes the LTEs of a batch, as of the anchor of each example.

    Args:
        variant: Method and window. A variant without LTE gets zeros.
        shop: The basis in row order.
        encoder: Computes the LTEs of method autoencoder.

    Returns:
        Batch to float [B, C] and bool [B].

    Raises:
        ValueError: The method is autoencoder and there is no encoder.
    """
    content = torch.from_numpy(shop.content)
    if variant.lte == "none":
        return lambda batch: (torch.zeros(len(batch.items), content.shape[1]), torch.zeros(len(batch.items)).bool())
    if variant.method == "autoencoder":
        if encoder is None:
            raise ValueError("method autoencoder needs an encoder")
        return encoder

    def average(batch: ExampleBatch) -> tuple[Tensor, Tensor]:
        weights = lte_weights(batch.past, method=variant.method, lagged=variant.lagged)
        lte, has_lte = averaged_lte(batch.past, weights, content, len(batch.items))
        # The control keeps the distribution of the LTEs and takes away whose LTE it is.
        return (lte.roll(1, 0), has_lte.roll(1, 0)) if variant.shuffled else (lte, has_lte)

    return average


# --- ranker -----------------------------------------------------------------------------------------------------


class Fitted(NamedTuple):
    """A trained ranker, and what made its LTEs.

    Attributes:
        model: In eval mode.
        shop: Items.
        ltes: Computes the LTEs of a batch.
        progress: Curve and seconds.
        read_seconds: Seconds before the first training step.
    """

    model: Ranker
    shop: CandidateItems
    ltes: LteMaker
    progress: Progress
    read_seconds: float


def fitted_ranker(work: Work, variant: Variant, encoder: LteMaker | None) -> Fitted:
    """Train a variant on the staged examples; the best epoch on the validation days is kept.

    Args:
        work: Staged rows, seed and sizes.
        variant: What to train.
        encoder: Computes the LTEs of method autoencoder.
    """
    started, settings, shop = time.monotonic(), work.settings, staged_shop(work.folder)
    name, length = variant.examples.name, variant.examples.max_sequence
    ltes = lte_maker(variant, shop, encoder)
    batches = _train_batches(work.folder, name, length, variant.objective, settings.batch_size)
    train = _prepared(batches, variant, ltes, shop)
    model = new_ranker(work, variant, shop)
    _store_statistics(model, train)
    read_seconds = time.monotonic() - started
    progress = fit(
        model,
        _ranker_loss(model, variant, settings),
        lambda epoch: (train[at] for at in np.random.default_rng((work.seed, epoch)).permutation(len(train))),
        None,
        train_config(settings.epochs, settings.learning_rate, work.seed),
        len(train),
    )
    return Fitted(model.eval(), shop, ltes, progress, read_seconds)


def judged_batches(work: Work, variant: Variant, ltes: LteMaker) -> list[Prepared]:
    """The test days with their LTEs, in the order of the staged rows."""
    batches = _batches(work.folder, variant.examples.name, variant.examples.max_sequence, TEST, 256)
    return _prepared(batches, variant, ltes, staged_shop(work.folder))


def _ranker_result(work: Work, variant: Variant) -> dict[str, npt.NDArray[Any]]:
    file = result_file(work.folder, work.autoencoder).with_suffix(".safetensors")
    encoder = encoder_of_batches(file, staged_shop(work.folder)) if work.autoencoder else None
    model, shop, ltes, progress, read_seconds = fitted_ranker(work, variant, encoder)
    test = judged_batches(work, variant, ltes)
    ranks, top = ranked(model, test)
    targets = np.concatenate([item.batch.targets.numpy() - 1 for item in test])
    return {
        "ranks": ranks.astype(np.int32),
        "coverage": np.array(coverage(top, model.n_items)),
        "popularity_bias": np.array(popularity_bias(top, shop.counts[1:], targets)),
        **curve_arrays(progress),
        "read_seconds": np.array(read_seconds),
    }


def new_ranker(work: Work, variant: Variant, shop: CandidateItems) -> Ranker:
    """A ranker with fresh weights.

    Args:
        work: Seed, width, interaction types.
        variant: How the ranker reads the LTE.
        shop: Items.
    """
    built = build_ranker(
        shop,
        [str(code) for code in range(work.n_types)],  # a training reads codes, not names
        dim=work.settings.dim,
        max_length=variant.examples.max_sequence,
        dropout=0.0,  # a few epochs overfit nothing, and attention without dropout is a fused kernel
        lte=variant.lte,
        history_features=variant.history,
        repeat_expert=variant.expert,
        affinity=variant.affinity,
        seed=work.seed,
    )
    return built.model


def _store_statistics(model: Ranker, train: Sequence[Prepared]) -> None:
    if model.config.lte == "none":
        return
    statistics = LteStatistics(model.config.content_dim)
    for item in train:
        statistics.add(item.context.lte, item.context.has_lte)
    statistics.store(model.user_tower.projection)


def _ranker_loss(
    model: Ranker, variant: Variant, settings: ExperimentSection
) -> Callable[[Prepared, torch.Generator], Tensor]:
    n_samples = negatives_for_share(model.n_items, settings.negatives_share)
    if variant.objective == "clm":
        n_samples = min(n_samples, CLM_NEGATIVES)
    sampler = LogUniformSampler(model.n_items, n_samples) if n_samples < model.n_items else None
    # The metric is a mean over user-days, so users get equal weights: one large buyer must not decide the training.
    objective = Objective(sampler, equal_users=True)
    return lambda item, rng: ranker_loss(model, item.batch, item.context, objective, rng)


def ranked(model: Ranker, items: Sequence[Prepared]) -> tuple[IntArray, IntArray]:
    """Rank the targets; the catalogue is embedded once for all batches.

    Args:
        model: The ranker, in eval mode.
        items: Batches of the next_day objective.

    Returns:
        int64 [T], ranks from 1; and int64 [B, 10], columns of the items with the best scores.
    """
    candidates = torch.arange(1, model.n_items + 1)
    ranks, top = [], []
    with torch.no_grad():
        embedded = model.embed(candidates)
        for batch, context in items:
            queries = model.queries(batch, context, *embedded)
            scores = model.candidate_logits(queries, candidates, batch, context, embedded)
            ranks.append(target_ranks(scores, batch.target_query, batch.targets - 1))
            top.append(top_items(scores, TOP))
    return torch.cat(ranks).numpy(), torch.cat(top).numpy()


# --- autoencoder ------------------------------------------------------------------------------------------------


# --- baselines --------------------------------------------------------------------------------------------------


def _baseline_result(work: Work) -> dict[str, npt.NDArray[Any]]:
    shop = staged_shop(work.folder)
    collate = ExampleCollate(shop.row_of_index)
    train, test = (
        ExampleReader(StagedRows(staged_files(work.folder, LTE_SET.name, part), ""), collate, 256, 0)
        for part in (TRAIN, TEST)
    )
    arrays: dict[str, npt.NDArray[Any]] = {}
    batches = list(test.in_order())
    targets = np.concatenate([batch.targets.numpy() - 1 for batch in batches])
    scorers: dict[str, Scorer] = baseline_scorers(shop, train, BASELINES)
    scorers["boosted_trees"] = fit_trees(PopularityByDay(shop), train, work.seed)
    for name, scorer in scorers.items():
        ranks, top = [], []
        for batch in batches:
            scores = scores_of(scorer, batch)
            ranks.append(scores.ranks(batch.target_query.numpy(), batch.targets.numpy() - 1))
            top.append(scores.top(TOP))
        arrays[f"ranks.{name}"] = np.concatenate(ranks).astype(np.int32)
        arrays[f"coverage.{name}"] = np.array(coverage(np.concatenate(top), len(shop.item_ids)))
        arrays[f"popularity_bias.{name}"] = np.array(popularity_bias(np.concatenate(top), shop.counts[1:], targets))
    return arrays | judged_user_days(staged_files(work.folder, LTE_SET.name, TEST), batches)


def judged_user_days(files: Sequence[Path], batches: Sequence[ExampleBatch]) -> dict[str, npt.NDArray[Any]]:
    """Facts of the test days that are needed to read the results of all variants.

    Args:
        files: Staged rows of the test days.
        batches: Batches of the same rows, in the same order.

    Returns:
        ``user`` [B] and the arrays of :class:`jobs.ranker.judging.evaluation.DayFacts`.
    """
    return {"user": user_numbers(files), **vars(day_facts(batches))}
