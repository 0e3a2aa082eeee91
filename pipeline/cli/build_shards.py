"""`pipeline build-shards`: tokenize, mask and pack a recipe into shards."""

import json
import os
from pathlib import Path
from typing import Any

import click

from pipeline.cli import options


def show_sbatch(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print a Slurm script and end."""
    if value:
        from pipeline.build.slurm import SCRIPT

        click.echo(SCRIPT, nl=False)
        ctx.exit()


@click.command("build-shards")
@options.recipe()
@options.raw()
@click.option("--out", help="Output folder, or a URL that fsspec writes (s3://bucket/prefix). [default: shards/RECIPE]")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False),
              help="Folder for scratch, logs and finished tasks. [default: OUT.build; for a URL its last part .build, here]")
@options.workers()
@options.seed()
@options.tokenizer()
@options.subsets()
@options.fraction()
@options.mode()
@options.overrides()
@options.from_hub()
@click.option("--dedup", is_flag=True, help="Leave out rows whose images and text an earlier row has.")
@click.option("--decontaminate", type=click.Path(exists=True, dir_okay=False, resolve_path=True), metavar="FILE",
              help="Leave out rows with an image whose sha256 is in this file, one a line.")
@click.option("--ray", "ray_address", metavar="ADDRESS", help="Run the tasks on this Ray cluster (auto, host:port, ray://host:port).")
@click.option("--slice", "part", default="0/1", show_default=True, metavar="I/N", callback=options.parse_slice,
              help="Run only tasks I, I+N, I+2N ... (a Slurm array, see --sbatch); the last slice completes the directory.")
@click.option("--sbatch", is_flag=True, is_eager=True, expose_value=False, callback=show_sbatch,
              help="Print an sbatch script that runs --slice as an array, and exit.")
@click.option("--max-reject-share", type=options.Number(0, 1), default=0.05, show_default=True,
              help="End the build if a source loses more than this share of its rows (from 100 on).")
@click.option("--stop-after", type=options.Number(0, min_open=True), metavar="HOURS", help="Stop between tasks after this time.")
@click.option("--allow-missing", is_flag=True, help="Go on without sources whose files are not there.")
@click.option("--fresh", is_flag=True, help="Delete what an earlier build left in --out and start over.")
def command(recipe: str, raw: Path, out: str | None, work: Path | None, workers: int, seed: int | None, tokenizer: str | None,
            subsets: tuple[str, ...], fraction: float, mode: str | None, overrides: tuple[str, ...], origin: Any, dedup: bool,
            decontaminate: str | None, ray_address: str | None, part: tuple[int, int], max_reject_share: float,
            stop_after: float | None, allow_missing: bool, fresh: bool) -> None:
    """Tokenize, mask and pack a recipe into shards; goes on where an earlier run stopped.

    \b
    Example:
      pipeline build-shards --recipe stage1
      pipeline build-shards --recipe stage1 --fraction 0.01 --from hub
      pipeline build-shards --recipe stage1 --out s3://bucket/stage1 --ray auto
    """
    from pipeline.build import summary
    from pipeline.build.executors import choose
    from pipeline.build.run import build
    from pipeline.build.state import open_build
    from pipeline.dedup import with_skips

    changes = [*overrides, *(["recipe.dedup=true"] if dedup else []),
               *([f"recipe.decontaminate={json.dumps(decontaminate)}"] if decontaminate else [])]
    plan, bpe = options.plan_build(recipe, raw=raw, seed=seed, tokenizer=tokenizer, subsets=subsets, fraction=fraction,
                                   mode=mode, overrides=tuple(changes), origin=origin, allow_missing=allow_missing)
    target = out or f"shards/{plan.recipe.name}"
    with options.clear_errors():
        plan = with_skips(plan, workers=workers or os.cpu_count() or 1)
        state = open_build(plan, target, fresh=fresh, work=work)
        report = build(plan, state, bpe, choose(plan, state, bpe, workers=workers, ray_address=ray_address), part=part,
                       max_reject_share=max_reject_share, stop_after=stop_after * 3600 if stop_after else None)
    if report.manifest is None:
        click.echo(f"{report.tasks_left} of {len(plan.shards)} tasks are left (other slices, or a stop); the same command goes on",
                   err=True)
        click.echo(json.dumps({"command": "build-shards", "out": target, "plan": plan.id, "complete": False,
                               "tasks_run": report.tasks_run, "tasks_left": report.tasks_left}))
        return
    if not report.tasks_run:
        click.echo(f"{target} is complete already (plan {plan.id}); nothing to do", err=True)
    click.echo(summary.text(report.manifest), err=True)
    click.echo(json.dumps(summary.as_json(target, report.manifest, tasks_run=report.tasks_run, seconds=report.seconds)))
    if not any(split["samples"] for split in report.manifest["splits"].values()):
        rows, bad = (sum(source[key] for source in report.manifest["sources"].values()) for key in ("rows", "bad_files"))
        why = (f"all {rows:,} rows were left out, for the reasons in the table" if rows else
               f"{bad:,} files cannot be read, for the reasons in rejects.parquet" if bad else
               "the recipe takes no row of its sources")
        raise click.ClickException(f"{target} holds no sample: {why}. Change the recipe and build with --fresh")
