"""Files from the hub to disk: resumed by range, checked by size and checksum, several at once, safe to kill.

A file grows as `.NAME.CHECKSUM.part` beside its place and is renamed when its sha256 is the hub's LFS id, so a
name without a leading dot is always whole. Whatever ends a run (kill -9, Ctrl-C, power), the next one hashes the part
that is there and asks for the rest. A lock on the part keeps two processes from writing one file.

Before any byte is asked for, the official client's cache and the caller's snapshot folders are searched: a file found
there is hashed and hard-linked (copied when that is impossible). Free disk is checked first.
"""

import errno
import hashlib
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import locks
from pipeline.hub import client
from pipeline.hub.api import HubFile
from pipeline.hub.record import Record
from pipeline.hub.remote import Link
from pipeline.hub.retry import DEFAULT, Cancelled, HubError, Retry, TransientError, pause, wait_or_raise
from shards.writer import sync_folder

CHUNK = 1 << 20             # bytes read from disk at once
MISMATCHES = 3              # whole files with a wrong checksum before it is given up
SPARE_DISK = 256 << 20      # bytes kept free beside what is fetched

Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Want:
    """One file of one repository at one commit, to lie at raw/REPO/PATH."""

    repo: str
    revision: str
    file: HubFile

    @property
    def digest(self) -> str:
        """The checksum that names this content; "" when the hub gives none."""
        return self.file.sha256 or self.file.git_sha1 or ""

    def place(self, raw: Path) -> Path:
        return raw / self.repo / self.file.path

    def part(self, raw: Path) -> Path:
        place = self.place(raw)
        return place.with_name(f".{place.name}.{self.digest[:16] or self.file.size}.part")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a file. how: "present", "reused", "fetched" or "failed"; `error` says why it failed."""

    want: Want
    how: str
    error: str = ""


class NoSpace(HubError):
    """The disk cannot hold what is wanted."""


def _hasher(want: Want) -> Any:
    if want.file.sha256 is not None:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % want.file.size)


def _feed(hasher: Any, path: Path, cancel: threading.Event) -> None:
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            if cancel.is_set():
                raise Cancelled


def is_whole(path: Path, want: Want, cancel: threading.Event) -> bool:
    """True when `path` has the size and checksum that the hub lists."""
    try:
        if path.stat().st_size != want.file.size:
            return False
    except OSError:
        return False
    hasher = _hasher(want)
    _feed(hasher, path, cancel)
    return not want.digest or hasher.hexdigest() == want.digest


def _candidates(want: Want, snapshots: Sequence[Path]) -> Iterator[Path]:
    """Where this content may already be: the official client's cache, then the snapshot folders."""
    cached = client.hub_cache() / f"datasets--{want.repo.replace('/', '--')}"
    if want.digest:
        yield cached / "blobs" / want.digest
    yield cached / "snapshots" / want.revision / want.file.path
    for folder in snapshots:
        yield folder / want.repo / want.file.path
        yield folder / want.file.path


def find_local(want: Want, snapshots: Sequence[Path], raw: Path) -> Path | None:
    """A file of the right size elsewhere on this machine, not yet checked; None when there is none."""
    place = want.place(raw)
    for path in _candidates(want, snapshots):
        try:
            real = path.resolve(strict=True)
            if real.is_file() and real.stat().st_size == want.file.size and real != place.resolve():
                return real
        except OSError:
            continue
    return None


@contextmanager
def _locked(part: Path, cancel: threading.Event) -> Iterator[int]:
    """Opens `part` for appending under an exclusive lock; waits while another process has it."""
    part.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            while not locks.take(handle):
                pause(0.2, cancel)
            # The other process may have finished and renamed this very file: then our handle is no part any more.
            try:
                ours = os.stat(part, follow_symlinks=False).st_ino == os.fstat(handle).st_ino
            except FileNotFoundError:
                ours = False
            if ours:
                yield handle
                return
        finally:
            os.close(handle)


def _pull(link: Link, want: Want, file: Any, hasher: Any, at: int, cancel: threading.Event, progress: Progress) -> int:
    """One request for bytes [at, size), appended to `file`; returns the new length. Raises as client.stream does."""
    with client.stream(link.now(), {"Range": f"bytes={at}-"} if at else {}) as answer:
        told = answer.headers.get("content-range", "")
        if at and (answer.status != 206 or not told.startswith(f"bytes {at}-")):
            raise _Restart(f"cannot continue at byte {at} (HTTP {answer.status}, {told!r})")
        length = answer.headers.get("content-length", "")
        if not at and length.isdecimal() and int(length) < want.file.size:   # a page that says "maintenance" is no beginning
            raise TransientError(f"{length} bytes instead of the {want.file.size} that the hub lists")
        link.answered(answer.url)
        for chunk in answer.chunks():
            if at + len(chunk) > want.file.size:
                raise _Restart(f"more than the {want.file.size} bytes the hub lists")
            file.write(chunk)
            hasher.update(chunk)
            at += len(chunk)
            progress(len(chunk))
            if cancel.is_set():
                raise Cancelled
    return at


class _Restart(Exception):
    """What is there cannot be continued: the file begins again."""


def _grow(want: Want, part: Path, handle: int, policy: Retry, cancel: threading.Event, progress: Progress) -> None:
    """Completes the locked part file and checks it; on return it is whole and on disk."""
    link = Link(client.file_url(want.repo, want.revision, want.file.path))
    failures = restarts = 0
    hasher = _hasher(want)
    with open(handle, "r+b", closefd=False, buffering=0) as file:
        at = os.fstat(handle).st_size
        if at <= want.file.size:
            _feed(hasher, part, cancel)
            progress(at)
        else:
            at, hasher = 0, _hasher(want)
            file.truncate(0)
        while True:
            file.seek(at)
            try:
                if at < want.file.size:
                    _pull(link, want, file, hasher, at, cancel, progress)
                    if os.fstat(handle).st_size < want.file.size:
                        raise TransientError("the body ended early")
                if want.digest and hasher.hexdigest() != want.digest:
                    raise _Restart(f"checksum {hasher.hexdigest()} is not the hub's {want.digest}")
                os.fsync(handle)
                return
            except _Restart as error:
                restarts += 1
                progress(-os.fstat(handle).st_size)
                at, hasher = 0, _hasher(want)
                file.truncate(0)
                link.forget()
                if restarts >= MISMATCHES:
                    raise HubError(f"{want.file.path}: {error} ({restarts} tries)") from error
            except TransientError as error:
                now = os.fstat(handle).st_size
                failures = 1 if now > at else failures + 1
                at = now
                link.forget()
                wait_or_raise(error, failures, want.file.path, policy, cancel)


def _copy(source: Path, part: Path, handle: int, want: Want, cancel: threading.Event) -> bool:
    """Copies `source` into the locked part, hashing; False (part emptied) when it is not the content wanted."""
    hasher = _hasher(want)
    with open(source, "rb") as reader, open(handle, "r+b", closefd=False, buffering=0) as writer:
        writer.truncate(0)
        while chunk := reader.read(CHUNK):
            writer.write(chunk)
            hasher.update(chunk)
            if cancel.is_set():
                raise Cancelled
        if os.fstat(handle).st_size == want.file.size and (not want.digest or hasher.hexdigest() == want.digest):
            os.fsync(handle)
            return True
        writer.truncate(0)
        return False


def _publish(part: Path, place: Path) -> None:
    """Renames the checked part to its place and clears parts of other versions."""
    os.replace(part, place)
    sync_folder(place.parent)
    for stale in place.parent.glob(f".{glob_escape(place.name)}.*.part"):
        stale.unlink(missing_ok=True)


def glob_escape(name: str) -> str:
    """`name` as a literal in a glob."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def bring(want: Want, raw: Path, *, snapshots: Sequence[Path] = (), policy: Retry = DEFAULT,
          cancel: threading.Event | None = None, progress: Progress = lambda n: None) -> str:
    """Makes raw/REPO/PATH the file the hub lists; returns "present", "reused" or "fetched".

    Raises HubError when it cannot be had, Cancelled on `cancel`, OSError from the disk.
    """
    cancel = cancel or threading.Event()
    place, part = want.place(raw), want.part(raw)
    if is_whole(place, want, cancel):
        progress(want.file.size)
        return "present"
    source = find_local(want, snapshots, raw)
    if source is not None and is_whole(source, want, cancel):
        spare = part.with_suffix(".link.part")
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            spare.unlink(missing_ok=True)
            os.link(source, spare)
            _publish(spare, place)
            progress(want.file.size)
            return "reused"
        except OSError:
            pass    # another file system, or a rule of this one: copy
        with _locked(part, cancel) as handle:
            if _copy(source, part, handle, want, cancel):
                _publish(part, place)
                progress(want.file.size)
                return "reused"
    with _locked(part, cancel) as handle:
        if is_whole(place, want, cancel):   # another process was quicker
            part.unlink()
            progress(want.file.size)
            return "present"
        _grow(want, part, handle, policy, cancel, progress)
        _publish(part, place)
    return "fetched"


def needed_disk(wants: Sequence[Want], raw: Path, snapshots: Sequence[Path] = ()) -> int:
    """Bytes the disk of `raw` still has to take: sizes less finished parts; files that can be linked count nothing."""
    total = 0
    home = nearest(raw).stat().st_dev
    for want in wants:
        source = find_local(want, snapshots, raw)
        if source is not None and source.stat().st_dev == home:
            continue
        part = want.part(raw)
        total += want.file.size - min(want.file.size, part.stat().st_size if part.exists() else 0)
    return total


def nearest(path: Path) -> Path:
    """`path`, or its closest parent that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def bring_all(wants: Sequence[Want], raw: Path, records: dict[str, Record], *, connections: int = 8,
              snapshots: Sequence[Path] = (), policy: Retry = DEFAULT, progress: Progress = lambda n: None,
              done: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
    """Brings every file, `connections` at once; one that fails does not stop the others.

    `records` (by repository) are updated and saved. Raises NoSpace before the first byte when the disk is too small.
    A KeyboardInterrupt ends at once; everything on disk stays good.
    """
    outcomes: list[Outcome] = []
    missing: list[Want] = []
    for want in wants:
        if want.digest and records[want.repo].holds(want.file.path, want.file.size, want.digest):
            outcomes.append(Outcome(want=want, how="present"))
            progress(want.file.size)
            done(outcomes[-1])
        else:
            missing.append(want)
    need = needed_disk([w for w in missing if not w.place(raw).exists()], raw, snapshots)
    free = shutil.disk_usage(nearest(raw)).free
    if need and need + SPARE_DISK > free:
        raise NoSpace(f"{need / 1e9:.2f} GB to fetch, {free / 1e9:.2f} GB free at {raw} (and {SPARE_DISK >> 20} MB "
                      f"must stay free): free some, choose another --raw, or a smaller --fraction")
    tasks: queue.SimpleQueue[Want | None] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
    cancel = threading.Event()

    def work() -> None:
        while (want := tasks.get()) is not None:
            try:
                how, error = bring(want, raw, snapshots=snapshots, policy=policy, cancel=cancel, progress=progress), ""
            except (HubError, OSError) as problem:
                how, error = "failed", str(problem)
                if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    cancel.set()    # no other file would fare better
            except Cancelled:
                how, error = "failed", "stopped"
            except BaseException as problem:    # none that a file may cause: the caller gets it instead of waiting for ever
                answers.put(problem)
                return
            answers.put(Outcome(want=want, how=how, error=error))

    for want in missing:
        tasks.put(want)
    # Daemon threads: after Ctrl-C nothing waits for a stalled connection.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(connections, len(missing)))]
    for thread in threads:
        tasks.put(None)
        thread.start()
    try:
        for record in records.values():
            record.save()
        for _ in missing:
            outcome = answers.get()
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes.append(outcome)
            if outcome.how != "failed":
                record = records[outcome.want.repo]
                record.add(outcome.want.file.path, outcome.want.digest)
                record.save(every=1.0)
            done(outcome)
    finally:
        cancel.set()
        for record in records.values():
            record.save()
    return outcomes
