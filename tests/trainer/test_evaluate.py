"""Evaluation: questions out of shards, the blind exchange, scores, the report; and the two commands on a real checkpoint."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from shards import geometry, sample
from shards.sample import Sample
from tests.trainer import synthetic
from trainer import checkpoint, evaluate
from trainer.data.store import open_directory
from trainer.evaluate import Question, StoredImage, exchange, gather, questions_of
from trainer.generate import Prompt, load_tokenizer, special_ids
from trainer.model.config import SIZES
from trainer.model.vlm import VLM, save_pretrained
from trainer.report import Answer, example_lines, fenced, summarise, table_lines, write_report
from trainer.sample import find_pictures
from trainer.sample import main as sample_main

IDS, SPECIALS = synthetic.IDS, special_ids({name: synthetic.IDS[name] for name in synthetic.SPECIALS})
SOURCES = ("colours-micro", "colours-small", "text")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = synthetic.make_directory(
        tmp_path_factory.mktemp("shards"), rows=10, shards=2, val_rows=12, seq_len=256, modes=("micro", "small", None)
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sources": {source: {} for source in SOURCES}}))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with one checkpoint of an untrained model."""
    folder = tmp_path_factory.mktemp("run") / "step-00000001"
    folder.mkdir()
    torch.manual_seed(0)
    model = VLM(SIZES["micro"].with_tokens(vocab_size=len(IDS), image_token_id=IDS["<|image|>"]))
    extra = {"mode": "micro", "specials": {name: IDS[name] for name in synthetic.SPECIALS}, "step": 1}
    save_pretrained(model, folder, synthetic.tokenizer_json(), extra)
    (folder.parent / "last").symlink_to(folder.name)
    return folder.parent


def text_sample(*turns: tuple[str, str, list[str]]) -> Sample:
    """Turns of (user's words, placeholder count, answer's words): the answer may hold special tokens."""
    ids, mask, images, members = [IDS["<|bos|>"]], [0], [], []
    for index, (words, mode, answer) in enumerate(turns):
        ids.append(IDS["<|user_start|>"])
        mask.append(1)
        if mode:
            count = geometry.placeholders(mode)
            ids += [IDS["<|image|>"]] * count
            mask += [0] * count
            images.append({"mode": mode, "tiles": [0, 0], "placeholders": count})
            members.append((f"{len(members)}.png", synthetic.picture(random.Random(index), 9, 9, first="red", second="blue")))
        for word in [*words.split(), "<|user_end|>", "<|assistant_start|>"]:
            ids.append(IDS[word])
            mask.append(1)
        for word in answer:
            ids.append(IDS[word])
            mask.append(1 if word == "<|output_start|>" else 2)
    return Sample(key="val-000000-000000", meta={"source": "s", "images": images}, ids=np.array(ids, np.int32),
                  mask=np.array(mask, np.uint8), images=tuple(members))  # fmt: skip


def test_every_answer_is_a_question() -> None:
    end = "<|assistant_end|>"
    made = text_sample(("what", "micro", ["red", end]), ("is it", "", ["two", "four", end]), ("what", "tiny", ["blue", end]))
    found, left_out = questions_of(made, SPECIALS, "all")
    assert [question.reference for question in found] == [(IDS["red"],), (IDS["two"], IDS["four"]), (IDS["blue"],)]
    assert [question.ids[-1] for question in found] == [IDS["<|assistant_start|>"]] * 3
    assert [len(question.images) for question in found] == [1, 1, 2]  # not the picture of a later turn
    assert IDS["red"] in found[1].ids
    assert not left_out
    assert questions_of(made, SPECIALS, "first")[0] == found[:1]


def test_cut_answers_and_tools_are_left_out_and_counted() -> None:
    end, python = "<|assistant_end|>", "<|python_start|>"
    made = text_sample(("what", "", ["two", python, "plus", "<|python_end|>", "<|output_start|>", "four", end]),
                       ("is", "", ["red", end]), ("it", "", ["blue"]))  # fmt: skip
    found, left_out = questions_of(made, SPECIALS, "all")
    assert [question.reference for question in found] == [(IDS["red"],)]
    assert [question.number for question in found] == [1]
    assert left_out == {"tools": 1, "cut": 1}


def test_gather_takes_up_to_the_limit_of_each_source(shards: Path) -> None:
    directory = open_directory(str(shards))
    everything, _ = gather(directory, "val", 1000, [])
    few, _ = gather(directory, "val", 2, [])
    assert len(everything) == int(directory.rows["val"]["samples"].sum())
    assert {source: sum(q.source == source for q in few) for source in SOURCES} == dict.fromkeys(SOURCES, 2)
    assert [q.key for q in gather(directory, "val", 2, [])[0]] == [q.key for q in few]
    assert {q.source for q in gather(directory, "train", 5, ["text"])[0]} == {"text"}
    with pytest.raises(ValueError, match="no source 'texts'"):
        gather(directory, "val", 2, ["texts"])


def question(source: str, number: int, *images: tuple[int, str]) -> Question:
    stored = tuple(StoredImage(data=bytes([content]), tiles=None, mode=mode, grid=(0, 0)) for content, mode in images)
    return Question(source=source, key=str(number), number=0, ids=(1,), images=stored, reference=(2,))


def test_blind_images_are_of_another_sample() -> None:
    asked = [
        question("a", 0, (1, "micro")),
        question("a", 1, (2, "micro"), (3, "micro")),
        question("a", 2, (1, "micro")),  # the same picture as question 0
        question("a", 3, (4, "base")),  # of this size the source has one picture, another source has one more
        question("b", 4, (5, "base")),
        question("b", 5, (6, "large")),  # nothing else of this size anywhere
    ]
    exchanged = exchange(asked)
    for before, after in zip(asked[:5], exchanged):
        own = {image.data for image in before.images}
        assert len(after) == len(before.images)
        for image, other in zip(before.images, after):
            assert isinstance(other, StoredImage)
            assert other.data not in own
            assert other.mode == image.mode
    assert exchanged[0][0] == asked[1].images[0]
    gray = exchanged[5][0]
    assert not isinstance(gray, StoredImage)
    assert gray.view.shape == (1280, 1280, 3)
    assert len(np.unique(gray.view)) == 1


def test_a_model_that_reads_scores_and_its_blind_twin_does_not(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a model: one that knows every picture's answer, and looks at nothing but the picture."""
    questions, _ = gather(open_directory(str(shards)), "val", 1000, [])
    by_picture = {q.images[0].views().view.tobytes(): q.reference for q in questions if q.images}
    sizes: list[int] = []

    def reads(model: Any, prompts: list[Prompt], *, stop_id: int, max_new_tokens: int) -> list[list[int]]:
        sizes.append(sum(len(prompt.ids) for prompt in prompts))
        assert sum((len(image.view) // 16) ** 2 for prompt in prompts for image in prompt.images) < 2000 + 1600
        return [list(by_picture[p.images[0].view.tobytes()] if p.images else ()) for p in prompts]

    monkeypatch.setattr(evaluate, "generate", reads)
    monkeypatch.setattr(evaluate, "BATCH_PATCHES", 2000)
    tokenizer = load_tokenizer(synthetic.tokenizer_json())
    answers = evaluate.evaluate(None, tokenizer, questions, stop_id=0, batch_tokens=600)  # type: ignore[arg-type]
    scores = summarise(answers)
    assert max(sizes) <= 600
    for source in ("colours-micro", "colours-small"):
        line = scores["by_source"][source]
        assert (line["edit_distance"], line["exact_match"], line["stopped"]) == (0.0, 1.0, 1.0)
        assert line["blind_exact_match"] < 0.5 < line["blind_edit_distance"] + 0.4
    assert scores["by_source"]["text"]["edit_distance"] == 1.0
    assert "blind_exact_match" not in scores["by_source"]["text"]


def answer(source: str, reference: str, prediction: str, blind: str | None = None) -> Answer:
    return Answer(source=source, key="k", number=0, reference=reference, prediction=prediction, blind=blind, stopped=True)


def test_scores_by_task() -> None:
    pytest.importorskip("rdkit")
    table = "<table><tr><td>1</td></tr></table>"
    scores = summarise([
        answer("chem", "CCO", "OCC", "C("),
        answer("chem", "c1ccccc1", "CC", ""),
        answer("tables", table, table, "nothing"),
        answer("zh", "光学字符", "光学字苻", "完全不同"),
        answer("text", "plain words", "plain words"),
    ])["by_source"]  # fmt: skip
    assert (scores["chem"]["smiles_exact"], scores["chem"]["smiles_validity"]) == (0.5, 1.0)
    assert scores["chem"]["blind_smiles_validity"] == 0.0
    assert (scores["tables"]["teds"], scores["tables"]["blind_teds"]) == (1.0, 0.0)
    assert (scores["zh"]["edit_distance"], scores["zh"]["blind_edit_distance"]) == (0.25, 1.0)
    assert scores["text"]["exact_match"] == 1.0
    assert not {"teds", "smiles_exact", "blind_exact_match"} & set(scores["text"])
    assert "smiles_exact" not in scores["tables"]


def test_report_survives_what_texts_hold(tmp_path: Path) -> None:
    nasty = "```\n# no heading\n````\n<script>x</script>\u0000 中文"
    answers = [answer("a|b", nasty, nasty, "x"), answer("c", "t", "u")]
    pictures = {("k", 0): np.zeros((1000, 500, 3), np.uint8)}
    write_report(tmp_path, answers, summarise(answers), pictures, {"step": 3}, 4)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert f"`````\n{nasty}\n`````" in text
    assert "| a\\|b " in text
    assert Image.open(tmp_path / "pictures" / "0000.png").size == (192, 384)
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["step"] == 3
    assert report["by_source"]["c"]["answers"] == 1
    assert [json.loads(line)["reference"] for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()] == [nasty, "t"]
    assert example_lines([*answers[1:], answer("d", "\x1b[31m red", "y" * 300)], width=9) == [
        "c k", "  truth  t", "  model  u", "d k", "  truth   [31m red", "  model  " + "y" * 8 + "…"]  # fmt: skip
    assert fenced("plain") == "```\nplain\n```"
    assert table_lines(summarise(answers))[0].startswith("| source")


class Command:
    """trainer/NAME.py run in this process; `script` once as users run it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, main: Callable[[], None], *args: Any) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        self.monkeypatch.setattr(sys, "argv", ["command", *map(str, args)])
        status: Any = 0
        try:
            main()
        except SystemExit as error:
            status = error.code
        out, err = self.capsys.readouterr()
        return (status, out, err) if isinstance(status, int) else (1, out, f"{err}{status}")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


def script(name: str, *args: Any) -> "subprocess.CompletedProcess[str]":
    path = Path(__file__).parents[2] / "trainer" / f"{name}.py"
    return subprocess.run([sys.executable, str(path), *map(str, args)], capture_output=True, text=True, timeout=300)


def test_evaluate_command(shards: Path, run: Path, tmp_path: Path, command: Command) -> None:
    done = script("evaluate", "--shards", shards, "--checkpoint", run, "--limit", 2, "--max-new-tokens", 4, "--out", tmp_path,
                   "--device", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["all"]["answers"] == 6
    assert 0 <= summary["all"]["blind_edit_distance"] <= 1
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "report.json", "answers.jsonl", "pictures"}
    assert len(list((tmp_path / "pictures").iterdir())) == 4
    status, _, error = command(evaluate.main, "--shards", shards, "--checkpoint", tmp_path)
    assert status == 1
    assert "holds no checkpoint" in error
    status, _, error = command(evaluate.main, "--shards", shards, "--checkpoint", run, "--out", "/dev/null/report")
    assert (status, error) == (1, "error: [Errno 20] Not a directory: '/dev/null/report'")  # before a question is asked
    for option, value, message in (("--device", "gpu", "'gpu' cannot be used here"), ("--limit", "0", "'0' is not a whole number")):
        for main in (evaluate.main, sample_main)[:1 + (option == "--device")]:
            status, _, error = command(main, "--shards", shards, "--checkpoint", run, option, value)
            assert status == 2
            assert message in error
    assert "'0' is not a whole number" in command(sample_main, "--checkpoint", run, "--prompt", "a", "--batch-size", "0")[2]
    for value in ("nan", "-1"):
        status, _, error = command(sample_main, "--checkpoint", run, "--prompt", "a", "--temperature", value)
        assert status == 2
        assert f"'{value}' is not a finite number of at least 0" in error


def test_a_report_outlives_the_checkpoint_it_is_about(run: Path, tmp_path: Path) -> None:
    weights = checkpoint.find(run, "best")
    assert evaluate.report_folder(weights, "val") == run.resolve() / f"evaluation-val-{weights.name}"
    assert evaluate.report_folder(tmp_path, "val") == tmp_path.resolve() / "evaluation-val"


def test_evaluate_refuses_another_tokenizer(shards: Path, run: Path, tmp_path: Path, command: Command) -> None:
    other = tmp_path / "run"
    other.mkdir()
    for path in (run / "last").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "tokenizer.json").write_bytes(synthetic.tokenizer_json().replace(b'"here"', b'"there"'))
    status, _, error = command(evaluate.main, "--shards", shards, "--checkpoint", other)
    assert status == 1
    assert "another tokenizer" in error
    (other / "tokenizer.json").write_bytes(b"{")
    for main, more in ((evaluate.main, ("--shards", shards)), (sample_main, ("--prompt", "a"))):
        status, _, error = command(main, "--checkpoint", other, *more)
        assert status == 1
        assert error.startswith("error: tokenizer.json is damaged")


def test_sample_command(run: Path, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("b.png", "a.JPG"):
        Image.new("RGB", (40, 30), "red").save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / "broken.png").write_bytes(b"\x89PNG broken")
    assert [path.name for path in find_pictures([folder, folder / "b.png"])] == ["a.JPG", "b.png", "broken.png", "b.png"]
    common = ("--checkpoint", run, "--device", "cpu", "--max-new-tokens", 3)
    done = script("sample", folder, *common, "--prompt", "what", "--prompt", "is it", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(Path(line["images"][0]).name, line["prompt"]) for line in lines] == [
        ("a.JPG", "what"), ("a.JPG", "is it"), ("b.png", "what"), ("b.png", "is it")]  # fmt: skip
    assert done.returncode == 1  # one picture could not be read, and that is said
    assert done.stderr.count("broken.png: not a readable picture") == 2
    status, out, error = command(sample_main, folder / "b.png", folder / "a.JPG", "--together", *common, "--temperature", 1,
                                 "--mode", "tiny")  # fmt: skip
    assert status == 0, error
    assert out.startswith(f"{folder / 'b.png'}, {folder / 'a.JPG'}\n")
    assert command(sample_main, *common, "--prompt", "two plus two")[1].startswith("(no picture): two plus two\n")
    assert command(sample_main, "--checkpoint", run)[0] == 2
    assert "does not exist" in command(sample_main, tmp_path / "no.png", "--checkpoint", run)[2]


def test_stored_sample_round_trip() -> None:
    """What evaluation reads is what a shard holds: decoded views equal those that the loader makes."""
    _, made = synthetic.make_sample(random.Random(3), row="0", mode="gundam", size=(1300, 700))
    found, _ = questions_of(made, SPECIALS, "all")
    views = found[0].images[0].views()
    assert views.grid == (2, 1)
    assert views.tiles is not None
    assert views.tiles.shape == (2, 640, 640, 3)
    assert found[0].ids.count(IDS["<|image|>"]) == geometry.placeholders("gundam", (2, 1))
    assert sample.make_key("val", 0, 0) == "val-000000-000000"
