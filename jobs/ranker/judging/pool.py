"""What the gate pools: scores per user-day of the candidates of the last days, each on the day after its training.

One training says little about the next one, and one day has few users. So the gate judges the procedure: the
candidates that the same settings made on the last ``ranker.gate_days`` days. On a first run there are no such
candidates. Then one candidate is trained without these days and judged on all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyspark.sql import functions as F

from jobs.config.sections import Deployment
from jobs.config.window import day_number
from jobs.lake.day import BasisDay
from jobs.lake.predicates import Predicate
from jobs.ranker.readers import days_with_examples
from lte_models.arrays import Float64Array, IntArray
from schemas import RANKER_SCORES

# Settings that do not change what a training makes.
_NOT_TRAINED = ("enabled", "n_workers", "gate_days", "gate_min_users", "gate_baselines")


def inputs_id(deployment: Deployment, basis_version: str) -> str:
    """Hash of what makes candidates comparable; scores under another hash are not pooled.

    Args:
        deployment: Settings of the training and interaction types.
        basis_version: Basis of the items.
    """
    named = {name: value for name, value in asdict(deployment.ranker).items() if name not in _NOT_TRAINED}
    content = {"ranker": named, "types": deployment.interactions.types, "basis_version": basis_version}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()


def first_test_day(day: BasisDay) -> date:
    """First day that the candidate of ``ds`` does not train on, and is judged on.

    This is ``ds``, unless no candidate was judged in the days before. Then it is the first of the ``ranker.gate_days``
    days, or a later one where fewer than half of the days with examples would be left to train on.

    Args:
        day: Data day; its lake holds ranker_scores and training_examples.
    """
    settings, ds = day.deployment.ranker, day.ds
    if earlier_scores(day) is not None:
        return ds
    oldest = ds - timedelta(days=settings.train_days + settings.gate_days)
    anchors = days_with_examples(day.lake, day.basis_version, oldest, ds - timedelta(days=2))
    for n_days in range(settings.gate_days, 1, -1):
        first = ds - timedelta(days=n_days - 1)
        n_left = sum(anchor < first - timedelta(days=1) for anchor in anchors)
        if n_left - settings.validation_days >= n_days:
            return first
    return ds


@dataclass(frozen=True)
class UserDays:
    """Scores of models on the same user-days.

    Attributes:
        user: User of each user-day, [B].
        day: int64 [B], days since 1970.
        values: Model to its NDCG, float64 [B]; NaN where the model was not measured or the user has no known target.
    """

    user: Sequence[str]
    day: IntArray
    values: Mapping[str, Float64Array]

    def both(self, model: str, rival: str) -> Pair:
        """The user-days on which two models were measured.

        Args:
            model: Name of a model.
            rival: Name of another model.
        """
        blank = np.full(len(self.day), np.nan)
        ours, theirs = (self.values.get(name, blank) for name in (model, rival))
        kept = ~np.isnan(ours) & ~np.isnan(theirs)
        return Pair(ours[kept], theirs[kept], self.number[kept], self.day[kept])

    def last_day(self) -> UserDays:
        """The user-days of the last day."""
        kept = self.day == self.day.max(initial=0)
        users = [user for user, is_kept in zip(self.user, kept, strict=True) if is_kept]
        return UserDays(users, self.day[kept], {name: values[kept] for name, values in self.values.items()})

    @cached_property
    def number(self) -> IntArray:
        """A number per user: int64 [B]."""
        numbers: IntArray = pd.factorize(np.asarray(self.user, dtype=object))[0].astype(np.int64)
        return numbers


@dataclass(frozen=True)
class Pair:
    """Two models on the same user-days.

    Attributes:
        model: float64 [B].
        rival: float64 [B].
        user: int64 [B], a number per user.
        day: int64 [B], days since 1970.
    """

    model: Float64Array
    rival: Float64Array
    user: IntArray
    day: IntArray

    @property
    def n_users(self) -> int:
        """Number of different users."""
        return len(np.unique(self.user))

    @property
    def n_days(self) -> int:
        """Number of different days."""
        return len(np.unique(self.day))


def write_scores(day: BasisDay, scores: UserDays) -> None:
    """Replace the scores that the run of ``ds`` measured.

    Args:
        day: Data day of the run; its lake holds ranker_scores.
        scores: Scores of this run; a NaN is left out.
    """
    days = np.asarray(scores.day).astype("datetime64[D]").tolist()
    parts = [_rows(scores.user, days, model, values) for model, values in scores.values.items()]
    rows = pa.concat_tables(parts)
    named = inputs_id(day.deployment, day.basis_version)
    found = day.lake.spark.createDataFrame(rows).withColumns({"inputs_id": F.lit(named), "ds": F.lit(day.ds)})
    day.lake.replace(found, RANKER_SCORES, {"ds": day.ds}, expected_rows=rows.num_rows)


def _rows(user: Sequence[str], days: Sequence[date], model: str, values: Float64Array) -> pa.Table:
    kept = pa.array(~np.isnan(values))
    columns = {
        "user_id": pa.array(user, pa.string()),
        "test_day": pa.array(days, pa.date32()),
        "model": pa.array([model] * len(values), pa.string()),
        "ndcg": pa.array(values, pa.float64()),
    }
    return pa.table(columns).filter(kept)


def earlier_scores(day: BasisDay) -> UserDays | None:
    """Scores that runs before ``ds`` measured in the days that the gate of ``ds`` pools; None if there are none.

    A day that several runs measured has the scores of the run nearest to it.

    Args:
        day: Data day; its lake holds ranker_scores. Runs of this day and later ones are not read, so that a rerun
            decides as the run did.
    """
    days = [day.ds - timedelta(days=back) for back in range(day.deployment.ranker.gate_days - 1, 0, -1)]
    if not days:
        return None
    where: Predicate = {"ds": days, "inputs_id": inputs_id(day.deployment, day.basis_version)}
    names = ("user_id", "test_day", "model", "ndcg", "ds")
    parts = [pa.Table.from_batches([batch]) for batch in day.lake.batches(RANKER_SCORES, columns=names, where=where)]
    rows = pa.concat_tables(parts).to_pandas() if parts else pd.DataFrame(columns=list(names))
    rows = rows[rows["test_day"] >= days[0]]
    if rows.empty:
        return None
    rows = rows[rows["ds"] == rows.groupby("test_day")["ds"].transform("min")]
    wide = rows.pivot(index=["user_id", "test_day"], columns="model", values="ndcg")
    numbers = np.array([day_number(each) for each in wide.index.get_level_values("test_day")], dtype=np.int64)
    values = {str(model): wide[model].to_numpy(dtype=np.float64) for model in wide.columns}
    return UserDays(wide.index.get_level_values("user_id").tolist(), numbers, values)


def pooled(now: UserDays, before: UserDays | None) -> UserDays:
    """Scores of this run and of earlier runs, each day once.

    Args:
        now: Scores of this run.
        before: From :func:`earlier_scores`.
    """
    if before is None:
        return now
    kept = ~np.isin(before.day, now.day)
    models = dict.fromkeys([*now.values, *before.values])
    values = {model: np.concatenate([_of(before, model)[kept], _of(now, model)]) for model in models}
    users = [user for user, is_kept in zip(before.user, kept, strict=True) if is_kept]
    return UserDays([*users, *now.user], np.concatenate([before.day[kept], now.day]), values)


def _of(scores: UserDays, model: str) -> npt.NDArray[np.float64]:
    return scores.values.get(model, np.full(len(scores.day), np.nan))
