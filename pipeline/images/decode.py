"""Encoded bytes -> upright uint8 pixels, gray or RGB, at no more than the resolution that is needed.

JPEG goes through libjpeg-turbo (simplejpeg): it reports what Pillow hides (a damaged stream that still yields pixels), and
decodes at 1/2, 1/4 or 1/8 in the DCT where the picture shrinks that much. Everything else goes through Pillow, PNG after its
own strict chunk reader (png.py). Pillow is never given a file name and never another format than the one sniffed.

Rules, so that any picture has one meaning:
- transparency (alpha, palette, tRNS) lies over white; CMYK (Adobe's inverted form too) by Pillow's multiplication; Lab by
  littleCMS. ICC profiles are not applied: pixels are taken as sRGB.
- 16 bits of gray: PNG says full scale, so the high byte. TIFF often holds 10, 12 or 14 bits without saying so: the smallest
  shift that fits the brightest pixel into 8 bits. 32-bit integers the same way; floats: 0-1 if they lie in it, else
  stretched between their extremes; NaN is black.
- several frames: the first (the default picture of an APNG, the primary one of an MPO).
- orientation of Exif, else XMP; metadata that cannot be read mean upright.

Memory for one picture of at most 64 MP: see COST; conversions run in bands, so no second full copy is made.
"""

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.conversation import Reject
from pipeline.images import jpeg, png, tiff
from pipeline.images.metadata import UPRIGHT, orientation
from pipeline.images.probe import Limits, Malformed, check_size, webp_size
from pipeline.images.resize import BAND_PIXELS, Pixels, averaged, averaging

# Bytes a pixel that decoder, picture and scaling hold together at their peak; measured at 16 MP, tests/images/test_bounds.py.
COST = {"jpeg": 6.0, "progressive": 10.0, "cmyk": 12.0, "png": 10.0, "webp": 20.0, "avif": 14.0, "gif": 8.0, "tiff": 12.0,
        "bmp": 8.0}
_HEADER_WARNINGS = ("JFIF", "Adobe", "SOS parameters", "unknown JFIF")
_TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (3, True), 6: (3, False), 7: (1, True), 8: (1, False)}


@dataclass(frozen=True, kw_only=True)
class Raster:
    """Upright pixels [h, w] or [h, w, 3], and the extent (width, height) in them that is picture (fractions after averaging)."""

    pixels: Pixels
    extent: tuple[float, float]


def turn(pixels: Pixels, how: int) -> Pixels:
    """Pixels turned upright by an Exif orientation, as ImageOps.exif_transpose does."""
    if how == UPRIGHT:
        return pixels
    quarters, mirrored = _TURNS[how]
    turned = np.rot90(pixels, quarters)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)


def upright_size(width: int, height: int, how: int) -> tuple[int, int]:
    """(width, height) after turning upright: orientations 5 to 8 swap them."""
    return (height, width) if how >= 5 else (width, height)


def decode_jpeg(data: bytes, info: jpeg.JpegInfo, at_least: tuple[int, int]) -> Pixels:
    """Pixels of a JPEG, not turned, scaled in the DCT to the smallest size that is at least (width, height).

    Raises Reject for a stream that libjpeg warns about: pixels are then missing.
    """
    if info.components == 4:
        check_jpeg(data, info)
        return _convert(_loaded(_open(data, "jpeg"), "jpeg"), "jpeg")
    return _scaled(data, info, at_least, "GRAY" if info.components == 1 else "RGB")


def _scaled(data: bytes, info: jpeg.JpegInfo, at_least: tuple[int, int], space: str) -> Pixels:
    factor = max(f for f in (1, 2, 4, 8) if f == 1 or (-(-info.width // f) >= at_least[0] and -(-info.height // f) >= at_least[1]))
    try:
        pixels = _decode_jpeg(data, space, info, factor)
    except ValueError as error:
        raise Reject("image-corrupt", f"JPEG: {error}") from None
    return pixels[..., 0] if space == "GRAY" else pixels


def _decode_jpeg(data: bytes, space: str, info: jpeg.JpegInfo, factor: int) -> Pixels:
    low = {"min_width": -(-info.width // factor), "min_height": -(-info.height // factor)} if factor > 1 else {}
    try:
        return _uint8(simplejpeg.decode_jpeg(data, space, **low))
    except ValueError as error:
        if not any(word in str(error) for word in _HEADER_WARNINGS):
            raise
        return _uint8(simplejpeg.decode_jpeg(data, space, strict=False, **low))  # an odd header, and every pixel is there


def check_jpeg(data: bytes, info: jpeg.JpegInfo) -> Pixels:
    """Decode at 1/8: every code of the stream is read, but no pixel computed from AC terms. Returns the small picture.

    Of 600 random bit flips it found the same 179 as a full decode. Raises Reject.
    """
    space = {1: "GRAY", 4: "CMYK"}.get(info.components, "RGB")
    return _scaled(data, info, (-(-info.width // 8), -(-info.height // 8)), space)


def _open(data: bytes, kind: str) -> Image.Image:
    """Open with the one decoder of that format; whatever it raises becomes a Reject. Nothing is decoded yet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=[kind.upper()])
    except Image.DecompressionBombError as error:
        raise Reject("image-too-large", str(error)) from None
    except Exception as error:
        raise Reject("image-corrupt", f"{kind}: {_plain(error)}") from None


def _loaded(image: Image.Image, kind: str) -> Image.Image:
    """The picture, decoded; whatever its decoder raises becomes a Reject."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except Exception as error:
        raise Reject("image-corrupt", f"{kind}: {_plain(error)}") from None
    return image


def _plain(error: Exception) -> str:
    """An error's text without the address of the buffer it names."""
    if isinstance(error, UnidentifiedImageError):
        return "its decoder does not recognise it"
    return f"{type(error).__name__}: {error}"[:200]


def decode_with_pillow(data: bytes, kind: str, limits: Limits) -> tuple[Image.Image, int]:
    """A loaded first frame and the orientation that its metadata ask for. Raises Reject."""
    if kind == "webp":
        check_size(*webp_size(data), limits, bytes_per_pixel=COST[kind])
    if kind == "tiff":
        try:
            tiff.check_tiff(data, limits, bytes_per_pixel=COST[kind])
        except Malformed as error:
            raise Reject("image-corrupt", f"tiff: {error}") from None
    image = _open(data, kind)
    check_size(*image.size, limits, bytes_per_pixel=COST[kind])
    how = UPRIGHT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind in ("webp", "avif"):
                how = orientation(_bytes(image.info.get("exif")), _bytes(image.info.get("xmp")))
    except Exception as error:
        raise Reject("image-corrupt", f"{kind}: {_plain(error)}") from None
    _loaded(image, kind)  # a TIFF turns itself upright here
    check_size(*image.size, limits, bytes_per_pixel=COST[kind])
    return image, how


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else b""


def decode_png(data: bytes, info: png.PngInfo) -> Image.Image:
    """The loaded picture of a PNG that parse_png accepted. Raises Reject if its data are damaged."""
    try:
        image = _open(png.unpacked(data, info), "png")
    except Malformed as error:
        raise Reject("image-corrupt", f"PNG: {error}") from None
    return _loaded(image, "png")


def raster(image: Image.Image, kind: str, how: int, target: tuple[int, int]) -> Raster:
    """Upright gray or RGB pixels of a loaded picture, averaged over whole pixels where it shrinks by 6 or more.

    target: the upright size that is wanted in the end.
    """
    wanted = upright_size(*target, how)
    factors = averaging(image.size, wanted)
    if factors == (1, 1):
        pixels = turn(_convert(image, kind), how)
        return Raster(pixels=pixels, extent=(pixels.shape[1], pixels.shape[0]))
    reduced = averaged(_bands(image, kind, factors[1]), factors)
    extent = (image.width / factors[0], image.height / factors[1])
    if how != UPRIGHT:  # a turn would bring the partial last column and row to the front: they go
        extent = (float(int(extent[0])), float(int(extent[1])))
        reduced = reduced[:int(extent[1]), :int(extent[0])]
    return Raster(pixels=turn(reduced, how), extent=extent[::-1] if how >= 5 else extent)


def _convert(image: Image.Image, kind: str) -> Pixels:
    return np.concatenate(list(_bands(image, kind, 1)))


def _bands(image: Image.Image, kind: str, multiple: int) -> Iterator[Pixels]:
    """Gray or RGB pixels in bands of about BAND_PIXELS, each a multiple of `multiple` rows (the last may be less)."""
    scale = _Scale(image, kind)
    rows = max(1, BAND_PIXELS // max(1, image.width) // multiple) * multiple
    for top in range(0, image.height, rows):
        whole = rows >= image.height
        band = image if whole else image.crop((0, top, image.width, min(image.height, top + rows)))
        yield scale.convert(band)


class _Scale:
    """How the pixels of one picture become 8 bits of gray or RGB; fixed once, so that bands agree."""

    def __init__(self, image: Image.Image, kind: str) -> None:
        self.kind, self.low, self.high, self.shift = kind, 0.0, 1.0, 0
        self.mode = image.mode
        self.transparent = image.has_transparency_data
        self.lut: NDArray[np.uint8] | None = None
        if self.mode == "P":
            self.lut = _palette_over_white(image)
        if self.mode.startswith("I"):
            top = int(_extrema(image)[1])
            self.shift = 8 if kind == "png" else max(8, top.bit_length()) - 8
        elif self.mode == "F":
            low, high = _extrema(image)
            self.low, self.high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1)
        self.inverted = kind == "tiff" and self.mode.startswith(("I", "F")) and getattr(image, "tag_v2", {}).get(262) == 0

    def convert(self, image: Image.Image) -> Pixels:
        """Gray [h, w] or RGB [h, w, 3] uint8."""
        if self.lut is not None:
            index = np.asarray(image)
            return _uint8(cv2.LUT(index if self.lut.ndim == 1 else cv2.merge((index, index, index)), self.lut))
        if self.mode.startswith("I") or self.mode == "F":
            gray = self._gray(np.asarray(image))
            key = image.info.get("transparency")
            if self.kind == "png" and isinstance(key, int):
                gray = np.where(np.asarray(image) == key, np.uint8(255), gray)
            return 255 - gray if self.inverted else gray
        if self.transparent:
            gray_alpha = self.mode in ("L", "LA", "La", "1")
            layered = image.convert("LA" if gray_alpha else "RGBA")
            over = Image.new("L" if gray_alpha else "RGB", image.size, "white")
            over.paste(layered.convert(over.mode), mask=layered.getchannel("A"))
            return np.asarray(over)
        return np.asarray(image if image.mode in ("L", "RGB") else image.convert("L" if self.mode in ("1", "LA", "La") else "RGB"))

    def _gray(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        if self.mode == "F":
            unit = (np.nan_to_num(values.astype(np.float64), nan=self.low) - self.low) / (self.high - self.low)
            return np.rint(np.clip(unit, 0, 1) * 255).astype(np.uint8)
        return (np.clip(values.astype(np.int64), 0, None) >> self.shift).astype(np.uint8)


def _palette_over_white(image: Image.Image) -> NDArray[np.uint8]:
    """A palette as a table [256] (all gray) or [1, 256, 3]; its transparent colours lie over white."""
    colours = np.array(image.getpalette("RGBA"), np.int64).reshape(-1, 4)
    key = image.info.get("transparency")
    if isinstance(key, bytes):
        colours[:len(key), 3] = np.frombuffer(key[:len(colours)], np.uint8)
    elif isinstance(key, int) and 0 <= key < len(colours):
        colours[key, 3] = 0
    alpha = colours[:, 3:]
    table = np.zeros((256, 3), np.uint8)
    table[:len(colours)] = (colours[:, :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return table[:, 0].copy() if bool((table == table[:, :1]).all()) else table[None]


def _uint8(values: object) -> Pixels:
    pixels = np.asarray(values)
    assert pixels.dtype == np.uint8
    return pixels


def _extrema(image: Image.Image) -> tuple[float, float]:
    """Smallest and largest finite value, band by band (Pillow's getextrema reads I;16 wrongly on some builds)."""
    low, high = float("inf"), float("-inf")
    rows = max(1, BAND_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(image.height, top + rows))))
        values = values[np.isfinite(values)]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return (low, high) if low <= high else (0.0, 1.0)
