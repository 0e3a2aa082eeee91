"""Pixels -> stored bytes, in the format that their content asks for; decoders give 8-bit gray or RGB.

    equal channels                                  stored as gray
    mostly the pixel to the left again ("flat":     PNG without loss; gray of 4 or 16 even levels with 2 or 4 bits a pixel,
    text, tables, drawings, screenshots)            which every decoder opens as 8-bit gray
    ... and gray, resampled, with steep edges       PNG of 16 gray levels
    at most 16,384 values                           PNG without loss
    flat, colour, at most 256 colours               PNG with a palette, half the bytes
    ... and resampled, with steep edges             PNG with a palette of 256 colours, where it stays within 45 dB
    photographs and scans                           JPEG 4:4:4, quality 90, or a JPEG source's own (70 at least)

Sixteen levels: resampling line art invents gray levels at the edges of strokes, and they double the bytes. On 26 rendered pages 16
levels keep 42 dB at 60 kB a page, JPEG of quality 85 40 dB at 137 kB, PNG of all levels 122 kB. Only where most steps between
neighbours are steep, as at strokes: a photograph on a white page would show bands. 256 colours do the same for coloured tables and
drawings, at 51-61 dB and a quarter of the bytes. JPEG above the quality of a JPEG source only stores its artefacts more exactly;
its Huffman tables are made for the picture, which takes 6 % off the bytes for a second look at the coefficients. The same pixels
give the same bytes.
"""

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.images.png import write_png
from pipeline.images.resize import Pixels

QUALITY = 90
LOWEST_QUALITY = 70
FLAT_SHARE = 0.5  # of pixels equal to their left neighbour, from which on PNG is tried
STEEP_FLAT_SHARE = 0.7
FAITHFUL = 45.0  # dB of 256 colours against the resampled pixels
SMALL_STEP = 8  # of 255
SMALL_STEPS_SHARE = 0.35  # rendered pages 0.14-0.30, scans and JPEG pages 0.48-0.74, photographs 0.55-0.90
PNG_ENOUGH = 0.125  # bytes a value at which no JPEG is tried
TINY = 1 << 14  # values; JPEG would spend 600 bytes on its tables alone
_SAMPLED_ROWS = 128
_HASH = 0x9E3779B1  # odd, near 2^32 over the golden ratio: spreads neighbouring colours
# gray value -> nearest of 2^bits even levels, as an index
_LEVELS = {bits: ((np.arange(256) * ((1 << bits) - 1) + 127) // 255).astype(np.uint8) for bits in (2, 4)}


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


def has_steep_edges(gray: Pixels) -> bool:
    """Whether few of the steps between unequal neighbours are small: strokes, not shading."""
    rows = gray[::max(1, len(gray) // _SAMPLED_ROWS)].astype(np.int16)
    steps = np.abs(rows[:, 1:] - rows[:, :-1])
    return bool(np.count_nonzero((steps > 0) & (steps <= SMALL_STEP)) <= SMALL_STEPS_SHARE * np.count_nonzero(steps))


def _gray_png(gray: Pixels, share: float, *, resampled: bool) -> bytes:
    """The smallest faithful PNG of flat gray pixels."""
    few = [bits for bits in (2, 4) if _is_even(gray[::max(1, len(gray) // 8)], bits) and _is_even(gray, bits)]
    if not few and resampled and share >= STEEP_FLAT_SHARE and has_steep_edges(gray):
        few = [4]
    return write_png(np.asarray(cv2.LUT(gray, _LEVELS[few[0]]), np.uint8), bits=few[0]) if few else write_png(gray)


def _colour_png(pixels: Pixels, share: float, *, resampled: bool) -> bytes:
    """A PNG of flat colour: with a palette where 256 colours are enough, which halves it."""
    image = Image.fromarray(pixels)
    counted = image.getcolors(256)
    if counted is None:
        if resampled and share >= STEEP_FLAT_SHARE and has_steep_edges(pixels[..., 1]):
            few = image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            if cv2.PSNR(pixels, np.asarray(few.convert("RGB"))) >= FAITHFUL:
                return write_png(np.asarray(few), palette=np.array(few.getpalette(), np.uint8).reshape(-1, 3))
        return write_png(pixels)
    colours = np.array(sorted(colour for _, colour in counted), np.uint8)
    bits = next(bits for bits in (2, 4, 8) if len(colours) <= 1 << bits)
    factor = next(factor for factor in range(_HASH, _HASH + 20_000, 2) if len(np.unique(_hashed(colours, factor))) == len(colours))
    table = np.zeros(1 << 16, np.uint8)
    table[_hashed(colours, factor)] = np.arange(len(colours))
    return write_png(table[_hashed(pixels, factor)], bits=bits, palette=colours)


def _hashed(colours: Pixels, factor: int) -> NDArray[np.uint16]:
    """[..., 3] -> 16 bits of a product; a few factors are tried until no two of 256 colours agree (odds 1 in 2 each)."""
    wide = colours.astype(np.uint32)
    packed = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
    return (packed * np.uint32(factor) >> 16).astype(np.uint16)


def _is_even(gray: Pixels, bits: int) -> bool:
    """Whether all values are among 2^bits even levels (multiples of 85 or 17)."""
    step = 255 // ((1 << bits) - 1)
    return bool(np.array_equal(np.asarray(cv2.LUT(gray, _LEVELS[bits] * step)), gray))


def encode(pixels: Pixels, *, resampled: bool, source_quality: int | None = None) -> tuple[bytes, str]:
    """(bytes, "png" or "jpg") of uint8 pixels [h, w] or [h, w, 3].

    resampled: the pixels were computed, so the source has no more exact ones. source_quality: of a JPEG source; its colour
    pictures are not tried as PNG, which would store the artefacts.
    """
    pixels = np.ascontiguousarray(as_gray(pixels))
    share = flat_share(pixels)
    if pixels.size <= TINY and source_quality is None:
        return (_gray_png(pixels, share, resampled=False) if pixels.ndim == 2 else write_png(pixels)), "png"
    png = b""
    if pixels.ndim == 2 and share >= FLAT_SHARE:
        png = _gray_png(pixels, share, resampled=resampled)
    elif pixels.ndim == 3 and share >= FLAT_SHARE and source_quality is None:
        png = _colour_png(pixels, share, resampled=resampled)
    if png and len(png) <= PNG_ENOUGH * pixels.size:
        return png, "png"
    jpeg = encode_jpeg(pixels, QUALITY if source_quality is None else min(QUALITY, max(LOWEST_QUALITY, source_quality)))
    return (png, "png") if png and len(png) <= len(jpeg) else (jpeg, "jpg")


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """JPEG of one component or 4:4:4.

    By OpenCV, whose buffer grows: Pillow writes the same bytes a sixth faster, but with tables of their own only into one of a byte
    a pixel, and fails on noise.
    """
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1,
                cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, data = cv2.imencode(".jpg", pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), settings)
    assert done
    return data.tobytes()
