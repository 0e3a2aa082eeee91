"""`pipeline stats`: the numbers of a shard directory on the terminal."""

import json
from pathlib import Path

import click

from pipeline.cli import options


@click.command("stats")
@click.argument("folder", type=click.Path(path_type=Path))
@options.as_json()
def command(folder: Path, as_json: bool) -> None:
    """Per-source counts, tokens and images of a shard directory, how full its rows are, and what was left out.

    \b
    Example:
      pipeline stats shards/stage1
      pipeline stats shards/stage1 --json
    """
    from pipeline.inspect.collect import collect
    from pipeline.inspect.terminal import as_dict, as_text

    try:
        report = collect(folder)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps(as_dict(report)) if as_json else as_text(report))
