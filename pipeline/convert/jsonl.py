"""Local JSONL, JSON or parquet of conversations, with the images they name, as FineVision-format parquet.

    path = "my/labels.jsonl"     one file, or
    path = "my"                  a folder: every .jsonl, .json and .parquet in it

Record shapes: pipeline.convert.records. An `image_path` counts from the folder of its file. It is resolved, symlinks too,
before the check that it stays inside the data folder (the folder given, or that of the file given); one that leaves it is
refused, and so is anything but a regular file. A parquet row may hold an image's bytes instead of a path.

Cost: one scan to count the records, then each image is read once.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.conversation import Reject
from pipeline.convert.records import conversation_of, read_records, record_starts
from pipeline.convert.rows import MAX_IMAGE, OutRow
from pipeline.sources.kind import Kind
from pipeline.sources.rows import iter_rows, open_parquet

UNIT = 2000
"""Records in one output file: with pictures of 200 kB, 400 MB."""

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")

_PARQUET = ("messages", "conversations", "texts", "image_path", "images", "image", "image_paths")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One unit: `count` records of a file from a byte offset (parquet: one row group, its number in `start`)."""

    file: str
    start: int
    count: int
    first: int


@dataclass(frozen=True, kw_only=True)
class JsonJob:
    """A Job over the files below `root`; see pipeline.convert.rows."""

    root: Path
    parts: tuple[Part, ...]
    identity: dict[str, Any]

    @property
    def units(self) -> int:
        return len(self.parts)

    def rows(self, unit: int) -> Iterator[OutRow | Reject]:
        part = self.parts[unit]
        path = self.root / part.file
        for index, record in enumerate(_records(path, part), part.first):
            try:
                if isinstance(record, Reject):
                    raise record
                embedded = _embedded(record)
                turns, names = conversation_of({**record, "images": None, "image": None} if embedded else record)
                images = embedded or tuple((Path(name).name, read_image(self.root, path.parent, name)) for name in names)
                yield OutRow(turns=turns, images=images, source=f"{part.file}#{index}")
            except Reject as error:
                yield Reject(error.reason, f"{part.file}#{index}: {error.detail}")


def make_job(source: Path, *, name: str, options: Any = None) -> JsonJob:
    """Cuts the files into units of at most UNIT records. Raises ValueError when there is nothing to read."""
    if not source.exists():
        raise ValueError(f"source {name}: {source} does not exist")
    root, files = input_files(source)
    if not files or files[0].suffix.lower() not in SUFFIXES:
        raise ValueError(f"source {name}: {source} holds no {', '.join(SUFFIXES)}")
    parts: list[Part] = []
    for path in files:
        file = path.relative_to(root).as_posix()
        if path.suffix.lower() == ".parquet":
            with open_parquet(path) as parquet:
                first = 0
                for group in range(parquet.num_row_groups):
                    rows = parquet.metadata.row_group(group).num_rows
                    parts.append(Part(file=file, start=group, count=rows, first=first))
                    first += rows
        else:
            starts, count = record_starts(path, UNIT)
            parts += [Part(file=file, start=start, count=min(UNIT, count - k * UNIT), first=k * UNIT)
                      for k, start in enumerate(starts)]  # fmt: skip
    return JsonJob(root=root.resolve(), parts=tuple(parts), identity={"converter": "jsonl", "files": seen(root, files)})


def input_files(source: Path) -> tuple[Path, list[Path]]:
    """The data folder of a file or folder, and the files in it that are read, sorted."""
    if source.is_file():
        return source.parent, [source]
    return source, sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
                          and not any(part.startswith(".") for part in path.relative_to(source).parts))


def seen(root: Path, files: Sequence[Path]) -> list[list[Any]]:
    """[name, bytes, time of change] of each file: what a conversion of them is known by."""
    return [[path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def read_image(root: Path, folder: Path, name: str) -> bytes:
    """The bytes of an image named relative to `folder`. Raises Reject when it leaves `root` or is no readable file."""
    try:
        path = (folder / name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError) as error:  # absent, a NUL in the name, a circle of links
        raise Reject("image-missing", f"image {name[:100]!r}: {getattr(error, 'strerror', None) or error}") from None
    if not path.is_relative_to(root):
        raise Reject("image-outside", f"image {name[:100]!r} lies outside of the data folder")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)  # a pipe must not hold up the worker
        with open(handle, "rb") as file:
            kind = os.fstat(handle)
            if not stat.S_ISREG(kind.st_mode):
                raise Reject("image-missing", f"image {name[:100]!r} is no regular file")
            if kind.st_size > MAX_IMAGE:
                raise Reject("image-too-large", f"image {name[:100]!r} has {kind.st_size} bytes")
            data = file.read(MAX_IMAGE)
    except OSError as error:
        raise Reject("image-missing", f"image {name[:100]!r}: {error.strerror}") from None
    if not data:
        raise Reject("image-missing", f"image {name[:100]!r} is empty")
    return data


def _records(path: Path, part: Part) -> Iterator[Any]:
    if path.suffix.lower() != ".parquet":
        yield from read_records(path, part.start, part.count)
        return
    kind = Kind(columns=_PARQUET, required=(), convert=_never)
    with open_parquet(path) as parquet:
        yield from (item for _, item in iter_rows(parquet, part.start, kind))


def _never(row: Any, *, source: str, row_id: str, options: Any) -> Any:
    raise AssertionError("rows of local parquet are read as records")


def _embedded(record: Any) -> tuple[tuple[str, bytes], ...]:
    """Images whose bytes are in the record itself (parquet rows only)."""
    if not isinstance(record, dict):
        return ()
    value = record.get("images") or record.get("image")
    entries = value if isinstance(value, list) else [value]
    found = [(entry.get("path") or "", entry.get("bytes")) if isinstance(entry, dict) else ("", entry) for entry in entries]
    if not any(isinstance(data, bytes) for _, data in found):
        return ()
    images = tuple((Path(str(name)).name, data) for name, data in found if isinstance(data, bytes) and data)
    if len(images) < len(found):
        raise Reject("image-missing", "one of the images has no bytes")
    return images
