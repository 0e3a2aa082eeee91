"""Builds that are killed, interrupted, starved of disk, or fed rows that kill their worker end as undisturbed ones do.

The long run of kills is marked slow: `pytest tests/faults/test_build_faults.py -m slow`.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.build import local
from pipeline.build.local import run_tasks
from pipeline.build.run import build
from pipeline.build.state import open_build
from tests.faults.killers import deadly_work
from tests.pipeline.made import (
    all_samples,
    digests,
    in_process,
    make_raw,
    picture,
    plan_of,
    rejects,
    row,
    tokenizer_of,
    write_recipe,
    write_set,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    """(recipe, raw, digests of an undisturbed build)."""
    root = tmp_path_factory.mktemp("made")
    recipe, raw = write_recipe(root), make_raw(root / "raw")
    in_process(plan_of(recipe, raw), root / "out", recipe)
    return recipe, raw, digests(root / "out")


def start(recipe: Path, raw: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """`pipeline build-shards` as a user starts it, in a process group of its own."""
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "build-shards", "--recipe", str(recipe), "--raw",
               str(raw), "--out", str(out), "--workers", "2", *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes of a build (not the footer helpers, nor multiprocessing's own)."""
    with contextlib.suppress(psutil.Error):
        return [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    return []


def build_under_kills(recipe: Path, raw: Path, out: Path, kills: int, seed: int) -> int:
    """Run a build to its end while killing its parent or a worker `kills` times at random moments; returns kills that hit."""
    chance = random.Random(seed)
    hits = 0
    deadline = time.monotonic() + 60 * kills + 120
    process = start(recipe, raw, out)
    begun = time.monotonic()
    while time.monotonic() < deadline:
        time.sleep(chance.uniform(0.02, 0.4))
        if process.poll() is not None:
            if process.returncode == 0:
                return hits
            assert process.returncode == -signal.SIGKILL, process.communicate()
            process = start(recipe, raw, out)
            begun = time.monotonic()
        if hits >= kills or (hits >= 3 and time.monotonic() - begun < chance.uniform(1.0, 4.0)):
            continue  # let it get to work now and then; the first kills come at once, for a build may take two seconds
        victims = workers_of(process)
        if not victims:
            continue
        victim = process.pid if chance.random() < 0.4 else chance.choice(victims).pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            hits += 1
    process.kill()
    raise AssertionError(f"not done after {hits} kills: {process.communicate()}")


def no_workers_left(out: Path) -> bool:
    """Whether every worker of builds into this folder has gone."""
    for _ in range(100):
        found = [p.pid for p in psutil.process_iter(["cmdline"]) if str(out) in " ".join(p.info["cmdline"] or [])]
        if not found:
            return True
        time.sleep(0.1)
    return False


def test_kills_change_nothing(made: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    recipe, raw, expected = made
    assert build_under_kills(recipe, raw, tmp_path / "out", kills=6, seed=1) >= 3
    assert digests(tmp_path / "out") == expected
    assert no_workers_left(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sixty_kills_change_nothing(made: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    recipe, raw, expected = made
    hits, seed = 0, 0
    while hits < 60:
        out = tmp_path / f"out{seed}"
        hits += build_under_kills(recipe, raw, out, kills=60 - hits, seed=seed)
        assert digests(out) == expected
        seed += 1


def test_ctrl_c_exits_130_and_the_same_command_goes_on(made: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    recipe, raw, expected = made
    process = start(recipe, raw, tmp_path / "out")
    log = tmp_path / "out.build" / "log.jsonl"
    while process.poll() is None and not (log.exists() and '"event": "task"' in log.read_text()):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: parent and workers get it
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert not (tmp_path / "out" / "manifest.json").exists()
    again = start(recipe, raw, tmp_path / "out")
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0 and json.loads(output)["tasks_run"] < len(plan_of(recipe, raw).shards)
    assert digests(tmp_path / "out") == expected


def test_two_builds_of_one_folder_do_not_mix(made: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    recipe, raw, expected = made
    both = [start(recipe, raw, tmp_path / "out") for _ in range(2)]
    ended = [process.communicate(timeout=120)[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 2]), ended
    assert all("Traceback" not in text for text in ended)
    assert digests(tmp_path / "out") == expected


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that can be full."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def resize(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", "tmpfs", disk], check=True)


def test_a_full_disk_is_a_clear_error_and_the_build_goes_on(made: tuple[Path, Path, dict[str, str]], small_disk: Path) -> None:
    recipe, raw, expected = made
    resize(small_disk, 600)
    process = start(recipe, raw, small_disk / "out")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "disk is full" in errors or "No space left" in errors
    assert "Traceback" not in errors
    resize(small_disk, 64 << 10)
    process = start(recipe, raw, small_disk / "out")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert digests(small_disk / "out") == expected


def test_wherever_the_disk_fills_up_nothing_wrong_is_left(made: tuple[Path, Path, dict[str, str]], small_disk: Path) -> None:
    recipe, raw, expected = made
    plan = plan_of(recipe, raw)
    finished = 0
    for kilobytes in range(100, 4000, 250):
        resize(small_disk, kilobytes)
        with contextlib.suppress(OSError):
            if in_process(plan, small_disk / "out", recipe).manifest is not None:
                finished = kilobytes
                break
    assert finished > 1000  # several sizes were too small
    assert digests(small_disk / "out") == expected


def test_rows_that_kill_their_worker_are_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash, a kill, an endless loop, a bomb, a defect in our code, while fitting, tokenizing or reading: each costs its row (or
    its row group where reading fails), with a reason, and the rest is what it would have been."""
    good = [row([picture(at)], [("q", f"answer {at}")]) for at in range(12)]
    bad = [row([data], [("q", "a")]) for data in (b"abort", b"kill", b"spin", b"bloat", b"bug")]
    bad += [row([picture(50)], [("q", "abort while tokenizing")]), row([picture(51)], [("q", "fail while tokenizing")])]
    write_set(tmp_path / "raw", "deadly", good[:6] + bad + good[6:], group=50)
    write_set(tmp_path / "raw", "reading", [row([picture(90 + at)], [("q", "a")]) for at in range(16)], group=4)
    recipe = write_recipe(tmp_path, 'name = "d"\ntokenizer = {tokenizer!r}\nmode = "micro"\nseq_len = 256\nvalidation = 0.0\n'
                                    "[sources.deadly]\n[sources.reading]\n")
    monkeypatch.setattr(local, "_work", deadly_work)
    monkeypatch.setattr(local, "ROW_SECONDS", 1.0)
    plan, tokenizer = plan_of(recipe, tmp_path / "raw"), tokenizer_of(recipe)
    state = open_build(plan, tmp_path / "out")
    build(plan, state, tokenizer, lambda shards, beat: run_tasks(plan, shards, state, tokenizer, workers=1, beat=beat), quiet=True)
    found = {row.partition("#")[2]: told for (source, row), told in rejects(tmp_path / "out").items() if source == "deadly"}
    assert {at: reason for at, (reason, _) in found.items()} == {
        "6": "worker-lost", "7": "worker-lost", "8": "worker-lost", "9": "worker-lost", "10": "unexpected", "11": "worker-lost",
        "12": "unexpected"}
    assert found["10"][1].startswith("KeyError: 'a defect' (killers.py:") and "no tokens today" in found["12"][1]
    lost = {row: reason for (source, row), (reason, _) in rejects(tmp_path / "out").items() if source == "reading"}
    assert lost == {f"reading/train-00000-of-00001.parquet#{at}": "unreadable-row-group" for at in range(4, 8)}
    kept = sorted(sample.meta["row"] for sample in all_samples(tmp_path / "out"))
    assert len(kept) == 12 + 12
    events = [json.loads(line) for line in (state.work / "log.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "worker-lost" for event in events) <= 30
    assert len(json.loads((state.work / "quarantine.json").read_text())) == 6
