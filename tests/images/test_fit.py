"""Sizes agree with Pillow's ImageOps.pad, scaling with its BICUBIC; formats follow content; the same bytes every time."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.conversation import Reject
from pipeline.images import fit_image
from pipeline.images.encode import encode
from pipeline.images.jpeg import parse_jpeg
from pipeline.images.png import parse_png, unpacked, write_png
from pipeline.images.resize import low_pass, resample
from shards.geometry import MODES, grid_of, placement, stored_size
from tests.images.pictures import array, encoded, opened, page, photo, psnr

SIZES = [(1, 1), (1, 2), (17, 640), (640, 640), (641, 640), (1023, 1024), (1024, 1024), (1025, 1024), (1024, 1025), (2000, 1333),
         (1333, 2000), (3000, 41), (500, 2999), (1601, 1200), (2480, 3508), (999, 1001)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["micro", "base", "large"])
def test_stored_picture_lands_where_imageops_pad_puts_it(size: tuple[int, int], mode: str) -> None:
    """A black picture padded with white: its box is what placement says, and the stored size fits in it."""
    side = MODES[mode].side
    padded = ImageOps.pad(Image.new("L", size, 0), (side, side), color=255)
    left, top, right, bottom = ImageOps.invert(padded).getbbox() or (0, 0, 0, 0)
    place = placement(mode, *size)
    assert (left, top, right - left, bottom - top) == (place.left, place.top, place.width, place.height)
    try:
        result = fit_image(encoded(Image.new("L", size, 0), "PNG"), mode)
    except Reject as error:
        strip = error.reason == "image-strip"
        assert strip
        return
    assert (result.width, result.height) == stored_size(mode, *size)
    assert result.width <= place.width and result.height <= place.height
    assert placement(mode, result.width, result.height) == place or max(size) > side
    assert (result.source_width, result.source_height) == size


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), mode=st.sampled_from(sorted(MODES)))
def test_any_size_is_stored_inside_its_mode_and_never_scaled_up(width: int, height: int, mode: str) -> None:
    try:
        result = fit_image(encoded(Image.new("1", (width, height), 1), "PNG"), mode)
    except Reject as error:
        strip = error.reason == "image-strip"
        assert strip
        assert min(width, height) * MODES[mode].side < max(width, height)
        return
    assert opened(result.data).size == (result.width, result.height) == stored_size(mode, width, height)
    assert result.width <= min(width, MODES[mode].side)
    assert result.height <= min(height, MODES[mode].side)
    assert result.tiles == grid_of(mode, width, height)
    if result.tiles != (0, 0):
        assert result.tiles_data is not None
        assert opened(result.tiles_data).size == (640 * result.tiles[0], 640 * result.tiles[1])


def test_gundam_stores_a_global_view_like_base_and_stitched_tiles() -> None:
    colour = photo(1000, 1400)
    data = encoded(colour, "PNG")
    result = fit_image(data, "gundam")
    assert result.tiles == (2, 3)
    assert result.tiles_data is not None
    assert result.data == fit_image(data, "base").data
    tiles = opened(result.tiles_data)
    expected = colour.resize((1280, 1920), Image.Resampling.BICUBIC)
    assert psnr(array(tiles), array(expected)) > 34
    small = fit_image(encoded(photo(640, 640), "JPEG"), "gundam")
    assert small.tiles == (0, 0)
    assert small.tiles_data is None
    assert small.kept
    fits = fit_image(encoded(photo(1000, 700), "JPEG"), "gundam")
    assert fits.kept
    assert fits.tiles_data is not None


@pytest.mark.parametrize("ratio", [1.02, 1.1, 1.25, 1.5, 1.9, 2.0, 2.4, 2.9, 3.0, 3.3, 4.5, 5.5])
def test_scaling_is_near_pillows_bicubic(ratio: float) -> None:
    """Nearer than Pillow's BILINEAR is, and about as near as its LANCZOS, on a page and on a photograph."""
    for image in (page(1000, 600), photo(1000, 600)):
        size = (round(1000 / ratio), round(600 / ratio))
        reference = array(image.resize(size, Image.Resampling.BICUBIC))
        here = psnr(reference, resample(array(image), size))
        assert here > 40
        assert here > psnr(reference, array(image.resize(size, Image.Resampling.LANCZOS))) - 2


def test_low_pass_weights() -> None:
    assert low_pass(1.0).tolist() == [1.0]
    assert (low_pass(1.25) * 128).tolist() == [-5, 17, 104, 17, -5]
    for ratio in (1.01, 1.5, 2.2, 2.99):
        weights = low_pass(ratio)
        assert weights.sum() == 1
        assert (weights == weights[::-1]).all()


@pytest.mark.parametrize(("size", "mode"), [((2601, 2001), "base"), ((2500, 1999), "micro"), ((1300, 1300), "tiny"),
                                             ((6000, 300), "small")])
def test_large_pictures_are_near_the_reference_through_every_decoder(size: tuple[int, int], mode: str) -> None:
    colour = photo(*size)
    target = stored_size(mode, *size)
    expected = array(colour.resize(target, Image.Resampling.BICUBIC))
    for kind, options in (("JPEG", {"quality": 95}), ("PNG", {"compress_level": 1}), ("BMP", {})):
        stored = opened(fit_image(encoded(colour, kind, **options), mode).data)
        assert stored.size == target
        assert psnr(array(stored), expected) > 35, kind


def test_format_follows_content() -> None:
    assert fit_image(encoded(photo(1500, 1000), "PNG", compress_level=1), "base").suffix == "jpg"
    assert fit_image(encoded(page(1500, 1000), "PNG"), "base").suffix == "png"
    assert fit_image(encoded(photo(300, 200), "WEBP"), "base").suffix == "jpg"
    drawing = page(600, 400).convert("RGB")
    drawing.paste((200, 30, 30), (100, 100, 300, 200))
    few = drawing.quantize(8)
    for data in (encoded(few, "GIF"), encoded(few.convert("RGB"), "BMP"), encoded(few.convert("RGBA"), "PNG")):
        result = fit_image(data, "base")
        assert result.suffix == "png"
        assert result.data[25] == 3
        assert len(result.data) < 12_000
        assert np.array_equal(array(opened(result.data).convert("RGB")), array(few.convert("RGB")))
    assert fit_image(encoded(few, "PNG"), "base").kept


def test_gray_stays_gray_and_gray_in_rgb_becomes_gray() -> None:
    assert opened(fit_image(encoded(page(1500, 1000), "JPEG"), "base").data).mode == "L"
    assert opened(fit_image(encoded(page(1500, 1000).convert("RGB"), "JPEG"), "base").data).mode == "L"
    assert opened(fit_image(encoded(page(1500, 1000).convert("RGBA"), "PNG"), "base").data).mode == "L"
    coloured = page(1500, 1000).convert("RGB")
    coloured.paste((255, 0, 0), (700, 500, 712, 512))
    assert opened(fit_image(encoded(coloured, "JPEG"), "base").data).mode == "RGB"
    assert opened(fit_image(encoded(coloured, "PNG"), "base").data).mode == "P"


def test_resampled_colour_of_strokes_takes_a_palette_and_other_colour_none() -> None:
    table = page(1500, 1000).convert("RGB")
    table.paste((200, 30, 30), (100, 100, 700, 160))
    shaded = array(table.resize((1000, 667), Image.Resampling.BICUBIC))
    exact, suffix = encode(shaded, resampled=False)
    assert suffix == "png"
    assert np.array_equal(array(opened(exact).convert("RGB")), shaded)
    few, _ = encode(shaded, resampled=True)
    assert few[25] == 3
    assert len(few) < 0.6 * len(exact)
    assert psnr(array(opened(few).convert("RGB")), shaded) > 45
    product = Image.new("RGB", (800, 800), "white")  # a photograph on a white page has no bands
    product.paste(photo(350, 350), (200, 200))
    assert opened(encode(array(product), resampled=True)[0]).mode == "RGB"


def test_gray_levels() -> None:
    line = array(page(700, 300).point(lambda v: 255 if v > 128 else 0))
    steps = np.tile(np.repeat(np.arange(16, dtype=np.uint8) * 17, 40), (300, 1))
    for pixels, bits in ((line, 2), (steps, 4)):
        data, suffix = encode(pixels, resampled=False)
        assert suffix == "png"
        assert data[24] == bits
        assert np.array_equal(array(opened(data)), pixels)
        assert opened(data).mode == "L"
    shaded = array(page(700, 300).resize((500, 214), Image.Resampling.BICUBIC))
    exact, _ = encode(shaded, resampled=False)
    assert np.array_equal(array(opened(exact)), shaded)
    coarse, suffix = encode(shaded, resampled=True)
    assert suffix == "png"
    assert len(coarse) < len(exact)
    assert np.abs(array(opened(coarse)).astype(int) - shaded).max() <= 9
    # A photograph on a white page has no bands.
    product = Image.new("L", (800, 800), 255)
    product.paste(photo(350, 350).convert("L"), (200, 200))
    data, suffix = encode(array(product), resampled=True)
    assert suffix == "jpg" or data[24] == 8


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 40), height=st.integers(1, 40), bits=st.sampled_from([2, 4, 8]), seed=st.integers(0, 9))
def test_png_writer_round_trip(width: int, height: int, bits: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 1 << bits, (height, width), dtype=np.uint8)
    data = write_png(pixels, bits=bits)
    assert np.array_equal(array(opened(data)), pixels * (255 // ((1 << bits) - 1)))
    info = parse_png(data)
    assert np.array_equal(array(opened(unpacked(data, info))), array(opened(data)))


def test_interlaced_png_of_every_small_size() -> None:
    """PNG's seven passes: the raw length that parse_png expects is the one that an encoder wrote."""
    import cv2

    for width in range(1, 18):
        for height in (1, 2, 3, 5, 9, 17):
            ok, out = cv2.imencode(".png", array(photo(width, height)), [cv2.IMWRITE_PNG_COMPRESSION, 1])
            assert ok
            assert fit_image(out.tobytes(), "base").kept


def test_source_quality_bounds_the_stored_quality() -> None:
    for quality, stored in ((60, 70), (72, 72), (80, 80), (95, 90)):
        data = encoded(photo(1500, 1000), "JPEG", quality=quality)
        assert parse_jpeg(data).quality == pytest.approx(quality, abs=1)
        assert parse_jpeg(fit_image(data, "base").data).quality == pytest.approx(stored, abs=1)


def test_stored_jpeg_has_full_chroma() -> None:
    image = opened(fit_image(encoded(photo(1500, 1000), "JPEG"), "base").data)
    assert {component[1:3] for component in image.layer} == {(1, 1)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", [(1300, 1300, 3), (1300, 1300), (900, 1020, 3)])
def test_noise_that_takes_a_byte_a_pixel_is_stored(shape: tuple[int, ...], capfd: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(3).choice(np.array([0, 255], np.uint8), shape)
    fitted = fit_image(encoded(Image.fromarray(pixels), "png"), "base")
    assert opened(fitted.data).size == (fitted.width, fitted.height)
    stored, suffix = encode(pixels[:600, :600], resampled=True)
    assert suffix == "jpg"
    assert len(stored) > 280_000
    assert psnr(array(opened(stored)), pixels[:600, :600]) > 30
    assert capfd.readouterr().err == ""


def test_the_same_bytes_every_time() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        data = encoded(photo(1400, 900), kind)
        first, again = fit_image(data, "gundam"), fit_image(bytes(bytearray(data)), "gundam")
        assert first == again


def test_no_file_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    pictures = [encoded(photo(1400, 900), kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF")]
    fit_image(encoded(photo(20, 20).convert("LAB"), "TIFF"), "base")  # imports littleCMS
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(io, "open", refuse)
    for data in pictures:
        fit_image(data, "base")
