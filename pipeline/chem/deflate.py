"""The zlib stream of a picture's lines, of which the first and the last are background, without a pass over those.

A molecule leaves a third of a square canvas empty above and below. Such lines are written here as one line and matches
that copy it (RFC 1951, fixed Huffman codes), with their part of the Adler-32 in closed form (RFC 1950): 10 microseconds,
where a pass of the compressor takes 60. The lines between go through ISA-L at its level 0.

Why not level 1, which is as fast and a fifth smaller: of a thousand pictures about one comes out as another, equally valid
stream, depending on where in memory the compressor happens to lie (isal 1.9.1; levels 1 and 2, seen between processes and
within one). Level 0 gave the same bytes in 30,000 tries. They depend on the isal version and the processor's instruction
sets; the pixels never do.
"""

import functools
import struct
import zlib

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

_HEADER = b"\x78\x01"  # a window of 32 KB, the fastest level
_LAST_BLOCK = b"\x03\x00"  # final, fixed codes, nothing in it
_WINDOW = 32768
_MODULUS = 65521
_MATCH = 258  # the longest that there is: symbol 285, eight bits 11000101, the first one lowest
_MATCH_CODE, _MATCH_BITS = 0b10100011, 8


def deflate_lines(lines: NDArray[np.uint8], above: int = 0, below: int = 0) -> bytes:
    """uint8 [height, bytes of a line], contiguous -> zlib stream. The first `above` lines are equal, so are the last `below`."""
    height, width = lines.shape
    if width > _WINDOW:
        above = below = 0  # no match reaches back a whole line
    drawn = lines[above : height - below]
    compressor = isal_zlib.compressobj(0, isal_zlib.DEFLATED, -15)
    parts = [_HEADER, b"", compressor.compress(drawn) + compressor.flush(isal_zlib.Z_SYNC_FLUSH), b"", _LAST_BLOCK]
    check = isal_zlib.adler32(drawn)
    if above:
        parts[1], first = _copies(lines[0].tobytes(), above)
        check = _joined(first, check, drawn.size)
    if below:
        parts[3], last = _copies(lines[-1].tobytes(), below)
        check = _joined(check, last, below * width)
    return b"".join((*parts, struct.pack(">I", check)))


def _copies(line: bytes, count: int) -> tuple[bytes, int]:
    """`line` written `count` times: blocks that end on a whole byte, none of them the last; and the Adler-32 of it."""
    once, match, bits = _written_once(line)
    matches, rest = divmod((count - 1) * len(line), _MATCH)
    # the block's header, the same match over and over, the block's end, and the header of a stored block with the rest
    repeated = match * (((1 << bits * matches) - 1) // ((1 << bits) - 1))
    block = (0b010 | repeated << 3).to_bytes((3 + bits * matches + 7 + 3 + 7) // 8, "little")
    tail = (line * (rest // len(line) + 1))[-rest:] if rest else b""
    stored = struct.pack("<HH", rest, rest ^ 0xFFFF) + tail
    low, high = zlib.adler32(line) & 0xFFFF, zlib.adler32(line) >> 16
    total, weighted = low - 1, high - len(line)
    sums = 1 + count * total, count * (len(line) + weighted) + len(line) * total * (count * (count - 1) // 2)
    return once + block + stored, sums[1] % _MODULUS << 16 | sums[0] % _MODULUS


@functools.lru_cache(64)
def _written_once(line: bytes) -> tuple[bytes, int, int]:
    """A block with the line, and the code and its bits of a match as far back as the line is long."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    once = compressor.compress(line) + compressor.flush(zlib.Z_SYNC_FLUSH)
    back = len(line) - 1
    extra = max(0, back.bit_length() - 2)
    symbol = back if back < 4 else 2 * extra + (back >> extra)
    code = int(f"{symbol:05b}"[::-1], 2) | (back & ((1 << extra) - 1)) << 5
    return once, _MATCH_CODE | code << _MATCH_BITS, _MATCH_BITS + 5 + extra


def _joined(first: int, second: int, length: int) -> int:
    """Adler-32 of two pieces from theirs; `length` is the second's."""
    low = (first & 0xFFFF) + (second & 0xFFFF) - 1
    high = (first >> 16) + (second >> 16) + length * ((first & 0xFFFF) - 1)
    return high % _MODULUS << 16 | low % _MODULUS
