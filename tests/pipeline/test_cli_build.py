"""`build-shards` and `verify` as a user types them: help with an example, exit codes, one line of JSON, plain errors."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import cli
from tests.pipeline.made import make_raw, write_recipe


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(recipe, raw, a finished build)."""
    root = tmp_path_factory.mktemp("cli")
    recipe, raw = write_recipe(root), make_raw(root / "raw")
    done = call("build-shards", "--recipe", recipe, "--raw", raw, "--out", root / "out", "--workers", "1")
    assert done.exit_code == 0, done.output
    line = json.loads(done.stdout.strip().splitlines()[-1])
    assert line["command"] == "build-shards" and line["samples"] + line["val_samples"] > 100
    assert len(done.stdout.strip().splitlines()) == 1 and "words(made)" in done.stderr
    return recipe, raw, root / "out"


@pytest.mark.parametrize("command", ["build-shards", "verify"])
def test_help_has_an_example(command: str) -> None:
    done = call(command, "--help")
    assert done.exit_code == 0 and f"pipeline {command} " in done.output and "Example" in done.output


def test_a_second_run_has_nothing_to_do(made: tuple[Path, Path, Path]) -> None:
    recipe, raw, out = made
    done = call("build-shards", "--recipe", recipe, "--raw", raw, "--out", out)
    assert done.exit_code == 0 and "complete already" in done.stderr and json.loads(done.stdout)["tasks_run"] == 0


@pytest.mark.parametrize(("words", "code", "message"), [
    (["--set", "docs.qota=3"], 2, "did you mean 'quota'"), (["--set", "dcs.quota=3"], 2, "did you mean 'docs'"),
    (["--subset", "doc"], 2, "did you mean 'docs'"), (["--mode", "bse"], 2, "did you mean 'base'"),
    (["--fraction", "2"], 2, "fraction"),
    (["--fraction", "0.5"], 2, "recipe.fraction: 1.0 -> 0.5"), (["--slice", "3/3"], 2, "--slice 3/16"),
    (["--slice", "x"], 2, "i/n"),
    (["--tokenizer", "/absent.json"], 1, "no such file"), (["--recipe", "stage9"], 2, "or 'stage1'"),
    (["--from", "disk"], 2, "'raw', 'hub'"), (["--workers", "-1"], 2, "workers")])
def test_wrong_use_is_told(made: tuple[Path, Path, Path], words: list[str], code: int, message: str) -> None:
    recipe, raw, out = made
    done = call("build-shards", "--recipe", recipe, "--raw", raw, "--out", out, *words)
    assert done.exit_code == code and message in done.output, done.output
    assert "Traceback" not in done.output and not done.stdout.strip()


def test_missing_sets_name_the_command(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    done = call("build-shards", "--recipe", made[0], "--raw", tmp_path, "--out", tmp_path / "o", "--set", "docs.folder=sroie",
                "--subset", "docs")
    assert done.exit_code == 1 and "pipeline download --recipe" in done.output and "--allow-missing" in done.output
    assert not (tmp_path / "o").exists()


def test_verify_exits_1_and_names_the_damage(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    out = made[2]
    good = call("verify", out, "--workers", "1")
    assert good.exit_code == 0 and json.loads(good.stdout)["ok"] is True
    path = out / "train-000001.tar"
    data = path.read_bytes()
    try:
        path.write_bytes(data[:700] + bytes([data[700] ^ 4]) + data[701:])
        quick, full = call("verify", out, "--quick"), call("verify", out, "--workers", "1")
        assert quick.exit_code == 0 and full.exit_code == 1 and "train-000001.tar" in full.stderr
        os.truncate(path, 5000)
        assert call("verify", out, "--quick").exit_code == 1
    finally:
        path.write_bytes(data)
    done = call("verify", tmp_path)
    assert done.exit_code == 1 and "has no manifest.json" in done.output
    assert call("verify", tmp_path / "absent").exit_code == 1


def test_a_build_of_nothing_is_an_error(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    recipe, raw, _ = made
    done = call("build-shards", "--recipe", recipe, "--raw", raw, "--out", tmp_path / "o", "--workers", "1", "--subset", "docs",
                "--set", "docs.rows=5:3")
    assert done.exit_code == 1 and "holds no sample: the recipe takes no row" in done.output, done.output
    again = call("build-shards", "--recipe", recipe, "--raw", raw, "--out", tmp_path / "p", "--workers", "1", "--subset", "docs",
                 "--mode", "base", "--set", "recipe.seq_len=64", "--max-reject-share", "1")
    assert again.exit_code == 1 and "rows were left out" in again.output, again.output


def test_a_local_file_that_changed_is_converted_again_before_it_is_built(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    labels = tmp_path / "mine.jsonl"
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    labels.write_text(json.dumps({"messages": turns}) + "\n")
    recipe = tmp_path / "mine.toml"
    tokenizer = made[0].parent / "tokenizer.json"
    recipe.write_text(f'tokenizer = {str(tokenizer)!r}\nseq_len = 64\n[sources.mine]\nkind = "jsonl"\npath = "mine.jsonl"\n')
    where = ("--recipe", recipe, "--raw", tmp_path / "raw")
    build = ("build-shards", *where, "--out", tmp_path / "out", "--workers", "1", "--fresh")
    assert call("download", *where).exit_code == 0
    assert call(*build).exit_code == 0
    labels.write_text(labels.read_text() * 2)
    for words in (build, ("plan", *where)):
        done = call(*words)
        assert "mine.jsonl has changed since it was converted" in done.output and "pipeline download" in done.output, done.output
    assert call(*build).exit_code == 1
    assert call("download", *where).exit_code == 0
    done = call(*build)
    assert done.exit_code == 0 and json.loads(done.stdout)["samples"] + json.loads(done.stdout)["val_samples"] == 2
    labels.unlink()
    assert call(*build).exit_code == 0  # what was converted is enough
