"""Parses parquet footers in a process of its own: a damaged footer can end the interpreter inside the parquet library.

    python -m pipeline.footer_parse     # answers frames on stdin: a line {"size", "length"}, then `length` bytes

Measured: about one changed byte in 1,000 makes `RowGroupMetaData.column` throw through its binding, which aborts the
process. So `footers.py` keeps a few of these helpers (0.15 s to start, about 1 ms a footer), and one that dies
answers for its file alone. An answer is one line of JSON: {"groups", "columns"} or {"error"}.
"""

import json
import sys
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow._parquet as parquet

Group = tuple[int, int, int, int, int]  # rows, bytes, first byte, images, bytes of text


def parse(size: int, tail: bytes) -> tuple[list[Group], list[str]]:
    """Row groups and top-level column names from a file's last bytes, which hold its footer whole.

    Raises ValueError when the footer contradicts itself, and whatever pyarrow raises.
    """
    length = int.from_bytes(tail[-8:-4], "little")
    reader = parquet.ParquetReader()
    reader.open(pa.BufferReader(tail))
    metadata = reader.metadata
    groups = _groups(metadata, size - 8 - length)
    if metadata.num_rows != sum(group[0] for group in groups) or any(min(group) < 0 for group in groups):
        raise ValueError(f"it says {metadata.num_rows} rows, its row groups {sum(group[0] for group in groups)}")
    return groups, list(dict.fromkeys(metadata.schema.column(i).path.split(".")[0]
                                      for i in range(metadata.num_columns)))


def _leaves(metadata: Any) -> tuple[int | None, list[int]]:
    """Column indices of the image bytes (None: no images) and of every text column."""
    image, texts = None, []
    for index in range(metadata.num_columns):
        column = metadata.schema.column(index)
        root, _, rest = column.path.partition(".")
        if root in ("images", "image"):
            if column.physical_type == "BYTE_ARRAY" and (image is None or rest.endswith("bytes")):
                image = index
        elif column.physical_type == "BYTE_ARRAY" and root != "source":
            texts.append(index)
    return image, texts


def _groups(metadata: Any, data_end: int) -> list[Group]:
    """The row groups. Their bytes are the gaps between first columns, or the columns' sum where a writer shuffled them.

    Two row groups that begin at bytes 4 and 1004 of a file whose footer begins at 2004 have 1,000 bytes each.
    """
    if not metadata.num_row_groups:     # a file whose every row was left out by its writer
        return []
    image, texts = _leaves(metadata)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if any(group.num_columns != metadata.num_columns for group in groups):
        raise ValueError("a row group lacks columns")   # pyarrow would read beyond its own table
    starts = [_first_byte(group.column(0)) if group.num_columns else 4 for group in groups]
    stops = [*starts[1:], data_end]
    ordered = all(start <= stop for start, stop in zip(starts, stops, strict=True))
    out = []
    for group, start, stop in zip(groups, starts, stops, strict=True):
        if not ordered:
            stop = start + sum(group.column(i).total_compressed_size for i in range(group.num_columns))
        images = 0
        if image is not None:
            column = group.column(image)
            statistics = column.statistics
            nulls = statistics.null_count if statistics is not None and statistics.has_null_count else 0
            images = max(0, column.num_values - nulls)
        text = sum(group.column(i).total_uncompressed_size for i in texts)
        out.append((group.num_rows, stop - start, start, images, text))
    return out


def _first_byte(column: Any) -> int:
    start: int = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset:
        start = min(start, column.dictionary_page_offset)
    return start


def serve(inward: BinaryIO, outward: BinaryIO) -> None:
    """Answers frames until the input ends."""
    while line := inward.readline():
        frame = json.loads(line)
        tail = inward.read(frame["length"])
        try:
            groups, columns = parse(frame["size"], tail)
            answer: dict[str, Any] = {"groups": groups, "columns": columns}
        except (pa.ArrowException, OSError, ValueError, OverflowError, IndexError, UnicodeDecodeError) as error:
            answer = {"error": (str(error).splitlines() or [type(error).__name__])[0]}
        outward.write(json.dumps(answer).encode() + b"\n")
        outward.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
