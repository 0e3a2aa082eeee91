"""The PNG writer: what Pillow reads back, and that nothing but pixels is inside."""

import struct
import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from pipeline.chem.png import encode_frame, encode_jpeg, encode_png, open_frame


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (64, 48), (7, 13, 3), (64, 48, 3)])
def test_round_trip(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
    with Image.open(BytesIO(encode_png(pixels))) as image:
        assert image.mode == ("L" if len(shape) == 2 else "RGB")
        assert np.array_equal(np.asarray(image), pixels)


def test_one_bit_round_trip() -> None:
    pixels = np.random.default_rng(3).integers(0, 2, (9, 21), dtype=np.uint8) * 255
    data = encode_png(pixels, one_bit=True)
    with Image.open(BytesIO(data)) as image:
        assert image.mode == "1"
        assert np.array_equal(np.asarray(image.convert("L")), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_frame_is_the_same_picture(channels: int) -> None:
    frame = open_frame(11, 5, channels=channels)
    frame.pixels[:] = np.arange(frame.pixels.size, dtype=np.uint8).reshape(frame.pixels.shape)
    assert encode_frame(frame) == encode_png(np.ascontiguousarray(frame.pixels))


def test_only_the_three_necessary_chunks() -> None:
    data = encode_png(np.zeros((5, 5), dtype=np.uint8))
    kinds, at = [], 8
    while at < len(data):
        length = struct.unpack_from(">I", data, at)[0]
        kinds.append(data[at + 4 : at + 8])
        at += 12 + length
    assert kinds == [b"IHDR", b"IDAT", b"IEND"]


def test_jpeg_reads_back() -> None:
    pixels = np.full((20, 30, 3), 200, dtype=np.uint8)
    with Image.open(BytesIO(encode_jpeg(pixels, quality=80))) as image:
        assert image.size == (30, 20)


ENCODE_ALL = """
import hashlib
from pipeline.chem.job import Job
from pipeline.chem.strings import Unfit
from pipeline.chem.styles import load_style
from pipeline.chem.surface import open_pixel_source
from tests.chem.helpers import depict
from tests.chem.test_faithful import sample
digest, job, source = hashlib.sha256(), Job(style=load_style("diverse")), open_pixel_source()
for smiles in sample(400, 8):
    try:
        digest.update(depict(smiles, 0, job, source).image)
    except Unfit:
        pass
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_same_bytes_in_every_process() -> None:
    """ISA-L's level 1 fails this within a few processes: see png.py."""
    digests = [subprocess.run([sys.executable, "-c", ENCODE_ALL], check=True, capture_output=True).stdout for _ in range(4)]
    assert len(set(digests)) == 1
