"""The row table: one entry per packed row, all that a trainer needs to find, order and balance its data.

`rows.npy` (train) and `rows-val.npy` are plain numpy files of structured arrays, so that they are opened memory-mapped: a
6-million-sample stage has about 600,000 rows, 24 MB. Entries are ordered by shard, then by offset.
"""

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

ROW_DTYPE = np.dtype([
    ("shard", "<u4"),  # number in the shard's name
    ("samples", "<u4"),
    ("offset", "<u8"),  # of the first member's header, in bytes
    ("length", "<u8"),  # up to the end of the last member's padding
    ("tokens", "<u4"),
    ("images", "<u4"),
    ("patches", "<u8"),  # 16 x 16 pixel patches: the costly part of a row
])
FILES = {"train": "rows.npy", "val": "rows-val.npy"}

Rows = npt.NDArray[Any]


def make(entries: list[tuple[int, int, int, int, int, int, int]]) -> Rows:
    """A table from (shard, samples, offset, length, tokens, images, patches) entries."""
    return np.array(entries, dtype=ROW_DTYPE)


def encode(rows: Rows) -> bytes:
    """The npy file of a table."""
    sink = io.BytesIO()
    np.save(sink, rows, allow_pickle=False)
    return sink.getvalue()


def load(path: Path) -> Rows:
    """Memory-map a row table; ValueError if it is not one (never unpickles)."""
    return _read(path, str(path), "r")


def decode(data: bytes, place: str) -> Rows:
    """The table of an npy file's bytes, as `load`; `place` names it in errors."""
    return _read(io.BytesIO(data), place, None)


def _read(source: Path | io.BytesIO, place: str, mmap_mode: Literal["r"] | None) -> Rows:
    try:
        rows: Rows = np.load(source, mmap_mode=mmap_mode, allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy parses the header as Python: a flipped bit raises from SyntaxError to TokenError
        raise ValueError(f"{place} is not a row table: {error}") from None
    if rows.dtype != ROW_DTYPE or rows.ndim != 1:
        raise ValueError(f"{place} is not a row table of format 1: dtype {rows.dtype}, shape {rows.shape}")
    return rows


def shard_name(split: str, shard: int) -> str:
    """File name of a shard."""
    return f"{split}-{shard:06d}.tar"
