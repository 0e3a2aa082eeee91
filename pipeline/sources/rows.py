"""Reads the rows of one parquet row group, in batches of bounded size, whatever the file holds.

    with open_parquet(path) as file:
        for index, row in iter_rows(file, group, kind):
            if isinstance(row, Reject): ...          # counted, with its reason
            else: kind.convert(row, source=..., row_id=row_id(path, first + index), options=...)

Only the kind's columns are read. A batch holds at most BATCH_BYTES of decoded columns going by the footer's sizes (and at
least one row), so a row group of any size costs one batch and the compressed bytes of its columns. A row that cannot be
read is a Reject for that row alone; a page that cannot be decoded costs the rest of its row group, one Reject a row, so that
every row of the footer is accounted for. Errors of the disk or the network are raised, not counted: the same plan must not
give different shards.

Cost: what pyarrow takes to decode, plus the copy of the batch into Python objects.
"""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.conversation import Reject
from pipeline.parquet.heavy import find_heavy
from pipeline.parquet.thrift import Unsupported
from pipeline.sources.kind import Kind

BATCH_BYTES = 32 << 20
BATCH_ROWS = 1024
MAX_GROUP_ROWS = 50_000_000
MAX_ROW_BYTES = 512 << 20
"""A row group whose rows are larger than this on average is not read: one row would be a worker's memory."""

Item = dict[str, Any] | Reject


def open_parquet(file: Path | IO[bytes] | io.RawIOBase) -> pq.ParquetFile:
    """Opens a local path or a seekable binary file. Raises Reject("unreadable-file") when it is no whole parquet file."""
    try:
        # Column chunks are read page by page, not whole: what a worker holds does not grow with the row group.
        opened = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20, arrow_extensions_enabled=False)
        meta = opened.metadata
        counts = [meta.row_group(group).num_rows for group in range(opened.num_row_groups)]
    except Exception as error:
        if not is_damage(error):
            raise
        raise Reject("unreadable-file", _words(error)) from error
    if any(not 0 <= count <= MAX_GROUP_ROWS for count in counts) or sum(counts) != meta.num_rows:
        raise Reject("unreadable-file", "the footer's row counts contradict each other")
    return opened


def iter_rows(
    file: pq.ParquetFile, group: int, kind: Kind, *, start: int = 0, handle: IO[bytes] | None = None
) -> Iterator[tuple[int, Item]]:  # fmt: skip
    """(index inside the row group, the row or why it cannot be read), for every row from `start` on, in order.

    handle: the file that `file` reads.
    """
    rows = file.metadata.row_group(group).num_rows
    index, problem, size = 0, Reject("unreadable-row-group", f"row group {group} ends early"), 0
    try:
        columns = _columns(file, kind)
        size = _bytes(file, group, columns)
        if (mean := size // max(rows, 1)) > MAX_ROW_BYTES:
            raise Reject("row-too-large", f"rows of {mean >> 20} MB on average; the limit is {MAX_ROW_BYTES >> 20} MB")
        at_once = batch_rows(size, rows, _dictionaries(file, group, columns))
        if handle is not None:
            for place, item in _heavy_rows(file, group, columns, at_once, start, handle):
                yield place, item
                start = place + 1
        if start >= rows:
            return
        for batch in file.iter_batches(at_once, row_groups=[group], columns=columns, use_threads=False):
            if index + batch.num_rows > start:
                for row, item in enumerate(_values(batch)):
                    if start <= index + row < rows:
                        yield index + row, item
            index += batch.num_rows
    except Reject as reject:
        problem = reject
    except Exception as error:
        if not is_damage(error) and not _absurd(error, size):
            raise
        problem = Reject("unreadable-row-group", f"row group {group}: {_words(error)}")
    yield from ((lost, problem) for lost in range(max(index, start), rows))


def _heavy_rows(
    file: pq.ParquetFile, group: int, columns: list[str], at_once: int, start: int, handle: IO[bytes]
) -> Iterator[tuple[int, Item]]:  # fmt: skip
    """Rows of a group with a page too large for pyarrow, up to what pyarrow is to decide; none of other groups."""
    try:
        if (heavy := find_heavy(file, group, columns, handle)) is not None:
            batches = file.iter_batches(at_once, row_groups=[group], columns=heavy.others, use_threads=False)
            rows = (row for batch in batches for row in _values(batch))
            yield from heavy.filled(handle, rows, file.metadata.row_group(group).num_rows, start=start, most=MAX_ROW_BYTES)
    except Exception as error:
        if not isinstance(error, Unsupported) and not is_damage(error):
            raise


def _columns(file: pq.ParquetFile, kind: Kind) -> list[str]:
    """The kind's columns that the file has. Raises Reject("missing-column") when one that is needed is not among them."""
    names = file.schema_arrow.names
    columns = [name for name in kind.columns if name in names]
    if missing := [name for name in kind.required if name not in names] or ([] if columns else list(kind.columns)):
        raise Reject("missing-column", f"no column {', '.join(missing)}; there are {_some(names)}")
    return columns


def row_id(path: str, index: int) -> str:
    """The id of a row in tables and messages: its file on the hub (or below --raw) and its place in the file."""
    return f"{path}#{index}"


def batch_rows(size: int, rows: int, dictionaries: int = 0) -> int:
    """How many rows to decode at once: BATCH_BYTES by the mean row of a group of that size, from 1 to BATCH_ROWS.

    A dictionary is stored once and any row may hold the largest of its values (one picture in 500 rows made 42 kB of a file
    and 1.4 GB of memory), so a row counts for at least the dictionaries of its columns.
    """
    return max(1, min(BATCH_ROWS, BATCH_BYTES * max(rows, 1) // max(size, 1), BATCH_BYTES // max(dictionaries, 1)))


def _dictionaries(file: pq.ParquetFile, group: int, columns: list[str]) -> int:
    """Decoded bytes of the columns' dictionary pages, by their share of the compressed bytes."""
    meta, total = file.metadata.row_group(group), 0
    for chunk in (meta.column(number) for number in range(meta.num_columns)):
        if chunk.path_in_schema.split(".")[0] in columns and chunk.has_dictionary_page:
            packed, decoded = max(int(chunk.total_compressed_size), 1), int(chunk.total_uncompressed_size)
            held = int(chunk.data_page_offset) - int(chunk.dictionary_page_offset)
            total += held * decoded // packed if 0 < held < packed else decoded
    return total


def _bytes(file: pq.ParquetFile, group: int, columns: list[str]) -> int:
    """Decoded bytes of the columns of a row group, as the footer has them."""
    meta = file.metadata.row_group(group)
    chunks = [meta.column(number) for number in range(meta.num_columns)]
    return sum(max(int(chunk.total_uncompressed_size), int(chunk.total_compressed_size)) for chunk in chunks
               if chunk.path_in_schema.split(".")[0] in columns)  # fmt: skip


def _absurd(error: BaseException, size: int) -> bool:
    """Whether memory ran out because a damaged page asks for more than its whole row group holds."""
    asked = re.search(r"of size (\d+)", str(error))
    return isinstance(error, pa.ArrowMemoryError) and asked is not None and int(asked.group(1)) > size + (64 << 20)


def is_damage(error: BaseException) -> bool:
    """Whether the error says that the file's bytes are wrong, and not that they could not be had.

    pyarrow raises its own errors, or a bare OSError without errno, for what it cannot decode. An error of the disk has an
    errno; one of the network (also raised by pyarrow, from the file object it reads) has a type of its own.
    """
    if isinstance(error, MemoryError | pa.ArrowCancelled):
        return False
    return isinstance(error, pa.ArrowException | UnicodeDecodeError) or (type(error) is OSError and error.errno is None)


def _values(batch: pa.RecordBatch) -> list[Item]:
    """The batch's rows as Python values; one by one when some text is not UTF-8, so that only its row is lost."""
    try:
        return list(batch.to_pylist())
    except (UnicodeDecodeError, pa.ArrowException, ValueError):
        out: list[Item] = []
        for row in range(batch.num_rows):
            try:
                out.append(batch.slice(row, 1).to_pylist()[0])
            except (UnicodeDecodeError, pa.ArrowException, ValueError) as error:
                out.append(Reject("undecodable", f"a value cannot be read: {_words(error)}"))
        return out


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _some(names: Sequence[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:12]) + (" ..." if len(listed) > 12 else "")
