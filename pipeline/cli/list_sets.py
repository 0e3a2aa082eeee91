"""`pipeline list`: the subsets there are, and which recipes use them."""

import json
from collections import defaultdict
from typing import Any

import click

from pipeline.cli import options
from pipeline.conversions import origin_of
from pipeline.hub import client
from pipeline.hub.retry import HubError
from pipeline.recipe import FINEVISION, RecipeError, load_recipe, shipped
from pipeline.subsets import Subset, check_names, refresh, shipped_table


def recipe_use() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Recipes by FineVision subset, and recipes by the other sources they name ("name (place)")."""
    subsets: dict[str, list[str]] = defaultdict(list)
    others: dict[str, list[str]] = defaultdict(list)
    for name in shipped():
        for source in load_recipe(name).sources:
            if source.on_hub and source.repo == FINEVISION:
                subsets[source.folder or source.name].append(name)
            else:
                others[f"{source.name} ({origin_of(source) or source.root})"].append(name)
    return subsets, others


def line(subset: Subset, recipes: list[str]) -> str:
    rows = "-" if subset.rows is None else f"{subset.rows:,}"
    gb = "-" if subset.gb is None else f"{subset.gb:,.1f}"
    return f"{subset.name:40} {subset.bucket:18} {rows:>10} {gb:>8} {subset.files:>6}  {', '.join(recipes)}".rstrip()


@click.command("list")
@click.argument("names", nargs=-1)
@click.option("--bucket", default=None, help="Only this bucket, as in --bucket 'scene text'.")
@click.option("--offline", is_flag=True, help="The table that ships with the package; ask the hub nothing.")
@options.as_json()
def command(names: tuple[str, ...], bucket: str | None, offline: bool, as_json: bool) -> None:
    """The subsets of FineVision with bucket, rows, GB, files and the recipes that use them.

    Rows and GB come from the hub; a dash means unknown. NAMES shows only these.

    \b
    Example:
      pipeline list --offline --bucket chemistry
    """
    table = shipped_table()
    if not offline:
        try:
            table = refresh()
        except HubError as error:
            click.echo(f"the hub {client.endpoint()} cannot be asked ({error}); this is the shipped table (--offline)",
                       err=True)
    try:
        check_names(names, list(table))
        if bucket is not None:
            check_names([bucket], sorted({subset.bucket for subset in table.values()}), what="bucket")
    except RecipeError as error:
        raise click.UsageError(str(error)) from None
    chosen = [s for s in table.values() if (not names or s.name in names) and bucket in (None, s.bucket)]
    used, others = recipe_use()
    if as_json:
        body: list[dict[str, Any]] = [{"name": s.name, "bucket": s.bucket, "rows": s.rows, "gb": s.gb, "files": s.files,
                                       "recipes": used.get(s.name, [])} for s in chosen]
        click.echo(json.dumps({"subsets": body, "others": dict(others)}))
        return
    click.echo(f"{'subset':40} {'bucket':18} {'rows':>10} {'GB':>8} {'files':>6}  recipes")
    for subset in sorted(chosen, key=lambda s: (s.bucket, s.name.lower())):
        click.echo(line(subset, used.get(subset.name, [])))
    known = [s.gb for s in chosen if s.gb is not None]
    click.echo(f"{len(chosen)} subsets, {sum(s.files for s in chosen):,} files, {sum(s.rows or 0 for s in chosen):,} "
               f"rows known, {sum(known):,.1f} GB known")
    if others and not names and bucket is None:
        click.echo("\nOther sets that the recipes name:")
        for name, recipes in sorted(others.items()):
            click.echo(f"{name:60} {', '.join(recipes)}")
