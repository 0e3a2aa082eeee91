"""Output anywhere fsspec writes (`--out s3://bucket/prefix`): whole files only, and a marker for each finished shard.

A shard is finished on the local disk, put whole, and compared with what arrived (its size, and its MD5 where the store tells one).
Then one more object is put, URL.build/done/NNNNNN.tar: the task's tables and counts. An object appears at once or not at all,
so it is the marker that says "done": a build goes on from these alone, on any machine, after any kill. `manifest.json` comes last.
Nothing is ever written through an open remote file, since that publishes a truncated object when the writer fails.

A killed multipart upload stays in a bucket, unseen and paid for: those of the shards about to be built are aborted at the start,
those of the whole directory before the manifest is put. Local disk: one shard a worker, below --work.
"""

import contextlib
import errno
import hashlib
import io
import json
import re
import shutil
import tarfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from shards import manifest

# what a build may have written into its output directory; `--fresh` deletes these and nothing else
OUTPUT = re.compile(r"(train|val)-\d{6,}\.(tar|tar\.idx|idx)|rows(-val)?\.npy|(samples|rejects)\.parquet|tokenizer\.json|"
                    r"manifest\.json|README\.md|\..*\.partial|\.nv-meta/(dataset\.yaml|split\.yaml|\.info\.json)")
TRIES = 6
PART_BYTES = 64 << 20  # of a multipart upload to S3; smaller files are put by one request
OBJECT_STORES = frozenset({"gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "r2", "hf"})  # where a put appears at once
_MARKER = re.compile(r"(\d{6,})\.tar")


def task_files(shard: int) -> tuple[str, ...]:
    """Names of the objects that a task puts."""
    stem = f"train-{shard:06d}"
    return f"{stem}.tar", f"{stem}.tar.idx", f"{stem}.idx", f"{shard:06d}.tar"


class TargetError(RuntimeError):
    """The output cannot be written or read; the message names it and the fix."""


@lru_cache(maxsize=8)
def _open(url: str) -> tuple[Any, str]:
    import fsspec

    if not url.partition("://")[2].strip("/"):
        raise TargetError(f"--out {url!r} names no bucket or folder; is a variable of the shell empty?")
    try:
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise TargetError(f"--out {url}: {error}; `pip install nano-deepseek-ocr[s3]` brings what s3:// needs") from None
    return fs, str(root).rstrip("/")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A remote output directory. `url` is as given; the work folder is the same with `.build` appended."""

    url: str

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return _open(self.url)[1].rpartition("/")[2]

    def put(self, local: Path, name: str) -> None:
        """Put one whole file under `name` and confirm that it arrived; retried. Raises TargetError."""
        fs, root = _open(self.url)
        place = f"{root}{name}" if name.startswith(".build/") else f"{root}/{name}"
        for attempt in range(TRIES):
            try:
                if attempt == 0 or not _arrived(fs, place, local):
                    _send(fs, local, place)
                if _arrived(fs, place, local):
                    return
                problem = "what arrived is not what was sent"
            except (PermissionError, FileNotFoundError) as error:
                raise TargetError(f"{self.url}: {name} cannot be put: {error or type(error).__name__}; check the bucket, the "
                                  "credentials and the right to write, then run the same command again") from None
            except Exception as error:  # each kind of store has its own errors; all of them may pass
                problem = f"{type(error).__name__}: {error}"
            time.sleep(min(0.2 * 4**attempt, 30.0))
        raise TargetError(f"{self.url}: {name} could not be put in {TRIES} tries ({problem}); run the same command again: what has "
                          "arrived is kept")

    def read(self, name: str) -> bytes | None:
        """A whole small object; None if it is not there."""
        fs, root = _open(self.url)
        place = f"{root}{name}" if name.startswith(".build/") else f"{root}/{name}"
        try:
            with self._told(f"{name} cannot be read"):
                return bytes(fs.cat_file(place))
        except FileNotFoundError:
            return None

    def get(self, name: str, local: Path) -> None:
        """Bring one file to the local disk. Raises FileNotFoundError, TargetError."""
        fs, root = _open(self.url)
        with self._told(f"{name} cannot be read"):
            fs.get_file(f"{root}/{name}", str(local))

    def sizes(self, suffix: str = "") -> dict[str, int]:
        """Every object below the directory (or, with ".build", below the work folder) with its size."""
        fs, root = _open(self.url)
        base = f"{root}{suffix}"
        fs.invalidate_cache()
        try:
            with self._told("it cannot be listed"):
                found = fs.find(base, detail=True)
        except FileNotFoundError:
            return {}
        return {path.removeprefix(f"{base}/"): int(info["size"]) for path, info in found.items() if path.startswith(f"{base}/")}

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn what a store answers to a reader (each kind has its own errors) into a TargetError."""
        try:
            yield
        except Exception as error:
            if isinstance(error, FileNotFoundError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise TargetError(f"{self.url}: {what}: {type(error).__name__}: {error}; check the URL, the credentials and the "
                              "network") from None

    def manifest(self) -> dict[str, Any] | None:
        """The manifest; None while the directory is not complete."""
        data = self.read(manifest.NAME)
        try:
            return None if data is None else manifest.parse(data, f"{self.url}/{manifest.NAME}")
        except ValueError as error:
            raise TargetError(f"{error}; choose another --out, or start over with --fresh if a build of ours is there") from None

    def recorded_plan(self) -> dict[str, Any] | None:
        """The identity of the plan with which the build was begun, if it was."""
        data = self.read(".build/plan.json")
        return None if data is None else json.loads(data)

    def finished(self) -> set[int]:
        """Numbers of the tasks whose marker is there."""
        return {int(match[1]) for name in self.sizes(".build/done") if (match := _MARKER.fullmatch(name))}

    def put_task(self, out: Path, done: Path, shard: int, result: dict[str, Any]) -> None:
        """Put a finished task: shard, indexes, and the marker last; then delete the local copies."""
        entry = result["shard"]
        names = [entry["name"], *(index["name"] for index in entry["indexes"])]
        for name in names:
            self.put(out / name, name)
        folder = done / f"{shard:06d}"
        packed = folder.with_suffix(".tar")
        with tarfile.open(packed, "w", format=tarfile.USTAR_FORMAT) as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name)
        self.put(packed, f".build/done/{packed.name}")
        for path in (packed, *(out / name for name in names)):
            path.unlink()
        shutil.rmtree(folder)

    def fetch_results(self, done: Path, shards: Iterable[int]) -> None:
        """Bring the tables of finished tasks to `done`, where `finalize` reads them."""
        for shard in shards:
            folder = done / f"{shard:06d}"
            if folder.is_dir():
                continue
            data = self.read(f".build/done/{folder.name}.tar")
            if data is None:
                raise TargetError(f"{self.url}.build/done/{folder.name}.tar is gone; run the same command again")
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                archive.extractall(partial, filter="data")
            partial.rename(folder)

    def publish(self, folder: Path, body: dict[str, Any]) -> None:
        """Put what `finalize` left in `folder`, the manifest last, then drop the markers and the local copies."""
        shards = [entry for shard in body["shards"] for entry in (shard, *shard["indexes"])]
        for entry in (*shards, *body["files"]):
            if (folder / entry["name"]).exists():
                self.put(folder / entry["name"], entry["name"])
        told = {entry["name"]: entry["bytes"] for entry in (*shards, *body["files"])}
        found = self.sizes()
        if wrong := [name for name, size in told.items() if found.get(name) != size]:
            raise TargetError(f"{self.url} lacks {wrong[0]}" + (f" and {len(wrong) - 1} more files" if wrong[1:] else "")
                              + "; something else deletes or writes there. Start over with --fresh")
        self.abort_uploads()
        self.put(folder / manifest.NAME, manifest.NAME)
        self._delete(".build/done", self.sizes(".build/done"))
        shutil.rmtree(folder)

    def begun(self) -> bool:
        """Whether a build of ours was begun here, of whatever plan or format."""
        if self.read(".build/plan.json") is not None:
            return True
        try:
            found = json.loads(self.read(manifest.NAME) or b"null")
        except ValueError:
            found = None
        return isinstance(found, dict) and "format_version" in found

    def discard(self) -> None:
        """Delete what a build wrote, markers first; other objects stay."""
        self._delete(".build", self.sizes(".build"))
        names = [name for name in self.sizes() if OUTPUT.fullmatch(name)]
        self._delete("", sorted(names, key=lambda name: name != manifest.NAME))
        self.abort_uploads()

    def _delete(self, suffix: str, names: Iterable[str]) -> None:
        fs, root = _open(self.url)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(f"{root}{suffix}/{name}")

    def abort_uploads(self, names: Iterable[str] | None = None) -> int:
        """Abort unfinished multipart uploads of these names, or of any name a build writes; returns how many."""
        fs, root = _open(self.url)
        if not hasattr(fs, "call_s3"):
            return 0
        bucket, _, prefix = root.partition("/")
        wanted = None if names is None else set(names)
        count, place = 0, dict[str, str]()
        while True:
            answer = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **place)
            for upload in answer.get("Uploads", []):
                name = upload["Key"].removeprefix(prefix).removeprefix(".build/done").removeprefix("/")
                if (OUTPUT.fullmatch(name) or _MARKER.fullmatch(name)) and (wanted is None or name in wanted):
                    with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
                        fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                    count += 1
            if not answer.get("IsTruncated"):
                return count
            place = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}


def _send(fs: Any, local: Path, place: str) -> None:
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if "s3" in protocols:
        fs.put_file(str(local), place, chunksize=PART_BYTES)
    elif protocols & OBJECT_STORES:
        fs.put_file(str(local), place)
    else:  # a file system shows a file while it grows
        fs.makedirs(place.rpartition("/")[0], exist_ok=True)
        fs.put_file(str(local), f"{place}.partial")
        fs.mv(f"{place}.partial", place)


def _arrived(fs: Any, place: str, local: Path) -> bool:
    """Whether the object has the file's size and, where the store tells one, its MD5; else it is read back and compared."""
    fs.invalidate_cache()
    try:
        info = fs.info(place)
    except FileNotFoundError:
        return False
    if int(info["size"]) != local.stat().st_size:
        return False
    tag = str(info.get("ETag", "")).strip('"')
    if not tag or tag in (_md5(local), _md5(local, PART_BYTES)):
        return True
    with fs.open(place, "rb") as remote, open(local, "rb") as file:  # an encrypted bucket's tag is no MD5
        while chunk := file.read(8 << 20):
            if remote.read(len(chunk)) != chunk:
                return False
    return True


def _md5(path: Path, part: int | None = None) -> str:
    """S3's ETag of a file: its MD5, or for parts of that size the MD5 of their MD5s and their number."""
    whole, parts = hashlib.md5(usedforsecurity=False), list[bytes]()
    with open(path, "rb") as file:
        while chunk := file.read(part or 8 << 20):
            whole.update(chunk)
            if part:
                parts.append(hashlib.md5(chunk, usedforsecurity=False).digest())
    if not part:
        return whole.hexdigest()
    return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"
