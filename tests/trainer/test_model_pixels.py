"""Pictures on their way to the encoder: placed as Pillow's ImageOps does, decoded as the pipeline does."""

import contextlib
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from shards.geometry import MODES, PAD_COLOUR, placeholders
from trainer.pixels import Pixels, cut_tiles, decode_image, place, view_image


def noise(width: int, height: int, channels: int = 3) -> Pixels:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(width * 7919 + height).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def assert_close(placed: Any, wanted: Any) -> None:
    """As Pillow's but for rounding: no value more than two levels off, and hardly any at all."""
    off = np.abs(placed.astype(int) - np.asarray(wanted).astype(int))
    assert off.max(initial=0) <= 2
    assert off.mean() < 0.03


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([mode for mode in MODES if mode != "gundam"]), st.integers(1, 700), st.integers(1, 700))
def test_place_is_pillows(mode: str, width: int, height: int) -> None:
    image, side = noise(width, height), MODES[mode].side
    placed = place(image, mode)
    pillow = Image.fromarray(image)
    if MODES[mode].fit == "pad":
        assume(min(ImageOps.contain(pillow, (side, side)).size))  # of a thread Pillow leaves nothing, place a line of one pixel
        wanted = ImageOps.pad(pillow, (side, side), Image.Resampling.BICUBIC, PAD_COLOUR)
    else:
        wanted = pillow.resize((side, side), Image.Resampling.BICUBIC)
    assert placed.shape == (side, side, 3)
    assert_close(placed, wanted)


@pytest.mark.parametrize("size", [(2, 3000), (3000, 2), (1024, 1024), (2000, 1333)])
def test_place_at_the_edges(size: tuple[int, int]) -> None:
    wanted = ImageOps.pad(Image.fromarray(noise(*size)), (1024, 1024), Image.Resampling.BICUBIC, PAD_COLOUR)
    assert_close(place(noise(*size), "base"), wanted)


def test_a_picture_that_fits_is_not_touched() -> None:
    placed = place(noise(1024, 500), "base")
    assert np.array_equal(placed[262:762], noise(1024, 500))
    assert (placed[:262] == 127).all()
    assert (placed[762:] == 127).all()


def test_tiles_are_cut_row_by_row() -> None:
    stitched = noise(1280, 1920)
    tiles = cut_tiles(stitched, (2, 3))
    assert tiles.shape == (6, 640, 640, 3)
    for index in range(6):
        row, column = divmod(index, 2)
        assert np.array_equal(tiles[index], stitched[640 * row : 640 * row + 640, 640 * column : 640 * column + 640])
    with pytest.raises(ValueError, match=r"has shape \(1920, 1280, 3\), not \(1280, 1280, 3\)"):
        cut_tiles(stitched[:1280], (2, 3))


def test_views_of_a_large_picture() -> None:
    image = noise(1400, 1000)
    views = view_image(image, "gundam")
    assert views.grid == (3, 2)
    assert views.tiles is not None
    stretched = Image.fromarray(image).resize((1920, 1280), Image.Resampling.BICUBIC)
    assert_close(views.tiles, cut_tiles(np.asarray(stretched), (3, 2)))
    small = view_image(noise(300, 200), "gundam")
    assert (small.tiles, small.grid, placeholders("gundam", small.grid)) == (None, (0, 0), 273)


@pytest.mark.parametrize("quality", [40, 85])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_gives_pillows_pixels(quality: int, subsampling: int, progressive: bool) -> None:
    smooth = np.asarray(Image.fromarray(noise(40, 30)).resize((333, 217)))  # Pillow cannot write progressive noise
    for image in (smooth, noise(65, 40, 1), np.full((50, 70, 3), 200, np.uint8)):
        data = encode(Image.fromarray(image), "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
        assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def pictures() -> dict[str, bytes]:
    """One of each kind that users have."""
    rgb, gray = Image.fromarray(noise(40, 30)), Image.fromarray(noise(40, 30, 1))
    alpha = Image.fromarray(noise(40, 30, 4))
    levels = np.arange(1200, dtype=np.uint16).reshape(30, 40)
    palette = rgb.quantize(17)
    found = {
        "png": encode(rgb, "PNG"),
        "gray": encode(gray, "PNG"),
        "one bit": encode(gray.convert("1"), "PNG"),
        "alpha": encode(alpha, "PNG"),
        "gray alpha": encode(alpha.convert("LA"), "PNG"),
        "palette": encode(palette, "PNG"),
        "palette with a clear colour": encode(palette, "PNG", transparency=3),
        "16 bits": encode(Image.fromarray(levels * 54), "PNG"),
        "12 bits in 16": encode(Image.fromarray(levels * 3), "TIFF"),
        "floats": encode(Image.fromarray(levels.astype(np.float32) - 100), "TIFF"),
        "small floats": encode(Image.fromarray(levels.astype(np.float32) / 1500), "TIFF"),
        "cmyk": encode(rgb.convert("CMYK"), "JPEG"),
        "gif": encode(palette, "GIF"),
        "webp": encode(alpha, "WEBP", lossless=True),
        "bmp": encode(rgb, "BMP"),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        found[f"jpeg turned {orientation}"] = encode(rgb, "JPEG", exif=exif)
        found[f"png turned {orientation}"] = encode(rgb, "PNG", exif=exif)
    return found


@pytest.mark.parametrize("name", pictures())
def test_decoding_follows_the_pipelines_rules(name: str) -> None:
    """sample.py must show a model what the pipeline would have; transparency may differ by one level of rounding."""
    data = pictures()[name]
    ours = decode_image(data)
    assert ours.dtype == np.uint8
    assert ours.flags.c_contiguous
    if name.startswith(("jpeg turned", "png turned")):
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert np.array_equal(ours, np.asarray(upright))
    fit = pytest.importorskip("pipeline.images.fit")
    fitted = fit.fit_image(data, "base")  # 40 x 30 pixels fit: only modes change
    if fitted.suffix == "png":
        theirs = np.asarray(Image.open(io.BytesIO(fitted.data)).convert("RGB"))
        assert ours.shape == theirs.shape
        assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_real_pictures_of_other_kinds(shared: Path) -> None:
    """Whatever the hostile pictures are: an array or a ValueError, nothing else."""
    found = [path for path in (shared / "data" / "hostile").rglob("*") if path.is_file() and path.stat().st_size < 20_000_000]
    for path in found:
        try:
            image = decode_image(path.read_bytes())
        except ValueError:
            continue
        assert image.ndim == 3
        assert image.shape[2] == 3


@cache
def damaged() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(Image.fromarray(noise(20, 20)), "JPEG", exif=exif)
    whole = encode(Image.fromarray(noise(200, 200)), "JPEG")
    return {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"<svg></svg>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "bomb": encode(Image.new("1", (20000, 20000)), "PNG"),
        "flipped": whole[:900] + bytes(byte ^ 0x55 for byte in whole[900:940]) + whole[940:],
        "exif": turned[:30] + b"\xff" * 9 + turned[39:],
    }


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "postscript", "bomb"])
def test_what_cannot_be_read(damage: str) -> None:
    with pytest.raises(ValueError, match="not a readable picture"):
        decode_image(damaged()[damage])


def test_damage_that_leaves_a_picture() -> None:
    assert decode_image(damaged()["exif"]).shape == (20, 20, 3)
    with contextlib.suppress(ValueError):  # a decoder may see it or not; nothing else may happen
        assert decode_image(damaged()["flipped"]).shape == (200, 200, 3)
