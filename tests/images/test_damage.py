"""Cut and flipped files: a Reject or a picture that decodes in full, never anything else, for every format."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from pipeline.conversation import Reject
from pipeline.images import Limits, fit_image
from tests.images.pictures import encoded, is_plain, opened, page, photo

LIMITS = Limits(pixels=4_000_000)
FILES = {
    "jpeg": encoded(photo(160, 120), "JPEG", quality=85),
    "progressive": encoded(photo(160, 120), "JPEG", quality=85, progressive=True),
    "cmyk": encoded(photo(80, 60).convert("CMYK"), "JPEG"),
    "png": encoded(photo(60, 40), "PNG"),
    "palette": encoded(photo(160, 120).quantize(16), "PNG"),
    "gif": encoded(photo(160, 120), "GIF", save_all=True, append_images=[photo(160, 120, seed=1)]),
    "webp": encoded(photo(160, 120), "WEBP"),
    "webp-lossless": encoded(photo(60, 40), "WEBP", lossless=True),
    "avif": encoded(photo(160, 120), "AVIF"),
    "tiff": encoded(photo(60, 40), "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": encoded(photo(160, 120), "TIFF", compression="jpeg"),
    "bmp": encoded(page(60, 40).convert("1"), "BMP"),
}


def outcome(data: bytes, mode: str = "base") -> str:
    """"ok" or the reason; the stored picture is decoded in full."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = fit_image(data, mode, LIMITS)
    except Reject as error:
        known = error.reason in ("image-corrupt", "image-format", "image-too-large", "image-empty", "image-strip")
        assert known
        return error.reason
    stored = opened(result.data)
    assert stored.size == (result.width, result.height)
    assert is_plain(stored)
    return "ok"


@pytest.mark.parametrize("name", FILES)
def test_flipped_bytes(name: str) -> None:
    rng = np.random.default_rng(len(FILES[name]))
    for trial in range(150):
        data = bytearray(FILES[name])
        for _ in range(1 + trial % 3):
            at = int(rng.integers(min(len(data), 200 if trial % 2 else len(data))))
            data[at] = int(rng.integers(256))
        outcome(bytes(data), "micro" if trial % 5 == 0 else "base")


@pytest.mark.parametrize("name", FILES)
def test_cut_files(name: str) -> None:
    data = FILES[name]
    assert outcome(data) == "ok"
    for part in range(1, 40):
        cut = outcome(data[:len(data) * part // 40])
        if name in ("jpeg", "progressive", "cmyk", "png", "palette", "webp", "webp-lossless", "tiff"):
            assert cut != "ok", part


def test_a_damaged_jpeg_stream_that_pillow_decodes_in_silence_is_rejected() -> None:
    """Of 200 flips in the entropy-coded data, Pillow shows nearly all; what libjpeg calls corrupt is not stored."""
    rng = np.random.default_rng(7)
    original = FILES["jpeg"]
    start = original.index(b"\xff\xda") + 14
    silent = rejected = 0
    for _ in range(200):
        data = bytearray(original)
        at = int(rng.integers(start, len(data) - 2))
        data[at] ^= 1 << int(rng.integers(8))
        try:
            Image.open(io.BytesIO(bytes(data))).load()
            silent += 1
        except OSError:
            continue
        rejected += outcome(bytes(data)) == "image-corrupt"
    assert silent > 150
    assert rejected > 10


def test_random_bytes_after_every_signature() -> None:
    rng = np.random.default_rng(3)
    for name, data in FILES.items():
        for head in (4, 8, 12, 16, 32, 64):
            fate = outcome(data[:head] + rng.bytes(500))
            assert fate != "ok" or name == "bmp", (name, head)  # any bytes are pixels of a BMP
    assert outcome(b"") == "image-empty"
    for size in (1, 2, 3, 4, 20, 1000):
        assert outcome(rng.bytes(size)) == "image-format"
