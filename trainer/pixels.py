"""From the bytes of a picture to what the encoder reads.

    image = decode_image(data)                 uint8 [height, width, 3], upright RGB
    view = place(image, "base")                uint8 [1024, 1024, 3], resized and padded as ImageOps.pad does
    pixel_values = group_views([ImageViews(view=view)])

Pixels stay uint8 and interleaved (height, width, channel) up to the device: three bytes a pixel cross the process
boundary and the bus, and nothing is transposed in a worker. Cost of a 1024-pixel page: decoding a JPEG some 4 ms, placing it
.1 ms, or 2 to 3 ms where the stored picture is smaller than its place.
"""

import io
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import simplejpeg  # type: ignore[import-untyped]
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from shards.geometry import PAD_COLOUR, TILE, get_mode, grid_of, placement

Pixels = npt.NDArray[np.uint8]

# What a picture may be: Pillow would also open PostScript, by starting an interpreter for it.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
TURNS = {  # Exif orientation -> what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes) -> Pixels:
    """Encoded bytes -> uint8 [height, width, 3]: upright, RGB, alpha laid over white. ValueError if it cannot be read.

    Stored pictures are upright RGB or gray JPEG and PNG; the rest is for pictures that a user hands to sample.py, with
    the pipeline's rules. JPEG goes through libjpeg-turbo directly: the same pixels as Pillow's, in two thirds of the time.
    """
    if data[:3] == b"\xff\xd8\xff" and b"Exif\0\0" not in data[:65536]:
        try:
            if simplejpeg.decode_jpeg_header(data)[2] != "CMYK":
                pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
                return pixels
        except ValueError:
            pass  # a rare kind, or damage: Pillow reads it or says what is wrong
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return np.asarray(_eight_bits(_upright(image), str(image.format)).convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError(f"not a readable picture ({len(data)} bytes): none of {', '.join(FORMATS)}") from None
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable picture ({len(data)} bytes): {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its Exif says; metadata that cannot be read mean upright."""
    try:
        orientation = image.getexif().get(0x0112)
    except Exception:  # Pillow's parsers raise whatever the damage leads to
        orientation = None
    image.load()
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _eight_bits(image: Image.Image, kind: str) -> Image.Image:
    """Gray of more than 8 bits brought to 8, transparency laid over white; other pictures as they are."""
    if image.mode.startswith("I"):  # PNG means full scale by 16 bits; TIFF often holds 10 or 12 without saying so
        levels = np.asarray(image).astype(np.int64).clip(min=0)
        shift = 8 if kind == "PNG" else max(8, int(levels.max()).bit_length()) - 8
        return Image.fromarray((levels >> shift).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image, np.float64)
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high if high > low else low + 1)
        unit = (np.nan_to_num(values, nan=low) - low) / (high - low)
        return Image.fromarray(np.rint(unit.clip(0, 1) * 255).astype(np.uint8))
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layered)
    return image


def resize(image: Pixels, width: int, height: int) -> Pixels:
    """Bicubic as Pillow's, by whom is right and fast: what grows, as stored pictures do, by torch in a quarter of Pillow's time, a
    hundredth of the values one or two levels off; what shrinks by Pillow (torch 2.13 is up to 28 levels off there)."""
    if image.shape[:2] == (height, width):
        return image
    if height < image.shape[0] or width < image.shape[1]:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(image if image.flags.writeable else image.copy())[None].permute(0, 3, 1, 2)  # channels last
    grown: Pixels = interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
    return grown


def place(image: Pixels, mode: str, canvas: Pixels | None = None) -> Pixels:
    """A picture uint8 [height, width, 3] on the mode's canvas uint8 [side, side, 3] (a new one, or the given one, whatever it
    holds), as Pillow's ImageOps.pad places it."""
    side, (height, width) = get_mode(mode).side, image.shape[:2]
    at = placement(mode, width, height)
    if canvas is None:
        canvas = np.empty((side, side, 3), np.uint8)
    if (at.width, at.height) != (side, side):
        canvas.fill(PAD_COLOUR[0])  # gray, so one byte everywhere: as a colour it would take 7 ms
    canvas[at.top : at.top + at.height, at.left : at.left + at.width] = resize(image, at.width, at.height)
    return canvas


def cut_tiles(stitched: Pixels, grid: tuple[int, int]) -> Pixels:
    """Gundam's tiles uint8 [w * h, 640, 640, 3], row by row, of their stitched picture uint8 [640 h, 640 w, 3]."""
    (w, h), found = grid, stitched.shape
    if found != (TILE * h, TILE * w, 3):
        raise ValueError(f"a picture of {w} x {h} tiles has shape {(TILE * h, TILE * w, 3)}, not {found}")
    return stitched.reshape(h, TILE, w, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)


@dataclass(frozen=True, kw_only=True)
class ImageViews:
    """What the encoder sees of one image: its view uint8 [side, side, 3] and, in gundam, its tiles and their (w, h)."""

    view: Pixels
    tiles: Pixels | None = None
    grid: tuple[int, int] = (0, 0)


def view_image(image: Pixels, mode: str) -> ImageViews:
    """The views of an original picture, for inference: what the pipeline stores, without the detour over a file."""
    height, width = image.shape[:2]
    grid = grid_of(mode, width, height)
    if grid == (0, 0):
        return ImageViews(view=place(image, mode))
    stitched = resize(image, TILE * grid[0], TILE * grid[1])
    return ImageViews(view=place(image, mode), tiles=cut_tiles(stitched, grid), grid=grid)


def count_views(images: Iterable[tuple[int, int, int]]) -> dict[int, int]:
    """Views of each side, in the order in which sides first come up, that images (side, w, h) take: tiles before their view."""
    return dict(Counter(view for side, w, h in images for view in (*[TILE] * (w * h), side)))


@dataclass(frozen=True, kw_only=True)
class PixelValues:
    """The images of a batch, grouped by size so that each size is one forward of the encoder.

    views: side in pixels -> uint8 [N, 3, side, side] (in channels-last memory when made by group_views). Gundam's tiles
        are views of side 640 like any other.
    images: one (side, w, h) an image, in the order in which their placeholders stand in the batch: row 0 first, then by
        position. An image takes, from the front of what is left, first its w * h tiles (row by row) out of views[640],
        then its one view out of views[side]; (w, h) is (0, 0) for an image without tiles.
    positions: int64 [number of placeholders], the flat positions b * T + t of all placeholders of the batch in rising
        order, or None: then the model finds them, which on CUDA waits for the device.

    Images are encoded in these groups and their features are scattered back in the order of `images`.
    """

    views: dict[int, Tensor]
    images: tuple[tuple[int, int, int], ...]
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        for side, pixels in self.views.items():
            if pixels.dtype != torch.uint8 or pixels.shape[1:] != (3, side, side):
                raise ValueError(f"views[{side}] is {pixels.dtype} {tuple(pixels.shape)}, not uint8 [N, 3, {side}, {side}]")
        found = {side: len(pixels) for side, pixels in self.views.items()}
        if found != (wanted := count_views(self.images)):
            raise ValueError(f"the images of the batch need {wanted} views a side, but there are {found}")

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PixelValues":
        """The same on another device."""
        positions = None if self.positions is None else self.positions.to(device, non_blocking=non_blocking)
        views = {side: pixels.to(device, non_blocking=non_blocking) for side, pixels in self.views.items()}
        return replace(self, views=views, positions=positions)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """As a tensor's: its memory is used on that stream."""
        for tensor in (*self.views.values(), *([] if self.positions is None else [self.positions])):
            tensor.record_stream(stream)


def group_views(images: Sequence[ImageViews], positions: Tensor | None = None) -> PixelValues | None:
    """Images in batch order -> their PixelValues; None without any, which is a text-only batch."""
    if not images:
        return None
    parts: dict[int, list[Pixels]] = {}
    for image in images:
        if image.tiles is not None:
            parts.setdefault(TILE, []).extend(image.tiles)
        parts.setdefault(len(image.view), []).append(image.view)
    views = {side: torch.from_numpy(np.stack(group)).permute(0, 3, 1, 2) for side, group in parts.items()}
    return PixelValues(views=views, images=tuple((len(image.view), *image.grid) for image in images), positions=positions)
