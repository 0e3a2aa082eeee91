"""render-chem among molecules that hang, crash or make no sense, and under kills: every good row once, same bytes."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.chem.pool import Pool, PoolError, read_quarantine
from pipeline.chem.render import Progress, render
from pipeline.chem.strings import Limits
from tests.chem.helpers import MOLECULES, make_plan, read_bytes, read_rejects, read_set, write_smiles

# a ring of 18 para-phenylenes: RDKit 2026.9's parser runs for minutes on it
PHENYLENE_RING = "c1cc2ccc1" + "-c1ccc(cc1)" * 16 + "-c1ccc2cc1"
HOSTILE = {
    "": "empty", "*": "too-few-atoms", "C" * 400: "too-many-atoms", "O" + "CCO" * 300: "too-long", "\xff\xfe\x00garbage": "syntax",
    "c1ccccc": "syntax", "C(C)(C)(C)(C)C": "valence", "c1cccc1": "kekulize", "[Xx]": "syntax", "C" * 70000: "too-long",
    "(" * 300: "syntax", "C1" * 150: "too-many-atoms", "[He+9]": "charge", "two words": "syntax",
}
WORKER = textwrap.dedent("""
    import os, signal, sys, time
    import pipeline.chem.depict, pipeline.chem.molecules, pipeline.chem.worker as worker

    def trap(function, traps):
        def run(row, *rest):
            act = traps.get(getattr(row, "smiles", row))
            if act == "hang":
                while True: pass
            if act == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if act == "memory":
                return bytearray(1 << 34)
            if act == "slow":
                time.sleep(0.02)
            return function(row, *rest)
        return run

    pipeline.chem.molecules.canonicalise = trap(pipeline.chem.molecules.canonicalise, {"CCCCCCCCCCl": "crash"})
    pipeline.chem.depict.compose = trap(pipeline.chem.depict.compose, {"CCCCCCCCCF": "hang", "CCCCCCCCCP": "crash"})
    pipeline.chem.depict.paint = trap(pipeline.chem.depict.paint, {
        "CCCCCCCCCS": "hang", "CCCCCCCCCBr": "crash", "CCCCCCCCCI": "memory"})
    sys.argv = ["worker", *sys.argv[1:]]
    worker.main()
""")


def workers_of(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):  # it ended while it was looked at
            if "pipeline.chem.worker" in " ".join(child.cmdline()):
                found.append(child)
    return found


def lots(count: int) -> list[str]:
    """Different small molecules, quick to draw."""
    chains = ["C" * a + middle + "C" * b for a in range(1, 36) for b in range(a, 36) for middle in ("O", "N", "S", "C(=O)")]
    return list(dict.fromkeys(MOLECULES + chains))[:count]


def test_hostile_lines_are_rejected_with_their_reasons(tmp_path: Path) -> None:
    path = tmp_path / "hostile.tsv"
    lines = [*MOLECULES, *HOSTILE]
    path.write_bytes("".join(f"{smiles}\t{i}\n" for i, smiles in enumerate(lines)).encode("latin-1"))
    plan = make_plan(tmp_path / "chem", [path])
    report = render(plan, workers=1)
    assert report.rows == len(MOLECULES)
    assert report.restarts == 0
    found = {reject["row"]: reject["reason"] for reject in read_rejects(plan.out)}
    assert found == {f"hostile.tsv:{len(MOLECULES) + k + 1}": reason for k, reason in enumerate(HOSTILE.values())}
    assert json.loads((plan.out / "manifest.json").read_text())["rejects"] == report.rejects


def test_ring_that_hangs_the_parser_is_stopped_by_the_limits_or_else_by_the_deadline(tmp_path: Path) -> None:
    path = write_smiles(tmp_path / "ring.smi", [*MOLECULES, PHENYLENE_RING])
    render(make_plan(tmp_path / "limits", [path]), workers=1)
    assert {reject["reason"] for reject in read_rejects(tmp_path / "limits")} == {"too-many-atoms"}
    plan = make_plan(tmp_path / "deadline", [path], limits=Limits(max_atoms=300, max_rings=99))
    report = render(plan, workers=1, deadline=1)
    assert report.rows == len(MOLECULES)
    assert report.rejects == {"deadline": 1}
    assert next(iter(read_quarantine(plan.out / "quarantine.jsonl").values()))["reason"] == "deadline"


def test_crash_hang_and_memory_cost_one_row_each(tmp_path: Path) -> None:
    bad = {
        "CCCCCCCCCCl": "crash", "CCCCCCCCCF": "deadline", "CCCCCCCCCP": "crash", "CCCCCCCCCS": "deadline", "CCCCCCCCCBr": "crash",
        "CCCCCCCCCI": "memory"}
    rows = lots(60)
    path = write_smiles(tmp_path / "traps.smi", [*rows[:30], *bad, *rows[30:]])
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    command = (sys.executable, str(worker))
    plan = make_plan(tmp_path / "chem", [path])
    report = render(plan, workers=2, deadline=1, command=command)
    assert report.rows == len(rows)
    assert {reject["smiles"]: reject["reason"] for reject in read_rejects(plan.out)} == bad
    # a rerun takes the quarantine as its input: same set, nothing tried again, no deadline waited for
    (plan.out / plan.file_name(0)).unlink()
    before = (plan.out / "manifest.json").read_bytes()
    again = render(plan, workers=1, command=command, deadline=600)
    assert again.restarts == 0
    assert (plan.out / "manifest.json").read_bytes() == before
    # the good rows are those of a run without the bad ones
    clean = make_plan(tmp_path / "clean", [write_smiles(tmp_path / "traps2.smi", rows)])
    render(clean, workers=1)
    pictures = [{row["canonical_smiles"]: row["images"] for row in read_set(out)} for out in (plan.out, clean.out)]
    assert {key: value[0]["bytes"] for key, value in pictures[0].items()} == {
        key: value[0]["bytes"] for key, value in pictures[1].items()}


def kill_workers(times: int, folder: Path, count: int) -> int:
    """Renders `count` molecules while a thread kills `times` workers at random moments; returns the kills made."""
    path = write_smiles(folder / "many.smi", lots(count))
    render(make_plan(folder / "calm", [path], rows_per_file=200), workers=2)
    done, drawn, over = 0, -count, threading.Event()

    def begin(phase: str, total: int) -> None:
        nonlocal drawn
        drawn = 0 if phase == "draw" else -count

    def step(rows: int, rejects: int) -> None:
        nonlocal drawn
        drawn += rows

    def killer() -> None:
        nonlocal done
        rng = random.Random(7)
        while done < times and not over.is_set():
            time.sleep(rng.uniform(0.0, 0.15))
            # mostly not while it starts, or no row would ever be drawn
            alive = [child for child in workers_of(os.getpid()) if time.time() - child.create_time() > 1.0]
            if alive and drawn < count - 100:  # a kill behind the last rows needs no restart
                rng.choice(alive).kill()
                done += 1

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        report = render(make_plan(folder / "killed", [path], rows_per_file=200, size=96), workers=2,
                        progress=Progress(phase=begin, step=step))
    finally:
        over.set()
        thread.join()
    assert report.restarts >= done
    assert read_bytes(folder / "killed") == read_bytes(folder / "calm")
    return done


def test_killed_workers_change_no_byte(tmp_path: Path) -> None:
    kill_workers(3, tmp_path, 500)


@pytest.mark.slow
def test_thirty_killed_workers_change_no_byte(tmp_path: Path) -> None:
    done = 0
    for attempt in range(30):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        done += kill_workers(30 - done, folder, 2500)
        if done >= 30:
            break
    assert done >= 30


def test_killed_parent_takes_its_workers_and_the_rerun_completes(tmp_path: Path) -> None:
    path = write_smiles(tmp_path / "many.smi", lots(300))
    arguments = ["--smiles", str(path), "--style", "plain", "--size", "256", "--rows-per-file", "100", "--workers", "2"]
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "render-chem", *arguments, "--out"]
    subprocess.run([*command, str(tmp_path / "calm" / "chem")], check=True, capture_output=True)
    out = tmp_path / "killed" / "chem"
    process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 120
    while not list(out.glob("train-*.parquet")) and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.01)
    orphans = workers_of(process.pid) if process.poll() is None else []
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(orphans, timeout=10)
    assert not alive
    done = subprocess.run([*command, str(out)], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == 300
    assert read_bytes(out) == read_bytes(tmp_path / "calm" / "chem")


def test_interrupt_exits_130_and_leaves_no_worker(tmp_path: Path) -> None:
    path = write_smiles(tmp_path / "many.smi", lots(2000))
    process = subprocess.Popen(
        [sys.executable, "-c", "from pipeline.cli import main; main()", "render-chem", "--smiles", str(path), "--workers", "1",
         "--out", str(tmp_path / "chem")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while not workers_of(process.pid) and time.monotonic() < limit:
        time.sleep(0.05)
    workers = workers_of(process.pid)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert not psutil.wait_procs(workers, timeout=10)[1]


def test_worker_that_cannot_start_ends_the_run_with_its_words(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "chem", [write_smiles(tmp_path / "a.smi", MOLECULES)])
    broken = (sys.executable, "-c", "raise SystemExit('no rdkit here')")
    with pytest.raises(PoolError, match="no rdkit here"), Pool(
        plan.job, workers=1, quarantine=tmp_path / "q.jsonl", command=broken
    ) as pool:
        list(pool.run("canonicalise", [[["CCO"]]], sent=1))


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    import fcntl

    plan = make_plan(tmp_path / "chem", [write_smiles(tmp_path / "a.smi", MOLECULES)])
    (plan.out / ".work").mkdir(parents=True)
    with open(plan.out / ".work" / "lock-0", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another render-chem"):
            render(plan, workers=1)
