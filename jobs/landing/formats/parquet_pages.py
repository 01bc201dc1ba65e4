"""Headers of a Parquet file's pages: the decoded size and the encoding of each page, before the page is decoded.

The footer says how many bytes a column takes after decompression, but not how many bytes its values take: twenty
thousand references to one dictionary entry of 256 KiB are a few bytes. A footer can also be wrong; a page's header
cannot.
The format is Thrift's compact protocol: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

DATA, DICTIONARY, DATA_V2 = 0, 2, 3
PLAIN, PLAIN_DICTIONARY, DELTA_BYTE_ARRAY, RLE_DICTIONARY = 0, 2, 7, 8
FIRST_READ_BYTES, MAX_HEADER_BYTES = 8192, 16 << 20


class PageError(ValueError):
    """Bytes that are not a page header."""


@dataclass(frozen=True)
class Page:
    """One page of a column.

    Attributes:
        kind: ``DATA``, ``DICTIONARY``, ``DATA_V2`` or another.
        encoding: Encoding of the values.
        n_values: Number of values, including nulls.
        n_bytes: Bytes after decompression.
        n_packed: Bytes in the file.
    """

    kind: int
    encoding: int
    n_values: int
    n_bytes: int
    n_packed: int

    @property
    def is_data(self) -> bool:
        """Whether the page holds rows."""
        return self.kind in (DATA, DATA_V2)


def column_pages(stream: Any, start: int, end: int) -> Iterator[Page]:
    """Pages of one column of a row group.

    Args:
        stream: The file, open for reading at any place.
        start: Place of the first header in the file.
        end: Place after the last page.

    Raises:
        PageError: A header cannot be read.
    """
    place = start
    while place < end:
        page, n_header = _page(stream, place)
        yield page
        place += n_header + page.n_packed


def _page(stream: Any, place: int) -> tuple[Page, int]:
    n_bytes = FIRST_READ_BYTES
    while True:
        stream.seek(place)
        data = stream.read(n_bytes)
        try:
            fields, length = _Thrift(data).read_struct()
            return _as_page(fields), length
        except (IndexError, RecursionError) as error:  # the header is longer: statistics hold whole values
            if len(data) < n_bytes or n_bytes >= MAX_HEADER_BYTES:
                raise PageError(f"the page header at byte {place} ends too early") from error
            n_bytes *= 16


def _as_page(fields: dict[int, Any]) -> Page:
    body = fields.get(5) or fields.get(7) or fields.get(8) or {}
    is_v2 = fields.get(1) == DATA_V2
    try:
        kind, n_bytes, n_packed = fields[1], fields[2], fields[3]
        encoding = body.get(4 if is_v2 else 2, 0)
    except (KeyError, AttributeError) as error:
        raise PageError(f"a page header without {error}") from error
    if not all(isinstance(each, int) and each >= 0 for each in (kind, n_bytes, n_packed, encoding, body.get(1, 0))):
        raise PageError(f"a page header with sizes {n_bytes} and {n_packed}")
    return Page(kind, encoding, body.get(1, 0), n_bytes, n_packed)


class _Thrift:
    """Reads one struct of Thrift's compact protocol; raises IndexError if the bytes end too early."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def read_struct(self) -> tuple[dict[int, Any], int]:
        """Field number to value, and the number of bytes read."""
        return self._struct(), self._place

    def _struct(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else self._zigzag()
            fields[number] = self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):  # a truth value has no bytes of its own
            return kind == 1
        readers: dict[int, Callable[[], Any]] = {
            3: self._byte,
            4: self._zigzag,
            5: self._zigzag,
            6: self._zigzag,
            8: self._binary,
            9: self._list,
        }
        readers |= {7: lambda: self._skip(8), 10: self._list, 12: self._struct}
        if kind not in readers:
            raise PageError(f"a page header with a field of type {kind}")
        return readers[kind]()

    def _byte(self) -> int:
        self._place += 1
        return self._data[self._place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise PageError("a page header with a number of more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, n_bytes: int) -> None:
        self._place += n_bytes
        if self._place > len(self._data):
            raise IndexError

    def _binary(self) -> None:
        self._skip(self._varint())

    def _list(self) -> None:
        head = self._byte()
        n_items, kind = head >> 4, head & 15
        for _ in range(self._varint() if n_items == 15 else n_items):
            self._byte() if kind in (1, 2) else self._value(kind)
