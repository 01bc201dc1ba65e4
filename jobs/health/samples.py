"""A sample of the LTEs of one slice: the same users every day, chosen by a hash of their id."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
from pyspark.sql import functions as F

from jobs.lake.lake import Lake
from jobs.lake.vectors import vector_matrix
from lte_models.arrays import Float64Array, IntArray
from schemas import USER_LTE


@dataclass(frozen=True)
class LteSample:
    """LTEs of some users of one slice, in the order of their ids; users without items are left out.

    Attributes:
        users: User ids.
        vectors: float32 [U, D].
        n_items: int [U].
    """

    users: list[str]
    vectors: npt.NDArray[np.float32]
    n_items: IntArray

    @property
    def norms(self) -> Float64Array:
        """Norm of each vector, float64 [U]."""
        norms: Float64Array = np.linalg.norm(self.vectors.astype(np.float64), axis=1)
        return norms


def sampled_ltes(lake: Lake, ds: date, slice_key: tuple[str, str], *, one_of: int) -> LteSample:
    """Read a sample of a slice; it is empty where the day has no rows.

    Args:
        lake: Reads user_lte.
        ds: Data day.
        slice_key: Method and window.
        one_of: One of so many users is taken.
    """
    method, window = slice_key
    rows = lake.read(USER_LTE, where={"ds": ds, "method": method, "lte_window": window}).where("n_items > 0")
    if one_of > 1:
        rows = rows.where(F.crc32(F.col("user_id").cast("binary")) % one_of == 0)
    found = rows.select("user_id", "embedding", "n_items").toArrow().sort_by("user_id")
    vectors = vector_matrix(found["embedding"].combine_chunks())
    return LteSample(found["user_id"].to_pylist(), vectors, found["n_items"].to_numpy().astype(np.int64))


def paired(now: LteSample, before: LteSample) -> tuple[IntArray, IntArray]:
    """Rows of the users that are in both samples, in one order: int64 [P] each."""
    place = {user: row for row, user in enumerate(before.users)}
    rows = [(row, place[user]) for row, user in enumerate(now.users) if user in place]
    both = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]
