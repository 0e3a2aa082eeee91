"""All benchmarks, or one: every section goes to benchmarks/RESULTS.md.

    just bench                  # = python -m benchmarks: all of SUITE, one after the other, about half an hour on two quiet cores
    just bench loaders          # = python -m benchmarks loaders: one, its options after its name

A benchmark that fails does not stop the others; it is named at the end, and the exit code is 1.
"""

import subprocess
import sys
import time

from benchmarks.common import RESULTS, ROOT

# In this order. Each prints its section, and with --append writes it to RESULTS.md.
SUITE: dict[str, list[str]] = {
    "render_chem": [],
    "images": [],
    "render_text": [],
    "build": [],
    "writers": [],
    "packing": [],
    "loaders": [],
    "step": [],
    "first_example": [],
    "plan_scale": [],
    "build_scale": [],
    "complexity": [],
}


def main() -> int:
    """The command."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    name = name.replace("-", "_")
    if name and not (ROOT / "benchmarks" / f"{name}.py").exists():
        print(f"no benchmark {name!r}; there are: {', '.join(SUITE)}", file=sys.stderr)
        return 2
    chosen = {name: [*SUITE.get(name, []), *arguments]} if name else SUITE
    failed = []
    for number, (one, words) in enumerate(chosen.items(), 1):
        begun = time.perf_counter()
        print(f"== {one} ({number} of {len(chosen)})", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{one}", "--append", *words], cwd=ROOT, check=False)
        print(f"== {one}: {'done' if not done.returncode else f'failed with {done.returncode}'} after "
              f"{time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
        failed += [one] if done.returncode else []
    if failed:
        print(f"failed: {', '.join(failed)}; the others' sections are in {RESULTS.relative_to(ROOT)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
