"""A task's samples, kept until their packed order is known.

Packing needs the lengths of all samples of a shard, and a shard does not fit in a worker's memory; so encoded members go to one
scratch file as they come, and are copied out in packed order. The first so many bytes need not: a shard of text is a few MB,
and on its way through a file it cost a tenth of what is beside the tokenizer. Memory: these, and about 300 bytes a sample.
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


class Place(NamedTuple):
    """Where a sample lies in the file: its offset, the suffixes of its members, and their sizes."""

    offset: int
    suffixes: tuple[str, ...]
    sizes: tuple[int, ...]


class Spool:
    """Append-only file of members with an index in memory. Reading begins when writing has ended."""

    def __init__(self, path: Path, *, held: int = 0) -> None:
        """`held`: bytes of members that stay in memory, the first that come; with 0 all can be read by another process."""
        self._path, self._room = path, held
        self._out: IO[bytes] | None = open(path, "wb", buffering=1 << 20)
        self._in = -1
        self._places: list[Place | Fields] = []
        self.infos: list[SampleInfo] = []
        self._end = 0

    def add(self, fields: Fields, info: SampleInfo) -> None:
        """Append one sample."""
        assert self._out is not None
        self.infos.append(info)
        if info.bytes <= self._room:
            self._room -= info.bytes
            self._places.append(fields)
            return
        suffixes, data = zip(*fields)
        self._places.append(Place(self._end, suffixes, tuple(map(len, data))))
        self._end += self._out.write(b"".join(data))

    def end(self) -> None:
        """No sample follows; what was added is in the file."""
        if self._out is not None:
            self._out.close()
            self._out = None

    def read(self, index: int) -> PackedSample:
        """One sample, ready for the shard writer."""
        place, info = self._places[index], self.infos[index]
        fields = self._from_file(place) if isinstance(place, Place) else place
        return PackedSample(fields, info.tokens, info.images, info.patches)

    def _from_file(self, place: Place) -> Fields:
        if self._in < 0:
            self.end()
            self._in = os.open(self._path, os.O_RDONLY)
        data = memoryview(os.pread(self._in, sum(place.sizes), place.offset))
        stops = tuple(accumulate(place.sizes))
        assert len(data) == stops[-1], f"{self._path} is shorter than its index"
        return [(suffix, data[stop - size:stop]) for suffix, size, stop in zip(place.suffixes, place.sizes, stops)]

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
        """Write the index, so that `open_spool` can read the samples in another process; none may be held in memory."""
        self.end()
        places = [place for place in self._places if isinstance(place, Place)]
        assert len(places) == len(self._places)
        path.write_text(json.dumps({"places": [(offset, list(zip(suffixes, sizes))) for offset, suffixes, sizes in places],
                                    "infos": [info._asdict() for info in self.infos]}))


def open_spool(data: Path, index: Path) -> Spool:
    """A spool that another process wrote, for reading."""
    stored = json.loads(index.read_text())
    spool = Spool.__new__(Spool)
    spool._path, spool._room, spool._out, spool._in = data, 0, None, -1
    places = [Place(offset, *zip(*members)) for offset, members in stored["places"]]
    spool._places = [*places]
    spool.infos = [SampleInfo(**{**info, "modes": tuple(info["modes"]), "sizes": tuple(info["sizes"])})
                   for info in stored["infos"]]
    spool._end = sum(sum(place.sizes) for place in places)
    return spool
