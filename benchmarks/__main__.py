"""All benchmarks, or one: every section goes to benchmarks/RESULTS.md.

    just bench                  # = python -m benchmarks: all of SUITE, one after the other, about half an hour on two quiet cores
    just bench loaders          # = python -m benchmarks loaders: one, its options after its name

A benchmark that fails does not stop the others; it is named at the end, and the exit code is 1. One that cannot write its section
itself (it has no --append) has what it printed appended.
"""

import subprocess
import sys
import time
from pathlib import Path

from benchmarks import common

# In this order; options keep the whole within half an hour.
SUITE: dict[str, list[str]] = {
    "render_chem": ["--count", "400", "--rounds", "3", "--scale-count", "3000", "--peer-count", "20"],
    "images": [],
    "render_text": [],
    "build": ["--rounds", "2"],
    "writers": ["--rounds", "2"],
    "packing": ["--rounds", "2"],
    "loaders": [],
    "step": [],
    "first_example": ["--rows", "6000"],
    "plan_scale": ["--runs", "1"],
    "build_scale": [],
    "complexity": ["--scale", "0.5"],
}


def run(name: str, words: list[str]) -> int:
    """One benchmark in a process of its own; its exit code."""
    source = (Path(__file__).parent / f"{name}.py").read_text("utf-8")
    command = [sys.executable, "-m", f"benchmarks.{name}", *words]
    if '"--append"' in source or "common.parser(" in source:
        return subprocess.run([*command, "--append"], cwd=common.ROOT, check=False).returncode
    machine = common.machine()
    with subprocess.Popen(command, cwd=common.ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if not process.returncode:
        told = " ".join(["python", *command[1:]])
        common.append_lines(["", f"## {name}", "", f"`{told}`; {machine}.", "", *(f"    {line}".rstrip() for line in lines)])
    return process.returncode


def main() -> int:
    """The command."""
    name, arguments = (sys.argv[1].replace("-", "_"), sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name and not (Path(__file__).parent / f"{name}.py").exists():
        print(f"no benchmark {name!r}; there are: {', '.join(SUITE)}", file=sys.stderr)
        return 2
    chosen = {name: arguments} if name else SUITE
    failed = []
    for number, (one, words) in enumerate(chosen.items(), 1):
        begun = time.perf_counter()
        print(f"== {one} ({number} of {len(chosen)})", file=sys.stderr, flush=True)
        code = run(one, words)
        print(f"== {one}: {f'failed with {code}' if code else 'done'} after {time.perf_counter() - begun:.0f} s",
              file=sys.stderr, flush=True)
        failed += [one] if code else []
    if failed:
        print(f"failed: {', '.join(failed)}; the others' sections are in benchmarks/RESULTS.md", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
