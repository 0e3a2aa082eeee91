"""Rows to device-ready batches: this trainer's loader beside webdataset, Energon, litdata, DALI and Hugging Face datasets.

    python -m benchmarks.loaders                           # shards of ../shared/data/hub and of made pages; some ten minutes
    python -m benchmarks.loaders --shards shards/stage1    # any built shards of mode base instead
    python -m benchmarks.loaders --rounds 1 --epochs 1 --pages 100

Every contender reads the same directory (litdata a copy in its own format), each in a process of its own, in turns:
  raw       one process, nothing decoded: processor time a sample
  decoded   two workers (DALI: threads), to uint8 canvases of 1024: images a second, processor time an image; seconds to the first
            batch; memory of all processes after one pass and after five, shared pages counted once
  resumed   seconds from nothing to the first batch after 90 % of a pass; ours also in a table of a million rows
webdataset and Energon decode with Pillow, as their own decoders do, and pad with its ImageOps; the others too except DALI, which
has its own. "+ our decoder" is the same with this trainer's decoding and padding, which leaves the loaders' own difference. Imports
are not counted.
"""

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import common, peers

PAGES = "HuggingFaceM4/FineVision/pages"
RAW_SECONDS = 1.0  # least time of a raw reading


def make_pages(raw: Path, pages: int) -> None:
    """A set of page-like JPEGs of 1024 x 600, about 100 kB each: sixteen different ones, over and over."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(16):
        page = np.full((600, 1024, 3), 250, np.uint8)
        for y in range(20, 580, 14):
            for x in range(20, 1000, 24):
                page[y:y + 8, x:x + rng.integers(6, 20)] = rng.integers(0, 90)
        out = io.BytesIO()
        Image.fromarray(page).save(out, "JPEG", quality=85)
        pictures.append(out.getvalue())
    (raw / PAGES).mkdir(parents=True)
    rows = [{"images": [{"bytes": pictures[k % 16], "path": None}], "texts": [{"user": "Read.", "assistant": f"page {k} " * 20}]}
            for k in range(pages)]
    pq.write_table(pa.Table.from_pylist(rows), raw / PAGES / "train-00000-of-00001.parquet", row_group_size=25)


def build(recipe: Path, raw: Path, out: Path, fraction: float = 1.0) -> str:
    """The shards of a recipe, or of a fraction of it."""
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "build-shards", "--recipe", str(recipe), "--raw",
               str(raw), "--out", str(out), "--workers", "2", "--fraction", str(fraction)]
    subprocess.run(command, check=True, capture_output=True)
    return str(out)


def run_lane(name: str, decoder: str, what: str, where: str, workers: int, epochs: int) -> common.Told:
    """One measurement of one contender."""
    import torch

    from benchmarks.loader_lanes import DECODERS, LANES

    torch.set_num_threads(1)
    lane = LANES[name](where, workers, DECODERS[decoder])
    if what == "resume":
        return {"resume": lane.resume()}
    if what in ("raw", "members"):
        read = getattr(lane, what)
        sum(read())  # once to have the files and the imports in memory
        wall, cpu, samples = time.perf_counter(), common.tree_cpu(), 0
        while time.perf_counter() - wall < RAW_SECONDS:  # the clock of processor time ticks a hundred times a second
            samples += sum(read())
        return {"wall": (time.perf_counter() - wall) / samples, "cpu": (common.tree_cpu() - cpu) / samples}
    wall, cpu, images, memory = time.perf_counter(), common.tree_cpu(), 0, []
    first = 0.0
    for _ in range(epochs):
        for count in lane.epoch():
            first = first or time.perf_counter() - wall
            images += count
        memory.append(common.tree_memory())
    return {"first": first, "wall": (time.perf_counter() - wall - first) / images, "cpu": (common.tree_cpu() - cpu) / images,
            "images": images / epochs, "one": memory[0], "last": memory[-1]}


def long_table(where: str, workers: int) -> common.Told:
    """Ours in a table of a million rows (the directory's, over and over): seconds to the first batch, at its start and at 90 %."""
    import numpy as np

    from trainer.data.batch import Rules
    from trainer.data.loader import Loader
    from trainer.data.order import Order
    from trainer.data.store import open_directory

    directory = open_directory(where)
    rows = directory.rows["train"]
    found = []
    for share in (0.0, 0.9):
        begun = time.perf_counter()
        order = Order([np.resize(rows["shard"], 1_000_000)], [np.resize(rows["patches"], 1_000_000)], batch_rows=2, seed=0)
        loader = Loader([directory], rules=Rules.of(directory.manifest, "all"), rows=2, workers=workers)
        start = int(order.steps(1) * share)
        batches: Any = loader.batches([[(0, row % len(rows)) for _, row in order.batch(step)] for step in range(start, start + 4)])
        next(batches)
        found.append(time.perf_counter() - begun)
        batches.close()
        loader.close()
    return {"start": found[0], "resume": found[1]}


def compare(where: str, what: str, names: list[str], options: Any) -> tuple[dict[str, list[common.Told]], dict[str, str]]:
    """Turns of one measurement; the first turn of `decoded` makes all passes, later ones a single one."""
    count = dict.fromkeys(names, 0)

    def run(name: str) -> common.Told:
        count[name] += 1
        epochs = options.epochs if count[name] == 1 else 1
        lane, _, own = name.partition(" + ")
        decoder = "ours" if own or lane == "ours" else "Pillow"
        python = sys.executable if lane == "ours" else peers.python()
        return common.lane("loaders", [lane, decoder, what, where, options.workers, epochs], python)

    return common.turns({name: (lambda name=name: run(name)) for name in names}, options.rounds)


def train_split(where: str) -> common.Told:
    """The manifest's counts of what the contenders read."""
    told: common.Told = json.loads((Path(where) / "manifest.json").read_text("utf-8"))["splits"]["train"]
    return told


def tables(title: str, where: str, options: Any, found: dict[str, str], *, whole: bool, raw_from: str = "") -> Iterator[str]:
    """All measurements on one directory; raw reading, where some hundred samples tell too little, perhaps on a larger one."""
    body, raw_from = train_split(where), raw_from or where
    size = sum(path.stat().st_size for path in Path(where).glob("train-*.tar"))
    yield f"### {title}: {body['samples']:,} samples, {body['images']:,} images, {body['rows']:,} packed rows, {size / 1e6:.0f} MB"
    names = [name for name in HOW if not found.get(name)]
    raw, failed = compare(raw_from, "raw", names, options)
    cost = {name: (common.median(runs, "wall"), common.median(runs, "cpu")) for name, runs in raw.items()}
    yield from common.table([f"raw, one process, {train_split(raw_from)['samples']:,} samples", "samples/s",
                             "processor time, us a sample", "ours = 1"],
                            [[name, f"{1 / wall:,.0f}", f"{cpu * 1e6:,.0f}", f"{cpu / cost['ours'][1]:.2f}"]
                             for name, (wall, cpu) in cost.items()])
    yield from common.missing({name: error for name, error in found.items() if error and name in HOW} | failed)
    bare = common.median([common.lane("loaders", ["ours", "ours", "members", raw_from, 0, 1]) for _ in range(options.rounds)],
                         "cpu")
    yield (f"Ours parses JSON and vectors and checks them against the row table; members alone, as the others read, take "
           f"{bare * 1e6:,.0f} us a sample.")
    yield ""
    own = [f"{name} + our decoder" for name in ("webdataset", "Energon") if name in names]
    told, failed = compare(where, "decoded", [*names, *own], options)
    rate = {name: (common.median(runs, "wall"), common.median(runs, "cpu")) for name, runs in told.items()}
    yield from common.table(
        [f"decoded, {options.workers} workers", "images/s", "ours = 1", "processor time, ms an image", "ours = 1", "first batch, s",
         "memory after 1 pass, MB", f"after {options.epochs}"],
        [[name, f"{1 / wall:,.0f}", f"{rate['ours'][0] / wall:.2f}", f"{cpu * 1e3:.2f}", f"{cpu / rate['ours'][1]:.2f}",
          f"{common.median(told[name], 'first'):.2f}", f"{told[name][0]['one']:,.0f}", f"{told[name][0]['last']:,.0f}"]
         for name, (wall, cpu) in rate.items()])
    yield from common.missing(failed)
    if whole:
        again, failed = compare(where, "resume", names, options)
        yield from common.table(["resumed at 90 %", "s to the first batch", "how"],
                                [[name, f"{common.median(runs, 'resume'):.2f}", HOW[name]] for name, runs in again.items()])
        yield from common.missing(failed)
        far = [common.lane("loaders", ["long table", where, options.workers]) for _ in range(options.rounds)]
        yield (f"Ours in a table of 1,000,000 rows: first batch of 2 rows after {common.median(far, 'start'):.2f} s, "
               f"resumed at 90 % after {common.median(far, 'resume'):.2f} s.")
        yield ""


HOW = {"ours": "arithmetic", "webdataset": "no state: reads what was seen again", "Energon": "saved state",
       "litdata": "state_dict", "DALI": "checkpoint", "datasets": "state_dict, no workers"}


def report(options: Any) -> Iterator[str]:
    """Real shards and made pages, or the directory that was named."""
    from benchmarks.build import images_recipe, recipe_file, trained

    found = peers.usable()
    with common.scratch("loaders") as folder:
        if options.shards:
            yield from tables(Path(options.shards).name, options.shards, options, found, whole=True)
            return
        raw = options.raw.resolve()
        tokenizer = trained(raw, folder)
        recipe = images_recipe(folder, tokenizer, samples=300)
        every = build(recipe, raw, folder / "every")
        real = build(recipe, raw, folder / "real", options.fraction)
        yield from tables(f"{options.fraction:.0%} of the image sets of ../shared/data/hub", real, options, found, whole=True,
                          raw_from=every)
        make_pages(folder / "raw", options.pages)
        pages = build(recipe_file(folder, tokenizer, "[sources.pages]\n", samples=100), folder / "raw", folder / "pages")
        yield from tables("Made pages, JPEGs of 1024 x 600", pages, options, found, whole=False)


def main() -> None:
    """The command."""
    parser = common.parser(__doc__)
    parser.add_argument("--raw", type=Path, default=common.DATA)
    parser.add_argument("--shards", help="built shards of mode base")
    parser.add_argument("--fraction", type=float, default=0.25,
                        help="of the image sets, to decode; raw reading takes all (default: %(default)s)")
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5, help="passes of the first turn")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    if options.lane:
        name, *rest = json.loads(options.lane)
        print(json.dumps(long_table(*rest) if name == "long table" else run_lane(name, *rest)))
        return
    with_versions = common.versions("torch", "numpy", "pillow", "simplejpeg") + "; peers: " + peers.versions(
        "webdataset", "Energon", "litdata", "DALI", "datasets")
    common.publish("Loaders", "loaders", report(options), with_versions=with_versions, append=options.append)


if __name__ == "__main__":
    main()
