"""Reading packed rows: one contiguous read gives all samples of a row.

The trainer's hot path. A row is checked while it is parsed: lengths, order and counts against the row table, so that a cut or
shifted shard is an error with its name and offset and never a shorter batch. Flipped bits inside an image or a text are what
`pipeline verify` finds by sha256.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shards import table, tar
from shards.sample import Sample, decode


def read_row(buffer: bytes | memoryview, *, base: int = 0) -> list[Sample]:
    """All samples of one packed row from its bytes; `base` is the row's offset, for messages only. ValueError if damaged."""
    return list(iter_samples(buffer, base=base, whole=False))


def iter_samples(buffer: bytes | memoryview, *, base: int = 0, whole: bool) -> Iterator[Sample]:
    """Samples of a row's bytes, or of a whole archive."""
    view, key, fields = memoryview(buffer), "", list[tuple[str, bytes | memoryview]]()
    for member in tar.members(view, base=base, whole=whole):
        name, _, suffix = member.name.partition(".")
        if name != key:
            if fields:
                yield decode(key, fields)
            key, fields = name, []
        fields.append((suffix, view[member.data_offset - base:member.data_offset - base + member.size]))
    if fields:
        yield decode(key, fields)


class DamagedRow(ValueError):
    """A packed row that does not read as the row table says; names shard and offset."""


def read_at(file: int, offset: int, view: memoryview) -> memoryview:
    """The part of `view` that an open file fills from that offset on: all of it, but for a file that ends before."""
    at = 0
    while at < len(view) and (got := os.preadv(file, [view[at:]], offset + at)):
        at += got
    return view[:at]


def whole(data: bytes | memoryview, offset: int, length: int, place: str) -> bytes | memoryview:
    """What was read of a row; DamagedRow, naming the place, if it is not as long as the row table says."""
    if len(data) != length:
        raise DamagedRow(f"{place}: row at offset {offset} is {len(data)} bytes long where the table says {length}: "
                         "the shard is cut off or of another build")
    return data


class ShardReader:
    """Reads packed rows of a local shard directory; keeps its files open, and may be used after a fork.

    `read(row)` takes one entry of the row table. Reads are positional (`os.preadv`), so no state is shared.
    """

    def __init__(self, folder: Path, split: str = "train") -> None:
        self.folder, self.split = folder, split
        self._files: dict[str, int] = {}

    def read_bytes(self, row: Any) -> bytes:
        """The bytes of a row, exactly as long as the table says."""
        name, offset, length = table.shard_name(self.split, int(row["shard"])), int(row["offset"]), int(row["length"])
        if name not in self._files:
            self._files[name] = os.open(self.folder / name, os.O_RDONLY)
        data = read_at(self._files[name], offset, memoryview(bytearray(length)))
        return bytes(whole(data, offset, length, name))  # not to be written to, and so with a hash: samples are views of it

    def read(self, row: Any) -> list[Sample]:
        """The samples of a row, checked against the table."""
        return parse_row(self.read_bytes(row), row, self.split)

    def close(self) -> None:
        """Close the shards."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()


def parse_row(buffer: bytes | memoryview, row: Any, split: str) -> list[Sample]:
    """The samples of a row from bytes that came from anywhere; DamagedRow if they are not what the table tells."""
    place = f"{table.shard_name(split, int(row['shard']))}: row at offset {int(row['offset'])}"
    try:
        samples = read_row(buffer, base=int(row["offset"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedRow(f"{place} is damaged: {error}") from None
    counts = (len(samples), sum(len(s.ids) for s in samples), sum(len(s.meta["images"]) for s in samples))
    told = (int(row["samples"]), int(row["tokens"]), int(row["images"]))
    if counts != told:
        raise DamagedRow(f"{place} holds {counts} samples, tokens and images where the table says {told}")
    return samples
