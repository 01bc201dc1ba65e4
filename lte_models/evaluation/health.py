"""Health of a table of embeddings in a few numbers: norms, anisotropy, and what moved since an earlier day.

Axes: U rows (users or items), D embedding size. All functions are deterministic; draws have a seed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from lte_models.arrays import Float64Array

Vectors = npt.NDArray[np.floating]
N_BINS = 10

# Share that stands for an empty bin, so that the logarithm exists: half a row of the sample.
_HALF_A_ROW = 0.5


def norm_quantiles(vectors: Vectors) -> dict[str, float]:
    """Quantiles .01, .5 and .99 of the norms.

    Args:
        vectors: float [U, D], at least one row.
    """
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    found = np.quantile(norms, [0.01, 0.5, 0.99])
    return {f"norm_{name}": float(value) for name, value in zip(("p01", "p50", "p99"), found, strict=True)}


def pair_cosine(vectors: Vectors, n_pairs: int = 2000, seed: int = 0) -> float:
    """Mean cosine of random pairs of different rows: near 1 where all embeddings say the same.

    Args:
        vectors: float [U, D], at least two rows; none is zero.
        n_pairs: Pairs drawn.
        seed: Of the draw.
    """
    rng = np.random.default_rng(seed)
    first = rng.integers(len(vectors), size=n_pairs)
    second = (first + rng.integers(1, len(vectors), size=n_pairs)) % len(vectors)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float(np.einsum("nd,nd->n", units[first], units[second]).mean())


def spectrum(vectors: Vectors) -> dict[str, float]:
    """Shape of the cloud of embeddings less their mean.

    ``effective_rank`` is exp of the entropy of the shares of variance (Roy & Vetterli 2007): D for a ball, 1 for a
    line.
    ``top_singular_share`` is the share of variance in the first direction.

    Args:
        vectors: float [U, D].

    Returns:
        Both; 0 where all rows are equal.
    """
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    variances = np.linalg.eigvalsh(centred.T @ centred).clip(min=0)
    total = float(variances.sum())
    if total <= np.finfo(np.float32).eps * len(vectors) * float(np.square(vectors, dtype=np.float64).mean()):
        return {"effective_rank": 0.0, "top_singular_share": 0.0}
    shares = variances[variances > 0] / total
    rank = float(np.exp(-(shares * np.log(shares)).sum()))
    return {"effective_rank": rank, "top_singular_share": float(shares.max())}


def centroid_shift(now: Vectors, before: Vectors) -> float:
    """Distance of the two means over the mean norm of the earlier rows.

    Args:
        now: float [U, D].
        before: float [U', D], not all zero.
    """
    means = [each.mean(axis=0, dtype=np.float64) for each in (now, before)]
    return float(np.linalg.norm(means[0] - means[1]) / np.linalg.norm(before.astype(np.float64), axis=1).mean())


def psi(now: Float64Array, before: Float64Array) -> float:
    """Population stability index over the deciles of the earlier values.

    Sum over bins of (a - b) ln(a / b) with the shares a now and b before. The usual reading: below .1 is stable, above
    .25 has moved.

    Args:
        now: float [U].
        before: float [U'].
    """
    edges = np.unique(np.quantile(before, np.arange(1, N_BINS) / N_BINS))
    shares = []
    for values in (now, before):
        counts = np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
        shares.append(np.maximum(counts, _HALF_A_ROW) / len(values))
    return float(((shares[0] - shares[1]) * np.log(shares[0] / shares[1])).sum())


def ks(now: Float64Array, before: Float64Array) -> float:
    """Kolmogorov-Smirnov distance of two samples: the largest difference of their distribution functions."""
    return float(stats.ks_2samp(now, before, method="asymp").statistic)


def frozen_share(now: Vectors, before: Vectors, changed: npt.NDArray[np.bool_]) -> float:
    """Share of rows whose vector is the same bit for bit although what it is made from changed.

    Args:
        now: float [U, D].
        before: float [U, D], the same users.
        changed: bool [U], whether the user's history changed.

    Returns:
        Share of the changed rows; 0 where no row changed.
    """
    if not changed.any():
        return 0.0
    return float((now[changed] == before[changed]).all(axis=1).mean())


def neighbour_share(queries: Vectors, items: Vectors, k: int = 10) -> float:
    """Share of the catalogue that the k best items of anyone hold, of the share that is possible.

    Args:
        queries: float [U, D].
        items: float [V, D].
        k: Items per query.

    Returns:
        Distinct items over min(V, U * k).
    """
    k = min(k, len(items))
    scores = queries @ items.T  # [U, V]
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return len(np.unique(best)) / min(len(items), len(queries) * k)
