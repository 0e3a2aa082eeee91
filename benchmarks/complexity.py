"""How time and memory grow: plan, build, finalize, verify and loader start against samples, shards and workers.

    python -m benchmarks.complexity                  # four sizes each; about four minutes; draws docs/complexity.png
    python -m benchmarks.complexity --scale 0.1 --plot /tmp/small.png

  samples   build (the tasks of real images, one process) and verify (every checksum, count, mask, second reading) on 1,200 to 9,300
            images of ../shared/data/hub; loader start (to the first decoded row at 90 % of an epoch) in tables of up to 4 M rows
  shards    the same 2,325 samples in 4 to 78 shards: build and verify; plan and finalize on 50 to 400 synthetic shards of 3,000
            samples each, so that samples grow with them (benchmarks.build_scale)
  workers   build (wall time) and loader start with 1 to 8: past the number of cores nothing more can be gained
Each size is a process of its own; imports are not counted. The exponent is the slope of log(figure) over log(size), least squares:
1 is proportional, 0 constant.
"""

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import common

SYNTHETIC = (50, 100, 200, 400)  # shards
SAMPLES = (0.5, 1.0, 2.0, 4.0)  # times the image sets
SHARDS = (600, 150, 60, 30)  # samples a shard
ROWS = (62_500, 250_000, 1_000_000, 4_000_000)
WORKERS = (1, 2, 4, 8)


@dataclass(kw_only=True)
class Curve:
    """An operation's figures at growing sizes."""

    operation: str
    against: str
    sizes: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def add(self, size: float, seconds: float, memory: float) -> None:
        """One size."""
        self.sizes.append(size)
        self.seconds.append(seconds)
        self.memory.append(memory)


def exponent(sizes: list[float], values: list[float]) -> float:
    """Slope of the line through the logarithms."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def sized_recipe(folder: Path, tokenizer: str, raw: Path, times: float, samples: int) -> Path:
    """The image sets `times` times (a half: the first half of each)."""
    import pyarrow.parquet as pq

    from benchmarks.build import IMAGE_SETS, SET, recipe_file

    sources = ""
    for name in IMAGE_SETS:
        rows = sum(pq.read_metadata(path).num_rows for path in (raw / SET / name).glob("*.parquet"))
        quota = f"quota = {max(1, round(rows * times))}\n" if times < 1 else ""
        sources += "".join(f'[sources.{name}-{k}]\nfolder = "{name}"\n{quota}' for k in range(max(1, int(times))))
    return recipe_file(folder, tokenizer, sources, samples=samples)


def build_lane(recipe: str, raw: str, out: str) -> common.Told:
    """All tasks in this process, then the directory is completed, which is not timed here."""
    from pipeline.build.finalize import finalize
    from pipeline.build.runner import run_task
    from pipeline.build.state import open_build
    from pipeline.plan import make_plan
    from pipeline.recipe import load_recipe
    from pipeline.tokens import load_tokenizer

    loaded = load_recipe(recipe)
    tokenizer = load_tokenizer(loaded.tokenizer)
    plan = make_plan(loaded, raw=Path(raw), tokenizer=tokenizer)
    state = open_build(plan, Path(out))
    begun = time.process_time()
    samples = 0
    for shard in range(len(plan.shards)):
        samples += run_task(plan, shard, tokenizer, state, lambda source, row, begun=0: None)["shard"]["samples"]
    cpu, memory = time.process_time() - begun, common.own_peak()
    finalize(plan, state, tokenizer)
    return {"seconds": cpu, "memory": memory, "samples": samples, "shards": len(plan.shards)}


def verify_lane(out: str) -> common.Told:
    """What `pipeline verify` does, in this process."""
    from pipeline.verify import verify, verify_shard
    from shards import verify as checks

    folder = Path(out)
    begun = time.process_time()
    body = checks.load_manifest(folder)
    problems = [*verify(folder, quick=True)]
    for entry in body["files"]:
        problems += checks.check_sha256(folder, entry)
    for entry in body["shards"]:
        problems += verify_shard(folder, body, entry)
    assert not problems, problems
    return {"seconds": time.process_time() - begun, "memory": common.own_peak()}


def workers_lane(recipe: str, raw: str, out: str, count: int) -> common.Told:
    """Wall seconds from the first row to the last task; the largest worker's memory."""
    from benchmarks.build import workers

    seconds = workers(Path(recipe), Path(raw), Path(out), count)
    return {"seconds": seconds, "memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3}


def scale_lane(shards: int, folder: str) -> common.Told:
    """Plan and finalize of synthetic shards."""
    from benchmarks.build_scale import measure

    Path(folder).mkdir()
    return measure(shards, Path(folder))


def start_lane(out: str, rows: int, workers: int) -> common.Told:
    """Seconds to the first batch at 90 % of an epoch of `rows` rows (the directory's, over and over); memory of all processes."""
    import numpy as np

    from trainer.data.batch import Rules
    from trainer.data.loader import Loader
    from trainer.data.order import Order
    from trainer.data.store import open_directory

    table = open_directory(out).rows["train"]
    shards, patches = np.resize(table["shard"], rows), np.resize(table["patches"], rows)
    begun = time.perf_counter()
    directory = open_directory(out)
    order = Order([shards], [patches], batch_rows=8, seed=0)
    loader = Loader([directory], rules=Rules.of(directory.manifest, "all"), rows=1, workers=workers)
    batches: Any = loader.batches([[(0, order.batch(int(order.steps(1) * 0.9))[0][1] % len(table))]])
    next(batches)
    seconds, memory = time.perf_counter() - begun, common.tree_memory()
    batches.close()
    loader.close()
    return {"seconds": seconds, "memory": memory}


LANES: dict[str, Callable[..., common.Told]] = {
    "build": build_lane, "verify": verify_lane, "workers": workers_lane, "scale": scale_lane, "start": start_lane}


def curves(options: argparse.Namespace, folder: Path) -> list[Curve]:
    """Everything measured, size by size."""
    from benchmarks.build import trained

    raw, scale = options.raw.resolve(), options.scale
    tokenizer = trained(raw, folder)
    found: dict[tuple[str, str], Curve] = {}

    def add(operation: str, against: str, size: float, seconds: float, memory: float) -> None:
        curve = found.setdefault((operation, against), Curve(operation=operation, against=against))
        curve.add(size, seconds, memory)
        print(f"{operation} against {against}: {size:g}: {seconds:.3f} s, {memory:.0f} MB", file=sys.stderr)

    def both(against: str, times: float, samples: int, key: str) -> Path:
        out = folder / f"{against}-{times}-{samples}"
        recipe = sized_recipe(folder, tokenizer, raw, times, samples)
        told = common.lane("complexity", ["build", recipe, raw, out])
        add("build", against, told[key], told["seconds"], told["memory"])
        seen = common.lane("complexity", ["verify", out])
        add("verify", against, told[key], seen["seconds"], seen["memory"])
        return out

    for times in SAMPLES:
        out = both("samples", times * scale, 600, "samples")
    for rows in ROWS:
        told = common.lane("complexity", ["start", out, max(10, int(rows * scale)), 2])
        add("loader start", "rows", max(10, int(rows * scale)), told["seconds"], told["memory"])
    for workers in WORKERS:
        told = common.lane("complexity", ["start", out, 100_000, workers])
        add("loader start", "workers", workers, told["seconds"], told["memory"])
    for samples in SHARDS:
        both("shards", min(1.0, 10 * scale), max(2, int(samples * min(1.0, 10 * scale))), "shards")
    recipe = sized_recipe(folder, tokenizer, raw, 2 * scale, 75)
    for workers in WORKERS:
        out = folder / f"workers-{workers}"
        told = common.lane("complexity", ["workers", recipe, raw, out, workers])
        add("build", "workers", workers, told["seconds"], told["memory"])
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(out.with_name(out.name + ".build"), ignore_errors=True)
    for shards in SYNTHETIC:
        count = max(2, int(shards * scale))
        told = common.lane("complexity", ["scale", count, folder / f"scale-{shards}"])
        add("plan", "shards", told["shards"], told["plan cpu s"], told["plan MB"])
        add("finalize", "shards", told["shards"], told["finalize cpu s"], told["peak MB"])
        shutil.rmtree(folder / f"scale-{shards}", ignore_errors=True)
    return list(found.values())


def draw(found: list[Curve], path: Path) -> None:
    """Time above, memory below; one column for samples and rows, one for shards, one for workers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import matplotlib.ticker

    colours = {"plan": "#4a4a4a", "build": "#1f4e9c", "finalize": "#2b8a3e", "verify": "#d1571f", "loader start": "#8b3fa0"}
    columns = {"samples, or rows of the table": ("samples", "rows"), "shards": ("shards",), "workers": ("workers",)}
    figure, panels = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    for column, (label, against) in enumerate(columns.items()):
        for row, unit in enumerate(("seconds", "memory")):
            panel = panels[row][column]
            for curve in found:
                if curve.against in against:
                    values = getattr(curve, unit)
                    note = "" if curve.against == "workers" else f"  ~ n^{exponent(curve.sizes, values):.2f}"
                    panel.loglog(curve.sizes, values, "o-", color=colours[curve.operation], label=f"{curve.operation}{note}")
            if row:  # memory hardly grows: from zero it shows
                panel.set_yscale("linear")
                panel.set_ylim(bottom=0)
            panel.set_xlabel(label)
            panel.set_ylabel("seconds" if row == 0 else "MB, most")
            panel.grid(alpha=0.3, which="both")
            panel.legend(fontsize=8)
            if column == 2:
                panel.set_xticks(WORKERS, map(str, WORKERS))
                panel.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    figure.suptitle("Time and memory of plan, build, finalize, verify and loader start")
    figure.savefig(path, dpi=100, metadata={"Software": None})


def report(options: argparse.Namespace) -> Iterator[str]:
    """The table, and the picture."""
    with common.scratch("complexity") as folder:
        found = curves(options, folder)
    yield "Seconds are processor time, but wall time for loader start and for build against workers. MB is the most held at once."
    yield from common.table(
        ["operation", "against", "sizes", "seconds", "exponent", "MB", "exponent"],
        [[curve.operation, curve.against, ", ".join(f"{size:,.0f}" for size in curve.sizes),
          ", ".join(f"{value:.2f}" for value in curve.seconds), f"{exponent(curve.sizes, curve.seconds):.2f}",
          ", ".join(f"{value:,.0f}" for value in curve.memory), f"{exponent(curve.sizes, curve.memory):.2f}"] for curve in found])
    draw(found, options.plot)
    yield f"![the same as curves](../{options.plot})" if not options.plot.is_absolute() else f"Drawn to {options.plot}."


def main() -> None:
    """The command."""
    parser = common.parser(__doc__)
    parser.add_argument("--raw", type=Path, default=common.DATA)
    parser.add_argument("--scale", type=float, default=1.0, help="all sizes times this")
    parser.add_argument("--plot", type=Path, default=Path("docs/complexity.png"))
    options = parser.parse_args()
    if options.lane:
        name, *rest = json.loads(options.lane)
        print(json.dumps(LANES[name](*rest)))
        return
    common.publish("Complexity", "complexity", report(options), append=options.append,
                   with_versions=common.versions("numpy", "pyarrow", "torch", "matplotlib"))


if __name__ == "__main__":
    main()
