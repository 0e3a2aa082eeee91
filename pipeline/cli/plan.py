"""`pipeline plan`: what a recipe will take, from metadata alone."""

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from pipeline import progress
from pipeline.cli import options

if TYPE_CHECKING:
    from pipeline.recipe import Recipe


def conversion_bytes(recipe: "Recipe", raw: Path, missing: Sequence[str]) -> dict[str, int]:
    """Bytes on the hub of what the missing sources are to be converted from; sizes only, nothing is fetched."""
    from pipeline.conversions import named_files, origin_of
    from pipeline.hub.api import resolve_revision
    from pipeline.hub.record import load_record
    from pipeline.hub.retry import NotOnHub

    sizes = {}
    for source in recipe.sources:
        if source.converted and source.name in missing and (repo := origin_of(source)):
            with contextlib.suppress(NotOnHub):
                revision = load_record(raw, repo).revision or resolve_revision(repo)
                sizes[source.name] = sum(file.size for file in named_files(source, repo, revision))
    return sizes


@click.command("plan")
@options.recipe()
@options.raw()
@options.out(text="Where shards would go; for the free disk. [default: shards/RECIPE]")
@options.subsets()
@options.fraction()
@options.mode()
@options.seed()
@options.overrides()
@click.option("--from", "origin", type=click.Choice(["auto", "raw", "hub"]), default="auto", show_default=True,
              help="Read footers below --raw or on the hub; auto: below --raw if all sets are there.")
@options.as_json()
def command(recipe: str, raw: Path, out: str | None, subsets: tuple[str, ...], fraction: float, mode: str | None,
            seed: int | None, overrides: tuple[str, ...], origin: Any, as_json: bool) -> None:
    """Rows, blocks, files, GB, images, tokens and hours of a recipe, its 70/20/10 shares and the gap to DeepSeek-OCR.

    Only parquet footers are read; those on the hub are kept, so a second plan asks for nothing but the listings.

    \b
    Example:
      pipeline plan --recipe stage1
      pipeline plan --recipe stage2 --fraction 0.01 --json
    """
    from pipeline.measure import measure
    from pipeline.plan import MissingSetsError, make_plan
    from pipeline.plan_report import format_report, make_report
    from pipeline.subsets import UnknownSubset

    asked = origin
    with options.clear_errors():
        loaded = options.read_recipe(recipe, subsets=subsets, fraction=fraction, mode=mode, seed=seed, overrides=overrides)
        on_hub = {source.name for source in loaded.sources if source.on_hub}
        with tqdm(desc="footers", unit=" files", file=sys.stderr, mininterval=progress.interval(), leave=False,
                  disable=not sys.stderr.isatty()) as bar:
            if origin == "auto":
                try:
                    plan = make_plan(loaded, raw=raw, origin="raw")
                    origin = "raw"
                except (MissingSetsError, UnknownSubset) as error:
                    missing = error.missing if isinstance(error, MissingSetsError) else on_hub
                    origin = "hub" if on_hub & set(missing) else "raw"
                    plan = make_plan(loaded, raw=raw, origin=origin, allow_missing=True, progress=bar.update)
            else:
                plan = make_plan(loaded, raw=raw, origin=origin, allow_missing=True, progress=bar.update)
        to_convert = conversion_bytes(loaded, raw, plan.missing) if origin == "hub" else {}
    target = Path(out) if out else Path("shards") / loaded.name
    speed = measure(loaded.mode_of(source) for source in loaded.sources)
    report = make_report(plan, raw=raw, out=target, keeps_raw=asked != "hub", speed=speed, to_convert=to_convert)
    click.echo(json.dumps(report) if as_json else format_report(report))
