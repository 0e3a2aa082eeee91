"""The loader: the same batches for any number of workers, damage counted, dead workers noticed, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from shards.reader import DamagedRow
from tests.trainer.synthetic import make_directory
from trainer import train
from trainer.data import loader as loader_module
from trainer.data.batch import Batch, Rules
from trainer.data.loader import Loader, Task, WorkerDied
from trainer.data.order import Order, split_batch
from trainer.data.store import ShardDirectory, open_directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> ShardDirectory:
    """Twenty-six rows of text and micro images in three shards."""
    return open_directory(str(make_directory(tmp_path_factory.mktemp("loader") / "s", rows=26)))


def make_plan(directory: ShardDirectory, *, ranks: int, rank: int, start: int = 0, steps: int = 9) -> list[list[Task]]:
    """Rows of that rank's micro-batches over more than an epoch."""
    rows = directory.rows["train"]
    order = Order([rows["shard"]], [rows["patches"]], batch_rows=7, seed=2)
    split = split_batch(7, ranks, 2)
    return [tasks for step in range(start, steps) for tasks in order.micro_batches(step, rank, split)]


def same(a: Batch, b: Batch) -> bool:
    """Bit for bit."""
    pixels, others = a.media["pixel_values"], b.media["pixel_values"]
    return (torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) and a.rows == b.rows
            and all(torch.equal(a.media[name], b.media[name]) for name in ("position_ids", "segment_ids"))
            and (pixels is None) == (others is None)
            and (pixels is None or (pixels.images == others.images and pixels.views.keys() == others.views.keys()
                                    and all(torch.equal(pixels.views[side], others.views[side]) for side in pixels.views))))


@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_gives_the_same_batches(directory: ShardDirectory, workers: int) -> None:
    rules = Rules.of(directory.manifest, "all")
    plan = make_plan(directory, ranks=2, rank=1)
    alone = Loader([directory], rules=rules, rows=2, workers=0)
    loader = Loader([directory], rules=rules, rows=2, workers=workers)
    try:
        for _ in range(2):  # the same workers serve one plan after another
            made = list(loader.batches(plan))
            expected = list(alone.batches(plan))
            assert len(made) == len(expected) == len(plan)
            assert all(same(a, b) for a, b in zip(made, expected))
    finally:
        loader.close()


def test_one_two_and_three_ranks_read_the_same_global_batches(directory: ShardDirectory) -> None:
    rules = Rules.of(directory.manifest, "all")
    steps = []
    for ranks in (1, 2, 3):
        split = split_batch(7, ranks, 2)
        keys: list[list[str]] = [[] for _ in range(9)]
        for rank in range(ranks):
            loader = Loader([directory], rules=rules, rows=2, workers=0)
            for index, batch in enumerate(loader.batches(make_plan(directory, ranks=ranks, rank=rank))):
                keys[index // split.accumulation] += [span.key for row in batch.rows for span in row.samples]
        steps.append([sorted(step) for step in keys])
    assert steps[0] == steps[1] == steps[2]


def test_resuming_is_starting_at_a_step(directory: ShardDirectory) -> None:
    rules = Rules.of(directory.manifest, "all")
    loader = Loader([directory], rules=rules, rows=2, workers=1)
    try:
        whole = list(loader.batches(make_plan(directory, ranks=1, rank=0)))
        for start in (3, 4):  # 26 rows in steps of 7: step 3 crosses the epoch's end
            rest = list(loader.batches(make_plan(directory, ranks=1, rank=0, start=start)))
            assert all(same(a, b) for a, b in zip(whole[4 * start:], rest, strict=True))
    finally:
        loader.close()


def test_stopping_early_leaves_the_workers_ready(directory: ShardDirectory) -> None:
    rules = Rules.of(directory.manifest, "all")
    plan = make_plan(directory, ranks=1, rank=0)
    loader = Loader([directory], rules=rules, rows=2, workers=2)
    try:
        first = loader.batches(plan)
        begun = next(first)
        first.close()
        again = list(loader.batches(plan))
        assert same(begun, again[0])
        assert len(again) == len(plan)
    finally:
        loader.close()


def test_empty_lists_of_rows_become_padding(directory: ShardDirectory) -> None:
    rules = Rules.of(directory.manifest, "all")
    loader = Loader([directory], rules=rules, rows=2, workers=1)
    try:
        made = list(loader.batches([[], [(0, 1)], [], []]))
        assert [batch.target_count > 0 for batch in made] == [False, True, False, False]
        assert all(batch.inputs.shape == (2, rules.seq_len) for batch in made)
    finally:
        loader.close()


@pytest.fixture
def damaged(tmp_path: Path) -> ShardDirectory:
    """Two of twelve rows have a broken header; the files are as long as they should be."""
    folder = make_directory(tmp_path / "s", rows=12, shards=1, val_rows=0)
    directory = open_directory(str(folder))
    with open(folder / "train-000000.tar", "r+b") as file:
        for index in (4, 9):
            file.seek(int(directory.rows["train"][index]["offset"]) + 130)
            file.write(b"XX")
    return directory


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_an_error_or_counted(damaged: ShardDirectory, workers: int) -> None:
    rules = Rules.of(damaged.manifest, "all")
    plan = [[(0, row)] for row in range(12)]
    for allowed in (0, 1, 2):
        loader = Loader([damaged], rules=rules, rows=1, workers=workers, skip_damaged=allowed)
        try:
            if allowed < 2:
                with pytest.raises(DamagedRow, match=r"train-000000.tar.*offset \d+"):
                    list(loader.batches(plan))
            else:
                made = list(loader.batches(plan))
                assert [index for index, batch in enumerate(made) if batch.rows[0].damage] == [4, 9]
                assert len(loader.damaged) == 2
                assert made[4].target_count == 0
                assert len(list(loader.batches(plan))) == 12  # the same rows, met again in another epoch
                assert len(loader.damaged) == 2
        finally:
            loader.close()


def test_a_sigterm_to_the_whole_group_leaves_the_workers_at_work(directory: ShardDirectory) -> None:
    """As torchrun sends it: a rank that waits for a row at that moment still has to reach the point where it saves."""
    loader = Loader([directory], rules=Rules.of(directory.manifest, "all"), rows=2, workers=2)
    try:
        for process in loader._processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGTERM)
        assert len(list(loader.batches([[(0, row)] for row in range(26)]))) == 26
    finally:
        loader.close()


def test_a_loader_that_nobody_closed_does_not_keep_its_process(directory: ShardDirectory) -> None:
    script = ("import sys\nfrom trainer.data.batch import Rules\nfrom trainer.data.loader import Loader\n"
              "from trainer.data.store import open_directory\n"
              "d = open_directory(sys.argv[1])\n"
              "loader = Loader([d], rules=Rules.of(d.manifest, 'all'), rows=1, workers=2)\n")
    subprocess.run([sys.executable, "-c", script, directory.store.where], check=True, timeout=60)


def test_a_killed_worker_is_an_error_and_not_a_hang(directory: ShardDirectory) -> None:
    rules = Rules.of(directory.manifest, "all")
    loader = Loader([directory], rules=rules, rows=2, workers=2)
    try:
        batches = loader.batches(make_plan(directory, ranks=1, rank=0) * 50)
        next(batches)
        child = next(child for child in psutil.Process().children() if child.pid == loader._processes[0].pid)
        child.send_signal(signal.SIGKILL)
        with pytest.raises(WorkerDied, match="exit code -9"):
            for _ in batches:
                pass
    finally:
        loader.close()


@pytest.mark.parametrize("finish", [True, False])
def test_a_stuck_worker_is_an_error_and_not_a_hang(directory: ShardDirectory, monkeypatch: pytest.MonkeyPatch,
                                                   finish: bool) -> None:
    """Whether its row is waited for, or the plan is left early while it holds one: and it cannot stay behind."""
    monkeypatch.setattr(loader_module, "STALL_SECONDS", 1.0)
    monkeypatch.setattr(loader_module, "CLOSE_SECONDS", 1.0)
    loader = Loader([directory], rules=Rules.of(directory.manifest, "all"), rows=1, workers=2)
    stuck, pids = loader._processes[0], [process.pid for process in loader._processes]
    began = time.monotonic()
    try:
        batches = loader.batches([[(0, row)] for row in range(26)] * 50)
        next(batches)
        assert stuck.pid is not None
        os.kill(stuck.pid, signal.SIGSTOP)
        if finish:
            with pytest.raises(WorkerDied, match=r"no row for 1 s.*--resume"):
                for _ in batches:
                    pass
        else:
            time.sleep(0.3)  # until it is its row that is missing
            batches.close()
            with pytest.raises(WorkerDied, match="exit code -9"):
                list(loader.batches([[(0, 0)], [(0, 1)], [(0, 2)]]))
    finally:
        loader.close()
    assert time.monotonic() - began < 20
    assert not any(psutil.pid_exists(pid) for pid in pids if pid)


def test_a_worker_that_does_not_start_is_an_error(directory: ShardDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one forked while another thread held a lock that it needs."""
    monkeypatch.setattr(loader_module, "START_SECONDS", 0.5)
    monkeypatch.setattr(loader_module, "CLOSE_SECONDS", 0.5)
    monkeypatch.setattr(Loader, "_work", lambda *_: time.sleep(60))
    before = psutil.Process().children()
    with pytest.raises(WorkerDied, match=r"worker 0 of 2 has not started in 0.5 s.*--workers 0"):
        Loader([directory], rules=Rules.of(directory.manifest, "all"), rows=1, workers=2)
    assert psutil.Process().children() == before
    monkeypatch.setattr(Loader, "_work", lambda *_: os._exit(3))
    with pytest.raises(WorkerDied, match="worker 0 of 1 died with exit code 3"):
        Loader([directory], rules=Rules.of(directory.manifest, "all"), rows=1, workers=1)


def test_workers_die_with_the_process_that_made_them(directory: ShardDirectory, tmp_path: Path) -> None:
    """And leave nothing in shared memory."""
    before = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    script = (
        "import sys, time\n"
        "from trainer.data.batch import Rules\nfrom trainer.data.loader import Loader\n"
        "from trainer.data.store import open_directory\n"
        "d = open_directory(sys.argv[1])\n"
        "l = Loader([d], rules=Rules.of(d.manifest, 'all'), rows=1, workers=2)\n"
        "next(l.batches([[(0, 0)]] * 100))\n"
        "print(*[p.pid for p in l._processes], flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen([sys.executable, "-c", script, directory.store.where], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    for _ in range(100):
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in workers):
            break
        time.sleep(0.05)
    else:
        pytest.fail("workers outlived their parent")
    after = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    assert not [name for name in after - before if str(process.pid) in name]


@pytest.mark.parametrize("early", [True, False])
def test_a_rank_whose_torchrun_died_during_its_start_ends(early: bool) -> None:
    """It would wait half an hour for the store of a launcher that is gone, with the run's folder locked."""
    source = Path(train.__file__).read_text()
    assert source.index("trainer.guard import") < source.index("import torch\n")  # whose import takes seconds
    rank = (f"import os, time\nparent = os.getppid()\nif {early}: from trainer import guard\nprint(os.getpid(), flush=True)\n"
            "for _ in range(6000):\n    time.sleep(0.01)\n    if os.getppid() != parent: from trainer import guard\n")
    launcher = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', sys.argv[1]])\n"
    process = subprocess.Popen([sys.executable, "-c", launcher, rank], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "TORCHELASTIC_RUN_ID": "x"}, cwd=Path(train.__file__).parents[1])
    assert process.stdout is not None
    assert int(process.stdout.readline())
    process.kill()
    process.wait()
    killed = time.monotonic()
    process.stdout.read()  # to the end, which comes when the rank, the last to hold the pipe, has ended
    process.stdout.close()
    assert time.monotonic() - killed < 30


def test_memory_stays_flat(directory: ShardDirectory) -> None:
    """Over many batches neither this process nor a worker grows: slots are used again."""
    rules = Rules.of(directory.manifest, "all")
    loader = Loader([directory], rules=rules, rows=4, workers=1)
    plan = [[(0, (4 * step + index) % 26) for index in range(4)] for step in range(60)]
    try:
        list(loader.batches(plan[:30]))
        pids = [os.getpid(), *(process.pid for process in loader._processes)]
        before = [psutil.Process(pid).memory_info().rss for pid in pids]
        for _ in range(4):
            for _batch in loader.batches(plan):
                pass
        after = [psutil.Process(pid).memory_info().rss for pid in pids]
        assert all(b - a < 40e6 for a, b in zip(before, after)), (before, after)
    finally:
        loader.close()
