"""The report of benchmarks/reading.py: scores of every model beside its blind control, and held-out pictures with its text.

    table(entries)               lines of Markdown
    write(Path("docs/reading.md"), entries)        that table, when each began to look, and a sheet of pictures, docs/reading.png

Pictures are the first ones of each test, not the best.
"""

import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

CELL, TEXT, COLUMNS, SHOWN = 128, 34, 8, 16
MARK = "<!-- made by benchmarks.reading: what stands below is written anew by each run -->"


def blind_at(run: Path) -> int | None:
    """The step at which the trainer stopped a run because it had stopped looking at the pictures, if it did."""
    events = run / "events.jsonl"
    lines = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    return next((line["step"] for line in lines if line.get("event") == "collapse"), None)


def curve_of(run: Path) -> dict[str, Any]:
    """From a run's logs: samples read until the gap between exchanged and true pictures passed .5, last loss, minutes of steps."""
    steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    seen = {entry["step"]: entry["samples_seen"] for entry in steps}
    looks = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    looked = next((seen[line["step"]] for line in looks if line.get("eval", {}).get("gap", 0) > 0.5), None)
    return {"blind_at": blind_at(run), "samples": steps[-1]["samples_seen"], "looked_at": looked, "loss": steps[-1]["loss"],
            "minutes": sum(entry["seconds"] for entry in steps) / 60}


def table(entries: list[dict[str, Any]]) -> str:
    """One line a model and test."""
    lines = ["| model | seed | started from | test | answers | exact | blind | edit distance | blind | looked after | minutes |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]
    for entry in entries:
        looked = f"{entry['looked_at']:,} pictures" if entry["looked_at"] else "never"
        if not entry["scores"]:
            lines.append(f"| {entry['name']} | {entry['seed']} | {entry['init'] or 'scratch'} | stopped by the trainer: blind at "
                         f"step {entry['blind_at']} | | | | | | {looked} | {entry['minutes']:.1f} |")
        for test, scores in entry["scores"].items():
            lines.append(
                f"| {entry['name']} | {entry['seed']} | {entry['init'] or 'scratch'} | {test} | {scores['answers']} | "
                f"{scores['exact_match']:.1%} | {scores['blind_exact_match']:.1%} | {scores['edit_distance']:.3f} | "
                f"{scores['blind_edit_distance']:.3f} | {looked} | {entry['minutes']:.1f} |")
    return "\n".join(lines)


def sheet(tests: list[tuple[str, Path]]) -> Image.Image:
    """Pictures with truth and text below, COLUMNS a line, a heading a test."""
    font, heading = ImageFont.load_default(12), ImageFont.load_default(15)
    lines = SHOWN // COLUMNS
    height = len(tests) * (28 + lines * (CELL + TEXT + 8))
    page = Image.new("RGB", (COLUMNS * (CELL + 8) + 8, height), "white")
    pen, top = ImageDraw.Draw(page), 0
    for title, folder in tests:
        pen.text((8, top + 6), title, fill="black", font=heading)
        top += 28
        for at, answer in enumerate(json.loads((folder / "report.json").read_text())["examples"][:SHOWN]):
            left, above = 8 + at % COLUMNS * (CELL + 8), top + at // COLUMNS * (CELL + TEXT + 8)
            picture = Image.open(folder / "pictures" / f"{at:04d}.png").convert("RGB").resize((CELL, CELL))
            page.paste(picture, (left, above))
            pen.rectangle((left, above, left + CELL, above + CELL), outline=(200, 200, 200))
            right = answer["prediction"] == answer["reference"]
            pen.text((left, above + CELL + 2), answer["reference"], fill="black", font=font)
            pen.text((left, above + CELL + 17), answer["prediction"], fill=(0, 120, 0) if right else (190, 0, 0), font=font)
        top += lines * (CELL + TEXT + 8)
    return page


def write(report: Path, entries: list[dict[str, Any]]) -> None:
    """Replace what stands below MARK in the report (or begin one), and draw its picture beside it."""
    first, carried = entries[0], [entry for entry in entries if entry["init"]][-1]
    tests = [(f"strings never seen, {first['name']}", first["reports"]["strings"]),
             (f"grown molecules never seen, {carried['name']}", carried["reports"]["molecules"]),
             (f"real molecules, {carried['name']}", carried["reports"]["real"])]
    sheet([(title, Path(folder)) for title, folder in tests]).save(report.with_suffix(".png"), optimize=True)
    above = report.read_text("utf-8").partition(MARK)[0] if report.exists() else "# A model that reads\n\n"
    report.write_text("\n".join([above.rstrip(), "", MARK, "", table(entries), "",
                                 "First pictures of each test; below each the truth, and in green or red the model's own text.", "",
                                 f"![held-out pictures with the model's text]({report.with_suffix('.png').name})", ""]), "utf-8")
