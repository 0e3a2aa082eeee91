"""`pipeline preview` and `pipeline train-tokenizer`, as typed."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import cli
from pipeline.preview import Shown, as_text
from pipeline.tokens import load_tokenizer
from tests.pipeline.test_tasks import make_set
from tests.pipeline.tiny import talk, tiny_tokenizer


def run(*args: Any) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    make_set(tmp_path / "raw", rows=25, bad=(1,))
    (tmp_path / "tokenizer.json").write_bytes(tiny_tokenizer().to_json())
    path = tmp_path / "mine.toml"
    path.write_text(f'name = "mine"\ntokenizer = "{tmp_path / "tokenizer.json"}"\nmode = "micro"\nseq_len = 128\n'
                    "[sources.toy]\nquota = 2\n")  # fmt: skip
    return path


def test_rows_are_shown_as_a_build_makes_them(recipe: Path, tmp_path: Path) -> None:
    done = run("preview", "--recipe", recipe, "--raw", tmp_path / "raw", "--rows", 2, "--out", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    assert "== toy, row 0 (toy/train-00000-of-00003.parquet#0)" in done.stdout
    assert "1 x 2 -> 1 x 2 png" in done.stdout
    assert "micro: 21 tokens" in done.stdout
    assert "left out  no-answer: no turn has an answer" in done.stdout
    assert '<img src="data:image/png;base64,' in (tmp_path / "page.html").read_text()


def test_json_and_start(recipe: Path, tmp_path: Path) -> None:
    done = run("preview", "--recipe", recipe, "--raw", tmp_path / "raw", "--rows", 1, "--start", 7, "--json")
    row = json.loads(done.stdout)
    assert row["messages"][1] == {"role": "assistant", "content": "7"}
    assert row["images"][0]["placeholders"] == 21
    assert row["samples"][0]["tokens"] > 21


def test_usage(tmp_path: Path) -> None:
    assert run("preview").exit_code == 2
    assert run("train-tokenizer").exit_code == 2
    done = run("preview", "--recipe", "stage1", "--subset", "sroi", "--raw", tmp_path)
    assert done.exit_code == 2
    assert "sroie" in done.output


def test_sets_below_raw_are_shown_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.download.list_files", None)
    make_set(tmp_path / "raw", rows=5)
    (tmp_path / "tokenizer.json").write_bytes(tiny_tokenizer().to_json())
    args = ("--raw", tmp_path / "raw", "--tokenizer", tmp_path / "tokenizer.json")
    assert "== toy, row 0" in run("preview", "--subset", "toy", *args).stdout
    done = run("preview", "--subset", "charqa", *args)
    assert done.exit_code == 2
    assert "did you mean 'chartqa'" in done.output


def test_control_characters_do_not_reach_the_terminal() -> None:
    text = as_text(Shown(source="s", row=0, conversation=talk("a\x1b[31mb\u202ec", "d\x00")))
    assert "\x1b" not in text
    assert "a\\x1b[31mb\\u202ec" in text


def test_preview_says_where_nothing_is(recipe: Path, tmp_path: Path) -> None:
    past = run("preview", "--recipe", recipe, "--raw", tmp_path / "raw", "--start", 10_000)
    assert past.exit_code == 0 and past.stdout == "" and "none at --start 10000" in past.stderr
    absent = run("preview", "--subset", "sroie", "--raw", tmp_path / "nothing", "--tokenizer", tmp_path / "tokenizer.json")
    assert absent.exit_code == 1 and "--from hub" in absent.stderr and "--allow-missing" not in absent.stderr


def test_train_tokenizer_on_a_recipe_and_on_files(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the quick brown fox jumps over the lazy dog " * 50)
    out = tmp_path / "new/tokenizer.json"
    args = ("train-tokenizer", tmp_path / "notes.txt", "--recipe", recipe, "--raw", tmp_path / "raw", "--vocab-size", 300,
            "--out", out)  # fmt: skip
    done = run(*args)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["ids"] == 300
    first = out.read_bytes()
    assert run(*args).exit_code == 0
    assert out.read_bytes() == first
    assert load_tokenizer(str(out)).vocab_size == 300
    assert len(load_tokenizer(str(out)).encode_batch([" quick"])[0]) == 1


def test_train_tokenizer_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    done = run("train-tokenizer", tmp_path / "empty.txt", "--out", tmp_path / "t.json")
    assert (done.exit_code, "no text" in done.output) == (1, True)
    (tmp_path / "bad.jsonl").write_text("{")
    done = run("train-tokenizer", tmp_path / "bad.jsonl", "--out", tmp_path / "t.json")
    assert (done.exit_code, "line 1: not JSON" in done.output) == (1, True)
    assert not (tmp_path / "t.json").exists()


def test_real_sources(shared: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'name = "r"\nmode = "base"\nseq_len = 2048\n[sources.docling_pages]\nmode = "gundam"\noverlong = "split"\n'
        '[sources.latex_formulas]\n[sources.gsm8k]\nkind = "gsm8k"\n[sources.talk]\nkind = "smoltalk"\n[sources.mmlu]\n'
        'kind = "mmlu"\nsplit = "auxiliary_train"\n'
    )
    raw = shared / "data/hub"
    trained = run("train-tokenizer", "--recipe", recipe, "--raw", raw, "--max-mb", 0.5, "--vocab-size", 2000,
                  "--out", tmp_path / "t.json")  # fmt: skip
    assert trained.exit_code == 0, trained.output
    done = run("preview", "--recipe", recipe, "--raw", raw, "--tokenizer", tmp_path / "t.json", "--rows", 2, "--json")
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 10
    assert all(sample["tokens"] <= 2048 and sample["answer_tokens"] > 0 for row in rows for sample in row["samples"])
