"""USTAR members against the standard library's tarfile; a strict parser against every kind of damage."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import tar

NAMES = st.from_regex(r"(train|val)-[0-9]{6}-[0-9]{6}\.[a-z0-9.]{1,60}", fullmatch=True)
MEMBERS = st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=6)


def write(members: list[tuple[str, bytes]]) -> bytes:
    body = b"".join(tar.member(name, data) for name, data in members)
    return body + tar.ending(len(body))


def by_tarfile(members: list[tuple[str, bytes]]) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


@given(MEMBERS)
@settings(max_examples=80, deadline=None)
def test_bytes_are_those_of_tarfile(members: list[tuple[str, bytes]]) -> None:
    assert write(members) == by_tarfile(members)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 8703, 8704, 9215, 9216, 9217, 10240])
def test_padding_and_ending_are_those_of_tarfile(size: int) -> None:
    members = [("train-000000-000000.json", bytes(range(256)) * (size // 256) + b"x" * (size % 256))]
    assert write(members) == by_tarfile(members)
    assert len(write(members)) % tar.RECORD == 0


@given(MEMBERS)
@settings(max_examples=50, deadline=None)
def test_members_come_back(members: list[tuple[str, bytes]]) -> None:
    data = write(members)
    found = list(tar.members(data, whole=True))
    assert [(m.name, data[m.data_offset:m.data_offset + m.size]) for m in found] == members
    body = sum(tar.BLOCK + tar.padded(len(data)) for _, data in members)
    assert [m.offset for m in tar.members(data[:body], base=7000)] == [m.offset + 7000 for m in found]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        tar.header("a" * 101, 1)
    with pytest.raises(ValueError, match="does not fit"):
        tar.header("a", tar.MAX_MEMBER + 1)
    with pytest.raises(ValueError):
        tar.header("ä", 1)
    assert tarfile.TarInfo.frombuf(tar.header("a" * 100, tar.MAX_MEMBER), "ascii", "strict").size == tar.MAX_MEMBER


TWO = [("train-000000-000000.json", b'{"a":1}'), ("train-000000-000000.ids.npy", b"x" * 700)]


@pytest.mark.parametrize("whole", [True, False])
def test_every_cut_is_an_error(whole: bool) -> None:
    body = b"".join(tar.member(name, data) for name, data in TWO)
    data = body + tar.ending(len(body)) if whole else body
    good = {0, len(data), *(() if whole else (1024,))}  # without the end, whole members are whole
    for stop in sorted({*range(0, len(data) + 1, 64), 1, 511, 513, 1023, 1025}):
        if stop in good:
            continue
        with pytest.raises(tar.TarError, match=r"offset \d+"):
            list(tar.members(data[:stop], whole=whole))


def test_every_flipped_bit_outside_the_payload_is_an_error() -> None:
    data = write(TWO)
    payload = {at for m in tar.members(data, whole=True) for at in range(m.data_offset, m.data_offset + m.size)}
    for at in range(0, 3 * 1024):
        if at in payload:
            continue
        for bit in (0, 5):
            broken = bytearray(data)
            broken[at] ^= 1 << bit
            with pytest.raises(ValueError):
                list(tar.members(bytes(broken), whole=True))


@given(st.binary(min_size=1, max_size=3000))
@settings(max_examples=100, deadline=None)
def test_noise_is_an_error_and_nothing_else(noise: bytes) -> None:
    with pytest.raises(tar.TarError):
        list(tar.members(noise, whole=True))


@given(st.integers(0, 1023), st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_a_header_with_a_repaired_checksum_is_still_strict(at: int, flip: int) -> None:
    """Someone else's tar (another owner, time, type, or a negative size) is not ours, even if its checksum is right."""
    data = bytearray(write(TWO))
    at %= 512
    data[at] ^= flip
    if not 148 <= at < 156:
        data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    try:
        found = list(tar.members(bytes(data), whole=True))
    except ValueError:
        return
    assert (found[0].name, found[0].size) != (TWO[0][0], len(TWO[0][1])) or bytes(data) == write(TWO)


def test_zero_blocks_in_the_middle_are_an_error() -> None:
    first = tar.member(*TWO[0])
    with pytest.raises(tar.TarError, match="zero blocks"):
        list(tar.members(first + bytes(1024) + tar.member(*TWO[1]), whole=True))
    with pytest.raises(tar.TarError, match="zero blocks"):
        list(tar.members(first + bytes(512)))
    with pytest.raises(tar.TarError, match="no end"):
        list(tar.members(first, whole=True))
    with pytest.raises(tar.TarError, match="zero blocks"):
        list(tar.members(write(TWO) + bytes(512), whole=True))


def test_foreign_archives_are_refused() -> None:
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
            info = tarfile.TarInfo("träin-000000-000000.json")
            info.size, info.mtime = 3, 1.5
            archive.addfile(info, io.BytesIO(b"abc"))
        with pytest.raises(tar.TarError):
            list(tar.members(sink.getvalue(), whole=True))
