"""Negatives drawn log-uniformly over popularity rank, without replacement, with exact-in-the-limit inclusion rates."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_BISECTIONS = 200


def rank_by_frequency(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Order items by falling count, ties by position, so that rank 0 is the most frequent.

    Args:
        counts: int [V], how often each item occurs in the training data.

    Returns:
        int64 [V], positions of the items in rank order.

    Raises:
        ValueError: There is no item, or a count is negative.
    """
    if counts.size == 0:
        raise ValueError("the vocabulary holds no item: nothing to rank")
    if counts.min() < 0:
        raise ValueError(f"count {counts.min()} at position {counts.argmin()} is negative")
    return np.argsort(-counts.astype(np.int64), kind="stable")


def log_uniform(n_items: int, power: float) -> Tensor:
    """Probability of each rank: ``log((r + 2) / (r + 1)) ** power``, normalised.

    Args:
        n_items: V.
        power: 1 is the classic log-uniform, 0 uniform; larger values draw more popular ("harder") items.

    Returns:
        float64 [V], sums to 1.

    Raises:
        ValueError: ``n_items`` < 1 or ``power`` is negative or not finite.
    """
    if n_items < 1:
        raise ValueError(f"vocabulary: expected at least 1 item to sample from, got {n_items}")
    if not 0 <= power < float("inf"):
        raise ValueError(f"power factor: expected a finite number >= 0, got {power}")
    ranks = torch.arange(n_items, dtype=torch.float64)
    weights = torch.log1p(1 / (ranks + 1)) ** power
    return weights / weights.sum()


def inclusion(probabilities: Tensor, n_samples: int) -> Tensor:
    """Rate at which each item is among ``n_samples`` items drawn one after another without replacement.

    Give item i an exponential clock of rate p_i. The draw is the first n clocks to ring. If the draw ended at a fixed
    time t instead, it would hold item i with probability ``1 - exp(-p_i t)``. At the t used, these rates sum to n.

    Args:
        probabilities: float64 [V], of the first draw.
        n_samples: n, 1 to V.

    Returns:
        float64 [V], sums to n; all ones for n = V.
    """
    if n_samples == probabilities.numel():
        return torch.ones_like(probabilities)
    low, high = 0.0, 1.0
    while float(-torch.expm1(-probabilities * high).sum()) < n_samples:
        high *= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if middle in (low, high):  # neighbouring floats: nothing would change any more
            break
        below = float(-torch.expm1(-probabilities * middle).sum()) < n_samples
        low, high = (middle, high) if below else (low, middle)
    return -torch.expm1(-probabilities * high)


@dataclass(frozen=True)
class LogUniformSampler:
    """Draws distinct ranks; one draw serves a whole batch.

    Attributes:
        n_items: V, ranks are 0..V-1 with 0 the most frequent item.
        n_samples: S, drawn each time, at most V.
        power: Exponent of the log-uniform weights.
        log_expected: float32 [V], log of each rank's inclusion rate: the logQ of Monte Carlo corrections.
    """

    n_items: int
    n_samples: int
    power: float = 1.0
    probabilities: Tensor = field(init=False, repr=False, compare=False)
    log_expected: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        probabilities = log_uniform(self.n_items, self.power)
        if not 1 <= self.n_samples <= self.n_items:
            raise ValueError(f"cannot draw {self.n_samples} distinct items of {self.n_items}")
        object.__setattr__(self, "probabilities", probabilities)
        object.__setattr__(self, "log_expected", inclusion(probabilities, self.n_samples).log().float())

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw S distinct ranks: the S exponential clocks that ring first.

        Args:
            generator: CPU generator; its state alone decides the draw.

        Returns:
            int64 [S], in the order drawn.
        """
        clocks = torch.empty(self.n_items, dtype=torch.float64).exponential_(generator=generator)
        return torch.topk(clocks / self.probabilities, self.n_samples, largest=False, sorted=True).indices


def negatives_for_share(n_items: int, share: float) -> int:
    """Number of negatives for a share of the vocabulary (the paper draws 0.5 % of the classes), at least one.

    Args:
        n_items: V.
        share: Part of the vocabulary, in (0, 1].

    Returns:
        S, between 1 and V.

    Raises:
        ValueError: ``share`` is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share of negatives: expected a number in (0, 1], got {share}")
    return max(1, min(n_items, round(n_items * share)))


def accidental_hits(targets: Tensor, negatives: Tensor) -> Tensor:
    """Mark the negatives that are the target itself.

    Args:
        targets: int [T].
        negatives: int [S], shared by all targets.

    Returns:
        bool [T, S].
    """
    return targets.unsqueeze(1) == negatives.unsqueeze(0)
