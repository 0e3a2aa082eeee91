"""Small inputs for the converters, made from the real library of each format."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from pipeline.conversation import Conversation, Reject
from pipeline.sources import KINDS
from pipeline.sources.rows import iter_rows, open_parquet, row_id


def png(colour: str, size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def read_back(out: Path, kind: str) -> list[Conversation]:
    """What the adapter of the kind makes of the converted files."""
    found = []
    for path in sorted(out.glob("train-*.parquet")):
        with open_parquet(path) as file:
            for group in range(file.num_row_groups):
                for index, row in iter_rows(file, group, KINDS[kind]):
                    assert not isinstance(row, Reject)
                    options = KINDS[kind].options()
                    found.append(KINDS[kind].convert(row, source="s", row_id=row_id(path.name, index), options=options))
    return found


def zip_of(path: Path, members: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def tar_of(path: Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") as raw, tarfile.open(fileobj=raw, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def sources(out: Path) -> list[str]:
    return [value for path in sorted(out.glob("train-*.parquet"))
            for value in pq.read_table(path, columns=["source"]).column(0).to_pylist()]  # fmt: skip
