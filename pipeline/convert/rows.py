"""FineVision-format rows and the file that a unit of them becomes.

    images: list<struct<bytes: binary, path: string>>    texts: list<struct<user: string, assistant: string>>    source: string

`source` is where the row is from (a file and its line), so that a sample can be traced. Row groups end at GROUP_ROWS rows or
GROUP_BYTES of images, which is all that is held in memory. What is left out is counted in the file's own metadata, with the first
detail of each reason, and written line by line to a JSONL beside it: a file that is there is whole and knows what it left out.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.conversation import MAX_TEXT, Reject, clean_text

GROUP_ROWS = 100
GROUP_BYTES = 32 << 20
MAX_IMAGE = 64 << 20
"""Bytes of one image file; pictures of the sets have at most some megabytes."""

_FEATURES = {
    "images": {"feature": {"_type": "Image"}, "_type": "List"},
    "texts": {"feature": {"user": {"dtype": "string", "_type": "Value"}, "assistant": {"dtype": "string", "_type": "Value"}},
              "_type": "List"},
    "source": {"dtype": "string", "_type": "Value"},
}  # fmt: skip
SCHEMA = pa.schema(
    {
        "images": pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "texts": pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())])),
        "source": pa.string(),
    },
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)
REJECTS = b"pipeline.rejects"


@dataclass(frozen=True, kw_only=True)
class OutRow:
    """One row to write. images: (file name, bytes); turns: (user, assistant); source: where it is from."""

    turns: tuple[tuple[str, str], ...]
    images: tuple[tuple[str, bytes], ...] = ()
    source: str = ""


class Job(Protocol):
    """An input cut into units. Travels to worker processes, so it holds paths and numbers, no open files."""

    @property
    def units(self) -> int:
        """How many there are."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What the output depends on, as JSON values: converter, options, sizes and times of the input files."""
        ...

    def rows(self, unit: int) -> Iterator[OutRow | Reject]:
        """The rows of a unit in order; a Reject for each record that is left out."""
        ...


def rejects_path(path: Path) -> Path:
    """The JSONL of what the unit of the file `path` left out ({"reason", "detail"} a line); not there when that is nothing."""
    return path.with_name(path.name.replace("train-", "rejects-", 1)).with_suffix(".jsonl")


def write_unit(job: Job, unit: int, path: Path) -> None:
    """Writes one unit's files: temporary names, fsync, rename; the rows last."""
    temporary, lines = (path.with_name(f".{name}.{os.getpid()}.tmp") for name in (path.name, rejects_path(path).name))
    rejects: Counter[str] = Counter()
    examples: dict[str, str] = {}
    try:
        with open(temporary, "wb") as file, open(lines, "w", encoding="utf-8") as left_out:
            with pq.ParquetWriter(
                file, SCHEMA, use_dictionary=False, write_statistics=False, store_schema=True,
                compression={"images.list.element.bytes": "NONE", "images.list.element.path": "ZSTD", "source": "ZSTD",
                             "texts.list.element.user": "ZSTD", "texts.list.element.assistant": "ZSTD"},
            ) as writer:  # fmt: skip
                group: list[OutRow] = []
                size = 0
                for row in job.rows(unit):
                    if isinstance(row, OutRow) and sum(len(text) for turn in row.turns for text in turn) > MAX_TEXT:
                        row = Reject("text-too-long", f"{row.source}: over {MAX_TEXT} characters")
                    if isinstance(row, Reject):
                        rejects[row.reason] += 1
                        examples.setdefault(row.reason, row.detail)
                        left_out.write(json.dumps({"reason": row.reason, "detail": row.detail}) + "\n")
                        continue
                    group.append(row)
                    size += sum(len(data) for _, data in row.images)
                    if len(group) >= GROUP_ROWS or size >= GROUP_BYTES:
                        writer.write_table(_table(group))
                        group, size = [], 0
                if group:
                    writer.write_table(_table(group))
                told = {"rejects": dict(sorted(rejects.items())), "examples": dict(sorted(examples.items()))}
                writer.add_key_value_metadata({REJECTS: json.dumps(told).encode()})
            for written in (file, left_out):
                written.flush()
                os.fsync(written.fileno())
        if rejects:
            os.replace(lines, rejects_path(path))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        lines.unlink(missing_ok=True)


def read_counts(path: Path) -> tuple[int, dict[str, int], dict[str, str]]:
    """Rows of a unit's file, its rejects by reason, and the first detail of each."""
    meta = pq.read_metadata(path)
    told = json.loads((meta.metadata or {}).get(REJECTS, b"{}"))
    return meta.num_rows, told.get("rejects", {}), told.get("examples", {})


def _table(rows: list[OutRow]) -> pa.Table:
    return pa.table(
        {
            "images": [[{"bytes": data, "path": clean_text(name)} for name, data in row.images] for row in rows],
            "texts": [[{"user": clean_text(user), "assistant": clean_text(answer)} for user, answer in row.turns]
                      for row in rows],
            "source": [clean_text(row.source) for row in rows],
        },
        schema=SCHEMA,
    )  # fmt: skip
