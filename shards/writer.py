"""Writing one shard: samples in packed order into a tar, its indexes and its part of the row table.

Same samples, same bytes. The tar is written under a temporary name in the target's folder, synced, then renamed; its sha256
is taken on the way, so that nothing is read back.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from shards import index, table, tar
from shards.sample import make_key

AT_ONCE = 256 << 10  # bytes that are joined, hashed and written in one call: what stays in a processor's cache

Fields = Sequence[tuple[str, bytes | memoryview]]  # (suffix, data) of a sample's members


class PackedSample(NamedTuple):
    """One sample ready to write: members without their key, and the numbers that the row table sums."""

    fields: Fields
    tokens: int
    images: int
    patches: int


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of a shard directory as the manifest lists it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """What writing a shard gives: the manifest's line and the rows."""

    name: str
    bytes: int
    sha256: str
    samples: int
    rows: int
    tokens: int
    images: int
    indexes: tuple[FileEntry, ...]


class HashingFile:
    """A file written under a temporary name, hashed as it grows and renamed when it is complete.

    What is written waits until it is worth a call: joining, hashing and writing 4 kB at a time took twice as long.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size, self._sha256 = path, 0, hashlib.sha256()
        self._partial = partial_path(path)
        self._file = open(self._partial, "wb", buffering=0)
        self._waiting: list[bytes | memoryview] = []
        self._written = 0

    def write(self, *pieces: bytes | memoryview) -> None:
        """Append bytes."""
        self._waiting += pieces
        self.size += sum(map(len, pieces))
        if self.size - self._written >= AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        data = memoryview(b"".join(self._waiting))
        self._waiting = []
        self._sha256.update(data)
        self._written += len(data)
        while data:  # a write may take less than it is given
            data = data[self._file.write(data):]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        complete = False
        try:
            with self._file:
                if kind is None:
                    self._flush()
                    os.fsync(self._file.fileno())
                    complete = True
        finally:
            if not complete:
                self._partial.unlink(missing_ok=True)
        if complete:
            os.replace(self._partial, self.path)
            sync_folder(self.path.parent)

    def entry(self) -> FileEntry:
        """Name, size and sha256 of what was written."""
        return FileEntry(name=self.path.name, bytes=self.size, sha256=self._sha256.hexdigest())


def partial_path(path: Path) -> Path:
    """A temporary name beside `path` that no other process takes, on this machine or on another that shares the folder."""
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.partial")


def remove_partials(folder: Path) -> None:
    """Delete what killed writers left below a folder in which nobody writes any more."""
    for path in folder.rglob(".*.partial"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(partial: Path, path: Path) -> FileEntry:
    """Rename a complete file that another library wrote in the same folder, after syncing and hashing it."""
    digest = hashlib.sha256()
    with open(partial, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
        os.fsync(file.fileno())
        size = file.tell()
    os.replace(partial, path)
    sync_folder(path.parent)
    return FileEntry(name=path.name, bytes=size, sha256=digest.hexdigest())


def write_file(path: Path, data: bytes) -> FileEntry:
    """Write a whole file so that a reader sees it complete or not at all."""
    with HashingFile(path) as file:
        file.write(data)
    return file.entry()


def write_shard(folder: Path, split: str, shard: int, rows: Iterable[Iterable[PackedSample]]) -> tuple[ShardEntry, table.Rows]:
    """Write one shard and its two indexes into `folder`; returns the manifest's entry and the shard's rows.

    `rows` yields packed rows in their order, each yielding its samples; beside AT_ONCE bytes only one sample is held at a time.
    """
    entries, offsets, dali = [], [], index.DaliIndex()
    position = tokens = images = 0
    with HashingFile(folder / table.shard_name(split, shard)) as file:
        for row in rows:
            start, first = file.size, position
            row_tokens = row_images = row_patches = 0
            for sample in row:
                stem = f"{make_key(split, shard, position)}."
                end = file.size
                offsets.append(end)
                members = []
                for suffix, data in sample.fields:
                    size = len(data)
                    members.append((suffix, end + tar.BLOCK, size, stem + suffix))
                    end += tar.BLOCK + tar.padded(size)
                file.write(*tar.pieces(stem, sample.fields))
                dali.add(members)
                position += 1
                row_tokens += sample.tokens
                row_images += sample.images
                row_patches += sample.patches
            entries.append((shard, position - first, start, file.size - start, row_tokens, row_images, row_patches))
            tokens += row_tokens
            images += row_images
        offsets.append(file.size)
        file.write(tar.ending(file.size))
    written = file.entry()
    stem = written.name.removesuffix(".tar")
    indexes = (write_file(folder / f"{written.name}.idx", index.energon(offsets)),
               write_file(folder / f"{stem}.idx", dali.encode()))
    return ShardEntry(name=written.name, bytes=written.bytes, sha256=written.sha256, samples=position, rows=len(entries),
                      tokens=tokens, images=images, indexes=indexes), table.make(entries)
