"""List columns of Arrow as matrices, and back: the only place that knows how vectors lie in a list column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

FloatMatrix = NDArray[np.float32]


class VectorError(ValueError):
    """A list column that is not a matrix of finite numbers.

    Attributes:
        row: The first wrong row of the column; callers name the key of the row.
    """

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(problem)
        self.row = row


def vector_matrix(column: pa.Array, *, dim: int | None = None, must_be_finite: bool = False) -> FloatMatrix:
    """Read a list column as a matrix; nothing is copied where the column holds float32 without nulls.

    Args:
        column: List of numbers, B rows; a null row counts as a vector without numbers.
        dim: Length that every vector must have; by default the length of the first row.
        must_be_finite: Whether a null, a NaN or an infinite number is refused. If False, a null becomes NaN.

    Returns:
        float32 [B, D]; [0, 0] for a column without rows and without ``dim``.

    Raises:
        VectorError: A vector has another length than ``dim``, or a number is not finite.
    """
    lengths = vector_lengths(column)  # [B]
    expected = int(lengths[0]) if dim is None and len(lengths) else dim or 0
    other = np.flatnonzero(lengths != expected)
    if other.size:
        row = int(other[0])
        raise VectorError(row, f"expected a vector of {expected} numbers, got {lengths[row]}")
    matrix: FloatMatrix = flat_numbers(column).astype(np.float32, copy=False).reshape(len(column), expected)  # [B, D]
    if must_be_finite:
        _require_finite(matrix)
    return matrix


def vector_lengths(column: pa.Array) -> NDArray[np.int64]:
    """Length of each row's list, int64 [B]; 0 for a null row."""
    lengths: NDArray[np.int64] = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64, copy=False)


def flat_numbers(column: pa.Array) -> NDArray[np.floating | np.integer]:
    """The numbers of all rows one after the other, in the column's own type; a null becomes NaN."""
    numbers: NDArray[np.floating | np.integer] = pc.list_flatten(column).to_numpy(zero_copy_only=False)
    return numbers


def _require_finite(matrix: FloatMatrix) -> None:
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if bad.size:
        row = int(bad[0])
        value = matrix[row][~np.isfinite(matrix[row])][0]
        raise VectorError(row, f"expected finite numbers in the vector, got {value}")


def list_column(matrix: FloatMatrix) -> pa.ListArray:
    """Turn a matrix into a list column.

    Args:
        matrix: float32 [B, D].

    Returns:
        list<float>, B rows of D numbers.
    """
    n_rows, dim = matrix.shape
    # offsets are 32 bits wide: the callers' batches hold far fewer than 2^31 numbers
    offsets = pa.array(np.arange(n_rows + 1, dtype=np.int32) * np.int32(dim))
    return pa.ListArray.from_arrays(offsets, pa.array(matrix.reshape(-1)))
