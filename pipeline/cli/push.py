"""`pipeline push`: publish a shard directory on the hub."""

import dataclasses
import json
import re
from pathlib import Path

import click

from pipeline import progress


def check_repo(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """`owner/name` as the hub allows it."""
    if not re.fullmatch(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}", value) or ".." in value or "--" in value:
        raise click.BadParameter(f"{value!r} is not OWNER/NAME, as in someone/stage1-shards")
    return value


@click.command("push")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("repo", callback=check_repo)
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--revision", default="main", show_default=True, help="Branch to commit to.")
def command(folder: Path, repo: str, private: bool, revision: str) -> None:
    """Publish a finished shard directory as the dataset REPO (owner/name) on the hub; goes on where it stopped.

    Needs a token that may write: `hf auth login`, or HF_TOKEN.

    \b
    Example:
      pipeline push shards/stage1 someone/stage1-shards --private
    """
    from tqdm import tqdm

    from pipeline.hub.client import check_address, endpoint
    from pipeline.hub.retry import HubError

    try:
        check_address(endpoint())   # the client of the hub fails of some while it is imported
    except HubError as error:
        raise click.ClickException(str(error)) from None
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from pipeline.push import entries_of, push

    disable_progress_bars()  # one bar for all files instead
    try:
        total = sum(entry.bytes for entry in entries_of(folder))
        with tqdm(total=total, unit="B", unit_scale=True, desc="push", mininterval=progress.interval()) as bar:
            done = push(folder, repo, private=private, revision=revision, progress=bar.update)
    except (ValueError, HubError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps({"command": "push", "folder": str(folder), **dataclasses.asdict(done)}))
