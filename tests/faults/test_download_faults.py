"""A download that is killed again and again on a bad network ends with the same bytes and fetches no finished file twice.

The command runs as a user runs it, in a process of its own, and is killed with SIGKILL when the hub has sent a random
number of bytes. The short form (5 kills) is among the default tests; the long one (40 kills) is marked slow, 1 minute.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hub.conftest import REPO, write_set
from tests.hub_server import Fault, HubServer, seeded

FILES = 64
BAD_NETWORK = [Fault("429", retry_after="0"), Fault("503"), Fault("cut", part=0.3), Fault("cut", part=0.9), Fault("drop"),
               Fault("slow", seconds=0.2)] * 4 + [Fault("flip")]    # three flips of one file in a row are a failure


@pytest.fixture(scope="module")
def big_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("big")
    for k in range(FILES):
        write_set(root / REPO / "docs" / f"train-{k:05d}-of-{FILES:05d}.parquet", rows=20 + k % 7, group=10, seed=k)
    (root / REPO / "README.md").write_text("# made\n")
    return root


def start(hub: HubServer, raw: Path, home: Path) -> "subprocess.Popen[str]":
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "PIPELINE_CACHE": str(home / "cache")}
    env.pop("HF_TOKEN", None)
    return subprocess.Popen([sys.executable, "-c", "from pipeline.cli import main; main()", "download", "--subset", "docs",
                             "--raw", str(raw)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            cwd=Path(__file__).resolve().parents[2])


def sent(hub: HubServer) -> int:
    return sum(r.sent for r in hub.requests if "/_storage/" in r.path)


def finished(raw: Path) -> set[str]:
    """Names a reader would open: whatever is there under a final name."""
    return {p.name for p in raw.rglob("*.parquet") if not p.name.startswith(".")}


def whole(raw: Path, root: Path, names: set[str]) -> bool:
    return all((raw / REPO / "docs" / name).read_bytes() == (root / REPO / "docs" / name).read_bytes() for name in names)


def kill_and_go_on(big_root: Path, tmp_path: Path, kills: int, seed: int, rate: float) -> None:
    raw, rng = tmp_path / "raw", random.Random(seed)
    sizes = {p.name: p.stat().st_size for p in (big_root / REPO / "docs").iterdir()}
    moments = sorted(rng.uniform(0, 0.97) * sum(sizes.values()) for _ in range(kills))
    seen_at: dict[str, int] = {}    # finished file -> length of the hub's log when it was first seen
    killed = 0
    with HubServer(big_root, page=10, faults=seeded(rate, seed, BAD_NETWORK)) as hub:
        digests = {Path(path).name: blob.sha256 for path, blob in hub.repos[REPO].commits[hub.repos[REPO].main].items()}
        while True:
            base, process = sent(hub), start(hub, raw, tmp_path / "home")
            target = moments[killed] if killed < kills else float("inf")
            while process.poll() is None and (killed == kills or max(sent(hub), base + 1) <= target):
                time.sleep(0.005)
            if process.poll() is None:
                time.sleep(rng.uniform(0, 0.05))
                process.kill()
                killed += 1
            out, err = process.communicate()
            here = finished(raw)
            assert whole(raw, big_root, here), "a name without a dot in front is always whole"
            for name in here:
                seen_at.setdefault(name, len(hub.requests))
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, err
        assert killed == kills, "the run was over before the last kill"
        assert here == set(sizes)
        assert json.loads(out.splitlines()[-1])["failed"] == 0
        log = hub.requests
    for name, length in seen_at.items():
        late = [r for r in log[length:] if digests[name] in r.path and "/_storage/" in r.path]
        assert not late, f"{name} was finished and asked for again"
    assert not [p for p in raw.rglob("*.part")]


def test_five_kills(big_root: Path, tmp_path: Path) -> None:
    kill_and_go_on(big_root, tmp_path, kills=5, seed=1, rate=0.12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_forty_kills(big_root: Path, tmp_path: Path, seed: int) -> None:
    kill_and_go_on(big_root, tmp_path, kills=40, seed=seed, rate=0.25)


def test_interrupt_exits_130_at_once_and_goes_on(big_root: Path, tmp_path: Path) -> None:
    with HubServer(big_root) as hub:
        stall = Fault("stall", part=0.5, seconds=30)
        hub.state.faults = lambda method, path, nth: stall if nth > 1 and "/_storage/" in path else None
        process = start(hub, tmp_path / "raw", tmp_path / "home")
        while sent(hub) < 3_000_000 and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.communicate(timeout=20)
        assert process.returncode == 130
        assert time.monotonic() - began < 5, "nothing waits for a stalled connection"
        hub.state.faults = None
        process = start(hub, tmp_path / "raw", tmp_path / "home")
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert whole(tmp_path / "raw", big_root, finished(tmp_path / "raw"))
        assert len(finished(tmp_path / "raw")) == FILES
