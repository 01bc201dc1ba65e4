"""LTEs of any day and any method for the users of an analysis, and what moved between two days (paper, section 7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.basis.basis import known_items, read_basis
from jobs.basis.matrix import load_matrix, pinned_basis
from jobs.config.window import LONG_DAYS, SHORT_DAYS, LteWindow, day_number
from jobs.lake.lake import Lake
from jobs.lte.packing import collected, packed_interactions
from jobs.ranker.items import CandidateItems
from lte_models.arrays import Float64Array, IntArray
from lte_models.averages import drift
from lte_models.averages.pooling import Histories, Weighting, WindowPairs, long_term_embeddings
from schemas import INTERACTIONS

WINDOW = range(SHORT_DAYS, LONG_DAYS)  # ages in the lagged window [365, 60)
Vectors = npt.NDArray[np.float32]
Encoder = Callable[[IntArray, IntArray], Vectors]  # item_index of all users, items per user; NaN: nothing known


@dataclass(frozen=True)
class UserWindows:
    """Interactions of all users, from which the LTE of each earlier day can be computed.

    Attributes:
        histories: Interactions; ages are counted from ``last``.
        users: User ids in row order.
        last: Newest day, as days since 1970.
        known_age: Days that each item has been known on that day, int64 [n].
        vectors: float32 [n, C], the basis by item_index; zeros for an item that the shop does not have.
    """

    histories: Histories
    users: list[str]
    last: int
    known_age: IntArray
    vectors: Vectors

    def pairs(self, day: int) -> WindowPairs:
        """The window [365, 60] as of the end of ``day``, days since 1970; ages are counted from ``last``."""
        return drift.earlier_window(
            self.histories, WINDOW, offset_days=self.last - day, known_age=self.known_age.astype(np.int64)
        )

    def averages(self, day: int, weighting: Weighting) -> Vectors:
        """LTEs of all users as of the end of a day, float32 [U, C]."""
        return long_term_embeddings(self.pairs(day), self.vectors, weighting).vectors

    def learned(self, day: int, encode: Encoder) -> Vectors:
        """LTEs of an encoder: float32 [U, C]. A user with a history of unknown items gets the uniform average."""
        pairs = self.pairs(day)
        rows = pairs.histories.rows[pairs.starts]
        lengths = np.bincount(rows, minlength=self.histories.n_users).astype(np.int64)
        found = encode(pairs.histories.item_indices[pairs.starts], lengths)
        is_lost: npt.NDArray[np.bool_] = np.asarray(np.isnan(found).any(axis=1))
        return np.where(is_lost[:, None], self.averages(day, Weighting("uniform")), found).astype(np.float32)

    def row_of(self, users: list[str]) -> IntArray:
        """Row of each user, -1 for a user without interactions: int64 [B]."""
        place = {user: row for row, user in enumerate(self.users)}
        return np.array([place.get(user, -1) for user in users], dtype=np.int64)


def read_windows(
    lake: Lake, basis_version: str, shop: CandidateItems, first: date, *, last: date, offset_days: int
) -> UserWindows:
    """Read the interactions that the windows of some days hold.

    Args:
        lake: Reads interactions and the basis.
        basis_version: Basis of the items.
        shop: Items with their vectors.
        first: Oldest day whose LTE is wanted, before it is set back by ``offset_days``.
        last: Newest day.
        offset_days: Largest offset.
    """
    reach = LONG_DAYS + (last - first).days + offset_days
    items = known_items(read_basis(lake, basis_version), last).select("item_id", "item_index")
    packed = packed_interactions(lake.read(INTERACTIONS), items, last, LteWindow(reach, 0)).toArrow()
    users, histories = collected(packed.to_batches())
    known_age = load_matrix(pinned_basis(lake, basis_version)).known_ages(last)
    rows = np.zeros(len(known_age), dtype=np.int64)
    rows[: len(shop.row_of_index)] = shop.row_of_index
    is_in_shop = rows > 0
    return UserWindows(
        histories.where(np.isin(histories.item_indices, np.flatnonzero(is_in_shop))),
        pa.array(users).to_pylist(),
        day_number(last),
        known_age,
        np.ascontiguousarray(shop.content[rows], dtype=np.float32),
    )


@dataclass(frozen=True)
class Moved:
    """How far the LTEs of the users with an LTE on both days moved.

    Attributes:
        tau: The paper's turnover.
        cosine: Of the LTEs.
        centred: Of the LTEs less their mean.
        drift: L2 distance.
        bound: What the drift cannot exceed; NaN where no bound is known.
    """

    tau: Float64Array
    cosine: Float64Array
    centred: Float64Array
    drift: Float64Array
    bound: Float64Array


def moved(windows: UserWindows, day: int, offset: int, ltes: tuple[Vectors, Vectors], weighting: Weighting) -> Moved:
    """Compare the LTEs of a day with those of ``offset`` days before.

    Args:
        windows: Interactions.
        day: The later day, days since 1970.
        offset: Days between the two.
        ltes: LTEs of the later day and of the earlier day, float32 [U, C] each.
        weighting: Weighting of averages, for the bound.
    """
    changes = drift.turnover(windows.pairs(day), windows.pairs(day - offset), weighting, len(windows.vectors))
    kept = (changes.n_now > 0) & (changes.n_before > 0)
    now, before = (each[kept] for each in ltes)
    max_norm = float(np.linalg.norm(windows.vectors, axis=1).max(initial=0.0))
    return Moved(
        tau=drift.paper_tau(changes)[kept],
        cosine=drift.cosines(now, before),
        centred=drift.cosines(now - now.mean(axis=0), before - before.mean(axis=0)),
        drift=drift.distances(now, before),
        bound=drift.drift_bound(changes, max_norm)[kept],
    )
