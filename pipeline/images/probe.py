"""Which picture is this, how large, and may it be decoded: answered from headers alone.

Formats are a closed list (JPEG, PNG, WebP, AVIF, GIF, TIFF, BMP), chosen by their first bytes, never by a name. Everything
else (SVG, PDF, EPS, PSD, HEIF, a Git LFS pointer ...) is rejected as "image-format": no other decoder is ever reached.

Bounds for any one picture, by `Limits`: 64 MP, sides up to 65,535, 256 MB of encoded bytes, and 640 MB of memory at the peak,
counted before decoding with what each decoder was measured to hold per pixel (so WebP ends at 32 MP). A picture at the limits
takes about 3 s. Nothing of the picture's size is allocated here.
"""

import struct
from dataclasses import dataclass

from pipeline.conversation import Reject

FORMATS = ("jpeg", "png", "webp", "avif", "gif", "tiff", "bmp")


class Malformed(ValueError):
    """The structure of a file (markers, chunks, directory) does not describe a picture."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one picture may cost. A picture above a limit is rejected with "image-too-large" before it is decoded.

    pixels: as stored. side: pixels. encoded_bytes: of the file. work: pixels times JPEG scans (a progressive file is
    decoded once per scan, and may name thousands). decode_bytes: memory of the decoder and its picture.
    metadata_bytes: above this, kept pictures lose their metadata (pixels untouched).
    """

    pixels: int = 64_000_000
    side: int = 65_535
    encoded_bytes: int = 256_000_000
    work: int = 1_600_000_000
    decode_bytes: int = 640_000_000
    metadata_bytes: int = 1024


def sniff(data: bytes) -> str:
    """The format of the first bytes, one of FORMATS. Raises Reject for anything else."""
    head = bytes(data[:32])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head[4:8] == b"ftyp" and _is_avif(data):
        return "avif"
    if head[:2] == b"BM" and len(data) > 26:
        return "bmp"
    raise Reject("image-format", f"no picture format that is read here (first bytes {head[:12]!r})")


def _is_avif(data: bytes) -> bool:
    """Whether the ftyp box names an AVIF brand; HEIC ones have no decoder here."""
    length = struct.unpack_from(">I", data)[0]
    brands = data[8:min(length, 256)]
    return any(brands[at:at + 4] in (b"avif", b"avis") for at in range(0, len(brands), 4) if at != 4)


def webp_size(data: bytes) -> tuple[int, int]:
    """Canvas size of a WebP file from its first chunk: Pillow's decoder allocates three canvases on opening."""
    kind, body = data[12:16], data[20:40]
    if kind == b"VP8X" and len(body) >= 10:
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L" and len(body) >= 5 and body[0] == 0x2F:
        packed = int.from_bytes(body[1:5], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(body) >= 10 and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise Reject("image-corrupt", "WebP file without a picture")


def check_size(width: int, height: int, limits: Limits, *, bytes_per_pixel: float) -> None:
    """Raises Reject for a picture without pixels or over the limits, naming the size."""
    if width < 1 or height < 1:
        raise Reject("image-empty", f"a picture of {width} x {height} pixels")
    if width > limits.side or height > limits.side or width * height > limits.pixels:
        raise Reject("image-too-large", f"{width} x {height} pixels; the limit is {limits.pixels / 1e6:.0f} MP and "
                                        f"{limits.side} a side")
    if width * height * bytes_per_pixel > limits.decode_bytes:
        raise Reject("image-too-large", f"{width} x {height} pixels would take {width * height * bytes_per_pixel / 1e6:.0f} MB "
                                        f"to decode; the limit is {limits.decode_bytes / 1e6:.0f} MB")
