"""Small tables with OTSL answers, cut out of the real ones of wtq_tables: what the recipes otsl.toml and html.toml read.

    python -m benchmarks.ablate_tables --data ../shared/data/hub --out runs/ablate-raw          # 20 s on a core

wtq_tables' own pictures hold tables of hundreds of characters that no one can read at 256 pixels, and Markdown answers. So each
real table gives up to --cuts small ones: its header and one to three following rows, two or three neighbouring columns, cells of
one to eight plain characters, drawn as a grid that fills the picture. The answer is OTSL; a recipe's `otsl = "html"` makes
HTML of it. Column canonical_smiles, which decides the validation split, holds the table's name: cuts of one table stay on one side.
"""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

from pipeline.seeds import rng
from pipeline.sources.otsl import Cell, Table, to_otsl

SIDE, MARGIN = 256, 6  # pixels
LONGEST = 8  # characters of a cell
PROMPT = "Read the table."
SCHEMA = pa.schema([
    ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
    ("texts", pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))),
    ("source", pa.string()), ("canonical_smiles", pa.string())])

Grid = list[list[str]]


def read_markdown(text: str) -> Grid:
    """The rows of a Markdown table, header first, its rule left out; [] if rows differ in length."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    rows = rows[:1] + rows[2:]
    return rows if rows and all(len(row) == len(rows[0]) for row in rows) else []


def cuts(grid: Grid, name: str, most: int) -> list[Grid]:
    """Up to `most` different small tables out of a large one, in seeded order."""
    fits = [[cell.isascii() and cell.isprintable() and 0 < len(cell) <= LONGEST and not set(cell) & set("<>&|") for cell in row]
            for row in grid]
    found = [[[grid[row][column] for column in range(left, left + width)] for row in (0, *range(top, top + height))]
             for width in (2, 3) for height in (1, 2, 3) for left in range(len(grid[0]) - width + 1)
             for top in range(1, len(grid) - height + 1)
             if all(fits[row][column] for row in (0, *range(top, top + height)) for column in range(left, left + width))]
    rng(0, "cuts", name).shuffle(found)
    return found[:most]


def otsl(grid: Grid) -> str:
    """A grid as OTSL, its first row as column headers."""
    cells = tuple(Cell(code="fcel" if row else "ched", text=text, row=row, column=column)
                  for row, line in enumerate(grid) for column, text in enumerate(line))
    return to_otsl(Table(rows=len(grid), columns=len(grid[0]), cells=cells))


def draw(grid: Grid) -> bytes:
    """A PNG of the grid: all columns as wide as the widest text, in the largest type that fits."""
    width, height = (SIDE - 2 * MARGIN) / len(grid[0]), (SIDE - 2 * MARGIN) / len(grid)
    texts = [text for line in grid for text in line]
    size = next(size for size in range(60, 5, -1) if 1.3 * size < height
                and max(map(ImageFont.load_default(size).getlength, texts)) < 0.9 * width)
    image = Image.new("L", (SIDE, SIDE), 255)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for row, line in enumerate(grid):
        for column, text in enumerate(line):
            left, top = MARGIN + column * width, MARGIN + row * height
            pen.rectangle((left, top, left + width, top + height), fill=255 if row else 225, outline=90)
            pen.text((left + width / 2, top + height / 2), text, fill=0, font=font, anchor="mm")
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Small tables with OTSL answers out of wtq_tables.")
    parser.add_argument("--data", type=Path, required=True, help="folder of hub snapshots: HuggingFaceM4/FineVision/... inside")
    parser.add_argument("--out", type=Path, required=True, help="a raw folder; rendered/small-tables is written below it")
    parser.add_argument("--cuts", type=int, default=16, help="small tables of a real one at most (default: %(default)s)")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    tables = 0
    for path in sorted((arguments.data / "HuggingFaceM4" / "FineVision" / "wtq_tables").glob("*.parquet")):
        for row in pq.read_table(path, columns=["images", "texts"]).to_pylist():
            answer = next((turn["assistant"] for turn in row["texts"] if turn["user"].endswith("to Markdown.")), "")
            name = row["images"][0]["path"]
            small = cuts(grid, name, arguments.cuts) if (grid := read_markdown(answer)) else []
            tables += bool(small)
            rows += [{"images": [{"bytes": draw(grid), "path": name}], "texts": [{"user": PROMPT, "assistant": otsl(grid)}],
                      "source": "wtq", "canonical_smiles": name} for grid in small]
    folder = arguments.out / "rendered" / "small-tables"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "train-00000-of-00001.parquet", row_group_size=100)
    print(json.dumps({"out": str(folder), "tables": tables, "rows": len(rows)}))
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
