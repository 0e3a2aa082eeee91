"""Which samples to show, and where they lie.

Samples are dealt over the sources in turn, so that a source of a hundred rows is seen beside one of a million, and drawn by
a seeded reservoir over samples.parquet: one pass, no list of all keys. A sample is then found through the row table with one read.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards import table
from shards.reader import ShardReader
from shards.sample import Sample

Place = dict[str, object]
_COLUMNS = ["key", "split", "shard", "packed_row", "source"]


def pick(folder: Path, names: Sequence[str], count: int, seed: int) -> list[Place]:
    """Places of `count` samples (key, split, shard, packed_row, source), dealt over the sources `names` in turn."""
    chance = random.Random(seed)
    kept: dict[str, list[Place]] = {name: [] for name in names}
    seen = dict.fromkeys(names, 0)
    with pq.ParquetFile(folder / "samples.parquet") as file:
        for batch in file.iter_batches(batch_size=65_536, columns=_COLUMNS):
            for index, name in enumerate(batch["source"].to_pylist()):
                seen[name] += 1
                at = len(kept[name]) if len(kept[name]) < count else chance.randrange(seen[name])
                if at < count:
                    place = {column: batch[column][index].as_py() for column in _COLUMNS}
                    kept[name][at:at + 1] = [place]
    turns = [place for turn in range(count) for name in names for place in kept[name][turn:turn + 1]]
    return turns[:count]


def find(folder: Path, keys: Sequence[str]) -> list[Place]:
    """Places of samples by key, in the order asked. ValueError naming the first key that is not there."""
    found: dict[str, Place] = {}
    with pq.ParquetFile(folder / "samples.parquet") as file:
        first = ""
        for batch in file.iter_batches(batch_size=65_536, columns=_COLUMNS):
            first = first or batch["key"][0].as_py()
            part = pa.Table.from_batches([batch])
            for place in part.filter(pc.is_in(part["key"], pa.array(keys, pa.string()))).to_pylist():
                found[place["key"]] = place
    missing = [key for key in keys if key not in found]
    if missing:
        raise ValueError(f"no sample {missing[0]!r} in {folder}; keys look like {first!r}, see the column `key` of samples.parquet")
    return [found[key] for key in keys]


def read(folder: Path, places: Sequence[Place]) -> list[Sample]:
    """The samples at those places. Raises ValueError (DamagedRow) where a file is missing or a shard is not as its table says."""
    samples = []
    readers = {split: ShardReader(folder, split) for split in table.FILES}
    try:
        rows = {split: table.load(folder / table.FILES[split]) for split in {str(place["split"]) for place in places}}
        for place in places:
            split, shard, key = str(place["split"]), int(str(place["shard"])), place["key"]
            mine = rows[split][rows[split]["shard"] == shard]
            row = int(str(place["packed_row"]))
            if row >= len(mine):
                raise ValueError(f"{table.FILES[split]} has no row {row} of shard {shard}; run `pipeline verify {folder}`")
            samples += [sample for sample in readers[split].read(mine[row]) if sample.key == key]
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing; run `pipeline verify {folder}`") from None
    finally:
        for reader in readers.values():
            reader.close()
    return samples
