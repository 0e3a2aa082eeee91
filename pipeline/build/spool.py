"""A task's samples on disk until their packed order is known.

Packing needs the lengths of all samples of a shard, and a shard does not fit in a worker's memory; so encoded members go to one
scratch file as they come, and are copied out in packed order. Memory: about 300 bytes a sample.
"""

import json
import os
from itertools import accumulate
from pathlib import Path
from typing import IO, NamedTuple, Self

from shards.writer import Fields, PackedSample


class SampleInfo(NamedTuple):
    """What is known of a sample beside its members; the columns of samples.parquet but for its place.

    tokens, targets, answer_tokens: ids, trained labels and those of answers. sizes: "WxH" as stored, one an image.
    """

    source: str
    row: str
    tokens: int
    targets: int
    answer_tokens: int
    images: int
    patches: int
    turns: int
    modes: tuple[str, ...]
    sizes: tuple[str, ...]
    kept_images: int  # whose original bytes were kept
    dropped_turns: int
    cut: str
    bytes: int


Place = tuple[int, tuple[str, ...], tuple[int, ...]]
"""Where a sample lies: its offset, the suffixes of its members, and their sizes."""


class Spool:
    """Append-only file of members with an index in memory. Reading begins when writing has ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._out: IO[bytes] | None = open(path, "wb", buffering=1 << 20)
        self._in = -1
        self._places: list[Place] = []
        self.infos: list[SampleInfo] = []
        self._end = 0

    def add(self, fields: Fields, info: SampleInfo) -> None:
        """Append one sample."""
        assert self._out is not None
        suffixes, data = zip(*fields)
        self._places.append((self._end, suffixes, tuple(map(len, data))))
        self.infos.append(info)
        self._end += self._out.write(b"".join(data))

    def end(self) -> None:
        """No sample follows; what was added is in the file."""
        if self._out is not None:
            self._out.close()
            self._out = None

    def read(self, index: int) -> PackedSample:
        """One sample, ready for the shard writer."""
        if self._in < 0:
            self.end()
            self._in = os.open(self._path, os.O_RDONLY)
        offset, suffixes, sizes = self._places[index]
        info = self.infos[index]
        data = memoryview(os.pread(self._in, sum(sizes), offset))
        stops = tuple(accumulate(sizes))
        assert len(data) == stops[-1], f"{self._path} is shorter than its index"
        fields = [(suffix, data[stop - size:stop]) for suffix, size, stop in zip(suffixes, sizes, stops)]
        return PackedSample(fields, info.tokens, info.images, info.patches)

    def __len__(self) -> int:
        return len(self.infos)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        if self._in >= 0:
            os.close(self._in)
            self._in = -1

    def save_index(self, path: Path) -> None:
        """Write the index, so that `open_spool` can read the samples in another process."""
        self.end()
        path.write_text(json.dumps({"places": [(offset, list(zip(suffixes, sizes))) for offset, suffixes, sizes in self._places],
                                    "infos": [info._asdict() for info in self.infos]}))


def open_spool(data: Path, index: Path) -> Spool:
    """A spool that another process wrote, for reading."""
    stored = json.loads(index.read_text())
    spool = Spool.__new__(Spool)
    spool._path, spool._out, spool._in = data, None, -1
    spool._places = [(offset, *zip(*members)) for offset, members in stored["places"]]
    spool.infos = [SampleInfo(**{**info, "modes": tuple(info["modes"]), "sizes": tuple(info["sizes"])})
                   for info in stored["infos"]]
    spool._end = sum(sum(sizes) for _, _, sizes in spool._places)
    return spool
