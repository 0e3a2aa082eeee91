"""`pipeline train-tokenizer`: a byte-level BPE of one's own."""

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import click

from pipeline.cli import options


@click.command("train-tokenizer")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@options.recipe(required=False)
@options.raw()
@options.subsets()
@options.fraction()
@options.seed()
@options.overrides()
@options.from_hub()
@click.option("--allow-missing", is_flag=True, help="Go on without sources whose files are not there.")
@click.option("--vocab-size", type=click.IntRange(256), default=8192, show_default=True,
              help="Ids in all: 256 bytes, special tokens, atoms and merges.")
@click.option("--atoms", multiple=True, type=click.Choice(["otsl", "doctags"]),
              help="Make the tags of this markup single tokens (repeatable).")
@click.option("--max-mb", type=options.Number(0, min_open=True), default=100.0, show_default=True,
              help="Text of the recipe to train on, taken from each source by its share.")
@options.out("tokenizer.json", text="Where to write the tokenizer.")
def command(files: tuple[Path, ...], recipe: str | None, raw: Path, subsets: tuple[str, ...], fraction: float, seed: int | None,
            overrides: tuple[str, ...], origin: Any, allow_missing: bool, vocab_size: int, atoms: tuple[str, ...], max_mb: float,
            out: Path) -> None:  # fmt: skip
    """Train a byte-level BPE tokenizer on a recipe's text, on FILES (plain text, or JSONL whose strings are taken), or on both.

    The same text gives the same file.

    \b
    Example:
      pipeline train-tokenizer --recipe demo --vocab-size 2048 --out tokenizer.json
      pipeline train-tokenizer notes.txt talks.jsonl
    """
    from pipeline.hub.record import write_atomic
    from pipeline.plan import make_plan
    from pipeline.train_tokenizer import file_texts, plan_texts, train_bpe

    if recipe is None and not files:
        raise click.UsageError("give --recipe, or files of text")
    texts = file_texts(files)
    if recipe is not None:
        loaded = options.read_recipe(recipe, subsets=subsets, fraction=fraction, seed=seed, overrides=overrides)
        with options.clear_errors():
            plan = make_plan(loaded, raw=raw, origin=origin, allow_missing=allow_missing)
        texts = itertools.chain(texts, plan_texts(plan, int(max_mb * 1e6)))
    try:
        with options.clear_errors():
            data = train_bpe(texts, vocab_size=vocab_size, atoms=sorted(set(atoms)))
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    with options.clear_errors():
        write_atomic(out, data)
    ids = len(json.loads(data)["model"]["vocab"]) + len(json.loads(data)["added_tokens"])
    click.echo(json.dumps({"command": "train-tokenizer", "out": str(out), "ids": ids, "sha256": hashlib.sha256(data).hexdigest()}))
