"""What `download` learnt of a set: every file of it on the hub with its footer, fetched or not.

A recipe that takes a hundredth needs few of a set's files. Planned from those few alone, the build would choose other
blocks than the download did, and take a hundredth of a hundredth. So the whole listing is kept as
raw/.pipeline/sets/REPO/FOLDER/SPLIT.json, and a plan below raw starts from it: same files, same footers, same choice
as on the hub, without a request.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.footers import FileFooter, FileRef, FooterError, RowGroup, local_refs
from pipeline.hub.api import check_path
from pipeline.hub.record import FOLDER, write_atomic
from pipeline.hub.retry import HubError

log = logging.getLogger("pipeline.hub")

VERSION = 1


def known_path(raw: Path, prefix: str) -> Path:
    """Where the listing of the files that begin with `prefix` (REPO/FOLDER/SPLIT-) is kept."""
    return raw / FOLDER / "sets" / f"{prefix.rstrip('-')}.json"


def save_known(raw: Path, prefix: str, repo: str, revision: str, refs: Sequence[FileRef],
               footers: Sequence[FileFooter | FooterError]) -> None:
    """Keeps the listing `refs` of a set on the hub with their footers, in the same order."""
    files = []
    for ref, footer in zip(refs, footers, strict=True):
        entry: dict[str, Any] = {"path": ref.path, "size": ref.size, "sha256": ref.sha256}
        if isinstance(footer, FooterError):
            entry["error"] = [footer.reason, footer.detail]
        else:
            entry["columns"] = footer.columns
            entry["groups"] = [(g.rows, g.bytes, g.start, g.images, g.text_bytes) for g in footer.groups]
        files.append(entry)
    body = {"version": VERSION, "repo": repo, "revision": revision, "files": files}
    try:
        write_atomic(known_path(raw, prefix), json.dumps(body, separators=(",", ":")).encode())
    except OSError as error:    # raw is somebody's read-only snapshot: it is planned from the files that lie there
        log.warning("no listing kept of %s: %s", prefix, error)


def known_refs(raw: Path, repo: str, prefix: str) -> tuple[str, list[FileRef]] | None:
    """The revision and files of a set as `download` saw it; None when it never did, or other files lie there too.

    A file on disk has `local` set, one not fetched has it None; footers are filled in unless a file's size has changed.
    """
    try:
        body = json.loads(known_path(raw, prefix).read_bytes())
        if body["version"] != VERSION or body["repo"] != repo:
            return None
        refs = [_ref(raw, repo, str(body["revision"]), entry) for entry in body["files"]]
    except (OSError, ValueError, KeyError, TypeError, HubError):
        return None
    known = {f"{repo}/{entry['path']}" for entry in body["files"]}
    present = {ref.path for ref in local_refs(raw, prefix.rpartition("/")[0]) if ref.path.startswith(prefix)}
    return (str(body["revision"]), refs) if present <= known else None


def _ref(raw: Path, repo: str, revision: str, entry: dict[str, Any]) -> FileRef:
    path, size = check_path(entry["path"]), int(entry["size"])
    place = raw / repo / path
    name = f"{repo}/{path}"
    here = place.is_file()
    footer: FileFooter | FooterError
    if "error" in entry:
        footer = FooterError(name, str(entry["error"][0]), str(entry["error"][1]))
    else:
        groups = tuple(RowGroup(rows=r, bytes=b, start=s, images=i, text_bytes=t) for r, b, s, i, t in entry["groups"])
        footer = FileFooter(path=name, size=size, rows=sum(g.rows for g in groups), groups=groups,
                            columns=tuple(entry["columns"]))
    if not here:
        return FileRef(path=path, size=size, repo=repo, revision=revision, sha256=entry["sha256"], footer=footer)
    actual = place.stat().st_size
    return FileRef(path=name, size=actual, local=place, sha256=entry["sha256"], footer=footer if actual == size else None)
