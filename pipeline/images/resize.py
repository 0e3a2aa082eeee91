"""Scaling uint8 pixels: OpenCV's cubic interpolation behind a small integer low-pass filter.

Why not Pillow alone: its BICUBIC, the reference of the training notes, takes 14-19 ms for a colour page that shrinks by
1.2, half of the whole cost of an image. OpenCV's cubic takes 2 ms but samples four pixels whatever the ratio, so it aliases.
A symmetric filter of variance (r^2 - 1) / 4 before it, for a ratio r, removes that: 42-53 dB PSNR and SSIM of at least .9989
against Pillow's BICUBIC, which is as near as BICUBIC is to LANCZOS (41-53 dB) and nearer than Pillow's own BILINEAR or HAMMING
(35-49 dB), at 2.6-3.9 ms. libvips reaches 54-59 dB but gains nothing on gray (12 ms against 8) and half on colour.
Measured by `python benchmarks/images.py --resize`. All arithmetic is on integers, so the pixels are the same on every machine.

From a ratio of 3 on, whole pixels are averaged first (here, or in bands in decode.py, or in the DCT of a JPEG).
"""

from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # [h, w] gray or [h, w, 3] RGB

REDUCE_FROM = 3.0
_STEPS = 256  # the filter runs in fixed point with eight bits

cv2.setNumThreads(0)  # the build runs one process a core


def low_pass(ratio: float) -> NDArray[np.float32]:
    """Symmetric weights (multiples of 1/256, sum 1) of variance (ratio^2 - 1) / 4; [1] for a ratio of 1 or below.

    Worked example: 1.25 -> variance .141 -> one pass of [.0703, .859, .0703] -> [18, 220, 18] / 256.
    """
    variance = (ratio * ratio - 1) / 4
    if variance <= 0:
        return np.ones(1, np.float32)
    passes = ceil(variance / 0.5)  # [.25, .5, .25] has variance .5
    side = variance / passes / 2
    kernel = np.ones(1)
    for _ in range(passes):
        kernel = np.convolve(kernel, [side, 1 - 2 * side, side])
    whole = np.rint(kernel * _STEPS)
    whole[len(whole) // 2] += _STEPS - whole.sum()
    return (whole / _STEPS).astype(np.float32)


def resample(pixels: Pixels, size: tuple[int, int], extent: tuple[float, float] | None = None) -> Pixels:
    """Scale [h, w] or [h, w, 3] to size (width, height).

    extent: the part (width, height), from the top left, that is picture; fractions after whole-pixel averaging, whose last
    column and row are only partly picture. Those go to Pillow, which takes fractions of a pixel.
    """
    height, width = pixels.shape[:2]
    across, down = extent or (width, height)
    factors = tuple(int(have / want) if have / want >= REDUCE_FROM else 1 for have, want in zip((across, down), size, strict=True))
    if factors != (1, 1):
        pixels = np.asarray(Image.fromarray(pixels).reduce((factors[0], factors[1])))
        across, down = across / factors[0], down / factors[1]
    if (across, down) == size == (pixels.shape[1], pixels.shape[0]):
        return pixels
    if (across, down) != (pixels.shape[1], pixels.shape[0]):
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, box=(0, 0, across, down)))
    filters = low_pass(across / size[0]), low_pass(down / size[1])
    if len(filters[0]) > 1 or len(filters[1]) > 1:
        pixels = np.asarray(cv2.sepFilter2D(pixels, -1, *filters, borderType=cv2.BORDER_REPLICATE), np.uint8)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC), np.uint8)
