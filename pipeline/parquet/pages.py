"""The pages of one column chunk: their headers, and their bytes in pieces, decompressed as they are taken.

    page = read_page(handle, at, stop, size)      # stop, size: where the chunk ends, its decompressed bytes by the footer
    reps, defs, body = open_page(handle, page, codec, max_reps, max_defs)
    body.read(4)                                  # some pieces are held beside what is asked for, never the page

Of the format (github.com/apache/parquet-format) only what byte arrays need; anything else, or what makes no sense, is Unsupported.
"""

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.parquet.snappy import READ, UNPACK, unpack
from pipeline.parquet.thrift import Unsupported, struct, varint

HEADER = 64 * 1024          # longest header; statistics of large values are left out by their writers
MAX_ENTRIES = 1 << 20       # of a page, and bytes of its levels
DATA, DICTIONARY, DATA_V2 = 0, 2, 3                         # kinds of pages
PLAIN, RLE, BY_INDEX = 0, 3, (2, 8)                         # encodings
STREAMS = ("GZIP", "ZSTD", "BROTLI")


class Page(NamedTuple):
    """What a header says. start: of the body in the file. packed, size: the body's bytes as stored, and decompressed.

    reps, defs: bytes of the levels in front of the values in a page of version 2, where they are not compressed.
    """

    kind: int
    encoding: int
    entries: int
    start: int
    packed: int
    size: int
    compressed: bool = True
    defs: int = 0
    reps: int = 0

    @property
    def stop(self) -> int:
        return self.start + self.packed


class Span(io.RawIOBase):
    """Bytes [at, stop) of a file, in order. Every read sets the file's position anew: pyarrow reads there too."""

    def __init__(self, handle: Any, at: int, stop: int) -> None:
        self._handle, self._at, self._stop = handle, at, stop

    def readable(self) -> bool:
        return True

    def read(self, n: int = -1) -> bytes:
        """At most n bytes, none at the end."""
        left = self._stop - self._at
        if not (n := left if n < 0 else min(n, left)):
            return b""
        self._handle.seek(self._at)
        data = bytes(self._handle.read(n))
        if not data:
            raise Unsupported("the file ends early")
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Body:
    """A page's decompressed bytes, `size` of them, taken in order."""

    def __init__(self, pieces: Iterator[bytes], size: int) -> None:
        self._pieces, self._piece, self.left = pieces, memoryview(b""), size

    def read(self, n: int) -> bytes:
        """The next n bytes."""
        if n > self.left:
            raise Unsupported("a page ends early")
        self.left -= n
        parts: list[memoryview] = []
        while n:
            if not self._piece:
                if not (piece := next(self._pieces, b"")):
                    raise Unsupported("a page ends early")
                self._piece = memoryview(piece)
            parts.append(self._piece[:n])
            self._piece = self._piece[n:]
            n -= len(parts[-1])
        return b"".join(parts)

    def finish(self) -> None:
        """Raises Unsupported unless all was taken."""
        if self.left or self._piece or any(self._pieces):
            raise Unsupported("a page holds more than its values")


def read_page(handle: Any, at: int, stop: int, size: int) -> Page:
    """The header at `at` of a chunk that ends at `stop` and holds `size` bytes decompressed."""
    data = Span(handle, at, min(at + HEADER, stop)).read()
    try:
        head, length = struct(data)
        kind = head[1]
        detail = head[{DATA: 5, DICTIONARY: 7, DATA_V2: 8}[kind]]
        encoding = detail[4 if kind == DATA_V2 else 2]
        old = kind == DATA and (detail[3], detail[4]) != (RLE, RLE)
        more = (detail.get(7, True), detail[5], detail[6]) if kind == DATA_V2 else ()
        page = Page(kind, encoding, detail[1], at + length, head[3], head[2], *more)
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise Unsupported("no page header") from error
    numbers = (*page[:6], page.defs, page.reps)
    if old or not all(type(number) is int and number >= 0 for number in numbers) or type(page.compressed) is not bool:
        raise Unsupported("no such page header")
    if page.stop > stop or page.size > size or page.entries > MAX_ENTRIES:
        raise Unsupported("a page larger than its chunk")
    if page.reps + page.defs > min(page.packed, page.size, MAX_ENTRIES):
        raise Unsupported("levels larger than their page")
    return page


def open_page(handle: Any, page: Page, codec: str, max_reps: int, max_defs: int) -> tuple[list[int], list[int], Body]:
    """Repetition and definition levels of a page's entries, and what comes behind them."""
    reps, defs = [0] * page.entries, [max_defs] * page.entries
    apart = page.reps + page.defs
    size, start = page.size - apart, page.start + apart
    levels = body = Body(_pieces(Span(handle, start, page.stop), codec if page.compressed else "UNCOMPRESSED", size), size)
    if page.kind == DATA_V2:
        levels = Body(_pieces(Span(handle, page.start, start), "UNCOMPRESSED", apart), apart)
    if max_reps:
        reps = _levels(levels, page.reps if page.kind == DATA_V2 else None, max_reps, page.entries)
    if max_defs:
        defs = _levels(levels, page.defs if page.kind == DATA_V2 else None, max_defs, page.entries)
    return reps, defs, body


def _levels(body: Body, length: int | None, most: int, entries: int) -> list[int]:
    if length is None:
        length = int.from_bytes(body.read(4), "little")
    if length > MAX_ENTRIES:
        raise Unsupported("long levels")
    found: list[int] = hybrid(body.read(length), most.bit_length(), entries).tolist()
    if max(found, default=0) > most:
        raise Unsupported("a level that its schema does not have")
    return found


def hybrid(data: bytes, width: int, count: int) -> npt.NDArray[np.int64]:
    """`count` numbers of `width` bits, in runs and in bit-packed groups of eight.

    Of width 1: 10 01 is a run of eight ones (hexadecimal 10 is 8 << 1), 03 05 is one group: 1, 0, 1 and five zeros.
    """
    if width == 0:
        return np.zeros(count, np.int64)
    parts, at, left, size = [np.zeros(0, np.int64)], 0, count, (width + 7) // 8
    while left:
        try:
            head, at = varint(data, at)
        except IndexError as error:
            raise Unsupported("levels or indexes end early") from error
        if head < 2:
            raise Unsupported("a run of nothing")
        if head & 1:
            packed = data[at : at + (head >> 1) * width]
            bits = np.unpackbits(np.frombuffer(packed, np.uint8)[: (left * width + 7) // 8 + width], bitorder="little")
            bits = bits[: len(bits) // width * width].reshape(-1, width)[:left]
            parts.append((bits.astype(np.int64) << np.arange(width)).sum(axis=1))
            at += len(packed)
        else:
            parts.append(np.full(min(head >> 1, left), int.from_bytes(data[at : at + size], "little"), np.int64))
            at += size
        left -= len(parts[-1])
    return np.concatenate(parts)


def _pieces(span: Span, codec: str, size: int) -> Iterator[bytes]:
    if size == 0:
        return
    if codec == "UNCOMPRESSED":
        while piece := span.read(READ):
            yield piece
    elif codec == "SNAPPY":
        yield from unpack(span.read, size)
    elif codec in STREAMS:
        stream = pa.CompressedInputStream(pa.PythonFile(io.BufferedReader(span, READ), "r"), codec.lower())
        while piece := stream.read(UNPACK):
            yield piece
    else:
        raise Unsupported(f"codec {codec}")
