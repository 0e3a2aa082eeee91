"""Where the bytes of packed rows come from: a local folder, s3:// by range requests, or either through a cache of shards.

    store = open_store("shards/stage1")           # one pread a row
    store = open_store("s3://bucket/stage1")      # one range request a row, several in flight (needs the extra `s3`)
    store = open_store(where, cache=Cache(folder=Path("/scratch"), bytes=200 << 30))    # whole shards, then pread

A store is made before the workers fork and holds no connection or open file until it is first used, so every worker makes
its own. The cache is shared by all processes of a machine; with one smaller than the data set, `--shuffle-window` keeps the
shards in use within it (otherwise a global shuffle fetches a whole shard for every row).
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards import manifest as manifests
from shards import table
from shards.reader import read_at, whole

S3_ATTEMPTS = 8  # botocore backs off between them


class Scratch:
    """Memory to read rows into again and again: fresh megabytes for every row cost more in page faults than the copy."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def view(self, length: int) -> memoryview:
        """So many bytes; what was read here before is overwritten."""
        if len(self._buffer) < length:
            self._buffer = bytearray(length + length // 4)
        return memoryview(self._buffer)[:length]


class Store:
    """Bytes of one shard directory. A kind of store says how a stretch of a file, or a whole small one, is read."""

    where: str
    in_flight = 1  # reads that are worth having under way at once

    def read_bytes(self, split: str, row: Any, scratch: Scratch | None = None) -> bytes | memoryview:
        """The bytes of one entry of the row table; DamagedRow if there are fewer than it says. May lie in `scratch`."""
        name, start, length = table.shard_name(split, int(row["shard"])), int(row["offset"]), int(row["length"])
        return whole(self.read(name, start, length, scratch or Scratch()), start, length, f"{self.where}/{name}")

    def read(self, name: str, start: int, length: int, scratch: Scratch) -> bytes | memoryview:
        """That stretch of a file, shorter only where the file ends; perhaps in `scratch`."""
        raise NotImplementedError

    def read_file(self, name: str) -> bytes:
        """A whole small file of the directory; FileNotFoundError without it."""
        raise NotImplementedError


class LocalStore(Store):
    """A folder of this machine: one positional read a row."""

    def __init__(self, folder: Path) -> None:
        self.where, self._folder = str(folder), folder
        self._files: dict[str, int] = {}  # by name; positional reads share them among threads

    def read(self, name: str, start: int, length: int, scratch: Scratch) -> memoryview:
        if name not in self._files:
            self._files[name] = os.open(self._folder / name, os.O_RDONLY)
        return read_at(self._files[name], start, scratch.view(length))

    def read_file(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def fetch(self, name: str, path: Path) -> None:
        shutil.copyfile(self._folder / name, path)


class S3Store(Store):
    """A prefix of a bucket. AWS_ENDPOINT_URL, AWS_PROFILE and the like are honoured, as boto3 does."""

    in_flight = 8

    def __init__(self, url: str) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise ValueError(f"{url!r} names no bucket; write s3://bucket/prefix")
        self.where, self._bucket, self._prefix = url, bucket, f"{prefix.strip('/')}/".lstrip("/")
        self._client: Any = None
        self._owner = 0

    def _s3(self) -> Any:
        """This process's client: one made before a fork must not be shared, its sockets would be."""
        if self._owner != os.getpid():
            try:
                import boto3
                from botocore.config import Config
            except ImportError:
                raise ValueError(f"{self.where} needs boto3: pip install 'nano-deepseek-ocr[s3]'") from None
            config = Config(max_pool_connections=2 * self.in_flight, retries={"max_attempts": S3_ATTEMPTS, "mode": "adaptive"},
                            connect_timeout=10, read_timeout=60)
            self._client, self._owner = boto3.session.Session().client("s3", config=config), os.getpid()
        return self._client

    def _get(self, name: str, **more: str) -> bytes:
        """One GET with its body, tried again when the body breaks off (botocore only retries up to the headers). OSError if it
        cannot be had."""
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError

        for attempt in range(S3_ATTEMPTS):
            try:
                return bytes(self._s3().get_object(Bucket=self._bucket, Key=self._prefix + name, **more)["Body"].read())
            except ClientError as error:
                if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                    raise FileNotFoundError(f"{self.where}/{name} does not exist") from None
                raise OSError(f"{self.where}/{name}: {error}") from None
            except BotoCoreError as error:  # no credentials, say; only what may pass is tried again
                if attempt + 1 == S3_ATTEMPTS or not isinstance(error, (HTTPClientError, IncompleteReadError)):
                    raise OSError(f"{self.where}/{name}: {error}") from None
        raise AssertionError("unreachable")

    def read(self, name: str, start: int, length: int, scratch: Scratch) -> bytes:
        return self._get(name, Range=f"bytes={start}-{start + length - 1}")

    def read_file(self, name: str) -> bytes:
        return self._get(name)

    def fetch(self, name: str, path: Path) -> None:
        client = self._s3()
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            client.download_file(self._bucket, self._prefix + name, str(path))
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise OSError(f"{self.where}/{name}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Where whole shards are kept, and how many bytes of a directory's at most (one shard at least is always kept)."""

    folder: Path
    bytes: int


class CachedStore(Store):
    """Whole shards of another store, fetched once a machine and read locally; the least recently used make room.

    A shard in use is never pulled away from a reader: an open file outlives its name.
    """

    def __init__(self, inner: LocalStore | S3Store, cache: Cache) -> None:
        self.where, self._inner, self._bytes = inner.where, inner, cache.bytes
        self.in_flight = max(2, inner.in_flight)  # the next shard is fetched while a row is decoded
        name = "".join(c if c.isalnum() else "-" for c in inner.where).strip("-")[-80:]
        self._place = cache.folder / name

    @functools.cached_property
    def _folder(self) -> Path:
        """One for each build: a directory that was built anew has other shards under the same names."""
        return self._place / hashlib.sha256(self._inner.read_file(manifests.NAME)).hexdigest()[:16]

    def read(self, name: str, start: int, length: int, scratch: Scratch) -> memoryview:
        path = self._folder / name
        try:
            file = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            file = self._fetch_locked(name, path)
        try:
            os.utime(file)  # the age that eviction goes by
            return read_at(file, start, scratch.view(length))
        finally:
            os.close(file)

    def _fetch_locked(self, name: str, path: Path) -> int:
        """Fetch under a lock of that shard (others are fetched meanwhile), open, then make room."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / f".{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                file = os.open(path, os.O_RDONLY)  # another process has fetched it meanwhile
            except FileNotFoundError:
                partial = self._folder / f".{name}.partial"
                self._inner.fetch(name, partial)
                file = os.open(partial, os.O_RDONLY)  # while nobody knows it: to make room, others take what has its name
                os.replace(partial, path)
        self._make_room(path)
        return file

    def _make_room(self, kept: Path) -> None:
        with open(self._place / ".room.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            sizes = {path: path.stat() for path in self._place.rglob("*.tar")}
            total = sum(stat.st_size for stat in sizes.values())
            for path in sorted(sizes, key=lambda path: sizes[path].st_mtime_ns):
                if total <= self._bytes:
                    return
                if path != kept:
                    path.unlink(missing_ok=True)
                    total -= sizes[path].st_size

    def read_file(self, name: str) -> bytes:
        return self._inner.read_file(name)


def open_store(where: str, cache: Cache | None = None) -> Store:
    """The store of a folder or an s3:// address."""
    if "://" in where and not where.startswith("s3://"):
        raise ValueError(f"{where!r}: shards are read from a folder or from s3://")
    store = S3Store(where) if where.startswith("s3://") else LocalStore(Path(where))
    return CachedStore(store, cache) if cache else store


@dataclass(frozen=True, kw_only=True)
class ShardDirectory:
    """An opened shard directory: its manifest and row tables, checked against each other."""

    store: Store
    manifest: dict[str, Any]
    rows: dict[str, table.Rows]  # by split

    def describe(self, split: str, index: int) -> str:
        """A row as a person finds it: directory, shard and offset."""
        row = self.rows[split][index]
        return f"{self.store.where}/{table.shard_name(split, int(row['shard']))} at offset {int(row['offset'])}"


def open_directory(where: str, cache: Cache | None = None) -> ShardDirectory:
    """Open a finished shard directory; ValueError (with the fix) if it is none, incomplete or of another build."""
    store, folder, local = open_store(where, cache), Path(where), "://" not in where
    if local:
        manifest = manifests.load(folder)
        for shard in manifest["shards"]:
            path = folder / shard["name"]
            if (found := path.stat().st_size if path.exists() else None) != shard["bytes"]:
                told = "is missing" if found is None else f"is {found} bytes long where the manifest says {shard['bytes']}"
                raise ValueError(f"{path} {told}: build or copy the directory again (`pipeline verify` tells all)")
    else:
        try:
            manifest = manifests.parse(store.read_file(manifests.NAME), f"{where}/{manifests.NAME}")
        except FileNotFoundError:
            raise ValueError(f"{where} has no {manifests.NAME}: not a shard directory, or not wholly uploaded") from None
    rows = {}
    for split, name in table.FILES.items():
        told, rows[split] = manifest["splits"].get(split, {}).get("rows", 0), table.make([])
        with contextlib.suppress(FileNotFoundError):
            if told or local:
                rows[split] = table.decode(store.read_file(name), f"{where}/{name}")
        if len(rows[split]) != told:
            raise ValueError(f"{where}: {name} is missing or lists {len(rows[split])} rows where the manifest says {told}")
    if len(rows["train"]) == 0:
        raise ValueError(f"{where} holds no packed rows to train on")
    return ShardDirectory(store=store, manifest=manifest, rows=rows)
