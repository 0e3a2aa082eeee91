"""One large render-chem run, watched from outside: rate, memory of every worker over time, rejects, bytes, hours for 5 M.

    python benchmarks/render_chem_scale.py --append               # 200,000 rows, style diverse at 1024, two workers
    python benchmarks/render_chem_scale.py --rows 2000            # a try

Molecules: `../shared/data/smiles` whole, then as many of the MOSES set (package `molsets`, 52 MB from PyPI) as the rows ask
for. The set (45 kB a row) lands in `runs/render-chem-scale` and is removed at the end, unless --keep. About 15 minutes for
200,000 rows on two quiet cores.
"""

import argparse
import gzip
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
SHARED = [ROOT.parent / "shared" / "data" / "smiles" / name for name in ("chembl_15k.csv", "pubchem_50k.smi.gz")]
MOSES = "molsets==0.3.1"
SPARE = 1.05  # lines for each row: duplicates and rejects take some


def moses_lines(folder: Path) -> Iterator[str]:
    """SMILES of MOSES' training set, from the package's wheel, which is fetched once."""
    if not list(folder.glob("molsets-*.whl")):
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", MOSES, "--dest", str(folder)], check=True)
    with zipfile.ZipFile(next(folder.glob("molsets-*.whl"))) as wheel, wheel.open("moses/dataset/data/train.csv.gz") as packed:
        with gzip.open(packed, "rt") as lines:
            next(lines)
            yield from (line.strip().split(",")[0] for line in lines)


def find_molecules(rows: int, folder: Path) -> list[Path]:
    """Files with enough lines for `rows` rows."""
    from pipeline.chem.lines import count_lines

    files = [path for path in SHARED if path.exists()]
    missing = int(rows * SPARE) - sum(map(count_lines, files))
    if missing > 0:
        more = folder / "moses.smi"
        with open(more, "w", encoding="ascii") as out:
            out.writelines(f"{smiles} moses{number}\n" for number, smiles in zip(range(missing), moses_lines(folder)))
        files.append(more)
    return files


def watch(command: list[str]) -> tuple[dict[str, Any], dict[int, list[float]], float]:
    """Runs render-chem; (its summary, resident MB of each worker every half second, peak MB of the parent)."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    workers: dict[int, list[float]] = {}
    parent = 0.0
    while process.poll() is None:
        time.sleep(0.5)
        try:
            seen = psutil.Process(process.pid)
            parent = max(parent, seen.memory_info().rss / 1e6)
            for child in seen.children():
                workers.setdefault(child.pid, []).append(child.memory_info().rss / 1e6)
        except psutil.Error:
            continue
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"render-chem ended with {process.returncode}; its words are above")
    return json.loads(process.stdout.read().splitlines()[-1]), workers, parent


def flatness(samples: list[float]) -> str:
    """A worker's memory early, late and at most. The first tenth is left out: imports, first fonts."""
    tenth = max(1, len(samples) // 10)
    early, late = statistics.median(samples[tenth : 2 * tenth] or samples), statistics.median(samples[-tenth:])
    return f"{early:.0f} MB in the second tenth of the run, {late:.0f} MB in the last, at most {max(samples):.0f} MB"


def report(args: argparse.Namespace, folder: Path) -> str:
    """Renders and describes it as markdown."""
    load = os.getloadavg()[0]
    files = find_molecules(args.rows, folder)
    words = [word for path in files for word in ("--smiles", str(path))]
    out = folder / "set" / "chem"
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "render-chem", *words, "--n", str(args.rows),
               "--style", args.style, "--size", str(args.size), "--workers", str(args.workers), "--out", str(out)]
    summary, workers, parent = watch(command)
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    totals = manifest["totals"]
    rate = summary["rows"] / summary["seconds"]
    rejects = ", ".join(f"{reason} {count:,}" for reason, count in manifest["rejects"].items()) or "none"
    versions = ", ".join(f"{name} {version(name)}" for name in ("rdkit", "numpy", "isal", "pillow", "pyarrow"))
    command_line = " ".join(["python benchmarks/render_chem_scale.py", *sys.argv[1:]])
    return "\n".join([
        "### render-chem, one large run", "", f"`{command_line}`", "",
        f"Python {platform.python_version()}, {versions}; {platform.machine()}, {os.cpu_count()} cores, load {load:.1f} at the "
        "start.", "",
        f"{totals['rows']:,} rows of {totals['molecules']:,} molecules from {totals['lines']:,} lines "
        f"({', '.join(path.name for path in files)}), style `{args.style}`, size {args.size}, {args.workers} workers.", "",
        "| what | figure |", "| --- | --- |",
        f"| time | {summary['seconds']:,.0f} s, start, choosing and card included |",
        f"| rate | {rate:.0f} rows/s, so {5e6 / rate / 3600:.1f} hours for 5 M |",
        *(f"| worker {number} | {flatness(samples)} |" for number, samples in enumerate(workers.values())),
        f"| parent | at most {parent:.0f} MB |",
        f"| bytes | {totals['bytes']:,} ({totals['image_bytes'] / max(1, totals['rows']):,.0f} a picture); "
        f"{5e6 * totals['bytes'] / max(1, totals['rows']) / 1e9:.0f} GB for 5 M |",
        f"| left out | {rejects} |",
        f"| worker restarts | {summary['worker_restarts']} |",
        ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--style", default="diverse")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--append", action="store_true", help="append the block to benchmarks/RESULTS.md")
    parser.add_argument("--keep", action="store_true", help="leave the set in runs/render-chem-scale")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    folder = ROOT / "runs" / "render-chem-scale"
    shutil.rmtree(folder / "set", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    block = report(args, folder)
    print(block)
    if args.append:
        with open(ROOT / "benchmarks" / "RESULTS.md", "a", encoding="utf-8") as file:
            file.write("\n" + block)
    if not args.keep:
        shutil.rmtree(folder / "set")


if __name__ == "__main__":
    main()
