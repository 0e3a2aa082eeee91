"""`pipeline download`: fetch the files a recipe takes, resumable."""

import json
import os
import shlex
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from pipeline import progress
from pipeline.cli import options
from pipeline.download import CONNECTIONS, Fetched, Watch, download, subset_recipe
from pipeline.plan import MissingSetsError, make_command
from pipeline.recipe import Recipe, RecipeError

SHOWN = 20  # failed files that are listed; the JSON line has all


class Bar:
    """One progress bar a stage on standard error: GB, rate, time left."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._lock = threading.Lock()   # files report from threads of their own; tqdm's count is not theirs to share

    def stage(self, name: str, total: int, unit: str) -> None:
        self.close()
        self._bar = tqdm(total=total, desc=name, unit=unit, unit_scale=unit == "B", unit_divisor=1000, file=sys.stderr,
                         mininterval=progress.interval(), smoothing=0.05, dynamic_ncols=True)

    def step(self, n: int) -> None:
        with self._lock:
            self._bar.update(n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def again(recipe: str | None, raw: Path, subsets: tuple[str, ...], overrides: tuple[str, ...], fraction: float,
          seed: int | None, snapshots: tuple[Path, ...], allow_missing: bool) -> str:
    """The command that goes on where this one stopped."""
    words = ["pipeline", "download"]
    words += ["--recipe", recipe] if recipe else []
    words += [] if raw == Path("raw") else ["--raw", str(raw)]
    words += [word for name in subsets for word in ("--subset", name)]
    words += [word for change in overrides for word in ("--set", change)]
    words += [] if fraction == 1 else ["--fraction", str(fraction)]
    words += [] if seed is None else ["--seed", str(seed)]
    words += [word for folder in snapshots for word in ("--snapshot", str(folder))]
    words += ["--allow-missing"] if allow_missing else []
    return shlex.join(words)


def summary(recipe: Recipe, raw: Path, fetched: Fetched) -> dict[str, Any]:
    """The line of JSON that ends a run."""
    counts = {how: len(fetched.files(how)) for how in ("fetched", "reused", "present", "failed")}
    sizes = {f"{how}_bytes": sum(o.want.file.size for o in fetched.files(how)) for how in ("fetched", "reused", "present")}
    failed = [{"file": f"{o.want.repo}/{o.want.file.path}", "error": o.error} for o in fetched.files("failed")]
    return {"command": "download", "recipe": recipe.name, "raw": str(raw), "files": len(fetched.outcomes), **counts, **sizes,
            "seconds": round(fetched.seconds, 1), "revisions": fetched.revisions,
            "converted": {name: asdict(done) for name, done in fetched.converted.items()}, "errors": failed,
            "left_out": fetched.left_out}


@click.command("download")
@options.recipe(required=False)
@options.raw()
@options.subsets()
@options.seed()
@options.fraction()
@options.overrides()
@options.workers()
@click.option("--connections", type=click.IntRange(1, 64), default=CONNECTIONS, show_default=True, help="Files at once.")
@click.option("--snapshot", "snapshots", multiple=True, type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="A folder that already holds files of these sets (repeatable); what is there and whole is not fetched.")
@click.option("--update", is_flag=True, help="Take the newest revision instead of the one pinned by the first run.")
@click.option("--allow-missing", is_flag=True, help="Go on without sources that are neither on the hub nor on disk.")
def command(recipe: str | None, raw: Path, subsets: tuple[str, ...], seed: int | None, fraction: float, overrides: tuple[str, ...],
            workers: int, connections: int, snapshots: tuple[Path, ...], update: bool, allow_missing: bool) -> None:
    """Fetch the files that a recipe, or whole subsets by name, take from the hub; goes on where an earlier run stopped.

    \b
    HF_TOKEN, HF_ENDPOINT and HF_HOME are honoured. Example:
      pipeline download --recipe stage1 --fraction 0.01
      pipeline download --subset chartqa --subset 'geo170k(qa)'
    """
    if recipe is None and not subsets:
        raise click.UsageError("give --recipe NAME or --subset NAME (pipeline list shows them)")
    with options.clear_errors():
        if recipe is not None:
            loaded = options.read_recipe(recipe, overrides=overrides, subsets=subsets, fraction=fraction, seed=seed)
        elif overrides:
            raise click.UsageError("--set changes a recipe: give --recipe too")
        else:
            whole = subset_recipe(subsets)
            loaded = Recipe(name=whole.name, sources=whole.sources, fraction=fraction, seed=seed or 0)
        bar = Bar()
        try:
            fetched = download(loaded, raw=raw, connections=connections, snapshots=snapshots, update=update,
                               allow_missing=allow_missing, workers=workers or os.cpu_count() or 1,
                               watch=Watch(stage=bar.stage, step=bar.step))
        except MissingSetsError as error:
            raise click.ClickException("the hub does not have " + "; ".join(
                f"{name} ({why})" for name, why in error.missing.items())
                + ". --update takes the newest revision, HF_ENDPOINT another hub, --allow-missing goes on without") from None
        except ValueError as error:     # what a conversion cannot read
            if isinstance(error, RecipeError):
                raise
            raise click.ClickException(str(error)) from None
        finally:
            bar.close()
    for source in loaded.sources:
        if source.repo.startswith("rendered/") and not (raw / source.repo).is_dir():
            click.echo(f"{source.name} is rendered, not fetched: {make_command(loaded, source, raw)}", err=True)
    for name, why in fetched.left_out.items():
        click.echo(f"left out: {name}: {why}", err=True)
    for source in loaded.sources:
        if (done := fetched.converted.get(source.name)) and (lost := sum(done.rejects.values())):
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in done.rejects.items())
            click.echo(f"{source.name}: {lost:,} of {done.rows + lost:,} records are left out ({reasons}); each has a line in "
                       f"{raw / source.root}/rejects-*.jsonl", err=True)
    click.echo(json.dumps(summary(loaded, raw, fetched)))
    failed = fetched.files("failed")
    for outcome in failed[:SHOWN]:
        click.echo(f"failed: {outcome.want.repo}/{outcome.want.file.path}: {outcome.error}", err=True)
    if failed:
        more = f" ({len(failed) - SHOWN} more in the JSON line)" if len(failed) > SHOWN else ""
        raise click.ClickException(f"{len(failed)} of {len(fetched.outcomes)} files could not be had{more}. Go on with:\n  "
                                   + again(recipe, raw, subsets, overrides, fraction, seed, snapshots, allow_missing))
