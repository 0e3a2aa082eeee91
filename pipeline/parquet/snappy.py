"""Snappy in pieces. A page is one snappy string, which the C library only undoes whole.

Every known compressor works on blocks of 64 kB that do not refer to each other. So only the elements' heads are walked here, to
find where a block ends; some blocks with a length in front are a snappy string of their own, and the C library undoes that.
A string of other blocks is Unsupported.

An element is a tag byte whose lowest two bits say what it is: 0 a literal of (tag >> 2) + 1 bytes, or from 60 on of a length in
the next 1 to 4 bytes; 1, 2, 3 a copy of up to 64 bytes from an offset of 11 bits, 2 or 4 bytes. "aaaaaaaa" is 08 00 61 0d 01: eight
bytes; a literal of one; a copy of (0d >> 2 & 7) + 4 = 7 from 1 back.

Cost: 80 ns of Python's time an element, which is a literal of 64 kB in noise and a copy of 60 bytes in a blank page.
"""

from collections.abc import Callable, Iterator

import pyarrow as pa

from pipeline.parquet.thrift import Unsupported, encode_varint, varint

BLOCK = 1 << 16
MOST = 2 * BLOCK + 16       # bytes that a block takes at most
READ = 4 << 20              # bytes read at once
UNPACK = 1 << 20            # bytes undone at once
MEAN = 32                   # least output of an element, on average: below, the memory is not worth the time
SPARE = 1 << 16             # elements before that counts

STEP = [0] * 256            # bytes that an element takes, by its tag; 0 for a long literal
MADE = [0] * 256            # bytes that it makes
for _tag in range(256):
    if _tag & 3:
        STEP[_tag] = (0, 2, 3, 5)[_tag & 3]
        MADE[_tag] = (_tag >> 2 & 7) + 4 if _tag & 3 == 1 else (_tag >> 2) + 1
    elif _tag >> 2 < 60:
        STEP[_tag], MADE[_tag] = (_tag >> 2) + 2, (_tag >> 2) + 1


def unpack(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    """The `size` bytes that a snappy string gives, in pieces. read(n): at most n more bytes of it, none at its end."""
    data, at, left, budget = _more(read, b""), 0, size, SPARE
    try:
        told, at = varint(data, at)
        if told != size:
            raise Unsupported("snappy: another length")
        while left:
            if len(data) - at < MOST:
                data, at = _more(read, data[at:]), 0
            begin, made = at, 0
            while made < min(left, UNPACK) and (not made or len(data) - at >= MOST):
                goal = min(BLOCK, left - made)
                at, budget = _walk(data, at, goal, budget + goal // MEAN)
                made += goal
            string = b"".join((encode_varint(made), memoryview(data)[begin:at]))
            yield pa.decompress(string, decompressed_size=made, codec="snappy", asbytes=True)
            left -= made
    except IndexError as error:
        raise Unsupported("snappy: ends early") from error
    if at != len(data) or read(1):
        raise Unsupported("snappy: goes on behind its end")


def _walk(data: bytes, at: int, goal: int, budget: int) -> tuple[int, int]:
    """Where the elements from `at` on end that make `goal` bytes, and how many more there may be."""
    made, step, gives = 0, STEP, MADE
    for left in range(budget - 1, -1, -1):  # noqa: B007
        tag = data[at]
        if ahead := step[tag]:
            at += ahead
            made += gives[tag]
        else:
            wide = (tag >> 2) - 59
            length = int.from_bytes(data[at + 1 : at + 1 + wide], "little") + 1
            at += 1 + wide + length
            made += length
        if made >= goal:
            break
    else:
        raise Unsupported("snappy: many small elements")
    if made != goal or at > len(data):
        raise Unsupported("snappy: other blocks")
    return at, left


def _more(read: Callable[[int], bytes], data: bytes) -> bytes:
    while len(data) < MOST and (piece := read(READ)):
        data += piece
    return data
