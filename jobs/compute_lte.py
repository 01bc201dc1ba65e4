"""Compute the Long-Term Embeddings of a day: one vector per user, method and window (paper, section 4).

Reads interactions, item_embeddings and event_days; writes user_lte, metrics and runs. One pass computes all methods and
windows. A broadcast join replaces item ids by integers. One shuffle brings all interactions of a user together; it
moves a user id and 8 bytes per row. Each worker multiplies sparse weights by the memory-mapped item matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.basis.basis import configured_basis, known_items, read_basis
from jobs.basis.matrix import BasisKey, load_matrix, pinned_basis
from jobs.config.sections import LteSection
from jobs.config.window import LteWindow
from jobs.lake.day import BasisDay
from jobs.lake.lake import Lake, Metrics, open_lake
from jobs.lake.vectors import list_column
from jobs.lte.behaviour import ensure_behaviour, forget_behaviour, is_configured
from jobs.lte.inputs import event_days, input_fingerprint_as_of
from jobs.lte.packing import collected, packed_interactions
from jobs.lte.settings import BLOCK_USERS, LteError, lte_settings, lte_windows, n_partitions, weightings
from jobs.lte.windows import reach, window_ages
from jobs.runtime.code_version import code_version
from jobs.runtime.entry import run_job
from jobs.runtime.flags import parse_config
from jobs.runtime.progress import warn
from lte_models.averages.behaviour import has_behaviour
from lte_models.averages.pooling import (
    BEHAVIOUR,
    Float32Array,
    Histories,
    Pooled,
    Weighting,
    long_term_embeddings,
    window_pairs,
)
from schemas import INTERACTIONS, POOLED_METHODS, RUNS, USER_LTE

JOB = "compute_lte"
_WORKER_COLUMNS = ("user_id", "embedding", "n_items", "n_unknown", "method", "lte_window")
_WORKER_SCHEMA = USER_LTE.row_type(_WORKER_COLUMNS)


def main(argv: Sequence[str] | None = None) -> None:
    """Compute all configured methods and windows as of ``--ds``."""
    config = parse_config(argv, JOB, __doc__)
    basis_version = configured_basis(config.deployment)
    with open_lake(config.deployment, JOB, config.ds) as lake:
        write_lte(BasisDay(lake, config.deployment, config.ds, basis_version))
        metrics = lte_metrics(lake, config.deployment.lte, config.ds)
        lake.record_metrics(config.ds, JOB, metrics)
        warn_of_zeros(metrics, config.ds)


def write_lte(day: BasisDay) -> None:
    """Write the slices of ``ds`` to user_lte, and the fingerprint of their inputs to runs.

    Args:
        day: Its lake holds interactions, item_embeddings, event_days; its deployment has windows, methods, partitions.

    Raises:
        jobs.basis.basis.BasisError: The basis is missing or damaged.
        LteError: There is no interaction in any window.
    """
    lte = day.deployment.lte
    # Taken first: data that arrive meanwhile make the run stale. A later fingerprint would hide such data.
    fingerprint = input_fingerprint_as_of(day)
    basis = pinned_basis(day.lake, day.basis_version)
    load_matrix(basis)  # finds a damaged basis before the computation, and writes the file for workers on this machine
    n_interactions = sum(each["n_events"] for each in event_days(day))
    if not n_interactions:
        raise LteError(f"table event_days: no interaction in the windows {list(lte.windows)} of ds={day.ds}")
    partitions = n_partitions(n_interactions, day.deployment.engine.partitions)
    rows = user_lte(
        day.lake.read(INTERACTIONS),
        read_basis(day.lake, day.basis_version),
        day.ds,
        lte=lte,
        basis=basis,
        partitions=partitions,
        behaviour=_behaviour(day),
    )
    slices = {"method": lte.methods, "lte_window": lte.windows}
    day.lake.replace(rows, USER_LTE, {"ds": day.ds, "method": POOLED_METHODS}, within=slices)
    _record_run(day, fingerprint)


def _behaviour(day: BasisDay) -> BasisKey | None:
    """The behaviour vectors of the day, in a file for the workers on this machine; None without method behaviour."""
    if not is_configured(day.deployment):
        forget_behaviour(day)
        return None
    behaviour = ensure_behaviour(day)
    load_matrix(behaviour)
    return behaviour


def user_lte(
    interactions: DataFrame,
    item_embeddings: DataFrame,
    ds: date,
    *,
    lte: LteSection,
    basis: BasisKey,
    partitions: int,
    behaviour: BasisKey | None = None,
) -> DataFrame:
    """LTEs of all users with an interaction between the start of a window and the end of ds: rows of user_lte.

    Args:
        interactions: Rows of interactions.
        item_embeddings: Rows of one basis.
        ds: Data day.
        lte: Windows, methods, half-life, way to count.
        basis: The same basis, for the workers.
        partitions: Number of partitions of the shuffle. The result does not depend on this number.
        behaviour: The behaviour vectors, where lte.methods holds behaviour.
    """
    windows = lte_windows(lte)
    codes = packed_interactions(interactions, known_items(item_embeddings, ds), ds, reach(windows))
    task = LteTask(basis, tuple(windows), tuple(weightings(lte).values()), behaviour)
    rows = codes.repartition(partitions, "user_id").mapInArrow(task, _WORKER_SCHEMA)
    return rows.withColumns({"basis_version": F.lit(basis.basis_version), "ds": F.lit(ds)})


class ItemVectors(NamedTuple):
    """Item vectors of one method.

    Attributes:
        vectors: float32 [V, D], by item_index.
        has_vector: bool [V], items that have one; None where each known item has.
    """

    vectors: Float32Array
    has_vector: NDArray[np.bool_] | None


@dataclass(frozen=True)
class LteTask:
    """The task of a worker for one partition; holds only names and numbers, so sending it to a worker is cheap.

    Attributes:
        basis: Basis to map into memory.
        windows: Windows to compute.
        weightings: Methods; each method is combined with each window.
        behaviour: Behaviour vectors to map into memory, for method behaviour.
    """

    basis: BasisKey
    windows: tuple[LteWindow, ...]
    weightings: tuple[Weighting, ...]
    behaviour: BasisKey | None = None

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Turn (user_id, code) rows into LTEs, a block of users at a time; all rows of a user are in ``batches``."""
        users, histories = collected(batches)
        vectors = self._vectors()
        for start in range(0, histories.n_users, BLOCK_USERS):
            stop = min(start + BLOCK_USERS, histories.n_users)
            yield from self._block(users.slice(start, stop - start), histories.block(start, stop), vectors)

    def _vectors(self) -> dict[str, ItemVectors]:
        """Item vectors of each method."""
        basis = ItemVectors(load_matrix(self.basis).vectors, None)
        found = {weighting.method: basis for weighting in self.weightings}
        if self.behaviour is not None:
            own = load_matrix(self.behaviour).vectors
            found[BEHAVIOUR] = ItemVectors(own, has_behaviour(own))
        return found

    def _block(
        self, users: pa.Array, histories: Histories, vectors: Mapping[str, ItemVectors]
    ) -> Iterator[pa.RecordBatch]:
        newest = histories.newest_ages()
        for window in self.windows:
            pairs = window_pairs(histories, window_ages(window))
            is_present = newest < window.start_days
            for weighting in self.weightings:
                items, has_vector = vectors[weighting.method]
                known = pairs if has_vector is None else window_pairs(histories, window_ages(window), has_vector)
                lte = long_term_embeddings(known, items, weighting)
                yield _lte_batch(users, lte, is_present, (weighting.method, str(window)))


def _lte_batch(
    users: pa.Array, lte: Pooled, is_present: NDArray[np.bool_], method_and_window: tuple[str, str]
) -> pa.RecordBatch:
    """Rows of one block; users without an interaction since the start of the window are left out."""
    if not is_present.all():
        users = users.filter(pa.array(is_present))
        lte = Pooled(lte.vectors[is_present], lte.n_items[is_present], lte.n_unknown[is_present])
    columns = [
        users,
        list_column(lte.vectors),
        pa.array(lte.n_items.astype(np.int32)),
        pa.array(lte.n_unknown.astype(np.int32)),
        *(pa.repeat(text, len(users)) for text in method_and_window),
    ]
    return pa.record_batch(columns, names=list(_WORKER_COLUMNS))


def _record_run(day: BasisDay, fingerprint: str) -> None:
    row = (day.basis_version, fingerprint, code_version(), day.ds, JOB)
    day.lake.replace_rows([row], RUNS, {"ds": day.ds, "job": JOB})


def lte_metrics(lake: Lake, lte: LteSection, ds: date) -> Metrics:
    """Users, interactions and settings of the slices of ``ds``; labels are method/window.

    The settings are recorded because LTEs of two days can be compared only where these agree.
    """
    # Only the methods of this job. A rerun also finds the slices of a model, which the first run did not find.
    pooled = lake.read(USER_LTE, where={"ds": ds, "method": POOLED_METHODS})
    slices = pooled.groupBy("method", "lte_window")
    totals = slices.agg(
        F.count("*").alias("n_users"),
        F.sum("n_items").alias("n_items"),
        F.sum("n_unknown").alias("n_unknown"),
        F.sum((F.col("n_items") == 0).cast("int")).alias("n_zero_users"),
        F.max("n_items").alias("max_n_items"),
    )
    metrics: Metrics = {(name, ""): value for name, value in lte_settings(lte).items()}
    for row in totals.collect():
        label = f"{row['method']}/{row['lte_window']}"
        metrics |= {(name, label): row[name] for name in totals.columns if name not in ("method", "lte_window")}
    return metrics


def warn_of_zeros(metrics: Metrics, ds: date) -> None:
    """Warn when all LTEs of a slice are zero: no step failed, but the slice is worthless.

    Args:
        metrics: From :func:`lte_metrics`.
        ds: Data day.
    """
    labels = [key[1] for key in metrics if isinstance(key, tuple) and key[0] == "n_zero_users"]
    for label in sorted(labels):
        n_users, n_unknown = (int(metrics["n_users", label]), int(metrics["n_unknown", label] or 0))
        if metrics["n_zero_users", label] == n_users:
            cause = f"{n_unknown} interactions in the window have no item of the catalogue that had landed"
            why = cause if n_unknown else "no user has an interaction in the window"
            warn(JOB, f"ALL {n_users} LTEs of {label}, ds={ds}, ARE ZERO: {why}")


if __name__ == "__main__":
    run_job(main)
