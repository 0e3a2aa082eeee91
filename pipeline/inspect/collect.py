"""The numbers of a shard directory: counts from the manifest, distributions from samples.parquet and the row tables.

Memory is about 20 bytes a sample (6 million: 120 MB); the tables are streamed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from shards import manifest, table

Counts = npt.NDArray[np.int64]
TOKEN_BINS = tuple(2 ** k for k in range(4, 18))  # upper ends; a sample of up to 16 tokens, 32 ... 131,072
SIDE_BINS = (64, 128, 256, 384, 512, 640, 768, 896, 1024, 1280)  # longest side of a stored picture, upper ends
FILL_BINS = 20
MAX_REJECT_LINES = 200


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """One source: the manifest's counts, and the distribution of its samples.

    tokens: sorted tokens of each sample. token_bins: samples by TOKEN_BINS (one more for above). image_counts[k]: samples of k
    images. sides: pictures by SIDE_BINS of their longest stored side. turns: mean turns of a sample.
    """

    name: str
    counts: dict[str, Any]
    tokens: npt.NDArray[np.uint32]
    token_bins: Counts
    image_counts: Counts
    sides: Counts
    turns: float

    def quantile(self, share: float) -> int:
        """Tokens of the sample at that share of the sorted samples; 0 without samples."""
        return int(self.tokens[min(len(self.tokens) - 1, int(share * len(self.tokens)))]) if len(self.tokens) else 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """A directory: its manifest, its sources, how full its rows are, and the first rejects.

    fill: packed rows by share of `seq_len` in FILL_BINS equal bins. row_samples, row_images, row_patches: per packed row.
    rejects: lines {source, row, reason, detail}, at most MAX_REJECT_LINES, of reject_count.
    """

    folder: Path
    manifest: dict[str, Any]
    sources: tuple[SourceReport, ...]
    fill: Counts
    row_samples: Counts
    row_images: Counts
    row_patches: Counts
    rejects: tuple[dict[str, str], ...]
    reject_count: int

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(int(shard["bytes"]) for shard in self.manifest["shards"])


def collect(folder: Path) -> Report:
    """Read a finished directory. Raises ValueError (shards.manifest.IncompleteError) if it is not one."""
    body = manifest.load(folder)
    rows = [table.load(folder / name) for name in table.FILES.values() if (folder / name).exists()]
    filled = np.concatenate([np.asarray(part["tokens"], np.float64) for part in rows]) / body["seq_len"]
    return Report(folder=folder, manifest=body, sources=_sources(folder, body),
                  fill=np.histogram(np.minimum(filled, 1.0), bins=FILL_BINS, range=(0, 1))[0].astype(np.int64),
                  row_samples=_column(rows, "samples"), row_images=_column(rows, "images"),
                  row_patches=_column(rows, "patches"), **_rejects(folder))


def _column(rows: list[table.Rows], name: str) -> Counts:
    return np.concatenate([np.asarray(part[name], np.int64) for part in rows])


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; run `pipeline verify {path.parent}`") from None


def _sources(folder: Path, body: dict[str, Any]) -> tuple[SourceReport, ...]:
    names = list(body["sources"])
    parts: dict[str, list[npt.NDArray[Any]]] = {column: [] for column in ("source", "tokens", "images", "turns")}
    sides = {name: np.zeros(len(SIDE_BINS) + 1, np.int64) for name in names}
    with _open(folder / "samples.parquet") as file:
        for batch in file.iter_batches(batch_size=65_536, columns=["source", "tokens", "images", "turns", "sizes"]):
            source = batch["source"].to_pylist()
            parts["source"].append(np.array([names.index(name) for name in source], np.uint16))
            for column in ("tokens", "images", "turns"):
                parts[column].append(batch[column].to_numpy().astype(np.uint32))
            for name, sizes in zip(source, batch["sizes"].to_pylist(), strict=True):
                for size in sizes:
                    sides[name][np.searchsorted(SIDE_BINS, max(int(part) for part in size.split("x")))] += 1
    whole = {column: np.concatenate(found) if found else np.zeros(0, np.uint32) for column, found in parts.items()}
    reports = []
    for index, name in enumerate(names):
        mine = whole["source"] == index
        tokens = np.sort(whole["tokens"][mine]).astype(np.uint32)
        turns = whole["turns"][mine]
        reports.append(SourceReport(
            name=name, counts=body["sources"][name], tokens=tokens,
            token_bins=np.bincount(np.searchsorted(TOKEN_BINS, tokens), minlength=len(TOKEN_BINS) + 1).astype(np.int64),
            image_counts=np.bincount(whole["images"][mine].astype(np.int64), minlength=1).astype(np.int64), sides=sides[name],
            turns=float(turns.mean()) if len(turns) else 0.0))
    return tuple(reports)


def _rejects(folder: Path) -> dict[str, Any]:
    lines: list[dict[str, str]] = []
    with _open(folder / "rejects.parquet") as file:
        count = file.metadata.num_rows
        for batch in file.iter_batches(batch_size=MAX_REJECT_LINES):
            lines += batch.to_pylist()
            if len(lines) >= MAX_REJECT_LINES:
                break
    return {"rejects": tuple(lines[:MAX_REJECT_LINES]), "reject_count": count}
