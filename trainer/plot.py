"""Curves of one or several runs as a PNG, drawn with Pillow alone.

    python trainer/plot.py runs/demo                        # writes runs/demo/curves.png
    python trainer/plot.py runs/a runs/b --out both.png     # the runs over each other

Four panels: loss (training, validation, and validation with the images exchanged), what the pictures are worth
(the difference of the last two), how much the features depend on the picture, and gradient norm with the learning rate.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, MARGIN = 640, 400, 64  # of a panel, pixels
COLOURS = ("#1f4e9c", "#d1571f", "#2b8a3e", "#8b3fa0", "#b8860b", "#4a4a4a")
Points = list[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a panel."""

    name: str
    points: Points
    dots: bool = False


def read_log(path: Path) -> list[dict[str, object]]:
    """The objects of a log.jsonl and of the events.jsonl beside it; ValueError if there are no steps."""
    entries = []
    for file in (path, path.with_name("events.jsonl")):
        for line in file.read_text("utf-8").splitlines() if file.exists() else ():
            try:
                entries.append(json.loads(line))
            except ValueError:
                continue  # a line that a kill cut short
    if not any("loss" in entry for entry in entries):
        raise ValueError(f"{path} holds no steps yet: train first, or name the run's folder")
    return entries


def series(entries: Sequence[dict[str, object]], name: str, group: str = "") -> Points:
    """(step, value) of a field of the steps, or of the evaluations with group="eval"; other lines have none."""
    found = []
    for entry in entries:
        values = entry.get(group) if group else entry
        value = values.get(name) if isinstance(values, dict) else None
        step = entry.get("step")
        if isinstance(step, int) and isinstance(value, (int, float)) and math.isfinite(value):
            found.append((float(step), float(value)))
    return found


def smooth(points: Points, half: int) -> Points:
    """Means over `half` neighbours on both sides."""
    values = [y for _, y in points]
    means = []
    for at, (x, _) in enumerate(points):
        near = values[max(0, at - half):at + half + 1]
        means.append((x, sum(near) / len(near)))
    return means


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that divide low ... high."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    return [step * index for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def panel(title: str, curves: Sequence[Curve], *, log: bool = False) -> Image.Image:
    """One diagram; with `log` the vertical axis counts decades."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    draw.text((MARGIN, 12), title, fill="black", font=ImageFont.load_default(16))
    curves = [Curve(name=c.name, dots=c.dots, points=[(x, math.log10(y) if log else y) for x, y in c.points if y > 0 or not log])
              for c in curves]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        draw.text((MARGIN, HEIGHT // 2), "no data", fill="gray", font=font)
        return image
    xs, ys = ([point[axis] for curve in curves for point in curve.points] for axis in (0, 1))
    left, right, low, high = 0.0, max(xs) or 1.0, min(ys), max(ys)
    low, high = low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)

    def place(x: float, y: float) -> tuple[float, float]:
        return (MARGIN + (x - left) / (right - left) * (WIDTH - MARGIN - 20),
                HEIGHT - 44 - (y - low) / (high - low) * (HEIGHT - 44 - 64))

    marks = list(map(float, range(math.ceil(low), math.floor(high) + 1))) if log else []
    for y in marks if len(marks) > 1 else ticks(low, high):
        at = place(left, y)[1]
        draw.line((MARGIN, at, WIDTH - 20, at), fill="#dddddd")
        draw.text((MARGIN - 6, at), f"{10 ** y:.3g}" if log else f"{y:.4g}", fill="#444444", font=font, anchor="rm")
    for x in ticks(left, right):
        at = place(x, low)[0]
        draw.line((at, HEIGHT - 44, at, HEIGHT - 40), fill="#444444")
        draw.text((at, HEIGHT - 36), f"{x:g}", fill="#444444", font=font, anchor="ma")
    draw.text((WIDTH - 20, HEIGHT - 18), "step", fill="#444444", font=font, anchor="ra")
    across, down = MARGIN, 40
    for index, curve in enumerate(curves):
        colour, points = COLOURS[index % len(COLOURS)], [place(x, y) for x, y in curve.points]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2, joint="curve")
        if curve.dots or len(points) == 1:
            for x, y in points:
                draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        length = int(font.getlength(curve.name))
        if across > MARGIN and across + 19 + length > WIDTH:
            across, down = MARGIN, down + 15
        draw.line((across, down, across + 14, down), fill=colour, width=3)
        draw.text((across + 19, down), curve.name, fill="#222222", font=font, anchor="lm")
        across += 34 + length
    return image


def draw_runs(runs: dict[str, list[dict[str, object]]]) -> Image.Image:
    """All four panels of these runs' logs."""
    loss, gap, features, norms = list[Curve](), list[Curve](), list[Curve](), list[Curve]()
    for run, entries in runs.items():
        tag = f" {run}" if len(runs) > 1 else ""
        full = [entry for entry in entries if isinstance(seen := entry.get("eval"), dict) and seen.get("kind") == "evaluation"]
        train = series(entries, "loss")
        loss += [Curve(name=f"training{tag}", points=smooth(train, len(train) // 100)),
                 Curve(name=f"validation{tag}", points=series(full, "loss", "eval"), dots=True),
                 Curve(name=f"images exchanged{tag}", points=series(full, "blind_loss", "eval"), dots=True)]
        gap.append(Curve(name=f"difference{tag}", points=series(entries, "gap", "eval"), dots=True))
        features += [Curve(name=f"compressor{tag}", points=series(entries, "vf_compressor", "eval"), dots=True),
                     Curve(name=f"projector{tag}", points=series(entries, "vf_projector", "eval"), dots=True)]
        norms += [Curve(name=f"gradient norm{tag}", points=series(entries, "grad_norm")),
                  Curve(name=f"SAM's{tag}", points=series(entries, "sam_grad_norm")),
                  Curve(name=f"learning rate{tag}", points=series(entries, "lr"))]
    panels = [panel("loss", loss), panel("loss with images exchanged - loss (0: blind)", gap),
              panel("variance between images / mean square of features", features, log=True),
              panel("gradient norm, learning rate", norms, log=True)]
    sheet = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT), "white")
    for index, image in enumerate(panels):
        sheet.paste(image, (index % 2 * WIDTH, index // 2 * HEIGHT))
    return sheet


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="plot.py", description="Draw the curves of runs as a PNG.",
                                     epilog="example: python trainer/plot.py runs/demo")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, or a log.jsonl")
    parser.add_argument("--out", type=Path, help="the PNG (default: curves.png in the first run's folder)")
    arguments = parser.parse_args(argv)
    try:
        logs = [run if run.is_file() else run / "log.jsonl" for run in arguments.runs]
        names = [log.parent.name if log.name == "log.jsonl" else log.stem for log in logs]
        if len(set(names)) < len(names):  # a/run and b/run
            names = [str(run) for run in arguments.runs]
        out = arguments.out or logs[0].parent / "curves.png"
        draw_runs(dict(zip(names, map(read_log, logs)))).save(out, "PNG")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"out": str(out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
