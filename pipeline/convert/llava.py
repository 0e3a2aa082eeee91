"""LLaVA-CC3M-Pretrain-595K (liuhaotian): chat.json names images that are read inside images.zip, nothing is unpacked.

    {"id": "GCC_train_002582585", "image": "GCC_train_002582585.jpg", "conversations": [{"from": "human", ...}, ...]}

Cost: the zip's directory of 595 k entries takes about 300 MB a worker; each image is read once.
"""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.conversation import Reject
from pipeline.convert.records import conversation_of, read_records, record_starts
from pipeline.convert.rows import MAX_IMAGE, OutRow

CHAT, IMAGES = "chat.json", "images.zip"
FILES = (CHAT, IMAGES)
UNIT = 5000
"""Records in one output file: at 40 kB a picture, 200 MB."""


@dataclass(frozen=True, kw_only=True)
class LlavaJob:
    """A Job over chat.json; see pipeline.convert.rows."""

    folder: Path
    starts: tuple[int, ...]
    count: int
    identity: dict[str, Any]

    @property
    def units(self) -> int:
        return len(self.starts)

    def rows(self, unit: int) -> Iterator[OutRow | Reject]:
        first = unit * UNIT
        records = read_records(self.folder / CHAT, self.starts[unit], min(UNIT, self.count - first))
        for index, record in enumerate(records, first):
            try:
                if isinstance(record, Reject):
                    raise record
                turns, names = conversation_of(record)
                images = tuple((name.rpartition("/")[2], read_member(self.folder / IMAGES, name)) for name in names)
                yield OutRow(turns=turns, images=images, source=f"{CHAT}#{index}")
            except Reject as error:
                yield Reject(error.reason, f"{CHAT}#{index}: {error.detail}")


def make_job(source: Path, *, name: str, options: Any = None) -> LlavaJob:
    """Cuts chat.json into units. Raises ValueError when one of the two files is absent or no zip."""
    for file in FILES:
        if not (source / file).is_file():
            raise ValueError(f"source {name}: {source / file} is absent; run pipeline download")
    _directory(source / IMAGES)
    starts, count = record_starts(source / CHAT, UNIT)
    sizes = [[file, (source / file).stat().st_size, (source / file).stat().st_mtime_ns] for file in FILES]
    return LlavaJob(folder=source, starts=tuple(starts), count=count, identity={"converter": "llava", "files": sizes})


def read_member(path: Path, name: str) -> bytes:
    """An image's bytes out of the zip. Raises Reject when it is not there, too large, encrypted or damaged."""
    archive, by_name = _directory(path)
    member = by_name.get(name.rpartition("/")[2])
    if member is None:
        raise Reject("image-missing", f"image {name[:100]!r} is not in {path.name}")
    try:
        info = archive.getinfo(member)
        if info.file_size > MAX_IMAGE:
            raise Reject("image-too-large", f"image {name[:100]!r} has {info.file_size} bytes")
        with archive.open(info) as file:
            data = file.read(MAX_IMAGE + 1)  # what the directory says of the size need not be true
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise Reject("image-missing", f"image {name[:100]!r} cannot be read from {path.name}: {str(error)[:100]}") from None
    if not data or len(data) > MAX_IMAGE:
        raise Reject("image-missing" if not data else "image-too-large", f"image {name[:100]!r} has {len(data)} bytes")
    return data


@lru_cache(maxsize=1)
def _directory(path: Path) -> tuple[zipfile.ZipFile, dict[str, str]]:
    """The open zip and its members by file name, whatever folder they are in. One for each process."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no whole zip file ({error}); remove it and run pipeline download") from None
    return archive, {name.rpartition("/")[2]: name for name in archive.namelist() if not name.endswith("/")}
