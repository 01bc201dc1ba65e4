"""Neighbourhood baselines for next baskets: TIFU-KNN and UP-CF@r, on the counts that the ranker's examples hold.

The papers count baskets. The examples hold days and windows instead, so recency is measured in days here: TIFU-KNN
halves interactions per half-life instead of per group of baskets, and r of UP-CF@r is a window of days.

Axes: B users, N neighbours, V items; column j is row j + 1 of the vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from lte_models.arrays import Float64Array


def unit_rows(values: sparse.csr_array) -> sparse.csr_array:
    """Divide each row by its length; an empty row stays empty.

    Args:
        values: [B, V].
    """
    return _scaled(values, np.sqrt(np.asarray(values.multiply(values).sum(axis=1))))


def share_rows(values: sparse.csr_array) -> sparse.csr_array:
    """Divide each row of counts by its sum; an empty row stays empty.

    Args:
        values: [B, V], >= 0.
    """
    return _scaled(values, np.asarray(values.sum(axis=1)))


def _scaled(values: sparse.csr_array, sizes: Float64Array) -> sparse.csr_array:
    factors = 1 / np.where(sizes > 0, sizes, 1)
    return sparse.csr_array((values.data * np.repeat(factors, np.diff(values.indptr)), values.indices, values.indptr),
                            shape=values.shape)  # fmt: skip


def nearest(similarities: npt.NDArray[np.float64], k: int) -> sparse.csr_array:
    """Keep the k most similar neighbours of each user; only similarities above 0 count.

    Args:
        similarities: float64 [B, N].
        k: Number of neighbours; of equal ones the first.

    Returns:
        [B, N], the similarities that are kept.
    """
    chosen = np.argsort(-similarities, axis=1, kind="stable")[:, : min(k, similarities.shape[1])]
    users = np.repeat(np.arange(len(chosen)), chosen.shape[1])
    values = similarities[users, chosen.ravel()]
    kept = values > 0
    return sparse.csr_array((values[kept], (users[kept], chosen.ravel()[kept])), shape=similarities.shape)


def tifu_knn(
    users: sparse.csr_array, neighbours: sparse.csr_array, *, n_neighbours: int, own_share: float
) -> sparse.csr_array:
    """TIFU-KNN (Hu et al., SIGIR 2020, arXiv 2006.00556, section 4): own decayed counts and the mean of neighbours'.

    Args:
        users: [B, V], decayed counts of each user, of unit length.
        neighbours: [N, V], the same of the users who can be neighbours.
        n_neighbours: Users who are nearest by Euclidean distance; fewer if fewer have an item in common.
        own_share: The paper's alpha, from 0 to 1.

    Returns:
        [B, V], ``own_share`` * own + (1 - ``own_share``) * mean of the neighbours.
    """
    # Vectors of unit length are the nearer, the larger their inner product.
    found = nearest((users @ neighbours.T).toarray(), n_neighbours)
    found.data[:] = 1.0
    return sparse.csr_array(own_share * users + (1 - own_share) * (share_rows(found) @ neighbours))


def up_cf(
    users: sparse.csr_array,
    neighbours: sparse.csr_array,
    popularity: tuple[sparse.csr_array, sparse.csr_array],
    *,
    asymmetry: float,
    locality: float,
    n_neighbours: int,
) -> sparse.csr_array:
    """UP-CF@r (Faggioli, Polato and Aiolli, UMAP 2020): popularity within a user, added up over similar users.

    Args:
        users: [B, V], 1 for each item of a user.
        neighbours: [N, V], the same of the users who can be neighbours.
        popularity: [B, V] and [N, V], share of each item among a user's interactions of the last r days.
        asymmetry: The paper's alpha: similarity is ``|A ∩ B| / (|A|^alpha |B|^(1 - alpha))`` of user and neighbour.
        locality: The paper's q, the power of similarities; large values listen to the nearest neighbours alone.
        n_neighbours: Neighbours that count; the paper has no limit, and distant neighbours change little.

    Returns:
        [B, V], the user's own popularity, whose similarity is 1, and that of the neighbours.
    """
    own, theirs = popularity
    sizes, other_sizes = (np.maximum(np.asarray(each.sum(axis=1)), 1) for each in (users, neighbours))
    overlap: Float64Array = (users @ neighbours.T).toarray()
    similar = nearest(overlap / sizes[:, None] ** asymmetry / other_sizes ** (1 - asymmetry), n_neighbours)
    similar.data **= locality
    return sparse.csr_array(own + similar @ theirs)
