"""Plan and finalize at full size, without the data: 6,000,000 synthetic samples in 2,000 shards.

    python benchmarks/build_scale.py                # 500, 1,000 and 2,000 shards of 3,000 samples
    python benchmarks/build_scale.py --shards 100

Each size runs in a process of its own, so that its peak memory is its own. The tasks' results (tables, rows, validation samples)
are made up beforehand and not timed; the plan starts from footers that are known, as after `download`. Needs about 300 MB of disk
for each thousand shards, and two minutes.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from pipeline import plan as planning
from pipeline.build import tables
from pipeline.build.finalize import finalize
from pipeline.build.spool import SampleInfo, Spool
from pipeline.build.state import BuildState, open_build
from pipeline.footers import FileFooter, FileRef, RowGroup
from pipeline.plan import Plan
from pipeline.recipe import Recipe, SourceSpec
from pipeline.tokens import Tokenizer, prepare
from pipeline.train_tokenizer import train_bpe
from shards import table
from shards.sample import encode, make_key
from shards.writer import FileEntry, ShardEntry, write_file

SAMPLES = 3000  # a shard
SOURCES, GROUP = 185, 100  # as many subsets as FineVision has; rows of a row group
VAL = 6  # validation samples a shard: 0.2 %
PER_ROW = 10  # samples of a packed row
AGAIN = (sys.executable, "-m", "benchmarks.build_scale")


def synthetic_plan(shards: int, tokenizer: Tokenizer) -> Plan:
    """A plan of `shards` * SAMPLES rows from files whose footers are known."""
    groups = shards * SAMPLES / SOURCES / GROUP  # of a source
    files = max(1, round(groups / 40))
    groups_a_file = max(1, round(groups / files))

    def refs(source: SourceSpec, *_: object) -> tuple[str, list[FileRef]]:
        found = []
        for number in range(files):
            path = f"{source.prefix}{number:05d}-of-{files:05d}.parquet"
            groups = tuple(RowGroup(rows=GROUP, bytes=9_000_000, start=9_000_000 * k, images=GROUP, text_bytes=90_000)
                           for k in range(groups_a_file))
            footer = FileFooter(path=path, size=360_000_000, rows=GROUP * groups_a_file, groups=groups, columns=("images", "texts"))
            found.append(FileRef(path=path, size=footer.size, local=Path("/absent"), footer=footer))
        return "0" * 40, found

    planning.source_refs = refs  # type: ignore[assignment]
    recipe = Recipe(name="scale", shard_samples=SAMPLES, shard_mb=1 << 20,
                    sources=tuple(SourceSpec(name=f"set{k:03d}", folder=f"set{k:03d}") for k in range(SOURCES)))
    return planning.make_plan(recipe, raw=Path("raw"), tokenizer=tokenizer)


def make_results(plan: Plan, state: BuildState) -> None:
    """What the tasks leave behind: one template, with each shard's own keys and numbers."""
    infos = [SampleInfo(source=f"set{n % SOURCES:03d}", row=f"set/train-00000-of-00100.parquet#{n * 7919 % 400_000}",
                        tokens=300 + n % 200, targets=100, answer_tokens=60, images=1, patches=4096, turns=1, modes=("base",),
                        sizes=(f"{600 + n % 400}x{400 + n % 300}",), kept_images=1, dropped_turns=0, cut="", bytes=90_000)
             for n in range(SAMPLES)]
    ids, mask = np.arange(300, dtype=np.int32), np.full(300, 2, np.uint8)
    meta = {"source": "set000", "row": "x#1", "cut": "", "messages": [], "images": [], "meta": "{}"}
    members = encode(meta, ids, mask, [("0.png", bytes(2000))])
    rejects = tables.rejects_table([tables.RejectLine(source="set000", row=f"x#{n}", reason="no-answer", detail="made up")
                                    for n in range(15)])
    counts = {source.name: {"rows": 16, "samples": 16, "images": 16, "tokens": 6400, "reject:no-answer": 1}
              for source in plan.recipe.sources}
    for shard in range(len(plan.shards)):
        folder = state.work / "done" / f"{shard:06d}"
        folder.mkdir()
        rows = table.make([(shard, PER_ROW, k * 900_000, 900_000, 4000, PER_ROW, 40_960) for k in range(SAMPLES // PER_ROW)])
        (folder / "rows.npy").write_bytes(table.encode(rows))
        tables.write(folder / "samples.parquet", [tables.samples_table(
            [(make_key("train", shard, n), "train", shard, n // PER_ROW, info) for n, info in enumerate(infos)])], tables.SAMPLES)
        tables.write(folder / "rejects.parquet", [rejects], tables.REJECTS)
        with Spool(folder / "val.bin") as val:
            for info in infos[:VAL]:
                val.add(members, info)
            val.save_index(folder / "val.json")
        entry = ShardEntry(name=table.shard_name("train", shard), bytes=270_000_000, sha256="0" * 64, samples=SAMPLES,
                           rows=len(rows), tokens=SAMPLES * 400, images=SAMPLES, indexes=(
                               FileEntry(name=f"train-{shard:06d}.tar.idx", bytes=24_008, sha256="0" * 64),
                               FileEntry(name=f"train-{shard:06d}.idx", bytes=600_000, sha256="0" * 64)))
        write_file(folder / "result.json", json.dumps({"shard": asdict(entry), "counts": counts, "plan": plan.id}).encode())


def timed(work: Any) -> tuple[Any, float, float]:
    """The result, seconds and processor seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def measure(shards: int, folder: Path) -> dict[str, Any]:
    """Plan, then finalize; the results in between come from another process."""
    tokenizer = prepare(train_bpe(["some text to train on " * 50], vocab_size=300), name="tiny")
    plan, plan_wall, plan_cpu = timed(lambda: synthetic_plan(shards, tokenizer))
    (_, id_wall, _), plan_peak = timed(lambda: plan.id), common.own_peak()
    state = open_build(plan, folder / "out")
    subprocess.run([*AGAIN, "--fill", str(folder), "--shards", str(shards)], check=True, cwd=common.ROOT)
    body, wall, cpu = timed(lambda: finalize(plan, state, tokenizer))
    size = sum(path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file())
    return {"shards": len(plan.shards), "samples": body["splits"]["train"]["samples"], "blocks": sum(map(len, plan.shards)),
            "plan s": round(plan_wall, 2), "plan cpu s": round(plan_cpu, 2), "plan id s": round(id_wall, 2),
            "plan MB": round(plan_peak), "finalize s": round(wall, 2), "finalize cpu s": round(cpu, 2),
            "peak MB": round(common.own_peak()), "tables MB": round(size / 1e6, 1)}


def main() -> None:
    """Measure every size in its own process and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="*", default=[500, 1000, 2000])
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        tokenizer = prepare(train_bpe(["some text to train on " * 50], vocab_size=300), name="tiny")
        plan = synthetic_plan(options.shards[0], tokenizer)
        make_results(plan, BuildState(out=options.fill / "out", work=options.fill / "out.build"))
        return
    if options.one:
        folder = Path(tempfile.mkdtemp(prefix="build-scale-"))
        try:
            print(json.dumps(measure(options.shards[0], folder)))
        finally:
            shutil.rmtree(folder)
        return
    for shards in options.shards:
        told = subprocess.run([*AGAIN, "--one", "--shards", str(shards)], check=True, stdout=subprocess.PIPE, text=True,
                              cwd=common.ROOT)
        result = json.loads(told.stdout.splitlines()[-1])
        print("  ".join(f"{name} {value}" for name, value in result.items()), flush=True)


if __name__ == "__main__":
    main()
