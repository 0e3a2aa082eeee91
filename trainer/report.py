"""Scores by source and the report that shows them: Markdown, JSON, every answer, and pictures of some.

    scores = summarise(answers)          {"all": {...}, "by_source": {name: {...}}}
    write_report(folder, answers, scores, pictures, about, examples=4)

A score and its blind twin stand side by side. Examples are the first of each source, not the best.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from trainer.metrics import exact_match, normalised_edit_distance, repetition_rate, smiles_scores
from trainer.tables import teds

THUMBNAIL = 384  # pixels of a picture's longer side in the report


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of a model: what it should be, what it is, and what it is with the images exchanged (None: no images).

    `stopped` is false for a text that did not end by itself.
    """

    source: str
    key: str
    number: int
    reference: str
    prediction: str
    blind: str | None
    stopped: bool


Scores = dict[str, Any]


def summarise(answers: Sequence[Answer]) -> Scores:
    """Scores of each source, and the mean over all answers of what every source has."""
    sources = sorted({answer.source for answer in answers})
    by_source = {source: _scores([answer for answer in answers if answer.source == source]) for source in sources}
    return {"all": _scores(answers, tasks=False), "by_source": by_source}


def _scores(answers: Sequence[Answer], *, tasks: bool = True) -> Scores:
    """Means over answers; blind_* over those with images, chemistry and tables (`tasks`) where references are such."""
    references = [answer.reference for answer in answers]
    predictions = [answer.prediction for answer in answers]
    seeing = [answer for answer in answers if answer.blind is not None]
    blind = [answer.blind or "" for answer in seeing]
    blind_references = [answer.reference for answer in seeing]
    scores: Scores = {"answers": len(answers), "with_images": len(seeing)}
    means: list[tuple[str, Callable[[str, str], float | None]]] = [
        ("edit_distance", normalised_edit_distance),
        ("exact_match", exact_match),
        ("repetition", lambda prediction, _: repetition_rate(prediction)),
    ]
    if tasks:
        means.append(("teds", teds))
    for name, score in means:
        scores |= _mean(name, score, predictions, references) | _mean(f"blind_{name}", score, blind, blind_references)
    scores["reference_repetition"] = sum(map(repetition_rate, references)) / len(references)
    scores["stopped"] = sum(answer.stopped for answer in answers) / len(answers)
    if tasks:
        for prefix, texts, truths in (("", predictions, references), ("blind_", blind, blind_references)):
            for name, value in (smiles_scores(texts, truths) or {}).items():
                scores[f"{prefix}smiles_{name}"] = value
    return scores


def _mean(
    name: str, score: Callable[[str, str], float | None], predictions: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    found = [value for value in map(score, predictions, references) if value is not None]
    return {name: sum(found) / len(found)} if found else {}


COLUMNS = (  # heading, score, whether a blind one stands beside it
    ("edit distance", "edit_distance", True),
    ("exact", "exact_match", True),
    ("repetition", "repetition", False),
    ("in references", "reference_repetition", False),
    ("SMILES exact", "smiles_exact", True),
    ("valid", "smiles_validity", True),
    ("Tanimoto", "smiles_tanimoto", True),
    ("TEDS", "teds", True),
)


def table_lines(scores: Scores) -> list[str]:
    """A Markdown table: one line a source, then all; columns that nothing fills are left out."""
    lines = {**scores["by_source"], "all": scores["all"]}
    used = [column for column in COLUMNS if any(column[1] in line for line in lines.values())]
    heads, keys = ["source", "answers"], []
    for heading, key, twin in used:
        heads += [heading, "blind"] if twin else [heading]
        keys += [key, f"blind_{key}"] if twin else [key]
    rows = [
        [name.replace("|", "\\|"), str(line["answers"]), *(f"{line[key]:.3f}" if key in line else "" for key in keys)]
        for name, line in lines.items()
    ]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def written(row: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"

    return [written(heads), written(rule), *map(written, rows)]


def fenced(text: str) -> str:
    """A text as a code block that nothing inside it can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def examples_of(answers: Sequence[Answer], count: int) -> list[Answer]:
    """The first `count` answers of each source."""
    sources = sorted({answer.source for answer in answers})
    return [answer for source in sources for answer in [one for one in answers if one.source == source][:count]]


def example_lines(answers: Sequence[Answer], width: int = 160) -> list[str]:
    """Truth and the model's own text under each other, for a terminal: one line each, cut at `width` characters."""

    def short(text: str) -> str:
        line = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))  # a text may hold escape codes
        return line if len(line) <= width else line[: width - 1] + "…"

    return [
        line
        for answer in answers
        for line in (f"{answer.source} {answer.key}", f"  truth  {short(answer.reference)}", f"  model  {short(answer.prediction)}")
    ]


def write_report(
    folder: Path,
    answers: Sequence[Answer],
    scores: Scores,
    pictures: Mapping[tuple[str, int], npt.NDArray[np.uint8]],
    about: Mapping[str, Any],
    examples: int,
) -> None:
    """report.md, report.json, answers.jsonl and pictures/ in `folder`.

    pictures: {(key, number of the answer): uint8 [height, width, 3]}. about: what was evaluated.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    shown = examples_of(answers, examples)
    lines = ["# Evaluation", "", *(f"- {name}: {value}" for name, value in about.items()), "", *table_lines(scores), ""]
    lines += [
        "Edit distance is normalised by the longer text (0 is best). Blind: the same question with another sample's picture;",
        "a model that reads does much worse blind. Repetition is the share of passages of 16 characters seen before in a text.",
    ]
    for index, answer in enumerate(shown):
        lines += ["", f"## {answer.source} · {answer.key}", ""]
        if (answer.key, answer.number) in pictures:
            image = Image.fromarray(pictures[answer.key, answer.number])
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            image.save(folder / "pictures" / f"{index:04d}.png")
            lines += [f"![picture](pictures/{index:04d}.png)", ""]
        lines += ["Truth:", "", fenced(answer.reference), "", "Model:", "", fenced(answer.prediction)]
        if answer.blind is not None:
            lines += ["", "Model, blind:", "", fenced(answer.blind)]
    (folder / "report.md").write_text("\n".join(lines) + "\n", "utf-8")
    report = {**about, **scores, "examples": [asdict(answer) for answer in shown]}
    (folder / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    with open(folder / "answers.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
