"""What the benchmarks share: a lane in a process of its own, turns, what a process tree costs, and the section of RESULTS.md.

A lane is one contender's work, started as `python -m benchmarks.NAME --lane '["name", ...]'` in this environment or in the peers'
(benchmarks.peers); it prints one JSON line. `turns` runs lanes A B A B, so that a busy minute meets all of them alike.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / ".." / "shared" / "data" / "hub"
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
Told = dict[str, Any]


def tree_cpu() -> float:
    """Processor seconds of this process, its living descendants, and all that were waited for."""
    import psutil

    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += sum(process.cpu_times()[:4])  # user, system, children's user, children's system
        except psutil.Error:
            continue
    return total


def tree_memory() -> float:
    """Megabytes that this process and its descendants hold; pages that several share count once."""
    import psutil

    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 1e6


def own_peak(pid: int | None = None) -> float:
    """Most megabytes that were resident in this process, or another (ru_maxrss would count what the parent held when it forked)."""
    line = next(line for line in Path(f"/proc/{pid or 'self'}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3


def lane(module: str, arguments: Sequence[Any], python: str = sys.executable) -> Told:
    """Run a lane; what it told. RuntimeError with the error's last line if it failed."""
    words = [python, "-m", f"benchmarks.{module}", "--lane", json.dumps([str(a) if isinstance(a, Path) else a for a in arguments])]
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as errors:  # not a pipe, which a process left behind would hold open
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=os.environ | quiet,
                              check=False)
        errors.seek(0)
        lines = [line for line in errors.read().splitlines() if line.strip()]
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not found:
        raise RuntimeError((lines or [f"ended with {done.returncode}"])[-1][:300])
    return dict(json.loads(found[-1]))


def started(first: str, *words: str) -> list[str]:
    """What starts a command of the project in this environment, from the project's root."""
    program = (["-c", "from pipeline.cli import main; main()"] if first == "pipeline" else
               [first] if first.endswith(".py") else ["-m", first])
    return [sys.executable, *program, *words]


def call(*command: str, threads: int = 0, log: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of the project: `pipeline ...`, a script (`trainer/train.py ...`) or a module (`benchmarks.NAME ...`).

    threads: of torch in it; 0 leaves them alone. log: a file for its standard error, which else is this process's. Its standard
    output is in what is returned. ValueError if it fails, unless the caller checks the code.
    """
    print("$", shlex.join(command), file=sys.stderr, flush=True)
    env = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    with open(log, "a", encoding="utf-8") if log else nullcontext() as sink:
        done = subprocess.run(started(*command), cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=sink,
                              text=True, check=False)
    if done.returncode and check:
        raise ValueError(f"{command[0]} ended with {done.returncode}" + (f": {log.read_text()[-1500:]}" if log else ""))
    return done


def turns(lanes: Mapping[str, Callable[[], Told]], rounds: int) -> tuple[dict[str, list[Told]], dict[str, str]]:
    """What each lane told in `rounds` turns, and the error of those that failed, which are not run again."""
    told: dict[str, list[Told]] = {name: [] for name in lanes}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for name, run in lanes.items():
            if name in failed:
                continue
            begun = time.perf_counter()
            try:
                told[name].append(run())
            except RuntimeError as error:
                failed[name] = str(error)
            seconds = time.perf_counter() - begun
            print(f"turn {number + 1}/{rounds}: {name}, {seconds:.1f} s {failed.get(name, '')}".rstrip(), file=sys.stderr)
    return {name: runs for name, runs in told.items() if name not in failed}, failed


def median(runs: Sequence[Told], key: str) -> float:
    """The middle value of a figure over the turns."""
    return float(statistics.median(run[key] for run in runs))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown lines."""
    return ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows), ""]


def missing(failed: Mapping[str, str]) -> list[str]:
    """A line for each contender that gave no figure."""
    return [f"Not measured: {name}: `{error}`" for name, error in failed.items()]


def machine() -> str:
    """Processor, cores, memory, load."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (f"{len(os.sched_getaffinity(0))} cores ({model}), {memory:.0f} GiB, Python {platform.python_version()}; "
            f"load {os.getloadavg()[0]:.1f} at the start")


def versions(*names: str) -> str:
    """Names with the versions installed here."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--append", action="store_true", help="append the section to benchmarks/RESULTS.md")
    made.add_argument("--lane", help=argparse.SUPPRESS)
    return made


def append_lines(section: Sequence[str]) -> None:
    """To the end of RESULTS.md."""
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write("\n".join(section).rstrip() + "\n")


def publish(title: str, module: str, lines: Iterator[str], *, with_versions: str, append: bool) -> None:
    """Print a section line by line as it is made; append it whole to RESULTS.md if asked."""
    command = " ".join([f"python -m benchmarks.{module}", *(word for word in sys.argv[1:] if word != "--append")])
    section = []
    for line in ["", f"## {title}", "", f"`{command}`; {machine()}; {with_versions}.", ""]:
        print(line)
        section.append(line)
    for line in lines:
        print(line, flush=True)
        section.append(line)
    if append:
        append_lines(section)


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
