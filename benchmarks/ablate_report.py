"""The report of an ablation: a section of a Markdown file, a plot and JSON beside it.

    write_report(Path("docs/ablation.md"), "sets", about, runs)      # and docs/ablation-sets.png, docs/ablation-sets.json

The section is replaced if it is there, and the rest of the file is left alone. Numbers are means over seeds with the lowest and
the highest; a recipe is called best at a source only if its worst seed is better than every other recipe's best.
"""

import json
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from trainer.plot import COLOURS, ticks

INTRO = """# Ablations: which data is better

Written by `just ablate` (benchmarks/ablate.py). In a section the same model is trained from scratch on several recipes, each for
the same number of target tokens, and every model is scored on one validation set: what the recipes hold out, all of them together.
None trains on any row of it. A number is the mean over seeds, with the lowest and the highest seed in parentheses; "blind" is the
same score with the pictures exchanged between samples, so a model whose score and blind score agree does not use the picture.
Best is a recipe only where its worst seed beats the best seed of every other; "-" says that the seeds do not tell them apart.
"""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A score as the scripts call it."""

    key: str
    title: str
    note: str
    high: bool = False  # whether more is better


MEASURES = (
    Measure(key="loss", title="Validation loss",
            note="Nats a target, over the whole shared set. A source or a notation that a recipe never saw costs it much."),
    Measure(key="edit_distance", title="Edit distance",
            note="Of the model's own text to the reference, over the longer of the two: 0 is equal, 1 nothing in common. "
                 "References in two notations are different texts, so this compares recipes within a source, never sources."),
    Measure(key="teds", title="TEDS (tables)", high=True,
            note="Of the model's table to the reference's, both read into rows of cells from HTML or OTSL alike "
                 "(trainer/tables.py): 1 is equal. It is the measure that both notations share; a text without a table counts 0."),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training and what its model scored on the shared set."""

    recipe: str
    seed: int
    steps: int
    targets: int
    samples: int
    passes: float
    seconds: float
    by_source: dict[str, dict[str, float]]


def values(runs: Sequence[Run], recipe: str, source: str, key: str) -> list[float]:
    """A score of every seed of a recipe."""
    return [run.by_source[source][key] for run in runs if run.recipe == recipe and key in run.by_source.get(source, {})]


def shown(numbers: Sequence[float], digits: int = 3) -> str:
    """Mean (lowest-highest), or the one number there is."""
    mean = f"{statistics.fmean(numbers):.{digits}f}" if numbers else ""
    return f"{mean} ({min(numbers):.{digits}f}-{max(numbers):.{digits}f})" if len(numbers) > 1 else mean


def best(found: Mapping[str, Sequence[float]], *, high: bool) -> str:
    """The recipe whose worst seed beats all others' best, or "-"."""
    sign = -1.0 if high else 1.0
    for name, own in found.items():
        others = [sign * value for other, numbers in found.items() if other != name for value in numbers]
        if own and others and max(sign * value for value in own) < min(others):
            return name
    return "-"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; all but the first column to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def section(name: str, about: Mapping[str, Any], runs: Sequence[Run], plot: str) -> str:
    """The Markdown of one comparison."""
    recipes = list(about["recipes"])
    sources = sorted({source for run in runs for source in run.by_source})
    lines = [f"## {name}: {', '.join(recipes)}", "", f"    {about['command']}", "",
             f"Model {about['model']}, mode {about['mode']}, {about['tokenizer_ids']} token ids, loss on {about['loss']}; "
             f"{about['targets']:,} target tokens asked for, {about['seeds']} seeds. Texts: up to {about['limit']} a source, "
             f"{about['max_new_tokens']} tokens at most. {about['machine']}.", "",
             *(f"- {recipe}: {about['recipes'][recipe]['description'] or 'no description'} "
               f"({', '.join(about['recipes'][recipe]['sources'])})" for recipe in recipes), ""]
    rows = []
    for recipe in recipes:
        own = [run for run in runs if run.recipe == recipe]
        low, high = min(run.targets for run in own), max(run.targets for run in own)
        rows.append([recipe, f"{about['recipes'][recipe]['targets_a_pass']:,}",
                     "-".join(str(steps) for steps in sorted({run.steps for run in own})), f"{low:,}" if low == high else
                     f"{low:,}-{high:,}", f"{statistics.fmean(run.samples for run in own):,.0f}",
                     f"{statistics.fmean(run.passes for run in own):.2f}", f"{statistics.fmean(run.seconds for run in own):.0f}"])
    lines += table(["recipe", "targets a pass", "steps", "targets trained on", "samples", "passes", "seconds"], rows)
    lines += ["", f"![{name}: scores by source]({plot})"]
    for measure in MEASURES:
        if body := measure_rows(measure, recipes, sources, runs):
            heads = ["source", *(part for recipe in recipes for part in (recipe, "blind")), "best"]
            lines += ["", f"### {name}: {measure.title}", "", measure.note, "", *table(heads, body)]
    silent = [source for source in sources if not any("answers" in run.by_source[source] for run in runs)]
    if silent:
        lines += ["", f"No text was asked for of {', '.join(silent)}: its answers use tools, or the sequence length cut them."]
    return "\n".join(lines) + "\n"


def measure_rows(measure: Measure, recipes: Sequence[str], sources: Sequence[str], runs: Sequence[Run]) -> list[list[str]]:
    """One row a source that has the score."""
    rows = []
    for source in sources:
        found = {recipe: values(runs, recipe, source, measure.key) for recipe in recipes}
        if any(found.values()):
            cells = [part for recipe in recipes for part in (
                shown(found[recipe]), shown(values(runs, recipe, source, f"blind_{measure.key}")))]
            rows.append([source, *cells, best(found, high=measure.high)])
    return rows


WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 1280, 420, 70, 70, 60


def panel(measure: Measure, recipes: Sequence[str], sources: Sequence[str], runs: Sequence[Run]) -> Image.Image | None:
    """One score: per source, a dot a recipe with a bar over its seeds, and a ring where it is blind; None without values."""
    points = {(source, recipe, blind): found for source in sources for recipe in recipes for blind in (False, True)
              if (found := values(runs, recipe, source, f"blind_{measure.key}" if blind else measure.key))}
    here = [source for source in sources if any(key[0] == source for key in points)]
    if not here:
        return None
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    pen.text((LEFT, 10), f"{measure.title} ({'higher' if measure.high else 'lower'} is better)", fill="black",
             font=ImageFont.load_default(16))
    numbers = [value for found in points.values() for value in found]
    pad = 0.06 * ((max(numbers) - min(numbers)) or 1)
    low, high = min(numbers) - pad, max(numbers) + pad

    def place(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP)

    for value in ticks(low, high):
        pen.line((LEFT, place(value), WIDTH - 20, place(value)), fill="#dddddd")
        pen.text((LEFT - 8, place(value)), f"{value:.4g}", fill="#444444", font=font, anchor="rm")
    wide = (WIDTH - 20 - LEFT) / len(here)
    for number, source in enumerate(here):
        pen.text((LEFT + (number + 0.5) * wide, HEIGHT - BOTTOM + 14), source, fill="#222222", font=font, anchor="ma")
        if number:
            pen.line((LEFT + number * wide, TOP, LEFT + number * wide, HEIGHT - BOTTOM), fill="#bbbbbb")
        for index, recipe in enumerate(recipes):
            colour, middle = COLOURS[index % len(COLOURS)], LEFT + (number + (index + 1) / (len(recipes) + 1)) * wide
            for blind, x in ((False, middle - 6), (True, middle + 6)):
                if found := points.get((source, recipe, blind)):
                    pen.line((x, place(min(found)), x, place(max(found))), fill=colour, width=2)
                    y = place(statistics.fmean(found))
                    pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill="white" if blind else colour, outline=colour, width=2)
    across = LEFT
    for index, recipe in enumerate(recipes):
        pen.ellipse((across, 42, across + 8, 50), fill=COLOURS[index % len(COLOURS)])
        pen.text((across + 14, 46), recipe, fill="#222222", font=font, anchor="lm")
        across += 40 + int(font.getlength(recipe))
    pen.ellipse((across, 42, across + 8, 50), outline="#444444", width=2)
    told = "blind: pictures exchanged; bars from the lowest to the highest seed"
    pen.text((across + 14, 46), told, fill="#222222", font=font, anchor="lm")
    return image


def draw(recipes: Sequence[str], sources: Sequence[str], runs: Sequence[Run]) -> Image.Image:
    """The panels of all measures under each other."""
    panels = [image for measure in MEASURES if (image := panel(measure, recipes, sources, runs)) is not None]
    sheet = Image.new("RGB", (WIDTH, HEIGHT * len(panels)), "white")
    for index, image in enumerate(panels):
        sheet.paste(image, (0, index * HEIGHT))
    return sheet


def machine() -> str:
    """What the numbers were taken on."""
    load = os.getloadavg()[0]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "tokenizers", "numpy"))
    return (f"{os.cpu_count()} cores ({platform.machine()}), load {load:.1f} at the end; Python {platform.python_version()}, "
            f"{versions}")


def write_report(doc: Path, name: str, about: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, str]:
    """Write the section, the plot and the JSON; returns where they are."""
    about = {**about, "machine": machine()}
    plot, data = doc.with_name(f"{doc.stem}-{name}.png"), doc.with_name(f"{doc.stem}-{name}.json")
    doc.parent.mkdir(parents=True, exist_ok=True)
    sources = sorted({source for run in runs for source in run.by_source})
    draw(list(about["recipes"]), sources, runs).save(plot, "PNG", optimize=True)
    data.write_text(json.dumps({**about, "runs": [asdict(run) for run in runs]}, indent=1) + "\n", "utf-8")
    text = doc.read_text("utf-8") if doc.exists() else INTRO
    parts = re.split(r"(?m)^(?=## )", text)
    kept = [part.rstrip() + "\n" for part in parts]
    mine = section(name, about, runs, plot.name)
    at = next((index for index, part in enumerate(kept) if part.startswith(f"## {name}: ")), None)
    if at is None:
        kept.append(mine)
    else:
        kept[at] = mine
    doc.write_text("\n".join(kept), "utf-8")
    return {"report": str(doc), "plot": str(plot), "json": str(data)}
