"""Pictures that the image tests share; all made here, from a seed."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colour with noise: what a camera gives."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([128 + 100 * np.sin(x / 37 + seed), 128 + 100 * np.cos(y / 53), 128 + 90 * np.sin((x + y) / 71)], axis=-1)
    return Image.fromarray(np.clip(base + rng.normal(0, 6, base.shape), 0, 255).astype(np.uint8))


def page(width: int, height: int) -> Image.Image:
    """Lines of black text on white, ragged and with margins, gray."""
    image = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(image)
    for line, top in enumerate(range(10, height - 12, 28)):
        words = "the quick brown fox jumps over the lazy dog and then it sleeps " * (width // 300 + 1)
        text = f"{line:03d} " + words
        draw.text((width // 12, top), text[:max(4, (width * 10 // 12 - line % 3 * 60) // 8)], fill=0, font_size=15)
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def is_plain(image: Image.Image) -> bool:
    """Whether a stored picture is opaque 8-bit gray or RGB, the latter perhaps with a palette."""
    return image.mode in ("L", "RGB", "P") and not image.has_transparency_data


def array(image: Image.Image) -> NDArray[Any]:
    return np.asarray(image)


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes, level: int = 9) -> bytes:
    """A PNG of filtered rows with further chunks before the image data."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows, level))
            + chunk(b"IEND", b""))


def with_chunk(data: bytes, kind: bytes, payload: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    return data[:33] + chunk(kind, payload) + data[33:]


def with_segment(data: bytes, marker: int, payload: bytes) -> bytes:
    """A JPEG with one more segment after SOI."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload + data[2:]


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 10 * float(np.log10(255 ** 2 / error)) if error else 99.0
