"""Numbers that replace arrays: length, bad elements, norm. Workers compute the numbers, so no vector is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, DoubleType, FloatType, LongType, StructField, StructType

from jobs.lake.vectors import flat_numbers, vector_lengths


def without_arrays(rows: DataFrame, arrays: Sequence[StructField]) -> DataFrame:
    """Replace each array ``c`` by ``c_length``, ``c_n_bad`` (nulls, NaN, infinities) and, of floats, ``c_norm``.

    Args:
        rows: Rows.
        arrays: Declarations of the array columns.
    """
    if not arrays:
        return rows
    kinds = {field.name: _is_float(field) for field in arrays}
    others = [field for field in rows.schema if field.name not in kinds]
    task = ArrayScalars(tuple(field.name for field in others), kinds)
    derived = [
        StructField(name, DoubleType() if name.endswith("_norm") else LongType()) for name in array_scalars(arrays)
    ]
    plain = [StructField(field.name, field.dataType) for field in others]
    return rows.mapInArrow(task, StructType([*plain, *derived]))


def _is_float(field: StructField) -> bool:
    return isinstance(field.dataType, ArrayType) and isinstance(field.dataType.elementType, FloatType)


def array_scalars(arrays: Iterable[StructField]) -> list[str]:
    """Names of the numbers that replace arrays."""
    return [
        f"{field.name}_{suffix}"
        for field in arrays
        for suffix in (("length", "n_bad", "norm") if _is_float(field) else ("length", "n_bad"))
    ]


@dataclass(frozen=True)
class ArrayScalars:
    """Turns the arrays of a partition into numbers.

    Attributes:
        others: Columns that stay.
        is_float: Name of each array column to whether its elements are floats.
    """

    others: tuple[str, ...]
    is_float: Mapping[str, bool]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Turn rows with arrays into rows with numbers."""
        for batch in batches:
            columns = {name: batch[name] for name in self.others}
            for name, is_float in self.is_float.items():
                columns |= _numbers(name, batch[name], is_float)
            yield pa.record_batch(columns)


def _numbers(name: str, lists: pa.ListArray, is_float: bool) -> dict[str, pa.Array]:
    numbers, sizes = flat_numbers(lists).astype(np.float64), vector_lengths(lists)
    n_bad = _sums((~np.isfinite(numbers)).astype(np.float64), sizes).astype(np.int64)
    found = {f"{name}_length": lists.value_lengths().cast(pa.int64()), f"{name}_n_bad": pa.array(n_bad)}
    if is_float:
        found[f"{name}_norm"] = pa.array(np.sqrt(_sums(numbers**2, sizes)))
    return found


def _sums(values: NDArray[np.float64], sizes: NDArray[np.integer]) -> NDArray[np.float64]:
    """Sum of each run of ``sizes`` values; 0 for an empty run."""
    sums = np.zeros(len(sizes))
    filled = sizes > 0
    if filled.any():
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        sums[filled] = np.add.reduceat(values, starts[filled])
    return sums
