"""A hash pass before the plan: rows that repeat an earlier one, and rows with an image on a decontamination list.

A row is a duplicate if an earlier row (in the order of the recipe's sources, their files and rows) has the same images and the
same text, both byte for byte after the source's own rules; a row that these rules reject is no one's original. Prompt templates
are left out of the comparison, since they are drawn by row. A row is contaminated if the sha256 of one of its images, as stored
in its parquet file, is on the list. What is found becomes the plan's `skips`, so that tasks stay pure; each skipped row ends in
rejects as "duplicate" or "contaminated".

    plan = with_skips(make_plan(...), workers=2)        # recipe keys: dedup = true, decontaminate = "hashes.txt"

The list holds one hash a line, as `sha256sum` prints it; blank lines and lines starting with # are skipped. It is named in the
plan by the hash of its contents. What was hashed is kept in the user's cache folder by file, its size, its footer and the
source's rules: a second plan over the same files reads nothing again. Cost: one reading of the planned rows (about 500 MB/s a
core); 56 bytes of memory a row and 40 on disk an image.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.build.blocks import BlockReader
from pipeline.conversation import Conversation, Reject
from pipeline.footers import cache_folder
from pipeline.plan import Block, Plan, options_of
from pipeline.processes import open_pool
from pipeline.recipe import Recipe, RecipeError
from pipeline.sources import KINDS

VERSION = 1  # of the cached hashes; raised when what is hashed changes
ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class FileHashes:
    """Hashes of the planned rows of one file that can be used.

    rows: int64 [n], row numbers in the file. keys: uint64 [n, 2], of images and text. image_rows: int64 [m] and images:
    uint8 [m, 32], each image's row and sha256.
    """

    rows: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint64]
    image_rows: npt.NDArray[np.int64]
    images: npt.NDArray[np.uint8]


class HashPassError(RuntimeError):
    """A file at which hashing workers died again and again."""


def with_skips(plan: Plan, *, workers: int = 1, progress: Callable[[int], None] = lambda rows: None) -> Plan:
    """The plan with the rows that its recipe's `dedup` and `decontaminate` leave out; the same plan if it asks for neither."""
    recipe = plan.recipe
    if not recipe.dedup and recipe.decontaminate is None:
        return plan
    listed, digest = read_list(recipe) if recipe.decontaminate is not None else (frozenset(), None)
    found = hash_files(plan, workers=workers, progress=progress)
    contaminated = [_listed_rows(hashes, listed) for hashes in found]
    repeated = duplicates(found, contaminated) if recipe.dedup else [()] * len(found)
    skips: dict[int, dict[str, tuple[int, ...]]] = {}
    for number, (same, bad) in enumerate(zip(repeated, contaminated)):
        rows = {reason: rows for reason, rows in (("contaminated", bad), ("duplicate", same)) if rows}
        if rows:
            skips[number] = rows
    return dataclasses.replace(plan, skips=skips, recipe=dataclasses.replace(recipe, decontaminate=digest))


def read_list(recipe: Recipe) -> tuple[frozenset[bytes], str]:
    """The hashes of the recipe's list (its path counts from the recipe's folder), and `sha256:...` of the sorted list."""
    assert recipe.decontaminate is not None
    path = (recipe.home or Path()) / recipe.decontaminate
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"decontaminate = {recipe.decontaminate!r} cannot be read: {error}") from None
    hashes = set()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            value = bytes.fromhex(line.split()[0])
        except ValueError:
            value = b""
        if len(value) != 32:
            raise RecipeError(f"{path} line {number}: {line[:80]!r} does not begin with a sha256 (64 hex digits)")
        hashes.add(value)
    return frozenset(hashes), "sha256:" + hashlib.sha256(b"".join(sorted(hashes))).hexdigest()


def duplicates(found: Sequence[FileHashes], left_out: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """For each file the rows whose key an earlier row has; rows in `left_out` neither count nor are counted."""
    keep = [~np.isin(hashes.rows, np.asarray(out, dtype=np.int64)) for hashes, out in zip(found, left_out)]
    keys = np.concatenate([np.zeros((0, 2), np.uint64), *(hashes.keys[mask] for hashes, mask in zip(found, keep))])
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal keys stay in their order
    ordered = keys[order]
    again = np.zeros(len(keys), dtype=bool)
    again[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    out, at = [], 0
    for hashes, mask in zip(found, keep):
        rows = hashes.rows[mask]
        out.append(tuple(int(row) for row in rows[again[at:at + len(rows)]]))
        at += len(rows)
    return out


def _listed_rows(hashes: FileHashes, listed: frozenset[bytes]) -> tuple[int, ...]:
    if not listed:
        return ()
    return tuple(sorted({int(row) for row, image in zip(hashes.image_rows, hashes.images) if image.tobytes() in listed}))


def hash_files(plan: Plan, *, workers: int = 1, progress: Callable[[int], None] = lambda rows: None) -> list[FileHashes]:
    """The hashes of every file of the plan, from the cache or by reading it. Raises HashPassError."""
    blocks: dict[int, list[Block]] = {number: [] for number in range(len(plan.files))}
    for shard in plan.shards:
        for block in shard:
            blocks[block.file].append(block)
    for own in blocks.values():
        own.sort(key=lambda block: block.group)
    places = {number: _cache_path(plan, number, own) for number, own in blocks.items()}
    cached = {number: hashes for number, place in places.items() if (hashes := _from_cache(place)) is not None}
    todo = [number for number in blocks if number not in cached]
    for number in cached:
        progress(sum(block.rows for block in blocks[number]))
    for number, hashes in _run(plan, {number: blocks[number] for number in todo}, workers):
        _to_cache(places[number], hashes)
        cached[number] = hashes
        progress(sum(block.rows for block in blocks[number]))
    return [cached[number] for number in sorted(cached)]


def _run(plan: Plan, todo: dict[int, list[Block]], workers: int) -> Iterable[tuple[int, FileHashes]]:
    """Hash files in worker processes, since a damaged file can take its process with it."""
    lost = dict.fromkeys(todo, 0)
    small = dataclasses.replace(plan, shards=())  # what travels to the workers
    while todo:
        alone = any(lost[number] for number in todo)  # after a loss one at a time, to learn which file it is
        with open_pool(1 if alone else max(1, min(workers, len(todo)))) as pool:
            waiting = [(number, pool.submit(hash_file, small, tuple(blocks))) for number, blocks in todo.items()]
            for number, future in waiting:
                try:
                    hashes = future.result()
                except BrokenProcessPool:
                    lost[number] += 1
                    if lost[number] >= ATTEMPTS:
                        raise HashPassError(f"{plan.files[number].name}: {ATTEMPTS} workers died while hashing it; leave the file "
                                            "out, or build without dedup and decontaminate") from None
                    break
                del todo[number]
                yield number, hashes


def hash_file(plan: Plan, blocks: Sequence[Block]) -> FileHashes:
    """The hashes of the rows that these blocks of one file select."""
    rows: list[int] = []
    keys: list[bytes] = []
    image_rows: list[int] = []
    images: list[bytes] = []
    reader = BlockReader(plan)
    for block in blocks:
        spec = plan.recipe.sources[block.source]
        options = comparable(options_of(spec))
        for number, row in reader.rows(block):
            try:
                if isinstance(row, Reject):
                    raise row
                conversation = KINDS[spec.kind].convert(row, source=spec.name, row_id=str(number), options=options)
            except Reject:
                continue  # the task will reject it for the same reason
            hashes = [hashlib.sha256(image).digest() for image in conversation.images]
            rows.append(number)
            keys.append(content_key(conversation, hashes))
            image_rows += [number] * len(hashes)
            images += hashes
    reader.close()
    return FileHashes(
        rows=np.array(rows, dtype=np.int64), keys=np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, 2).astype(np.uint64),
        image_rows=np.array(image_rows, dtype=np.int64), images=np.frombuffer(b"".join(images), dtype=np.uint8).reshape(-1, 32))


def comparable(options: Any) -> Any:
    """A source's options without what varies by row and not by content."""
    return dataclasses.replace(options, prompts=()) if hasattr(options, "prompts") else options


def content_key(conversation: Conversation, images: Sequence[bytes]) -> bytes:
    """16 bytes of a conversation's images (by their hashes), where they stand, and its messages."""
    messages = [[message.role, message.content, [[part.kind, part.text] for part in message.parts]]
                for message in conversation.messages]
    text = json.dumps([messages, conversation.anchors]).encode()
    return hashlib.blake2b(b"".join((len(images).to_bytes(4, "little"), *images, text)), digest_size=16).digest()


def _cache_path(plan: Plan, number: int, blocks: Sequence[Block]) -> Path:
    """Where a file's hashes are kept: named by all that they depend on."""
    file = plan.files[number]
    spec = plan.recipe.sources[blocks[0].source]
    written = os.stat(file.ref.local).st_mtime_ns if file.ref.local is not None and file.ref.local.exists() else 0
    names = [VERSION, plan.versions, file.name, file.ref.size, file.identity, file.ref.revision, written, spec.kind,
             dataclasses.asdict(comparable(options_of(spec))), [(b.group, b.first, b.start, b.stop, b.step) for b in blocks]]
    digest = hashlib.blake2b(json.dumps(names, sort_keys=True, default=list).encode(), digest_size=16).hexdigest()
    return cache_folder() / "hashes" / f"{digest}.npz"


def _from_cache(place: Path) -> FileHashes | None:
    try:
        with np.load(place, allow_pickle=False) as stored:
            return FileHashes(**{name: stored[name] for name in ("rows", "keys", "image_rows", "images")})
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _to_cache(place: Path, hashes: FileHashes) -> None:
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial.npz")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, rows=hashes.rows, keys=hashes.keys, image_rows=hashes.image_rows, images=hashes.images)
        os.replace(partial, place)
    except OSError:  # a cache that cannot be written is no reason to fail
        partial.unlink(missing_ok=True)
