"""`pipeline push` through the real client against a loopback hub; each push in a process of its own, as the client reads its
environment once."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.build.state import open_build
from tests.pipeline.push_server import PushServer
from tests.pipeline.small_sets import contents, run_build, small_plan, small_raw

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    plan = small_plan(small_raw(folder, rows=25))
    run_build(plan, open_build(plan, str(folder / "shards"), fresh=False, work=None))
    return folder / "shards"


@pytest.fixture
def hub() -> Iterator[PushServer]:
    with PushServer() as server:
        yield server


def push(hub: PushServer, folder: Path, *options: str, repo: str = "someone/small",
         **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1",
                   "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(folder.parent / "hf"), **variables}
    words = [sys.executable, "-c", "from pipeline.cli import main; main()", "push", str(folder), repo, *options]
    return subprocess.run(words, cwd=REPO, env=environment, capture_output=True, text=True, timeout=120)


def published(hub: PushServer, repo: str = "someone/small") -> dict[str, bytes]:
    return {name: data for name, (data, _) in hub.repos[repo].items()}


def test_everything_arrives_and_the_manifest_last(built: Path, hub: PushServer) -> None:
    done = push(hub, built, "--private")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert published(hub) == contents(built)
    assert summary["files"] == summary["uploaded"] == len(contents(built))
    assert hub.private["someone/small"]
    assert hub.commits[-1][1] == ["+manifest.json"]
    assert all("+manifest.json" not in paths for _, paths in hub.commits[:-1])
    assert not (built / ".cache").exists()


def test_a_second_push_sends_nothing(built: Path, hub: PushServer) -> None:
    push(hub, built)
    commits, uploads = len(hub.commits), hub.uploads
    again = push(hub, built)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["uploaded"] == 0
    assert (len(hub.commits), hub.uploads) == (commits, uploads)


def test_an_earlier_larger_build_leaves_no_shard_behind(built: Path, hub: PushServer) -> None:
    hub.repos["someone/small"] = {"train-000099.tar": (b"old", True), "train-000099.tar.idx": (b"old", False),
                                  "manifest.json": (b"{}", False), "notes.md": (b"mine", False), "train-000000.tar": (b"old", True)}
    done = push(hub, built)
    assert done.returncode == 0, done.stderr
    assert published(hub) == {**contents(built), "notes.md": b"mine"}
    assert "-manifest.json" in hub.commits[0][1]  # no moment at which the old manifest stands beside new shards


def test_transient_failures_are_tried_again(built: Path, hub: PushServer) -> None:
    hub.faults = [("POST", "/repos/create", 503), ("POST", "/repos/create", 0), ("POST", "/commit/", 0),
                  ("GET", "/tree/", 429), ("POST", "/commit/", 500), ("PUT", "/storage/", 503)]
    done = push(hub, built)
    assert done.returncode == 0, done.stderr
    assert not hub.faults
    assert published(hub) == contents(built)


def test_a_push_that_was_cut_off_goes_on(built: Path, hub: PushServer) -> None:
    push(hub, built)
    for name in ("manifest.json", "README.md", "train-000001.tar"):
        del hub.repos["someone/small"][name]
    before = hub.uploads
    done = push(hub, built)
    assert json.loads(done.stdout.splitlines()[-1])["uploaded"] == 3
    assert published(hub) == contents(built)
    assert hub.uploads == before  # the storage still had that object


@pytest.mark.parametrize(("variables", "told"), [
    ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE"), ({"HF_TOKEN": "hf_\u00e4"}, "HF_TOKEN"),
    ({"HF_ENDPOINT": "127.0.0.1:1"}, "HF_ENDPOINT"), ({"HF_ENDPOINT": "http://127.0.0.1:abc"}, "HF_ENDPOINT"),
    ({"HF_ENDPOINT": "http://[::1"}, "HF_ENDPOINT"), ({"http_proxy": ":::", "no_proxy": ""}, "proxies")])
def test_an_environment_that_cannot_work_is_said_at_once(built: Path, hub: PushServer, variables: dict[str, str],
                                                         told: str) -> None:
    done = push(hub, built, **variables)
    assert done.returncode == 1
    assert told in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert "try 2 of" not in done.stderr
    assert "tries)" not in done.stderr


def test_refusals_are_plain(built: Path, hub: PushServer, tmp_path: Path) -> None:
    hub.refuse = True
    done = push(hub, built)
    assert done.returncode == 1
    assert "HF_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
    hub.refuse = False
    hub.faults = [("PUT", "/storage/", 403)] * 50
    done = push(hub, built)
    assert done.returncode == 1 and "HF_TOKEN" in done.stderr and "Traceback" not in done.stderr, done.stderr
    hub.faults = []
    for bad in ("small", "a/b/c", "../up/x", "a/.."):
        assert push(hub, built, repo=bad).returncode == 2
    damaged = tmp_path / "damaged"
    shutil.copytree(built, damaged)
    data = bytearray((damaged / "train-000000.tar").read_bytes())
    data[3000] ^= 1
    (damaged / "train-000000.tar").write_bytes(data)
    done = push(hub, damaged)
    assert done.returncode == 1
    assert "pipeline verify" in done.stderr
    (damaged / "manifest.json").unlink()
    done = push(hub, damaged)
    assert done.returncode == 1
    assert "not finished" in done.stderr
    assert not published(hub)
