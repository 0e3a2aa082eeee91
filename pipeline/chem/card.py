"""The data card and picture grid of a rendered set."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from pipeline.chem.output import write_text

_YAML = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: train-*.parquet
task_categories:
- image-to-text
tags:
- chemistry
- ocsr
pretty_name: {name}
---
"""
_PREVIEW = 24  # pictures


def write_card(folder: Path, manifest: dict[str, Any]) -> None:
    """README.md beside the parquet files; the grid is shown when `preview.png` lies there."""
    identity, totals = manifest["identity"], manifest["totals"]
    job = identity["job"]
    rejects = "\n".join(f"| {reason} | {count:,} |" for reason, count in manifest["rejects"].items()) or "| none | 0 |"
    sources = "\n".join(f"- `{source['name']}`, {source['lines']:,} lines, sha256 `{source['sha256']}`"
                        for source in identity["sources"])
    versions = ", ".join(f"{name} {version}" for name, version in identity["versions"].items())
    grid = "![Some rows](preview.png)\n" if (folder / "preview.png").exists() else ""
    text = f"""{_YAML.format(name=json.dumps(manifest['name'], ensure_ascii=False))}
# {manifest['name']}: {totals['rows']:,} drawn molecules

Drawings by RDKit of {totals['molecules']:,} chosen molecules, less what is left out below; style
`{job['style']['name']}`, at most {job['size']} pixels a side, with the molecule as text: target
`{job['target']}`. The answer says what is drawn, also where the style added an isotope, a counter-ion or an R group
(`drawn_smiles`; `canonical_smiles` is the molecule it started from).

{grid}
| column | what |
| --- | --- |
| images, texts, source | as in FineVision: one picture, one question and answer |
| canonical_smiles | the source molecule; split train from validation by it |
| drawn_smiles | what the picture shows |
| style, style_values, seed, copy | the style file's name, what it drew for this row, the row's seed, the how-manieth picture |
| cid, row | the identifier in the source file, and its line |
| heavy_atoms, width, height | of the drawn molecule; of the picture in pixels |

## From

{sources}

## Left out

| reason | lines |
| --- | --- |
{rejects}

Each one is in `rejects.jsonl` with its line and details.

Made by `pipeline render-chem` with {versions}, seed {job['seed']}, shuffle seed {identity['shuffle_seed']}.
"""
    write_text(folder / "README.md", text)


def write_preview(folder: Path, names: list[str]) -> None:
    """preview.png: the first rows of the first of the set's files that has any."""
    import pyarrow.parquet as pq

    for name in names:
        with pq.ParquetFile(folder / name) as file:
            for batch in file.iter_batches(batch_size=_PREVIEW, columns=["images"]):
                pictures = [row[0]["bytes"] for row in batch.column("images").to_pylist()]
                if pictures:
                    write_grid(folder / "preview.png", pictures, columns=6, cell=200)
                    return


def write_grid(path: Path, pictures: list[bytes], *, columns: int, cell: int, captions: list[str] | None = None) -> None:
    """A contact sheet: pictures fitted into cells of `cell` pixels, row by row, each with its caption under it."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=max(10, cell // 20))
    strip = (cell // 20 + 6) * 2 if captions else 0
    lines = (len(pictures) + columns - 1) // columns
    sheet = Image.new("RGB", (columns * cell + 1, max(1, lines * (cell + strip) + 1)), (222, 222, 222))
    pen = ImageDraw.Draw(sheet)
    for index, data in enumerate(pictures):
        left, top = index % columns * cell + 1, index // columns * (cell + strip) + 1
        with Image.open(BytesIO(data)) as picture:
            small = picture.convert("RGB")
        small.thumbnail((cell - 1, cell - 1), Image.Resampling.LANCZOS, reducing_gap=3.0)
        sheet.paste(small, (left + (cell - 1 - small.width) // 2, top + (cell - 1 - small.height) // 2))
        if captions:
            pen.rectangle((left, top + cell - 1, left + cell - 2, top + cell + strip - 2), fill=(255, 255, 255))
            for line, text in enumerate(_fold(captions[index], font, cell - 8)):
                pen.text((left + 3, top + cell + 1 + line * (strip // 2)), text, fill=(0, 0, 0), font=font)
    out = BytesIO()
    # 64 colours keep a sheet of line drawings under a megabyte
    sheet.quantize(64, dither=Image.Dither.NONE).save(out, format="PNG", optimize=True)
    path.write_bytes(out.getvalue())


def _fold(text: str, font: Any, width: int) -> list[str]:
    """At most two lines that fit `width` pixels, the second cut with an ellipsis."""
    lines: list[str] = []
    text = " ".join(text[:400].split())
    while text and len(lines) < 2:
        count = len(text)
        while count > 1 and font.getlength(text[:count]) > width:
            count -= 1
        lines.append(text[:count])
        text = text[count:]
    if text:
        lines[-1] = lines[-1][:-1] + "…"
    return lines
