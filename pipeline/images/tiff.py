"""A TIFF's first directory, read before Pillow sees the file.

Pillow reads every tag's data on opening, so a small file whose thousand tags all point at the same ten megabytes would take ten
gigabytes; and libtiff allocates a whole tile, whatever size it is declared to have. Both are decided here, from at most
MAX_TAGS entries of the first directory.
"""

import struct

from pipeline.images.probe import Limits, Malformed, check_size

MAX_TAGS = 1000
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_VALUES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323


def check_tiff(data: bytes, limits: Limits, *, bytes_per_pixel: float) -> None:
    """Raises Malformed for a directory that is broken or larger than its file, Reject for a picture over the limits."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    count_format, entry_format = ("Q", "HHQ8s") if big else ("H", "HHI4s")
    try:
        start = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
        count = struct.unpack_from(order + count_format, data, start)[0]
        if count > MAX_TAGS:
            raise Malformed(f"{count} tags")
        first = start + struct.calcsize(order + count_format)
        size = struct.calcsize(order + entry_format)
        entries = [struct.unpack_from(order + entry_format, data, first + size * k) for k in range(count)]
    except (struct.error, OverflowError):
        raise Malformed("the directory runs past the end of the file") from None
    held = sum(_TYPE_BYTES.get(kind, 1) * values for _, kind, values, _ in entries)
    if held > 2 * len(data) + 65_536:
        raise Malformed(f"tags that claim {held:,} bytes of a file of {len(data):,}")
    sides = {tag: struct.unpack_from(order + _VALUES[kind], value)[0] for tag, kind, values, value in entries
             if tag in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT) and kind in _VALUES and values == 1}
    for across, down in ((_WIDTH, _HEIGHT), (_TILE_WIDTH, _TILE_HEIGHT)):
        if across in sides and down in sides:
            check_size(sides[across], sides[down], limits, bytes_per_pixel=bytes_per_pixel)
