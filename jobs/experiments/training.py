"""One training of an experiment, in a separate process with one core: staged examples in, ranks of targets out.

A training takes seconds, so it keeps no checkpoint. A killed training starts again. A finished training is kept under
the hash of everything that decides its result, and does not run twice.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jobs.autoencoder.building import PAPER_FORM, build_autoencoder, needs_average, sampled_loss
from jobs.autoencoder.histories import HistoryReader
from jobs.autoencoder.scores import validation_scores
from jobs.baselines.scorers import PopularityByDay, baseline_scorers
from jobs.baselines.trees import fit_trees
from jobs.config.models import BASELINES, AutoencoderSection, ExperimentSection
from jobs.experiments.examples import TEST, TRAIN, read_candidates, user_numbers
from jobs.experiments.plan import LTE_SET, Variant
from jobs.ranker.building import build_ranker
from jobs.ranker.items import CandidateItems
from jobs.ranker.judging.evaluation import day_facts
from jobs.ranker.readers import ExampleReader
from jobs.ranker.scorers import Scorer, scores_of
from jobs.runtime.code_version import code_version
from lte_models.autoencoder import Autoencoder, AutoencoderConfig, ItemHistories
from lte_models.evaluation.metrics import coverage, popularity_bias, target_ranks, top_items
from lte_models.files import replacing
from lte_models.ranker.examples import EXAMPLE_COLUMNS, ExampleBatch, ExampleCollate, Past, averaged_lte, lte_weights
from lte_models.ranker.loss import Objective, ranker_loss
from lte_models.ranker.model import Context, Ranker
from lte_models.ranker.towers import LteStatistics
from lte_models.training.sampling import LogUniformSampler, negatives_for_share, rank_by_frequency
from lte_models.training.stream import StagedRows, list_parts
from lte_models.training.trainer import BatchT, Progress, Task, TrainConfig, Trainer

CUTOFF = 500
TOP = 10

# Causal training has a query at each position, so fewer negatives and fewer examples are enough.
CLM_NEGATIVES = 256
CLM_SHARE = 8
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Work:
    """One training, or the scoring of the baselines.

    Attributes:
        folder: Folder of the staged rows, the shop and the results.
        result: Name of the result: the hash of everything that decides the result.
        variant: Variant to train; None scores the baselines.
        seed: Seed of weights, order, dropout and negatives.
        settings: Sizes.
        n_types: Number of interaction types.
        autoencoder: Name of the autoencoder's result, if an autoencoder computes the LTEs of the variant; else empty.
    """

    folder: Path
    result: str
    variant: Variant | None
    seed: int
    settings: ExperimentSection
    n_types: int
    autoencoder: str = ""


@dataclass(frozen=True)
class AutoencoderWork:
    """One training of the autoencoder.

    Attributes:
        folder: Folder of the staged histories, the shop and the results.
        result: Name of the result.
        power: Power factor of the negatives.
        seed: Seed of weights, order and negatives.
        settings: Sizes.
        autoencoder: Section [autoencoder]: rates and batch size.
    """

    folder: Path
    result: str
    power: float
    seed: int
    settings: ExperimentSection
    autoencoder: AutoencoderSection


def result_name(named: dict[str, Any]) -> str:
    """Hash of everything that decides a result, the version of the code included."""
    content = json.dumps(named | {"code": code_version()}, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def result_file(folder: Path, result: str) -> Path:
    """Path of a result."""
    return folder / "results" / f"{result}.npz"


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
        name, arrays = f"autoencoder, power {work.power:g}, seed {work.seed}", _autoencoder_result(work)
    elif work.variant is None:
        name, arrays = "baselines", _baseline_result(work)
    else:
        history = "on" if work.variant.history else "off"
        name = f"{work.variant.label}, history {history}, seed {work.seed}"
        arrays = _ranker_result(work, work.variant)
    seconds = time.monotonic() - started
    write_result(result_file(work.folder, work.result), seconds, arrays)
    return f"{name}: {seconds:.1f} s"


def prepare_worker() -> None:
    """Settings of a worker process: one thread, and no time for filling memory."""
    torch.set_num_threads(1)
    switches: Any = torch.utils.deterministic  # replaces itself by an object whose attributes no stub names
    switches.fill_uninitialized_memory = False  # saves time; deterministic kernels never read uninitialised memory


def write_result(file: Path, seconds: float, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write the arrays of a finished piece of work; a kill leaves no incomplete file."""
    with replacing(file) as unfinished, unfinished.open("wb") as stream:
        np.savez(stream, allow_pickle=False, seconds=np.array(seconds), **arrays)


# --- examples ---------------------------------------------------------------------------------------------------


class Prepared(NamedTuple):
    """A batch and the LTEs of its users as of their anchors."""

    batch: ExampleBatch
    context: Context


@lru_cache(maxsize=1)
def staged_shop(folder: Path) -> CandidateItems:
    """The shop of a folder, read once by a worker."""
    return read_candidates(folder / "shop")


def staged_files(folder: Path, examples: str, part: str) -> list[Path]:
    """Files of one part of a set of examples."""
    return sorted((folder / examples / part).glob("*.parquet"))


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


LteMaker = Callable[[ExampleBatch], tuple[Tensor, Tensor]]


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
    encoder = autoencoder_ltes(work.folder, work.autoencoder, staged_shop(work.folder)) if work.autoencoder else None
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


def train_config(epochs: int, learning_rate: float, seed: int) -> TrainConfig:
    """Settings of a training of fixed length: it does not stop early.

    Args:
        epochs: Number of passes over the examples.
        learning_rate: Learning rate of the first step.
        seed: Seed of dropout and negatives.
    """
    return TrainConfig(epochs=epochs, learning_rate=learning_rate, patience=epochs, seed=seed)


def fit(
    model: nn.Module,
    loss: Callable[[BatchT, torch.Generator], Tensor],
    batches: Callable[[int], Iterable[BatchT]],
    validate: Callable[[], float] | None,
    config: TrainConfig,
    n_steps: int = 0,
) -> Progress:
    """Train for a fixed number of epochs with a falling learning rate.

    A training takes a minute or two, so there is no checkpoint.

    Args:
        model: Model to train.
        loss: Loss of a batch.
        batches: Epoch to its batches.
        validate: Value after each epoch; the best epoch is kept. None keeps the last one.
        config: Result of :func:`train_config`.
        n_steps: Steps of an epoch: the rate falls linearly to 0 with the last one. With 0 it falls after each epoch.

    Returns:
        Curve and seconds.

    Raises:
        FloatingPointError: The loss or a validation value is not finite.
    """

    def rate(progress: Progress) -> float:
        done = progress.total_steps / n_steps if n_steps else float(progress.epoch)
        return max(0.0, 1 - done / config.epochs)

    return Trainer(Task(model, loss, batches, validate, "", rate=rate), config, None).run()


def curve_arrays(progress: Progress) -> dict[str, npt.NDArray[Any]]:
    """``curve``: the mean training loss of each epoch. ``train_seconds``: the seconds of the training steps alone."""
    return {
        "curve": np.array([entry["loss"] for entry in progress.curve]),
        "train_seconds": np.array(progress.seconds),
    }


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


def _autoencoder_result(work: AutoencoderWork) -> dict[str, npt.NDArray[Any]]:
    shop, files = staged_shop(work.folder), sorted((work.folder / "histories").glob("*.parquet"))
    rows = frequent_rows(files, shop, work.settings.autoencoder_items)
    rank_of_index = ranks_of(rows, len(shop.content))[shop.row_of_index]
    # The experiment compares power factors of the paper's form, whatever form the daily training has.
    fixed = {"seed": work.seed, "power": work.power, **PAPER_FORM}
    settings = AutoencoderSection(**{**asdict(work.autoencoder), **fixed})
    reader = HistoryReader(files, rank_of_index, settings).with_somebody_to_train_on()
    model = build_autoencoder(settings, torch.from_numpy(shop.content[rows]))
    progress = fit(
        model,
        sampled_loss(model),
        reader.epoch,
        lambda: validation_scores(model, reader)["recall"],
        train_config(work.settings.autoencoder_epochs, settings.learning_rate, work.seed),
    )
    scores = validation_scores(model, reader)
    weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    target = result_file(work.folder, work.result).with_suffix(".safetensors")
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights | {"rows": torch.from_numpy(rows)}, target)
    return {
        **{name: np.array(value) for name, value in scores.items()},
        **curve_arrays(progress),
    }


def frequent_rows(files: Sequence[Path], shop: CandidateItems, limit: int) -> IntArray:
    """Rows of the items that occur in the most histories, most frequent first.

    Args:
        files: Staged histories.
        shop: Maps item_index to rows.
        limit: Largest number of items.

    Returns:
        int64 [n].

    Raises:
        ValueError: No history holds a known item.
    """
    counts = np.zeros(len(shop.content), dtype=np.int64)
    for file in files:
        index, _ = list_parts(pq.read_table(file, columns=["items"])["items"])
        known = index[index < len(shop.row_of_index)]
        counts += np.bincount(shop.row_of_index[known], minlength=len(counts))
    counts[0] = 0
    rows: IntArray = rank_by_frequency(counts)[: min(limit, int((counts > 0).sum()))].astype(np.int64)
    if not len(rows):
        raise ValueError("table user_histories: no user has a known item; there is nothing to train on")
    return rows


def ranks_of(rows: IntArray, n_rows: int) -> IntArray:
    """Place of each row in ``rows``, -1 for a row that is not there: int64 [n_rows]."""
    ranks = np.full(n_rows, -1, dtype=np.int64)
    ranks[rows] = np.arange(len(rows))
    return ranks


def autoencoder_ltes(folder: Path, result: str, shop: CandidateItems) -> LteMaker:
    """Encode the long window of each example with a trained autoencoder, as embed_users does for each user.

    A user without history gets the cold-start vector. A user with a history whose items the autoencoder does not know
    gets the uniform average.

    Args:
        folder: Folder of the experiments.
        result: Name of the autoencoder's result.
        shop: The basis in row order.
    """
    content = torch.from_numpy(shop.content)
    weights = load_file(result_file(folder, result).with_suffix(".safetensors"))
    rows = weights.pop("rows")
    model = Autoencoder(AutoencoderConfig(n_items=len(rows), dim=content.shape[1]), content[rows])
    model.load_state_dict(weights, strict=False)
    model.eval()
    ranks = torch.from_numpy(ranks_of(rows.numpy(), len(content)))

    def encode(batch: ExampleBatch) -> tuple[Tensor, Tensor]:
        past, n_users = batch.past, len(batch.items)
        is_long = past.n_long > 0
        known = is_long & (ranks[past.items] >= 0)
        n_known, n_long = (torch.bincount(past.user[each], minlength=n_users) for each in (known, is_long))
        with torch.no_grad():
            latent = model(ItemHistories(ranks[past.items[known]], torch.cumsum(n_known, 0) - n_known))
        average, _ = averaged_lte(past, lte_weights(past, method="uniform", lagged=True), content, n_users)
        is_lost = needs_average(n_long > 0, n_known)
        return torch.where(is_lost.unsqueeze(1), average, latent), torch.ones(n_users, dtype=torch.bool)

    return encode


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


def remove_staged(folder: Path) -> None:
    """Delete the local copies of examples and histories, because the erasure of a user works on the tables."""
    for each in folder.iterdir() if folder.exists() else ():
        if each.is_dir() and each.name != "results":
            shutil.rmtree(each)


AnyWork = Work | AutoencoderWork
