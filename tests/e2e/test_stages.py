"""stage1 and stage2 at a small fraction: download from a loopback hub with all their names, build, verify.

A recipe's own modes and rules are used; only the tokenizer is a small one. About 20 s a stage on an idle core.
"""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from pipeline.recipe import load_recipe
from pipeline.tokens import prepare
from pipeline.train_tokenizer import train_bpe
from tests.conftest import SHARED
from tests.hub_server import HubServer
from tests.stage_hub import build, real_rows

FRACTION = "0.0001"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with hub/, raw/ and tokenizer.json."""
    folder = tmp_path_factory.mktemp("stages")
    shared = SHARED.resolve() if (SHARED / "data").is_dir() else None
    build(folder / "hub", folder / "raw", shared)
    text = [turn["assistant"] for name in ("DoclingMatix", "opencqa") for row in real_rows(shared, name) for turn in row["texts"]]
    (folder / "tokenizer.json").write_bytes(prepare(train_bpe(text, vocab_size=1200), name="small").to_json())
    return folder


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_stage(made: Path, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "shards"
    common = ["--recipe", stage, "--raw", str(made / "raw"), "--fraction", FRACTION]

    def run(*words: str) -> str:
        result = CliRunner().invoke(cli, list(words), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    with HubServer(made / "hub", page=7) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))
        report = json.loads(run("plan", *common, "--from", "hub", "--json"))
        assert report["totals"]["rows"] > 100
        summary = json.loads(run("download", *common).splitlines()[-1])
        assert summary["failed"] == 0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")     # the build needs no network
    run("build-shards", *common, "--tokenizer", str(made / "tokenizer.json"), "--out", str(out), "--workers", "2")
    run("verify", str(out))
    manifest = json.loads((out / "manifest.json").read_text())
    names = {source.name for source in load_recipe(stage).sources}
    sources = manifest["sources"]
    counts = {s["name"]: s["samples"] for s in sources} if isinstance(sources, list) else {
        name: s["samples"] for name, s in sources.items()}
    assert set(counts) == names
    assert all(counts.values()), counts


def test_the_same_shards_straight_from_the_hub(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Range requests instead of files on disk: the same bytes, and no raw copy."""
    with HubServer(made / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))
        common = ["--recipe", "stage1", "--subset", "sroie", "--subset", "geo170k(qa)", "--fraction", "0.0005"]
        fetched = CliRunner().invoke(cli, ["download", *common, "--raw", str(tmp_path / "raw")], catch_exceptions=False)
        assert fetched.exit_code == 0, fetched.output
        for origin, raw in (("raw", tmp_path / "raw"), ("hub", tmp_path / "nothing")):
            words = [*common, "--raw", str(raw), "--from", origin, "--out", str(tmp_path / f"from-{origin}"), "--workers", "1",
                     "--tokenizer", str(made / "tokenizer.json")]
            done = CliRunner().invoke(cli, ["build-shards", *words], catch_exceptions=False)
            assert done.exit_code == 0, done.output
        assert not (tmp_path / "nothing").exists()
    built = {p.relative_to(tmp_path / "from-hub"): p.read_bytes() for p in (tmp_path / "from-hub").rglob("*") if p.is_file()}
    assert any(path.suffix == ".tar" for path in built)
    assert built == {path: (tmp_path / "from-raw" / path).read_bytes() for path in built}
