"""Page headers, levels, and the bytes of a page."""

import contextlib
import io
import random
import struct as layout
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.parquet.pages import MAX_ENTRIES, Body, Page, Span, hybrid, open_page, read_page
from pipeline.parquet.thrift import Unsupported, encode_varint, struct, varint


def header(kind: int = 0, size: int = 100, packed: int = 100, entries: int = 10, encoding: int = 0) -> bytes:
    """A header of a page of version 1, its numbers as given."""
    ints = [encode_varint(2 * value) for value in (kind, size, packed)]
    data = b"\x15" + encode_varint(2 * entries) + b"\x15" + encode_varint(2 * encoding) + b"\x15\x06\x15\x06\x00"
    return b"\x15" + ints[0] + b"\x15" + ints[1] + b"\x15" + ints[2] + b"\x2c" + data + b"\x00"


def test_numbers() -> None:
    assert varint(bytes.fromhex("e58e26"), 0) == (624485, 3)
    assert [encode_varint(value).hex() for value in (0, 127, 128, 624485)] == ["00", "7f", "8001", "e58e26"]
    with pytest.raises(IndexError):
        varint(b"\xff\xff", 0)
    with pytest.raises(Unsupported):
        varint(b"\xff" * 20, 0)


def test_a_header() -> None:
    data = header() + bytes(100)
    assert struct(data)[0] == {1: 0, 2: 100, 3: 100, 5: {1: 10, 2: 0, 3: 3, 4: 3}}
    assert read_page(io.BytesIO(data), 0, len(data), 200) == Page(0, 0, 10, len(data) - 100, 100, 100)


@pytest.mark.parametrize("bad", [header(packed=101), header(size=201), header(entries=MAX_ENTRIES + 1), header(entries=1 << 62),
                                 header(kind=1), header().replace(b"\x2c\x15\x14", b"\x2c\x11"), b"", b"\x15", b"\xff" * 99,
                                 b"\x1c" * 99, b"\x18\xff\xff\xff\x7f"])  # fmt: skip
def test_headers_that_claim_too_much(bad: bytes) -> None:
    data = bad + bytes(100)
    with pytest.raises(Unsupported):
        read_page(io.BytesIO(data), 0, len(data), 200)


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_header_or_unsupported(data: bytes) -> None:
    try:
        page = read_page(io.BytesIO(data), 0, len(data), 1000)
    except Unsupported:
        return
    assert page.stop <= len(data)


def test_runs_and_groups() -> None:
    assert hybrid(bytes.fromhex("1001"), 1, 8).tolist() == [1] * 8
    assert hybrid(bytes.fromhex("0305"), 1, 8).tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
    assert hybrid(bytes.fromhex("0388c6fa"), 3, 8).tolist() == list(range(8))  # the example of the format's specification
    assert hybrid(b"", 0, 3).tolist() == [0, 0, 0]
    assert hybrid(bytes.fromhex("0600040305"), 9, 3).tolist() == [1024] * 3


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=100), width=st.integers(0, 32), count=st.integers(0, 2000))
def test_any_bytes_are_levels_or_unsupported(data: bytes, width: int, count: int) -> None:
    with contextlib.suppress(Unsupported):
        assert len(hybrid(data, width, count)) == count


def test_claims_of_levels_take_no_time() -> None:
    begun = time.process_time()
    for claim in (b"\xfe\xff\xff\xff\xff\xff\x7f\x01", b"\xff\xff\xff\xff\xff\xff\x7f\x01"):
        with contextlib.suppress(Unsupported):
            assert len(hybrid(claim, 1, MAX_ENTRIES)) == MAX_ENTRIES
    with pytest.raises(Unsupported):
        hybrid(bytes(1 << 16), 1, 100)  # runs of none
    assert time.process_time() - begun < 2


def test_a_body_is_taken_exactly() -> None:
    body = Body(iter([b"abc", b"defg"]), 7)
    assert (body.read(1), body.read(4), body.read(0)) == (b"a", b"bcde", b"")
    with pytest.raises(Unsupported):
        body.read(3)
    with pytest.raises(Unsupported):
        body.finish()
    assert body.read(2) == b"fg"
    body.finish()
    with pytest.raises(Unsupported):
        Body(iter([b"abc"]), 7).read(7)


def test_levels_of_version_1_come_before_the_values() -> None:
    levels = layout.pack("<I", 2) + bytes.fromhex("0305")
    data = levels + b"values"
    page = Page(0, 0, 8, 0, len(data), len(data))
    reps, defs, body = open_page(io.BytesIO(data), page, "UNCOMPRESSED", 0, 1)
    assert reps == [0] * 8 and defs == [1, 0, 1, 0, 0, 0, 0, 0] and body.read(6) == b"values"
    with pytest.raises(Unsupported):
        open_page(io.BytesIO(data), page, "LZ4", 0, 1)


def test_a_span_reads_its_bytes_whoever_else_reads_the_file() -> None:
    file = io.BytesIO(random.Random(0).randbytes(1000))
    span = Span(file, 100, 200)
    out = b""
    while piece := span.read(33):
        out += piece
        file.seek(0)
    assert out == file.getvalue()[100:200]
    with pytest.raises(Unsupported):
        Span(file, 990, 2000).read(11) + Span(file, 1000, 2000).read(1)
