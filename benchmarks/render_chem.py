"""Cost of a rendered molecule, side by side in one run: RDKit's own way, the floor, the presets, peers, two workers.

    python benchmarks/render_chem.py                       # prints a markdown block, about 10 minutes on quiet cores
    python benchmarks/render_chem.py --append              # and appends it to benchmarks/RESULTS.md
    python benchmarks/render_chem.py --no-peers            # without RanDepict and Indigo (see render_chem_peers.py)

One large run with its memory over time: render_chem_scale.py.

Every lane is a process of its own; they take turns task by task (A draws 24 molecules, B the same 24, C ...), and
a task counts with the median of its rounds: so a minute in which the machine is slow is slow for every lane. Processor time is
what is compared; wall time decides only the last table.

    naive     MolToImage(size=(1024, 1024)).save(..., "PNG")
    floor     parse, canonical SMILES, coordinates, draw; no pixels are read, nothing is encoded
    plain ... what a worker does for a row of that preset: parse, canonical SMILES, parse that, draw, encode, target; in tasks
              of as many rows as a worker gets
    Indigo    loadMolecule, layout, renderToBuffer as PNG at the same size, black and white
    RanDepict its random depictions at 299x299 without augmentation, beside `diverse` at 299
"""

import argparse
import io
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from render_chem_peers import PACKAGES, WARM_UP, make_environment, run_peer  # noqa: E402

from pipeline.chem.render import TASK_ROWS  # noqa: E402

SHARED = ROOT / ".." / "shared" / "data" / "smiles"
INPUTS = {"ChEMBL": SHARED / "chembl_15k.csv", "PubChem": SHARED / "pubchem_50k.smi.gz"}
SAMPLE = ROOT / "pipeline" / "data" / "molecules.tsv.gz"
PRESETS = ("plain", "diverse", "patent")
PEER_SIDE = 299  # RanDepict's own default


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


def serve_lane(lane: str, path: Path, count: int, size: int) -> None:
    """A lane's process: for each line of standard input, a task's number, draws that task; prints milliseconds and bytes."""
    from pipeline.heap import keep_heap

    molecules = read_molecules(path, count)
    if lane != "naive":
        keep_heap()  # a setting of a worker, but no part of RDKit: the floor has it too
    draw = {"naive": draw_naive, "floor": draw_floor}.get(lane) or open_worker(lane, size)
    print("ready", flush=True)
    for line in sys.stdin:
        first = int(line) * TASK_ROWS
        start = time.process_time_ns()
        written = draw(molecules[first : first + TASK_ROWS], size)
        print((time.process_time_ns() - start) / 1e6, written, flush=True)


def draw_naive(molecules: list[str], size: int) -> int:
    """RDKit's own way; bytes written."""
    from rdkit import Chem
    from rdkit.Chem import Draw

    total = 0
    for smiles in molecules:
        out = io.BytesIO()
        Draw.MolToImage(Chem.MolFromSmiles(smiles), size=(size, size)).save(out, "PNG")
        total += out.tell()
    return total


def draw_floor(molecules: list[str], size: int) -> int:
    """What no way of drawing with RDKit can leave out; no bytes."""
    from rdkit import Chem
    from rdkit.Chem import rdDepictor
    from rdkit.Chem.Draw import rdMolDraw2D

    for smiles in molecules:
        molecule = Chem.MolFromSmiles(smiles)
        Chem.MolToSmiles(molecule)
        rdDepictor.Compute2DCoords(molecule)
        drawer: Any = rdMolDraw2D.MolDraw2DCairo(size, size)
        drawer.drawOptions().useBWAtomPalette()
        drawer.DrawMolecule(molecule)
        drawer.FinishDrawing()
    return 0


def open_worker(preset: str, size: int) -> Callable[[list[str], int], int]:
    """A worker of render-chem for that preset, as a function like those above."""
    from pipeline.chem.job import Job
    from pipeline.chem.styles import load_style
    from pipeline.chem.surface import open_pixel_source
    from pipeline.chem.worker import run_task

    job, source = Job(style=load_style(preset), size=size), open_pixel_source()

    def draw(molecules: list[str], _: int) -> int:
        lines = [(index, [smiles]) for index, smiles in enumerate(molecules)]
        chosen = run_task("canonicalise", lines, job, source, lambda index: None)
        rows = [(index, [row["smiles"], 0]) for index, (row, _) in enumerate(chosen)]
        return sum(len(image) for _, image in run_task("depict", rows, job, source, lambda index: None))

    return draw


def take_turns(lanes: dict[str, int], path: Path, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds and bytes a molecule of every lane, given how many molecules each draws."""
    processes = {lane: start_lane(lane, path, count, size) for lane, count in lanes.items()}
    seen: dict[str, dict[int, list[tuple[float, float]]]] = {lane: {} for lane in lanes}
    try:
        for number in range(rounds):
            for task in range(-(-max(lanes.values()) // TASK_ROWS)):
                for lane, process in processes.items():
                    if task * TASK_ROWS < lanes[lane]:
                        seen[lane].setdefault(task, []).append(ask(lane, process, task))
            print(f"{path.name}: round {number + 1} of {rounds}", file=sys.stderr)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return {lane: {key: sum(statistics.median(run[place] for run in runs) for runs in tasks.values()) / lanes[lane]
                   for place, key in enumerate(("ms", "bytes"))} for lane, tasks in seen.items()}


def start_lane(lane: str, path: Path, count: int, size: int) -> "subprocess.Popen[str]":
    """A lane's process, when it is ready and has drawn its first task once."""
    words = ["--lane", lane, "--smiles", str(path), "--count", str(count), "--size", str(size)]
    words = [sys.executable, str(Path(__file__).resolve()), *words]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"lane {lane} has not started")
    ask(lane, process, 0)
    return process


def ask(lane: str, process: "subprocess.Popen[str]", task: int) -> tuple[float, float]:
    """Milliseconds and bytes of one task."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(task, file=process.stdin, flush=True)
    answer = process.stdout.readline().split()
    if len(answer) != 2:
        raise RuntimeError(f"lane {lane} ended in task {task}")
    return float(answer[0]), float(answer[1])


def time_run(path: Path, count: int, size: int, workers: int, folder: Path) -> tuple[float, float, float]:
    """A whole render-chem run, plain: (seconds, seconds of processor time, peak MB of a worker)."""
    out = folder / f"{count}-{workers}" / "chem"
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "render-chem", "--smiles", str(path),
               "--n", str(count), "--size", str(size), "--style", "plain", "--workers", str(workers), "--out", str(out)]
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    seconds, after = time.perf_counter() - start, os.times()
    shutil.rmtree(out)
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, cpu, json.loads(done.stdout.splitlines()[-1])["peak_worker_mb"]


def scaling(path: Path, count: int, size: int, rounds: int) -> str:
    """Rows a second with one and with two workers, in turns: of whole runs, and of the rows beyond the first sixth alone."""
    few = count // 6
    seen: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for workers in (1, 2):
                for rows in (few, count):
                    seen.setdefault((workers, rows), []).append(time_run(path, rows, size, workers, Path(folder)))
            print(f"scaling round {number + 1} of {rounds}", file=sys.stderr)
    median = {key: [statistics.median(column) for column in zip(*runs, strict=True)] for key, runs in seen.items()}
    whole = [count / median[workers, count][0] for workers in (1, 2)]
    further = [(count - few) / (median[workers, count][0] - median[workers, few][0]) for workers in (1, 2)]
    cpu = (median[2, count][1] - median[2, few][1]) / (count - few) * 1e3
    return (
        f"Whole `render-chem` runs of {count:,} rows, plain, start and choosing included: {whole[0]:.0f} rows/s with one worker, "
        f"{whole[1]:.0f} with two ({whole[1] / whole[0]:.2f}x). Without the start, from the difference to runs of {few:,} rows: "
        f"{further[0]:.0f} and {further[1]:.0f} rows/s ({further[1] / further[0]:.2f}x), {cpu:.2f} ms of processor time a row, the "
        f"parent's included. Peak worker {max(run[2] for runs in seen.values() for run in runs):.0f} MB.")


def peers(path: Path, args: argparse.Namespace, naive: float, plain: float) -> list[str]:
    """Indigo and RanDepict in turns with render-chem, or why they are not there."""
    try:
        python = make_environment()
        smiles = read_molecules(path, args.peer_count + WARM_UP)
        seen: dict[str, list[dict[str, float]]] = {"Indigo": [], "RanDepict": [], "diverse": []}
        for _ in range(args.rounds):
            seen["Indigo"].append(run_peer("Indigo", python, smiles, args.size))
            seen["RanDepict"].append(run_peer("RanDepict", python, smiles, PEER_SIDE))
            seen["diverse"].append(take_turns({"diverse": args.count}, path, PEER_SIDE, 1)["diverse"])
    except (RuntimeError, subprocess.CalledProcessError) as error:
        return ["", f"RanDepict and Indigo: not measured ({str(error)[-300:]})."]
    indigo, theirs, ours = (statistics.median(run["ms"] for run in runs) for runs in seen.values())
    failed = {lane: seen[lane][0]["failed"] for lane in ("Indigo", "RanDepict")}
    return [
        "", f"| peers, {args.peer_count} molecules | ms a picture drawn | could not draw | render-chem's | times |",
        "| --- | --- | --- | --- | --- |",
        f"| Indigo at {args.size}x{args.size} (naive RDKit {naive:.1f}) | {indigo:.1f} | {failed['Indigo']} | plain {plain:.2f} | "
        f"{indigo / plain:.1f} |",
        f"| RanDepict at {PEER_SIDE}x{PEER_SIDE} | {theirs:.1f} | {failed['RanDepict']} | diverse {ours:.2f} | "
        f"{theirs / ours:.1f} |",
        "", f"Peers: {', '.join(PACKAGES)}, Java as installed."]


def report(args: argparse.Namespace) -> str:
    """The markdown block."""
    inputs = {name: path for name, path in INPUTS.items() if path.exists()} or {"shipped sample": SAMPLE}
    command = " ".join(["python benchmarks/render_chem.py", *sys.argv[1:]])
    versions = ", ".join(f"{name} {version(name)}" for name in ("rdkit", "numpy", "isal", "pillow"))
    lines = [
        "## render-chem", "", f"`{command}`", "",
        f"Python {platform.python_version()}, {versions}; {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f} at the start.", "",
        f"Processor time a molecule at {args.size}x{args.size}: {args.count} molecules in tasks of {TASK_ROWS}, drawn "
        f"by the lanes in turns; each counts with the median of {args.rounds} rounds.", "",
        "| molecules | lane | ms | times faster than naive | times the floor | bytes |", "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, path in inputs.items():
        lanes = take_turns({"naive": max(TASK_ROWS, args.count // 8 // TASK_ROWS * TASK_ROWS), "floor": args.count}
                           | dict.fromkeys(PRESETS, args.count), path, args.size, args.rounds)
        for lane, median in lanes.items():
            lines.append(
                f"| {name} | {lane} | {median['ms']:.2f} | {lanes['naive']['ms'] / median['ms']:.1f} | "
                f"{median['ms'] / lanes['floor']['ms']:.2f} | {median['bytes']:,.0f} |")
        if name == next(iter(inputs)):
            naive, plain = lanes["naive"]["ms"], lanes["plain"]["ms"]
    first = next(iter(inputs.values()))
    if args.peers:
        lines += peers(first, args, naive, plain)
    lines += ["", scaling(first, args.scale_count, args.size, args.rounds)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="molecules a lane and round (an eighth for the naive one)")
    parser.add_argument("--scale-count", type=int, default=6000, help="rows of the runs with one and two workers")
    parser.add_argument("--peer-count", type=int, default=60, help="molecules of a peer's turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="RanDepict and Indigo")
    parser.add_argument("--append", action="store_true", help="append the block to benchmarks/RESULTS.md")
    parser.add_argument("--lane", help=argparse.SUPPRESS)
    parser.add_argument("--smiles", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.lane:
        serve_lane(args.lane, args.smiles, args.count, args.size)
        return
    block = report(args)
    print(block)
    if args.append:
        with open(ROOT / "benchmarks" / "RESULTS.md", "a", encoding="utf-8") as file:
            file.write("\n" + block)


if __name__ == "__main__":
    main()
