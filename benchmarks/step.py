"""A training step on packed rows beside the same samples unpacked and padded: labels learned a second, and processor time.

    python -m benchmarks.step                        # micro on real samples, 12 steps; about three minutes
    python -m benchmarks.step --steps 2 --model nano

Shards of ../shared/data (image and text sets, mode micro, rows of 1,024 tokens) are built first. Every step takes the same packed
rows three ways, in turns in one process, with a model each that starts alike:
  packed             the rows as they are, one batch
  padded to batch    their samples in batches of 8, each as wide as its longest, gradients added up
  padded to length   their samples in batches of 4, each 1,024 wide
and ends with one optimizer step. The three must have the same loss before the first step, or the comparison is worth nothing. One
thread, no reading or decoding in the time. On a CPU attention computes whole rows; a GPU's would gain more from packing.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from shards import geometry
from trainer.data.batch import Batch, Rules
from trainer.data.loader import Loader
from trainer.data.order import Order
from trainer.data.store import open_directory
from trainer.model.config import SIZES
from trainer.model.vlm import VLM
from trainer.pixels import PixelValues

MODE, LENGTH = "micro", 1024


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the model is called with, and how much of it is learned."""

    inputs: dict[str, Any]
    targets: int
    tokens: int  # computed, padding included


def as_it_is(batch: Batch) -> list[Part]:
    """The packed rows."""
    return [Part(inputs={"input_ids": batch.inputs, "targets": batch.targets, **batch.media}, targets=batch.target_count,
                 tokens=batch.inputs.numel())]


def unpacked(batch: Batch, rules: Rules, height: int, width: int = 0) -> list[Part]:
    """The samples of those rows in batches of `height` rows, `width` wide or as wide as the longest."""
    per_image, side = geometry.placeholders(MODE), geometry.get_mode(MODE).side
    pixels: PixelValues | None = batch.media["pixel_values"]
    samples, used = [], 0
    for row, info in enumerate(batch.rows):
        for span in info.samples:
            ids, targets = batch.inputs[row, span.start:span.stop], batch.targets[row, span.start:span.stop]
            images = int((ids == rules.image_id).sum()) // per_image
            samples.append((ids, targets, range(used, used + images)))
            used += images
    parts = []
    for at in range(0, len(samples), height):
        group = samples[at:at + height]
        wide = width or max(len(ids) for ids, _, _ in group)
        inputs = torch.full((len(group), wide), rules.pad_id)
        targets = torch.full((len(group), wide), -1)
        segments = torch.full((len(group), wide), -1, dtype=torch.int32)
        for row, (ids, wanted, _) in enumerate(group):
            inputs[row, :len(ids)], targets[row, :len(ids)], segments[row, :len(ids)] = ids, wanted, 0
        chosen = [index for _, _, images in group for index in images]
        values = None
        if pixels is not None and chosen:
            values = PixelValues(views={side: pixels.views[side][chosen]}, images=tuple(pixels.images[index] for index in chosen),
                                 positions=(inputs.flatten() == rules.image_id).nonzero().flatten())
        where = (targets.flatten() != -1).nonzero().flatten()
        parts.append(Part(targets=len(where), tokens=inputs.numel(), inputs={
            "input_ids": inputs, "targets": targets, "pixel_values": values, "segment_ids": segments, "target_positions": where,
            "position_ids": torch.arange(wide).expand(len(group), wide)}))
    return parts


def step(model: VLM, optimizer: torch.optim.Optimizer, parts: Sequence[Part]) -> common.Told:
    """One optimizer step; its costs and its mean loss."""
    wall, cpu = time.perf_counter(), time.process_time()
    count, total = sum(part.targets for part in parts), 0.0
    for part in parts:
        loss: Any = model(**part.inputs).loss / count
        loss.backward()
        total += float(loss.detach())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "targets": count, "loss": total,
            "tokens": sum(part.tokens for part in parts)}


def measure(where: str, size: str, rows: int, steps: int) -> common.Told:
    """All ways, step by step in turns; the first step is a warm-up whose losses are compared."""
    torch.set_num_threads(1)
    directory = open_directory(where)
    rules = Rules.of(directory.manifest, "all")
    table = directory.rows["train"]
    order = Order([table["shard"]], [table["patches"]], batch_rows=rows, seed=0)
    loader = Loader([directory], rules=rules, rows=rows, workers=0)
    ways = {"packed": as_it_is, "padded to batch": lambda batch: unpacked(batch, rules, 8),
            "padded to length": lambda batch: unpacked(batch, rules, 4, rules.seq_len)}
    models, told = {}, dict[str, list[common.Told]]()
    for name in ways:
        torch.manual_seed(0)
        models[name] = VLM(SIZES[size].with_tokens(vocab_size=rules.vocab_size, image_token_id=rules.image_id)).train()
        told[name] = []
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True) for name, model in models.items()}
    samples = images = 0
    with contextlib.closing(loader):
        for batch in loader.batches([order.batch(number) for number in range(steps + 1)]):
            for name, way in ways.items():
                told[name].append(step(models[name], optimizers[name], way(batch)))
            samples += sum(len(row.samples) for row in batch.rows)
            images += batch.images
    losses = [runs[0]["loss"] for runs in told.values()]
    assert np.ptp(losses) < 1e-3 * losses[0], f"the ways do not compute the same: {losses}"
    return {"ways": {name: runs[1:] for name, runs in told.items()}, "losses": losses, "samples": samples / (steps + 1),
            "images": images / (steps + 1)}


def report(options: Any) -> Iterator[str]:
    """Build, measure, tell."""
    from benchmarks.build import IMAGE_SETS, TEXT, recipe_file, trained
    from benchmarks.packing import pipeline_command

    raw = options.raw.resolve()
    with common.scratch("step") as folder:
        sources = "".join(f"[sources.{name}]\n" for name in (*IMAGE_SETS, "text_instruct")) + TEXT
        recipe = recipe_file(folder, trained(raw, folder), sources, samples=2000)
        text = recipe.read_text("utf-8").replace('mode = "base"', f'mode = "{MODE}"')
        recipe.write_text(text.replace("seq_len = 4096", f"seq_len = {LENGTH}"))
        pipeline_command("build-shards", "--recipe", str(recipe), "--raw", str(raw), "--out", str(folder / "shards"),
                         "--fraction", str(options.fraction))
        told = common.lane("step", [folder / "shards", options.model, options.rows, options.steps])
    rate = {name: common.median([{"rate": run["targets"] / run["wall"]} for run in runs], "rate")
            for name, runs in told["ways"].items()}
    cost = {name: common.median([{"cost": 1e3 * run["cpu"] / run["targets"]} for run in runs], "cost")
            for name, runs in told["ways"].items()}
    yield (f"`{options.model}`, steps of {options.rows} packed rows of {LENGTH}: on average {told['samples']:.1f} samples with "
           f"{told['images']:.1f} images of 256 pixels; medians of {options.steps} steps. Losses before the first step: "
           f"{', '.join(format(loss, '.4f') for loss in told['losses'])}.")
    yield from common.table(
        ["batches", "labels/s", "packed = 1", "processor time, ms a label", "packed = 1", "tokens computed a step",
         "of them labels"],
        [[name, f"{rate[name]:,.0f}", f"{rate[name] / rate['packed']:.2f}", f"{cost[name]:.2f}",
          f"{cost[name] / cost['packed']:.2f}", f"{common.median(runs, 'tokens'):,.0f}",
          f"{sum(run['targets'] for run in runs) / sum(run['tokens'] for run in runs):.0%}"]
         for name, runs in told["ways"].items()])


def main() -> None:
    """The command."""
    parser = common.parser(__doc__)
    parser.add_argument("--raw", type=Path, default=common.DATA)
    parser.add_argument("--model", default="micro", choices=sorted(SIZES))
    parser.add_argument("--rows", type=int, default=4, help="packed rows of a step")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--fraction", type=float, default=0.2, help="of the data that is built")
    options = parser.parse_args()
    if options.lane:
        print(json.dumps(measure(*json.loads(options.lane))))
        return
    common.publish("Packed and padded training steps", "step", report(options), with_versions=common.versions("torch", "numpy"),
                   append=options.append)


if __name__ == "__main__":
    main()
