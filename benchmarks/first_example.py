"""Time and memory to the first example, and over a shuffled pass: a Task beside the list that a streamed set is often cached in.

    python benchmarks/first_example.py [--rows 18000] [--image-kb 40]
    python benchmarks/first_example.py --append    # and appends its section to benchmarks/RESULTS.md

Makes a set of that many rows (default about 0.7 GB, in a temporary folder), then runs each way in a process of its own, A B A B.
"list" is what the training notes warn of: `datasets` streams the set into a Python list before the first example can be drawn.
Prints medians: seconds to the first example, seconds for 200 examples of a shuffled mixture, peak memory over the import's.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
CHILD = """
import json, random, sys, time
raw, way = sys.argv[1:]
if way == "task":
    from pipeline.tasks import FineVision, TaskMixture
else:
    from datasets import load_dataset
def peak():
    with open("/proc/self/status") as file:     # ru_maxrss would be the parent's peak
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
before, start = peak(), time.perf_counter()
if way == "task":
    data = TaskMixture([FineVision("big", raw=raw)])
    get = data.conversation
else:
    files = raw + "/HuggingFaceM4/FineVision/big/*.parquet"
    data = list(load_dataset("parquet", data_files=files, split="train", streaming=True))
    random.Random(0).shuffle(data)
    get = data.__getitem__
get(0)
first = time.perf_counter() - start
start = time.perf_counter()
for index in range(1, 201):
    get(index)
print(json.dumps({"first": first, "then": time.perf_counter() - start, "memory": peak() - before}))
"""


def make(folder: Path, rows: int, size: int) -> None:
    """Files of 1,000 rows in row groups of 100, of images that cannot be compressed."""
    folder.mkdir(parents=True)
    files = -(-rows // 1000)
    for number in range(files):
        chance = random.Random(number)
        table = pa.Table.from_pylist([{"images": [{"bytes": chance.randbytes(size), "path": None}],
                                       "texts": [{"user": "q", "assistant": str(k)}]} for k in range(1000)])
        pq.write_table(table, folder / f"train-{number:05d}-of-{files:05d}.parquet", row_group_size=100, compression="none",
                       use_dictionary=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=18_000)
    parser.add_argument("--image-kb", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--append", action="store_true", help="append the section to benchmarks/RESULTS.md")
    arguments, load = parser.parse_args(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as raw:
        make(Path(raw) / "HuggingFaceM4/FineVision/big", arguments.rows, arguments.image_kb * 1000)
        found: dict[str, list[dict[str, float]]] = {"task": [], "list": []}
        for _ in range(arguments.rounds):
            for way, runs in found.items():
                done = subprocess.run([sys.executable, "-c", CHILD, raw, way], capture_output=True, text=True, check=True, cwd=ROOT)
                runs.append(json.loads(done.stdout))
    lines = ["## Time to the first example", "", f"`{' '.join(['python benchmarks/first_example.py', *sys.argv[1:]])}`", "",
             f"{arguments.rows:,} rows of {arguments.image_kb} kB, a shuffled `TaskMixture` beside a cached, shuffled list; "
             f"medians of {arguments.rounds}. Python {platform.python_version()}, pyarrow {pa.__version__}, datasets "
             f"{importlib.metadata.version('datasets')}; {os.cpu_count()} cores, load {load:.1f} at the start.", "",
             "| way | first example | the next 200, shuffled | memory beyond the imports |", "|---|---|---|---|"]
    for way, runs in found.items():
        median = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        lines.append(f"| {way} | {median['first']:.2f} s | {median['then']:.2f} s | {median['memory']:,.0f} MB |")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.append:
        with open(ROOT / "benchmarks" / "RESULTS.md", "a", encoding="utf-8") as file:
            file.write("\n" + text)


if __name__ == "__main__":
    main()
