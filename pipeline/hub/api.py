"""Metadata of a dataset repository: its commit, and the files of one folder with size and checksum.

A config's own folder is listed, never the whole tree (FineVision has 9,491 files): one request a page of 1,000.
Every answer is checked: a path that would leave the repository's folder is refused.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from pipeline.hub import client
from pipeline.hub.retry import DEFAULT, HubError, Retry, TransientError, call

COMMIT = re.compile(r"[0-9a-f]{40}")
REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True, kw_only=True, order=True)
class HubFile:
    """One file of a repository. `size` in bytes; `sha256` of the content for LFS files, else None and `git_sha1` tells."""

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None  # sha1 of b"blob SIZE\\0" + content


def check_repo(repo: str) -> str:
    """Returns `repo` if it is an `owner/name`; HubError otherwise."""
    if not REPO.fullmatch(repo) or any(part.strip(".") == "" for part in repo.split("/")):
        raise HubError(f"not a dataset repository: {repo!r} (expected owner/name)")
    return repo


def check_path(path: str) -> str:
    """Returns `path` if it is relative, inside the repository and printable; HubError otherwise."""
    parts = path.split("/")
    if not path or path.startswith("/") or "\\" in path or not path.isprintable() \
            or any(part in ("", ".", "..") for part in parts):
        raise HubError(f"the hub lists a file whose path is refused: {path!r}")
    return path


def _get_json(url: str, what: str, policy: Retry) -> tuple[Any, Mapping[str, str]]:
    """A JSON answer and its headers, retried; a body that is no JSON counts as cut."""
    def attempt() -> tuple[Any, Mapping[str, str]]:
        body, headers = client.get(url)
        try:
            return json.loads(body), headers
        except (ValueError, RecursionError) as error:
            raise TransientError("the answer is not JSON") from error
    return call(attempt, what=what, policy=policy)


def resolve_revision(repo: str, revision: str = "main", *, policy: Retry = DEFAULT) -> str:
    """The 40-digit commit that `revision` (branch, tag or commit) stands for; a commit is returned unasked."""
    check_repo(repo)
    if COMMIT.fullmatch(revision):
        return revision
    # expand: the commit alone, without the list of all files (0.6 MB for FineVision); a mirror may ignore it
    url = client.api_url(repo, "revision") + f"/{quote(revision, safe='')}?expand=sha"
    answer, _ = _get_json(url, f"{repo}@{revision}", policy)
    sha = answer.get("sha") if isinstance(answer, dict) else None
    if not isinstance(sha, str) or not COMMIT.fullmatch(sha):
        raise HubError(f"{client.endpoint()} gives no commit for {repo}@{revision}; is HF_ENDPOINT a hub?")
    return sha


def _next_page(header: str) -> str | None:
    """The URL of `rel="next"` in a Link header, moved onto the endpoint's host (a mirror may repeat the hub's own)."""
    found = re.search(r'<([^>]+)>\s*;\s*rel="?next"?', header)
    if not found:
        return None
    url = client.join(client.endpoint() + "/", found[1])
    there, here = urlsplit(found[1]), urlsplit(client.endpoint())
    if there.netloc == here.netloc or "/api/" not in there.path:
        return url
    path = here.path.rstrip("/") + there.path[there.path.index("/api/"):]
    return str(urlunsplit((here.scheme, here.netloc, path, there.query, "")))


def _entry(entry: Any) -> HubFile | None:
    """One line of a tree answer; None for a folder."""
    if not isinstance(entry, dict) or entry.get("type") != "file":
        return None
    lfs = entry.get("lfs") or {}
    if not isinstance(lfs, dict):
        raise HubError(f"the hub lists a file whose lfs is no object: {entry!r:.200}")
    size, sha256 = lfs.get("size", entry.get("size")), lfs.get("oid") or lfs.get("sha256")
    if not isinstance(size, int) or size < 0 or not isinstance(entry.get("path"), str):
        raise HubError(f"the hub lists a file without path or size: {entry!r:.200}")
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", str(sha256)):
        raise HubError(f"the hub lists {entry['path']} with a checksum that is no sha256: {sha256!r}")
    oid = str(entry.get("oid") or "")
    return HubFile(path=check_path(entry["path"]), size=size, sha256=sha256,
                   git_sha1=oid if sha256 is None and re.fullmatch(r"[0-9a-f]{40}", oid) else None)


def list_files(repo: str, folder: str = "", revision: str = "main", *, recursive: bool = True,
               policy: Retry = DEFAULT) -> list[HubFile]:
    """All files below `folder` (the whole repository when empty) at `revision`, sorted by path, pages followed.

    Not `recursive`: those directly in it.

    Raises HubError when the repository, revision or folder does not exist.
    """
    check_repo(repo)
    url: str | None = client.api_url(repo, "tree")
    url = f"{url}/{quote(revision, safe='')}" + (f"/{quote(folder.strip('/'))}" if folder else "")
    url += f"?recursive={str(recursive).lower()}"
    files: dict[str, HubFile] = {}
    seen: set[str] = set()
    while url is not None:
        answer, headers = _get_json(url, f"file list of {repo}/{folder}", policy)
        if not isinstance(answer, list):
            raise HubError(f"{client.endpoint()} gives no file list for {repo}/{folder}; is HF_ENDPOINT a hub?")
        files.update((file.path, file) for file in map(_entry, answer) if file is not None)
        url = _next_page(headers.get("link", ""))
        fresh = {str(entry.get("path")) for entry in answer if isinstance(entry, dict)} - seen
        if url is not None and not fresh:   # whatever the next page's address: it may carry a new cursor each time
            raise HubError(f"{client.endpoint()} repeats a page of {repo}/{folder}: the listing has no end")
        seen |= fresh
    return [files[path] for path in sorted(files)]
