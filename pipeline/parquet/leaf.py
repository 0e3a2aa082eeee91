"""The values of one leaf of byte arrays in a row group, row by row, in the memory of one value and some pieces.

PLAIN pages are read in order. A dictionary comes before the pages of indexes into it; these are small and read first, then its
values in order too, each when it is first needed, and kept until its last use. Of the indexes 0 1 0 2 value 0 alone is kept,
while value 1 is given.
"""

from typing import Any, NamedTuple

from pipeline.parquet.pages import BY_INDEX, DATA, DATA_V2, DICTIONARY, PLAIN, Body, Page, hybrid, open_page, read_page
from pipeline.parquet.thrift import Unsupported

KEPT_BYTES = 200 << 20      # of a dictionary's values that come again
INDEX_BYTES = 16 << 20      # of a page of indexes
EMPTY_PAGES = 100           # pyarrow writes one now and then


class Chunk(NamedTuple):
    """Where the leaf's pages lie and what they hold, by the footer. reps, defs: an entry's highest levels."""

    start: int
    stop: int
    size: int
    codec: str
    entries: int
    reps: int
    defs: int


class Plain:
    """Values one behind the other, each after its length in four bytes."""

    def __init__(self, body: Body, most: int) -> None:
        self._body, self._most = body, most

    def take(self) -> bytes:
        """The next value."""
        length = int.from_bytes(self._body.read(4), "little")
        if length > self._most:
            raise Unsupported("a huge value")
        return self._body.read(length)

    def finish(self) -> None:
        """Raises Unsupported when there are more."""
        self._body.finish()


class Dictionary:
    """Values by their indexes, of which each takes one."""

    def __init__(self, values: Plain, count: int, indexes: list[int]) -> None:
        self._values, self._count, self._indexes = values, count, indexes
        self._last = {index: place for place, index in enumerate(indexes)}
        self._place, self._next, self._bytes = 0, 0, 0
        self._kept: dict[int, bytes] = {}

    def take(self) -> bytes:
        """The next index's value."""
        place, index = self._place, self._indexes[self._place]
        self._place += 1
        if index >= self._count:
            raise Unsupported("an index behind the dictionary's end")
        while self._next <= index:
            value = self._values.take()
            if self._next == index or self._last.get(self._next, -1) > place:
                self._kept[self._next] = value
                self._bytes += len(value)
            if self._bytes > KEPT_BYTES:
                raise Unsupported("a dictionary in another order than the rows")
            self._next += 1
        if self._last[index] > place:
            return self._kept[index]
        value = self._kept.pop(index)
        self._bytes -= len(value)
        return value

    def finish(self) -> None:
        """Further values of a dictionary are not used."""


class Leaf:
    """Reads a chunk's rows. Raises Unsupported, or what pyarrow does about data that cannot be decompressed.

    most: bytes that a row may have.
    """

    def __init__(self, handle: Any, chunk: Chunk, most: int) -> None:
        self._handle, self._chunk, self._most = handle, chunk, most
        self._at, self._entry, self._seen, self._empty = chunk.start, 0, 0, 0
        self._reps: list[int] = []
        self._defs: list[int] = []
        self._values: Plain | Dictionary | None = None
        if (first := self._header()).kind == DICTIONARY:
            self._dictionary(first)

    def row(self) -> list[tuple[int, bytes | None]]:
        """(definition level, value or None) of each entry of the next row."""
        out: list[tuple[int, bytes | None]] = []
        size = 0
        while (self._entry < len(self._defs) or self._page()) and (not out or self._reps[self._entry]):
            if not out and self._reps[self._entry]:
                raise Unsupported("a row without a beginning")
            level = self._defs[self._entry]
            self._entry += 1
            value = self._values.take() if self._values and level == self._chunk.defs else None
            if (size := size + len(value or b"")) > self._most:
                raise Unsupported("a huge row")
            out.append((level, value))
        if not out:
            raise Unsupported("fewer rows than the footer has")
        return out

    def _header(self) -> Page:
        return read_page(self._handle, self._at, self._chunk.stop, self._chunk.size)

    def _data(self, page: Page) -> tuple[Body, int]:
        """The body of a data page and the number of its values; its entries are the next ones."""
        reps, defs, body = open_page(self._handle, page, self._chunk.codec, self._chunk.reps, self._chunk.defs)
        self._at, self._seen, self._empty = page.stop, self._seen + page.entries, self._empty + (not page.entries)
        if self._seen > self._chunk.entries or self._empty > EMPTY_PAGES:
            raise Unsupported("more entries than the footer has, or pages without any")
        self._reps += reps
        self._defs += defs
        return body, defs.count(self._chunk.defs)

    def _page(self) -> bool:
        """Go on to the next page with entries; False at the end of the chunk."""
        if self._values:
            self._values.finish()
        self._reps, self._defs, self._values, self._entry = [], [], None, 0
        while self._at < self._chunk.stop and not self._defs:
            page = self._header()
            if page.kind not in (DATA, DATA_V2) or page.encoding != PLAIN:
                raise Unsupported("a page of another encoding")
            body, count = self._data(page)
            self._values = Plain(body, self._most) if count else None
        if not self._defs and self._seen != self._chunk.entries:
            raise Unsupported("fewer entries than the footer has")
        return bool(self._defs)

    def _dictionary(self, page: Page) -> None:
        """Read the indexes behind a dictionary page."""
        indexes: list[int] = []
        self._at = page.stop
        while self._at < self._chunk.stop and (data := self._header()).encoding in BY_INDEX:
            if data.kind not in (DATA, DATA_V2) or data.size > INDEX_BYTES:
                raise Unsupported("a large page of indexes")
            body, count = self._data(data)
            if count:
                width = body.read(1)[0]
                if width > 32:
                    raise Unsupported("wide indexes")
                indexes += hybrid(body.read(body.left), width, count).tolist()
        if page.encoding not in (PLAIN, *BY_INDEX):
            raise Unsupported("a dictionary of another encoding")
        body = open_page(self._handle, page, self._chunk.codec, 0, 0)[2]
        self._values = Dictionary(Plain(body, self._most), page.entries, indexes)
