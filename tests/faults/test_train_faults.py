"""Killing a training run: torchrun takes its ranks with it, nothing half written is read, and the resumed run is the same run.

The short form kills three times; the long one (`just test-slow`) twenty times, at random moments.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.synthetic import make_directory
from trainer import checkpoint

ROOT = Path(__file__).parents[2]


Launch = Callable[[Path, Path, int], subprocess.Popen[bytes]]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Starts runs; one that a failed test leaves behind would train on beside the rest of the suite."""
    started = []

    def start(shards: Path, out: Path, steps: int) -> subprocess.Popen[bytes]:
        started.append(two_ranks(shards, out, steps))
        return started[-1]

    yield start
    for process in started:
        for one in family(process.pid) if process.poll() is None else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(timeout=30)


def two_ranks(shards: Path, out: Path, steps: int) -> subprocess.Popen[bytes]:
    """A run of two ranks, each with a worker, that goes on from whatever is there."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
               str(ROOT / "trainer" / "train.py"), "--shards", str(shards), "--out", str(out), "--track", "none", "--device", "cpu",
               "--workers", "1", "--max-steps", str(steps), "--save-every", "2", "--eval-every", "5", "--keep", "2", "--resume"]
    with open(out.with_suffix(".err"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)


def family(pid: int) -> list[psutil.Process]:
    """A process and everything below it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_for_death(processes: list[psutil.Process]) -> None:
    """All of them end within seconds, without a hand laid on them."""
    for _ in range(200):
        alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return
        time.sleep(0.05)
    for process in alive:
        process.kill()
    pytest.fail(f"outlived torchrun: {alive}")


def logged(out: Path) -> list[tuple[int, float]]:
    """(step, loss) of a run's log; none yet if it has not begun."""
    if not (out / "log.jsonl").exists():
        return []
    found = []
    for line in (out / "log.jsonl").read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # being written
        if "loss" in entry:
            found.append((entry["step"], entry["loss"]))
    return found


def run_with_kills(launch: Launch, tmp_path: Path, *, kills: int, steps: int, seed: int) -> None:
    """One run undisturbed, one killed again and again; both must end with the same curve and the same weights."""
    rng = random.Random(seed)
    shards = make_directory(tmp_path / "shards", rows=14, val_rows=2, seq_len=64, train={"batch_rows": 4, "lr": 4e-4})
    whole = launch(shards, tmp_path / "whole", steps)
    assert whole.wait(timeout=240) == 0, (tmp_path / "whole.err").read_text()[-2000:]
    out = tmp_path / "killed"
    done = 0
    while done < kills:
        process = launch(shards, out, steps)
        before, deadline = len(logged(out)), time.monotonic() + 120
        # Either at some moment of the start, or once a few more steps are in the log: also while a checkpoint is written.
        if rng.random() < 0.2:
            time.sleep(rng.uniform(0.5, 8))
        else:
            wanted = before + rng.randint(1, 3)
            while len(logged(out)) < wanted and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 0.3))
        processes = family(process.pid)
        if process.poll() is not None:  # it got to its end before the blow
            assert process.returncode == 0, (tmp_path / "killed.err").read_text()[-2000:]
            break
        victim = process.pid if rng.random() < 0.7 or len(processes) < 2 else rng.choice(processes[1:]).pid
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.wait(timeout=120)  # a killed rank or worker makes torchrun end the others
        wait_for_death(processes)
        done += 1
    last = launch(shards, out, steps)
    assert last.wait(timeout=240) == 0, (tmp_path / "killed.err").read_text()[-2000:]
    assert logged(out) == logged(tmp_path / "whole")
    assert [step for step, _ in logged(out)] == list(range(1, steps + 1))
    for name in ("model.safetensors", "training/optimizer.safetensors"):
        a, b = (load_file(checkpoint.find(run) / name) for run in (out, tmp_path / "whole"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a), name
    assert not list(out.glob(".*.partial"))


def test_killed_and_resumed_is_the_same_run(launch: Launch, tmp_path: Path) -> None:
    run_with_kills(launch, tmp_path, kills=2, steps=8, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_twenty_kills(launch: Launch, tmp_path: Path) -> None:
    run_with_kills(launch, tmp_path, kills=20, steps=40, seed=2)


def test_a_terminated_torchrun_saves_within_its_thirty_seconds(launch: Launch, tmp_path: Path) -> None:
    """SIGTERM to torchrun, as a cluster sends it: the step under way is dropped, the last whole one is saved."""
    shards = make_directory(tmp_path / "shards", rows=14, val_rows=2, seq_len=64, train={"batch_rows": 4, "lr": 4e-4})
    process = launch(shards, tmp_path / "run", 10_000)
    deadline = time.monotonic() + 120
    while len(logged(tmp_path / "run")) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    processes = family(process.pid)
    sent = time.monotonic()
    process.terminate()
    process.wait(timeout=60)
    assert time.monotonic() - sent < 25
    wait_for_death(processes)
    steps = [step for step, _ in logged(tmp_path / "run")]
    assert max(checkpoint.folders(tmp_path / "run")) == steps[-1]  # nothing that was logged is lost


def test_a_folder_takes_one_torchrun_at_a_time(launch: Launch, tmp_path: Path) -> None:
    shards = make_directory(tmp_path / "shards", rows=14, val_rows=0, seq_len=64, train={"batch_rows": 4, "lr": 4e-4})
    first = launch(shards, tmp_path / "run", 10_000)
    deadline = time.monotonic() + 120
    while not logged(tmp_path / "run") and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    second = subprocess.run([sys.executable, str(ROOT / "trainer" / "train.py"), "--shards", str(shards), "--out",
                             str(tmp_path / "run"), "--resume", "--device", "cpu"], capture_output=True, text=True, timeout=120)
    assert second.returncode == 1
    assert "in use by another run" in second.stderr
    processes = family(first.pid)
    first.kill()
    first.wait(timeout=30)
    wait_for_death(processes)
