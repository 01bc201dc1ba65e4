"""The behaviour vectors of a lake: fitted on a schedule of their own, kept as versions, read like a basis.

The vectors of a version never change. A day uses the newest version that was fitted on it or on one of the
``behaviour.refit_days`` - 1 days before. Where there is none, the day fits one on the interactions up to its own end.
So a rerun of a day finds the vectors that it used before, and no day's vectors know its future. Between two refits, the
LTEs of two days can be compared.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import sparse

from jobs.basis.basis import known_items, read_basis
from jobs.basis.matrix import BasisKey, load_matrix, pinned_basis
from jobs.config.sections import Deployment
from jobs.lake.day import BasisDay, Day
from jobs.lake.lake import Lake
from jobs.lake.vectors import FloatMatrix, list_column
from jobs.lte.packing import packed_interactions
from jobs.lte.settings import lte_windows
from jobs.lte.windows import reach
from jobs.runtime.code_version import code_version
from jobs.runtime.progress import say
from lte_models.averages.behaviour import behaviour_vectors
from lte_models.averages.pooling import AGE_BITS, BEHAVIOUR
from schemas import INTERACTIONS, ITEM_BEHAVIOUR, ITEM_EMBEDDINGS, RUNS

# Row of table runs that says which version a day used; its basis_version is that of item_behaviour.
BEHAVIOUR_JOB = "compute_lte/behaviour"


def is_configured(deployment: Deployment) -> bool:
    """Whether method behaviour is among lte.methods."""
    return BEHAVIOUR in deployment.lte.methods


def settings_digest(deployment: Deployment) -> str:
    """Hash of what decides the vectors beside the interactions and the basis; the schedule does not."""
    settings = asdict(deployment.behaviour)
    settings.pop("refit_days")
    content = settings | {"windows": sorted(map(str, lte_windows(deployment.lte)))}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def ensure_behaviour(day: BasisDay) -> BasisKey:
    """The vectors that a day uses; fits them where the schedule says so. Records the version in table runs.

    Args:
        day: Its lake holds interactions and item_embeddings; its deployment has section [behaviour] and windows.

    Raises:
        lte_models.averages.behaviour.BehaviourError: The vectors cannot be computed; the message names the setting.
    """
    day.lake.create(ITEM_BEHAVIOUR)
    digest = settings_digest(day.deployment)
    version = _scheduled(day, digest)
    if version is None:
        version = f"{day.basis_version}-{day.ds}-{digest}"
        _fit(day, version)
    row = (version, digest, code_version(), day.ds, BEHAVIOUR_JOB)
    day.lake.replace_rows([row], RUNS, {"ds": day.ds, "job": BEHAVIOUR_JOB})
    return pinned_basis(day.lake, version, ITEM_BEHAVIOUR)


def used_behaviour(lake: Lake, ds: date) -> str | None:
    """Version of the behaviour vectors that the LTEs of ``ds`` were made with; None without method behaviour."""
    run = lake.read(RUNS, where={"ds": ds, "job": BEHAVIOUR_JOB}).select("basis_version").first()
    return None if run is None else str(run["basis_version"])


def forget_behaviour(day: Day) -> None:
    """Remove the record of a day that no longer has LTEs of method behaviour."""
    if used_behaviour(day.lake, day.ds) is not None:
        day.lake.delete(RUNS, {"ds": day.ds, "job": BEHAVIOUR_JOB})


def _scheduled(day: BasisDay, digest: str) -> str | None:
    """The newest version that is young enough for the day, from its basis and these settings."""
    rows = day.lake.read(ITEM_BEHAVIOUR, where={"of_basis": day.basis_version})
    found = rows.select("basis_version", "fit_ds").distinct().collect()
    oldest = day.ds - timedelta(days=day.deployment.behaviour.refit_days - 1)
    fits = [(row["fit_ds"], row["basis_version"]) for row in found if oldest <= row["fit_ds"] <= day.ds]
    return max((fit for fit in fits if fit[1].endswith(digest)), default=(None, None))[1]


def _fit(day: BasisDay, version: str) -> None:
    """Compute one version and commit it at once; a kill before the commit leaves nothing."""
    newest = day.lake.version(ITEM_BEHAVIOUR)  # the commit fails if another run has committed a fit by then
    assert newest is not None  # for the type checker: the table was created before
    vectors, settings = load_matrix(pinned_basis(day.lake, day.basis_version)).vectors, day.deployment.behaviour
    users = _histories(day, len(vectors))
    say("compute_lte", f"ds {day.ds}: fits {version} on {users.shape[0]} users and {users.shape[1]} items")
    found = behaviour_vectors(users, vectors, l2=settings.l2, rank=settings.rank)
    day.lake.extend(_rows(day, version, found), ITEM_BEHAVIOUR, version=newest)


def _histories(day: BasisDay, n_items: int) -> sparse.csr_array:
    """Who had what from the oldest day of all windows to the end of the day: ones, [U, V]."""
    items = known_items(read_basis(day.lake, day.basis_version), day.ds)
    window = reach(lte_windows(day.deployment.lte))
    codes = packed_interactions(day.lake.read(INTERACTIONS), items, day.ds, window)
    known = codes.selectExpr("user_id", f"shiftright(code, {AGE_BITS}) - 1 AS item_index").where("item_index >= 0")
    pairs = known.distinct().toArrow()
    users = pc.unique(pairs["user_id"])
    users = users.take(pc.array_sort_indices(users))  # the order of the engine's rows must not reach the result
    rows = pc.index_in(pairs["user_id"], users).to_numpy()
    at = (rows, pairs["item_index"].to_numpy())
    return sparse.csr_array((np.ones(len(rows)), at), shape=(len(users), n_items))


def _rows(day: BasisDay, version: str, vectors: FloatMatrix) -> pa.Table:
    """Rows of item_behaviour, in the order of item_index."""
    columns, where = ("item_index", "item_id", "first_ds"), {"basis_version": day.basis_version}
    rows = pa.Table.from_batches(day.lake.batches(ITEM_EMBEDDINGS, columns=columns, where=where)).sort_by("item_index")
    constants = {"basis_version": version, "of_basis": day.basis_version, "fit_ds": day.ds}
    for name, value in constants.items():
        rows = rows.append_column(name, pa.repeat(pa.scalar(value), len(rows)))
    return rows.append_column("embedding", list_column(vectors))
