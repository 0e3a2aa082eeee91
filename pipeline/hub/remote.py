"""A file on the hub, read in place by range requests: what `--from hub` and the footers of a plan stand on.

`open_remote` gives a seekable read-only file for pyarrow. A read costs one request unless it lies in what is already
held: the tail (where a parquet footer is), the last window, or what `prefetch` was told to bring. A row group is
contiguous, so `prefetch(*group_span(metadata, i))` reads it with one request however many columns it has. The
storage link behind a redirect is kept for ten minutes, so a second read asks the hub nothing.
"""

import io
import re
import threading
import time
from types import TracebackType
from typing import Any

from pipeline.hub import client
from pipeline.hub.retry import DEFAULT, HubError, Retry, TransientError, wait_or_raise

TAIL = 64 * 1024            # bytes of a file's end that come with the first read there; most footers fit
READ_AHEAD = 256 * 1024     # least size of a request elsewhere; twice the last one where reading goes on,
MOST_AHEAD = 16 << 20       # up to this
PREFETCH_LIMIT = 256 << 20  # a larger span is read piece by piece instead of being held (twice, when it arrives)
LINK_SECONDS = 600.0        # the hub signs its storage links for about an hour


class Link:
    """Where a file's bytes are: the hub's URL, and for a while the storage URL that it redirected to."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._stored: str | None = None
        self._until = 0.0

    def now(self) -> str:
        """The URL to ask."""
        return self._stored if self._stored and time.monotonic() < self._until else self.url

    def answered(self, url: str) -> None:
        """Remembers the URL that answered."""
        if url != self.now():
            self._stored, self._until = url, time.monotonic() + LINK_SECONDS

    def forget(self) -> None:
        """Drops the storage URL: it may have expired."""
        self._stored = None


def _part(link: Link, start: int, stop: int, size: int, into: bytearray) -> None:
    """One request for bytes [start, stop), appended to `into`; what came before an error stays there."""
    full = len(into) + stop - start
    with client.stream(link.now(), {"Range": f"bytes={start}-{stop - 1}"}) as answer:
        if answer.status == 416:
            raise HubError(f"{link.url}: shorter than the {size} bytes the hub lists")
        if answer.status == 200 and answer.headers.get("content-length") != str(size):   # a page that says "maintenance"
            raise TransientError(f"asked bytes {start}-{stop - 1} of {size}, got HTTP 200 with "
                                 f"{answer.headers.get('content-length', 'an unknown number of')} bytes")
        if answer.status == 200 and (start, stop) != (0, size):
            raise HubError(f"{link.url}: the server ignores range requests, so files cannot be read in place")
        if answer.status == 206:
            told = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("content-range", ""))
            if told is None or int(told[1]) != start or (told[3] != "*" and int(told[3]) != size):
                raise TransientError(f"wrong range: asked {start}-{stop - 1} of {size}, "
                                     f"got {answer.headers.get('content-range')!r}")
        link.answered(answer.url)
        for chunk in answer.chunks():
            into += chunk[:full - len(into)]


def read_range(link: Link, start: int, stop: int, size: int, policy: Retry = DEFAULT,
               cancel: threading.Event | None = None) -> bytes:
    """Bytes [start, stop) of a file of `size` bytes. A cut answer is continued where it stopped.

    Raises HubError when the file cannot be had, Cancelled instead of a wait once `cancel` is set.
    """
    got = bytearray()
    failures = 0
    while start + len(got) < stop:
        before = len(got)
        try:
            _part(link, start + before, stop, size, got)
            if len(got) == before:
                raise TransientError("empty answer")
        except TransientError as error:
            failures = 1 if len(got) > before else failures + 1
            link.forget()
            wait_or_raise(error, failures, link.url, policy, cancel)
    return bytes(got)


class RemoteFile(io.RawIOBase):
    """Seekable read-only file over range requests. `requests` and `fetched` count what it cost."""

    def __init__(self, url: str, size: int, policy: Retry = DEFAULT) -> None:
        self.size, self.requests, self.fetched = size, 0, 0
        self._link, self._policy, self._at = Link(url), policy, 0
        self._held: dict[str, tuple[int, bytes]] = {}   # "tail", "window", "span" -> (offset, bytes)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self._at = base + offset
        return self._at

    def _find(self, start: int, stop: int) -> bytes | None:
        for offset, data in self._held.values():
            if offset <= start and stop <= offset + len(data):
                return data[start - offset:stop - offset]
        return None

    def _bring(self, name: str, start: int, stop: int) -> None:
        self._held.pop(name, None)
        self._held[name] = (start, read_range(self._link, start, stop, self.size, self._policy))
        self.requests += 1
        self.fetched += stop - start

    def read(self, n: int | None = -1) -> bytes:
        start = min(self._at, self.size)
        stop = self.size if n is None or n < 0 else min(start + n, self.size)
        if start == stop:
            return b""
        data = self._find(start, stop)
        if data is None:
            if start >= self.size - TAIL:
                self._bring("tail", max(0, self.size - TAIL), self.size)
            else:
                offset, window = self._held.get("window", (0, b""))
                goes_on = offset <= start <= offset + len(window)
                ahead = min(max(READ_AHEAD, 2 * len(window) if goes_on else 0), MOST_AHEAD)
                self._bring("window", start, min(max(stop, start + ahead), self.size))
            data = self._find(start, stop)
            assert data is not None
        self._at = stop
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[:len(data)] = data
        return len(data)

    def prefetch(self, start: int, stop: int) -> None:
        """Brings bytes [start, stop) with one request and holds them until the next prefetch; a huge span is left."""
        start, stop = max(0, start), min(stop, self.size)
        if 0 < stop - start <= PREFETCH_LIMIT and self._find(start, stop) is None:
            self._bring("span", start, stop)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._held.clear()
        super().close()


def open_remote(repo: str, revision: str, path: str, size: int, *, policy: Retry = DEFAULT) -> RemoteFile:
    """Opens `path` of a dataset repository at a commit; `size` in bytes as listed. Asks nothing before the first read."""
    return RemoteFile(client.file_url(repo, revision, path), size, policy)


def group_span(metadata: Any, group: int) -> tuple[int, int]:
    """The byte range [start, stop) that holds every column of a row group (`metadata`: pyarrow's FileMetaData)."""
    row_group = metadata.row_group(group)
    starts, stops = [], []
    for index in range(row_group.num_columns):
        column = row_group.column(index)
        first = column.data_page_offset
        if column.has_dictionary_page and column.dictionary_page_offset:
            first = min(first, column.dictionary_page_offset)
        starts.append(first)
        stops.append(first + column.total_compressed_size)
    return min(starts, default=0), max(stops, default=0)
