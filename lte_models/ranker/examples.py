"""Training examples, streamed from Parquet in row groups and collated into padded tensors; memory stays bounded.

Axes: B users (examples), L history length (left-padded), P past items of all users together, Q queries, T targets,
V items. Row 0 of every item tensor is padding or unknown; known items are rows 1..V in order of falling frequency.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from lte_models.arrays import IntArray
from lte_models.ranker.logits.history_features import history_features
from lte_models.training.stream import list_parts

OBJECTIVES = ("next_day", "clm")
AGE_BUCKETS = 32  # two buckets per doubling of hours: 2**15 hours are 3.7 years

EXAMPLE_COLUMNS = (
    "anchor_day",
    "items",
    "types",
    "ages_hours",
    "moments",
    "past_items",
    "past_n_week",
    "past_n_month",
    "past_n_short",
    "past_n_long",
    "past_days",
    "past_weekday",
    "past_visits_since",
    "past_visits_from",
    "past_last_age",
    "past_first_age",
    "past_last_gap",
    "past_w_short",
    "past_w_long",
    "targets",
)

_PAST_VALUES = [name.removeprefix("past_") for name in EXAMPLE_COLUMNS if name.startswith("past_")][1:]


def left_pad(values: npt.NDArray[Any], lengths: IntArray, width: int) -> IntArray:
    """Put each row's last ``width`` values at the right end, zeros before them.

    Args:
        values: Flat values of B rows.
        lengths: int64 [B].
        width: L.

    Returns:
        int64 [B, L].
    """
    padded = np.zeros((len(lengths), width), dtype=np.int64)
    user, place = _user_and_place(lengths)
    column = place - lengths[user] + width
    kept = column >= 0
    padded[user[kept], column[kept]] = values[kept]
    return padded


def _user_and_place(lengths: IntArray) -> tuple[IntArray, IntArray]:
    user = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]) if len(lengths) else np.zeros(0, dtype=np.int64)
    return user, np.arange(len(user)) - starts[user]


def age_bucket(hours: npt.NDArray[Any]) -> IntArray:
    """Bucket of an interaction's age at the anchor, two per doubling; 0 is reserved for padding.

    Args:
        hours: Whole hours, >= 0.

    Returns:
        int64, 1 to ``AGE_BUCKETS - 1``.
    """
    octaves = np.log2(1 + hours.astype(np.float64))
    bucket: IntArray = np.minimum(1 + np.floor(2 * octaves), AGE_BUCKETS - 1).astype(np.int64)
    return bucket


class Past(NamedTuple):
    """Each user's year before the anchor, one entry per known item, sorted by user, then item.

    Attributes:
        user: int64 [P], 0..B-1.
        items: int64 [P], rows 1..V.
        n_short: float32 [P], interactions in the short window.
        n_long: float32 [P], interactions in the long window before it.
        last_age: float32 [P], days from the last interaction to the anchor.
        w_short: float32 [P], interactions in the short window, each halved per half-life.
        w_long: float32 [P], the same for the long window.
        features: float32 [P, 22], inputs of the history logits.
    """

    user: Tensor
    items: Tensor
    n_short: Tensor
    n_long: Tensor
    last_age: Tensor
    w_short: Tensor
    w_long: Tensor
    features: Tensor


class ExampleBatch(NamedTuple):
    """Examples as the ranker takes them.

    Attributes:
        items: int64 [B, L], rows, left-padded with 0.
        types: int64 [B, L], interaction type + 1; 0 where there is no item.
        ages: int64 [B, L], age buckets; 0 where there is no item.
        query_user: int64 [Q], user of each query.
        query_position: int64 [Q], its position, 0..L-1.
        target_query: int64 [T], query of each target.
        targets: int64 [T], rows 1..V.
        past: The year before the anchor.
        anchor_day: int64 [B], days since 1970-01-01 of the anchor.
    """

    items: Tensor
    types: Tensor
    ages: Tensor
    query_user: Tensor
    query_position: Tensor
    target_query: Tensor
    targets: Tensor
    past: Past
    anchor_day: Tensor

    def to(self, device: torch.device) -> ExampleBatch:
        """Return the batch on ``device``."""
        past = Past(*(tensor.to(device, non_blocking=True) for tensor in self.past))
        moved = {
            name: value.to(device, non_blocking=True)
            for name, value in self._asdict().items()
            if isinstance(value, Tensor)
        }
        return self._replace(past=past, **moved)


@dataclass(frozen=True)
class ExampleCollate:
    """Turns rows of the examples table into an :class:`ExampleBatch`.

    Attributes:
        row_of_index: int64 [max item_index + 2], row of each item_index; 0 for items outside the vocabulary. Indices
            past its end (items newer than the vocabulary) are unknown, too.
        max_length: Largest L.
        objective: "next_day": the last position predicts the targets. "clm": each position predicts the next item of
            the sequence, so the last item is not an input. A padding position predicts nothing, and an item of the
            same moment is never predicted.
    """

    row_of_index: IntArray
    max_length: int = 100
    objective: str = "next_day"

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective: expected one of {OBJECTIVES}, got {self.objective!r}")
        if self.max_length < 1:
            raise ValueError(f"max_length: expected at least 1, got {self.max_length}")

    def rows(self, index: npt.NDArray[Any]) -> IntArray:
        """Map item_index to row, 0 where the item is unknown."""
        clipped = np.minimum(index.astype(np.int64), len(self.row_of_index) - 1)
        return np.where(index < len(self.row_of_index), self.row_of_index[clipped], 0)

    def __call__(self, rows: pa.Table) -> ExampleBatch:
        """Collate; the sequence is trimmed to the longest of the batch, at least one position wide."""
        index, lengths = list_parts(rows["items"])
        known = self.rows(index)
        types, _ = list_parts(rows["types"])
        hours, _ = list_parts(rows["ages_hours"])
        kept, lengths = _keep(known > 0, lengths)
        ahead = int(self.objective == "clm")  # the item after the last input is predicted, never an input
        width = int(min(max(lengths.max(initial=1) - ahead, 1), self.max_length))
        items, kinds, ages = (
            left_pad(values, lengths, width + ahead)
            for values in (known[kept], types[kept] + 1, age_bucket(hours[kept]))
        )
        moments = self._moments(rows, kept, lengths, width + ahead)
        query_user, query_position, target_query, targets = self._queries(items, moments, rows)
        return ExampleBatch(
            items=torch.from_numpy(items[:, :width]),
            types=torch.from_numpy(kinds[:, :width]),
            ages=torch.from_numpy(ages[:, :width]),
            query_user=torch.from_numpy(query_user),
            query_position=torch.from_numpy(query_position),
            target_query=torch.from_numpy(target_query),
            targets=torch.from_numpy(targets),
            past=self._past(rows),
            anchor_day=torch.from_numpy(rows["anchor_day"].to_numpy().astype(np.int64)),
        )

    def _moments(self, rows: pa.Table, kept: npt.NDArray[np.bool_], lengths: IntArray, width: int) -> IntArray | None:
        """Numbers of the moments, int64 [B, L + 1], where positions are compared; None where they are not."""
        if self.objective != "clm":
            return None
        moments, _ = list_parts(rows["moments"])
        return left_pad(moments[kept], lengths, width)

    def _queries(
        self, items: IntArray, moments: IntArray | None, rows: pa.Table
    ) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        n_users, width = items.shape
        if moments is not None:
            # Items that were bought together have no order: neither item follows from the other.
            is_later = moments[:, 1:] > moments[:, :-1]
            user, position = np.nonzero((items[:, :-1] > 0) & is_later)
            return user, position, np.arange(len(user)), items[user, position + 1]
        index, lengths = list_parts(rows["targets"])
        targets = self.rows(index)
        user = np.repeat(np.arange(n_users), lengths)
        last = np.full(n_users, width - 1)
        return np.arange(n_users), last, user[targets > 0], targets[targets > 0]

    def _past(self, rows: pa.Table) -> Past:
        index, lengths = list_parts(rows["past_items"])
        values = {name: list_parts(rows[f"past_{name}"])[0].astype(np.float32) for name in _PAST_VALUES}
        user, item = np.repeat(np.arange(len(lengths)), lengths), self.rows(index)
        order = np.lexsort((item, user))
        order = order[item[order] > 0]
        sorted_values = {name: value[order] for name, value in values.items()}
        features = history_features(user[order], sorted_values, len(lengths))
        kept = (sorted_values[name] for name in ("n_short", "n_long", "last_age", "w_short", "w_long"))
        arrays = (user[order], item[order], *kept, features)
        return Past(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def _keep(known: npt.NDArray[np.bool_], lengths: IntArray) -> tuple[npt.NDArray[np.bool_], IntArray]:
    user = np.repeat(np.arange(len(lengths)), lengths)
    return known, np.bincount(user[known], minlength=len(lengths)).astype(np.int64)


def lte_weights(past: Past, *, method: str, lagged: bool) -> Tensor:
    """Weight of each past interaction in the user's LTE, not normalised.

    Args:
        past: The year before the anchor.
        method: "uniform" or "recency".
        lagged: True for the long window without the short one ([365,60]), False for both ([365,0]).

    Returns:
        float [P].

    Raises:
        ValueError: ``method`` is unknown.
    """
    parts = {"uniform": (past.n_long, past.n_short), "recency": (past.w_long, past.w_short)}
    if method not in parts:
        raise ValueError(f"method: expected one of {sorted(parts)}, got {method!r}")
    long, short = parts[method]
    return long if lagged else long + short


def averaged_lte(past: Past, weights: Tensor, content: Tensor, n_users: int) -> tuple[Tensor, Tensor]:
    """Weighted mean of item vectors (paper, section 4), as of each example's anchor.

    Args:
        past: The year before the anchor.
        weights: float [P], >= 0.
        content: float [V + 1, D], the basis in row order.
        n_users: B.

    Returns:
        float [B, D] (zeros for a user without weight) and bool [B], whether the user has an LTE.
    """
    totals = torch.zeros(n_users, device=weights.device).index_add_(0, past.user, weights)
    first = torch.searchsorted(past.user, torch.arange(n_users, device=weights.device))  # Past is sorted by user
    # a bag adds each vector as it reads it: no matrix of P x D, and a tenth of the time
    sums = F.embedding_bag(past.items, content, first, mode="sum", per_sample_weights=weights)
    has_lte = totals > 0
    return sums / torch.where(has_lte, totals, 1).unsqueeze(1), has_lte
