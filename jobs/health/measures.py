"""Health of the LTEs of a day for the gates: one small sample per slice, compared with 1, 7 and 28 days ago.

Validate runs these measures beside its other ones. Values against yesterday have limits in section [health] and block
publishing. A slow change of the autoencoder's LTEs blocks nothing: it marks that the next training starts from scratch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from jobs.basis.matrix import load_matrix, pinned_basis
from jobs.config.sections import Deployment, HealthSection
from jobs.gates.measured import AUTOENCODER, Limit, Measured
from jobs.health.samples import LteSample, paired, sampled_ltes
from jobs.lake.day import BasisDay, Day
from jobs.lte.settings import lte_windows
from jobs.registry.records import RETRAIN
from lte_models.evaluation import health
from schemas import USER_LTE

OFFSETS_DAYS = (1, 7, 28)

# With fewer users a quantile, a bin or a mean cosine is one person.
MIN_USERS = 100
NEIGHBOUR_USERS = 300
BASIS_ROWS = 2000
Values = dict[str, float | None]


def measure_health(day: BasisDay) -> Iterator[Measured]:
    """Health of the item basis and of each slice of a day."""
    if not day.deployment.health.enabled:
        return
    matrix = load_matrix(pinned_basis(day.lake, day.basis_version))
    known = np.flatnonzero(matrix.known_ages(day.ds) >= 0)
    items = np.asarray(matrix.vectors[evenly(known, BASIS_ROWS)], dtype=np.float32)
    yield Measured("item_embeddings", "", shape_values(items) if len(items) >= MIN_USERS else {}, ())
    for key in health_slices(day.deployment):
        yield measured_slice(day, key, items)


def evenly(rows: npt.NDArray[np.int64], n_rows: int) -> npt.NDArray[np.int64]:
    """At most about ``n_rows`` rows, evenly spread; the same rows every time."""
    return rows[:: max(1, -(-len(rows) // n_rows))]


def health_slices(deployment: Deployment) -> list[tuple[str, str]]:
    """Method and window of each slice that is measured."""
    slices = [(method, str(window)) for method in deployment.lte.methods for window in lte_windows(deployment.lte)]
    return [*slices, *([(AUTOENCODER, deployment.autoencoder.window)] if deployment.autoencoder.enabled else [])]


def measured_slice(day: Day, key: tuple[str, str], items: npt.NDArray[np.float32]) -> Measured:
    """Health of one slice.

    Args:
        day: The day.
        key: Method and window.
        items: float32 [V, D], rows of the basis.
    """
    lake, ds, settings = day.lake, day.ds, day.deployment.health
    n_users = lake.read(USER_LTE, where={"ds": ds, "method": key[0], "lte_window": key[1]}).count()
    one_of = max(1, n_users // settings.sample_users)
    now = sampled_ltes(lake, ds, key, one_of=one_of)
    earlier = {days: sampled_ltes(lake, ds - timedelta(days=days), key, one_of=one_of) for days in OFFSETS_DAYS}
    values = slice_values(now, earlier, items)
    if key[0] == AUTOENCODER:
        values[RETRAIN] = must_retrain(values, settings)
    limits = health_limits(settings)
    why = f"fewer than {MIN_USERS} users with items on {ds} or the day before"
    skipped = {limit.column: why for limit in limits if values.get(limit.column) is None}
    return Measured("user_lte", "/".join(key), {**dict.fromkeys(skipped), **values}, limits, skipped)


def slice_values(now: LteSample, earlier: Mapping[int, LteSample], items: npt.NDArray[np.float32]) -> Values:
    """All values of one slice; a value that cannot be measured is left out.

    Args:
        now: Sample of the day.
        earlier: Days back to the sample of that day.
        items: float32 [V, D], rows of the basis.
    """
    if len(now.users) < MIN_USERS:
        return {}
    values = shape_values(now.vectors)
    if len(items) and items.shape[1] == now.vectors.shape[1]:
        queries = now.vectors[evenly(np.arange(len(now.users)), NEIGHBOUR_USERS)]
        values["neighbour_share"] = health.neighbour_share(queries, items)
    for days, before in earlier.items():
        if len(before.users) >= MIN_USERS:
            values |= change_values(now, before, f"{days}d")
    if len(earlier[1].users) >= MIN_USERS and earlier[1].vectors.shape == (len(earlier[1].users), now.vectors.shape[1]):
        values |= vector_changes(now, earlier[1])
    return values


def shape_values(vectors: npt.NDArray[np.float32]) -> Values:
    """Norms and anisotropy of one table of embeddings."""
    is_there = vectors.any(axis=1)
    values: Values = {**health.norm_quantiles(vectors), **health.spectrum(vectors)}
    if is_there.sum() > 1:
        values["pair_cosine"] = health.pair_cosine(vectors[is_there])
    return values


def change_values(now: LteSample, before: LteSample, suffix: str) -> Values:
    """PSI and KS of norms and of n_items against an earlier day."""
    pairs = {"norm": (now.norms, before.norms), "n_items": (now.n_items.astype(float), before.n_items.astype(float))}
    found: Values = {}
    for name, (ours, theirs) in pairs.items():
        found[f"{name}_psi_{suffix}"] = health.psi(ours, theirs)
        found[f"{name}_ks_{suffix}"] = health.ks(ours, theirs)
    return found


def vector_changes(now: LteSample, before: LteSample) -> Values:
    """What moved in the vectors themselves since yesterday."""
    ours, theirs = paired(now, before)
    rank = health.spectrum(before.vectors)["effective_rank"]
    share = health.spectrum(now.vectors)["effective_rank"] / rank if rank else None
    return {
        "centroid_shift": health.centroid_shift(now.vectors, before.vectors),
        "effective_rank_share": share,
        "frozen_share": health.frozen_share(
            now.vectors[ours], before.vectors[theirs], now.n_items[ours] != before.n_items[theirs]
        ),
    }


def health_limits(settings: HealthSection) -> tuple[Limit, ...]:
    """The limits that block publishing."""
    largest = {
        "norm_psi_1d": "max_psi",
        "n_items_psi_1d": "max_psi",
        "norm_ks_1d": "max_ks",
        "n_items_ks_1d": "max_ks",
        "centroid_shift": "max_centroid_shift",
        "frozen_share": "max_frozen_share",
    }
    found = [
        Limit(name, maximum=getattr(settings, limit), setting=f"health.{limit}") for name, limit in largest.items()
    ]
    rank = settings.min_effective_rank_share
    return (*found, Limit("effective_rank_share", minimum=rank, setting="health.min_effective_rank_share"))


def must_retrain(values: Mapping[str, float | None], settings: HealthSection) -> float:
    """1 where the LTEs of the autoencoder moved so far that its next training starts from scratch; 0 otherwise."""
    moved = values.get("norm_psi_28d")
    return float(moved is not None and moved > settings.retrain_psi)
