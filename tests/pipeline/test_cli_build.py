"""`build-shards` and `verify` as a user types them: help with an example, exit codes, one line of JSON, plain errors."""

import json
import os
import shutil
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.build.local import explain
from pipeline.cli import cli, main
from pipeline.hub.retry import HubError
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
    (["--fraction", "2"], 2, "fraction"), (["--stop-after", "nan"], 2, "'nan' is not a number"), (["--slice", "²/3"], 2, "16"),
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
    path.unlink()
    for words in ([], ["--quick"]):
        done = call("verify", out, "--workers", "1", *words)
        assert done.exit_code == 1 and "train-000001.tar: missing" in done.stderr and json.loads(done.stdout)["problems"] == 1
    path.write_bytes(data)
    text = (out / "manifest.json").read_text()
    body = json.loads(text)
    body["sources"]["docs"]["tokens"] += 1
    body["shards"][0]["images"] += 1
    del body["sources"]["docs"]["targets"], body["sources"]["docs"]["cut"]
    try:
        (out / "manifest.json").write_text(json.dumps(body))
        done = call("verify", out, "--quick")
        assert done.exit_code == 1 and "manifest.json: its sources have" in done.stderr
        assert "images in train-000000.tar where the manifest says" in done.stderr
        for words in (["stats", out, "--json"], ["inspect", out, "--out", tmp_path / "page.html"]):
            done = call(*words)
            assert done.exit_code == 1 and "the manifest lacks '" in done.output, done.output
    finally:
        (out / "manifest.json").write_text(text)
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


def test_files_that_cannot_be_read_are_told(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    recipe, raw = made[0], shutil.copytree(made[1], tmp_path / "raw")
    for path in (raw / "HuggingFaceM4/FineVision/docs").iterdir():
        path.write_bytes(path.read_bytes()[:2000])
    done = call("build-shards", "--recipe", recipe, "--raw", raw, "--out", tmp_path / "o", "--workers", "1", "--subset", "docs")
    assert done.exit_code == 1 and "3 files cannot be read" in done.output, done.output
    assert call("stats", tmp_path / "o").output.splitlines()[-1] == "left out 3: 3 unreadable files"


def test_places_that_cannot_be_used_are_told(made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    recipe, raw, out = made
    (tmp_path / "file").write_text("mine")
    (tmp_path / "odd" / "manifest.json").mkdir(parents=True)
    for words, told in ((["build-shards", "--recipe", recipe, "--raw", raw, "--out", tmp_path / "file"], "Not a directory"),
                        (["build-shards", "--recipe", recipe, "--raw", raw, "--out", tmp_path / ("n" * 300)], "name too long"),
                        (["repack", out, "--seq-len", "512", "--out", tmp_path / "file"], "Not a directory"),
                        (["inspect", out, "--samples", "1", "--out", tmp_path / "file" / "page.html"], "File exists"),
                        (["stats", tmp_path / "odd"], "Is a directory"), (["verify", tmp_path / "odd"], "Is a directory")):
        monkeypatch.setattr("sys.argv", ["pipeline", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        text = capsys.readouterr().err
        assert ended.value.code == 1 and told in text and "run the same command again" in text, text


def test_a_worker_that_is_killed_is_told(made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr("pipeline.verify._verify", killed)
    monkeypatch.setattr("pipeline.repack._run", killed)
    for words in (["verify", made[2]], ["repack", made[2], "--seq-len", "512", "--out", tmp_path / "out"]):
        done = call(*words)
        assert done.exit_code == 1 and "fewer --workers" in done.output, done.output


def test_a_worker_tells_which_file_it_may_not_write() -> None:
    assert explain(PermissionError(13, "Permission denied", "out/train-000001.tar")).startswith(
        "Permission denied: out/train-000001.tar; ")


def test_a_worker_tells_what_the_hub_refused() -> None:
    told = explain(HubError("HTTP 410 for /x: gone"))
    assert told.startswith("HTTP 410 for /x: gone; ") and "Traceback" not in told


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
