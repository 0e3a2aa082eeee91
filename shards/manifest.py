"""manifest.json: written last, so that its existence means a complete directory.

It holds no time, host, path or worker count: the same plan gives the same bytes. Keys:

    format_version, recipe, seed, fraction, mode, seq_len, vocab_size, specials {"<|bos|>": id ...}, train {...}, tokenizer {...},
    sources {name: {asked, rows, samples, images, tokens, targets, answer_tokens, val_samples, rejects {reason: n}, ...}},
    splits {train|val: {rows, samples, tokens, images, patches, fill}},
    shards [{name, bytes, sha256, samples, rows, tokens, images, indexes [{name, bytes, sha256}]}],
    files [{name, bytes, sha256}] (every other file), plan {id, ...}, versions {library: version}
"""

import json
from pathlib import Path
from typing import Any

from shards import FORMAT_VERSION
from shards.writer import FileEntry, write_file

NAME = "manifest.json"


class IncompleteError(ValueError):
    """The directory has no manifest: it is not a shard directory, or its build has not finished."""


def save(folder: Path, manifest: dict[str, Any]) -> FileEntry:
    """Write the manifest, which declares the directory complete."""
    text = json.dumps({"format_version": FORMAT_VERSION, **manifest}, indent=1, sort_keys=True, ensure_ascii=False)
    return write_file(folder / NAME, text.encode() + b"\n")


def load(folder: Path) -> dict[str, Any]:
    """The manifest of a finished directory; IncompleteError without one, ValueError if it is of another format."""
    path = folder / NAME
    if not folder.is_dir():
        raise IncompleteError(f"{folder} is not a directory")
    if not path.exists():
        raise IncompleteError(f"{folder} has no {NAME}: the build has not finished; run `pipeline build-shards` again")
    return parse(path.read_bytes(), str(path))


def parse(data: bytes, place: str) -> dict[str, Any]:
    """A manifest from its bytes; `place` names it in errors."""
    try:
        manifest = json.loads(data)
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{place} is not a shard manifest") from None
    if version != FORMAT_VERSION:
        raise ValueError(f"{place} is of format {version!r}; this reader knows format {FORMAT_VERSION}")
    assert isinstance(manifest, dict)
    return manifest
