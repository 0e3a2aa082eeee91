"""`pipeline repack`: built shards for another sequence length."""

import json
import os
from pathlib import Path

import click

from pipeline import progress
from pipeline.cli import options


@click.command("repack")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seq-len", type=click.IntRange(64, 1 << 20), required=True, help="Tokens in a packed row.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Output directory.")
@options.workers()
@click.option("--fresh", is_flag=True, help="Delete what an earlier repack left in --out and start over.")
def command(folder: Path, seq_len: int, out: Path, workers: int, fresh: bool) -> None:
    """Pack built shards again for another sequence length, without the raw data or decoding an image.

    \b
    Example:
      pipeline repack shards/stage1 --seq-len 8192 --out shards/stage1-8k
    """
    from tqdm import tqdm

    from pipeline.build import summary
    from pipeline.repack import open_job, repack

    try:
        job = open_job(folder, out, seq_len=seq_len, fresh=fresh)
        total = sum(shard["samples"] for shard in job.body["shards"])
        with options.clear_errors(), tqdm(total=total, unit="sample", desc="repack", mininterval=progress.interval()) as bar:
            body = repack(job, workers=workers or os.cpu_count() or 1, progress=bar.update)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    click.echo(summary.text(body), err=True)
    click.echo(json.dumps({**summary.as_json(str(out), body, tasks_run=len(body["shards"]), seconds=0), "command": "repack",
                           "seq_len": seq_len}))
