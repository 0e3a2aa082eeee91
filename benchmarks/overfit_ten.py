"""Ten real images learned by heart on a CPU: three receipts, two charts, three formulas, two molecules.

    python -m benchmarks.overfit_ten --data ../shared/data/hub            # about ten minutes on two cores

A model that cannot do this cannot learn anything; one that only gets the texts right by their prompts fails here, since every
image has the same prompt and the score with exchanged images must be near zero. The images go the whole road: parquet,
build-shards, train, evaluate. Exit code 0 if every transcription is exact and the blind score at most 0.1.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import call

PROMPT = "OCR this image."
SETS = (  # (name here, FineVision-format set, images taken, which turn's answer is the transcription)
    ("receipts", "sroie", 3, ("Read all the text on this receipt.", "Transcribe the receipt line by line.",
                              "OCR this image. Keep the line breaks.")),
    ("charts", "opencqa", 2, ("What is the title of this chart?",)),
    ("formulas", "latex_formulas", 3, ()),
    ("molecules", "ocsr_chem", 2, ()),
)
RECIPE = """name = "ten"
tokenizer = "{tokenizer}"
mode = "micro"
seq_len = 1024
validation = 0.0
[train]
model = "micro"
batch_rows = {rows}
lr = 6e-4
schedule = "linear"
warmup_steps = 50
min_lr_ratio = 0.05
weight_decay = 0.0
loss = "answer"
eval_every = 100
{sources}
"""


def pick(data: Path, raw: Path) -> int:
    """Copy ten image-answer pairs into raw/ten/real; returns how many there are."""
    taken = 0
    for name, origin, count, prompts in SETS:
        rows: list[dict[str, Any]] = []
        for path in sorted((data / "HuggingFaceM4" / "FineVision" / origin).glob("*.parquet")):
            for row in pq.read_table(path).to_pylist():
                answers = [turn["assistant"] for turn in row["texts"] if not prompts or turn["user"] in prompts]
                if len(rows) < count and len(row["images"]) == 1 and answers:
                    rows.append({"images": row["images"], "texts": [{"user": PROMPT, "assistant": answers[0]}], "source": name})
        folder = raw / "ten" / "real" / name
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
        taken += len(rows)
    return taken


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Learn ten real images by heart.")
    parser.add_argument("--data", type=Path, required=True, help="folder of hub snapshots: HuggingFaceM4/FineVision/... inside")
    parser.add_argument("--work", type=Path, default=Path("runs/ten"), help="what it makes (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    images = pick(arguments.data, work / "raw")
    recipe, shards, run = work / "ten.toml", work / "shards", work / f"seed{arguments.seed}"
    sources = "".join(f'[sources.{name}]\nrepo = "ten/real"\nfolder = "{name}"\n' for name, *_ in SETS)
    recipe.write_text(RECIPE.format(tokenizer=work / "tokenizer.json", rows=1, sources=sources))
    where = ("--recipe", str(recipe), "--raw", str(work / "raw"))
    call("pipeline", "train-tokenizer", *where, "--vocab-size", "512", "--out", str(work / "tokenizer.json"))
    call("pipeline", "build-shards", *where, "--out", str(shards), "--workers", "1", "--fresh")
    rows = json.loads((shards / "manifest.json").read_text())["splits"]["train"]["rows"]
    call("trainer/train.py", "--shards", str(shards), "--out", str(run), "--max-steps", str(arguments.steps),
         "--batch-rows", str(rows), "--seed", str(arguments.seed), "--save-every", "0", "--resume")
    call("trainer/evaluate.py", "--shards", str(shards), "--checkpoint", str(run / "last"), "--split", "train",
         "--out", str(work / "report"), "--examples", "10")
    scores = json.loads((work / "report" / "report.json").read_text())["all"]
    print(json.dumps({"images": images, "steps": arguments.steps, "seed": arguments.seed, **scores}))
    return 0 if images == scores["answers"] == 10 and scores["exact_match"] == 1 and scores["blind_exact_match"] <= 0.1 else 1


if __name__ == "__main__":
    sys.exit(main())
