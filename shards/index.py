"""Sidecar indexes, byte for byte as the readers' own tools write them (tests compare with those tools where installed).

`X.tar.idx` (Megatron-Energon): N + 1 little-endian uint64, the header offset of each sample's first member, then the end of
the last. `X.idx` (DALI, version 1.2): a line `v1.2 N`, then a line a sample of `suffix data_offset size name` for each member.
"""

import struct
from collections.abc import Sequence


def energon(offsets: Sequence[int]) -> bytes:
    """Energon's index from the N + 1 offsets."""
    return struct.pack(f"<{len(offsets)}Q", *offsets)


class DaliIndex:
    """Collects the lines of DALI's index."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, members: Sequence[tuple[str, int, int, str]]) -> None:
        """Add one sample from its members' (suffix, data offset, size, name)."""
        self._lines.append(" ".join([f"{suffix} {offset} {size} {name}" for suffix, offset, size, name in members]))

    def encode(self) -> bytes:
        """The whole file."""
        return "\n".join([f"v1.2 {len(self._lines)}", *self._lines, ""]).encode()
