"""The orientation that Exif or XMP metadata ask for, read without trusting a byte of it.

Pillow's `ImageOps.exif_transpose` looks at the same places in the same order (Exif, then XMP), but its reader raises on Exif
blocks with wrong types; here a block that cannot be read means "upright". Cost: microseconds; nothing is decoded.
"""

import re
import struct

UPRIGHT = 1
ORIENTATION_TAG = 0x0112
_FORMATS = {1: "B", 3: "H", 4: "I"}  # TIFF types that may hold a small number: BYTE, SHORT, LONG
_XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])[\"'<]")


def exif_orientation(exif: bytes) -> int | None:
    """Orientation 1-8 of an Exif block (with or without its "Exif\\0\\0" prefix); None if it has none or is broken."""
    block = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return None
    start = struct.unpack_from(order + "I", block, 4)[0]
    if start + 2 > len(block):
        return None
    for index in range(struct.unpack_from(order + "H", block, start)[0]):
        entry = start + 2 + 12 * index
        if entry + 12 > len(block):
            return None
        tag, kind, count = struct.unpack_from(order + "HHI", block, entry)
        if tag == ORIENTATION_TAG:
            value = struct.unpack_from(order + _FORMATS[kind], block, entry + 8)[0] if kind in _FORMATS and count else 0
            return value if 1 <= value <= 8 else None
    return None


def xmp_orientation(xmp: bytes) -> int | None:
    """Orientation 1-8 named by an XMP packet, or None."""
    match = _XMP.search(xmp)
    return int(match[1]) if match else None


def orientation(exif: bytes, xmp: bytes) -> int:
    """The orientation both together ask for: Exif's where it names one, else XMP's, else upright."""
    return exif_orientation(exif) or xmp_orientation(xmp) or UPRIGHT
