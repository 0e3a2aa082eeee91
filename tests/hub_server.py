"""The project's own loopback hub: real file trees or simulated ones, with the faults a week of network brings.

    python -m tests.hub_server ROOT [--port 0] [--page 1000] [--fault-rate 0.1] [--log FILE]

ROOT/<owner>/<name>/... are the files of one dataset repository. In a test: `with HubServer(root) as hub:` and point
HF_ENDPOINT at `hub.url`. LFS files are answered as on the hub: a 302 to storage under ANOTHER host name (localhost
beside 127.0.0.1), whose URL must not be sent the token. Every request is kept in `hub.requests`, with the bytes sent.

Faults are a function (method, path, how often this path was asked) -> Fault or None; see `script` and `seeded`.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = (".parquet", ".tar", ".tar.gz", ".zip", ".arrow", ".png", ".jpg", ".bin", ".pdf")


@dataclass(frozen=True, kw_only=True)
class Blob:
    """One file at one commit: its sizes and hashes, and how to read bytes [start, stop)."""

    size: int
    sha256: str
    git_sha1: str
    lfs: bool
    read: Callable[[int, int], bytes]


@lru_cache(maxsize=100_000)
def _hash_file(path: str, size: int, mtime_ns: int) -> tuple[str, str]:
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
            sha1.update(chunk)
    return sha256.hexdigest(), sha1.hexdigest()


def file_blob(path: Path) -> Blob:
    """A blob that reads a real file."""
    stat = path.stat()
    sha256, git_sha1 = _hash_file(str(path), stat.st_size, stat.st_mtime_ns)

    def read(start: int, stop: int) -> bytes:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(stop - start)
    return Blob(size=stat.st_size, sha256=sha256, git_sha1=git_sha1, lfs=path.name.endswith(LFS_SUFFIXES), read=read)


def tail_blob(size: int, tail: bytes, name: str) -> Blob:
    """A simulated LFS file of `size` bytes: zeros, then `tail` (a parquet footer). Its hash is made up."""
    start_of_tail = size - len(tail)

    def read(start: int, stop: int) -> bytes:
        zeros = max(0, min(stop, start_of_tail) - start)
        return b"\0" * zeros + tail[max(0, start - start_of_tail):max(0, stop - start_of_tail)]
    digest = hashlib.sha256(f"{name} {size}".encode()).hexdigest()
    return Blob(size=size, sha256=digest, git_sha1=digest[:40], lfs=True, read=read)


class Repo:
    """A repository: the files of each commit, newest commit on branch `main`."""

    def __init__(self, name: str, files: Mapping[str, Blob], gated_by: str | None = None) -> None:
        self.name, self.gated_by = name, gated_by
        self.commits: dict[str, dict[str, Blob]] = {}
        self.commit(files)

    def commit(self, files: Mapping[str, Blob]) -> str:
        """Makes `files` the newest commit; returns its sha."""
        listing = "\n".join(f"{path} {blob.sha256}" for path, blob in sorted(files.items()))
        self.main = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[self.main] = dict(sorted(files.items()))
        return self.main

    def tree(self, commit: str, under: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{under.strip('/')}/" if under.strip("/") else ""
        entries, folders = [], set()
        for path, blob in self.commits[commit].items():
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix):].split("/")
            folders.update(prefix + "/".join(parts[:i]) for i in range(1, len(parts)) if recursive or i == 1)
            if recursive or len(parts) == 1:
                entries.append(self.entry(path, blob))
        entries += [{"type": "directory", "oid": hashlib.sha1(f.encode()).hexdigest(), "size": 0, "path": f}
                    for f in folders]
        return sorted(entries, key=lambda entry: str(entry["path"]))

    @staticmethod
    def entry(path: str, blob: Blob) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "oid": blob.git_sha1, "size": blob.size, "path": path}
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
        return entry

    def info(self, commit: str) -> dict[str, Any]:
        date = "2026-01-01T00:00:00.000Z"
        return {"_id": "0" * 24, "id": self.name, "author": self.name.split("/")[0], "sha": commit, "private": False,
                "gated": False, "disabled": False, "lastModified": date, "createdAt": date, "downloads": 0, "likes": 0,
                "tags": [], "siblings": [{"rfilename": path} for path in self.commits[commit]]}


def scan(root: Path) -> dict[str, Repo]:
    """The repositories below `root` (owner/name/...)."""
    repos = {}
    for folder in sorted(p for p in root.glob("*/*") if p.is_dir()):
        files = {p.relative_to(folder).as_posix(): file_blob(p) for p in sorted(folder.rglob("*")) if p.is_file()}
        repos[folder.relative_to(root).as_posix()] = Repo(folder.relative_to(root).as_posix(), files)
    return repos


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer.

    kind: a status ("429", "503", "500", "403"), "drop" (closed before a byte), "cut" (closed after `part` of the
    body), "stall" (silent after `part`, for `seconds`), "slow" (the body over `seconds`), "flip" (one byte changed),
    "whole" (Range ignored), "garbage" (an HTML page with status 200).
    """

    kind: str
    part: float = 0.5
    seconds: float = 1.0
    retry_after: str | None = None


Faults = Callable[[str, str, int], Fault | None]


def script(plan: Mapping[str, Iterable[Fault | None]]) -> Faults:
    """The n-th request whose path contains a key gets that key's n-th fault; later ones none."""
    queues = {part: list(faults) for part, faults in plan.items()}
    lock = threading.Lock()

    def fault(method: str, path: str, nth: int) -> Fault | None:
        with lock:
            for part, queue in queues.items():
                if part in path and queue:
                    return queue.pop(0)
        return None
    return fault


def seeded(rate: float, seed: int, faults: Iterable[Fault]) -> Faults:
    """Each request fails with probability `rate`, by one of `faults`; the same for the same (path, nth, seed)."""
    choice = tuple(faults)

    def fault(method: str, path: str, nth: int) -> Fault | None:
        rng = random.Random(f"{seed} {method} {path} {nth}")
        return rng.choice(choice) if rng.random() < rate else None
    return fault


@dataclass(frozen=True)
class Request:
    """One line of the server's log; `sent` counts body bytes."""

    method: str
    path: str
    status: int
    range: str = ""
    host: str = ""
    token: str = ""
    sent: int = 0


@dataclass
class State:
    """What all connections share."""

    repos: dict[str, Repo]
    page: int = 1000
    cdn: bool = True
    faults: Faults | None = None
    log: Any = None
    expire_links_after: int = 0     # a storage link answers so many requests, then 403 (0: for ever)
    requests: list[Request] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)
    links: dict[str, list[Any]] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    """Answers the dataset part of the hub's API; `state` is set by HubServer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    timeout = 120
    state: State

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def note(self, status: int, sent: int) -> None:
        request = Request(self.command, unquote(self.path), status, self.headers.get("Range", ""),
                          self.headers.get("Host", ""), self.headers.get("Authorization", ""), sent)
        with self.state.lock:
            self.state.requests.append(request)
            if self.state.log:
                print(request.method, request.status, request.path, request.range, request.sent, file=self.state.log,
                      flush=True)

    def head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.head(status, len(body), {"Content-Type": "application/json", **(headers or {})})
        sent = self.body([body]) if self.command != "HEAD" else 0
        self.note(status, sent)

    def body(self, chunks: Iterable[bytes]) -> int:
        """Writes the body, with the fault of this request; returns the bytes written."""
        fault, sent = self.fault, 0
        if fault is None or fault.kind not in ("cut", "stall", "slow", "flip"):
            for chunk in chunks:
                self.wfile.write(chunk)
                sent += len(chunk)
            return sent
        data = b"".join(chunks)
        if fault.kind == "flip" and data:
            at = int((len(data) - 1) * fault.part)
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]
        if fault.kind == "slow":
            step = max(1, len(data) // 20)
            for at in range(0, len(data), step):
                self.wfile.write(data[at:at + step])
                self.wfile.flush()
                time.sleep(fault.seconds / 20)
            return len(data)
        if fault.kind in ("cut", "stall"):
            data = data[:int(len(data) * fault.part)]
        self.wfile.write(data)
        if fault.kind in ("cut", "stall"):
            self.wfile.flush()
            if fault.kind == "stall":
                time.sleep(fault.seconds)
            self.hang_up()
        return len(data)

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def missing(self, code: str) -> None:
        self.answer(404, json.dumps({"error": code}).encode(), {"X-Error-Code": code, "X-Error-Message": code})

    def file(self, blob: Blob, headers: Mapping[str, str]) -> None:
        start, stop, status = 0, blob.size, 200
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked and not (self.fault and self.fault.kind == "whole"):
            start = int(asked[1]) if asked[1] else max(0, blob.size - int(asked[2]))
            stop = min(int(asked[2]) + 1, blob.size) if asked[1] and asked[2] else blob.size
            if start >= blob.size:
                return self.answer(416, b"", {"Content-Range": f"bytes */{blob.size}"})
            status = 206
        extra = {"Content-Range": f"bytes {start}-{stop - 1}/{blob.size}"} if status == 206 else {}
        self.head(status, stop - start, {**headers, **extra, "Accept-Ranges": "bytes",
                                         "Content-Type": "application/octet-stream"})
        if self.command == "HEAD":
            return self.note(status, 0)
        step = 1 << 20
        sent = 0
        try:
            sent = self.body(blob.read(at, min(at + step, stop)) for at in range(start, stop, step))
        finally:
            self.note(status, sent)

    def handle_any(self) -> None:
        posted = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.state.lock:
            nth = self.state.asked[self.path] = self.state.asked.get(self.path, 0) + 1
        self.fault = self.state.faults(self.command, unquote(self.path), nth) if self.state.faults else None
        if self.fault and self.fault.kind == "drop":
            self.note(0, 0)
            return self.hang_up()
        if self.fault and self.fault.kind == "garbage":
            return self.answer(200, b"<html>maintenance</html>", {"Content-Type": "text/html"})
        if self.fault and self.fault.kind.isdigit():
            wish = {"Retry-After": self.fault.retry_after} if self.fault.retry_after is not None else {}
            return self.answer(int(self.fault.kind), b"{}", wish)
        try:
            self.route(posted)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def route(self, posted: bytes) -> None:
        url = urlsplit(self.path)
        query, parts = parse_qs(url.query), [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[0] == "_storage":
            return self.storage(parts[1])
        if parts[:2] == ["api", "datasets"] and len(parts) >= 4:
            name, rest = "/".join(parts[2:4]), parts[4:]
        elif parts[0] == "datasets" and len(parts) >= 6 and parts[3] == "resolve":
            name, rest = "/".join(parts[1:3]), ["resolve", *parts[4:]]
        else:
            return self.missing("RepoNotFound")
        repo = self.state.repos.get(name)
        if repo is None:
            return self.missing("RepoNotFound")
        if repo.gated_by and self.headers.get("Authorization") != f"Bearer {repo.gated_by}":
            return self.answer(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "access is restricted"})
        commit = repo.main
        if rest[:1] and rest[0] in ("revision", "tree", "paths-info", "resolve"):
            commit = repo.main if rest[1] == "main" else rest[1]
            if commit not in repo.commits:
                return self.missing("RevisionNotFound")
        files = repo.commits[commit]
        if not rest or rest[0] == "revision":
            only = ["_id", "id", *query["expand"]] if "expand" in query else None
            info = {key: value for key, value in repo.info(commit).items() if only is None or key in only}
            return self.answer(200, json.dumps(info).encode())
        if rest[0] == "refs":
            heads = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.main}]
            return self.answer(200, json.dumps({"branches": heads, "converts": [], "tags": [],
                                                "pullRequests": []}).encode())
        if rest[0] == "tree":
            return self.tree(repo, commit, "/".join(rest[2:]), query, url.path)
        if rest[0] == "paths-info":
            as_json = self.headers.get("Content-Type", "").startswith("application/json")
            wanted = json.loads(posted)["paths"] if as_json else parse_qs(posted.decode()).get("paths", [])
            found = [repo.entry(path, files[path]) for path in wanted if path in files]
            return self.answer(200, json.dumps(found).encode())
        if rest[0] == "resolve":
            return self.resolve(commit, files.get("/".join(rest[2:])))
        self.missing("EntryNotFound")

    def tree(self, repo: Repo, commit: str, under: str, query: Mapping[str, list[str]], path: str) -> None:
        entries = repo.tree(commit, under, query.get("recursive", ["false"])[0].lower() == "true")
        if not entries:
            return self.missing("EntryNotFound")
        at, headers = int(query.get("cursor", ["0"])[0]), {}
        if at + self.state.page < len(entries):
            kept = "&".join(f"{key}={values[0]}" for key, values in query.items() if key != "cursor")
            headers["Link"] = (f'<http://{self.headers["Host"]}{quote(path, safe="/%()+")}?{kept}'
                               f'&cursor={at + self.state.page}>; rel="next"')
        self.answer(200, json.dumps(entries[at:at + self.state.page]).encode(), headers)

    def resolve(self, commit: str, blob: Blob | None) -> None:
        if blob is None:
            return self.missing("EntryNotFound")
        etag = blob.sha256 if blob.lfs else blob.git_sha1
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}
        if not (blob.lfs and self.state.cdn):
            return self.file(blob, headers)
        with self.state.lock:
            link = f"{etag}-{len(self.state.links) if self.state.expire_links_after else 0}"
            self.state.links.setdefault(link, [blob, 0])
        host = self.headers["Host"]
        other = host.replace("127.0.0.1", "localhost") if "127.0.0.1" in host else host.replace("localhost", "127.0.0.1")
        self.answer(302, b"", {**headers, "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(blob.size),
                               "Location": f"http://{other}/_storage/{link}?X-Amz-Signature=0"})

    def storage(self, link: str) -> None:
        with self.state.lock:
            found = self.state.links.get(link)
            if found:
                found[1] += 1
        if found is None or (self.state.expire_links_after and found[1] > self.state.expire_links_after):
            return self.answer(403, b"", {})
        self.file(found[0], {"ETag": f'"{found[0].sha256}"'})

    do_GET = do_HEAD = do_POST = handle_any


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class HubServer:
    """The server as a context manager: `url`, `requests`, `repos`; `faults` may be changed while it runs."""

    def __init__(self, root: Path | None = None, *, repos: Mapping[str, Repo] | None = None, port: int = 0,
                 page: int = 1000, cdn: bool = True, faults: Faults | None = None, expire_links_after: int = 0,
                 log: Any = None) -> None:
        found = dict(repos or {}) | (scan(Path(root)) if root is not None else {})
        self.state = State(repos=found, page=page, cdn=cdn, faults=faults, log=log,
                           expire_links_after=expire_links_after)
        self._server = _Server(("127.0.0.1", port), type("BoundHandler", (Handler,), {"state": self.state}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def requests(self) -> list[Request]:
        with self.state.lock:
            return list(self.state.requests)

    @property
    def repos(self) -> dict[str, Repo]:
        return self.state.repos

    def clear(self) -> None:
        """Forgets the requests seen so far."""
        with self.state.lock:
            self.state.requests.clear()

    def __enter__(self) -> "HubServer":
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Loopback hub over a folder owner/name/...")
    parser.add_argument("root", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--page", type=int, default=1000)
    parser.add_argument("--fault-rate", type=float, default=0.0)
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    faults = seeded(args.fault_rate, 0, [Fault("429", retry_after="1"), Fault("503"), Fault("cut"), Fault("drop")])
    log = open(args.log, "a", encoding="utf-8") if args.log else None
    with HubServer(args.root, port=args.port, page=args.page, faults=faults if args.fault_rate else None,
                   log=log) as hub:
        print(hub.url, flush=True)
        while os.getppid() != 1:
            time.sleep(1)


if __name__ == "__main__":
    main()
