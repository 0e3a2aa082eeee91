"""`pipeline build-shards`: tokenize, mask and pack a recipe into shards."""

import json
import os
from pathlib import Path
from typing import Any

import click

from pipeline.cli import options


def parse_slice(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    """`i/n` with 0 <= i < n."""
    i, _, n = value.partition("/")
    if not (i.isdigit() and n.isdigit() and 0 <= int(i) < int(n)):
        raise click.BadParameter(f"{value!r} is not i/n with 0 <= i < n, as in --slice 3/16")
    return int(i), int(n)


@click.command("build-shards")
@options.recipe()
@options.raw()
@options.out(text="Output directory. [default: shards/RECIPE]")
@options.workers()
@options.seed()
@options.tokenizer()
@options.subsets()
@options.fraction()
@options.mode()
@options.overrides()
@options.from_hub()
@click.option("--slice", "part", default="0/1", show_default=True, metavar="I/N", callback=parse_slice,
              help="Run only task numbers I, I+N, I+2N ... (a Slurm array); the last slice completes the directory.")
@click.option("--max-reject-share", type=click.FloatRange(0, 1), default=0.05, show_default=True,
              help="End the build if a source loses more than this share of its rows (from 100 on).")
@click.option("--stop-after", type=click.FloatRange(0, min_open=True), metavar="HOURS", help="Stop between tasks after this time.")
@click.option("--allow-missing", is_flag=True, help="Go on without sources whose files are not there.")
@click.option("--fresh", is_flag=True, help="Delete what an earlier build left in --out and start over.")
def command(recipe: str, raw: Path, out: str | None, workers: int, seed: int | None, tokenizer: str | None,
            subsets: tuple[str, ...], fraction: float, mode: str | None, overrides: tuple[str, ...], origin: Any,
            part: tuple[int, int], max_reject_share: float, stop_after: float | None, allow_missing: bool, fresh: bool) -> None:
    """Tokenize, mask and pack a recipe into shards; goes on where an earlier run stopped.

    \b
    Example:
      pipeline build-shards --recipe stage1
      pipeline build-shards --recipe stage1 --fraction 0.01 --from hub
    """
    from functools import partial

    from pipeline.build import summary
    from pipeline.build.local import run_tasks
    from pipeline.build.run import build
    from pipeline.build.state import open_build

    plan, bpe = options.plan_build(recipe, raw=raw, seed=seed, tokenizer=tokenizer, subsets=subsets, fraction=fraction,
                                   mode=mode, overrides=overrides, origin=origin, allow_missing=allow_missing)
    target = Path(out) if out else Path("shards") / plan.recipe.name
    with options.clear_errors():
        state = open_build(plan, target, fresh=fresh)
        execute = partial(run_tasks, plan, state=state, tokenizer=bpe, workers=workers or os.cpu_count() or 1)
        report = build(plan, state, bpe, lambda shards, beat: execute(shards, beat=beat), part=part,
                       max_reject_share=max_reject_share, stop_after=stop_after * 3600 if stop_after else None)
    if report.manifest is None:
        click.echo(f"{report.tasks_left} of {len(plan.shards)} tasks are left (other slices, or a stop); the same command goes on",
                   err=True)
        click.echo(json.dumps({"command": "build-shards", "out": str(target), "plan": plan.id, "complete": False,
                               "tasks_run": report.tasks_run, "tasks_left": report.tasks_left}))
        return
    if not report.tasks_run:
        click.echo(f"{target} is complete already (plan {plan.id}); nothing to do", err=True)
    click.echo(summary.text(report.manifest), err=True)
    click.echo(json.dumps(summary.as_json(str(target), report.manifest, tasks_run=report.tasks_run, seconds=report.seconds)))
