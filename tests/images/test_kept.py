"""When the original bytes are stored, when they lose only metadata, and that either way no pixel changes."""

import zlib

import numpy as np
import pytest

from pipeline.conversation import Reject
from pipeline.images import fit_image
from tests.images.pictures import array, chunk, encoded, is_plain, opened, page, photo, with_chunk, with_segment

JPEG = encoded(photo(300, 200), "JPEG", quality=85)
PNG = encoded(photo(60, 40), "PNG")


@pytest.mark.parametrize("data", [
    JPEG, PNG, encoded(photo(300, 200), "JPEG", progressive=True), encoded(page(300, 200), "JPEG"), encoded(page(300, 200), "PNG"),
    encoded(photo(300, 200), "JPEG", subsampling=0, restart_marker_blocks=4), encoded(photo(1024, 10), "JPEG"),
    encoded(photo(40, 40), "JPEG", icc_profile=b"profile" * 100), with_segment(JPEG, 0xFE, b"a comment"),
    encoded(photo(300, 200).quantize(200), "PNG"), with_chunk(PNG, b"tEXt", b"Title\0a title"),
    with_chunk(PNG, b"zTXt", b"Title\0\0" + zlib.compress(b"a title")),
], ids=range(12))
def test_fitting_pictures_keep_their_bytes(data: bytes) -> None:
    result = fit_image(data, "base")
    assert result.kept
    assert result.data == data


@pytest.mark.parametrize("data", [
    encoded(page(300, 200).convert("1"), "PNG"), encoded(photo(300, 200).quantize(32), "PNG", transparency=3),
    encoded(page(300, 200).convert("LA"), "PNG"),
    encoded(photo(300, 200).convert("CMYK"), "JPEG"), encoded(photo(300, 200), "WEBP"), encoded(photo(300, 200), "BMP"),
    encoded(photo(1025, 10), "JPEG"), encoded(page(300, 200), "GIF"), encoded(page(16, 16).convert("I;16"), "PNG"),
], ids=range(9))
def test_other_pictures_are_encoded_anew(data: bytes) -> None:
    result = fit_image(data, "base")
    assert not result.kept
    assert is_plain(opened(result.data))


def bulky(kind: str) -> list[bytes]:
    rng = np.random.default_rng(0)
    noise = rng.bytes(60_000)
    if kind == "JPEG":
        second = encoded(photo(300, 200, seed=5), "JPEG")
        return [encoded(photo(300, 200), "JPEG", quality=85, icc_profile=noise * 5), with_segment(JPEG, 0xE1, b"Exif\0\0" + noise),
                with_segment(JPEG, 0xFE, noise), JPEG + noise, JPEG + second, JPEG[:-2], JPEG + b"\0" * 10,
                encoded(photo(300, 200), "MPO", quality=85, save_all=True, append_images=[photo(300, 200, seed=5)])]
    bomb = zlib.compress(b"\0" * 50_000_000, 9)
    return [with_chunk(PNG, b"tEXt", b"Note\0" + noise), with_chunk(PNG, b"zTXt", b"Note\0\0" + bomb),
            with_chunk(PNG, b"iTXt", b"Note\0\1\0\0\0" + bomb), with_chunk(PNG, b"iCCP", b"icc\0\0" + bomb),
            with_chunk(PNG, b"prVt", noise), PNG + noise, PNG[:-12], PNG[:-3] + b"abc" + noise,
            with_chunk(PNG, b"acTL", b"\0\0\0\1\0\0\0\0")]


@pytest.mark.parametrize("case", range(8))
def test_bulky_metadata_leave_a_jpeg_and_no_pixel_changes(case: int) -> None:
    data = bulky("JPEG")[case]
    result = fit_image(data, "base")
    assert not result.kept
    assert len(result.data) <= len(JPEG) + 20
    assert np.array_equal(array(opened(result.data)), array(opened(data + b"\xff\xd9")))


@pytest.mark.parametrize("case", range(9))
def test_bulky_metadata_leave_a_png_and_no_pixel_changes(case: int) -> None:
    data = bulky("PNG")[case]
    if case == 7:
        with pytest.raises(Reject):  # IEND's checksum is wrong
            fit_image(data, "base")
        return
    result = fit_image(data, "base")
    assert not result.kept
    assert len(result.data) <= len(PNG)
    assert np.array_equal(array(opened(result.data)), array(photo(60, 40)))


def test_metadata_checksums_do_not_matter_and_picture_checksums_do() -> None:
    broken = bytearray(with_chunk(PNG, b"tEXt", b"Title\0a title"))
    broken[41] ^= 1
    assert fit_image(bytes(broken), "base").width == 60
    at = PNG.index(b"IDAT") + 20
    with pytest.raises(Reject, match="checksum"):
        fit_image(PNG[:at] + bytes([PNG[at] ^ 1]) + PNG[at + 1:], "base")


def test_a_short_stream_with_right_checksums_is_seen() -> None:
    rows = b"".join(b"\0" + bytes(30) for _ in range(10))
    for wrong in (rows[:-31], rows[:-1], rows + b"\0", rows * 2, b"\5" + rows[1:]):
        data = encoded(page(30, 10), "PNG")
        head = data[:data.index(b"IDAT") - 4]
        with pytest.raises(Reject, match="PNG"):
            fit_image(head + chunk(b"IDAT", zlib.compress(wrong)) + chunk(b"IEND", b""), "base")
