"""`pipeline inspect`: one HTML page of a shard directory."""

import json
from pathlib import Path

import click


@click.command("inspect")
@click.argument("folder")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), show_default="FOLDER.html", help="The page to write.")
@click.option("--samples", type=click.IntRange(0, 1000), default=24, show_default=True,
              help="Random samples, dealt over the sources.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of their choice.")
@click.option("--sample", "keys", multiple=True, metavar="KEY", help="Show this sample instead of random ones (repeatable).")
def command(folder: str, out: Path | None, samples: int, seed: int, keys: tuple[str, ...]) -> None:
    """One self-contained HTML page: per-source tables and plots, random samples with pictures, turns and coloured tokens.

    \b
    Example:
      pipeline inspect shards/stage1
      pipeline inspect shards/stage1 --sample train-000003-000127
    """
    from pipeline.inspect import pick
    from pipeline.inspect.collect import collect
    from pipeline.inspect.page import render

    if "://" in folder:
        raise click.ClickException(f"{folder}: a page shows pictures out of the shards, so bring the directory here first "
                                   f"(aws s3 sync, rclone copy); `pipeline stats` and `pipeline verify` read URLs")
    place = Path(folder)
    try:
        report = collect(place)
        names = [source.name for source in report.sources]
        places = pick.find(place, keys) if keys else pick.pick(place, names, samples, seed)
        shown = pick.read(place, places)
        page = render(report, shown)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    except KeyError as error:
        raise click.ClickException(f"the manifest lacks {error}; run `pipeline verify {folder}`") from None
    target = out or place.resolve().with_name(f"{place.resolve().name}.html")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")
    click.echo(json.dumps({"command": "inspect", "page": str(target), "samples": len(shown), "bytes": len(page.encode())}))
