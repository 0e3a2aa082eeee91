"""One sample as members of a tar, and back."""

import json
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from shards import tar

IMAGE_SUFFIXES = ("jpg", "png")
KEY = re.compile(r"(train|val)-\d{6,}-\d{6,}")
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
_DECODER = json.JSONDecoder()
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_NPY_START = 128  # a vector's header of format 1.0, whatever its length: 59 characters or a few more, filled up


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sample: `meta` is KEY.json; ids int32 [n]; mask uint8 [n]; images as (suffix, encoded bytes), in tar order.

    A suffix is what follows the key: "0.jpg", "0.tiles.png", "1.png". The stitched tiles of an image come right after it.
    """

    key: str
    meta: dict[str, Any]
    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.uint8]
    images: tuple[tuple[str, bytes | memoryview], ...] = ()

    def image(self, index: int) -> bytes:
        """Encoded bytes of image `index`."""
        return bytes(next(data for suffix, data in self.images if suffix in (f"{index}.jpg", f"{index}.png")))

    def tiles(self, index: int) -> bytes | None:
        """Encoded bytes of the stitched tiles of image `index`; None where it has none."""
        return next((bytes(data) for suffix, data in self.images if suffix.startswith(f"{index}.tiles.")), None)


def make_key(split: str, shard: int, position: int) -> str:
    """The key of the sample at `position` of a shard; unique over a directory."""
    return f"{split}-{shard:06d}-{position:06d}"


@lru_cache(maxsize=8192)
def _npy_header(dtype: str, length: int) -> bytes:
    """Header of format 1.0 for a vector: magic, version, a dict padded with spaces to a multiple of 64 bytes."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({length},), }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@lru_cache(maxsize=16)
def _descr(dtype: np.dtype[Any]) -> str:
    return dtype.newbyteorder("<").str


def encode_npy(vector: npt.NDArray[Any] | bytes) -> bytes:
    """A vector as `numpy.save` writes it (a test compares), 20 times faster; bytes are one of uint8."""
    if isinstance(vector, bytes):
        return _npy_header("|u1", len(vector)) + vector
    return _npy_header(_descr(vector.dtype), len(vector)) + vector.tobytes()


def decode_npy(data: bytes | memoryview, dtype: str) -> npt.NDArray[Any]:
    """A vector of that dtype ("<i4", "|u1"), copied; ValueError for anything else. Never unpickles."""
    length, rest = divmod(len(data) - _NPY_START, int(dtype[2:]))
    if rest or length < 0 or bytes(data[:_NPY_START]) != _npy_header(dtype, length):
        raise ValueError(f"not a vector of {dtype} in npy 1.0")
    return np.frombuffer(data, dtype=dtype, offset=_NPY_START).copy()


def encode_json(meta: dict[str, Any]) -> bytes:
    """KEY.json: one line of UTF-8 with sorted keys, so that the same sample gives the same bytes.

    A lone surrogate, which UTF-8 cannot hold, becomes U+FFFD: one character for one, so that offsets stay right.
    """
    text = _ENCODER.encode(meta)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _LONE_SURROGATE.sub("\ufffd", text).encode()


def encode(meta: dict[str, Any], ids: npt.NDArray[np.int32], mask: npt.NDArray[np.uint8],
           images: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The members of a sample as (suffix, data), in tar order, without the key."""
    return members(encode_json(meta), ids, mask, images)


def members(meta: bytes, ids: npt.NDArray[np.int32], mask: npt.NDArray[np.uint8] | bytes,
            images: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The same from an encoded KEY.json: what a builder spools."""
    return [("json", meta), ("ids.npy", encode_npy(ids)), ("mask.npy", encode_npy(mask)), *images]


def encoded_size(fields: Sequence[tuple[str, bytes | memoryview]]) -> int:
    """Bytes that these members take in a tar."""
    return sum([tar.BLOCK + tar.padded(len(data)) for _, data in fields])


def decode(key: str, fields: Sequence[tuple[str, bytes | memoryview]]) -> Sample:
    """A sample from its members; ValueError naming the key if one is missing, unknown or out of order."""
    names = [suffix for suffix, _ in fields]
    if names[:3] != ["json", "ids.npy", "mask.npy"]:
        raise ValueError(f"{key}: members {names} do not start with json, ids.npy, mask.npy")
    text = str(fields[0][1], "utf-8")
    meta, end = _DECODER.raw_decode(text)
    if end != len(text) or not isinstance(meta, dict) or not isinstance(meta.get("images"), list):
        raise ValueError(f"{key}: json holds no list of images")
    expected = []
    for index, image in enumerate(meta["images"]):
        expected.append(f"{index}.")
        if image["tiles"] != [0, 0]:
            expected.append(f"{index}.tiles.")
    found = [suffix[:-3] for suffix in names[3:] if suffix.endswith(IMAGE_SUFFIXES)]
    if found != expected or len(found) != len(names) - 3:
        raise ValueError(f"{key}: images {names[3:]} where its json tells {len(meta['images'])}")
    return Sample(key=key, meta=meta, ids=decode_npy(fields[1][1], "<i4"), mask=decode_npy(fields[2][1], "|u1"),
                  images=tuple(fields[3:]))
