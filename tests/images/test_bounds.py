"""No picture, however it is built, costs more than Limits says: sizes are refused before decoding, memory is measured."""

import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image

from pipeline.conversation import Reject
from pipeline.images import Limits, fit_image
from pipeline.images.decode import COST
from tests.images.pictures import chunk, encoded, photo, with_chunk

REPO = Path(__file__).resolve().parents[2]


def reason(data: bytes, mode: str = "base", limits: Limits | None = None) -> str:
    with pytest.raises(Reject) as caught:
        fit_image(data, mode, limits or Limits())
    return caught.value.reason


def header_only_png(width: int, height: int) -> bytes:
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))


def test_pixel_limits_come_before_decoding_and_no_warning_leaks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = time.process_time()
        for size in ((30_000, 30_000), (2**31 - 1, 2**31 - 1), (70_000, 1), (1, 70_000), (8001, 8000)):
            assert reason(header_only_png(*size)) == "image-too-large"
        for size in ((0, 10), (10, 0), (0, 0)):
            assert reason(header_only_png(*size)) in ("image-empty", "image-corrupt")
        webp = b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xff\x3f\0\xff\x3f\0" + bytes(40)
        assert reason(webp) == "image-too-large"
        gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
        assert reason(gif) == "image-too-large"
        inner = b"GIF89a" + struct.pack("<HH", 1, 1) + b"\0\0\0," + struct.pack("<HHHH", 0, 0, 65535, 65535) + b"\0\2\2D\1\0;"
        assert reason(inner) in ("image-too-large", "image-corrupt")
        bmp = bytearray(encoded(photo(4, 4), "BMP"))
        bmp[18:26] = struct.pack("<ii", 50_000, 50_000)
        assert reason(bytes(bmp)) == "image-too-large"
        tiff = encoded(photo(4, 4), "TIFF", tiffinfo={256: 4})
        assert fit_image(tiff, "base").width == 4
        jpeg = bytearray(encoded(photo(64, 64), "JPEG"))
        at = jpeg.index(b"\xff\xc0") + 5
        jpeg[at:at + 4] = struct.pack(">HH", 60_000, 60_000)
        assert reason(bytes(jpeg)) == "image-too-large"
        assert time.process_time() - start < 5


def test_a_tiff_that_lies_about_its_tags_or_tiles() -> None:
    def tiff(*entries: tuple[int, int, int, int], filler: int = 20_000) -> bytes:
        body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0\0\0\0" + bytes(filler)

    size = [(256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 200), (279, 4, 1, 256)]
    assert fit_image(tiff(*size), "base").width == 16
    assert reason(tiff(*size, *[(40_000 + k, 1, 15_000, 100) for k in range(500)])) == "image-corrupt"
    assert reason(tiff(*size, (322, 4, 1, 60_000), (323, 4, 1, 60_000))) == "image-too-large"
    assert reason(tiff((256, 4, 1, 50_000), (257, 4, 1, 50_000), *size[2:])) == "image-too-large"
    assert reason(b"II*\0\xff\xff\xff\x7f" + bytes(100)) == "image-corrupt"


def test_a_progressive_jpeg_of_thousands_of_scans() -> None:
    data = encoded(photo(2000, 1500), "JPEG", progressive=True, quality=30)
    scan = data.rindex(b"\xff\xda")
    many = data[:scan] + data[scan:-2] * 2000 + data[-2:]
    start = time.process_time()
    assert reason(many) == "image-too-large"
    assert time.process_time() - start < 2


def test_text_and_profile_bombs_cost_little() -> None:
    bomb = zlib.compress(bytes(100_000_000), 9)
    data = encoded(photo(60, 40), "PNG")
    for _ in range(50):
        data = with_chunk(with_chunk(data, b"zTXt", b"a\0\0" + bomb), b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb)
    start = time.process_time()
    assert len(fit_image(data, "base").data) < 10_000
    assert time.process_time() - start < 1


def test_many_chunks_and_segments_are_refused_quickly() -> None:
    start = time.process_time()
    png = encoded(photo(60, 40), "PNG")
    assert reason(png[:33] + chunk(b"tEXt", b"") * 300_000 + png[33:]) == "image-corrupt"
    jpeg = encoded(photo(60, 40), "JPEG")
    assert reason(jpeg[:2] + b"\xff\xfe\0\2" * 100_000 + jpeg[2:]) == "image-corrupt"
    assert time.process_time() - start < 5


def test_image_data_that_inflate_beyond_the_header() -> None:
    start = time.process_time()
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 10, 8, 0, 0, 0, 0))
    assert reason(head + chunk(b"IDAT", zlib.compress(bytes(300_000_000), 9)) + chunk(b"IEND", b"")) == "image-corrupt"
    assert time.process_time() - start < 4


def test_strips() -> None:
    tall = encoded(Image.new("L", (3, 6000)), "PNG")
    assert reason(tall) == "image-strip"
    assert reason(tall, "gundam") == "image-strip"
    assert fit_image(tall, "small").height == 640  # a stretch mode clips each side on its own
    assert fit_image(encoded(Image.new("L", (6, 6000)), "PNG"), "base").width == 1
    assert fit_image(encoded(Image.new("L", (1, 1)), "PNG"), "base").kept


MEASURE = """
import sys
from pathlib import Path
from pipeline.images import fit_image
fit_image(Path(sys.argv[1]).read_bytes(), "base")
data = Path(sys.argv[2]).read_bytes()
Path("/proc/self/clear_refs").write_text("5")
def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
before = peak()
fit_image(data, sys.argv[3])
print((peak() - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak memory counter")
@pytest.mark.parametrize(("kind", "mode", "cost"), [
    ("PNG", "gundam", "png"), ("PNG", "base", "png"), ("JPEG", "base", "jpeg"), ("progressive", "base", "progressive"),
    ("CMYK", "base", "cmyk"), ("WEBP", "base", "webp"), ("AVIF", "base", "avif"), ("TIFF", "base", "tiff"),
])
def test_peak_memory_is_below_what_the_limits_count(tmp_path: Path, kind: str, mode: str, cost: str) -> None:
    side = 2400
    image = photo(300, 300).resize((side, side))
    options: dict[str, object] = {"PNG": {"compress_level": 1}, "WEBP": {"method": 0}, "AVIF": {"speed": 10},
                                  "TIFF": {"compression": "tiff_lzw"}}.get(kind, {})
    if kind in ("PNG", "WEBP", "AVIF", "TIFF"):
        image.putalpha(200)
    if kind == "CMYK":
        image = image.convert("CMYK")
    if kind == "progressive":
        options = {"progressive": True, "subsampling": 0}
    (tmp_path / "warm").write_bytes(encoded(photo(1300, 900), "JPEG"))
    (tmp_path / "picture").write_bytes(encoded(image, kind if kind not in ("progressive", "CMYK") else "JPEG", **options))
    out = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path / "warm"), str(tmp_path / "picture"), mode], cwd=REPO,
                         check=True, capture_output=True, text=True).stdout
    # A constant 64 MB for bands, the fitted picture itself and a small PNG's inflated copies; 64 MP are ten times that.
    assert int(out) < COST[cost] * side * side + 64_000_000
