"""`pipeline stats`: the numbers of a shard directory on the terminal."""

import contextlib
import json
from pathlib import Path

import click

from pipeline.cli import options


@click.command("stats")
@click.argument("folder", metavar="FOLDER|URL")
@options.as_json()
def command(folder: str, as_json: bool) -> None:
    """Per-source counts, tokens and images of a shard directory, how full its rows are, and what was left out.

    \b
    Example:
      pipeline stats shards/stage1
      pipeline stats shards/stage1 --json
      pipeline stats s3://bucket/stage1
    """
    from pipeline.build.target import TargetError
    from pipeline.inspect.collect import collect
    from pipeline.inspect.terminal import as_dict, as_text
    from pipeline.verify import fetched, is_remote

    try:
        with fetched(folder) if is_remote(folder) else contextlib.nullcontext(Path(folder)) as place:
            report = collect(place)
            text = json.dumps(as_dict(report)) if as_json else as_text(report)
    except (ValueError, TargetError) as error:
        raise click.ClickException(str(error)) from None
    except KeyError as error:
        raise click.ClickException(f"the manifest lacks {error}; run `pipeline verify {folder}`") from None
    click.echo(text)
