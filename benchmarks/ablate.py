"""Which data is better? The same model on several recipes, for the same number of target tokens, compared on one validation set.

    just ablate benchmarks/ablations/images.toml benchmarks/ablations/text.toml --raw ../shared/data/hub --targets 60_000
    python -m benchmarks.ablate A.toml B.toml --raw raw --seeds 3 --doc docs/ablation.md

1. Checks that the recipes differ in their sources alone (benchmarks/ablate_recipes.py): model, rates, mode and seq_len are shared.
2. Trains one tokenizer on the text of all, or takes --tokenizer.
3. Builds each recipe, and one with the sources of all, whose validation split is the shared set. No recipe trains on any row of it:
   the split goes by content, and the built tables are checked.
4. Trains each recipe once a seed, the last checkpoint counts. Steps are chosen so that targets agree to half a step.
5. Scores every model on the shared set: loss by source (benchmarks/ablate_loss.py) and its own text (trainer/evaluate.py), both
   beside their blind control.
6. Writes Markdown, a plot and JSON (benchmarks/ablate_report.py): the section --name of --doc.

Everything goes through the public commands and lands in --work, under names that hold a hash of what it depends on. What is there
is not made again: the same command goes on after an interruption, and more --seeds add to it. Cost: recipes x seeds trainings, and
one build more than recipes (the union's training rows are built, though only its validation rows are read).
"""

import argparse
import functools
import hashlib
import json
import os
import shlex
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ablate_recipes import check_held_out, read_recipes, steps_for, targets_of_rows, union
from benchmarks.ablate_report import Run, write_report
from benchmarks.common import call
from trainer.settings import DEFAULTS


@dataclass(frozen=True, kw_only=True)
class Built:
    """A recipe's shard directory and what training on it takes."""

    name: str
    folder: Path
    plan: str
    rows: int
    batch_rows: int
    loss: str
    targets: int  # in one pass


def digest(*parts: object) -> str:
    """Eight characters that change with what a result depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:8]


def build(recipe: Path, name: str, tokenizer: Path, arguments: argparse.Namespace) -> Built:
    """Build a recipe's shards, or find them built."""
    folder = arguments.work / "shards" / f"{name}-{digest(recipe.read_text(), tokenizer.read_text())}"
    call("pipeline", "build-shards", "--recipe", str(recipe), "--raw", str(arguments.raw), "--tokenizer", str(tokenizer),
         "--out", str(folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    train = {**DEFAULTS, **manifest["train"]}
    of_row = targets_of_rows(folder, train["loss"])
    if len(of_row) < train["batch_rows"]:
        raise ValueError(f"{name} has {len(of_row)} packed rows, fewer than one step of {train['batch_rows']}")
    return Built(name=name, folder=folder, plan=manifest["plan"]["id"], rows=len(of_row), batch_rows=train["batch_rows"],
                 loss=train["loss"], targets=int(of_row.sum()))


def train_and_score(built: Built, seed: int, targets: int, shared: Built, arguments: argparse.Namespace) -> Run:
    """One training and its scores on the shared set; read back if they are there."""
    steps, planned = steps_for(built.folder, batch_rows=built.batch_rows, seed=seed, targets=targets, loss=built.loss)
    threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
    out = arguments.work / "runs" / f"{built.name}-seed{seed}-{digest(built.plan, steps)}"
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "summary.json").exists():
        summary = call("trainer/train.py", "--shards", str(built.folder), "--out", str(out), "--max-steps", str(steps), "--seed",
                       str(seed), "--resume", "--eval-every", "0", "--eval-rows", "1", "--check-every", "0",
                       "--on-collapse", "warn", "--keep", "1", "--track", "none", threads=threads, log=out / "train.log").stdout
        (out / "summary.json").write_text(summary.splitlines()[-1])
    seen = out / f"shared-{digest(shared.plan, arguments.limit, arguments.max_new_tokens)}"
    if not (seen / "done").exists():
        seen.mkdir(exist_ok=True)
        where = ("--shards", str(shared.folder), "--checkpoint", str(out / "last"))
        call("benchmarks.ablate_loss", *where, "--out", str(seen / "losses.json"), threads=threads, log=seen / "log")
        call("trainer/evaluate.py", *where, "--out", str(seen), "--limit", str(arguments.limit), "--max-new-tokens",
             str(arguments.max_new_tokens), "--examples", "2", threads=threads, log=seen / "log")
        (seen / "done").touch()
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    if len(log) != steps or (found := sum(step["targets"] for step in log)) != planned:
        raise ValueError(f"{out}/log.jsonl tells of {len(log)} steps, {steps} were asked for with {planned} targets")
    losses = json.loads((seen / "losses.json").read_text())
    scores = json.loads((seen / "report.json").read_text())["by_source"]
    return Run(recipe=built.name, seed=seed, steps=steps, targets=found, samples=log[-1]["samples_seen"],
               passes=steps * built.batch_rows / built.rows, seconds=sum(step["seconds"] for step in log),
               by_source={source: {**scores.get(source, {}), **losses[source]} for source in losses})


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison; returns what the last line says."""
    begun = time.monotonic()
    reads = read_recipes(arguments.recipes)
    arguments.work.mkdir(parents=True, exist_ok=True)
    together = arguments.work / "shared.toml"
    together.write_text(union(reads))
    tokenizer = arguments.tokenizer
    if tokenizer is None:
        tokenizer = arguments.work / f"tokenizer-{digest(together.read_text(), arguments.vocab_size, arguments.atoms)}.json"
        if not tokenizer.exists():
            atoms = [word for atom in arguments.atoms for word in ("--atoms", atom)]
            call("pipeline", "train-tokenizer", "--recipe", str(together), "--raw", str(arguments.raw), "--vocab-size",
                 str(arguments.vocab_size), *atoms, "--out", str(tokenizer))
    shared = build(together, "shared", tokenizer, arguments)
    builds = [build(read.path, read.recipe.name, tokenizer, arguments) for read in reads]
    check_held_out(shared.folder, {built.name: built.folder for built in builds})
    targets = arguments.targets or min(built.targets for built in builds)
    work = [(built, seed) for seed in range(arguments.seeds) for built in builds]
    one = functools.partial(train_and_score, targets=targets, shared=shared, arguments=arguments)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = list(pool.map(lambda pair: one(*pair), work))
    about = {
        "command": shlex.join(["just", "ablate", *arguments.shown]), "targets": targets, "seeds": arguments.seeds,
        "model": {**DEFAULTS, **reads[0].recipe.train}["model"], "loss": shared.loss, "limit": arguments.limit,
        "max_new_tokens": arguments.max_new_tokens, "mode": reads[0].recipe.mode, "tokenizer_ids": json.loads(
            (shared.folder / "manifest.json").read_text())["vocab_size"],
        "recipes": {built.name: {"rows": built.rows, "targets_a_pass": built.targets, "batch_rows": built.batch_rows,
                                 "description": read.recipe.description,
                                 "sources": [source.name for source in read.recipe.sources]}
                    for built, read in zip(builds, reads)}}
    written = write_report(arguments.doc or arguments.work / "ablation.md", arguments.name, about, runs)
    spread = {name: statistics.fmean(run.targets for run in runs if run.recipe == name) for name in about["recipes"]}
    return {"command": "ablate", **written, "runs": len(runs), "targets": spread, "seconds": round(time.monotonic() - begun, 1)}


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="ablate", description="Compare recipes: same model, target tokens, validation set.")
    parser.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE.toml", help="two or more that differ in their sources")
    parser.add_argument("--raw", type=Path, default=Path("raw"), help="folder of the raw sets (default: %(default)s)")
    parser.add_argument("--name", default="recipes", help="of the section, the plot and the default --work (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="tokenizer, shards and runs (default: runs/ablate-NAME)")
    parser.add_argument("--targets", type=int, help="target tokens a training (default: one pass over the recipe that has fewest)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings a recipe (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once, sharing the cores (default: %(default)s)")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json for all (default: one trained on the text of all)")
    parser.add_argument("--vocab-size", type=int, default=1024, help="of the trained tokenizer (default: %(default)s)")
    parser.add_argument("--atoms", action="append", default=[], choices=("otsl", "doctags"),
                        help="markup whose tags it makes single tokens; repeatable")
    parser.add_argument("--limit", type=int, default=30, help="texts asked for, a source (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="of such a text (default: %(default)s)")
    parser.add_argument("--doc", type=Path, help="Markdown whose section NAME is written, plot and JSON beside it "
                                                 "(default: ablation.md in --work)")
    arguments = parser.parse_args(argv)
    arguments.shown = sys.argv[1:] if argv is None else argv
    if len(arguments.recipes) < 2:
        parser.error("give two recipes or more")
    if min(arguments.seeds, arguments.jobs, arguments.limit) < 1:
        parser.error("--seeds, --jobs and --limit are at least 1")
    for key in ("raw", "work", "tokenizer", "doc"):  # commands run from the checkout
        value = getattr(arguments, key) or (Path("runs") / f"ablate-{arguments.name}" if key == "work" else None)
        setattr(arguments, key, value and value.resolve())
    arguments.recipes = [path.resolve() for path in arguments.recipes]
    try:
        print(json.dumps(run(arguments)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
