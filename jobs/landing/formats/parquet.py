"""Rows of a Parquet file, in batches whose decoded size is limited before they are decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.landing.formats.parquet_pages import (
    DELTA_BYTE_ARRAY,
    DICTIONARY,
    PLAIN,
    PLAIN_DICTIONARY,
    RLE_DICTIONARY,
    Page,
    PageError,
    column_pages,
)
from jobs.landing.formats.pieces import (
    DecodedBytes,
    FileRefusedError,
    Piece,
    RawRows,
    ReadLimits,
    Wanted,
    require_columns,
)
from jobs.landing.raw_text import raw_json, scalar_value

REFERABLE = {PLAIN, PLAIN_DICTIONARY, RLE_DICTIONARY}
WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 0}
BUFFER_BYTES = 4 << 20

# A page that decodes to at most this many times its bytes in the file is large, but not a decompression bomb.
HONEST_RATIO = 4

# INT96 can hold timestamps that 64 bits of microseconds cannot. Reading them also as seconds reveals a wrong number.
MOMENTS = "event_ts"


@dataclass(frozen=True)
class _Column:
    """One column of one row group, as its page headers describe it.

    Attributes:
        name: Top-level column.
        width: Bytes of a value; 0 if values differ in size.
        is_repeated: Whether a row may hold any number of values.
        reads_dictionary: Whether Arrow returns references and a dictionary.
        pages: Page headers.
    """

    name: str
    width: int
    is_repeated: bool
    reads_dictionary: bool
    pages: tuple[Page, ...]

    @property
    def encodings(self) -> set[int]:
        """How its values are encoded."""
        return {each.encoding for each in self.pages if each.is_data}

    def row_bytes(self) -> float:
        """Bytes that a row takes at most when it is decoded, averaged over the rows of a page."""
        dictionary = max((each.n_bytes for each in self.pages if each.kind == DICTIONARY), default=0)
        costs = [self._value_bytes(each, dictionary) for each in self.pages if each.is_data]
        return max((cost * self._values_per_row(costs) for cost in costs), default=0.0)

    def _value_bytes(self, page: Page, dictionary: int) -> float:
        if self.width:
            return self.width
        if page.encoding == DELTA_BYTE_ARRAY:  # a value may repeat the whole previous value
            return page.n_bytes
        if page.encoding in (PLAIN_DICTIONARY, RLE_DICTIONARY):
            return 4 if self.reads_dictionary else dictionary
        return page.n_bytes / max(1, page.n_values)

    def _values_per_row(self, costs: Sequence[float]) -> int:
        return sum(each.n_values for each in self.pages if each.is_data) if self.is_repeated and costs else 1


def parquet_pieces(stream: Any, wanted: Wanted) -> Iterator[Piece]:
    """Read a Parquet file.

    Raises:
        FileRefusedError: A column is missing or unnamed, or the file becomes too large.
    """
    reader, found = _opened(stream)
    yield require_columns(found, wanted)
    columns = [name for name in found if name in wanted.columns]
    reader = _dictionary_reader(stream, reader, columns)
    decoded = DecodedBytes(wanted.limits)
    line = 1
    for group in range(reader.metadata.num_row_groups):
        pages = _group_columns(stream, reader, group, columns)
        n_rows = _batch_rows(pages, wanted, decoded)
        for batch in _batches(stream, reader, group, columns, n_rows):
            for part in _in_parts(batch, wanted.limits, decoded):
                yield RawRows(range(line, line + part.num_rows), _by_name(part), _column_raw(_by_name(part)))
                line += part.num_rows


def _opened(stream: Any) -> tuple[pq.ParquetFile, list[str]]:
    """The file and the names of its columns."""
    try:
        reader = pq.ParquetFile(stream, pre_buffer=False, buffer_size=BUFFER_BYTES)
        return reader, list(reader.schema_arrow.names)
    except UnicodeDecodeError as error:
        shown = error.object.decode("utf-8", "backslashreplace")
        raise FileRefusedError("wrong_encoding", f"the column name {shown} is no UTF-8") from error


def _by_name(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    return dict(zip(batch.schema.names, batch.columns, strict=True))


def _column_raw(columns: dict[str, pa.Array]) -> Callable[[int], str]:
    return lambda i: raw_json({name: scalar_value(values[i]) for name, values in columns.items()})


def _leaves(reader: pq.ParquetFile, columns: Sequence[str]) -> list[tuple[int, Any]]:
    """Number and description of the physical columns below ``columns``."""
    schema = reader.schema
    leaves = [(at, schema.column(at)) for at in range(len(schema.names))]
    return [(at, leaf) for at, leaf in leaves if leaf.path.partition(".")[0] in columns]


def _dictionary_reader(stream: Any, reader: pq.ParquetFile, columns: Sequence[str]) -> pq.ParquetFile:
    """Open the file again so that values stay references to a dictionary; INT96 in microseconds.

    Arrow's default, nanoseconds, ends in the year 2262: later days would become earlier days.
    """
    groups = range(reader.metadata.num_row_groups)
    found = [each for group in groups for each in _group_columns(stream, reader, group, columns)]
    # Arrow makes references of these encodings only, and refuses a file with other encodings.
    fixed = {each.name for each in found if each.width or each.is_repeated or not each.encodings <= REFERABLE}
    flat = [leaf.path for _, leaf in _leaves(reader, columns) if leaf.path in {*columns} - fixed]
    options = {"pre_buffer": False, "buffer_size": BUFFER_BYTES, "metadata": reader.metadata}
    return pq.ParquetFile(stream, read_dictionary=flat, coerce_int96_timestamp_unit="us", **options)


def _group_columns(stream: Any, reader: pq.ParquetFile, group: int, columns: Sequence[str]) -> list[_Column]:
    facts = reader.metadata.row_group(group)
    types = {name: reader.schema_arrow.field(name).type for name in columns}
    found = []
    for at, leaf in _leaves(reader, columns):
        name, chunk = leaf.path.partition(".")[0], facts.column(at)
        start = min(offset for offset in (chunk.dictionary_page_offset, chunk.data_page_offset) if offset)
        try:
            pages = tuple(column_pages(stream, start, start + chunk.total_compressed_size))
        except PageError as error:
            raise FileRefusedError("unreadable_file", f"column {name}: {error}") from error
        width = leaf.length if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else WIDTHS[leaf.physical_type]
        is_dictionary = pa.types.is_dictionary(types[name])
        found.append(_Column(name, width, leaf.max_repetition_level > 0, is_dictionary, pages))
    return found


def _batch_rows(columns: Sequence[_Column], wanted: Wanted, decoded: DecodedBytes) -> int:
    """Number of rows of a row group that may be decoded at once, from the largest decoded size of a row."""
    limit = wanted.limits.batch_bytes
    for column in columns:
        for page in column.pages:
            decoded.add(max(0, page.n_bytes - page.n_packed))
            if page.n_bytes > max(limit, HONEST_RATIO * page.n_packed):
                raise _too_large(column.name, f"a page of {page.n_bytes} bytes", limit)
        if column.is_repeated and column.row_bytes() > limit:
            raise _too_large(column.name, "lists without a bound", limit)
    row_bytes = sum(column.row_bytes() for column in columns)
    return max(1, min(wanted.batch_rows, int(limit / max(1.0, row_bytes))))


def _too_large(column: str, what: str, limit: int) -> FileRefusedError:
    expected = f"expected at most {limit} bytes at once (landing.max_batch_bytes)"
    return FileRefusedError("unreadable_file", f"column {column}: {expected}, got {what}")


def _batches(
    stream: Any, reader: pq.ParquetFile, group: int, columns: Sequence[str], n_rows: int
) -> Iterator[pa.RecordBatch]:
    """Batches of one row group; a timestamp that does not fit into 64 bits of microseconds is null."""
    batches = reader.iter_batches(n_rows, row_groups=[group], columns=columns, use_threads=False)
    moments = next((leaf for _, leaf in _leaves(reader, [MOMENTS]) if leaf.path == MOMENTS), None)
    if MOMENTS not in columns or moments is None or moments.physical_type != "INT96":
        yield from batches
        return
    options = {"pre_buffer": False, "buffer_size": BUFFER_BYTES, "metadata": reader.metadata}
    seconds = pq.ParquetFile(stream, coerce_int96_timestamp_unit="s", **options)
    exact = seconds.iter_batches(n_rows, row_groups=[group], columns=[MOMENTS], use_threads=False)
    rest: pa.Array = pa.array([], pa.timestamp("s"))
    for batch in batches:  # dictionaries may end a batch early
        while len(rest) < batch.num_rows:
            rest = pa.concat_arrays([rest, next(exact).column(0)])
        at = batch.schema.get_field_index(MOMENTS)
        checked = _without_wrapped(batch.column(at), rest.slice(0, batch.num_rows))
        yield batch.set_column(at, batch.schema.field(at), checked)
        rest = rest.slice(batch.num_rows)


def _without_wrapped(micros: pa.Array, seconds: pa.Array) -> pa.Array:
    """Timestamps; null if microseconds and seconds disagree, because the number of microseconds overflowed."""
    ticks = micros.cast(pa.int64()).fill_null(0).to_numpy()
    is_same = pa.array(ticks // 1_000_000 == seconds.cast(pa.int64()).fill_null(0).to_numpy())
    return pc.if_else(is_same, micros, pa.scalar(None, micros.type))


def _in_parts(batch: pa.RecordBatch, limits: ReadLimits, decoded: DecodedBytes) -> Iterator[pa.RecordBatch]:
    """Replace references by their values, with a number of rows whose values fit into the limit."""
    sizes = np.zeros(batch.num_rows, dtype=np.int64)
    for values in batch.columns:
        if pa.types.is_dictionary(values.type):
            sizes += _value_bytes(values)
    ends = np.cumsum(sizes)
    start = 0
    while start < batch.num_rows:
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + limits.batch_bytes, side="right")))
        decoded.add(int(ends[stop - 1] - before))
        part = batch.slice(start, stop - start)
        yield pa.RecordBatch.from_arrays([_decoded(values) for values in part.columns], names=part.schema.names)
        start = stop


def _value_bytes(values: pa.DictionaryArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Bytes of the value that each reference points to."""
    entries = pc.binary_length(values.dictionary.cast(pa.large_binary()))
    lengths: np.ndarray[Any, np.dtype[np.int64]] = entries.take(values.indices).fill_null(0).to_numpy()
    return lengths


def _decoded(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
