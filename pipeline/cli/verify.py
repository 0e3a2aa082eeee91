"""`pipeline verify`: every checksum, every count, every mask."""

import json
import os
import sys
from pathlib import Path

import click

from pipeline.cli import options


@click.command("verify")
@click.argument("folder", metavar="FOLDER|URL")
@click.option("--quick", is_flag=True, help="Only sizes and tables: seconds, whatever the size.")
@options.workers()
def command(folder: str, quick: bool, workers: int) -> None:
    """Check a shard directory, also on object storage; exit 1 and one line a problem if anything is not as it was built.

    \b
    Example:
      pipeline verify shards/stage1
      pipeline verify shards/stage1 --quick
      pipeline verify s3://bucket/stage1
    """
    from pipeline.build.target import Target, TargetError
    from pipeline.verify import is_remote, verify
    from shards.manifest import load

    count = 0
    try:
        body = (Target(url=folder).manifest() if is_remote(folder) else load(Path(folder))) or {}
        with options.clear_errors():
            for problem in verify(folder, quick=quick, workers=workers or os.cpu_count() or 1):
                click.echo(str(problem), err=True)
                count += 1
    except TargetError as error:
        raise click.ClickException(str(error)) from None
    except (ValueError, KeyError) as error:
        raise click.ClickException(str(error) if isinstance(error, ValueError) else f"the manifest lacks {error}") from None
    splits = body["splits"]
    click.echo(json.dumps({"command": "verify", "folder": folder, "ok": not count, "problems": count, "quick": quick,
                           "shards": len(body["shards"]), "samples": splits["train"]["samples"] + splits["val"]["samples"],
                           "rows": splits["train"]["rows"] + splits["val"]["rows"]}))
    if count:
        sys.exit(1)
