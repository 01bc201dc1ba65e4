"""The autoencoder of an experiment: its training, and the LTEs that rankers read from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
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
from jobs.config.models import AutoencoderSection
from jobs.experiments.work import (
    AutoencoderWork,
    IntArray,
    LteMaker,
    curve_arrays,
    fit,
    result_file,
    staged_shop,
    train_config,
)
from jobs.ranker.items import CandidateItems
from lte_models.autoencoder import Autoencoder, AutoencoderConfig, ItemHistories
from lte_models.ranker.examples import ExampleBatch, averaged_lte, lte_weights
from lte_models.training.sampling import rank_by_frequency
from lte_models.training.stream import list_parts


def autoencoder_result(work: AutoencoderWork) -> dict[str, npt.NDArray[Any]]:
    """Train the autoencoder on the staged histories; returns its weights and the curve of the training."""
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
