"""PNG files as chunks: a strict reader that sees every checksum, and a fast writer.

Reader. Pillow skips checksums of image data, ends quietly when the compressed stream is short, and inflates text chunks;
so the chunks are walked here: critical ones must have a right CRC, the image data must inflate to exactly the bytes that the
header promises, text and colour profiles are inflated within a bound only. `minimal`
writes the chunks that pixels depend on; above that the image data are written uncompressed, so that Pillow only undoes the
filters: ISA-L inflates about twice as fast as zlib-ng does.

Writer. No filter (it is for flat pictures, where filters only cost) and libdeflate. Over the 308 re-encoded pictures of the shared
sets (94 MB of rows) its level 1 took .29 s for 12.1 MB, zlib's .54 s for 13.0 MB. ISA-L's took .07 s for 12.4 MB, but about one
stream in a thousand differed from run to run (isal 1.9.1, levels 1 and 2), and the same input must give the same bytes.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import deflate
import numpy as np
from isal import isal_zlib
from isal.igzip_lib import IsalError
from numpy.typing import NDArray

from pipeline.images.probe import Malformed

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
MAX_CHUNKS = 200_000
MAX_METADATA = 1 << 20  # bytes of Exif or XMP that are looked at
REPACK_BYTES = 16 << 20  # raw picture data up to this are held in memory for the uncompressed copy


@dataclass(frozen=True, kw_only=True)
class PngInfo:
    """What the chunks tell: header fields, byte ranges of the image data, metadata for the orientation.

    transparent: an alpha channel or a tRNS chunk. frames: more than one picture (acTL). metadata: bytes of chunks that
    pixels do not depend on, compressed ones counted at what they inflate to (a reader of kept bytes would inflate them),
    and bytes after IEND. ended: IEND was there. raw: bytes the image data must inflate to.
    """

    width: int
    height: int
    bits: int
    colour: int
    interlaced: bool
    transparent: bool
    frames: bool
    metadata: int
    ended: bool
    raw: int
    idat: tuple[tuple[int, int], ...]
    head: bytes
    exif: bytes
    xmp: bytes


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, payload start, payload stop) of each whole chunk. Raises Malformed for a critical chunk that is cut or wrong."""
    position = len(SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if position + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, position)
        start, stop = position + 8, position + 8 + length
        name = kind.decode("latin1")
        if stop + 4 > len(data):
            if kind[:1].islower():
                return  # a cut text chunk after the picture: the picture is whole
            raise Malformed(f"chunk {name!r} at byte {position} runs past the end of the file")
        if kind in _KEPT or kind == b"IEND":
            if isal_zlib.crc32(memoryview(data)[position + 4:stop]) != int.from_bytes(data[stop:stop + 4], "big"):
                raise Malformed(f"chunk {name} at byte {position} has a wrong checksum")
        elif not kind[:1].islower():
            raise Malformed(f"unknown critical chunk {name!r} at byte {position}")
        yield kind, start, stop
        position = stop + 4
        if kind == b"IEND":
            return
    raise Malformed(f"more than {MAX_CHUNKS} chunks")


def _inflate(data: bytes) -> bytes:
    """At most MAX_METADATA bytes of a zlib stream; empty if it is broken."""
    try:
        return zlib.decompressobj().decompress(data, MAX_METADATA)
    except zlib.error:
        return b""


def _text(kind: bytes, payload: bytes) -> bytes:
    """What a zTXt, iTXt or iCCP chunk holds after its keyword, inflated up to MAX_METADATA bytes."""
    rest = payload.partition(b"\0")[2]
    if kind != b"iTXt":
        return _inflate(rest[1:])
    text = rest[2:].split(b"\0", 2)[-1]  # two flags, language, translated keyword
    return _inflate(text) if rest[:1] == b"\1" else text[:MAX_METADATA]


def _raw_profile(text: bytes) -> bytes:
    """Exif that ImageMagick stores as hexadecimal text, after a name and a length on lines of their own."""
    digits = re.sub(rb"[^0-9a-fA-F]", b"", b"".join(text.split(b"\n")[3:]))
    return bytes.fromhex(digits[:len(digits) // 2 * 2].decode("ascii"))


def _raw_bytes(width: int, height: int, bits: int, colour: int, interlaced: bool) -> int:
    """Bytes of the filtered rows: each row is one filter byte and its pixels, rounded up to whole bytes."""
    depth = bits * _CHANNELS[colour]
    if not interlaced:
        return height * (1 + (width * depth + 7) // 8)
    total = 0
    for left, top, step_x, step_y in _ADAM7:
        columns, rows = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * depth + 7) // 8)
    return total


def parse_png(data: bytes) -> PngInfo:
    """Walk the chunks and check them; image data are not inflated yet. Raises Malformed, naming what is wrong."""
    head, idat, exif, xmp = [SIGNATURE], [], b"", b""
    header: tuple[int, int, int, int, int, int, int] | None = None
    transparent = frames = ended = palette = False
    kept, inflated = len(SIGNATURE), 0
    for kind, start, stop in _chunks(data):
        if header is None:
            if kind != b"IHDR" or stop - start != 13:
                raise Malformed("the first chunk is no IHDR")
            header = struct.unpack_from(">IIBBBBB", data, start)
        elif kind == b"IHDR":
            raise Malformed("two IHDR chunks")
        if kind in _KEPT or kind == b"IEND":
            kept += stop - start + 12
        if kind == b"IDAT":
            idat.append((start, stop))
        elif kind in _KEPT and not idat:
            head.append(data[start - 8:stop + 4])
            transparent |= kind == b"tRNS"
            palette |= kind == b"PLTE" and (stop - start) % 3 == 0 and 3 <= stop - start <= 768
        elif kind == b"acTL":
            frames = True
        elif kind == b"eXIf":
            exif = exif or data[start:min(stop, start + MAX_METADATA)]
        elif kind in (b"zTXt", b"iTXt", b"iCCP") and inflated <= MAX_METADATA:
            payload = data[start:stop]
            text = _text(kind, payload)
            inflated += len(text)
            if payload.startswith(b"XML:com.adobe.xmp\0"):
                xmp = xmp or text
            elif payload.startswith(b"Raw profile type exif\0"):
                exif = exif or _raw_profile(text)
        ended |= kind == b"IEND"
    if header is None or not idat:
        raise Malformed("no image data" if header else "no IHDR chunk")
    width, height, bits, colour, compression, filtering, interlace = header
    if bits not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise Malformed(f"no such PNG: {bits} bits, colour type {colour}, interlace {interlace}")
    if colour == 3 and not palette:
        raise Malformed("a palette picture without a palette")
    return PngInfo(width=width, height=height, bits=bits, colour=colour, interlaced=bool(interlace),
                   transparent=transparent or colour in (4, 6), frames=frames, metadata=len(data) - kept + inflated, ended=ended,
                   raw=_raw_bytes(width, height, bits, colour, bool(interlace)) if width and height else 0,
                   idat=tuple(idat), head=b"".join(head), exif=exif, xmp=xmp)


def _chunk(kind: bytes, payload: bytes | bytearray) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", isal_zlib.crc32(payload, isal_zlib.crc32(kind)))


def checked_rows(data: bytes, info: PngInfo) -> bytes:
    """Inflate the image data and check length and checksum.

    Returns the filtered rows, or b"" where they are more than REPACK_BYTES (they are then checked in pieces and not held).
    Raises Malformed if the stream is broken, short, or longer than the header promises.
    """
    inflate = isal_zlib.decompressobj()
    stream = data[slice(*info.idat[0])] if len(info.idat) == 1 else b"".join(data[a:b] for a, b in info.idat)
    held, seen = b"", 0
    try:
        if info.raw <= REPACK_BYTES:
            held = inflate.decompress(stream, info.raw + 1)
            seen = len(held)
        else:
            while seen <= info.raw and not inflate.eof:
                piece = inflate.decompress(stream, 4 << 20)
                if not piece:
                    break
                seen, stream = seen + len(piece), inflate.unconsumed_tail
        if not inflate.eof and seen == info.raw:
            seen += len(inflate.decompress(inflate.unconsumed_tail, 1))
    except IsalError as error:  # type: ignore[misc]  # its stub is no exception
        raise Malformed(f"image data do not inflate: {error}") from None
    if seen != info.raw or not inflate.eof:
        held_text = "more than" if seen > info.raw else "no whole stream of" if seen == info.raw else f"{seen:,} of"
        raise Malformed(f"image data hold {held_text} {info.raw:,} bytes")
    if held and not info.interlaced:
        rows = np.frombuffer(held, np.uint8).reshape(info.height, -1)
        if rows[:, 0].max() > 4:
            raise Malformed("a row has no valid filter type")
    return held


def minimal(data: bytes, info: PngInfo) -> bytes:
    """The same picture with nothing but the chunks that its pixels depend on."""
    return info.head + b"".join(_chunk(b"IDAT", data[a:b]) for a, b in info.idat) + _chunk(b"IEND", b"")


def unpacked(data: bytes, info: PngInfo) -> bytes:
    """The picture with its image data checked and stored uncompressed (or as they are, where they are large)."""
    rows = checked_rows(data, info)
    if not rows:
        return minimal(data, info)
    stream = _stored(rows)
    # no checksum of the chunk: it takes as long as a copy, Pillow does not look at it, and nobody else sees these bytes
    return b"".join([info.head, struct.pack(">I4s", sum(map(len, stream)), b"IDAT"), *stream, bytes(4), _chunk(b"IEND", b"")])


def _stored(rows: bytes) -> list[bytes | memoryview]:
    """A zlib stream of stored blocks: five bytes a block of at most 65,535, and the Adler-32 checksum at the end."""
    view, parts = memoryview(rows), list[bytes | memoryview]([b"\x78\x01"])
    for start in range(0, len(view), 0xFFFF):
        block = view[start:start + 0xFFFF]
        last = start + len(block) == len(view)
        parts += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    return [*parts, struct.pack(">I", isal_zlib.adler32(rows))]


def _packed(rows: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Rows of indices with 8 / bits of them in a byte, the leftmost in its highest bits; short rows end in zeros."""
    if bits == 1:
        return np.packbits(rows, axis=1)
    each = 8 // bits
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % each)))
    words = padded.view("<u2" if each == 2 else "<u4")
    packed = words << (8 - bits)
    for k in range(1, each):
        packed |= words >> (8 * k) << (8 - bits * (k + 1))
    return packed.astype(np.uint8)


def write_png(pixels: NDArray[np.uint8], *, bits: int = 8, palette: NDArray[np.uint8] | None = None) -> bytes:
    """A PNG of uint8 pixels [h, w] (gray) or [h, w, 3] (RGB), or of indices [h, w] into a palette [at most 2^bits, 3].

    bits: 2 or 4 for gray level indices below 2^bits, packed from the left; they decode to even levels of 0 to 255. With a palette
    also 1. Rows of few colours are short: there a higher level costs little.
    """
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    if bits < 8:
        rows = _packed(rows, bits)
    filtered = np.zeros((height, rows.shape[1] + 1), np.uint8)  # filter 0 on every row
    filtered[:, 1:] = rows
    header = struct.pack(">IIBBBBB", width, height, bits, 2 if pixels.ndim == 3 else 0 if palette is None else 3, 0, 0, 0)
    colours = b"" if palette is None else _chunk(b"PLTE", palette.tobytes())
    stream = deflate.zlib_compress(filtered.data, 1 if palette is None else 6)
    return SIGNATURE + _chunk(b"IHDR", header) + colours + _chunk(b"IDAT", stream) + _chunk(b"IEND", b"")
