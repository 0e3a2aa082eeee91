"""Cost of a rendered molecule, side by side in one run: RDKit's own way, the floor, render-chem's presets, two workers.

    python benchmarks/render_chem.py                       # prints a markdown block, about 5 minutes on quiet cores
    python benchmarks/render_chem.py --append              # and appends it to benchmarks/RESULTS.md
    python benchmarks/render_chem.py --set raw/rendered/chem --log run.json    # the figures of a finished large run

Every lane is a process of its own; lanes take turns (A B C A B C ...) and the medians of their rounds are compared.
Processor time is what is compared, so that a busy machine changes little; wall time decides only the last table.

    naive     MolToImage(size=(1024, 1024)).save(..., "PNG")
    floor     parse, canonical SMILES, coordinates, draw; no pixels are read, nothing is encoded
    plain ... what a worker does for a row of that preset: parse, canonical SMILES, parse that, draw, encode, target
"""

import argparse
import io
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SHARED = ROOT / ".." / "shared" / "data" / "smiles"
INPUTS = {"ChEMBL": SHARED / "chembl_15k.csv", "PubChem": SHARED / "pubchem_50k.smi.gz"}
SAMPLE = ROOT / "pipeline" / "data" / "molecules.tsv.gz"
PRESETS = ("plain", "diverse", "patent")


def read_molecules(path: Path, count: int) -> list[str]:
    """A seeded choice of SMILES that parse and pass the default limits."""
    from rdkit import rdBase

    from pipeline.chem.columns import find_columns, read_entries
    from pipeline.chem.molecules import canonicalise
    from pipeline.chem.strings import Limits, Unfit

    rdBase.DisableLog("rdApp.*")
    entries = [entry.smiles for entry in read_entries(path, find_columns(path))]
    random.Random(11).shuffle(entries)
    chosen: list[str] = []
    for smiles in entries:
        try:
            canonicalise(smiles, Limits())
        except Unfit:
            continue
        chosen.append(smiles)
        if len(chosen) == count:
            break
    return chosen


def run_lane(lane: str, path: Path, count: int, size: int) -> dict[str, float]:
    """Milliseconds of processor time and bytes a molecule for one lane, in this process."""
    molecules = read_molecules(path, count)
    total = 0
    if lane == "naive":
        from rdkit import Chem
        from rdkit.Chem import Draw

        start = time.process_time()
        for smiles in molecules:
            out = io.BytesIO()
            Draw.MolToImage(Chem.MolFromSmiles(smiles), size=(size, size)).save(out, "PNG")
            total += out.tell()
    elif lane == "floor":
        from rdkit import Chem
        from rdkit.Chem import rdDepictor
        from rdkit.Chem.Draw import rdMolDraw2D

        start = time.process_time()
        for smiles in molecules:
            molecule = Chem.MolFromSmiles(smiles)
            Chem.MolToSmiles(molecule)
            rdDepictor.Compute2DCoords(molecule)
            drawer: Any = rdMolDraw2D.MolDraw2DCairo(size, size)
            drawer.drawOptions().useBWAtomPalette()
            drawer.DrawMolecule(molecule)
            drawer.FinishDrawing()
    else:
        from pipeline.chem.depict import depict
        from pipeline.chem.job import Job
        from pipeline.chem.molecules import canonicalise
        from pipeline.chem.strings import Unfit
        from pipeline.chem.styles import load_style
        from pipeline.chem.surface import open_pixel_source
        from pipeline.chem.worker import _keep_heap

        _keep_heap()
        job, source = Job(style=load_style(lane), size=size), open_pixel_source()
        start = time.process_time()
        for smiles in molecules:
            try:
                total += len(depict(canonicalise(smiles, job.limits)[0], 0, job, source).image)
            except Unfit:
                continue
    return {"ms": (time.process_time() - start) / len(molecules) * 1e3, "bytes": total / len(molecules)}


def lane_process(lane: str, path: Path, count: int, size: int) -> dict[str, float]:
    """run_lane in a fresh process."""
    words = ["--lane", lane, "--smiles", str(path), "--count", str(count), "--size", str(size)]
    words = [sys.executable, str(Path(__file__).resolve()), *words]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"lane {lane}: {done.stderr.strip()[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(path: Path, count: int, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of every lane over `rounds` turns."""
    lanes = {"naive": max(20, count // 8), "floor": count} | dict.fromkeys(PRESETS, count)
    seen: dict[str, list[dict[str, float]]] = {lane: [] for lane in lanes}
    for number in range(rounds):
        for lane, molecules in lanes.items():
            seen[lane].append(lane_process(lane, path, molecules, size))
            print(f"{path.name} round {number + 1}: {lane} {seen[lane][-1]['ms']:.2f} ms", file=sys.stderr)
    return {lane: {key: statistics.median(run[key] for run in runs) for key in ("ms", "bytes")} for lane, runs in seen.items()}


def scaling(path: Path, count: int, size: int, rounds: int) -> dict[str, float]:
    """Rows a second of whole runs with one and with two workers, in turns, starting and choosing included."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    memory = cpu = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for workers in (1, 2):
                out = Path(folder) / f"{number}-{workers}" / "chem"
                command = [sys.executable, "-c", "from pipeline.cli import main; main()", "render-chem", "--smiles", str(path),
                           "--n", str(count), "--size", str(size), "--style", "plain", "--workers", str(workers), "--out", str(out)]
                before, start = os.times(), time.perf_counter()
                done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
                rates[workers].append(count / (time.perf_counter() - start))
                after = os.times()
                cpu = (after.children_user + after.children_system - before.children_user - before.children_system) / count
                memory = max(memory, json.loads(done.stdout.splitlines()[-1])["peak_worker_mb"])
    one, two = (statistics.median(rates[workers]) for workers in (1, 2))
    return {"one": one, "two": two, "ratio": two / one, "peak_worker_mb": memory, "cpu_ms": cpu * 1e3}


def randepict(python: str, path: Path, count: int) -> tuple[float, float]:
    """Milliseconds of processor time a picture at 299x299: (RanDepict, render-chem diverse)."""
    script = (
        "import sys, time, json\nfrom RanDepict import RandomDepictor\n"
        "smiles = json.load(sys.stdin)\n"
        "with RandomDepictor(seed=1) as depictor:\n"
        "    depictor(smiles[0])\n    start = time.process_time()\n"
        "    for text in smiles: depictor(text, shape=(299, 299))\n"
        "    print(json.dumps((time.process_time() - start) / len(smiles) * 1e3))\n"
    )
    molecules = json.dumps(read_molecules(path, count))
    done = subprocess.run([python, "-c", script], input=molecules, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1]), lane_process("diverse", path, max(count, 400), 299)["ms"]


def report(args: argparse.Namespace) -> str:
    """The markdown block."""
    inputs = {name: path for name, path in INPUTS.items() if path.exists()} or {"shipped sample": SAMPLE}
    command = " ".join(["python benchmarks/render_chem.py", *sys.argv[1:]])
    versions = ", ".join(f"{name} {version(name)}" for name in ("rdkit", "numpy", "isal", "pillow"))
    lines = [
        "## render-chem", "", f"`{command}`", "",
        f"Python {platform.python_version()}, {versions}; {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f} at the start.", "",
        f"Processor time a molecule at {args.size}x{args.size}, medians of {args.rounds} turns of {args.count} molecules.", "",
        "| molecules | lane | ms | times faster than naive | times the floor | bytes |", "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, path in inputs.items():
        lanes = compare(path, args.count, args.size, args.rounds)
        for lane, median in lanes.items():
            lines.append(
                f"| {name} | {lane} | {median['ms']:.2f} | {lanes['naive']['ms'] / median['ms']:.1f} | "
                f"{median['ms'] / lanes['floor']['ms']:.2f} | {median['bytes']:,.0f} |")
    first = next(iter(inputs.values()))
    scale = scaling(first, args.scale_count, args.size, args.rounds)
    lines += [
        "", f"Whole `render-chem` runs of {args.scale_count:,} rows, plain, start and choosing included: {scale['one']:.0f} "
        f"rows/s with one worker, {scale['two']:.0f} with two ({scale['ratio']:.2f}x); {scale['cpu_ms']:.2f} ms of processor "
        f"time a row, parent included; peak worker {scale['peak_worker_mb']:.0f} MB.",
    ]
    if args.randepict:
        theirs, ours = randepict(args.randepict, first, args.count // 10)
        lines += ["", f"RanDepict at 299x299: {theirs:.1f} ms a picture; render-chem `diverse` at the same size {ours:.2f} ms "
                      f"({theirs / ours:.1f}x)."]
    return "\n".join(lines) + "\n"


def report_set(folder: Path, log: Path) -> str:
    """The block of a finished large run: its manifest and the JSON line that the command ended with."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    summary = json.loads(log.read_text("utf-8").splitlines()[-1])
    totals = manifest["totals"]
    rate = summary["rows"] / summary["seconds"]
    rejects = ", ".join(f"{reason} {count:,}" for reason, count in manifest["rejects"].items())
    job = manifest["identity"]["job"]
    return "\n".join([
        "### render-chem, one large run", "",
        f"{totals['rows']:,} rows of {totals['molecules']:,} molecules, style `{job['style']['name']}`, size {job['size']}, "
        f"from {totals['lines']:,} lines; {summary['seconds']:,.0f} s, {rate:.0f} rows/s, so {5e6 / rate / 3600:.1f} hours for "
        f"5 M on this machine under this load; peak worker {summary['peak_worker_mb']} MB; {totals['bytes']:,} bytes "
        f"({totals['image_bytes'] / max(1, totals['rows']):,.0f} a picture); "
        f"worker restarts {summary['worker_restarts']}.", "",
        f"Left out: {rejects}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=800, help="molecules a lane and round (an eighth for the naive one)")
    parser.add_argument("--scale-count", type=int, default=6000, help="rows of the runs with one and two workers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--randepict", default="", metavar="PYTHON", help="interpreter of an environment with RanDepict")
    parser.add_argument("--append", action="store_true", help="append the block to benchmarks/RESULTS.md")
    parser.add_argument("--set", type=Path, help="a finished set: report it instead (with --log)")
    parser.add_argument("--log", type=Path, help="file with the JSON line that the run ended with")
    parser.add_argument("--lane", help=argparse.SUPPRESS)
    parser.add_argument("--smiles", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.lane:
        print(json.dumps(run_lane(args.lane, args.smiles, args.count, args.size)))
        return
    block = report_set(args.set, args.log) if args.set else report(args)
    print(block)
    if args.append:
        with open(ROOT / "benchmarks" / "RESULTS.md", "a", encoding="utf-8") as file:
            file.write("\n" + block)


if __name__ == "__main__":
    main()
