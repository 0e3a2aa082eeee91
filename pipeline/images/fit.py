"""One image of a row -> what its sample stores: fitted inside its mode, original bytes where they may stay.

    probe (headers)  ->  too large, wrong format, strip: Reject
    fits already, 8-bit gray, RGB or palette, one frame,    check every code of the stream, keep the bytes
    upright, no alpha                                       (metadata above 1 kB are cut off, pixels untouched)
    else  ->  decode no larger than needed  ->  resample  ->  encode by content

Only JPEG and PNG are kept. A palette without transparency is 8-bit RGB written down briefly, and every reader opens it as that
(Pillow after `convert("RGB")`): encoded anew with all colours, tables and screenshots would take more than twice the bytes.
Gray of one bit gets a palette of black and white; gray of 2, 4 or 16 bits is encoded anew, as what decoders open as 8-bit gray.

Cost: a sixth of decoding to PIL, ImageOps.pad and JPEG (`python benchmarks/images.py`). Memory and time of any one picture are
bounded by `Limits`.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.conversation import Reject
from pipeline.images import decode, jpeg, png
from pipeline.images.encode import as_gray, encode
from pipeline.images.jpeg import JpegInfo
from pipeline.images.metadata import UPRIGHT, orientation
from pipeline.images.png import PngInfo
from pipeline.images.probe import Limits, Malformed, check_size, sniff
from pipeline.images.resize import resample
from shards.geometry import MODES, TILE, grid_of, stored_size

DEFAULT_LIMITS = Limits()
# A JPEG is scaled in the DCT only down to twice the size that is wanted: 39-52 dB on text against scaling all pixels; straight
# to the size it would be 26-34 dB.
DCT_MARGIN = 2
BLACK_WHITE = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)


@dataclass(frozen=True, kw_only=True)
class FittedImage:
    """The stored form of an image.

    data, suffix: encoded bytes, "jpg" or "png". width, height: of the stored picture. source_width, source_height: of the
    original, upright. kept: data are the original bytes. tiles: gundam's grid (w, h), (0, 0) for none; tiles_data: one
    picture of (640 w, 640 h), row by row the tiles in order.
    """

    data: bytes
    suffix: str
    mode: str
    width: int
    height: int
    source_width: int
    source_height: int
    kept: bool
    tiles: tuple[int, int] = (0, 0)
    tiles_data: bytes | None = None
    tiles_suffix: str = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A probed picture.

    how: Exif orientation. size: upright (width, height). storable: the bytes to store if no pixel has to change: the
    original or the original without its metadata; None if it must be encoded anew. One of the last three is set.
    """

    data: bytes
    kind: str
    how: int
    size: tuple[int, int]
    storable: bytes | None = None
    jpeg: JpegInfo | None = None
    png: PngInfo | None = None
    image: Image.Image | None = None


def probe(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Source:
    """Read the headers, apply the limits. Raises Reject. JPEG and PNG are not decoded yet, other formats are."""
    if not data:
        raise Reject("image-empty", "an image of zero bytes")
    if len(data) > limits.encoded_bytes:
        raise Reject("image-too-large", f"{len(data):,} encoded bytes; the limit is {limits.encoded_bytes:,}")
    kind = sniff(data)
    try:
        if kind == "jpeg":
            return _probe_jpeg(data, limits)
        if kind == "png":
            return _probe_png(data, limits)
    except Malformed as error:
        raise Reject("image-corrupt", f"{kind.upper()}: {error}") from None
    image, how = decode.decode_with_pillow(data, kind, limits)
    return Source(data=data, kind=kind, how=how, size=decode.upright_size(*image.size, how), image=image)


def _probe_jpeg(data: bytes, limits: Limits) -> Source:
    info = jpeg.parse_jpeg(data)
    kind = "cmyk" if info.components == 4 else "progressive" if info.frame == jpeg.PROGRESSIVE else "jpeg"
    check_size(info.width, info.height, limits, bytes_per_pixel=decode.COST[kind])
    if info.width * info.height * info.scans > limits.work:
        raise Reject("image-too-large", f"{info.scans} scans of {info.width} x {info.height} pixels")
    how = orientation(info.exif, info.xmp)
    storable = None
    if info.frame in jpeg.SEQUENTIAL_OR_PROGRESSIVE and info.bits == 8 and info.components in (1, 3) and how == UPRIGHT:
        whole = info.ended and not info.trailing and info.metadata <= limits.metadata_bytes
        storable = data if whole else jpeg.minimal(data, info)
    if not info.ended:
        data = jpeg.minimal(data, info)
    return Source(data=data, kind="jpeg", how=how, size=decode.upright_size(info.width, info.height, how), storable=storable,
                  jpeg=info)


def _probe_png(data: bytes, limits: Limits) -> Source:
    info = png.parse_png(data)
    check_size(info.width, info.height, limits, bytes_per_pixel=decode.COST["png"])
    how = orientation(info.exif, info.xmp)
    storable = None
    opaque = info.colour == 3 or (info.bits == 8 and info.colour in (0, 2))
    if opaque and not info.transparent and how == UPRIGHT:
        whole = info.ended and not info.frames and info.metadata <= limits.metadata_bytes
        storable = data if whole else png.minimal(data, info)
    return Source(data=data, kind="png", how=how, size=decode.upright_size(info.width, info.height, how), storable=storable,
                  png=info)


def check(source: Source) -> None:
    """Decode as much as proves that every pixel is there. Raises Reject("image-corrupt")."""
    if source.jpeg is not None:
        decode.check_jpeg(source.data, source.jpeg)
    elif source.png is not None and source.png.interlaced:
        decode.decode_png(source.data, source.png)
    elif source.png is not None:
        try:
            png.checked_rows(source.data, source.png)
        except Malformed as error:
            raise Reject("image-corrupt", f"PNG: {error}") from None


def two_coloured(source: Source) -> bytes | None:
    """An upright gray PNG of one bit as one of two colours, which decoders open as 8 bits; None for other pictures."""
    info = source.png
    if info is None or (info.colour, info.bits, info.transparent, source.how) != (0, 1, False, UPRIGHT):
        return None
    return png.write_png(np.asarray(decode.decode_png(source.data, info), np.uint8), bits=1, palette=BLACK_WHITE)


def pixels_for(source: Source, size: tuple[int, int]) -> decode.Raster:
    """Upright pixels of at least that size (width, height) where the picture has them. Raises Reject."""
    if source.jpeg is not None:
        wanted = decode.upright_size(size[0] * DCT_MARGIN, size[1] * DCT_MARGIN, source.how)
        pixels = decode.turn(as_gray(decode.decode_jpeg(source.data, source.jpeg, wanted)), source.how)
        return decode.Raster(pixels=pixels, extent=(pixels.shape[1], pixels.shape[0]))
    image = source.image if source.png is None else decode.decode_png(source.data, source.png)
    assert image is not None
    return decode.raster(image, source.kind, source.how, size)


def fit_image(data: bytes, mode: str, limits: Limits = DEFAULT_LIMITS) -> FittedImage:
    """The stored form of an encoded image in a mode of shards.geometry.MODES.

    Raises Reject: image-empty, image-format, image-corrupt, image-too-large, image-strip (a side would
    shrink below one pixel). Never reads a file, never raises anything else for bytes of any kind.
    """
    source = probe(bytes(data), limits)
    width, height = source.size
    size, tiles = stored_size(mode, width, height), grid_of(mode, width, height)
    if MODES[mode].fit == "pad" and min(width, height) * MODES[mode].side < max(width, height):
        raise Reject("image-strip", f"{width} x {height} pixels would be less than one pixel wide at {MODES[mode].side} pixels")
    kept = source.storable if size == source.size else None
    if size == source.size and tiles == (0, 0) and kept is None and (few := two_coloured(source)) is not None:
        return FittedImage(data=few, suffix="png", mode=mode, width=width, height=height, source_width=width, source_height=height,
                           kept=False)
    tiled = (tiles[0] * TILE, tiles[1] * TILE)
    raster, quality = None, source.jpeg.quality if source.jpeg is not None else None
    if kept is None or tiles != (0, 0):
        raster = pixels_for(source, (max(size[0], min(tiled[0], width)), max(size[1], min(tiled[1], height))))
    if kept is not None:
        check(source)
        stored, suffix = kept, "jpg" if source.kind == "jpeg" else "png"
    else:
        assert raster is not None
        stored, suffix = encode(resample(raster.pixels, size, raster.extent), resampled=size != source.size, source_quality=quality)
    tiles_data, tiles_suffix = None, ""
    if raster is not None and tiles != (0, 0):
        tiles_data, tiles_suffix = encode(resample(raster.pixels, tiled, raster.extent), resampled=tiled != source.size,
                                          source_quality=quality)
    return FittedImage(data=stored, suffix=suffix, mode=mode, width=size[0], height=size[1], source_width=width,
                       source_height=height, kept=stored is source.data, tiles=tiles, tiles_data=tiles_data,
                       tiles_suffix=tiles_suffix)
