"""Train the ranker on the anchors before ds: training_examples -> a bundle (ADR 0008).

Run after build_examples. Trains on targets up to and including ds - 1, because evaluate_ranker tests on ds. Starts from
yesterday's bundle if there is one. After a kill, the next run resumes from the checkpoint.

On a first run, and after a change of the settings, no candidate was judged on the days before. Then the last
``ranker.gate_days`` days are left out of the training, and evaluate_ranker judges on all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch

from jobs.basis.basis import configured_basis
from jobs.config.models import RankerSection
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake, Metrics, open_lake
from jobs.ranker.building import BuiltRanker, build_ranker
from jobs.ranker.items import (
    METADATA,
    CandidateItems,
    half_life_days,
    load_candidates,
    lte_window,
)
from jobs.ranker.judging.pool import first_test_day
from jobs.ranker.readers import ExampleReader, context_of, days_with_examples, example_collate, stage_examples
from jobs.ranker.scorers import RankerScorer
from jobs.registry.bundles import ModelError, bundle_folder
from jobs.registry.finish import Trained, Training, finish, start
from jobs.runtime.entry import is_off, run_job, say
from jobs.runtime.flags import parse_config
from lte_models.evaluation.metrics import query_metrics, target_ranks
from lte_models.ranker.examples import ExampleBatch
from lte_models.ranker.logits.history_logits import DailyCounts
from lte_models.ranker.loss import Objective, ranker_loss
from lte_models.ranker.model import Ranker
from lte_models.ranker.towers import LteStatistics
from lte_models.training.bundle import Bundle
from lte_models.training.manifest import vocabulary_hash
from lte_models.training.sampling import LogUniformSampler, negatives_for_share
from lte_models.training.trainer import (
    Progress,
    Task,
    TrainConfig,
    Trainer,
    best_device,
    leave_a_core_free,
    shape_of,
    warm_start,
)

JOB = "train_ranker"


def main(argv: Sequence[str] | None = None) -> None:
    """Train the ranker that evaluate_ranker will judge on ``--ds``."""
    config = parse_config(argv, JOB, __doc__)
    if is_off(JOB, "ranker", enabled=config.deployment.ranker.enabled):
        return
    leave_a_core_free()
    basis_version = configured_basis(config.deployment)
    with open_lake(config.deployment, JOB, config.ds) as lake:
        try:
            metrics = train(BasisDay(lake, config.deployment, config.ds, basis_version))
        except TooFewDaysError as error:
            # A shop has too few days at first. An operator cannot change this: no failure.
            say(JOB, f"ds {config.ds}: {error}")
            metrics = {"n_epochs": 0.0}
        lake.record_metrics(config.ds, JOB, metrics)


class TooFewDaysError(ModelError):
    """Too few days have examples, so that nothing is left to train on beside the validation days."""


def training_anchors(day: BasisDay) -> tuple[list[date], list[date]]:
    """Training anchors and, after them, validation anchors for early stopping; all of them have examples.

    Args:
        day: Test day; its lake holds training_examples. The targets of the newest anchor are interactions of ds - 1.

    Raises:
        TooFewDaysError: Too few days have examples.
    """
    settings = day.deployment.ranker
    first, last = day.ds - timedelta(days=settings.train_days + 1), day.ds - timedelta(days=2)
    days = days_with_examples(day.lake, day.basis_version, first, last)
    if len(days) <= settings.validation_days:
        raise TooFewDaysError(
            f"table training_examples, basis_version {day.basis_version}, anchor_ds {first} to {last}: {len(days)} "
            f"days with examples, of which ranker.validation_days = {settings.validation_days} are for validation; "
            "nothing to train on"
        )
    return days[: -settings.validation_days], days[-settings.validation_days :]


def train(day: BasisDay) -> Metrics:
    """Train and save the bundle of ``ds``.

    Args:
        day: Test day, of which no interaction is read; its lake holds training_examples, interactions, items and the
            basis.

    Returns:
        Validation NDCG of the best epoch, epochs, items and items with warm weights.

    Raises:
        TooFewDaysError: Too few days have examples.
        jobs.registry.records.ModelError: There is no item.
        lte_models.training.bundle.BundleError: Yesterday's bundle is damaged.
    """
    settings, folder = day.deployment.ranker, bundle_folder(day.deployment, "ranker", day.ds)
    first_test = first_test_day(day)
    anchors = training_anchors(replace(day, ds=first_test))
    shop = load_candidates(day.lake, first_test, day.basis_version, settings.train_days)
    readers = example_readers(day.lake, anchors, shop, settings, day.basis_version, folder)
    built = new_ranker(shop, settings, day.deployment.interactions.types)
    training = Training(day, JOB, "ranker", asdict(settings))
    digest = "".join([*(reader.rows.digest for reader in readers), candidates_digest(shop), shape_of(built.model)])
    # The bundle of the day before knows the days on which this ranker will be judged, unless that is ds alone.
    begun = start(training, digest, partial(start_from, built) if first_test == day.ds else lambda _: 0)
    progress = fit(built.model, *readers, settings, shop.daily, folder, begun.name, is_warm=begun.n_warm > 0)
    trained = Trained(
        config={**built.config, "settings": asdict(settings), "first_test_day": first_test.isoformat()},
        lte_window=lte_window(settings),
        weights=built.model.state_dict(),
        item_ids=shop.item_ids,
        curve=progress.curve,
        metrics={f"validation_ndcg_at_{settings.cutoff}": progress.best},
        size_name="n_items",
        half_life_days=half_life_days(settings, day.deployment.lte),
    )
    return finish(training, begun, trained, [reader.rows.files[0].parent for reader in readers])


def example_readers(
    lake: Lake,
    anchors: tuple[Sequence[date], Sequence[date]],
    shop: CandidateItems,
    settings: RankerSection,
    basis_version: str,
    folder: Path,
) -> tuple[ExampleReader, ExampleReader]:
    """Stage the training examples and the validation examples.

    Args:
        lake: Reads training_examples.
        anchors: Training days and validation days.
        shop: Items; they give each item its row.
        settings: Objective, batch size, workers, seed. Validation always uses the objective "next_day".
        basis_version: Basis of the examples.
        folder: Parent of the new folders ``rows`` and ``validation``.

    Raises:
        jobs.registry.records.ModelError: There is no training example, or no validation example.
    """
    collates = (example_collate(shop, settings, settings.objective), example_collate(shop, settings))
    train_reader, validation = (
        ExampleReader(
            stage_examples(lake, days, basis_version, folder / name),
            collate,
            settings.batch_size,
            settings.seed,
            settings.n_workers,
        )
        for days, name, collate in zip(anchors, ("rows", "validation"), collates, strict=True)
    )
    return train_reader, validation


def new_ranker(shop: CandidateItems, settings: RankerSection, types: Sequence[str]) -> BuiltRanker:
    """A ranker for the items of a day, on the best device.

    Args:
        shop: Items.
        settings: Settings of the model.
        types: Interaction types; the position of a type is its code.
    """
    names = ("dim", "lte", "lte_layers", "lte_gelu", "lte_hidden", "max_length", "history_features", "seed")
    built = build_ranker(
        shop,
        types,
        repeat_expert=settings.repeat_expert and settings.history_features,
        affinity=settings.affinity and settings.lte != "none",
        **{name: getattr(settings, name) for name in names},
    )
    built.model.to(best_device())
    return built


def fit(
    model: Ranker,
    examples: ExampleReader,
    validation: ExampleReader,
    settings: RankerSection,
    daily: DailyCounts,
    folder: Path,
    name: str,
    *,
    is_warm: bool = False,
) -> Progress:
    """Train to the end, from the checkpoint in ``folder`` if there is one.

    Args:
        model: Model to train in place; holds its best weights afterwards.
        examples: Training examples.
        validation: Validation examples; they decide which epoch is the best one.
        settings: Settings of the training.
        daily: Counts of the model's items.
        folder: Folder of the checkpoint.
        name: Fingerprint of data and settings.
        is_warm: Whether the weights come from an earlier training. If so, they are kept when no epoch is better.

    Raises:
        lte_models.training.bundle.BundleError: The checkpoint is damaged or of another training.
        FloatingPointError: The loss is not finite.
    """
    device = model.item_tower.content.device
    counts = daily._replace(cumulative=daily.cumulative.to(device))
    n_samples = negatives_for_share(model.n_items, settings.negatives_share)
    sampler = LogUniformSampler(model.n_items, n_samples) if n_samples < model.n_items else None
    # The metric is a mean over user-days, so users get equal weights: one large buyer must not decide the training.
    objective = Objective(sampler, logq=settings.logq, equal_users=True)
    store_lte_statistics(model, examples, settings)

    def loss(batch: ExampleBatch, rng: torch.Generator) -> torch.Tensor:
        moved = batch.to(device)
        return ranker_loss(model, moved, context_of(moved, model, settings, counts), objective, rng)

    def validate() -> float:
        return validation_ndcg(model, validation, settings, counts)

    config = TrainConfig(
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        patience=settings.patience,
        seed=settings.seed,
        judge_start=is_warm,
    )
    task = Task(model, loss, examples.epoch, validate, name, partial(say, JOB), falling_rate(examples, settings.epochs))
    return Trainer(task, config, folder).run()


def falling_rate(examples: ExampleReader, epochs: int) -> Callable[[Progress], float]:
    """The share of the learning rate of each step: it falls linearly from 1 to 0 over all epochs.

    Args:
        examples: Training examples.
        epochs: Number of epochs.
    """
    n_steps = epochs * -(-examples.n_rows // examples.batch_size)
    # Workers may cut a few more batches than this: their rate must not be negative.
    return lambda progress: max(0.0, 1 - progress.total_steps / n_steps)


def store_lte_statistics(model: Ranker, reader: ExampleReader, settings: RankerSection) -> None:
    """Store mean and deviation of the training LTEs in the model, in one pass over the examples."""
    if settings.lte == "none":
        return
    statistics = LteStatistics(model.config.content_dim)
    nothing = DailyCounts(0, torch.zeros(1, 1))
    for batch in reader.in_order():
        moved = batch.to(model.item_tower.content.device)
        context = context_of(moved, model, settings, nothing)
        statistics.add(context.lte, context.has_lte)
    statistics.store(model.user_tower.projection)


def validation_ndcg(model: Ranker, reader: ExampleReader, settings: RankerSection, counts: DailyCounts) -> float:
    """Mean NDCG at the cutoff over the validation examples; 0 if no example has a known target."""
    values, scorer = [np.zeros(0)], RankerScorer(model, settings, counts)
    for batch in reader.in_order():
        ranks = target_ranks(scorer(batch), batch.target_query, batch.targets - 1).numpy()
        values.append(query_metrics(ranks, batch.target_query.numpy(), len(batch.items), settings.cutoff)["ndcg"])
    found = np.concatenate(values)
    found = found[~np.isnan(found)]
    return float(found.mean()) if found.size else 0.0


def candidates_digest(shop: CandidateItems) -> str:
    """SHA-256 over the inputs of a training that belong to the items: their order, metadata and daily counts."""
    digest = hashlib.sha256(vocabulary_hash(shop.item_ids).encode())
    digest.update(repr([shop.metadata[name] for name in METADATA]).encode())
    digest.update(np.ascontiguousarray(shop.daily.cumulative.numpy()).data)
    return digest.hexdigest()


def start_from(built: BuiltRanker, earlier: Bundle) -> int:
    """Copy the weights of an earlier bundle, item by item and metadata value by metadata value.

    Args:
        built: New ranker, which receives the weights.
        earlier: Earlier bundle of the same basis.

    Returns:
        Number of items whose id embedding was copied; 0 if the bundle was trained with other interaction types.
    """
    theirs = earlier.manifest.config
    if theirs["types"] != built.config["types"]:
        return 0
    maps = {"item_tower.ids.weight": {0: 0} | _moved(built.config["id_rows"], theirs["id_rows"])}
    for name, table in zip(METADATA, ("categories", "brands", "price_tiers"), strict=True):
        rows, earlier_rows = (
            {value: place for place, value in enumerate(config["codes"][name], start=1)}
            for config in (built.config, theirs)
        )
        maps[f"item_tower.{table}.weight"] = {0: 0} | _moved(rows, earlier_rows)
    warm_start(built.model, earlier.tensors, maps)
    return len(maps["item_tower.ids.weight"]) - 1


def _moved(ours: Mapping[str, int], theirs: Mapping[str, int]) -> dict[int, int]:
    return {row: theirs[name] for name, row in ours.items() if name in theirs}


if __name__ == "__main__":
    run_job(main)
