"""What the chemistry tests share: small plans, and reading a rendered set back."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.chem.depict import Drawing, compose, paint
from pipeline.chem.job import Job
from pipeline.chem.plan import Plan
from pipeline.chem.select import open_sources
from pipeline.chem.strings import Limits
from pipeline.chem.styles import load_style
from pipeline.chem.surface import PixelSource

MOLECULES = [
    "CCO", "c1ccccc1O", "CC(=O)Oc1ccccc1C(=O)O", "C[C@H](N)C(=O)O", "CN1C=NC2=C1C(=O)N(C(=O)N2C)C", "F/C=C/Cl", "CC#N",
    "O=C(O)c1ccncc1", "C1CCCCC1", "CC(C)Cc1ccc(cc1)C(C)C(=O)O", "NCCc1ccc(O)c(O)c1", "[Na+].CC(=O)[O-]", "OCC1OC(O)C(O)C1O",
    "Clc1ccccc1Br", "CS(=O)(=O)N", "C[N+](C)(C)CCO", "c1ccc2ccccc2c1", "CC1(C)SC2C(NC(=O)Cc3ccccc3)C(=O)N2C1C(=O)O",
]


def depict(canonical: str, copy: int, job: Job, source: PixelSource) -> Drawing:
    """One row, from its SMILES to its picture."""
    return paint(compose(canonical, copy, job), job, source)


def write_smiles(path: Path, smiles: list[str]) -> Path:
    """A `.smi` file: SMILES and a name a line."""
    path.write_text("".join(f"{text} mol{index}\n" for index, text in enumerate(smiles)), encoding="utf-8")
    return path


def make_plan(out: Path, files: list[Path], **changes: Any) -> Plan:
    """A quick plan: plain style, 96 pixels, every molecule once; `style`, `size`, `limits` go to its Job."""
    job = Job(
        style=load_style(changes.pop("style", "plain")), size=changes.pop("size", 96), seed=changes.pop("seed", 0),
        target=changes.pop("target", "smiles"), wrap=changes.pop("wrap", ""), limits=changes.pop("limits", Limits()),
    )
    fields: dict[str, Any] = {"n": 0, "rows_per_file": 1000, "shuffle_seed": 0, "name": "chem"} | changes
    return Plan(out=out, sources=tuple(open_sources(files)), job=job, **fields)


def read_set(folder: Path) -> list[dict[str, Any]]:
    """Every row of a set, file after file."""
    return [row for path in sorted(folder.glob("train-*.parquet")) for row in pq.read_table(path).to_pylist()]


def read_rejects(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text("utf-8").splitlines()]


def read_bytes(folder: Path) -> dict[str, bytes]:
    """The files that must be equal between two runs."""
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith("quarantine")
    }
