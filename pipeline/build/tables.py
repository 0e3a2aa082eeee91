"""The tables for people: samples.parquet and rejects.parquet, first one part a shard, then merged.

Written with fixed settings, so that the same rows give the same bytes. Merging streams row groups: memory does not grow with
the number of shards.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.build.spool import SampleInfo
from shards.writer import FileEntry, partial_path, publish

SAMPLES = pa.schema([
    ("key", pa.string()), ("split", pa.string()), ("shard", pa.uint32()), ("packed_row", pa.uint32()), ("source", pa.string()),
    ("row", pa.string()), ("tokens", pa.uint32()), ("targets", pa.uint32()), ("answer_tokens", pa.uint32()),
    ("images", pa.uint32()), ("patches", pa.uint32()), ("turns", pa.uint32()), ("modes", pa.list_(pa.string())),
    ("sizes", pa.list_(pa.string())), ("kept_images", pa.uint32()), ("dropped_turns", pa.uint32()), ("cut", pa.string()),
    ("bytes", pa.uint64())])
REJECTS = pa.schema([("source", pa.string()), ("row", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
_GROUP = 50_000
assert tuple(SAMPLES.names[4:]) == SampleInfo._fields


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectLine:
    """One row that was left out, and why."""

    source: str
    row: str
    reason: str
    detail: str


def samples_table(entries: Sequence[tuple[str, str, int, int, SampleInfo]]) -> pa.Table:
    """A table of (key, split, shard, packed row in its shard, info) entries."""
    rows = [(*entry[:4], *entry[4]) for entry in entries]
    columns = list(zip(*rows)) if rows else [()] * len(SAMPLES.names)
    return pa.Table.from_arrays([pa.array(column, field.type) for column, field in zip(columns, SAMPLES)], schema=SAMPLES)


def rejects_table(lines: Sequence[RejectLine]) -> pa.Table:
    """A table of rejects; what UTF-8 cannot hold, or a terminal should not get, is replaced."""
    return pa.table({name: [_plain(getattr(line, name)) for line in lines] for name in REJECTS.names}, schema=REJECTS)


def _plain(text: str) -> str:
    """Printable text: a library's message may quote the bytes that it stumbled over."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def write(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> FileEntry:
    """Write one parquet file from tables of that schema, in row groups of a fixed size whatever the tables' sizes."""
    partial = partial_path(path)
    try:
        return _write(partial, path, tables, schema)
    finally:
        partial.unlink(missing_ok=True)


def _write(partial: Path, path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> FileEntry:
    with pq.ParquetWriter(partial, schema, compression="zstd", store_schema=False) as writer:
        waiting: list[pa.Table] = []
        count = 0
        for part in tables:
            waiting.append(part)
            count += part.num_rows
            while count >= _GROUP:
                whole = pa.concat_tables(waiting).combine_chunks()
                writer.write_table(whole.slice(0, _GROUP), row_group_size=_GROUP)
                waiting, count = [whole.slice(_GROUP)], count - _GROUP
        if count:
            writer.write_table(pa.concat_tables(waiting).combine_chunks(), row_group_size=_GROUP)
    return publish(partial, path)
