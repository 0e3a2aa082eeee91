"""Validation loss of a checkpoint by source, beside the loss with the pictures exchanged.

    python -m benchmarks.ablate_loss --shards DIR --checkpoint RUN/last --out losses.json

The trainer logs the loss by source of its own validation rows; an ablation needs it on rows that other recipes built, and blind.
Every validation row is read once, twice through the decoder. A mean counts targets, as in training. Blind: the pictures of a batch
of ROWS rows move on by one (trainer.data.batch.exchange_images). Sources without pictures have no blind loss.
"""

import argparse
import contextlib
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from trainer import checkpoint
from trainer.data.batch import Rules, exchange_images
from trainer.data.loader import Loader
from trainer.data.store import open_directory
from trainer.model.vlm import load_pretrained
from trainer.settings import DEFAULTS

ROWS = 8  # packed rows a batch


@torch.no_grad()
def losses(shards: str, run: Path, device: str) -> dict[str, dict[str, float]]:
    """{source: {"targets", "loss", "blind_loss"}} over all validation rows."""
    directory = open_directory(shards)
    model, _ = load_pretrained(checkpoint.find(run, "last"))
    model.to(device).eval()
    loss = directory.manifest.get("train", {}).get("loss", DEFAULTS["loss"])
    loader = Loader([directory], rules=Rules.of(directory.manifest, loss), split="val", rows=ROWS, workers=0, skip_damaged=0)
    count = len(directory.rows["val"])
    plan = [[(0, row) for row in range(at, min(at + ROWS, count))] for at in range(0, count, ROWS)]
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])  # loss, targets; blind loss, targets beside pictures
    with contextlib.closing(loader), contextlib.closing(loader.batches(plan, torch.device(device))) as batches:
        for batch in batches:
            inputs, targets, media = batch
            true = model(input_ids=inputs, targets=targets, **media, per_token=True).loss.double().cpu()
            blind = true
            if media["pixel_values"] is not None:
                media = {**media, "pixel_values": exchange_images(media["pixel_values"])}
                blind = model(input_ids=inputs, targets=targets, **media, per_token=True).loss.double().cpu()
            learned, image = (targets != -1).cpu(), (inputs == model.config.image_token_id).cpu()
            for at, row in enumerate(batch.rows):
                for span in row.samples:
                    part = (at, slice(span.start, span.stop))
                    number, has_image = float(learned[part].sum()), bool(image[part].any())
                    sums[span.source] = list(np.add(sums[span.source], [
                        float(true[part].sum()), number, float(blind[part].sum()) * has_image, number * has_image]))
    return {source: {"targets": number, "loss": total / number, **({"blind_loss": blind_total / seen} if seen else {})}
            for source, (total, number, blind_total, seen) in sorted(sums.items()) if number}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Validation loss by source, true and blind.")
    parser.add_argument("--shards", required=True, help="a shard directory with a validation split")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run's folder or one checkpoint")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    arguments = parser.parse_args()
    found = losses(arguments.shards, arguments.checkpoint, arguments.device)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({"out": str(arguments.out), "sources": len(found)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
