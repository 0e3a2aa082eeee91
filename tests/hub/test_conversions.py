"""Sources that are not parquet, from the hub: what they need is fetched, no more, and converted."""

import json
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import cli
from tests.convert.making import png, tar_of
from tests.hub_server import Fault, HubServer, Repo, file_blob, script

OLMOCR, LLAVA = "allenai/olmOCR-mix-1025", "liuhaotian/LLaVA-CC3M-Pretrain-595K"
RECIPE = """
name = "pages"
[sources.pages]
kind = "olmocr"
quota = 4
bucket = "document"
"""


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words), catch_exceptions=False)


def repo_of(name: str, folder: Path) -> Repo:
    return Repo(name, {p.relative_to(folder).as_posix(): file_blob(p) for p in sorted(folder.rglob("*")) if p.is_file()})


def test_only_the_tarballs_that_a_quota_needs(hub: HubServer, tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    from tests.convert.test_olmocr import make_pdf, table

    made, raw = tmp_path / "made", tmp_path / "raw"
    rows = []
    for k in range(6):
        tar_of(made / f"pdf_tarballs/c{k}.tar.gz", {f"p{i}.pdf": make_pdf() for i in range(3)})
        rows += [{"id": f"{k}-{i}", "pdf_relpath": f"pdf_tarballs/c{k}.tar.gz:p{i}.pdf"} for i in range(3)]
    table(made, rows)
    table(made, rows, "01_books/train-00000-of-00001.parquet")
    hub.repos[OLMOCR] = repo_of(OLMOCR, made)
    (tmp_path / "r.toml").write_text(RECIPE)
    common = ["--recipe", str(tmp_path / "r.toml"), "--raw", str(raw)]
    done = run("download", *common)
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert summary["converted"]["pages"]["rows"] == 6, "5 rows wanted (4 and a few to spare): two tarballs of three pages"
    assert len(list((raw / OLMOCR / "pdf_tarballs").iterdir())) == 2
    assert not (raw / OLMOCR / "01_books").exists()
    report = json.loads(run("plan", *common, "--json").stdout)
    assert report["sources"][0]["rows"] == 4
    hub.clear()
    again = json.loads(run("download", *common).stdout.strip().splitlines()[-1])
    assert again["fetched"] == 0
    assert again["converted"] == summary["converted"]


def test_llava_from_zip_and_json(hub: HubServer, tmp_path: Path) -> None:
    made, raw = tmp_path / "made", tmp_path / "raw"
    made.mkdir()
    with zipfile.ZipFile(made / "images.zip", "w") as images:
        for k in range(5):
            images.writestr(f"{k}.png", png("red"))
    talk = [{"from": "human", "value": "Describe.\n<image>"}, {"from": "gpt", "value": "red"}]
    (made / "chat.json").write_text(json.dumps([{"id": str(k), "image": f"{k}.png", "conversations": talk} for k in range(5)]))
    hub.repos[LLAVA] = repo_of(LLAVA, made)
    hub.state.faults = script({"_storage": [Fault("cut"), Fault("503")]})
    (tmp_path / "r.toml").write_text('name = "r"\n[sources.cc3m]\nkind = "llava_cc3m"\n')
    common = ["--recipe", str(tmp_path / "r.toml"), "--raw", str(raw)]
    done = run("download", *common)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.strip().splitlines()[-1])["converted"]["cc3m"]["rows"] == 5
    assert json.loads(run("plan", *common, "--json").stdout)["totals"]["images"] == 5


def test_a_missing_local_path_is_named(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('name = "r"\n[sources.mine]\nkind = "jsonl"\npath = "no/such.jsonl"\n')
    done = run("download", "--recipe", str(tmp_path / "r.toml"), "--raw", str(tmp_path / "raw"))
    assert done.exit_code == 2
    assert "no/such.jsonl" in done.stderr


def test_a_recipe_goes_on_without_what_is_not_there(hub: HubServer, tmp_path: Path) -> None:
    """A local file that nobody made and a set that this hub lacks are left out by name, if the user says so."""
    (tmp_path / "r.toml").write_text('name = "r"\n[sources.mine]\nkind = "jsonl"\npath = "no/such.jsonl"\n[sources.docs]\n'
                                     '[sources.other]\nrepo = "someone/other"\n')
    common = ["--recipe", str(tmp_path / "r.toml"), "--raw", str(tmp_path / "raw")]
    assert run("download", *common).exit_code == 2
    done = run("download", *common, "--allow-missing")
    assert done.exit_code == 0, done.output
    last = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(last["left_out"]) == {"mine", "other"} and last["failed"] == 0
    assert list((tmp_path / "raw").rglob("docs/train-*.parquet"))
    assert "left out: mine" in done.stderr and "left out: other" in done.stderr
    nothing = run("download", *common, "--subset", "mine", "--subset", "other", "--allow-missing")
    assert nothing.exit_code == 1 and "nothing to download" in nothing.stderr
