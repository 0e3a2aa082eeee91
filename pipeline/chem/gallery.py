"""A contact sheet of random rows of a FineVision-format set: one PNG, and one HTML page with full texts."""

import base64
import contextlib
import html
import random
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.chem.card import write_grid

MAX_IMAGE_BYTES, MAX_PIXELS, MAX_TEXT = 32 << 20, 40_000_000, 20_000


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One row of the sheet: its first picture, the turns as (question, answer), further columns as text."""

    label: str
    image: bytes
    images: int
    turns: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]


def find_files(folder: Path) -> list[Path]:
    """The parquet files of a set, hidden folders left out. Raises ValueError when there are none."""
    found = sorted(
        path for path in folder.rglob("*.parquet")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise ValueError(f"{folder}: no parquet files in it")
    return found


def choose_rows(files: list[Path], count: int, seed: int) -> list[tuple[Path, int]]:
    """`count` (file, row) pairs, drawn evenly over all rows, in the files' order. Raises ValueError where no file has pictures."""
    sizes, pictures = [], False
    for path in files:
        with _reading(path):
            file = pq.ParquetFile(path)
        sizes.append(file.metadata.num_rows)
        pictures = pictures or "images" in file.schema_arrow.names
    if not pictures:
        raise ValueError(f"{files[0].parent}: no column `images` in its parquet files; shards are shown by `pipeline inspect`")
    total = sum(sizes)
    picked = sorted(random.Random(seed).sample(range(total), min(count, total)))
    rows, start, index = [], 0, 0
    for number in picked:
        while number >= start + sizes[index]:
            start += sizes[index]
            index += 1
        rows.append((files[index], number - start))
    return rows


def read_rows(rows: list[tuple[Path, int]]) -> list[Shown]:
    """Reads just the row groups that hold the rows. Rows without a picture that decodes get a blank one."""
    shown = []
    for path, number in rows:
        file = pq.ParquetFile(path)
        group = 0
        while number >= file.metadata.row_group(group).num_rows:
            number -= file.metadata.row_group(group).num_rows
            group += 1
        with _reading(path):
            row = file.read_row_group(group).slice(number, 1).to_pylist()[0]
        shown.append(_show(f"{path.name} group {group} row {number}", row))
    return shown


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: no readable parquet file ({error})") from error


def write_gallery(rows: list[Shown], png: Path, page: Path, *, title: str, columns: int, cell: int) -> None:
    """Writes the sheet and the page. The page is one file: pictures inside, no script, every text escaped."""
    write_grid(png, [row.image for row in rows], columns=columns, cell=cell,
               captions=[row.turns[-1][1] if row.turns else "" for row in rows])
    cards = []
    for row in rows:
        kind = "jpeg" if row.image[:2] == b"\xff\xd8" else "png"
        data = base64.b64encode(row.image).decode()
        turns = "".join(f"<p class=q>{html.escape(user)}</p><p class=a>{html.escape(answer)}</p>" for user, answer in row.turns)
        facts = "".join(f"<tr><th>{html.escape(key)}<td>{html.escape(value)}" for key, value in row.facts)
        more = f"<p>first of {row.images} pictures</p>" if row.images > 1 else ""
        cards.append(f"<article><img alt='' src='data:image/{kind};base64,{data}'>{more}{turns}"
                     f"<details><summary>{html.escape(row.label)}</summary><table>{facts}</table></details></article>")
    page.write_text(_PAGE.format(title=html.escape(title), cards="\n".join(cards)), encoding="utf-8")


_PAGE = """<!doctype html><meta charset=utf-8><meta name=viewport content="width=device-width">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>body{{font:14px system-ui,sans-serif;margin:1rem;background:#eee;color:#111}}
main{{display:grid;grid-template-columns:repeat(auto-fill,minmax(18rem,1fr));gap:1rem}}
article{{background:#fff;padding:.6rem;border-radius:4px;overflow-wrap:anywhere}}img{{max-width:100%;display:block;margin:auto}}
.q{{color:#666;margin:.5rem 0 0}}.a{{font-family:ui-monospace,monospace;white-space:pre-wrap;margin:.2rem 0}}
table{{font-size:12px;text-align:left}}th{{vertical-align:top;padding-right:.5rem}}</style>
<h1>{title}</h1><main>
{cards}
</main>
"""


def _show(label: str, row: dict[str, object]) -> Shown:
    pictures = row.get("images") or []
    turns = row.get("texts") or []
    images = [item.get("bytes") for item in pictures if isinstance(item, dict)] if isinstance(pictures, list) else []
    pairs = [
        (str(turn.get("user") or "")[:MAX_TEXT], str(turn.get("assistant") or "")[:MAX_TEXT])
        for turn in (turns if isinstance(turns, list) else ()) if isinstance(turn, dict)
    ]
    facts = [(key, str(value)[:2000]) for key, value in row.items() if key not in ("images", "texts") and value is not None]
    return Shown(label=label, image=_safe(images[0] if images else None), images=len(images), turns=tuple(pairs),
                 facts=tuple(facts))


def _safe(data: object) -> bytes:
    """The picture if Pillow can read it as PNG or JPEG, re-encoded if it is anything else, else a grey blank."""
    from PIL import Image

    if isinstance(data, bytes) and len(data) <= MAX_IMAGE_BYTES:
        try:
            with Image.open(BytesIO(data)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError("too large to show")
                image.load()
                if image.format in ("PNG", "JPEG") and max(image.size) <= 4096:
                    return data
                image.thumbnail((2048, 2048))
                return _png(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            pass
    return _png(Image.new("L", (200, 200), 200))


def _png(image: object) -> bytes:
    from PIL import Image

    assert isinstance(image, Image.Image)
    out = BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()
