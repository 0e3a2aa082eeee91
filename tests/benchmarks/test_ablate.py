"""`just ablate`: nobody trains on the shared validation set, target tokens agree, losses are the trainer's, and it resumes."""

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
import torch

from benchmarks import ablate, ablate_loss, ablate_recipes, ablate_report
from benchmarks.ablate_tables import cuts, otsl, read_markdown
from pipeline.recipe import load_recipe
from pipeline.sources.otsl import convert_otsl
from tests.pipeline.made import in_process, make_raw, plan_of, read_samples, write_tokenizer
from tests.trainer.synthetic import make_directory
from trainer.data.batch import Rules
from trainer.data.loader import Loader
from trainer.data.store import open_directory
from trainer.model.config import SIZES
from trainer.model.vlm import VLM, save_pretrained
from trainer.monitor import look
from trainer.tables import teds

HEAD = """name = "{name}"
tokenizer = "tokenizer.json"
mode = "micro"
seq_len = 512
validation = {validation}
shard_samples = 30
[train]
model = "micro"
batch_rows = 1
loss = "answer"
warmup_steps = 2
"""
WORDS = '[sources."words(made)"]\n'
TALK = "[sources.talk]\n"


def recipe(folder: Path, name: str, sources: str, validation: float = 0.3) -> Path:
    """A recipe file beside its tokenizer."""
    write_tokenizer(folder)
    path = folder / f"{name}.toml"
    path.write_text(HEAD.format(name=name, validation=validation) + sources)
    return path


def build(path: Path, raw: Path) -> Path:
    """Its shard directory."""
    out = path.with_suffix("")
    in_process(plan_of(path, raw), out, path)
    return out


def contents(folder: Path, split: str) -> set[str]:
    """What a split's samples show and say: a hash of the pictures, of the ids where there is none."""
    return {hashlib.sha256(b"".join(data for name, data in sample.images) or sample.ids.tobytes()).hexdigest()
            for sample in read_samples(folder, split)}


def test_no_recipe_trains_on_the_shared_validation_set(tmp_path: Path) -> None:
    raw = make_raw(tmp_path / "raw")  # rows 40 to 44 of words(made) are twins of its first
    paths = [recipe(tmp_path, "a", WORDS + "quota = 20\n"), recipe(tmp_path, "b", WORDS + TALK)]
    shared = tmp_path / "shared.toml"
    shared.write_text(ablate_recipes.union(ablate_recipes.read_recipes(paths)))
    folders = {path.stem: build(path, raw) for path in paths}
    together = build(shared, raw)
    held_out = contents(together, "val")
    assert held_out == contents(folders["a"], "val") | contents(folders["b"], "val")
    assert contents(folders["a"], "val")
    assert contents(folders["b"], "val") > contents(folders["a"], "val")
    for folder in folders.values():
        assert contents(folder, "train")
        assert not contents(folder, "train") & held_out
    ablate_recipes.check_held_out(together, folders)
    with pytest.raises(ValueError, match=r"b trains on held-out rows: \d+, as "):  # it holds out less: the rest it trains on
        ablate_recipes.check_held_out(together, {"b": build(recipe(tmp_path, "less", WORDS + TALK, 0.1), raw)})
    with pytest.raises(ValueError, match="b holds out rows of its own"):
        ablate_recipes.check_held_out(folders["a"], {"b": folders["b"]})


def test_the_union_has_every_source_at_its_largest(tmp_path: Path) -> None:
    rules = 'prompts = ["Read \\"it\\".", "{user}"]\nmin_ratings = {relevance = 3}\n'
    a = recipe(tmp_path, "a", WORDS + "quota = 20\nrepeats = 2\n" + rules)
    b = recipe(tmp_path, "b", WORDS + "quota = 9\n" + rules + TALK)
    path = tmp_path / "shared.toml"
    path.write_text(ablate_recipes.union(ablate_recipes.read_recipes([a, b])))
    shared = load_recipe(str(path))
    assert [(source.name, source.quota, source.repeats) for source in shared.sources] == [("words(made)", 20, 1), ("talk", None, 1)]
    assert shared.sources[0].options == load_recipe(str(a)).sources[0].options
    assert (shared.seq_len, shared.validation, dict(shared.train)) == (512, 0.3, dict(load_recipe(str(a)).train))


def test_recipes_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    a = recipe(tmp_path, "a", WORDS)
    with pytest.raises(ValueError, match=r"validation is 0.1 in .*less.toml and 0.3 in .*a.toml"):
        ablate_recipes.read_recipes([a, recipe(tmp_path, "less", TALK, 0.1)])
    with pytest.raises(ValueError, match="holds nothing out"):
        ablate_recipes.read_recipes([recipe(tmp_path, "none", WORDS, 0.0), a])
    with pytest.raises(ValueError, match="told apart by name"):
        ablate_recipes.read_recipes([a, a])
    other = recipe(tmp_path, "other", WORDS + "max_turns = 1\n")
    with pytest.raises(ValueError, match=r"\[sources.words\(made\)\] of .*other.toml is not that of another recipe"):
        ablate_recipes.union(ablate_recipes.read_recipes([a, other]))


def test_losses_by_source_are_those_the_trainer_sees(tmp_path: Path) -> None:
    folder = make_directory(tmp_path / "s", val_rows=6)
    directory = open_directory(str(folder))
    rules = Rules.of(directory.manifest, "all")
    torch.manual_seed(0)
    model = VLM(SIZES["micro"].with_tokens(vocab_size=rules.vocab_size, image_token_id=rules.image_id))
    (tmp_path / "model").mkdir()
    save_pretrained(model, tmp_path / "model", (folder / "tokenizer.json").read_bytes(),
                    {"mode": "micro", "specials": directory.manifest["specials"]})
    found = ablate_loss.losses(str(folder), tmp_path / "model", "cpu")
    loader = Loader([directory], rules=rules, split="val", rows=ablate_loss.ROWS, workers=0)
    seen = look(model, loader.batches([[(0, row) for row in range(6)]]), sorted(found), contextlib.nullcontext)
    assert {source: score["loss"] for source, score in found.items()} == pytest.approx(seen.by_source, rel=1e-5)
    picture = found["colours-micro"]
    assert picture["blind_loss"] - picture["loss"] == pytest.approx(seen.gap, rel=1e-3)
    assert "blind_loss" not in found["text"]


def made_files(folder: Path) -> dict[Path, int]:
    """Every file below a folder and when it was written."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_command_trains_alike_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = make_raw(tmp_path / "raw")
    paths = [recipe(tmp_path, "a", WORDS), recipe(tmp_path, "b", WORDS + TALK)]
    arguments = [*map(str, paths), "--raw", str(raw), "--work", str(tmp_path / "work"), "--tokenizer",
                 str(tmp_path / "tokenizer.json"), "--targets", "150", "--limit", "2", "--max-new-tokens", "4", "--jobs", "2"]
    assert ablate.main([*arguments, "--seeds", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    report = json.loads(Path(told["json"]).read_text())
    largest = max(ablate_recipes.targets_of_rows(next((tmp_path / "work" / "shards").glob(f"{name}-*")), "answer").max()
                  for name in "ab")
    assert {run["recipe"] for run in report["runs"]} == {"a", "b"}
    for run in report["runs"]:  # in log.jsonl's own numbers; a step is a row here
        assert 2 * abs(run["targets"] - 150) <= largest
        assert set(run["by_source"]) == {"words(made)", "talk"}
        assert {"loss", "blind_loss", "edit_distance", "blind_edit_distance"} <= set(run["by_source"]["words(made)"])
    made = made_files(tmp_path / "work" / "runs")
    assert [path.name for path in made].count("log.jsonl") == 2
    assert ablate.main([*arguments, "--seeds", "1"]) == 0
    assert made_files(tmp_path / "work" / "runs") == made
    assert json.loads(Path(json.loads(capsys.readouterr().out)["json"]).read_text())["runs"] == report["runs"]


def runs(**losses: list[float]) -> list[ablate_report.Run]:
    """Runs of one source, one a seed."""
    return [ablate_report.Run(recipe=name, seed=seed, steps=3, targets=30, samples=9, passes=1.5, seconds=2.0,
                              by_source={"s": {"loss": value, "blind_loss": value + 1}})
            for name, values in losses.items() for seed, value in enumerate(values)]


def test_best_needs_every_seed(tmp_path: Path) -> None:
    assert ablate_report.best({"a": [1.0, 2.0], "b": [2.1, 3.0]}, high=False) == "a"
    assert ablate_report.best({"a": [1.0, 2.2], "b": [2.1, 3.0]}, high=False) == "-"
    assert ablate_report.best({"a": [1.0, 2.0], "b": [2.1, 3.0]}, high=True) == "b"
    assert ablate_report.best({"a": [1.0], "b": []}, high=False) == "-"


def test_a_section_replaces_itself_alone(tmp_path: Path) -> None:
    about = {"command": "just ablate", "targets": 30, "seeds": 2, "model": "micro", "loss": "all", "limit": 2, "max_new_tokens": 4,
             "mode": "micro", "tokenizer_ids": 512,
             "recipes": {name: {"targets_a_pass": 20, "description": "", "sources": ["s"]} for name in "ab"}}
    doc = tmp_path / "ablation.md"
    ablate_report.write_report(doc, "one", about, runs(a=[1.0, 2.0], b=[2.5, 3.5]))
    first = doc.read_text()
    assert "| s | 1.500 (1.000-2.000) | 2.500 (2.000-3.000) | 3.000 (2.500-3.500) | 4.000 (3.500-4.500) | a |" in first
    ablate_report.write_report(doc, "two", about, runs(a=[1.0], b=[0.5]))
    both = doc.read_text()
    assert both.startswith(first)
    assert both.count("\n## two: ") == 1
    ablate_report.write_report(doc, "one", about, runs(a=[1.0, 2.0], b=[2.5, 3.5]))
    assert doc.read_text() == both
    assert (tmp_path / "ablation-one.png").stat().st_size > 1000


def test_small_tables_are_cut_from_real_ones_and_say_the_same_in_both_notations() -> None:
    grid = read_markdown("Text\n| Year | Team | Far too long |\n| --- | --- | --- |\n| 1990 | Ajax |  |\n| 1991 | PSV | x |")
    assert grid == [["Year", "Team", "Far too long"], ["1990", "Ajax", ""], ["1991", "PSV", "x"]]
    found = cuts(grid, "name", 10)
    assert sorted(found) == sorted([[["Year", "Team"], ["1990", "Ajax"]], [["Year", "Team"], ["1991", "PSV"]],
                                    [["Year", "Team"], ["1990", "Ajax"], ["1991", "PSV"]]])
    assert cuts(grid, "name", 2) == found[:2]
    text = otsl(found[0])
    assert text.startswith("<ched>Year<ched>Team<nl><fcel>199")
    assert teds(convert_otsl(text, "html"), text) == 1.0
    assert read_markdown("| a | b |\n| --- | --- |\n| 1 |") == []
