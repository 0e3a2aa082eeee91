"""Checking a shard directory against its manifest and itself.

Quick: every file is there with its size, no shard is missing or foreign, the row tables cover their shards without gaps. Full
adds every sha256, every member of every tar, every mask law and placeholder count, every row of the table against its tar, and
both indexes. A problem is one line that names the file (and the offset or key); nothing is repaired.

Cost: quick reads the tables only; full reads every byte once, about 400 MB/s a core, and holds one shard as a memory map.
"""

import hashlib
import mmap
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards import geometry, index, manifest, masks, table, tar
from shards.reader import iter_samples
from shards.sample import Sample, make_key


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as the manifest or the format says."""

    file: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}: {self.detail}"


def local_sizes(folder: Path) -> dict[str, int]:
    """Every file of a directory by its name in it, with its size."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def check_files(folder: Path, body: dict[str, Any], sizes: Mapping[str, int] | None = None) -> Iterator[Problem]:
    """Presence and size of every listed file, and foreign shards; `sizes`: of what is there, where that is not a local folder."""
    sizes = local_sizes(folder) if sizes is None else sizes
    listed = {entry["name"]: entry["bytes"] for entry in listed_files(body)}
    for name, size in listed.items():
        if name not in sizes:
            yield Problem(file=name, detail="missing")
        elif sizes[name] != size:
            yield Problem(file=name, detail=f"{sizes[name]} bytes where the manifest says {size}")
    for name in sorted(sizes):
        if name.endswith(".tar") and "/" not in name and name not in listed:
            yield Problem(file=name, detail="a shard that the manifest does not list: of another build")


def listed_files(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Every file that the manifest lists: shards, their indexes, and the others."""
    return [*(entry for shard in body["shards"] for entry in (shard, *shard["indexes"])), *body["files"]]


def check_tables(folder: Path, body: dict[str, Any]) -> Iterator[Problem]:
    """Row tables against the manifest's counts: every shard covered from its start to its end without a gap."""
    for split, name in table.FILES.items():
        if not (folder / name).is_file():
            continue  # check_files said so
        try:
            rows = table.load(folder / name)
        except ValueError as error:
            yield Problem(file=name, detail=str(error))
            continue
        shards = {entry["name"]: entry for entry in body["shards"] if entry["name"].startswith(f"{split}-")}
        for number in sorted({int(n) for n in np.unique(rows["shard"])} - {_number(name) for name in shards}):
            yield Problem(file=name, detail=f"has rows of shard {number}, which the manifest does not list")
        for shard_name, entry in shards.items():
            yield from _check_cover(name, rows[rows["shard"] == _number(shard_name)], entry)
        if np.any(rows["tokens"] > body["seq_len"]):
            yield Problem(file=name, detail=f"a row has more than {body['seq_len']} tokens")
        told = body["splits"][split]
        for key in ("samples", "tokens", "images", "patches"):
            if int(rows[key].sum()) != told[key]:
                yield Problem(file=name, detail=f"{int(rows[key].sum())} {key} where the manifest says {told[key]}")
    if sources := body.get("sources"):
        for key in ("samples", "tokens", "images"):
            total = sum(source[key] for source in sources.values())
            if total != sum(body["splits"][split][key] for split in table.FILES):
                yield Problem(file=manifest.NAME, detail=f"its sources have {total} {key}, its splits another number")


def _check_cover(name: str, rows: table.Rows, entry: dict[str, Any]) -> Iterator[Problem]:
    ends = rows["offset"] + rows["length"]
    starts = np.concatenate([np.zeros(1, "<u8"), ends[:-1]])[: len(rows)]
    if not np.array_equal(starts, rows["offset"]):
        yield Problem(file=name, detail=f"rows of {entry['name']} leave a gap or overlap")
    end = int(ends[-1]) if len(rows) else 0
    if end + len(tar.ending(end)) != entry["bytes"]:
        yield Problem(file=name, detail=f"rows of {entry['name']} end at byte {end} of {entry['bytes']}")
    for key in ("tokens", "images"):
        if int(rows[key].sum()) != entry[key]:
            yield Problem(file=name, detail=f"{int(rows[key].sum())} {key} in {entry['name']} where the manifest says {entry[key]}")
    if (len(rows), int(rows["samples"].sum())) != (entry["rows"], entry["samples"]):
        yield Problem(file=name, detail=f"{len(rows)} rows of {int(rows['samples'].sum())} samples in {entry['name']} where the "
                                        f"manifest says {entry['rows']} of {entry['samples']}")


def check_sha256(folder: Path, entry: dict[str, Any]) -> Iterator[Problem]:
    """One file's checksum."""
    if not (folder / entry["name"]).is_file():
        return  # check_files said so
    digest = hashlib.sha256()
    with open(folder / entry["name"], "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != entry["sha256"]:
        yield Problem(file=entry["name"], detail=f"sha256 is {digest.hexdigest()[:16]}... where the manifest says "
                                                 f"{entry['sha256'][:16]}...: the bytes changed after the build")


def check_shard(folder: Path, body: dict[str, Any], entry: dict[str, Any]) -> Iterator[Problem]:
    """Everything inside one shard: members, samples, masks, placeholders, rows, indexes."""
    path = folder / entry["name"]
    if not path.is_file() or path.stat().st_size == 0:
        return
    split, number = entry["name"].partition("-")[0], _number(entry["name"])
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        try:
            offsets, counts = yield from _check_samples(view, body, split, number)
        except ValueError as error:
            yield Problem(file=entry["name"], detail=str(error))
            return
        if len(counts) != entry["samples"]:
            yield Problem(file=entry["name"], detail=f"{len(counts)} samples where the manifest says {entry['samples']}")
        yield from _check_rows(folder, split, number, offsets, counts)
        yield from _check_indexes(folder, entry["name"], view, offsets)


def _check_samples(view: Any, body: dict[str, Any], split: str, number: int
                   ) -> Generator[Problem, None, tuple[list[int], Any]]:
    """Yields problems; returns (offsets of samples with the end appended, [tokens, images, patches] a sample)."""
    offsets, last = [], ""
    for member in tar.members(memoryview(view), whole=True):
        key = member.name.partition(".")[0]
        if key != last:
            offsets.append(member.offset)
            last = key
        end = member.end
    offsets.append(end if offsets else 0)
    counts = []
    name = table.shard_name(split, number)
    malformed = (ValueError, KeyError, TypeError, IndexError, AttributeError)  # what a JSON of another shape leads to
    for position, sample in enumerate(iter_samples(memoryview(view), whole=True)):
        if sample.key != make_key(split, number, position):
            yield Problem(file=name, detail=f"key {sample.key} at place {position}")
        images, work = sample.meta["images"], 0
        try:
            check_sample(sample, body)
            work = sum(geometry.patches(image["mode"], tuple(image["tiles"])) for image in images)
        except malformed as error:
            yield Problem(file=name, detail=f"{sample.key}: {type(error).__name__}: {error}")
        counts.append([len(sample.ids), len(images), work])
    return offsets, np.array(counts, dtype=np.int64).reshape(-1, 3)


def check_sample(sample: Sample, body: dict[str, Any]) -> None:
    """Raise ValueError if a sample breaks the format: placeholders of its modes, mask law, markers where the images stand."""
    expected = 0
    for number, image in enumerate(sample.meta["images"]):
        tiles = tuple(image["tiles"])
        if image["placeholders"] != geometry.placeholders(image["mode"], tiles):
            raise ValueError(f"image {number} of mode {image['mode']} has {image['placeholders']} placeholders")
        if (image["width"], image["height"]) != geometry.stored_size(image["mode"], image["width"], image["height"]):
            raise ValueError(f"image {number} is {image['width']}x{image['height']}, larger than mode {image['mode']}")
        message = sample.meta["messages"][image["message"]]
        if message["content"].find("<image>", image["offset"]) != image["offset"]:
            raise ValueError(f"image {number} has no marker at character {image['offset']} of message {image['message']}")
        expected += image["placeholders"]
    specials = body["specials"]
    masks.check(sample.ids, sample.mask, image_id=specials["<|image|>"], pad_id=specials["<|pad|>"],
                bos_id=specials["<|bos|>"], placeholders=expected, vocab_size=body["vocab_size"])


def _check_rows(folder: Path, split: str, number: int, offsets: list[int], counts: Any) -> Iterator[Problem]:
    """The table's rows of a shard against the samples found in it."""
    name = table.FILES[split]
    try:
        rows = table.load(folder / name)
    except (ValueError, FileNotFoundError):
        return  # check_tables and check_files said so
    starts = {offset: place for place, offset in enumerate(offsets)}
    for row in rows[rows["shard"] == number]:
        first, last = starts.get(int(row["offset"])), starts.get(int(row["offset"] + row["length"]))
        if first is None or last is None or last <= first:
            yield Problem(file=name, detail=f"row at offset {int(row['offset'])} of shard {number} is no run of whole samples")
            continue
        found = [last - first, *counts[first:last].sum(axis=0).tolist()]
        told = [int(row[key]) for key in ("samples", "tokens", "images", "patches")]
        if found != told:
            yield Problem(file=name, detail=f"row at offset {int(row['offset'])} of shard {number} says samples, tokens, images, "
                                            f"patches {told}; the tar holds {found}")


def _check_indexes(folder: Path, name: str, view: Any, offsets: list[int]) -> Iterator[Problem]:
    dali = index.DaliIndex()
    sample: list[tuple[str, int, int, str]] = []
    last = ""
    for member in tar.members(memoryview(view), whole=True):
        key, _, suffix = member.name.partition(".")
        if key != last and sample:
            dali.add(sample)
            sample = []
        last = key
        sample.append((suffix, member.data_offset, member.size, member.name))
    if sample:
        dali.add(sample)
    for file, expected in ((f"{name}.idx", index.energon(offsets)), (f"{name.removesuffix('.tar')}.idx", dali.encode())):
        if (folder / file).is_file() and (folder / file).read_bytes() != expected:
            yield Problem(file=file, detail="is not the index of its shard: stale, or of another build")


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, with the parts that the checks need."""
    body = manifest.load(folder)
    missing = {"shards", "files", "splits", "seq_len", "specials", "vocab_size"} - body.keys()
    if missing:
        raise ValueError(f"{folder / manifest.NAME} lacks {', '.join(sorted(missing))}")
    return body


def _number(name: str) -> int:
    return int(name.partition("-")[2].partition(".")[0])
