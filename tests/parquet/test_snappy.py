"""Snappy in pieces, against the C library on whole strings."""

import random
from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.parquet import snappy
from pipeline.parquet.snappy import unpack
from pipeline.parquet.thrift import Unsupported, encode_varint


def packed(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="snappy", asbytes=True))


def reader(data: bytes, piece: int = 1 << 30) -> Callable[[int], bytes]:
    """read(n) that gives no more than `piece` bytes at once."""
    left = memoryview(data)

    def read(n: int) -> bytes:
        nonlocal left
        out, left = bytes(left[: min(n, piece)]), left[min(n, piece) :]
        return out

    return read


def made(chance: random.Random, size: int, kind: str) -> bytes:
    if kind == "noise":
        return chance.randbytes(size)
    if kind == "blank":
        return bytes(size)
    parts = bytearray()
    while len(parts) < size:  # noise, runs and what was there before
        length = chance.randrange(1, 9_000)
        parts += chance.choice([chance.randbytes(10 * length), bytes([chance.randrange(256)]) * length,
                                parts[-chance.randrange(1, 70_000) :][:length]])  # fmt: skip
    return bytes(parts[:size])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(0, 700_000), kind=st.sampled_from(["noise", "blank", "mixed"]),
       piece=st.integers(1_000, 400_000), unpacked=st.sampled_from([1, 100_000, 1 << 20]))  # fmt: skip
def test_pieces_are_the_whole(seed: int, size: int, kind: str, piece: int, unpacked: int) -> None:
    data = made(random.Random(seed), size, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snappy, "UNPACK", unpacked)
        assert b"".join(unpack(reader(packed(data), piece), size)) == data


@pytest.mark.parametrize("kind", ["noise", "mixed"])
def test_pieces_are_small(kind: str) -> None:
    data = made(random.Random(1), 9_000_000, kind)
    pieces = list(unpack(reader(packed(data)), len(data)))
    assert b"".join(pieces) == data and max(map(len, pieces)) <= snappy.UNPACK


def test_the_example_of_the_docstring() -> None:
    assert b"".join(unpack(reader(bytes.fromhex("080061 0d01")), 8)) == b"a" * 8


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 200_000), flips=st.integers(1, 3))
def test_damage_is_noticed_or_the_librarys_own_answer(seed: int, size: int, flips: int) -> None:
    chance = random.Random(seed)
    string = bytearray(packed(made(chance, size, "mixed")))
    for _ in range(flips):
        string[chance.randrange(len(string))] = chance.randrange(256)
    cut = bytes(string[: chance.choice([len(string), chance.randrange(len(string) + 1)])])
    try:
        out = b"".join(unpack(reader(cut), size))
    except (Unsupported, pa.ArrowException, OSError):
        return
    assert out == pa.decompress(cut, decompressed_size=size, codec="snappy", asbytes=True)


def test_a_copy_from_an_earlier_block_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snappy, "UNPACK", 1)
    noise = random.Random(0).randbytes(1 << 16)
    literal = bytes([61 << 2]) + (len(noise) - 1).to_bytes(2, "little") + noise
    copy = bytes([63 << 2 | 3]) + (1 << 16).to_bytes(4, "little")
    string = encode_varint((1 << 16) + 64) + literal + copy
    assert pa.decompress(string, decompressed_size=(1 << 16) + 64, codec="snappy", asbytes=True) == noise + noise[:64]
    with pytest.raises((pa.ArrowException, OSError)):
        list(unpack(reader(string), (1 << 16) + 64))


def test_blocks_of_another_size_are_not_read() -> None:
    literal = bytes([62 << 2]) + (99_999).to_bytes(3, "little") + bytes(100_000)
    with pytest.raises(Unsupported, match="other blocks"):
        list(unpack(reader(encode_varint(100_000) + literal), 100_000))


def test_many_small_elements_are_left_to_the_library() -> None:
    data = b"".join(b"%d," % k for k in range(600_000))
    with pytest.raises(Unsupported, match="many small"):
        list(unpack(reader(packed(data)), len(data)))
