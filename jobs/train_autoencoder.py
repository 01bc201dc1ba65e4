"""Train the autoencoder on the histories of ds: interactions -> user_histories -> a bundle (DESIGN section 7).

Starts from yesterday's bundle where there is one in the same basis, and goes on from its checkpoint after a kill.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.basis import configured_basis, read_basis
from jobs.config import AutoencoderSection, Deployment, LteWindow, code_version, parse_config
from jobs.entry import is_off, run_job, say
from jobs.histories import in_window, known_items, reach
from jobs.model_data import (
    FloatMatrix,
    ModelError,
    basis_matrix,
    bundle_folder,
    curve_metrics,
    earlier_bundle,
    fingerprint,
    item_ids,
    prune_bundles,
    record_model,
)
from jobs.tables import Lake, open_lake
from jobs.tracking import TrainingRecord, track
from lte_models.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    HiddenScores,
    Histories,
    autoencoder_loss,
    hidden_scores,
)
from lte_models.checkpoint import MANIFEST, Bundle, Manifest, save_bundle
from lte_models.data import RowGroupStream, StreamConfig, batches, list_parts, stage
from lte_models.sampling import LogUniformSampler, negatives_for_share, rank_by_frequency
from lte_models.train import (
    Progress,
    Task,
    TrainConfig,
    Trainer,
    best_device,
    discard_other,
    leave_a_core_free,
    shape_of,
    warm_start,
)
from schemas import INTERACTIONS, USER_HISTORIES

JOB = "train_autoencoder"
N_FOLDS = 20
HELD_OUT_FOLD = 0
HIDDEN_SHARE = 0.2
CUTOFF = 100

IntArray = npt.NDArray[np.int64]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the histories of ``--ds``, train on them and save the bundle."""
    config = parse_config(argv, JOB, __doc__)
    if is_off(JOB, "autoencoder", enabled=config.deployment.autoencoder.enabled):
        return
    leave_a_core_free()
    basis_version = configured_basis(config.deployment)
    with open_lake(config.deployment, JOB) as lake:
        write_histories(lake, config.deployment, config.ds, basis_version)
        try:
            metrics = train(lake, config.deployment, config.ds, basis_version)
        except NoKnownItemError as error:
            # A young shop, whose window lies before its first day: not what an operator could mend.
            say(JOB, f"{error}; embed_users writes the uniform averages")
            metrics = {("n_epochs", ""): 0.0}
        lake.record_metrics(config.ds, JOB, metrics)


class NoKnownItemError(ModelError):
    """No user has an interaction with a known item in the window yet: there is nothing to train on."""


def write_histories(lake: Lake, deployment: Deployment, ds: date, basis_version: str) -> None:
    """Write the partition of ``ds``.

    Args:
        lake: Reads interactions and the basis.
        deployment: Settings.
        ds: Data day.
        basis_version: Basis that numbers the items.
    """
    settings = deployment.autoencoder
    window = LteWindow.parse(settings.window)
    histories = user_histories(lake.read(INTERACTIONS), read_basis(lake, basis_version), ds, window)
    lake.replace(histories.withColumn("basis_version", F.lit(basis_version)), USER_HISTORIES, _partition(ds, settings))


def _partition(ds: date, settings: AutoencoderSection) -> dict[str, str | date]:
    return {"ds": ds, "lte_window": settings.window}


def user_histories(interactions: DataFrame, basis: DataFrame, ds: date, window: LteWindow) -> DataFrame:
    """One row a user with an interaction in ``[E - start, E)``: the distinct known items of the window.

    Args:
        interactions: Rows of interactions.
        basis: Rows of item_embeddings of one basis.
        ds: Data day.
        window: LTE window.

    Returns:
        user_id, items, n_unknown, fold, ds, lte_window.
    """
    events = interactions.where(in_window(ds, reach([window])))
    joined = events.join(known_items(basis, ds), "item_id", "left")
    counts = in_window(ds, window)
    items = F.array_sort(F.collect_set(F.when(counts, F.col("item_index"))))
    n_unknown = F.sum(F.when(counts & F.col("item_index").isNull(), 1).otherwise(0)).cast("int")
    grouped = joined.groupBy("user_id").agg(items.alias("items"), n_unknown.alias("n_unknown"))
    fold = (F.crc32(F.col("user_id").cast("binary")) % N_FOLDS).cast("int")
    return grouped.withColumns({"fold": fold, "ds": F.lit(ds), "lte_window": F.lit(str(window))})


@dataclass(frozen=True)
class HistoryCollate:
    """Maps histories to vocabulary ranks, of one side of the held-out split.

    Attributes:
        rank_of_index: int64 [n], vocabulary rank of each item_index, -1 where it is outside the vocabulary.
        is_held_out: Which side to keep; None for both.
    """

    rank_of_index: IntArray
    is_held_out: bool | None

    def __call__(self, rows: pa.Table) -> Histories:
        """Collate; users without a known item teach nothing and are left out."""
        if self.is_held_out is not None:
            is_wanted = (rows["fold"].to_numpy() == HELD_OUT_FOLD) == self.is_held_out
            rows = rows.filter(pa.array(is_wanted))
        index, lengths = list_parts(rows["items"])
        return ranked_histories(index, lengths, self.rank_of_index, keep_empty=False)


def ranked_histories(index: IntArray, lengths: IntArray, rank_of_index: IntArray, *, keep_empty: bool) -> Histories:
    """Map flat histories of item_index to vocabulary ranks.

    Args:
        index: int [N], item_index of all users one after another.
        lengths: int64 [B].
        rank_of_index: int64 [n]; an index past its end is unknown.
        keep_empty: Whether users without an item of the vocabulary keep their place.

    Returns:
        Histories of B users, or of those that are not empty.
    """
    user = np.repeat(np.arange(len(lengths)), lengths)
    inside = index < len(rank_of_index)
    ranks = np.where(inside, rank_of_index[np.where(inside, index, 0)], -1)
    counts = np.bincount(user[ranks >= 0], minlength=len(lengths))
    counts = counts if keep_empty else counts[counts > 0]
    offsets = np.cumsum(counts) - counts
    return Histories(torch.from_numpy(ranks[ranks >= 0].astype(np.int64)), torch.from_numpy(offsets.astype(np.int64)))


@dataclass(frozen=True)
class Vocabulary:
    """Items that occur in the histories, most frequent first.

    Attributes:
        indices: int64 [V], item_index in rank order.
        rank_of_index: int64 [n], the inverse; -1 for other items.
    """

    indices: IntArray
    rank_of_index: IntArray


def vocabulary(histories: DataFrame, n_indices: int, what: str, max_items: int | None = None) -> Vocabulary:
    """Rank the items of histories by how many users have them, ties by item_index.

    Args:
        histories: Rows of user_histories.
        n_indices: Size of the basis.
        what: Named in the error.
        max_items: Most frequent items to keep; None for all.

    Raises:
        NoKnownItemError: No history holds an item.
    """
    counted = histories.select(F.explode("items").alias("item_index")).groupBy("item_index").count().toArrow()
    if counted.num_rows == 0:
        raise NoKnownItemError(f"{what}: no user has a known item; there is nothing to train on")
    counts = np.zeros(n_indices, dtype=np.int64)
    counts[counted["item_index"].to_numpy()] = counted["count"].to_numpy()
    indices = rank_by_frequency(counts)[: int((counts > 0).sum())][:max_items]
    ranks = np.full(n_indices, -1, dtype=np.int64)
    ranks[indices] = np.arange(len(indices))
    return Vocabulary(indices, ranks)


@dataclass(frozen=True)
class HistoryReader:
    """Streams the histories of one ds.

    Attributes:
        files: Staged Parquet files.
        ranks: Vocabulary rank of each item_index.
        settings: Batch size and seed.
        is_split: Whether the held-out users are left out of training.
    """

    files: list[Path]
    ranks: IntArray
    settings: AutoencoderSection
    is_split: bool = True

    def epoch(self, epoch: int) -> Iterator[Histories]:
        """Yield the training batches of an epoch, shuffled."""
        config = StreamConfig(self.settings.batch_size, n_workers=self.settings.n_workers, seed=self.settings.seed)
        return self._read(config, epoch, is_held_out=False if self.is_split else None)

    def held_out(self) -> Iterator[Histories]:
        """Yield the held-out batches in the order of the files."""
        return self._in_order(is_held_out=True)

    def with_somebody_to_train_on(self) -> HistoryReader:
        """The same reader, or one that trains on the held-out users too, where all users are held out (tiny data)."""
        return replace(self, is_split=next(self._in_order(is_held_out=False), None) is not None)

    def _in_order(self, *, is_held_out: bool) -> Iterator[Histories]:
        return self._read(StreamConfig(self.settings.batch_size, shuffle_buffer=0), 0, is_held_out=is_held_out)

    def _read(self, config: StreamConfig, epoch: int, *, is_held_out: bool | None) -> Iterator[Histories]:
        collate = HistoryCollate(self.ranks, is_held_out)
        for batch in batches(RowGroupStream(self.files, ["items", "fold"], collate, config, epoch)):
            if batch.offsets.numel():  # a batch may lie on the other side of the split altogether
                yield batch


def train(lake: Lake, deployment: Deployment, ds: date, basis_version: str) -> dict[str | tuple[str, str], float]:
    """Train on the partition of ``ds`` and save the bundle.

    Args:
        lake: Reads user_histories and the basis.
        deployment: Settings.
        ds: Data day.
        basis_version: Basis that the histories are numbered in.

    Returns:
        Held-out ``auc``, ``recall_at_100``, ``precision_at_100``, with ``n_epochs``, ``n_vocabulary`` and ``n_warm``.

    Raises:
        NoKnownItemError: No user has a known item.
        lte_models.checkpoint.CheckpointError: A checkpoint is damaged.
    """
    settings, where = deployment.autoencoder, _partition(ds, deployment.autoencoder)
    matrix = basis_matrix(lake, basis_version)
    what = f"table user_histories, ds {ds}, lte_window {settings.window}"
    words = vocabulary(lake.read(USER_HISTORIES, where=where), len(matrix), what, settings.max_items)
    folder = bundle_folder(deployment, "autoencoder", ds)
    parts = lake.batches(USER_HISTORIES, columns=("user_id", "items", "fold"), where=where)
    rows = stage(parts, ("user_id",), folder / "rows")
    reader = HistoryReader(rows.files, words.rank_of_index, settings).with_somebody_to_train_on()
    model = Autoencoder(_model_config(settings, words, matrix), torch.from_numpy(matrix[words.indices]))
    model.to(best_device())
    names = item_ids(lake, basis_version)
    ids = [names[index] for index in words.indices]
    earlier = earlier_bundle(deployment, "autoencoder", ds, basis_version)
    n_warm = _start_from(model, ids, earlier) if earlier else 0
    start = earlier.manifest.weights_sha256 if earlier else ""
    name = fingerprint(rows.digest + shape_of(model), asdict(settings), basis_version, start)
    discard_other(folder, name)
    curve = _run(model, reader, settings, folder, name, is_warm=n_warm > 0).curve
    scores = held_out_scores(model, reader)
    metrics = {
        "auc": scores["auc"],
        f"recall_at_{CUTOFF}": scores["recall"],
        f"precision_at_{CUTOFF}": scores["precision"],
    }
    manifest = Manifest(
        kind="autoencoder",
        config=asdict(model.config),
        basis_version=basis_version,
        lte_window=settings.window,
        ds=ds.isoformat(),
        vocabulary_hash="",
        code_version=code_version(),
        metrics=metrics,
    )
    written = save_bundle(folder, manifest, model.state_dict(), ids)
    track(
        deployment,
        TrainingRecord(
            kind="autoencoder",
            ds=ds.isoformat(),
            fingerprint=name,
            parameters=asdict(settings) | {"basis_version": basis_version, "n_vocabulary": len(ids)},
            curve=curve,
            metrics=metrics,
            artefact=folder / MANIFEST,
        ),
    )
    record_model(lake, JOB, written, "trained")
    prune_bundles(deployment, "autoencoder", ds)
    shutil.rmtree(folder / "rows")
    return {
        **{(name, ""): value for name, value in metrics.items()},
        ("n_epochs", ""): float(len(curve)),
        ("n_vocabulary", ""): float(len(ids)),
        ("n_warm", ""): float(n_warm),
        **curve_metrics(curve),
    }


def _model_config(settings: AutoencoderSection, words: Vocabulary, matrix: FloatMatrix) -> AutoencoderConfig:
    n_items = len(words.indices)
    return AutoencoderConfig(
        n_items=n_items,
        dim=matrix.shape[1],
        l2=settings.l2,
        n_negatives=negatives_for_share(n_items, settings.negatives_share),
        power=settings.power,
        seed=settings.seed,
    )


def _run(
    model: Autoencoder, reader: HistoryReader, settings: AutoencoderSection, folder: Path, name: str, *, is_warm: bool
) -> Progress:
    sampler = LogUniformSampler(model.config.n_items, model.config.n_negatives, model.config.power)
    device = model.basis.device

    def loss(batch: Histories, rng: torch.Generator) -> torch.Tensor:
        return autoencoder_loss(model, sampler, Histories(*(part.to(device) for part in batch)), rng)

    config = TrainConfig(
        epochs=settings.epochs,
        learning_rate=settings.learning_rate * (settings.warm_share if is_warm else 1),
        patience=settings.patience,
        seed=settings.seed,
        judge_start=is_warm,
    )

    def validate() -> float:
        return held_out_scores(model, reader)["recall"]

    task = Task(model, loss, reader.epoch, validate, name, partial(say, JOB))
    return Trainer(task, config, folder).run()


def held_out_scores(model: Autoencoder, reader: HistoryReader) -> dict[str, float]:
    """Look for hidden items of the held-out users; of the training users where none is held out (tiny data).

    Args:
        model: In eval mode.
        reader: Streams the histories.

    Returns:
        Means over users of ``auc``, ``recall`` and ``precision`` at 100; zeros where no user has a hidden item.
    """
    for batches_ in (reader.held_out(), reader.epoch(0)):
        rng, sums = torch.Generator().manual_seed(0), np.zeros(4)
        with torch.no_grad():
            for batch in batches_:
                moved = Histories(*(part.to(model.basis.device) for part in batch))
                sums += hidden_scores(model, moved, share=HIDDEN_SHARE, k=CUTOFF, rng=rng)
        if sums[3]:
            return dict(zip(HiddenScores._fields[:3], (sums[:3] / sums[3]).tolist(), strict=True))
    return {"auc": 0.0, "recall": 0.0, "precision": 0.0}


def _start_from(model: Autoencoder, ids: list[str], earlier: Bundle) -> int:
    """Take over an earlier bundle's weights in the same basis, item by item; returns the items taken over."""
    place = {item_id: row for row, item_id in enumerate(earlier.item_ids)}
    rows = {row: place[item_id] for row, item_id in enumerate(ids) if item_id in place}
    warm_start(model, earlier.tensors, {"first.weight": rows})
    return len(rows)


if __name__ == "__main__":
    run_job(main)
