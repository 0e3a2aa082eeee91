"""`pipeline plan`, `download` and `list` from the command line, against the loopback hub."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import cli
from pipeline.hub import fetch
from tests import hub_server
from tests.hub.conftest import REPO, write_set
from tests.hub_server import Fault, HubServer, file_blob

RECIPE = """
name = "mine"
[sources.docs]
quota = 45
bucket = "document"
[sources.maths]
folder = "geoqa+(mathv360k)"
bucket = "geometry and math"
[sources.chem]
repo = "rendered/chem"
bucket = "chemistry"
quota = 10
[sources.talk]
kind = "custom_json"
path = "talk.jsonl"
bucket = "text"
repeats = 2
"""


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words), catch_exceptions=False)


def last_json(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """A recipe with a set taken in part, one taken whole, one to render and one to convert."""
    (tmp_path / "mine.toml").write_text(RECIPE)
    talk = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(5)]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(line) + "\n" for line in talk))
    return str(tmp_path / "mine.toml")


def parquet_below(raw: Path) -> set[str]:
    return {p.relative_to(raw).as_posix() for p in raw.rglob("*.parquet")}


def test_plan_moves_footers_only(hub: HubServer, recipe: str, tmp_path: Path) -> None:
    report = json.loads(run("plan", "--recipe", recipe, "--raw", str(tmp_path / "raw"), "--json").stdout)
    by_name = {source["name"]: source for source in report["sources"]}
    docs = by_name["docs"]
    assert (docs["available"], docs["quota"], docs["rows"]) == (40 + 41 + 42 + 43, 45, 45)
    assert docs["images"] in range(43, 48)
    assert docs["files"] == 2, "a quota of 45 needs two files of about 41"
    assert docs["fetch_bytes"] == docs["file_bytes"] > 0
    assert by_name["maths"]["rows"] == 16
    assert by_name["chem"]["to_make"]
    assert report["totals"]["rows"] == 45 + 16 + 10 + by_name["talk"]["rows"]
    assert [share["target"] for share in report["shares"]] == [0.7, 0.2, 0.1]
    chemistry = next(row for row in report["gap"] if row["category"] == "Chemistry")
    assert (chemistry["before"], chemistry["after"], chemistry["deepseek"]) == (0, 10, 5_000_000)
    assert report["disk"]["raw_free_bytes"] > 0
    assert report["hours"]["build"] > 0
    assert not (tmp_path / "raw").exists(), "a plan writes nothing there"
    text = run("plan", "--recipe", recipe, "--raw", str(tmp_path / "raw"))
    for word in ("docs", "not there yet", "gap", "free", "minutes", "render-chem", "--set chem.quota=all"):
        assert word in text.stdout


def test_fraction_scales_every_quota(hub: HubServer, recipe: str, tmp_path: Path) -> None:
    words = ("plan", "--recipe", recipe, "--raw", str(tmp_path / "raw"), "--fraction", "0.1", "--json")
    report = json.loads(run(*words).stdout)
    assert {s["name"]: s["rows"] for s in report["sources"]} | {"talk": 0} == {"docs": 5, "maths": 2, "chem": 1, "talk": 0}


def test_download_then_plan_offline(hub: HubServer, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = str(tmp_path / "raw")
    planned = json.loads(run("plan", "--recipe", recipe, "--raw", raw, "--fraction", "0.5", "--json").stdout)
    result = run("download", "--recipe", recipe, "--raw", raw, "--fraction", "0.5")
    assert result.exit_code == 0
    summary = last_json(result)
    assert summary["failed"] == 0
    assert summary["revisions"] == {REPO: hub.repos[REPO].main}
    assert summary["converted"]["talk"]["rows"] == 5
    assert "render-chem" in result.stderr
    # only what the plan takes was fetched: one file of docs, one of maths; and the data card
    assert len([name for name in parquet_below(tmp_path / "raw") if name.startswith(REPO)]) == 2
    assert (tmp_path / "raw" / REPO / "README.md").is_file()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")     # from here on there is no network
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "other"))
    write_set(tmp_path / "raw" / "rendered" / "chem" / "train-00000-of-00001.parquet", rows=10, group=5, seed=3)
    again = json.loads(run("plan", "--recipe", recipe, "--raw", raw, "--fraction", "0.5", "--json", "--from", "raw").stdout)
    for before, after in zip(planned["sources"][:2], again["sources"][:2], strict=True):
        assert {**before, "fetch_bytes": 0} == after, "the same choice from what was fetched as from the hub"
    more = run("plan", "--recipe", recipe, "--raw", raw, "--from", "raw", "--json")
    assert json.loads(more.stdout)["missing"][0]["command"].startswith("pipeline download --recipe")


def test_records_left_out_of_a_conversion_are_told_of_and_written_down(tmp_path: Path) -> None:
    good = json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
    (tmp_path / "talk.jsonl").write_text(f"{good}\n{{bad\n{good}\n[]\n")
    (tmp_path / "talk.toml").write_text('name = "talk"\n[sources.talk]\nkind = "custom_json"\npath = "talk.jsonl"\n')
    result = run("download", "--recipe", str(tmp_path / "talk.toml"), "--raw", str(tmp_path / "raw"))
    assert "talk: 2 of 4 records are left out (json 1, no-answer 1)" in result.stderr
    lines = (tmp_path / "raw" / "local" / "talk" / "rejects-00000-of-00001.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["json", "no-answer"]


def test_a_second_download_asks_for_no_file(hub: HubServer, recipe: str, tmp_path: Path) -> None:
    raw = str(tmp_path / "raw")
    run("download", "--recipe", recipe, "--raw", raw)
    before = {p: p.read_bytes() for p in (tmp_path / "raw").rglob("*") if p.is_file()}
    hub.clear()
    summary = last_json(run("download", "--recipe", recipe, "--raw", raw))
    assert summary["fetched"] == 0
    assert not [r for r in hub.requests if "/resolve/" in r.path or "/_storage/" in r.path]
    assert {p: p.read_bytes() for p in (tmp_path / "raw").rglob("*") if p.is_file()} == before


def test_raw_may_be_a_read_only_snapshot(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(hub_root, raw)
    (raw / ".pipeline").write_text("a file, so that nothing can be kept")
    result = run("download", "--subset", "docs", "--raw", str(raw))
    assert result.exit_code == 0
    assert last_json(result)["present"] == 5
    assert not [r for r in hub.requests if "/_storage/" in r.path and r.sent > 70_000]


def test_the_revision_stays_pinned_until_update(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    old = last_json(run("download", "--subset", "docs", "--raw", str(raw)))["revisions"][REPO]
    newer = tmp_path / "newer.parquet"
    write_set(newer, rows=99, group=10, seed=77)
    shutil.copy(newer, tmp_path / "kept.parquet")
    hub.repos[REPO].commit({"docs/train-00000-of-00001.parquet": file_blob(newer)})
    assert last_json(run("download", "--subset", "docs", "--raw", str(raw)))["revisions"][REPO] == old
    (raw / REPO / "docs" / "train-00001-of-00004.parquet").unlink()
    assert last_json(run("download", "--subset", "docs", "--raw", str(raw)))["fetched"] == 1
    moved = last_json(run("download", "--subset", "docs", "--raw", str(raw), "--update"))
    assert moved["revisions"][REPO] == hub.repos[REPO].main != old
    assert (raw / REPO / "docs" / "train-00000-of-00001.parquet").read_bytes() == newer.read_bytes()


def test_a_file_that_cannot_be_had(hub: HubServer, recipe: str, tmp_path: Path) -> None:
    digest = file_blob_of(hub, "docs/train-00000-of-00004.parquet")
    hub.state.faults = lambda method, path, nth: Fault("flip", part=0.1) if digest in path else None
    raw = tmp_path / "raw"
    result = run("download", "--recipe", recipe, "--raw", str(raw), "--set", "docs.quota=all", "--subset", "docs")
    assert result.exit_code == 1
    assert "docs/train-00000-of-00004.parquet" in result.stderr
    assert "Go on with:" in result.stderr
    go_on = result.stderr.strip().splitlines()[-1].split()
    assert go_on[:2] == ["pipeline", "download"]
    assert "docs.quota=all" in go_on
    assert f"{REPO}/docs/train-00000-of-00004.parquet" not in parquet_below(raw), "nothing half-written is left to read"
    hub.state.faults = None
    again = run(*go_on[1:])
    assert again.exit_code == 0
    assert last_json(again)["fetched"] == 1


def file_blob_of(hub: HubServer, path: str) -> str:
    repo = hub.repos[REPO]
    return repo.commits[repo.main][path].sha256


def test_a_damaged_file_on_the_hub_is_told(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "hub"
    shutil.copytree(hub_root, root)
    (root / REPO / "docs" / "train-00001-of-00004.parquet").write_bytes(b"<html>" * 99)
    with HubServer(root) as other:
        hub.state.repos = other.repos
        result = run("download", "--subset", "docs", "--raw", str(tmp_path / "raw"))
    name = f"{REPO}/docs/train-00001-of-00004.parquet"
    assert f"left out: {name}: it begins with b'<htm', which is not parquet" in result.stderr
    assert name in last_json(result)["left_out"]


def test_parquet_that_is_not_in_lfs_is_checked_too(hub: HubServer, hub_root: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_server, "LFS_SUFFIXES", ())
    hub.state.repos = hub_server.scan(hub_root)
    name = "docs/train-00000-of-00004.parquet"
    hub.state.faults = lambda method, path, nth: Fault("flip") if path.endswith(name) and nth == 2 else None
    raw = tmp_path / "raw"
    result = run("download", "--subset", "docs", "--raw", str(raw))
    assert result.exit_code == 0
    assert (raw / REPO / name).read_bytes() == (hub_root / REPO / name).read_bytes()
    assert len([r for r in hub.requests if r.path.endswith(name)]) == 3, "footer, the flipped file, the file"


def test_a_full_disk_is_said_first(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SPARE_DISK", 1 << 60)
    result = run("download", "--subset", "docs", "--raw", str(tmp_path / "raw"))
    assert result.exit_code == 1
    assert "GB free" in result.stderr
    assert not parquet_below(tmp_path / "raw")


@pytest.mark.parametrize(("words", "hint"), [
    (["download", "--subset", "geometry3k"], "geometry3k(mathv360k)"),
    (["download", "--subset", "chartq"], "chartqa"),
    (["list", "--offline", "vision_flan"], "vision_flan(filtered)"),
    (["list", "--offline", "unigeo"], "unigeo(mathv360k)"),
    (["list", "--offline", "--bucket", "scene"], "scene text"),
    (["download", "--subset", "smoltalk"], "SmolTalk"),
    (["plan", "--recipe", "stage3"], "stage1"),
    (["plan", "--recipe", "stage1", "--subset", "DocklingMatix"], "DoclingMatix"),
])
def test_a_wrong_name_is_answered_with_the_nearest(hub: HubServer, words: list[str], hint: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert hint in result.stderr


def test_a_wrong_subset_in_a_recipe(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('name = "r"\n[sources.geometry3k]\nbucket = "geometry and math"\n')
    for command in ("plan", "download"):
        result = run(command, "--recipe", str(tmp_path / "r.toml"), "--raw", str(tmp_path / "raw"))
        assert result.exit_code == 2
        assert "geometry3k(mathv360k)" in result.stderr


def test_list_refreshes_from_the_hub(hub: HubServer) -> None:
    table = {s["name"]: s for s in json.loads(run("list", "--json").stdout)["subsets"]}
    assert set(table) == {"docs", "geoqa+(mathv360k)"}
    assert table["docs"]["files"] == 4
    assert table["docs"]["gb"] is not None
    assert table["geoqa+(mathv360k)"]["bucket"] == "geometry and math"


def test_list_offline_needs_no_hub(hub: HubServer) -> None:
    result = run("list", "--offline", "--json")
    subsets = json.loads(result.stdout)["subsets"]
    assert hub.requests == []
    assert len(subsets) == 185
    assert sum(s["files"] for s in subsets) == 9491
    assert {s["bucket"] for s in subsets} == {"document", "scene text", "charts and tables", "chemistry",
                                              "geometry and math", "general vision", "GUI", "text"}
    used = {s["name"]: s["recipes"] for s in subsets}
    assert used["DoclingMatix"] == ["stage1", "stage2"]
    assert used["lvis_instruct4v"] == ["stage2"]
    assert sum(s["files"] for s in subsets if "stage1" in s["recipes"]) == 3093
