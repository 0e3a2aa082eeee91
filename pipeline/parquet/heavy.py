"""Which leaf of a row group is too heavy for pyarrow, and its values put into the rows that pyarrow reads of the other leaves.

pyarrow decompresses a page as a whole, and the usual writers put all pictures of a row group into one page, or one dictionary: both
forms of it are in memory at once, 2.5 GB for 100 pictures of 12.6 MB. Such a page, if it belongs to a column of binary,
struct<bytes, ...>, or lists of one of these, is read in pieces instead.

Where there are other fields in the struct, its nulls and the lengths of lists come with them from pyarrow; else from the levels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.conversation import Reject
from pipeline.parquet.leaf import Chunk, Leaf
from pipeline.parquet.pages import DICTIONARY, MAX_ENTRIES, read_page
from pipeline.parquet.thrift import Unsupported

HEAVY = 128 << 20
"""Bytes of a page, stored and decompressed, from which on it is not left to pyarrow."""


@dataclass(frozen=True, kw_only=True)
class Heavy:
    """A heavy leaf: of the column `name`, in its struct's field `key` if there is one. others: leaves that pyarrow reads.

    empty, present: the definition levels of an empty list, and of a struct from which on it is there.
    """

    chunk: Chunk
    name: str
    key: str | None
    empty: int
    present: int
    others: Sequence[str]

    def filled(self, handle: Any, rows: Iterator[dict[str, Any] | Reject], count: int, *, start: int,
               most: int) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
        """(index, row with the leaf's values) from `start` on, of the `count` rows that pyarrow reads of the other leaves.

        most: bytes of a row. Raises Unsupported as soon as anything is unusual.
        """
        leaf = Leaf(handle, self.chunk, most)
        for index, row in zip(range(count), rows):
            entries = leaf.row()
            if not isinstance(row, Reject):
                row[self.name] = self._value(row.get(self.name), entries)
            if index >= start:
                yield index, row

    def _value(self, held: Any, entries: list[tuple[int, bytes | None]]) -> Any:
        """The column's value; held: what pyarrow has of it."""
        if not self.chunk.reps:
            return self._slot(held, entries[0])
        if (least := min(level for level, _ in entries)) <= self.empty:
            value: list[bytes] | None = [] if least == self.empty else None
            if len(entries) > 1 or (self.key is not None and held != value):
                raise Unsupported("lists of different lengths in one column")
            return value
        if self.key is None:
            return [value for _, value in entries]
        if len(held or ()) != len(entries):
            raise Unsupported("lists of different lengths in one column")
        return [self._slot(*pair) for pair in zip(held, entries)]

    def _slot(self, held: Mapping[str, Any] | None, entry: tuple[int, bytes | None]) -> Any:
        level, value = entry
        if self.key is None:
            return value
        if (held is None) != (level < self.present):
            raise Unsupported("nulls of different places in one column")
        return None if held is None else {**held, self.key: value}


def find_heavy(file: pq.ParquetFile, group: int, columns: Sequence[str], handle: Any) -> Heavy | None:
    """The leaf of the columns that is to be read by `Heavy.filled`, if there is one that can be."""
    meta = file.metadata.row_group(group)
    paths = {number: file.schema.column(number).path for number in range(meta.num_columns)}
    paths = {number: path for number, path in paths.items() if path.split(".")[0] in columns}
    sizes = {number: meta.column(number).total_compressed_size + meta.column(number).total_uncompressed_size for number in paths}
    for number in sorted(paths, key=sizes.__getitem__, reverse=True):
        if sizes[number] <= HEAVY:
            break
        try:
            if (found := _heavy(file, meta.column(number), file.schema.column(number), list(paths.values()), handle)) is not None:
                return found
        except Unsupported:
            continue
    return None


def _heavy(file: pq.ParquetFile, column: Any, leaf: Any, paths: list[str], handle: Any) -> Heavy | None:
    name, *inner = leaf.path.split(".")
    if file.schema_arrow.get_field_index(name) < 0:  # two of that name
        return None
    field = file.schema_arrow.field(name)
    kind, defs, reps, key = field.type, int(field.nullable), 0, None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        defs, reps, kind = defs + 1 + kind.value_field.nullable, 1, kind.value_type
    present = defs
    if pa.types.is_struct(kind):
        key = inner[-1] if inner else ""
        if kind.get_field_index(key) < 0:
            return None
        defs, kind = defs + kind.field(key).nullable, kind.field(key).type
    others = [path for path in paths if path != leaf.path]
    beside = any(path.split(".")[0] == name for path in others)
    if (not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)) or column.file_path
            or (defs, reps) != (leaf.max_definition_level, leaf.max_repetition_level)
            or len(inner) != 2 * reps + (key is not None) or len(others) != len(paths) - 1 or not others
            or beside != (key is not None)):
        return None
    start = int(column.data_page_offset)
    if column.has_dictionary_page and column.dictionary_page_offset:
        start = min(start, int(column.dictionary_page_offset))
    stop, size = start + int(column.total_compressed_size), int(column.total_uncompressed_size)
    if not 0 <= start < stop:
        return None
    first = read_page(handle, start, stop, size)
    pages = [first, read_page(handle, first.stop, stop, size)] if first.kind == DICTIONARY and first.stop < stop else [first]
    if max(page.packed + page.size for page in pages) <= HEAVY or not 0 <= column.num_values <= MAX_ENTRIES:
        return None
    chunk = Chunk(start, stop, size, column.compression, int(column.num_values), reps, defs)
    return Heavy(chunk=chunk, name=name, key=key, empty=int(field.nullable), present=present, others=others)
