"""Publish a finished shard directory as a dataset repository on the hub.

    pipeline push shards/stage1 someone/stage1-shards

What is published is what the manifest names, each file checked against its sha256 first, and nothing else. Files go up in
commits of about a gigabyte, manifest.json in the last one: as on disk, its presence means that the rest is there (a manifest of
an earlier build is taken away by the first commit). Shards of an earlier build that this one does not have are deleted, or
`load_dataset` would mix the two. A push that was cut off goes on where it stopped: what the hub has with the same hash is
not sent again; no state is kept beside the shards. Cost: one read of every file for the check, one for the upload.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from pipeline.hub.retry import DEFAULT, RETRIED_STATUS, HubError, Retry, TransientError, call, wished_wait
from shards import manifest

COMMIT_BYTES = 1_000_000_000
COMMIT_FILES = 100
_OURS = re.compile(r"(train|val)-\d{6,}\.(tar|tar\.idx|idx)|rows(-val)?\.npy|(samples|rejects)\.parquet")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file as the manifest has it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What a push did. url: of the last commit, or of the repository if nothing had to change."""

    repo: str
    files: int
    uploaded: int
    uploaded_bytes: int
    deleted: int
    commits: int
    url: str


def entries_of(folder: Path) -> list[Entry]:
    """Every file of a finished directory but the manifest, in the order of upload: shards first, card last."""
    body = manifest.load(folder)
    raw = [entry for shard in body["shards"] for entry in (shard, *shard["indexes"])] + list(body["files"])
    entries = [Entry(name=str(e["name"]), bytes=int(e["bytes"]), sha256=str(e["sha256"])) for e in raw]
    for entry in entries:
        path = folder / entry.name
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise ValueError(f"{path} is not as the manifest says; run `pipeline verify {folder}`")
    return entries


def digests(path: Path) -> tuple[str, str]:
    """(sha256, git blob id) of a file: the hub tells the first for large files, the second for small ones."""
    sha, blob = hashlib.sha256(), hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha.update(chunk)
            blob.update(chunk)
    return sha.hexdigest(), blob.hexdigest()


def _ask(fn: Callable[[], T], what: str, retry: Retry) -> T:
    """Run a request to the hub; transient failures are tried again, lasting ones become HubError."""

    def attempt() -> T:
        try:
            return fn()
        except OfflineModeIsEnabled:
            raise HubError(f"{what}: HF_HUB_OFFLINE is set; unset it to push") from None
        except (httpx2.InvalidURL, ImportError, UnicodeEncodeError) as problem:
            raise HubError(f"{what}: {problem}; check HF_TOKEN and the proxies in the environment") from None
        except (RuntimeError, httpx2.TransportError, OSError) as problem:
            # what an upload to the hub's storage met comes wrapped in a RuntimeError
            error = problem.__cause__ if isinstance(problem, RuntimeError) else problem
            if isinstance(error, RevisionNotFoundError) or not isinstance(error, httpx2.TransportError | OSError):
                raise
            if not isinstance(error, HfHubHTTPError):  # refused, reset, timed out
                raise TransientError(f"{what}: {error or type(error).__name__}") from None
            status = error.response.status_code if error.response is not None else 0
            if status in RETRIED_STATUS or status == 412:  # 412: another commit came between
                headers = {key.lower(): value for key, value in error.response.headers.items()}
                raise TransientError(f"{what}: status {status}", wished_wait(headers)) from None
            hint = "; log in with `hf auth login` or set HF_TOKEN to one that may write" if status in (401, 403) else ""
            raise HubError(f"{what}: the hub answers {status}{hint}") from None

    return call(attempt, what=what, policy=retry)


def remote_files(api: HfApi, repo: str, revision: str, retry: Retry) -> dict[str, str]:
    """Path -> sha256 of a large file, git blob id of a small one, for all files of the repository."""

    def listing() -> dict[str, str]:
        tree = api.list_repo_tree(repo, repo_type="dataset", recursive=True, revision=revision)
        return {item.path: item.lfs.sha256 if item.lfs else item.blob_id for item in tree if isinstance(item, RepoFile)}

    try:
        return _ask(listing, f"listing {repo}", retry)
    except RevisionNotFoundError:
        return {}


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    for entry in entries:
        if batch and (len(batch) >= COMMIT_FILES or sum(e.bytes for e in batch) + entry.bytes > COMMIT_BYTES):
            yield batch
            batch = []
        batch.append(entry)
    if batch:
        yield batch


def push(folder: Path, repo: str, *, private: bool = False, revision: str = "main", retry: Retry = DEFAULT,
         progress: Callable[[int], Any] = lambda count: None) -> Pushed:
    """Publish `folder` as dataset `repo` ("owner/name"); `progress` is called with bytes done.

    Raises ValueError for a directory that is unfinished or not as its manifest says, HubError when the hub refuses.
    """
    entries = entries_of(folder)
    api = HfApi()
    _ask(lambda: api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True), f"creating {repo}", retry)
    if revision != "main":
        _ask(lambda: api.create_branch(repo, branch=revision, repo_type="dataset", exist_ok=True), f"branch {revision}", retry)
    remote = remote_files(api, repo, revision, retry)
    due = []
    for entry in entries:
        sha, blob = digests(folder / entry.name)
        if sha != entry.sha256:
            raise ValueError(f"{folder / entry.name} is not as the manifest says; run `pipeline verify {folder}`")
        if remote.get(entry.name) in (sha, blob):
            progress(entry.bytes)
        else:
            due.append(entry)
    names = {entry.name for entry in entries} | {manifest.NAME}
    stale = sorted(path for path in remote if _OURS.fullmatch(path) and path not in names)
    manifest_stale = manifest.NAME in remote and remote[manifest.NAME] not in digests(folder / manifest.NAME)
    deletions = [CommitOperationDelete(path_in_repo=path) for path in stale]
    if manifest.NAME in remote and (due or stale or manifest_stale):
        deletions.append(CommitOperationDelete(path_in_repo=manifest.NAME))
    done: list[CommitInfo] = []

    def commit(operations: list[Any], message: str) -> None:
        done.append(_ask(lambda: api.create_commit(repo, operations, commit_message=message, repo_type="dataset",
                                                   revision=revision), f"commit to {repo}", retry))

    if deletions:
        commit(list(deletions), "Take away what an earlier build left")
    for batch in _batches(due):
        commit([_addition(folder, entry.name) for entry in batch], f"{batch[0].name} and {len(batch) - 1} more files")
        progress(sum(entry.bytes for entry in batch))
    whole = bool(due or deletions or manifest.NAME not in remote)
    if whole:
        commit([_addition(folder, manifest.NAME)], "Manifest: the directory is complete")
    return Pushed(repo=repo, files=len(names), uploaded=len(due) + whole, uploaded_bytes=sum(entry.bytes for entry in due),
                  deleted=len(stale), commits=len(done),
                  url=str(done[-1].commit_url) if done else f"{api.endpoint}/datasets/{repo}")


def _addition(folder: Path, name: str) -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name))
