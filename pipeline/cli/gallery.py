"""`pipeline gallery SET`: random rows of a set as a contact sheet and a page."""

import json
from pathlib import Path

import click

from pipeline.cli import options


@click.command("gallery", epilog="""
\b
Examples:
  pipeline gallery chem
  pipeline gallery raw/HuggingFaceM4/FineVision/sroie --rows 12 --out sroie.png
""")
@click.argument("set_", metavar="SET")
@options.raw()
@click.option("--rows", type=click.IntRange(1, 1000), default=48, show_default=True, help="Rows to show.")
@click.option("--columns", type=click.IntRange(1, 20), default=6, show_default=True, help="Pictures a line.")
@click.option("--cell", type=click.IntRange(64, 1024), default=320, show_default=True, help="Pixels a picture.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which rows.")
@options.out(text="The PNG; the page lies beside it.  [default: gallery-SET.png]")
def command(set_: str, raw: Path, rows: int, columns: int, cell: int, seed: int, out: Path | None) -> None:
    """A contact sheet PNG and an HTML page of random rows with their targets.

    SET is a folder of parquet files, the name of a rendered or converted set, or a folder below --raw.
    """
    from pipeline.chem.gallery import choose_rows, find_files, read_rows, write_gallery

    places = [Path(set_), raw / "rendered" / set_, raw / "local" / set_, raw / set_]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None and Path(set_).is_file():
        raise click.ClickException(f"`{set_}` is a file; give the folder that it lies in")
    if folder is None:
        raise click.ClickException(
            f"no set `{set_}`: looked at {', '.join(map(str, places))}; make one with `pipeline render-chem`"
        )
    png = (out or Path(f"gallery-{folder.resolve().name}.png")).with_suffix(".png")
    try:
        shown = read_rows(choose_rows(find_files(folder), rows, seed))
        png.parent.mkdir(parents=True, exist_ok=True)
        write_gallery(shown, png, png.with_suffix(".html"), title=f"{folder.name}: {len(shown)} random rows",
                      columns=columns, cell=cell)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps({"rows": len(shown), "png": str(png), "html": str(png.with_suffix(".html"))}))
