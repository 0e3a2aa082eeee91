"""`pipeline preview`: a few rows of any source as a build would make them."""

import json
from pathlib import Path
from typing import Any

import click

from pipeline.cli import options


@click.command("preview")
@options.recipe(required=False)
@options.raw()
@options.subsets()
@options.mode()
@options.tokenizer()
@options.overrides()
@options.from_hub()
@click.option("--rows", type=click.IntRange(1, 1000), default=3, show_default=True, help="Rows of each source.")
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="The first of them.")
@options.out(text="Also write an HTML page with the fitted images.")
@options.as_json()
def command(recipe: str | None, raw: Path, subsets: tuple[str, ...], mode: str | None, tokenizer: str | None,
            overrides: tuple[str, ...], origin: Any, rows: int, start: int, out: Path | None, as_json: bool) -> None:  # fmt: skip
    """Show the conversations, fitted images and token counts of a few rows, or why a row is left out.

    Sources are those of --recipe, or the FineVision subsets that --subset names.

    \b
    Example:
      pipeline preview --subset chartqa --from hub
      pipeline preview --recipe stage1 --subset DoclingMatix --rows 5 --out preview.html
    """
    from dataclasses import replace

    from pipeline.download import subset_recipe
    from pipeline.plan import MissingSetsError, make_plan
    from pipeline.preview import Shown, as_page, as_text, preview
    from pipeline.tasks import Task

    if recipe is not None:
        loaded = options.read_recipe(recipe, subsets=subsets, mode=mode, tokenizer=tokenizer, overrides=overrides)
    elif subsets and not overrides:
        with options.clear_errors():
            loaded = subset_recipe(subsets, ask=origin == "hub")
        loaded = replace(loaded, tokenizer=tokenizer or loaded.tokenizer, mode=mode or loaded.mode)
    else:
        raise click.UsageError("give --recipe, or --subset for a set by name (--set needs a recipe)")
    bpe = options.read_tokenizer(loaded.tokenizer)
    pages: list[Shown] = []
    for source in loaded.sources:
        one = replace(loaded, sources=(replace(source, quota=None),), fraction=1.0)
        with options.clear_errors():
            try:
                task = Task(make_plan(one, raw=raw, origin=origin))
            except MissingSetsError as error:
                instead = "\nor look at it on the hub: --from hub" if source.on_hub and origin == "raw" else ""
                raise click.ClickException(error.told + instead) from None
            if start >= len(task):
                click.echo(f"{source.name} has {len(task):,} rows, counted from 0: none at --start {start}", err=True)
            fitted = preview(task, mode=one.mode_of(one.sources[0]), seq_len=one.seq_len, tokenizer=bpe, rows=rows, start=start)
            for shown in fitted:
                click.echo(json.dumps(shown.as_json()) if as_json else as_text(shown))
                pages.append(shown)
            task.close()
    if out is not None:
        out.write_text(as_page(pages), encoding="utf-8")
        click.echo(f"wrote {out}", err=True)
