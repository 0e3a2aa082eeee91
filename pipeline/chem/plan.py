"""What is to be rendered, and everything that the bytes of the set depend on. No RDKit here."""

import hashlib
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.chem.job import Job
from pipeline.chem.select import Source

FORMAT = "render-chem 2"
PACKAGES = ("rdkit", "numpy", "isal", "pillow", "xxhash", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to render. `n` 0: each molecule once. `part`, `parts`: this machine's slice of an array of them."""

    out: Path
    name: str
    sources: tuple[Source, ...]
    job: Job
    n: int
    rows_per_file: int
    shuffle_seed: int
    part: int = 0
    parts: int = 1

    @property
    def files(self) -> int:
        """How many files the whole set has."""
        rows = self.n or sum(source.lines for source in self.sources)
        return max(1, -(-rows // self.rows_per_file))

    def owns(self, file: int) -> bool:
        return file % self.parts == self.part

    @property
    def work(self) -> Path:
        """What is done so far; see state.py."""
        return self.out / ".work"

    @property
    def suffix(self) -> str:
        """What the names of this slice's own files end with."""
        return self.suffix_of(self.part)

    def suffix_of(self, part: int) -> str:
        """`suffix` of another slice."""
        return "" if self.parts == 1 else f"-{part}-of-{self.parts}"

    def file_name(self, file: int) -> str:
        return f"train-{file:05d}-of-{self.files:05d}.parquet"


def identity_of(plan: Plan) -> dict[str, Any]:
    """Everything that the bytes of a set depend on."""
    sources = []
    for source in plan.sources:
        with open(source.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        columns = source.columns
        sources.append({"name": source.name, "sha256": digest, "lines": source.lines,
                        "columns": [columns.separator, columns.smiles, columns.identifier, columns.header]})
    return {
        "format": FORMAT, "name": plan.name, "sources": sources, "job": plan.job.to_json(), "n": plan.n,
        "rows_per_file": plan.rows_per_file, "shuffle_seed": plan.shuffle_seed,
        "versions": {name: version(name) for name in PACKAGES}, "machine": platform.machine(),
    }
