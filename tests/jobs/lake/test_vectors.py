from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from jobs.lake.vectors import VectorError, flat_numbers, list_column, vector_lengths, vector_matrix

FLOATS = pa.list_(pa.float32())


def test_a_matrix_and_its_list_column_are_the_same_numbers() -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    column = list_column(matrix)
    assert column.type == FLOATS
    assert column.to_pylist() == [[0, 1], [2, 3], [4, 5]]
    np.testing.assert_array_equal(vector_matrix(column), matrix)


def test_a_slice_of_a_column_holds_its_own_rows_alone() -> None:
    column = list_column(np.arange(6, dtype=np.float32).reshape(3, 2)).slice(1, 2)
    assert vector_matrix(column).tolist() == [[2, 3], [4, 5]]
    assert flat_numbers(column).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("kind", [pa.large_list(pa.float32()), pa.list_(pa.float32(), 2), pa.list_(pa.float64())])
def test_every_kind_of_list_is_read(kind: pa.DataType) -> None:
    assert vector_matrix(pa.array([[1, 2], [3, 4]], kind)).tolist() == [[1, 2], [3, 4]]
    assert vector_matrix(pa.array([[1, 2], [3, 4]], kind)).dtype == np.float32


def test_columns_without_rows_and_matrices_without_rows() -> None:
    assert vector_matrix(pa.array([], FLOATS)).shape == (0, 0)
    assert vector_matrix(pa.array([], FLOATS), dim=3).shape == (0, 3)
    assert list_column(np.empty((0, 3), np.float32)).to_pylist() == []
    assert list_column(np.empty((2, 0), np.float32)).to_pylist() == [[], []]


@pytest.mark.parametrize(
    ("rows", "dim", "row", "message"),
    [
        ([[1, 2], [3]], None, 1, "expected a vector of 2 numbers, got 1"),
        ([[1, 2], [3, 4]], 3, 0, "expected a vector of 3 numbers, got 2"),
        ([[1, 2], None], None, 1, "expected a vector of 2 numbers, got 0"),
        ([[1, 2], [3, None]], None, 1, "expected finite numbers in the vector, got nan"),
        ([[1, 2], [float("-inf"), 3]], None, 1, "expected finite numbers in the vector, got -inf"),
    ],
)
def test_the_first_bad_row_is_named(
    rows: list[list[float | None] | None], dim: int | None, row: int, message: str
) -> None:
    with pytest.raises(VectorError, match=message) as refused:
        vector_matrix(pa.array(rows, FLOATS), dim=dim, must_be_finite=True)
    assert refused.value.row == row


def test_nulls_count_as_nan_and_null_rows_as_empty_where_they_are_counted_only() -> None:
    column = pa.array([[1.0, None], None, [3.0]], FLOATS)
    assert vector_lengths(column).tolist() == [2, 0, 1]
    np.testing.assert_array_equal(flat_numbers(column), [1, np.nan, 3])
    np.testing.assert_array_equal(vector_matrix(pa.array([[1.0, None]], FLOATS)), [[1, np.nan]])
