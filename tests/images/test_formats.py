"""Every pixel format means one picture: gray or RGB, over white, upright."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.conversation import Reject
from pipeline.images import fit_image
from tests.images.pictures import array, chunk, encoded, is_plain, opened, page, photo, png, psnr, with_chunk, with_segment

RAMP = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)


def fitted(data: bytes, mode: str = "base") -> Image.Image:
    result = fit_image(data, mode)
    image = opened(result.data)
    assert is_plain(image)
    assert image.size == (result.width, result.height)
    return image


def test_16_bit_gray_png_keeps_its_high_byte() -> None:
    data = encoded(Image.fromarray(RAMP), "PNG")
    assert np.array_equal(array(fitted(data)), RAMP >> 8)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_tiff_is_scaled_by_the_bits_that_its_brightest_pixel_needs(bits: int) -> None:
    values = (RAMP >> (16 - bits)).astype(np.uint16)
    data = encoded(Image.fromarray(values), "TIFF")
    assert np.array_equal(array(fitted(data)), values >> (bits - 8))


def test_float_tiff() -> None:
    unit = np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32)
    assert np.abs(array(fitted(encoded(Image.fromarray(unit), "TIFF"))).astype(int) - np.rint(unit * 255)).max() <= 1
    wide = unit * 5000 - 1000
    wide[0, 0] = np.nan
    result = array(fitted(encoded(Image.fromarray(wide), "TIFF")))
    assert result[0, 0] == 0
    assert result[-1, -1] == 255


def test_transparency_lies_over_white() -> None:
    colour = photo(64, 48)
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1)))
    layered = colour.copy()
    layered.putalpha(alpha)
    white = Image.new("RGBA", layered.size, "white")
    expected = array(Image.alpha_composite(white, layered).convert("RGB"))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert psnr(array(fitted(encoded(layered, kind, **options)).convert("RGB")), expected) > 34, kind
    gray = layered.convert("LA")
    result = fitted(encoded(gray, "PNG"))
    assert result.mode == "L"
    assert psnr(array(result), array(Image.alpha_composite(white, gray.convert("RGBA")).convert("L"))) > 34


def test_transparent_colour_of_a_palette_a_gray_and_an_rgb_png() -> None:
    index = np.repeat(np.arange(4, dtype=np.uint8), 16).reshape(8, 8)
    paletted = Image.fromarray(index)
    paletted = paletted.convert("P")
    paletted.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    result = array(fitted(encoded(paletted, "PNG", transparency=bytes([0, 255, 255, 255]))).convert("RGB"))
    assert result[0, 0].tolist() == [255, 255, 255]
    assert result[2, 0].tolist() == [200, 0, 0]
    gray = array(fitted(encoded(Image.fromarray(index * 60), "PNG", transparency=60)))
    assert gray[:, 0].tolist() == [0, 0, 255, 255, 120, 120, 180, 180]
    rgb = encoded(Image.fromarray(np.dstack([index * 60] * 3)), "PNG", transparency=(60, 60, 60))
    assert not fit_image(rgb, "base").kept
    assert array(fitted(rgb))[2, 0] == 255
    deep = png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 0x1234, 0x8000), chunk(b"tRNS", struct.pack(">H", 0x1234)))
    assert array(fitted(deep)).tolist() == [[255, 0x80]]


def test_cmyk_and_adobe_inverted_cmyk() -> None:
    cmyk = photo(64, 48).convert("CMYK")
    expected = array(cmyk.convert("RGB"))
    assert psnr(array(fitted(encoded(cmyk, "TIFF"))), expected) > 34
    assert psnr(array(fitted(encoded(cmyk, "JPEG", quality=95))), expected) > 28  # Pillow writes Adobe's inverted form


def test_lab_ycbcr_and_one_bit() -> None:
    colour = photo(64, 48)
    assert psnr(array(fitted(encoded(colour.convert("LAB"), "TIFF"))), array(colour)) > 30
    assert psnr(array(fitted(encoded(colour.convert("YCbCr"), "TIFF"))), array(colour)) > 30
    line = page(200, 60).convert("1")
    result = fit_image(encoded(line, "PNG"), "base")
    assert result.data[24:26] == b"\1\3"  # a bit a pixel, and a palette, so that decoders open it as 8 bits
    assert np.array_equal(array(opened(result.data).convert("RGB")), array(line.convert("RGB")))
    # TIFF whose zero is white
    inverted = encoded(Image.fromarray(RAMP), "TIFF", tiffinfo={262: 0})
    assert array(fitted(inverted))[0, 0] == 255


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP"])
def test_each_format_is_read_and_becomes_png_or_jpeg(kind: str) -> None:
    colour = photo(120, 80)
    result = fit_image(encoded(colour, kind), "base")
    assert result.suffix in ("jpg", "png")
    assert result.data[:2] in (b"\xff\xd8", b"\x89P")
    assert psnr(array(opened(result.data).convert("RGB")), array(colour)) > 22


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO", "PDF", "JPEG2000", "TGA", "PCX", "SGI", "XBM", "DDS"])
def test_other_formats_are_rejected(kind: str) -> None:
    image = page(64, 64).convert("1" if kind == "XBM" else "L" if kind != "DDS" else "RGB")
    with pytest.raises(Reject) as caught:
        fit_image(encoded(image, kind), "base")
    assert caught.value.reason in ("image-format", "image-corrupt")


def test_first_frame_of_animations() -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {}), ("AVIF", {"quality": 100})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.abs(array(fitted(data).convert("RGB")).astype(int) - [255, 0, 0]).max() <= 4, kind
        assert not fit_image(data, "base").kept


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_as_pillow_turns_it(orientation: int) -> None:
    colour = photo(96, 64)
    exif = Image.Exif()
    exif[0x0112] = orientation
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation
    plain_jpeg, plain_png = encoded(colour, "JPEG", quality=95), encoded(colour, "PNG")
    cases = {
        "jpeg exif": encoded(colour, "JPEG", quality=95, exif=exif),
        "jpeg xmp": with_segment(plain_jpeg, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp),
        "png exif": encoded(colour, "PNG", exif=exif),
        "png xmp": with_chunk(plain_png, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "webp exif": encoded(colour, "WEBP", lossless=True, exif=exif),
        "tiff tag": encoded(colour, "TIFF", tiffinfo={274: orientation}),
    }
    for name, data in cases.items():
        with Image.open(io.BytesIO(data)) as image:
            expected = ImageOps.exif_transpose(image).convert("RGB")
        result = fit_image(data, "base")
        assert (result.source_width, result.source_height) == expected.size, name
        assert psnr(array(opened(result.data).convert("RGB")), array(expected)) > 30, name
        if "jpeg" in name or "png" in name:
            assert result.kept == (orientation == 1), name


def test_orientation_survives_shrinking() -> None:
    colour = photo(3000, 400)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(colour, kind, exif=exif)
        for mode in ("micro", "small", "base"):
            result = fit_image(data, mode)
            assert (result.source_width, result.source_height) == (400, 3000)
            expected = colour.transpose(Image.Transpose.ROTATE_270).resize((result.width, result.height), Image.Resampling.BICUBIC)
            assert psnr(array(opened(result.data).convert("RGB")), array(expected)) > 24, (kind, mode)


@pytest.mark.parametrize("block", [
    b"", b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0AAAA",
    b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0",
    b"Exif\0\0" + bytes(range(256)) * 100,
])
def test_broken_exif_means_upright(block: bytes) -> None:
    data = encoded(photo(96, 64), "JPEG")
    result = fit_image(with_segment(data, 0xE1, block), "base")
    assert (result.width, result.height) == (96, 64)
    assert fit_image(with_chunk(encoded(photo(96, 64), "PNG"), b"eXIf", block[6:]), "base").width == 96
