"""How full packed rows are: build-shards' best fit beside nanoVLM's greedy knapsacks and plain padding, on real lengths.

    python -m benchmarks.packing             # all sets of ../shared/data/hub at 4096 and 8192 tokens, mode base; about a minute

The lengths are those of the samples of a real build (all image and text sets, a tokenizer of 8,192 ids trained on them), in the
order of a shuffle: samples of up to 8192 tokens once, and for 4096 the same shards repacked, long samples cut by the recipe's rule.
  best fit       pipeline.pack, per shard of 4,000 samples, as build-shards packs
  nanoVLM        its online packer: a buffer of 1,024 rows' worth of samples; longest first, each into the emptiest of
                 ceil(tokens / length) + 5 knapsacks in which it fits, with at most 18 images; else a new one
  nanoVLM, 64    the same with a buffer of 64 rows, which a worker with large pictures can hold
  padded to batch    batches of 16 samples, each padded to its longest; "sorted" first draws 16 batches and sorts them by length
  padded to length   one sample a row
Padding is the share of computed tokens that hold nothing. Images a row: what a rank's encoder gets unevenly.
"""

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common

Sample = tuple[int, int]  # tokens, images
Rows = list[tuple[list[Sample], int]]  # the samples of a row, and the tokens that are computed for it


def best_fit(samples: Sequence[Sample], length: int) -> Rows:
    """As a build does, shard by shard."""
    from pipeline.pack import pack

    rows: Rows = []
    for at in range(0, len(samples), 4000):
        part = samples[at:at + 4000]
        made = pack([tokens for tokens, _ in part], [4096 * images for _, images in part], length, random.Random(0))
        rows += [([part[index] for index in row], length) for row in made]
    return rows


def knapsacks(samples: Sequence[Sample], length: int, *, buffer_rows: int, most_images: int = 18) -> Rows:
    """nanoVLM's way; see above."""
    rows: Rows = []
    at = 0
    while at < len(samples):
        held: list[Sample] = []
        total = 0
        while at < len(samples) and total < buffer_rows * length:
            held.append(samples[at])
            total += samples[at][0]
            at += 1
        bags: list[list[Sample]] = [[] for _ in range(-(-total // length) + 5)]
        loads, images = [0] * len(bags), [0] * len(bags)
        for sample in sorted(held, key=lambda one: -one[0]):
            fitting = [bag for bag in range(len(bags))
                       if loads[bag] + sample[0] <= length and images[bag] + sample[1] <= most_images]
            if fitting:
                bag = min(fitting, key=loads.__getitem__)
            else:
                bag = len(bags)
                bags.append([])
                loads.append(0)
                images.append(0)
            bags[bag].append(sample)
            loads[bag] += sample[0]
            images[bag] += sample[1]
        rows += [(bag, length) for bag in bags if bag]
    return rows


def to_batch(samples: Sequence[Sample], *, batch: int = 16, pool: int = 1) -> Rows:
    """Every sample a row, as wide as the longest of its batch; with `pool`, so many batches are sorted by length first."""
    rows: Rows = []
    for at in range(0, len(samples), batch * pool):
        part = list(samples[at:at + batch * pool])
        if pool > 1:
            part.sort()
        for begin in range(0, len(part), batch):
            widest = max(tokens for tokens, _ in part[begin:begin + batch])
            rows += [([sample], widest) for sample in part[begin:begin + batch]]
    return rows


WAYS: dict[str, Callable[[Sequence[Sample], int], Rows]] = {
    "best fit (ours)": best_fit,
    "nanoVLM": lambda samples, length: knapsacks(samples, length, buffer_rows=1024),
    "nanoVLM, 64": lambda samples, length: knapsacks(samples, length, buffer_rows=64),
    "padded to batch": lambda samples, _: to_batch(samples),
    "padded to batch, sorted": lambda samples, _: to_batch(samples, pool=16),
    "padded to length": lambda samples, length: [([sample], length) for sample in samples],
}


def measure(way: str, path: str, length: int) -> common.Told:
    """One way on the saved lengths."""
    samples = [tuple(sample) for sample in json.loads(Path(path).read_text("utf-8"))]
    if way == "best fit (ours)":
        import pipeline.pack  # noqa: F401
    begun = time.process_time()
    rows = WAYS[way](samples, length)
    cpu = time.process_time() - begun
    assert sorted(sample for row, _ in rows for sample in row) == sorted(samples), f"{way} lost a sample"
    images = [sum(count for _, count in row) for row, _ in rows]
    return {"cpu": cpu, "rows": len(rows), "computed": sum(width for _, width in rows), "images": max(images),
            "spread": statistics.pstdev(images), "held": sum(tokens for tokens, _ in samples)}


def pipeline_command(*words: str) -> None:
    """A command of the pipeline."""
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-500:])


def lengths(folder: Path) -> list[Sample]:
    """Tokens and images of a directory's train samples, in seeded order."""
    import pyarrow.parquet as pq

    found = pq.read_table(folder / "samples.parquet", columns=["tokens", "images"]).to_pydict()
    samples = list(zip(found["tokens"], found["images"]))
    random.Random(0).shuffle(samples)
    return samples


def report(options: Any) -> Iterator[str]:
    """A table for each length."""
    from benchmarks.build import IMAGE_SETS, TEXT, recipe_file, trained

    raw = options.raw.resolve()
    with common.scratch("packing") as folder:
        sources = "".join(f"[sources.{name}]\n" for name in (*IMAGE_SETS[:options.sets], "text_instruct"))
        recipe = recipe_file(folder, trained(raw, folder), sources + (TEXT if options.sets is None else ""), samples=4000)
        recipe.write_text(recipe.read_text("utf-8").replace("seq_len = 4096", "seq_len = 8192"))
        pipeline_command("build-shards", "--recipe", str(recipe), "--raw", str(raw), "--out", str(folder / "8192"))
        pipeline_command("repack", str(folder / "8192"), "--seq-len", "4096", "--out", str(folder / "4096"))
        for length in (4096, 8192):
            samples = lengths(folder / str(length))
            path = folder / f"lengths-{length}.json"
            path.write_text(json.dumps(samples))
            tokens = sorted(count for count, _ in samples)
            yield (f"Rows of {length}: {len(samples):,} samples, {sum(tokens):,} tokens (median {tokens[len(tokens) // 2]}, 90 % "
                   f"below {tokens[len(tokens) * 9 // 10]}, longest {tokens[-1]}), {sum(count for _, count in samples):,} images.")
            told, failed = common.turns(
                {way: (lambda way=way, path=path, length=length: common.lane("packing", [way, path, length])) for way in WAYS},
                options.rounds)
            yield from common.table(
                ["way", "rows", "fill", "padding", "tokens computed, ours = 1", "images a row, most (deviation)",
                 "CPU, us a sample"],
                [[way, f"{run['rows']:,}", f"{run['held'] / run['computed']:.2%}",
                  f"{1 - run['held'] / run['computed']:.2%}",
                  f"{run['computed'] / told['best fit (ours)'][0]['computed']:.3f}", f"{run['images']} ({run['spread']:.1f})",
                  f"{1e6 * common.median(runs, 'cpu') / len(samples):.1f}"] for way, runs in told.items() for run in runs[:1]])
            yield from common.missing(failed)


def main() -> None:
    """The command."""
    parser = common.parser(__doc__)
    parser.add_argument("--raw", type=Path, default=common.DATA)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sets", type=int, default=None, help="only so many of the image sets, and no text sets but one")
    options = parser.parse_args()
    if options.lane:
        print(json.dumps(measure(*json.loads(options.lane))))
        return
    common.publish("Packing", "packing", report(options), append=options.append,
                   with_versions=common.versions("numpy", "tokenizers"))


if __name__ == "__main__":
    main()
