"""Pictures of short random strings, as a FineVision-format set: a reading task whose difficulty is a dial.

    python -m benchmarks.reading_text --n 120000 --out raw/drawn/strings     # 40 s on one core, 100 MB

A string of 2 to 4 capitals and digits is drawn on two lines so that it fills a square canvas: a small model first has to find
out that the picture matters at all, and it does so the sooner the more of the canvas differs between pictures. Font, size,
place and ink vary. Every string is drawn once, so a held-out string was never seen in any form. Same seed, same bytes.
"""

import argparse
import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SIDE = 128
FONT = 64  # pixels at which letters are drawn before they are stretched
PROMPT = "Read."
GROUP_ROWS = 1000
TEXTS = pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())]))
IMAGES = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
SCHEMA = pa.schema([("images", IMAGES), ("texts", TEXTS), ("source", pa.string())])


def strings(count: int, rng: random.Random) -> list[str]:
    """So many different strings of 2 to 4 characters, in an order of their own."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices(ALPHABET, k=rng.randint(2, 4)))] = None
    return list(found)


def draw(text: str, rng: random.Random) -> bytes:
    """The string as a gray PNG of 128x128 pixels: its first half above its second, each stretched over most of the width."""
    paper, ink = rng.randint(200, 255), rng.randint(0, 90)
    canvas = Image.new("L", (SIDE, SIDE), paper)
    font, stroke = ImageFont.load_default(FONT), rng.choice((0, 0, 1, 2))  # Aileron, which ships inside Pillow
    half = (len(text) + 1) // 2
    for line, part in enumerate((text[:half], text[half:])):
        glyphs = Image.new("L", (4 * FONT, 2 * FONT), 0)
        ImageDraw.Draw(glyphs).text((FONT // 2, FONT // 4), part, fill=255, font=font, stroke_width=stroke)
        box = glyphs.getbbox()
        assert box is not None
        width, height = round(SIDE * rng.uniform(0.8, 0.97)), round(SIDE / 2 * rng.uniform(0.7, 0.92))
        if len(part) == 1:
            width //= 2
        mask = glyphs.crop(box).resize((width, height), Image.Resampling.BILINEAR)
        left = round((SIDE - width) * rng.random())
        top = line * SIDE // 2 + round((SIDE / 2 - height) * rng.random())
        canvas.paste(ink, (left, top), mask)
    out = io.BytesIO()
    canvas.save(out, "PNG", compress_level=1)
    return out.getvalue()


def write(folder: Path, count: int, seed: int) -> int:
    """Write the set; returns its rows. Memory: one row group."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    texts = strings(count, rng)
    partial = folder / ".partial"
    with pq.ParquetWriter(partial, SCHEMA, compression="none") as writer:
        for at in range(0, count, GROUP_ROWS):
            rows: list[dict[str, Any]] = [
                {"images": [{"bytes": draw(text, rng), "path": None}], "texts": [{"user": PROMPT, "assistant": text}],
                 "source": folder.name} for text in texts[at:at + GROUP_ROWS]]
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    partial.rename(folder / "train-00000-of-00001.parquet")
    return count


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Draw random strings as a FineVision-format set.")
    parser.add_argument("--n", type=int, default=120_000)
    parser.add_argument("--out", type=Path, required=True, help="folder of the set, as raw/drawn/strings")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{write(arguments.out, arguments.n, arguments.seed)} rows in {arguments.out}")


if __name__ == "__main__":
    main()
