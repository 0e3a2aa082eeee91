"""`pipeline verify`: the checks of shards.verify over all shards, and a second reading by the webdataset library.

The second reading is there because our own reader and writer could share a mistake: webdataset must find the same keys, the same
fields in each sample, and every picture must open at the size its JSON tells.

A directory on object storage (`s3://bucket/prefix`) is checked by the same code: its small files are brought to a scratch folder,
and for the full check one shard a worker at a time, deleted after it. Quick needs its listing and its two row tables only.
"""

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image

from pipeline.build.target import Target
from pipeline.processes import open_pool
from shards import manifest, table
from shards import verify as checks
from shards.geometry import TILE
from shards.sample import make_key
from shards.verify import Problem

SHOWN = 20  # problems of one shard that are listed; a broken shard breaks every sample


def verify(place: Path | str, *, quick: bool = False, workers: int = 1) -> Iterator[Problem]:
    """Problems of a shard directory or URL, none if it is whole. Raises ValueError without a readable manifest, TargetError."""
    if isinstance(place, str) and is_remote(place):
        with fetched(place, [*table.FILES.values()] if quick else None) as folder:
            yield from _verify(folder, Target(url=place), quick, workers)
    else:
        yield from _verify(Path(place), None, quick, workers)


def is_remote(place: str) -> bool:
    """Whether a shard directory is named by a URL."""
    return "://" in place


@contextlib.contextmanager
def fetched(url: str, names: Sequence[str] | None = None) -> Iterator[Path]:
    """A scratch folder with the manifest of a remote directory and these of its files (None: all but shards and indexes).

    Raises IncompleteError where there is no manifest. A listed file that is not there is left out.
    """
    target = Target(url=url)
    with tempfile.TemporaryDirectory(prefix="shards-") as scratch:
        folder = Path(scratch)
        if target.manifest() is None:
            raise manifest.IncompleteError(f"{url} has no {manifest.NAME}: no build has finished there, or the URL is wrong")
        target.get(manifest.NAME, folder / manifest.NAME)
        body = checks.load_manifest(folder)
        for name in [entry["name"] for entry in body["files"]] if names is None else names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                target.get(name, folder / name)
        yield folder


def _verify(folder: Path, target: Target | None, quick: bool, workers: int) -> Iterator[Problem]:
    body = checks.load_manifest(folder)
    yield from checks.check_files(folder, body, None if target is None else target.sizes())
    yield from checks.check_tables(folder, body)
    if quick:
        return
    for entry in body["files"]:
        yield from checks.check_sha256(folder, entry)
    with open_pool(workers) as pool:
        for future in as_completed([pool.submit(verify_shard, folder, body, entry, target) for entry in body["shards"]]):
            yield from future.result()


def verify_shard(folder: Path, body: dict[str, Any], entry: dict[str, Any], target: Target | None = None) -> list[Problem]:
    """All problems of one shard, cut after SHOWN. With a target the shard is brought to `folder` first, and deleted at the end."""
    if target is None:
        return _verify_shard(folder, body, entry)
    names = [entry["name"], *(index["name"] for index in entry["indexes"])]
    try:
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # check_files said so
                target.get(name, folder / name)
        return _verify_shard(folder, body, entry)
    finally:
        for name in names:
            (folder / name).unlink(missing_ok=True)


def _verify_shard(folder: Path, body: dict[str, Any], entry: dict[str, Any]) -> list[Problem]:
    problems = [problem for part in (entry, *entry["indexes"]) for problem in checks.check_sha256(folder, part)]
    found = [*checks.check_shard(folder, body, entry)]
    if not found and not problems and (folder / entry["name"]).is_file():
        found = [*_second_reading(folder, entry)]
    if len(found) > SHOWN:
        found = [*found[:SHOWN], Problem(file=entry["name"], detail=f"and {len(found) - SHOWN} more problems")]
    return problems + found


def _second_reading(folder: Path, entry: dict[str, Any]) -> Iterator[Problem]:
    """Read a shard with webdataset: keys, fields, and that every picture opens at its size."""
    path = folder / entry["name"]
    split, number = entry["name"].removesuffix(".tar").split("-")
    count = 0
    with open(path, "rb") as stream:  # the stream, not its name: webdataset would take a name as a URL
        source = iter([{"url": entry["name"], "stream": stream}])
        files = webdataset.tariterators.tar_file_expander(source)
        for sample in webdataset.tariterators.group_by_keys(files):
            if sample["__key__"] != make_key(split, int(number), count):
                yield Problem(file=entry["name"], detail=f"webdataset reads key {sample['__key__']} at place {count}")
            count += 1
            yield from _check_pictures(entry["name"], sample)
    if count != entry["samples"]:
        yield Problem(file=entry["name"], detail=f"webdataset reads {count} samples where the manifest says {entry['samples']}")


def _check_pictures(name: str, sample: dict[str, Any]) -> Iterator[Problem]:
    for number, image in enumerate(json.loads(sample["json"])["images"]):
        expected = {str(number): (image["width"], image["height"])}
        if image["tiles"] != [0, 0]:
            expected[f"{number}.tiles"] = (TILE * image["tiles"][0], TILE * image["tiles"][1])
        for stem, size in expected.items():
            data = sample.get(f"{stem}.jpg", sample.get(f"{stem}.png"))
            if data is None:
                yield Problem(file=name, detail=f"{sample['__key__']}: webdataset reads no {stem}.jpg or .png")
                continue
            try:
                with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
                    if picture.size != size:
                        yield Problem(file=name, detail=f"{sample['__key__']}.{stem} is {picture.size}, its json says {size}")
            except OSError as error:
                yield Problem(file=name, detail=f"{sample['__key__']}.{stem} does not open: {error}")
