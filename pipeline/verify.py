"""`pipeline verify`: the checks of shards.verify over all shards, and a second reading by the webdataset library.

The second reading is there because our own reader and writer could share a mistake: webdataset must find the same keys, the same
fields in each sample, and every picture must open at the size its JSON tells.
"""

import io
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image

from shards import verify as checks
from shards.geometry import TILE
from shards.sample import make_key
from shards.verify import Problem

SHOWN = 20  # problems of one shard that are listed; a broken shard breaks every sample


def verify(folder: Path, *, quick: bool = False, workers: int = 1) -> Iterator[Problem]:
    """Problems of a shard directory, none if it is whole. Raises ValueError without a readable manifest."""
    body = checks.load_manifest(folder)
    yield from checks.check_files(folder, body)
    yield from checks.check_tables(folder, body)
    if quick:
        return
    for entry in body["files"]:
        yield from checks.check_sha256(folder, entry)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(verify_shard, folder, body, entry) for entry in body["shards"]]):
            yield from future.result()


def verify_shard(folder: Path, body: dict[str, Any], entry: dict[str, Any]) -> list[Problem]:
    """All problems of one shard, cut after SHOWN."""
    problems = [problem for part in (entry, *entry["indexes"]) for problem in checks.check_sha256(folder, part)]
    found = [*checks.check_shard(folder, body, entry)]
    if not found and not problems:
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
