"""raw/.pipeline/OWNER--NAME.json: the pinned revision of a repository, and the files brought and checked so far.

    {"version": 1, "repo": ..., "revision": ..., "files": {path: {"size", "sha256", "mtime_ns"}}}

A file whose size and mtime are the recorded ones was checked and is not read again; any other is hashed before it is
trusted. So a lost or stale record costs a read, never a wrong file. Written whole and renamed, at most once a second.
"""

import json
import logging
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger("pipeline.hub")

FOLDER = ".pipeline"


def write_atomic(path: Path, data: bytes, durable: bool = True) -> None:
    """Writes under a temporary name, fsyncs (if `durable`), renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:     # a full disk
        temporary.unlink(missing_ok=True)
        raise


def record_path(raw: Path, repo: str) -> Path:
    """Where the record of `repo` is kept."""
    return raw / FOLDER / f"{repo.replace('/', '--')}.json"


@dataclass
class Record:
    """What is known of one repository below `raw`. Not shared between threads."""

    raw: Path
    repo: str
    revision: str = ""
    files: dict[str, dict[str, int | str]] = field(default_factory=dict)
    _written: float = 0.0
    _changed: bool = False

    def holds(self, path: str, size: int, digest: str) -> bool:
        """True when the file on disk is the one that was checked: same size, mtime and checksum."""
        known = self.files.get(path)
        if known is None or known.get("size") != size or known.get("sha256") != digest:
            return False
        try:
            stat = (self.raw / self.repo / path).stat()
        except OSError:
            return False
        return stat.st_size == size and stat.st_mtime_ns == known.get("mtime_ns")

    def add(self, path: str, digest: str) -> None:
        """Notes a file that was just checked."""
        stat = (self.raw / self.repo / path).stat()
        self.files[path] = {"size": stat.st_size, "sha256": digest, "mtime_ns": stat.st_mtime_ns}
        self._changed = True

    def pin(self, revision: str) -> None:
        """Sets the revision that everything of this repository is taken from."""
        if revision != self.revision:
            self.revision, self._changed = revision, True

    def save(self, every: float = 0.0) -> None:
        """Writes the record if it changed and `every` seconds have passed. A read-only folder keeps none."""
        if not self._changed or time.monotonic() - self._written < every:
            return
        body = {"version": 1, "repo": self.repo, "revision": self.revision, "files": dict(sorted(self.files.items()))}
        try:
            write_atomic(record_path(self.raw, self.repo), json.dumps(body, indent=0).encode())
        except OSError as error:
            log.warning("no record kept of %s: %s", self.repo, error)
        self._written, self._changed = time.monotonic(), False


def load_record(raw: Path, repo: str) -> Record:
    """The record of `repo` below `raw`; an empty one (revision "") where there is none or it is damaged."""
    path = record_path(raw, repo)
    try:
        body = json.loads(path.read_bytes())
        files = {str(name): dict(entry) for name, entry in body["files"].items()}
        return Record(raw, repo, str(body["revision"]), files)
    except FileNotFoundError:
        return Record(raw, repo)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is damaged (%s): files will be checked again", path, error)
        return Record(raw, repo)
