"""A rendered set on disk: FineVision-format parquet files, written row group by row group and renamed when whole."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.writer import sync_folder

GROUP_ROWS, GROUP_BYTES = 256, 64 << 20

_STRUCTS = {"images": {"bytes": pa.binary(), "path": pa.string()}, "texts": {"user": pa.string(), "assistant": pa.string()}}
_COLUMNS = {
    "source": pa.string(), "style": pa.string(), "style_values": pa.string(), "seed": pa.int64(), "copy": pa.int32(),
    "cid": pa.string(), "row": pa.string(), "canonical_smiles": pa.string(), "drawn_smiles": pa.string(),
    "heavy_atoms": pa.int32(), "width": pa.int32(), "height": pa.int32(),
}
_FEATURES = {
    "images": {"feature": {"_type": "Image"}, "_type": "List"},
    "texts": {"feature": {name: {"dtype": "string", "_type": "Value"} for name in ("user", "assistant")}, "_type": "List"},
} | {name: {"dtype": str(kind), "_type": "Value"} for name, kind in _COLUMNS.items()}
SCHEMA = pa.schema(
    [pa.field(name, pa.list_(pa.struct(list(fields.items())))) for name, fields in _STRUCTS.items()]
    + [pa.field(name, kind) for name, kind in _COLUMNS.items()],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)
_PICTURES = "images.list.element.bytes"


def write_parquet(path: Path, rows: Iterable[dict[str, Any]], scratch: Path) -> dict[str, int | str]:
    """Writes the rows (keys as in SCHEMA) to `path` by way of `scratch`; returns rows, bytes, image_bytes, sha256.

    Pictures are stored as they are, the other columns with zstd. Memory: one row group.
    """
    compression = {leaf: "zstd" for leaf in _leaves()} | {_PICTURES: "none"}
    count = image_bytes = 0
    with pq.ParquetWriter(
        scratch, SCHEMA, compression=compression, use_dictionary=[leaf for leaf in _leaves() if leaf != _PICTURES],
        write_statistics=False, store_schema=True,
    ) as writer:
        group: list[dict[str, Any]] = []
        held = 0
        for row in rows:
            size = len(row["images"][0]["bytes"])
            group.append(row)
            held += size
            image_bytes += size
            count += 1
            if len(group) >= GROUP_ROWS or held >= GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA), row_group_size=GROUP_ROWS)
                group, held = [], 0
        if group:  # a row group of no rows is what `load_dataset` fails at
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA), row_group_size=GROUP_ROWS)
    with open(scratch, "rb+") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = scratch.stat().st_size
    os.replace(scratch, path)
    sync_folder(path.parent)
    return {"rows": count, "bytes": size, "image_bytes": image_bytes, "sha256": digest}


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    write_lines(path, [text])


def write_lines(path: Path, pieces: Iterable[str]) -> None:
    """Writes pieces of text one after the other; the file appears under its name when it is complete."""
    scratch = path.with_name(f".{path.name}.part")
    with open(scratch, "w", encoding="utf-8") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)
    sync_folder(path.parent)


def _leaves() -> list[str]:
    nested = [f"{name}.list.element.{field}" for name, fields in _STRUCTS.items() for field in fields]
    return nested + list(_COLUMNS)
