"""Parquet footers, local or on the hub: the only thing a plan reads.

A remote footer costs one request for the file's last 64 kB (and one more where the footer is longer); nothing of the
data moves. Footers of a commit never change, so what was read is kept under the user's cache folder by repository and
revision: `$PIPELINE_CACHE`, else `$XDG_CACHE_HOME/nano-deepseek-ocr`, else `~/.cache/nano-deepseek-ocr`.

Beside rows and bytes a footer tells, for a plan's estimates, how many images a row group holds (the values of the leaf
`images...bytes`, or `image.bytes`) and how many bytes of text before compression (a dictionary-coded column counts its
dictionary, so this is a low estimate where answers repeat).

A file that is no parquet, cut short or damaged gives a FooterError that names it, so that a plan can leave out just
that file and say so.
"""

import atexit
import json
import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.hub import client
from pipeline.hub.record import write_atomic
from pipeline.hub.remote import TAIL, Link, read_range
from pipeline.hub.retry import DEFAULT, Cancelled, HubError, Retry

log = logging.getLogger("pipeline.footers")

MAX_FOOTER = 256 << 20      # bytes; a longer footer is refused
CONNECTIONS = 16
CACHE_VERSION = 2


class FooterError(ValueError):
    """A file that cannot be planned. reason: "file-missing", "file-not-parquet", "file-truncated", "file-damaged"."""

    def __init__(self, path: str, reason: str, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path, self.reason, self.detail = path, reason, detail


@dataclass(frozen=True, kw_only=True, slots=True)
class RowGroup:
    """One row group: rows, bytes in the file, offset of its first byte, images, bytes of text (both estimates)."""

    rows: int
    bytes: int
    start: int = 0
    images: int = 0
    text_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class FileFooter:
    """What a parquet file says of itself. `path` as given in its FileRef; `columns` are the top-level names."""

    path: str
    size: int
    rows: int
    groups: tuple[RowGroup, ...]
    columns: tuple[str, ...]

    @property
    def images(self) -> int:
        return sum(group.images for group in self.groups)

    @property
    def text_bytes(self) -> int:
        return sum(group.text_bytes for group in self.groups)


@dataclass(frozen=True, kw_only=True, order=True)
class FileRef:
    """A parquet file: on disk when `local` is set, else on the hub. `path` is its name below raw or the repository.

    `footer` is what was read of it before (pipeline.known), if anything.
    """

    path: str
    size: int
    local: Path | None = None
    repo: str = ""
    revision: str = ""
    sha256: str = ""
    git_sha1: str = ""
    footer: "FileFooter | FooterError | None" = field(default=None, compare=False, repr=False)


def cache_folder() -> Path:
    """Where footers are kept between runs (see the module's text)."""
    if folder := os.environ.get("PIPELINE_CACHE"):
        return Path(os.path.expanduser(folder))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "nano-deepseek-ocr"


class _Helpers:
    """Up to `most` processes that parse footers (see footer_parse.py); one that dies is replaced."""

    def __init__(self, most: int) -> None:
        self.owner = os.getpid()
        self._free: queue.LifoQueue[subprocess.Popen[bytes] | None] = queue.LifoQueue()
        for _ in range(most):
            self._free.put(None)

    @staticmethod
    def _start() -> "subprocess.Popen[bytes]":
        root = str(Path(__file__).resolve().parents[1])
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        return subprocess.Popen([sys.executable, "-m", "pipeline.footer_parse"], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                env={**os.environ, "PYTHONPATH": paths})

    def parse(self, size: int, tail: bytes) -> dict[str, Any] | None:
        """The helper's answer; None when it died of this footer."""
        helper = self._free.get()
        try:
            if helper is None or helper.poll() is not None:
                helper = self._start()
            assert helper.stdin is not None
            assert helper.stdout is not None
            helper.stdin.write(json.dumps({"size": size, "length": len(tail)}).encode() + b"\n" + tail)
            helper.stdin.flush()
            line = helper.stdout.readline()
            if line.endswith(b"\n"):
                answer: dict[str, Any] = json.loads(line)
                return answer
            raise BrokenPipeError
        except BrokenPipeError:
            assert helper is not None
            helper.kill()
            helper.wait()
            return None
        finally:
            self._free.put(helper)

    def close(self) -> None:
        """Ends the processes that are free."""
        while not self._free.empty():
            helper = self._free.get()
            if helper is not None:
                helper.kill()
                helper.wait()


_lock = threading.Lock()
_helpers: _Helpers | None = None


def _helper_pool() -> _Helpers:
    """This process's helpers (a forked child starts its own)."""
    global _helpers
    with _lock:
        if _helpers is None or _helpers.owner != os.getpid():
            _helpers = _Helpers(most=min(4, os.cpu_count() or 1))
            atexit.register(_helpers.close)
        return _helpers


def parse_footer(path: str, size: int, tail: bytes) -> FileFooter:
    """A footer from a file's last bytes (`tail` ends at the end of the file and holds the footer whole)."""
    length = int.from_bytes(tail[-8:-4], "little")
    answer = _helper_pool().parse(size, tail[-8 - length:])
    if answer is None:
        raise FooterError(path, "file-damaged", "its footer makes the parquet library crash")
    if "error" in answer:
        raise FooterError(path, "file-damaged", f"its footer cannot be read ({answer['error']})")
    return _footer(path, size, answer)


def _footer(path: str, size: int, body: Mapping[str, Any]) -> FileFooter:
    groups = tuple(RowGroup(rows=r, bytes=b, start=s, images=i, text_bytes=t) for r, b, s, i, t in body["groups"])
    return FileFooter(path=path, size=size, rows=sum(g.rows for g in groups), groups=groups,
                      columns=tuple(body["columns"]))


def _read_tail(path: str, size: int, read: Callable[[int, int], bytes]) -> bytes:
    """The end of a file that holds its footer whole, by one read or two. `read(start, stop)` gives bytes."""
    if size < 12:
        raise FooterError(path, "file-not-parquet", f"{size} bytes are no parquet file")
    first = max(0, size - TAIL)
    tail = read(first, size)
    if len(tail) != size - first:
        raise FooterError(path, "file-truncated", f"{first + len(tail)} of {size} bytes are there")
    if tail[-4:] != b"PAR1":
        head = tail[:4] if first == 0 else read(0, 4)
        if tail[-4:] == b"PARE" or head == b"PARE":
            raise FooterError(path, "file-damaged", "it is encrypted")
        if head == b"PAR1":
            raise FooterError(path, "file-truncated", f"it begins as parquet but has no footer at byte {size}: cut off")
        raise FooterError(path, "file-not-parquet", f"it begins with {head!r}, which is not parquet")
    length = int.from_bytes(tail[-8:-4], "little")
    if length + 12 > size or length > MAX_FOOTER:
        raise FooterError(path, "file-damaged", f"its footer claims {length} bytes of a file of {size}")
    if length + 8 > len(tail):
        tail = read(size - 8 - length, first) + tail
    return tail


def read_footer(ref: FileRef, *, policy: Retry = DEFAULT, cancel: threading.Event | None = None) -> FileFooter:
    """The footer of a file on disk or on the hub (from the cache when its revision was read before).

    Raises FooterError for a file that is no whole parquet file, OSError for one that may not be read, HubError when the hub
    does not give it, Cancelled.
    """
    if ref.local is not None:
        try:
            with open(ref.local, "rb") as file:
                def read(start: int, stop: int) -> bytes:
                    file.seek(start)
                    return file.read(stop - start)
                size = os.fstat(file.fileno()).st_size
                return parse_footer(ref.path, size, _read_tail(ref.path, size, read))
        except FileNotFoundError as error:  # other errors of the disk say nothing about the file, so they are raised
            raise FooterError(ref.path, "file-missing", f"cannot be opened: {error.strerror or error}") from error
    kept = cache_folder() / "footers" / ref.repo.replace("/", "--") / ref.revision / f"{ref.path}.json"
    if (found := _from_cache(kept, ref)) is not None:
        return found
    link = Link(client.file_url(ref.repo, ref.revision, ref.path))
    tail = _read_tail(ref.path, ref.size, lambda start, stop: read_range(link, start, stop, ref.size, policy, cancel))
    footer = parse_footer(ref.path, ref.size, tail)
    _to_cache(kept, footer)
    return footer


def _from_cache(kept: Path, ref: FileRef) -> FileFooter | None:
    try:
        body = json.loads(kept.read_bytes())
        if body["version"] != CACHE_VERSION or body["size"] != ref.size:
            return None
        return _footer(ref.path, ref.size, body)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _to_cache(kept: Path, footer: FileFooter) -> None:
    groups = [(g.rows, g.bytes, g.start, g.images, g.text_bytes) for g in footer.groups]
    body = {"version": CACHE_VERSION, "size": footer.size, "columns": footer.columns, "groups": groups}
    try:
        write_atomic(kept, json.dumps(body, separators=(",", ":")).encode(), durable=False)
    except OSError as error:    # a cache that cannot be written is no reason to fail
        log.info("footer of %s not kept: %s", footer.path, error)


def read_footers(refs: Sequence[FileRef], *, connections: int = CONNECTIONS, policy: Retry = DEFAULT,
                 progress: Callable[[int], None] = lambda n: None) -> list[FileFooter | FooterError]:
    """The footers of many files, `connections` at once, in the order of `refs`.

    A file that is not whole parquet gives its FooterError in place; a hub that fails raises HubError at once.
    """
    stop = threading.Event()
    failed: list[HubError] = []

    def one(ref: FileRef) -> FileFooter | FooterError:
        if stop.is_set():
            raise Cancelled
        try:
            return ref.footer if ref.footer is not None else read_footer(ref, policy=policy, cancel=stop)
        except FooterError as error:
            return error
        except HubError as error:
            failed.append(error)
            stop.set()      # ends the waits of the others
            raise
        finally:
            progress(1)

    # Local footers are microseconds apart; threads are for the network.
    with ThreadPoolExecutor(max_workers=connections if any(ref.local is None for ref in refs) else 2) as pool:
        try:
            return list(pool.map(one, refs))
        except Cancelled:
            raise failed[0] from None
        except BaseException:
            stop.set()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def local_refs(raw: Path, folder: str, suffix: str = ".parquet") -> list[FileRef]:
    """The parquet files below raw/folder, sorted by name; hidden files (unfinished downloads) are not among them."""
    base = raw / folder
    paths: Iterable[Path] = (p for p in base.rglob(f"*{suffix}") if p.is_file()
                             and not any(part.startswith(".") for part in p.relative_to(base).parts))
    return [FileRef(path=p.relative_to(raw).as_posix(), size=p.stat().st_size, local=p) for p in sorted(paths)]
