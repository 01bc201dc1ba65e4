"""The autoencoder of an experiment: its training, and the LTEs that rankers read from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from jobs.autoencoder.building import PAPER_FORM, build_autoencoder, needs_average, sampled_loss
from jobs.autoencoder.histories import HistoryReader
from jobs.autoencoder.scores import validation_scores
from jobs.config.models import AutoencoderSection, ExperimentSection
from jobs.experiments.work import (
    AutoencoderWork,
    LteMaker,
    curve_arrays,
    fit,
    result_file,
    staged_shop,
    train_config,
)
from jobs.ranker.items import CandidateItems
from lte_models.arrays import IntArray
from lte_models.autoencoder import Autoencoder, AutoencoderConfig, ItemHistories
from lte_models.ranker.examples import ExampleBatch, averaged_lte, lte_weights
from lte_models.training.sampling import rank_by_frequency
from lte_models.training.stream import list_parts
from lte_models.training.trainer import Progress, warm_start


@dataclass(frozen=True)
class FittedEncoder:
    """A trained autoencoder.

    Attributes:
        weights: Its weights, and ``rows``: rows of the shop in the order of its vocabulary.
        scores: ``auc``, ``recall`` and ``precision`` on the validation users.
        progress: Curve and seconds.
    """

    weights: dict[str, Tensor]
    scores: dict[str, float]
    progress: Progress

    def save(self, file: Path) -> None:
        """Write the weights for :func:`load_encoder`."""
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.weights, file)


def autoencoder_result(work: AutoencoderWork) -> dict[str, npt.NDArray[Any]]:
    """Train the autoencoder on the staged histories; writes its weights, returns its scores and curve."""
    settings = replace(work.autoencoder, seed=work.seed, power=work.power)
    fitted = fit_encoder(work.folder, settings, work.settings)
    fitted.save(result_file(work.folder, work.result).with_suffix(".safetensors"))
    return {**{name: np.array(value) for name, value in fitted.scores.items()}, **curve_arrays(fitted.progress)}


def fit_encoder(
    folder: Path,
    settings: AutoencoderSection,
    sizes: ExperimentSection,
    before: Mapping[str, Tensor] | None = None,
) -> FittedEncoder:
    """Train an autoencoder of the paper's form on staged histories.

    Args:
        folder: Folder of the staged histories and the shop.
        settings: Section [autoencoder]; its form is ignored.
        sizes: Vocabulary and epochs.
        before: Weights to start from, at the rate of a warm start; None for a new autoencoder.
    """
    shop, files = staged_shop(folder), sorted((folder / "histories").glob("*.parquet"))
    rows = frequent_rows(files, shop, sizes.autoencoder_items)
    settings = replace(settings, **PAPER_FORM)
    reader = HistoryReader(files, ranks_of(rows, len(shop.content))[shop.row_of_index], settings)
    reader = reader.with_somebody_to_train_on()
    model = build_autoencoder(settings, torch.from_numpy(shop.content[rows]))
    rate = settings.learning_rate
    if before is not None:
        _start_from(model, before, rows)
        rate *= settings.warm_share
    progress = fit(
        model,
        sampled_loss(model),
        reader.epoch,
        lambda: validation_scores(model, reader)["recall"],
        train_config(sizes.autoencoder_epochs, rate, settings.seed),
    )
    weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    return FittedEncoder(weights | {"rows": torch.from_numpy(rows)}, validation_scores(model, reader), progress)


def _start_from(model: Autoencoder, before: Mapping[str, Tensor], rows: IntArray) -> None:
    old = {row: at for at, row in enumerate(before["rows"].tolist())}
    warm_start(model, before, {"first.weight": {at: old[row] for at, row in enumerate(rows.tolist()) if row in old}})


def load_encoder(file: Path, content: npt.NDArray[np.float32]) -> tuple[Autoencoder, IntArray]:
    """Read an autoencoder that :meth:`FittedEncoder.save` wrote.

    Args:
        file: Its weights.
        content: The basis in row order, float32 [V + 1, C].

    Returns:
        The autoencoder, and its rank of each row, -1 for a row outside its vocabulary.
    """
    weights = load_file(file)
    rows = weights.pop("rows")
    basis = torch.from_numpy(content)[rows]
    model = Autoencoder(AutoencoderConfig(n_items=len(rows), dim=basis.shape[1]), basis)
    model.load_state_dict(weights, strict=False)
    return model.eval(), ranks_of(rows.numpy(), len(content))


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


def encoder_of_batches(file: Path, shop: CandidateItems) -> LteMaker:
    """Encode the long window of each example with a trained autoencoder, as embed_users does for each user.

    A user without history gets the cold-start vector. A user with a history whose items the autoencoder does not know
    gets the uniform average.

    Args:
        file: Weights of the autoencoder.
        shop: The basis in row order.
    """
    content = torch.from_numpy(shop.content)
    model, rank_of_row = load_encoder(file, shop.content)
    ranks = torch.from_numpy(rank_of_row)

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
