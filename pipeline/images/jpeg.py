"""The marker structure of a JPEG file: sizes, metadata, how many scans, where the picture ends. No pixel is decoded.

A JPEG is SOI, then segments (marker, length, payload); after each SOS segment comes entropy-coded data in which 0xFF is always
followed by 0x00 or a restart marker, so a regular expression finds the next real marker. `minimal` keeps the segments that
pixels depend on, which makes a file without Exif, ICC, thumbnails or further pictures (MPO) and with the very same pixels.
"""

import re
from dataclasses import dataclass

from pipeline.images.probe import Malformed

_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL_OR_PROGRESSIVE = frozenset((0xC0, 0xC1, 0xC2))
PROGRESSIVE = 0xC2
_NEEDED_APP = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
MAX_SEGMENTS = 10_000
MAX_XMP = 1 << 20  # an orientation beyond the first MiB of XMP is nobody's


@dataclass(frozen=True, kw_only=True)
class JpegInfo:
    """What the markers tell.

    width, height: pixels as stored, before any orientation. components: 1 gray, 3 colour, 4 CMYK.
    frame: the SOF marker's second byte. scans: SOS segments. ended: EOI was there.
    quality: 1-100 on libjpeg's scale, estimated from the luminance table. metadata: bytes that pixels do not depend on,
    trailing bytes included. trailing: bytes after EOI (an MPO's other pictures). pieces: (start, stop) ranges that pixels do
    depend on.
    """

    width: int
    height: int
    components: int
    bits: int
    frame: int
    scans: int
    ended: bool
    quality: int
    metadata: int
    trailing: int
    pieces: tuple[tuple[int, int], ...]
    exif: bytes
    xmp: bytes


def _quality(table: bytes) -> int:
    """Quality on libjpeg's scale of an 8-bit luminance table: 50 is the standard's own, whose 64 values sum to 3685.

    Worked example: a sum of 1858 is 50.4 % of it -> (200 - 50.4) / 2 = 75.
    """
    percent = 100 * sum(table) / 3685
    return max(1, min(100, round((200 - percent) / 2 if percent <= 100 else 5000 / percent)))


def parse_jpeg(data: bytes) -> JpegInfo:
    """Walk the markers of one JPEG picture. Raises Malformed, naming what is wrong."""
    pieces: list[tuple[int, int]] = [(0, 2)]
    exif, xmp, metadata, scans, quality = b"", b"", 0, 0, 100
    frame = (0, 0, 0, 0, 0)
    position, size, segments, ended = 2, len(data), 0, False
    while position < size and not ended:
        found = _NEXT_MARKER.search(data, position)
        if found is None:
            break
        metadata += found.start() - position if scans == 0 else 0
        start, marker = found.start(), data[found.start() + 1]
        segments += 1
        if segments > MAX_SEGMENTS:
            raise Malformed(f"more than {MAX_SEGMENTS} segments")
        if scans:
            pieces.append((position, start))  # the entropy-coded data before this marker
        if marker == 0xD9:
            pieces.append((start, start + 2))
            position, ended = start + 2, True
            continue
        if marker in (0x01, 0xD8):
            raise Malformed(f"marker 0x{marker:02x} inside the picture")
        length = int.from_bytes(data[start + 2:start + 4], "big")
        stop = start + 2 + length
        if length < 2 or stop > size:
            raise Malformed(f"segment 0x{marker:02x} at byte {start} runs past the end")
        payload = data[start + 4:stop] if marker in _SOF or 0xDB <= marker <= 0xEE else b""
        if marker in _SOF:
            if frame[4]:
                raise Malformed("two frame headers")
            if len(payload) < 6:
                raise Malformed("frame header too short")
            frame = (int.from_bytes(payload[3:5], "big"), int.from_bytes(payload[1:3], "big"), payload[5], payload[0], marker)
        if marker == 0xDB and len(payload) >= 65 and payload[0] == 0:
            quality = _quality(payload[1:65])
        if marker == 0xE1 and payload.startswith(b"Exif\0\0") and not exif:
            exif = payload
        elif marker == 0xE1 and payload.startswith(b"http://ns.adobe.com/xap/1.0/") and not xmp:
            xmp = payload[:MAX_XMP]
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            if payload.startswith(_NEEDED_APP.get(marker, b"\0none")):
                pieces.append((start, stop))
            else:
                metadata += stop - start
        else:
            pieces.append((start, stop))
        scans += marker == 0xDA
        position = stop
    if not frame[4] or not scans:
        raise Malformed("no picture data" if frame[4] else "no frame header")
    if not ended and (scans > 1 or frame[4] == PROGRESSIVE):
        raise Malformed("it ends without its end marker, so scans may be missing")
    trailing = size - position if ended else 0
    if not ended:
        pieces.append((position, size))
    return JpegInfo(width=frame[0], height=frame[1], components=frame[2], bits=frame[3], frame=frame[4], scans=scans,
                    ended=ended, quality=quality, metadata=metadata + trailing, trailing=trailing, pieces=tuple(pieces),
                    exif=exif, xmp=xmp)


def minimal(data: bytes, info: JpegInfo) -> bytes:
    """The same picture without metadata; a missing EOI marker is added."""
    return b"".join(data[start:stop] for start, stop in info.pieces) + (b"" if info.ended else b"\xff\xd9")
