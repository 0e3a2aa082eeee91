"""Which molecules are drawn, and in which file: dedup and shuffle in bounded memory, on any number of machines.

    lines -> a band of lines by seeded hash -> canonical SMILES (workers) -> bucket by seeded hash -> unique per bucket

A bucket is one output file: canonical SMILES are hashed to 64 bits, and file k of M takes the k-th M-th of that range,
in the hash's order, which is also the shuffle. So equal molecules always meet in one bucket, a bucket is small enough
for a dict, and a slice of an array of machines keeps only the buckets it owns. Every slice reads the lines and counts
the buckets of the others too, so that all of them agree on how many rows each file gets.

Only as many lines are parsed as are needed: lines are taken in bands of their own seeded hash, the first a little
larger than `n` asks, the next only if duplicates and rejects ate too many. 120 M lines are read in minutes; 5 M of them
are parsed (.25 ms each), not all.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from pipeline.chem.columns import Columns, find_columns, pick
from pipeline.chem.lines import count_lines, open_lines
from pipeline.chem.pool import Pool
from pipeline.chem.strings import Limits

SPAN = 1 << 64
ROWS_AHEAD = 1.06  # the first band's surplus over n, for duplicates and rejects
_TASK_ROWS, _TASK_BYTES = 128, 24_000
_FLUSH_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input file with how to read it. `name` is what rejects call it (no folder: it lands in the set)."""

    path: Path
    name: str
    columns: Columns
    lines: int


@dataclass(frozen=True, kw_only=True)
class Molecule:
    """One chosen molecule: where it came from, what the file calls it, its canonical SMILES and heavy atoms."""

    origin: str
    cid: str
    smiles: str
    atoms: int


@dataclass(frozen=True, kw_only=True)
class Reject:
    """One line left out, with its reason."""

    origin: str
    smiles: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Share:
    """What the selection agreed on: unique molecules and rows of every file."""

    unique: tuple[int, ...]
    rows: tuple[int, ...]
    lines: int
    parsed: int
    bands: int


@dataclass(kw_only=True)
class Spool:
    """Bucket files of JSON lines in a scratch folder, appended to in bursts."""

    folder: Path
    files: int
    owned: Callable[[int], bool]
    _held: dict[int, list[str]] = field(default_factory=dict)
    _count: int = 0

    def add(self, bucket: int, fields: list[Any]) -> None:
        # a bucket of another slice is only counted: its hash suffices, in a file of its own kind
        kept = fields if self.owned(bucket) else fields[:1]
        self._held.setdefault(bucket, []).append(json.dumps(kept, separators=(",", ":")))
        self._count += 1
        if self._count >= _FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        for bucket, lines in self._held.items():
            with open(self.path(bucket), "a", encoding="ascii") as file:
                file.write("\n".join(lines) + "\n")
        self._held.clear()
        self._count = 0

    def path(self, bucket: int) -> Path:
        return self.folder / f"bucket-{bucket:06d}.jsonl"

    def read(self, bucket: int) -> Iterator[list[Any]]:
        if self.path(bucket).exists():
            with open(self.path(bucket), encoding="ascii") as file:
                for line in file:
                    yield json.loads(line)


def open_sources(paths: list[Path], smiles_column: str = "", id_column: str = "") -> list[Source]:
    """Finds every file's columns and counts its lines. Raises ValueError naming the file."""
    sources = []
    for path in paths:
        columns = find_columns(path, smiles_column, id_column)
        sources.append(Source(path=path, name=readable(path.name), columns=columns, lines=count_lines(path)))
    return sources


def readable(name: str) -> str:
    """A file's name as text; bytes that are no UTF-8 are marked."""
    return os.fsencode(name).decode("utf-8", "replace")


def bucket_of(rank: int, files: int) -> int:
    """The file of a 64-bit rank."""
    return rank * files // SPAN


def rank_of(smiles: str, seed: int) -> int:
    """A molecule's place in the shuffled order: 64 bits."""
    return xxhash.xxh3_64_intdigest(smiles.encode(), seed=seed & (SPAN - 1))


def select(
    sources: list[Source], pool: Pool, spool: Spool, *, n: int, files: int, seed: int, limits: Limits,
    on_reject: Callable[[int, Reject], None], on_progress: Callable[[int], None],
) -> Share:
    """Fills the spool's buckets and says how many rows each file gets. `n` 0: every molecule once."""
    lines = sum(source.lines for source in sources)
    low, parsed, bands = 0, 0, 0
    wanted = int(n * ROWS_AHEAD) + 64 if n else lines
    while True:
        high = min(SPAN, low + wanted * SPAN // max(1, lines))
        bands += 1
        for arguments, rows in pool.run("canonicalise", _tasks(sources, seed, low, high, limits), sent=1):
            for (smiles, origin, cid, ordinal), (row, _) in zip(arguments, rows, strict=True):
                parsed += 1
                if "reason" in row:
                    on_reject(ordinal, Reject(origin=origin, smiles=smiles, reason=row["reason"], detail=row["detail"]))
                    continue
                rank = rank_of(row["smiles"], seed)
                spool.add(bucket_of(rank, files), [rank, ordinal, origin, cid, row["smiles"], row["atoms"]])
            on_progress(len(rows))
        spool.flush()
        unique = tuple(len({fields[0] for fields in spool.read(bucket)}) for bucket in range(files))
        if high == SPAN or sum(unique) >= n > 0:
            break
        low = high
        # what is still missing, at the rate that this input has given so far
        wanted = max(64, int((n - sum(unique)) * max(1.0, parsed / max(1, sum(unique))) * ROWS_AHEAD))
    return Share(unique=unique, rows=share_rows(unique, n), lines=lines, parsed=parsed, bands=bands)


def share_rows(unique: tuple[int, ...], n: int) -> tuple[int, ...]:
    """Rows of each file: in proportion to its molecules, adding up to n exactly (0: one row a molecule).

    >>> share_rows((3, 5), 4)
    (1, 3)
    """
    total = sum(unique)
    if not n or not total:
        return unique
    ends = [n * sum(unique[: index + 1]) // total for index in range(len(unique))]
    return tuple(end - start for start, end in zip([0, *ends], ends, strict=False))


def read_bucket(spool: Spool, bucket: int, on_duplicate: Callable[[Reject], None]) -> list[Molecule]:
    """A bucket's unique molecules in shuffled order; of equal ones the first line of the input stays."""
    best: dict[str, list[Any]] = {}
    for fields in spool.read(bucket):
        smiles = fields[4]
        held = best.get(smiles)
        if held is None:
            best[smiles] = fields
            continue
        first, later = (held, fields) if held[1] <= fields[1] else (fields, held)
        best[smiles] = first
        on_duplicate(Reject(origin=later[2], smiles=smiles, reason="duplicate", detail=f"the same molecule as {first[2]}"))
    ordered = sorted(best.values(), key=lambda fields: (fields[0], fields[4]))
    return [Molecule(origin=origin, cid=cid, smiles=smiles, atoms=atoms) for _, _, origin, cid, smiles, atoms in ordered]


def _tasks(
    sources: list[Source], seed: int, low: int, high: int, limits: Limits
) -> Iterator[list[list[Any]]]:
    """Lines whose hash lies in [low, high), as argument lists [smiles, origin, cid, ordinal] for the workers."""
    task: list[list[Any]] = []
    size = ordinal = 0
    for source in sources:
        header = source.columns.header
        for number, raw in enumerate(open_lines(source.path), start=1):
            ordinal += 1
            if number == 1 and header:
                continue
            if not low <= xxhash.xxh3_64_intdigest(raw, seed=(seed + 1) & (SPAN - 1)) < high:
                continue
            smiles, cid = pick(raw, source.columns)
            # a longer string is rejected by the worker for its length alone, so its rest need not travel
            smiles, origin = smiles[: limits.max_length + 1], f"{source.name}:{number}"
            task.append([smiles, origin, cid, ordinal])
            size += len(smiles)
            if len(task) >= _TASK_ROWS or size >= _TASK_BYTES:
                yield task
                task, size = [], 0
    if task:
        yield task


def remove(folder: Path) -> None:
    """Deletes a scratch folder of plain files."""
    if folder.exists():
        for name in os.listdir(folder):
            (folder / name).unlink()
        folder.rmdir()
