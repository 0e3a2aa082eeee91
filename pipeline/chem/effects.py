"""Pixel effects after drawing: low resolution, blur, noise, stray lines, dust, one-bit scans.

They cost more than the drawing (10 ms for a blur at 1024x1024), so a preset gives them to a stated share of rows.
Everything is integer or float32 numpy and Pillow, from a seeded generator: the same pixels everywhere.
"""

import random

import numpy as np
from numpy.typing import NDArray

from pipeline.chem.styles import Style

Pixels = NDArray[np.uint8]
_LEAST_BOND, _LEAST_LETTER = 26.0, 12.0  # pixels


def apply_effects(pixels: Pixels, style: Style, size: int, bond: float, rng: random.Random) -> Pixels:
    """uint8 [h, w] or [h, w, 3] -> the same (a scan gives 0 and 255 in a [h, w] that `reduce` makes smaller).

    `size` is the nominal side, `bond` the length of a bond in pixels: no picture is reduced until it cannot be read.
    """
    unit = size / 1024
    lines = style.name("effect.lines")
    readable = min(bond / _LEAST_BOND, bond * style.number("label.size") / _LEAST_LETTER)
    reduce = min(style.number("effect.reduce"), readable)
    blur, noise = style.number("effect.blur") * unit, style.number("effect.noise")
    speckle, scan = style.number("effect.speckle"), style.flag("effect.scan")
    if lines == "none" and reduce <= 1 and not blur and not noise and not speckle and not scan:
        return pixels
    generator = np.random.Generator(np.random.PCG64(rng.getrandbits(64)))
    if lines != "none":
        pixels = _stray(pixels.copy(), lines, unit, rng)
    if reduce > 1:
        pixels = _reduce(pixels, reduce, scan)
    if blur:
        pixels = _blur(pixels, blur)
    if scan:
        pixels = _threshold(pixels, generator)
    if noise:
        pixels = _noise(pixels, noise, generator)
    if speckle:
        pixels = _speckle(pixels, speckle, generator)
    return pixels


def _stray(pixels: Pixels, kind: str, unit: float, rng: random.Random) -> Pixels:
    height, width = pixels.shape[:2]
    thick = max(1, round((1.5 + 2.5 * rng.random()) * unit))
    inset = int(rng.random() * 0.012 * min(width, height))
    near = inset + thick
    bars: list[tuple[slice, slice]] = [
        (slice(inset, near), slice(inset, width - inset)), (slice(height - near, height - inset), slice(inset, width - inset)),
        (slice(inset, height - inset), slice(inset, near)), (slice(inset, height - inset), slice(width - near, width - inset)),
    ]
    # a rule runs along one edge, where the margin is: across the molecule it would read as a bond
    for bar in bars if kind == "frame" else [bars[int(rng.random() * 4)]]:
        pixels[bar] = 0
    return pixels


def _reduce(pixels: Pixels, factor: float, scan: bool) -> Pixels:
    from PIL import Image

    height, width = pixels.shape[:2]
    small = (max(8, round(width / factor)), max(8, round(height / factor)))
    image = Image.fromarray(pixels).resize(small, Image.Resampling.BOX)
    # a scan stays as small as its sheet was read; a picture on a page was scaled back up by whoever pasted it
    return np.asarray(image if scan else image.resize((width, height), Image.Resampling.BILINEAR))


def _blur(pixels: Pixels, radius: float) -> Pixels:
    from PIL import Image, ImageFilter

    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def _noise(pixels: Pixels, deviation: float, generator: np.random.Generator) -> Pixels:
    """The same grain in every channel; whole grey levels in 16 bits, a few rows at a time, to stay small."""
    out = np.empty_like(pixels)
    for top in range(0, pixels.shape[0], 128):
        rows = pixels[top : top + 128]
        grain = np.rint(generator.standard_normal(rows.shape[:2], dtype=np.float32) * np.float32(deviation)).astype(np.int16)
        out[top : top + 128] = np.clip(rows + (grain if pixels.ndim == 2 else grain[:, :, None]), 0, 255)
    return out


def _threshold(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """One bit: dark where gray lies below a level of the sheet's own, ragged where an edge pixel is in between.

    The level is high, since a line thinner than a pixel is light grey and must not vanish.
    """
    from PIL import Image

    gray = pixels if pixels.ndim == 2 else np.asarray(Image.fromarray(pixels).convert("L"))
    flat = gray.reshape(-1)  # in one dimension numpy finds places five times as fast as in two
    level = int(generator.integers(140, 221))
    out = np.where(flat < level, np.uint8(0), np.uint8(255))
    edges = np.flatnonzero((flat > 8) & (flat < 247))
    wobble = generator.integers(-40, 41, edges.size)
    out[edges] = np.where(flat[edges] + wobble < level, 0, 255)
    return out.reshape(gray.shape)


def _speckle(pixels: Pixels, share: float, generator: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    count = int(height * width * share)
    out = pixels.copy()
    rows, columns = generator.integers(0, height, count), generator.integers(0, width, count)
    out[rows, columns] = 255 - out[rows, columns]
    return out
