"""Running tasks on this machine: worker processes that may die, hang or be killed without losing or changing anything.

Each worker takes one task at a time and says through shared memory which row it is at. A worker that dies has its task started
again, now row by row; one that spends more than ROW_SECONDS of processor time at one row is killed, and one that needs more than
WORKER_BYTES ends itself. A row (or a row group that is being read) at which workers were lost STRIKES times is written to the
quarantine, so that it is rejected by name in every later run, and the task starts again without it. Kills from outside count
half: a user or a short memory may end any worker. Workers die with their parent. Cost of supervision: one poll every 50 ms.
"""

import contextlib
import ctypes
import functools
import itertools
import multiprocessing
import os
import resource
import signal
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import psutil

from pipeline.build.blocks import ChangedFileError
from pipeline.build.runner import run_task
from pipeline.build.state import BuildState
from pipeline.build.target import TargetError
from pipeline.build.task import RENDER
from pipeline.hub.retry import HubError
from pipeline.plan import Plan, versions
from pipeline.processes import die_with_parent
from pipeline.tokens import Tokenizer, prepare

ROW_SECONDS = 120.0  # processor seconds at one row; the slowest real row seen takes under two
WORKER_BYTES = 4 << 30  # of private memory: ordinary rows need under one, this is where a bomb ends
OUT_OF_MEMORY = 77  # exit code of a worker that reached it
STRIKES = 3
MOST_LOSSES = 50  # of one task
_OUTSIDERS = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}  # exit codes of a worker that was killed
_POLL = 0.05
_BEAT_BYTES = 4096
_BEAT = struct.Struct("<QQQ")  # beats, rows begun, bytes of text that follow: source, a zero, row
_SPAWN = multiprocessing.get_context("spawn")


class TaskFailed(RuntimeError):
    """A task that cannot be finished; the message holds the worker's own error."""


class VersionMismatch(RuntimeError):
    """This process has other library versions than the plan, so its bytes could differ."""


def check_versions(plan: Plan) -> None:
    """Refuse to run a plan's task with other versions."""
    here = versions()
    wrong = [f"{name} {here.get(name, 'absent')} (plan: {plan.versions.get(name, 'absent')})"
             for name in sorted({*here, *plan.versions}) if here.get(name) != plan.versions.get(name)]
    if wrong:
        raise VersionMismatch("this machine would build other bytes than the plan: " + ", ".join(wrong))


@dataclass
class Worker:
    """Parent's view of one worker process."""

    process: BaseProcess
    pipe: Connection
    beat: Any
    shard: int | None = None
    rows_before: int = 0  # rows begun before this task
    seen: int = 0
    cpu_at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TaskDone:
    """A finished task and what its result.json holds; `seconds` is wall time."""

    shard: int
    result: dict[str, Any]
    seconds: float


def run_tasks(plan: Plan, shards: Iterable[int], state: BuildState, tokenizer: Tokenizer, *, workers: int,
              beat: Callable[[int], None] = lambda rows: None) -> Iterator[TaskDone]:
    """Run tasks and yield each as it finishes. Raises TaskFailed with the first error that a retry cannot mend."""
    pool = _Pool(plan, state, tokenizer, iter(shards), workers)
    try:
        yield from pool.run(beat)
    finally:
        pool.stop()


@dataclass
class _Pool:
    plan: Plan
    state: BuildState
    tokenizer: Tokenizer
    fresh: Iterator[int]
    size: int
    workers: list[Worker] = field(default_factory=list)
    strikes: Counter[tuple[int, int, str, str]] = field(default_factory=Counter)  # (shard, rows begun, source, row)
    losses: Counter[int] = field(default_factory=Counter)
    started: dict[int, float] = field(default_factory=dict)

    def run(self, beat: Callable[[int], None]) -> Iterator[TaskDone]:
        for shard in itertools.islice(self.fresh, self.size):
            self._feed(self._start(), shard)
        while any(worker.shard is not None for worker in self.workers):
            ready = wait([worker.pipe for worker in self.workers if worker.shard is not None], timeout=_POLL)
            for worker in list(self.workers):
                if worker.pipe in ready:
                    yield from self._receive(worker)
                elif worker.shard is not None:
                    self._watch(worker)
            beat(sum(self._rows_of(worker) for worker in self.workers))

    def stop(self) -> None:
        """Kill whatever runs; tasks leave nothing when killed."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.join()
            worker.pipe.close()

    def _start(self) -> Worker:
        ours, theirs = _SPAWN.Pipe()
        beat = _SPAWN.RawArray(ctypes.c_char, _BEAT_BYTES)
        process = _SPAWN.Process(target=_work, args=(self.plan, self.state, self.tokenizer.to_json(), self.tokenizer.name,
                                                     self.tokenizer.revision, theirs, beat, os.getpid()), daemon=True)
        process.start()
        theirs.close()
        self.workers.append(Worker(process=process, pipe=ours, beat=beat))
        return self.workers[-1]

    def _feed(self, worker: Worker, shard: int | None) -> None:
        worker.shard, worker.seen, worker.cpu_at, worker.rows_before = shard, 0, 0.0, read_beat(worker.beat).rows
        if shard is not None:
            self.started[shard] = time.monotonic()
            with contextlib.suppress(BrokenPipeError):  # it died meanwhile: _receive sees that
                worker.pipe.send((shard, self.state.quarantine(), self.losses[shard] > 0))

    def _receive(self, worker: Worker) -> Iterator[TaskDone]:
        assert worker.shard is not None
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._lost(worker, "died")
            return
        if kind == "failed":
            raise TaskFailed(f"shard {worker.shard}: {value}")
        yield TaskDone(shard=worker.shard, result=value, seconds=time.monotonic() - self.started[worker.shard])
        self._feed(worker, next(self.fresh, None))

    def _watch(self, worker: Worker) -> None:
        """Kill a worker that spends too much processor time at one row."""
        place = read_beat(worker.beat)
        try:
            times = psutil.Process(worker.process.pid).cpu_times()
        except psutil.NoSuchProcess:
            return
        cpu = times.user + times.system
        if place.beats != worker.seen or not (place.source or place.row == RENDER):
            worker.seen, worker.cpu_at = place.beats, cpu
        elif cpu - worker.cpu_at > ROW_SECONDS:
            worker.process.kill()
            worker.process.join()
            self._lost(worker, f"spent {ROW_SECONDS:.0f} s of processor time", strike=2)

    def _lost(self, worker: Worker, how: str, strike: int | None = None) -> None:
        """A worker is gone: count a strike against its row, replace it, and start its task again."""
        worker.process.join()
        worker.pipe.close()
        shard = worker.shard
        assert shard is not None
        place, code = read_beat(worker.beat), worker.process.exitcode
        self.state.log("worker-lost", shard=shard, source=place.source, row=place.row, how=how, exitcode=code)
        self.losses[shard] += 1
        if place.source:  # the same row after as many others: workers lost by chance are lost at other places
            key = shard, place.rows - worker.rows_before, place.source, place.row
            self.strikes[key] += strike or (1 if code in _OUTSIDERS else 2)
            if self.strikes[key] >= 2 * STRIKES:
                self.state.add_to_quarantine(place.source, place.row)
        if self.losses[shard] > MOST_LOSSES:
            raise TaskFailed(f"shard {shard}: {MOST_LOSSES} workers were lost, the last (exit code {code}) {how} at "
                             f"{place.source} {place.row}. "
                             "If exit codes are -9, the system may be short of memory: use fewer --workers")
        self.workers.remove(worker)
        self._feed(self._start(), shard)

    def _rows_of(self, worker: Worker) -> int:
        return read_beat(worker.beat).rows


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker is: beats and rows begun since it started, and the row (or row group) it works on."""

    beats: int
    rows: int
    source: str
    row: str


def read_beat(memory: Any) -> Place:
    """The last heartbeat in a worker's shared memory."""
    raw = memory.raw
    beats, rows, length = _BEAT.unpack_from(raw)
    source, _, row = raw[_BEAT.size:_BEAT.size + length].decode(errors="replace").partition("\0")
    return Place(beats=beats, rows=rows, source=source, row=row)


def write_beat(memory: Any, source: str, row: str, begun: int = 0) -> None:
    """Say where this worker is."""
    text = f"{source}\0{row}".encode(errors="replace")[:_BEAT_BYTES - _BEAT.size]
    beats, rows, _ = _BEAT.unpack_from(memory)
    struct.pack_into(f"<QQQ{len(text)}s", memory, 0, beats + 1, rows + begun, len(text), text)


def _work(plan: Plan, state: BuildState, tokenizer_json: bytes, name: str, revision: str, pipe: Connection, beat: Any,
          parent: int) -> None:
    """A worker process: tasks in, results out, until the pipe closes."""
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core already
    import pyarrow as pa

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (min(WORKER_BYTES, most) if most != resource.RLIM_INFINITY else WORKER_BYTES, most))
    write = functools.partial(write_beat, beat)
    try:
        check_versions(plan)
        tokenizer = prepare(tokenizer_json, name=name, revision=revision)
        while True:
            shard, quarantine, alone = pipe.recv()
            result = run_task(plan, shard, tokenizer, state, write, quarantine, alone=alone)
            write("", "")
            pipe.send(("done", result))
    except (EOFError, KeyboardInterrupt):
        return
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # without a word: the parent counts it against the row
    except BaseException as error:  # the parent reports it; nothing is swallowed
        with contextlib.suppress(BrokenPipeError):
            pipe.send(("failed", explain(error)))


def explain(error: BaseException) -> str:
    """What went wrong in words a user can act on; the traceback for what is our own fault."""
    if isinstance(error, OSError) and error.errno in (28, 122):
        return f"the disk is full ({error.strerror}); free space and run the same command again: finished shards are kept"
    if isinstance(error, VersionMismatch | TargetError | ChangedFileError):
        return str(error)
    if isinstance(error, HubError):
        return f"{error}; run the same command again when the hub gives it: finished shards are kept"
    if isinstance(error, OSError) and error.errno in (1, 13, 27, 30) and error.filename:
        return f"{error.strerror}: {error.filename}; mend that and run the same command again: finished shards are kept"
    return "".join(traceback.format_exception(error)).strip()
