"""Inputs of the experiments, read from the lake to local disk once for all variants.

The inputs are days, items, examples and histories. Training examples end before the first test day. The examples of a
test day, and the LTEs in them, are as of the end of the day before. Rows stay on local disk only while an experiment
runs. The table experiment_examples keeps them.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pyspark.sql import functions as F

from jobs.autoencoder.histories import write_histories
from jobs.basis.basis import known_items, read_basis
from jobs.config.models import ExperimentSection
from jobs.config.sections import Deployment
from jobs.config.window import day_number
from jobs.experiments.plan import ExampleSet
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake
from jobs.ranker.examples import ExamplesOfUser, first_landing, user_events
from jobs.ranker.items import CandidateItems, load_candidates
from jobs.registry.bundles import ModelError
from jobs.runtime.code_version import code_version
from lte_models.files import write_atomically
from lte_models.ranker.examples import EXAMPLE_COLUMNS
from lte_models.ranker.logits.history_logits import DailyCounts
from lte_models.training.stream import stage
from schemas import EVENT_DAYS, EXPERIMENT_EXAMPLES, INTERACTIONS, ITEM_EMBEDDINGS, USER_HISTORIES

TRAIN, VALIDATION, TEST = "train", "validation", "test"
PARTS = (TRAIN, VALIDATION, TEST)
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Days:
    """Target days of an experiment, in ascending order; the anchor of an example is the day before its target day.

    Attributes:
        train: Days whose interactions are training targets.
        validation: Days on which no ranker is trained.
        test: Days whose interactions give the results.
    """

    train: tuple[date, ...]
    validation: tuple[date, ...]
    test: tuple[date, ...]

    @property
    def cutoff(self) -> date:
        """First test day; training reads nothing of this day."""
        return self.test[0]

    def anchors(self, part: str) -> list[date]:
        """Anchor days of a part, oldest first."""
        days: tuple[date, ...] = getattr(self, part)
        return [day - timedelta(days=1) for day in days]


def experiment_days(event_days: Sequence[date], settings: ExperimentSection, ds: date | None) -> Days:
    """Split the days with interactions. A shop that is closed on Saturdays has no test day on a Saturday.

    Args:
        event_days: Days with interactions, in any order.
        settings: Number of days of each kind.
        ds: Last test day; the last day with interactions by default.

    Raises:
        ModelError: There are not enough days.
    """
    days = sorted(day for day in event_days if ds is None or day <= ds)
    n_after = settings.test_days + settings.validation_days
    if len(days) <= n_after or (ds is not None and days[-1] != ds):
        until = f" up to ds {ds}, the newest is {days[-1] if days else 'none'}" if ds else ""
        raise ModelError(
            f"table event_days: {len(days)} days with interactions{until}; an experiment needs more than {n_after}"
            f" (experiment.test_days + validation_days) that end with ds; run ingest and embed_items first"
        )
    test, validation = days[-settings.test_days :], days[-n_after : -settings.test_days]
    first = test[0] - timedelta(days=settings.train_days)
    train = [day for day in days[:-n_after] if day >= first][:: -settings.stride_days][::-1]
    if not train:
        raise ModelError(
            f"experiment.train_days = {settings.train_days}: no day with interactions from {first} on is left to train "
            f"on, the {n_after} from {validation[0]} on decide and judge (table event_days)"
        )
    return Days(tuple(train), tuple(validation), tuple(test))


@dataclass(frozen=True)
class Built:
    """One set of examples in the table experiment_examples.

    Attributes:
        examples: The set.
        inputs_id: Hash of everything that decides its rows.
        n_rows: Number of examples in each part.
        seconds: Seconds that the build took.
    """

    examples: ExampleSet
    inputs_id: str
    n_rows: dict[str, int]
    seconds: float


class ExampleBuilder:
    """Builds sets of examples with Spark and copies them to local disk."""

    def __init__(self, lake: Lake, deployment: Deployment, days: Days, basis_version: str, folder: Path) -> None:
        self.lake, self.deployment, self.days, self.folder = lake, deployment, days, folder
        self.basis_version, self.settings = basis_version, deployment.experiment
        folder.mkdir(parents=True, exist_ok=True)

    def build(self, examples: ExampleSet) -> Built:
        """Write a set into the table, unless the table holds the set, built from the same inputs.

        Args:
            examples: The set.

        Raises:
            ModelError: A part has no example.
        """
        inputs_id = self._inputs_id(examples)
        note = self.folder / f"{examples.name}.json"
        if note.exists():
            found = json.loads(note.read_text())
            if found["inputs_id"] == inputs_id and self._is_in_table(examples, inputs_id):
                return Built(examples, inputs_id, found["n_rows"], found["seconds"])
        started = time.monotonic()
        self.lake.renew(EXPERIMENT_EXAMPLES)  # an earlier version of the code may have written other columns
        self._write(examples, inputs_id)
        built = Built(examples, inputs_id, self.count(examples), round(time.monotonic() - started, 2))
        write_atomically(note, json.dumps({name: getattr(built, name) for name in ("inputs_id", "n_rows", "seconds")}))
        return built

    def _inputs_id(self, examples: ExampleSet) -> str:
        named = {
            "examples": asdict(examples),
            "days": asdict(self.days),
            "basis_version": self.basis_version,
            "versions": [self.lake.version(INTERACTIONS), self.lake.version(ITEM_EMBEDDINGS)],
            "half_life_days": self.deployment.lte.half_life_days,
            "types": self.deployment.interactions.types,
            "code": code_version(),
        }
        return hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()

    def _is_in_table(self, examples: ExampleSet, inputs_id: str) -> bool:
        where = {"examples": examples.name, "inputs_id": inputs_id}
        return (
            next(iter(self.lake.batches(EXPERIMENT_EXAMPLES, columns=("anchor_day",), where=where)), None) is not None
        )

    def _write(self, examples: ExampleSet, inputs_id: str) -> None:
        anchors = sorted(anchor for part in PARTS for anchor in self.days.anchors(part))
        items = known_items(read_basis(self.lake, self.basis_version), self.days.cutoff - timedelta(days=1))
        numbers = tuple(day_number(anchor) for anchor in anchors)
        task = ExamplesOfUser(
            numbers,
            self.deployment.lte.half_life_days,
            sequence_days=examples.sequence_days,
            max_sequence=examples.max_sequence,
            long_days=examples.long_days,
        )
        reach = max(examples.long_days, examples.sequence_days)
        interactions = self.lake.read(INTERACTIONS)
        first = first_landing(interactions)
        events = user_events(interactions, items, self.deployment.interactions.types, anchors, reach, first)
        rows = events.mapInArrow(task, _COMPUTED).withColumns(
            {
                "basis_version": F.lit(self.basis_version),
                "anchor_ds": F.expr("date_add(DATE '1970-01-01', anchor_day)"),
                "inputs_id": F.lit(inputs_id),
                "examples": F.lit(examples.name),
            }
        )
        self.lake.replace(rows, EXPERIMENT_EXAMPLES, {"examples": examples.name})

    def count(self, examples: ExampleSet) -> dict[str, int]:
        """Number of examples in each part of a set that is in the table.

        Raises:
            ModelError: A part has no example.
        """
        rows = self.lake.read(EXPERIMENT_EXAMPLES, where={"examples": examples.name})
        counted = {row["anchor_ds"]: row["count"] for row in rows.groupBy("anchor_ds").count().collect()}
        found = {part: sum(counted.get(anchor, 0) for anchor in self.days.anchors(part)) for part in PARTS}
        for part, n_rows in found.items():
            if n_rows == 0:
                anchors = self.days.anchors(part)
                raise ModelError(
                    f"table experiment_examples, examples {examples.name!r}: no {part} example of anchor_ds "
                    f"{anchors[0] if anchors else 'none'} to {anchors[-1] if anchors else 'none'}"
                )
        return found

    def stage(self, built: Built) -> str:
        """Copy a set to local files under ``<folder>/<set>/<part>``, about as many rows as the settings allow.

        Args:
            built: The set.

        Returns:
            SHA-256 over the rows; it identifies the data of a training.
        """
        limits = {TRAIN: self.settings.max_examples, VALIDATION: self.settings.max_examples // 20, TEST: 0}
        limits[TEST] = self.settings.max_test_examples
        digests = []
        for part in PARTS:
            where: dict[str, Any] = {"examples": built.examples.name, "anchor_ds": self.days.anchors(part)}
            rows = self.lake.batches(EXPERIMENT_EXAMPLES, columns=("user_id", *EXAMPLE_COLUMNS), where=where)
            share = max(limits[part], 1) / built.n_rows[part]
            folder = self.folder / built.examples.name / part
            digests.append(stage(sampled(rows, share), ("anchor_day", "user_id"), folder).digest)
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def stage_histories(self) -> str:
        """Write and copy the histories that the autoencoder learns from, as of the day before the first test day."""
        eve = self.days.cutoff - timedelta(days=1)
        write_histories(BasisDay(self.lake, self.deployment, eve, self.basis_version))
        where: dict[str, Any] = {"ds": eve, "lte_window": self.deployment.autoencoder.window}
        rows = self.lake.batches(USER_HISTORIES, columns=("user_id", "items", "fold"), where=where)
        return stage(rows, ("user_id",), self.folder / "histories").digest


_COMPUTED = EXPERIMENT_EXAMPLES.row_type(
    [
        name
        for name in EXPERIMENT_EXAMPLES.columns
        if name not in ("basis_version", "anchor_ds", "inputs_id", "examples")
    ]
)


def sampled(parts: Iterable[pa.RecordBatch], share: float) -> Iterator[pa.RecordBatch]:
    """Keep about ``share`` of the rows.

    Only the user and the day decide, so that every set keeps the same rows.

    Args:
        parts: Rows with ``user_id`` and ``anchor_day``.
        share: Share of the rows to keep; 1 or more keeps all rows.
    """
    for part in parts:
        if share >= 1:
            yield part
            continue
        keys = zip(part.column("user_id").to_pylist(), part.column("anchor_day").to_pylist(), strict=True)
        chance = np.array([zlib.crc32(f"{user}:{day}".encode()) / 2**32 for user, day in keys])
        yield part.filter(pa.array(chance < share))


def experiment_candidates(lake: Lake, days: Days, basis_version: str, train_days: int) -> CandidateItems:
    """Items known on the day before the first test day, with counts up to the day before the last test day.

    The later counts give the popularity at later test days. A model reads this popularity but is not trained on it.

    Args:
        lake: Reads interactions, items, item_embeddings.
        days: Days of the experiment.
        basis_version: Basis of the items.
        train_days: Number of days before the first test day for which the popularity is computed.
    """
    shop = load_candidates(lake, days.cutoff, basis_version, train_days)
    if len(days.test) == 1:
        return shop
    span = (days.test[-1] - days.cutoff).days
    later = load_candidates(lake, days.test[-1], basis_version, train_days + span)
    index = np.flatnonzero(shop.row_of_index)
    columns = np.zeros(len(shop.item_ids) + 1, dtype=np.int64)
    columns[shop.row_of_index[index]] = later.row_of_index[index]
    counts = later.daily.cumulative.numpy()[:, columns]
    return replace(shop, daily=DailyCounts(later.daily.first_day, torch.from_numpy(counts)))


def leading_directions(shop: CandidateItems, n_directions: int) -> tuple[CandidateItems, float]:
    """Rotate the basis to its leading directions and keep ``n_directions`` of them.

    LTEs stay linear combinations of fixed vectors. The models' first layers are linear in the basis, so a rotation
    changes nothing for the models. Leaving out directions with little content makes the models faster.

    Args:
        shop: Items.
        n_directions: Number of directions to keep. A basis with no more directions than this is returned unchanged.

    Returns:
        The shop with content [V + 1, n_directions], and the share of the sum of squares that is kept.
    """
    if shop.content.shape[1] <= n_directions:
        return shop, 1.0
    content = shop.content.astype(np.float64)
    values, vectors = np.linalg.eigh(content.T @ content)
    kept = vectors[:, ::-1][:, :n_directions]
    # The sign of an eigenvector is arbitrary. The largest entry is made positive, so that every run gives the same.
    kept *= np.where(kept[np.abs(kept).argmax(axis=0), np.arange(n_directions)] < 0, -1.0, 1.0)
    share = float(values[::-1][:n_directions].sum() / values.sum())
    return replace(shop, content=np.ascontiguousarray(content @ kept, dtype=np.float32)), share


def save_candidates(shop: CandidateItems, folder: Path) -> str:
    """Write a shop for the worker processes, which map its arrays into memory; returns its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, npt.NDArray[Any]] = {
        "row_of_index": shop.row_of_index,
        "content": shop.content,
        "counts": shop.counts,
        "cumulative": shop.daily.cumulative.numpy(),
    }
    texts = {"item_ids": shop.item_ids, "metadata": dict(shop.metadata), "first_day": shop.daily.first_day}
    content = json.dumps(texts).encode()
    digest = hashlib.sha256(content)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
        digest.update(np.ascontiguousarray(array).tobytes())
    write_atomically(folder / "shop.json", content)
    return digest.hexdigest()


def read_candidates(folder: Path) -> CandidateItems:
    """Read what :func:`save_candidates` wrote; arrays are mapped, not copied."""
    texts = json.loads((folder / "shop.json").read_text())
    names = ("row_of_index", "content", "counts", "cumulative")
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in names}
    return CandidateItems(
        item_ids=texts["item_ids"],
        row_of_index=arrays["row_of_index"],
        content=arrays["content"],
        metadata=texts["metadata"],
        counts=arrays["counts"],
        daily=DailyCounts(texts["first_day"], torch.from_numpy(arrays["cumulative"])),
    )


def event_days(lake: Lake) -> list[date]:
    """Days with interactions, from the table that ingest keeps."""
    parts = [batch.column("event_date").to_pylist() for batch in lake.batches(EVENT_DAYS, columns=("event_date",))]
    return [day for part in parts for day in part]


def user_numbers(files: Sequence[Path]) -> IntArray:
    """Number the users of staged examples: one number per row, in the order of the files. Ids are not kept."""
    ids = pa.concat_tables(pq.read_table(file, columns=["user_id"]) for file in files)["user_id"]
    numbers: IntArray = pc.rank(ids, sort_keys="ascending", tiebreaker="dense").to_numpy().astype(np.int64)
    return numbers
