"""USTAR members as bytes, and back: the only part of tar that a shard uses.

A header is 512 bytes; data is padded with zeros to 512. Format: POSIX.1-1988 ustar, as `tarfile.USTAR_FORMAT` writes it (a
test compares the bytes). Parsing is strict: a wrong checksum, type or name is an error with its offset, never a shorter list,
since a forgiving reader loses samples in silence. Cost: about 1 us a member each way.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

BLOCK = 512
RECORD = 20 * BLOCK
MAX_MEMBER = 8**11 - 1  # what eleven octal digits hold: 8 GiB
_new_tuple = tuple.__new__
_ZERO = bytes(BLOCK)
_PADDING = [bytes(length) for length in range(BLOCK)]
# a header's fixed parts: mode and owner; the end of the size, the time; type, magic, version, empty names
_OWNER, _TIME = b"0000644\0" + b"0000000\0" * 2, b"\0" + b"00000000000\0"
_REST = b"0" + bytes(100) + b"ustar\x0000" + bytes(32 + 32 + 183)
_FIXED_SUM = sum(_OWNER + _TIME + _REST) + 8 * 32  # the checksum counts its own field as blanks


class TarError(ValueError):
    """A shard's bytes are not the plain USTAR that the format promises; the message gives the offset."""


def padded(size: int) -> int:
    """Bytes that `size` bytes of data take in the archive."""
    return -(-size // BLOCK) * BLOCK


@lru_cache(maxsize=1 << 14)
def _middle(size: int) -> tuple[bytes, int]:
    """What stands between a header's name and its checksum, and the sum of the whole header but for the name."""
    if not 0 <= size <= MAX_MEMBER:
        raise ValueError(f"a member of {size} bytes does not fit a plain USTAR header")
    digits = b"%011o" % size
    return _OWNER + digits + _TIME, _FIXED_SUM + sum(digits)


@lru_cache(maxsize=1 << 14)
def _behind(suffix: str, size: int, stem: int) -> tuple[bytes, int]:
    """What stands between a stem of so many bytes and the checksum of a header, and the sum of all but the stem."""
    raw = suffix.encode("ascii")
    if stem + len(raw) > 100:
        raise ValueError(f"a name of {stem + len(raw)} bytes ending in {suffix[-30:]!r} does not fit a plain USTAR header")
    middle, checksum = _middle(size)
    return raw + bytes(100 - stem - len(raw)) + middle, checksum + sum(raw)


def pieces(stem: str, files: Iterable[tuple[str, bytes | memoryview]]) -> list[bytes | memoryview]:
    """Members named `stem` + suffix in pieces, for a writer that joins many: headers, data and padding.

    Samples have few suffixes and sizes, so that nearly all of a header comes from a cache: what is new is the stem.
    """
    raw = stem.encode("ascii")
    length, stem_sum = len(raw), sum(raw)
    found: list[bytes | memoryview] = []
    for suffix, data in files:
        size = len(data)
        behind, checksum = _behind(suffix, size, length)
        found += (raw, behind, b"%06o\0 " % (stem_sum + checksum), _REST, data, _PADDING[-size % BLOCK])
    return found


def header(name: str, size: int) -> bytes:
    """The 512-byte header of a regular file: mode 0644, owner 0, mtime 0."""
    behind, checksum = _behind(name, size, 0)
    return behind + b"%06o\0 " % checksum + _REST


def member(name: str, data: bytes | memoryview) -> bytes:
    """Header, data and padding of one member."""
    return b"".join(pieces(name, [("", data)]))


def ending(size: int) -> bytes:
    """What closes an archive of `size` bytes: two zero blocks, then zeros up to a whole record."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % RECORD)


class Member(NamedTuple):
    """One member: its name, the offset of its header, and that and the size of its data."""

    name: str
    offset: int
    data_offset: int
    size: int

    @property
    def end(self) -> int:
        """Offset just past the padding."""
        return self.data_offset + padded(self.size)


def members(buffer: bytes | memoryview, *, base: int = 0, whole: bool = False) -> Iterator[Member]:
    """Yield the members of `buffer`, which starts at a header; offsets are counted from `base`.

    `whole` says that the buffer is a complete archive: it must then end with its zero blocks. Otherwise it must end with a
    member's padding. Raises TarError at the first byte that is not as written.
    """
    view, at = memoryview(buffer), 0
    total = len(view)
    while at < total:
        block = bytes(view[at:at + BLOCK])
        if block == _ZERO:
            if not whole or bytes(view[at:]) != ending(at):
                raise TarError(f"offset {base + at}: zero blocks where a member was due")
            return
        name, size = _parse(block, base + at)
        start = at + BLOCK
        stop = start + size
        end = stop + -size % BLOCK
        if end > total:
            raise TarError(f"offset {base + at}: {name} of {size} bytes is cut off")
        if bytes(view[stop:end]) != _PADDING[end - stop]:
            raise TarError(f"offset {base + at}: padding of {name} is not zero")
        yield _new_tuple(Member, (name, base + at, base + start, size))  # Member(...) goes through python
        at = end
    if whole:
        raise TarError(f"offset {base + at}: the archive has no end")


def _parse(block: bytes, offset: int) -> tuple[str, int]:
    raw = block[:100].rstrip(b"\0")
    if not block.endswith(_REST) or len(block) != BLOCK:
        raise TarError(f"offset {offset}: not the header of a regular USTAR file")
    try:
        size, name = int(block[124:135], 8), raw.decode("ascii")
        middle, checksum = _middle(size)  # int() would also take blanks, a sign and underscores: the digits are compared
    except ValueError:
        raise TarError(f"offset {offset}: unreadable header") from None
    if block[100:148] != middle or block[148:156] != b"%06o\0 " % (checksum + sum(raw)):
        raise TarError(f"offset {offset}: header checksum or fields are wrong")
    return name, size
