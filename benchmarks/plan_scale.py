"""Plans all 185 FineVision subsets from a loopback hub: 9,491 files, 24.3 M rows in groups of 100. Time, memory, requests.

    python benchmarks/plan_scale.py [--runs 3]
    python benchmarks/plan_scale.py --append       # and appends its section to benchmarks/RESULTS.md

The hub is simulated in a process of its own: files of 0.477 GB that are zeros before a real footer. Each cold run starts
`pipeline plan --json` with an empty footer cache; a warm one follows each. Memory is the peak of the resident sets of
the command and its helpers together, sampled every 50 ms; seconds of CPU are theirs, without the server's. Takes two
to four minutes on two cores.
"""

import argparse
import io
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import urllib3

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.recipe import FINEVISION
from pipeline.subsets import shipped_table
from tests.hub_server import Blob, HubServer, Repo, tail_blob

RESULTS = Path(__file__).with_name("RESULTS.md")
ROWS, FILE_SIZE, GROUP = 24_300_000, 477_000_000, 100


def footer_of(rows: int) -> bytes:
    """The footer of a FineVision file of `rows` rows, with its length and magic."""
    images = pa.array([[{"bytes": b"", "path": "image.png"}]] * rows,
                      pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
    texts = pa.array([[{"user": "What does the chart show?", "assistant": "It shows " + "x" * 60}]] * rows,
                     pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())])))
    columns: dict[str, Any] = {"images": images, "texts": texts, "source": pa.array(["set"] * rows)}
    for axis in ("relevance", "visual_dependency", "image_correspondence", "formatting"):
        columns[f"{axis}_ratings"] = pa.array([[5]] * rows, pa.list_(pa.int64()))
        columns[f"{axis}_min"] = pa.array([5] * rows)
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=GROUP)
    data = out.getvalue()
    return data[-8 - int.from_bytes(data[-8:-4], "little"):]


def make_files() -> dict[str, Blob]:
    """Every file of every subset; rows as the shipped table knows them, the rest of 24.3 M spread over the others."""
    table = shipped_table().values()
    known = sum(subset.rows or 0 for subset in table)
    free_files = sum(subset.files for subset in table if subset.rows is None)
    footers: dict[int, bytes] = {}
    files = {}
    for subset in table:
        per_file = round((subset.rows / subset.files) if subset.rows else (ROWS - known) / free_files)
        if per_file not in footers:
            footers[per_file] = footer_of(per_file)
        for k in range(subset.files):
            name = f"{subset.name}/train-{k:05d}-of-{subset.files:05d}.parquet"
            files[name] = tail_blob(FILE_SIZE, footers[per_file], name)
    return files


def serve(url: Any) -> None:
    with HubServer(repos={FINEVISION: Repo(FINEVISION, make_files())}) as hub:
        url.send(hub.url)
        while url.recv() == "count":
            url.send((len(hub.requests), sum(r.sent for r in hub.requests)))
            hub.clear()


def run(recipe: Path, folder: Path, endpoint: str) -> tuple[float, float, float, dict[str, Any]]:
    """Seconds, seconds of CPU, peak MB, the report."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "HF_ENDPOINT": endpoint, "PIPELINE_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hf")}
    start, peak = time.perf_counter(), 0
    with open(folder / "report.json", "wb") as out:
        process = subprocess.Popen([sys.executable, "-c", "from pipeline.cli import main; main()", "plan", "--recipe",
                                    str(recipe), "--raw", str(folder / "raw"), "--json"], env=env, stdout=out)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            total = 0
            for one in [watched, *watched.children(recursive=True)]:
                try:
                    total += one.memory_info().rss
                except psutil.Error:
                    continue
            peak = max(peak, total)
            time.sleep(0.05)
    assert process.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cpu, peak / 1e6, json.loads((folder / "report.json").read_bytes())


def section(runs: int, load: float, figures: dict[str, list[tuple[float, float, float, int, float]]], what: str) -> str:
    """The text for RESULTS.md: medians of the cold and the warm runs."""
    lines = ["## Planning all of FineVision from a loopback hub, medians", "",
             f"`python benchmarks/plan_scale.py --runs {runs} --append`", "",
             f"{what}; hub, command and its footer helpers share {os.cpu_count()} cores, load {load:.1f} at the start. Python "
             f"{platform.python_version()}, pyarrow {pa.__version__}, urllib3 {urllib3.__version__}.", "",
             "| footers | wall | slowest | CPU of the command | peak memory | requests | sent |", "|---|---|---|---|---|---|---|"]
    for kind, rows in figures.items():
        wall, cpu, peak, requests, sent = (statistics.median(column) for column in zip(*rows, strict=True))
        lines.append(f"| {kind} | {wall:.1f} s | {max(row[0] for row in rows):.1f} s | {cpu:.1f} s | {peak:,.0f} MB | "
                     f"{requests:,.0f} | {sent:,.0f} MB |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--append", action="store_true", help="append the section to benchmarks/RESULTS.md")
    args = parser.parse_args()
    runs, load, what = args.runs, os.getloadavg()[0], ""
    here, there = multiprocessing.get_context("spawn").Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    endpoint = here.recv()
    figures: dict[str, list[tuple[float, float, float, int, float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as name:
        recipe = Path(name) / "all.toml"
        lines = ['name = "all"', 'mode = "base"']
        for subset in shipped_table().values():
            lines += [f'[sources."{subset.name}"]', f'bucket = "{subset.bucket}"']
        recipe.write_text("\n".join(lines))
        for index in range(runs):
            folder = Path(name) / str(index)
            folder.mkdir()
            for kind in ("cold", "warm"):
                seconds, cpu, peak, report = run(recipe, folder, endpoint)
                here.send("count")
                requests, sent = here.recv()
                figures[kind].append((seconds, cpu, peak, requests, sent / 1e6))
                total = report["totals"]
                what = (f"{len(report['sources'])} sets, {total['files']:,} files, {total['rows']:,} rows, "
                        f"{total['blocks']:,} row groups")
                print(f"{kind}: {seconds:.1f} s ({cpu:.1f} s of CPU), {peak:.0f} MB, {requests:,} requests, "
                      f"{sent / 1e6:,.0f} MB sent, {total['files']:,} files, {total['rows']:,} rows, "
                      f"{total['blocks']:,} blocks", flush=True)
    here.send("stop")
    text = section(runs, load, figures, what)
    print(text)
    if args.append:
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write("\n" + text)


if __name__ == "__main__":
    main()
