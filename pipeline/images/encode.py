"""Pixels -> stored bytes, in the format that their content asks for.

Gray in all channels is stored as gray. Pictures that mostly repeat the pixel to their left (rendered text, tables, drawings,
screenshots) are stored as PNG, without loss; all others, photographs and scans, as JPEG of quality 90, 4:4:4. Where a flat
picture's PNG comes out large both are written and the smaller one is stored. The same pixels give the same bytes.
"""

import numpy as np
import simplejpeg  # type: ignore[import-untyped]

from pipeline.images.png import write_png
from pipeline.images.resize import Pixels

JPEG_QUALITY = 90
FLAT_SHARE = 0.5  # of pixels equal to their left neighbour, above which PNG is tried
PNG_ENOUGH = 0.125  # bytes a value at which no JPEG is tried
_SAMPLED_ROWS = 128


def as_gray(pixels: Pixels) -> Pixels:
    """[h, w] if all three channels are equal everywhere, else the pixels themselves."""
    if pixels.ndim == 2:
        return pixels
    first = pixels[..., 0]
    for rows in (slice(None, None, max(1, len(pixels) // 16)), slice(None)):
        if not ((first[rows] == pixels[rows, :, 1]).all() and (first[rows] == pixels[rows, :, 2]).all()):
            return pixels
    return np.ascontiguousarray(first)


def flat_share(pixels: Pixels) -> float:
    """Share of pixels equal to their left neighbour, over a sample of rows."""
    rows = pixels[::max(1, len(pixels) // _SAMPLED_ROWS)]
    if rows.shape[1] < 2:
        return 1.0
    same = rows[:, 1:] == rows[:, :-1]
    return float((same[..., 0] & same[..., 1] & same[..., 2] if same.ndim == 3 else same).mean())


def encode(pixels: Pixels) -> tuple[bytes, str]:
    """(bytes, "png" or "jpg") of uint8 pixels [h, w] or [h, w, 3]."""
    pixels = np.ascontiguousarray(as_gray(pixels))
    share = flat_share(pixels)
    png = write_png(pixels, flat=True) if share >= FLAT_SHARE else b""
    if png and len(png) <= PNG_ENOUGH * pixels.size:
        return png, "png"
    jpeg = encode_jpeg(pixels)
    return (png, "png") if png and len(png) <= len(jpeg) else (jpeg, "jpg")


def encode_jpeg(pixels: Pixels) -> bytes:
    """JPEG at JPEG_QUALITY, one component or 4:4:4."""
    if pixels.ndim == 2:
        return bytes(simplejpeg.encode_jpeg(pixels[..., None], JPEG_QUALITY, "GRAY", "Gray"))
    return bytes(simplejpeg.encode_jpeg(pixels, JPEG_QUALITY, "RGB", "444"))
