"""Rows to device-ready batches: this trainer's loader beside webdataset and Megatron-Energon, over the same tars.

    python -m benchmarks.loader                            # makes 2,000 JPEGs of 0.6 MP in 8 shards, about five minutes
    python -m benchmarks.loader --shards shards/stage1     # any built shards instead

Three measurements, every contender in turn (A B C A B C ...), medians and ratios printed as Markdown:
  raw       one process, no decoding: CPU time a sample, members parsed (ours also checks them against the row table)
  decoded   two worker processes, to uint8 canvases in batches: images a second, and CPU time an image
  start     fork to first batch; and the same for a resume at 90 % of an epoch of a million rows
webdataset and Energon decode with Pillow, as their own decoders do, and once more with this trainer's decoder, which leaves the
loaders' own difference.
"""

import argparse
import io
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from shards import geometry, manifest, sample, writer
from shards.reader import parse_row
from trainer.data.batch import Rules
from trainer.data.loader import Loader
from trainer.data.order import Order, split_batch
from trainer.data.store import Scratch, ShardDirectory, open_directory
from trainer.pixels import decode_image, place

SPECIALS = {"<|bos|>": 1, "<|image|>": 2, "<|pad|>": 3}
Canvas = npt.NDArray[np.uint8]


def make_shards(folder: Path, *, images: int = 2000, shards: int = 8) -> None:
    """Packed rows of page-like JPEGs of 1024 x 600, with their ids and masks."""
    rng = np.random.default_rng(0)
    pages = []
    for _ in range(16):  # sixteen different pages: the bytes do not matter, their number does
        page = np.full((600, 1024, 3), 250, np.uint8)
        for y in range(20, 580, 14):
            for x in range(20, 1000, 24):  # blurred strokes: about 100 kB as a JPEG, like a scanned page
                page[y:y + 8, x:x + rng.integers(6, 20)] = rng.integers(0, 90)
        out = io.BytesIO()
        Image.fromarray(page).save(out, "JPEG", quality=85)
        pages.append(out.getvalue())
    count, per_row = geometry.placeholders("base"), 12
    tables, entries, position = [], [], 0
    for shard in range(shards):
        rows = []
        for at in range(0, images // shards, per_row):
            row = []
            for _ in range(min(per_row, images // shards - at)):
                ids = np.concatenate([[1], np.full(count, 2), rng.integers(4, 1000, 60)]).astype(np.int32)
                mask = np.where(ids < 4, 0, 2).astype(np.uint8)
                meta = {"source": "pages", "row": str(position), "cut": "", "meta": "{}",
                        "messages": [{"role": "user", "content": "<image>", "parts": []},
                                     {"role": "assistant", "content": "word " * 60, "parts": []}],
                        "images": [{"message": 0, "offset": 0, "mode": "base", "width": 1024, "height": 600,
                                    "source_width": 1024, "source_height": 600, "tiles": [0, 0], "placeholders": count}]}
                fields = sample.encode(meta, ids, mask, [("0.jpg", pages[position % len(pages)])])
                row.append(writer.PackedSample(fields=fields, tokens=len(ids), images=1, patches=4096))
                position += 1
            rows.append(row)
        entry, rows_table = writer.write_shard(folder, "train", shard, rows)
        tables.append(rows_table)
        entries.append({"name": entry.name, "bytes": entry.bytes, "sha256": entry.sha256, "samples": entry.samples})
    rows_all = np.concatenate(tables)
    np.save(folder / "rows", rows_all)
    manifest.save(folder, {"mode": "base", "seq_len": 4096, "vocab_size": 1000, "specials": SPECIALS, "shards": entries,
                           "splits": {"train": {"rows": len(rows_all)}}, "train": {}})


def describe_for_energon(folder: Path) -> None:
    """The .nv-meta that a built directory has already."""
    meta = folder / ".nv-meta"
    if meta.exists():
        return
    meta.mkdir()
    names = sorted(path.name for path in folder.glob("train-*.tar"))
    counts = {name: len((folder / f"{name}.idx").read_bytes()) // 8 - 1 for name in names}
    (meta / "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")
    (meta / "split.yaml").write_text(json.dumps({"split_parts": {"train": names}, "exclude": []}))
    (meta / ".info.json").write_text(json.dumps({"energon_version": "7.4.1", "shard_counts": counts}))


def cpu_seconds() -> float:
    """CPU time of this process and of its ended children."""
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def pillow_decode(data: bytes) -> Canvas:
    """As webdataset's and Energon's own decoders read a picture."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def canvases(members: dict[str, Any], decode: Callable[[bytes], Canvas]) -> list[Canvas]:
    """The canvases of a sample's images, from its raw members."""
    meta = json.loads(members["json"])
    return [place(decode(next(members[key] for key in (f"{index}.jpg", f"{index}.png") if key in members)), image["mode"])
            for index, image in enumerate(meta["images"])]


def tars(directory: ShardDirectory) -> list[str]:
    """The train shards."""
    return [str(path) for path in sorted(Path(directory.store.where).glob("train-*.tar"))]


def raw_ours(directory: ShardDirectory) -> Iterator[int]:
    """Samples a row, parsed and checked."""
    scratch = Scratch()
    for row in directory.rows["train"]:
        yield len(parse_row(directory.store.read_bytes("train", row, scratch), row, "train"))


def raw_webdataset(directory: ShardDirectory) -> Iterator[int]:
    """Its own pipeline, nothing decoded."""
    import webdataset

    for _ in webdataset.WebDataset(tars(directory), shardshuffle=False, empty_check=False):
        yield 1


def raw_energon(directory: ShardDirectory) -> Iterator[int]:
    """One process, nothing decoded."""
    yield from map(len, energon_batches(directory, 0, None))


def energon_batches(directory: ShardDirectory, workers: int, decode: Callable[[bytes], Canvas] | None) -> Iterator[Any]:
    """Energon's loader over one pass; `decode` None leaves the members as they are."""
    from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, get_loader, get_train_dataset, stateless
    from megatron.energon.flavors import CaptioningSample

    @stateless  # type: ignore[untyped-decorator]
    def cook(members: Any) -> Any:
        found = [] if decode is None else canvases({key: value for key, value in members.items() if "." in key or key == "json"},
                                                   decode)
        return CaptioningSample(__key__=members["__key__"], __restore_key__=members["__restore_key__"], __subflavors__={},
                                image=torch.from_numpy(np.stack(found)) if found else torch.zeros(0), caption="")

    class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
        """Samples to batches of stacked canvases."""

        decoder = None
        cookers = (Cooker(cook),)

        def batch(self, samples: list[Any]) -> Any:
            return torch.cat([one.image for one in samples])

    samples = sum(int(row["samples"]) for row in directory.rows["train"])
    config = WorkerConfig(rank=0, world_size=1, num_workers=workers)
    dataset = get_train_dataset(directory.store.where, worker_config=config, batch_size=12, shuffle_buffer_size=None,
                                max_samples_per_sequence=None, task_encoder=Encoder(), repeat=True)
    seen = 0
    for batch in get_loader(dataset, worker_config=config):
        yield batch if decode is not None else range(12)
        seen += 12
        if seen >= samples:
            return


def decoded_ours(directory: ShardDirectory, workers: int) -> Iterator[int]:
    """Images a batch of one packed row."""
    rules = Rules.of(directory.manifest, "all")
    loader = Loader([directory], rules=rules, rows=1, workers=workers)
    order = Order([directory.rows["train"]["shard"]], [directory.rows["train"]["patches"]], batch_rows=1, seed=0)
    try:
        for batch in loader.batches([order.batch(step) for step in range(order.rows)]):
            yield batch.images
    finally:
        loader.close()


def decoded_webdataset(directory: ShardDirectory, workers: int, decode: Callable[[bytes], Canvas]) -> Iterator[int]:
    """Its own loader with batches of twelve samples."""
    import webdataset

    def stack(members: dict[str, Any]) -> torch.Tensor:
        found = canvases(members, decode)
        return torch.from_numpy(np.stack(found)) if found else torch.zeros((0, 1024, 1024, 3), dtype=torch.uint8)

    dataset = webdataset.WebDataset(tars(directory), shardshuffle=False, empty_check=False).map(stack).batched(
        12, collation_fn=torch.cat)
    for batch in webdataset.WebLoader(dataset, batch_size=None, num_workers=workers):
        yield len(batch)


def timed(run: Callable[[], Iterator[int]]) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds, items."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    items = sum(run())
    return time.perf_counter() - wall, cpu_seconds() - cpu, items


def compare(contenders: dict[str, Callable[[], Iterator[int]]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds an item of each, run in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            wall, cpu, items = timed(run)
            times[name].append((wall / items, cpu / items))
    return {name: (statistics.median(w for w, _ in found), statistics.median(c for _, c in found))
            for name, found in times.items()}


def report(title: str, found: dict[str, tuple[float, float]]) -> None:
    """A table with ratios to the first contender."""
    print(f"\n{title}\n\n| loader | a second | CPU us each | CPU, ours = 1 | time, ours = 1 |\n|---|---|---|---|---|")
    wall, cpu = next(iter(found.values()))
    for name, (w, c) in found.items():
        print(f"| {name} | {1 / w:,.0f} | {c * 1e6:,.0f} | {c / cpu:.2f} | {w / wall:.2f} |", flush=True)


def first_batch(directory: ShardDirectory, workers: int, share: float, rows: int) -> float:
    """Seconds from nothing to the first batch of step `share` of an epoch of `rows` rows (the table's, over and over)."""
    began = time.perf_counter()
    own = len(directory.rows["train"])
    order = Order([np.resize(directory.rows["train"]["shard"], rows)], [np.resize(directory.rows["train"]["patches"], rows)],
                  batch_rows=8, seed=0)
    split = split_batch(8, 1, 2)
    loader = Loader([directory], rules=Rules.of(directory.manifest, "all"), rows=2, workers=workers)
    start = int(order.steps(1) * share)
    plan = ([(0, row % own) for _, row in tasks] for step in range(start, start + 4)
            for tasks in order.micro_batches(step, 0, split))
    batches = loader.batches(plan)
    next(batches)
    took = time.perf_counter() - began
    batches.close()  # type: ignore[attr-defined]
    loader.close()
    return took


def measure(where: str, repeats: int, workers: int) -> None:
    """All three tables."""
    directory = open_directory(where)
    describe_for_energon(Path(where))
    rows = directory.rows["train"]
    print(f"{int(rows['samples'].sum())} samples, {int(rows['images'].sum())} images, {len(rows)} rows, "
          f"{sum(os.path.getsize(path) for path in tars(directory)) / 1e6:.0f} MB, {len(os.sched_getaffinity(0))} cores")
    report("Raw reading, one process, samples", compare({
        "ours": lambda: raw_ours(directory), "webdataset": lambda: raw_webdataset(directory),
        "Energon": lambda: raw_energon(directory)}, repeats))
    report(f"To uint8 canvases, {workers} workers, images", compare({
        "ours": lambda: decoded_ours(directory, workers),
        "webdataset, Pillow": lambda: decoded_webdataset(directory, workers, pillow_decode),
        "Energon, Pillow": lambda: map(len, energon_batches(directory, workers, pillow_decode)),
        "webdataset, our decoder": lambda: decoded_webdataset(directory, workers, decode_image),
        "Energon, our decoder": lambda: map(len, energon_batches(directory, workers, decode_image))}, repeats))
    starts = [(first_batch(directory, workers, 0.0, 1_000_000), first_batch(directory, workers, 0.9, 1_000_000))
              for _ in range(repeats)]
    first, resumed = (statistics.median(pair[index] for pair in starts) for index in (0, 1))
    print(f"\nFirst batch of 2 rows ({workers} workers, a table of 1,000,000 rows): {first:.2f} s; "
          f"resumed at 90 % of the epoch: {resumed:.2f} s")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="The loader beside webdataset and Energon.")
    parser.add_argument("--shards", help="built shards (default: made for the run)")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.shards:
            make_shards(Path(folder), images=arguments.images)
        measure(arguments.shards or folder, arguments.repeats, arguments.workers)


if __name__ == "__main__":
    main()
