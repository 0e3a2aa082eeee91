"""What several recipes share: one validation set, one tokenizer's text, and steps that hold the same number of target tokens.

    recipes = read_recipes([Path("a.toml"), Path("b.toml")])    # ValueError where they differ in more than their sources
    union(recipes)                                              # TOML of one recipe with the sources of all
    check_held_out(shared, {"a": folder_a, "b": folder_b})      # ValueError if a model would train on a held-out row
    steps_for(folder, batch_rows=8, seed=0, targets=100_000, loss="answer")

A sample is held out by a hash of its content (its key), so with the same `validation` what is held out under one recipe is held out
under all, and the validation split of the union's build is the union of theirs. That is checked on the built tables all the same:
a key of a text sample is its text, and an option that changes the text (another prompt) changes the key.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline.recipe import Recipe, load_recipe
from shards import table
from trainer.data.order import Order

SAME = ("seed", "mode", "seq_len", "validation", "decontaminate", "dedup", "train")
AMOUNTS = ("quota", "repeats")  # in what the table of a source may differ from recipe to recipe


@dataclass(frozen=True, kw_only=True)
class Read:
    """A recipe, checked, and its file's own tables."""

    path: Path
    recipe: Recipe
    body: dict[str, Any]


def read_recipes(paths: Sequence[Path]) -> list[Read]:
    """The recipes; ValueError unless they have names of their own, a validation split, and differ in sources alone."""
    found = [Read(path=path, recipe=load_recipe(str(path)), body=tomllib.loads(path.read_text("utf-8"))) for path in paths]
    first = found[0]
    if first.recipe.validation == 0:
        raise ValueError(f"{first.path}: validation = 0 holds nothing out to compare on; set it to 0.05, say, in all recipes")
    names = [read.recipe.name for read in found]
    if len(set(names)) < len(names):
        raise ValueError(f"recipes are told apart by name, and these are called {', '.join(names)}")
    for read in found[1:]:
        for key in SAME:
            if (mine := getattr(read.recipe, key)) != (wanted := getattr(first.recipe, key)):
                raise ValueError(f"{key} is {mine} in {read.path} and {wanted} in {first.path}: only sources may differ")
    return found


def union(reads: Sequence[Read]) -> str:
    """TOML of a recipe with all sources, each as large as the largest; ValueError if one name stands for two things."""
    sources: dict[str, dict[str, Any]] = {}
    for read in reads:
        for name, body in read.body["sources"].items():
            body = {**body, **({"path": str(read.path.resolve().parent / body["path"])} if "path" in body else {})}
            quota = body.pop("quota", "all")
            body.pop("repeats", None)
            known = sources.setdefault(name, {**body, "quota": quota})
            if {**known, "quota": 0} != {**body, "quota": 0}:
                raise ValueError(f"[sources.{name}] of {read.path} is not that of another recipe, in more than "
                                 f"{' and '.join(AMOUNTS)}: give it a name of its own")
            known["quota"] = "all" if "all" in (quota, known["quota"]) else max(quota, known["quota"])
    head = {key: value for key, value in reads[0].body.items() if key not in ("name", "description", "sources", "train")}
    if "decontaminate" in head:
        head["decontaminate"] = str(reads[0].path.resolve().parent / head["decontaminate"])
    lines = ['name = "shared"', *(f"{key} = {_toml(value)}" for key, value in head.items())]
    for title, body in (("train", reads[0].body.get("train", {})), *((f"sources.{json.dumps(k)}", v) for k, v in sources.items())):
        lines += [f"[{title}]", *(f"{key} = {_toml(value)}" for key, value in body.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)  # strings, numbers and booleans are written alike


def rows_of(folder: Path, split: str) -> set[tuple[str, str]]:
    """(place of the source below raw, row there) of a split's samples, whatever the recipe calls the source."""
    sources = json.loads((folder / "manifest.json").read_text())["sources"]
    places = {name: f"{source['kind']} {source['repo']} {'' if source['folder'] is None else source['folder']}"
              for name, source in sources.items()}
    samples = pq.read_table(folder / "samples.parquet", columns=["split", "source", "row"]).to_pylist()
    return {(places[line["source"]], line["row"]) for line in samples if line["split"] == split}


def check_held_out(shared: Path, folders: Mapping[str, Path]) -> None:
    """ValueError if a recipe trains on a row of the shared validation set, or holds one out that is not in it."""
    held_out = rows_of(shared, "val")
    if not held_out:
        raise ValueError(f"{shared} holds nothing out: set a larger `validation` in the recipes")
    for name, folder in folders.items():
        trained, own = rows_of(folder, "train"), rows_of(folder, "val")
        for what, rows in (("trains on held-out rows", trained & held_out), ("holds out rows of its own", own - held_out)):
            if rows:
                place, row = min(rows)
                raise ValueError(f"{name} {what}: {len(rows)}, as {row} of {place}. The split goes by content, which for a text "
                                 "is its words: do not let options change the words of a text that two recipes share")


def targets_of_rows(folder: Path, loss: str) -> npt.NDArray[np.int64]:
    """Targets of each packed training row, in the order of rows.npy: int64 [rows]."""
    column = "answer_tokens" if loss == "answer" else "targets"
    samples = pq.read_table(folder / "samples.parquet", columns=["split", "shard", "packed_row", column])
    split, shard, row, count = (np.asarray(samples[name].to_pylist()) for name in samples.column_names)
    train = split == "train"
    shards = table.load(folder / "rows.npy")["shard"].astype(np.int64)
    starts = np.searchsorted(shards, shard[train])  # rows are ordered by shard
    targets: npt.NDArray[np.int64] = np.zeros(len(shards), np.int64)
    np.add.at(targets, starts + row[train], count[train])
    return targets


def steps_for(folder: Path, *, batch_rows: int, seed: int, targets: int, loss: str) -> tuple[int, int]:
    """(steps, targets in them) of the run that comes nearest to the targets wanted; the order of rows is a function of the seed.

    Worked example: steps of 7, 5 and 6 targets and 14 wanted: two steps hold 12, three 18, so (2, 12).
    """
    of_row = targets_of_rows(folder, loss)
    rows = table.load(folder / "rows.npy")
    order = Order([rows["shard"]], [rows["patches"]], batch_rows=batch_rows, seed=seed)
    step = total = before = 0
    while total < targets or not step:
        before = total
        total += int(sum(of_row[row] for _, row in order.batch(step)))
        step += 1
    return (step, total) if step == 1 or total - targets <= targets - before else (step - 1, before)
