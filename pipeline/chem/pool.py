"""Worker processes that cannot be hung or lost: tasks in, rows out in order, every row accounted for.

    with Pool(job, workers=2, quarantine=path) as pool:
        for arguments, rows in pool.run("canonicalise", tasks):   # rows[i] answers arguments[i]

A row that keeps a worker busy beyond the deadline (processor seconds, so a loaded machine decides nothing) has its
worker killed and is quarantined. A row under which a worker dies is tried again, and quarantined at the second crash
or the third kill from outside. The rest of its task is redone by another worker, to the same bytes, since a row
depends on nothing but its arguments. Quarantined rows are written to a file at once; a rerun reads it and does not try
them again, so what a slow machine gave up stays given up, in writing.
"""

import contextlib
import fcntl
import json
import mmap
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil

from pipeline.chem import wire
from pipeline.chem.job import Job

Row = tuple[dict[str, Any], bytes]
Arguments = list[Any]
CRASH_STRIKES, KILL_STRIKES = 2, 3
START_FAILURES = 5
WORKER = (sys.executable, "-m", "pipeline.chem.worker")
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
_AHEAD = 2  # tasks a worker may hold: one running, one waiting in its pipe
_WINDOW = 6  # tasks a worker, finished or not, kept for the sake of order
_TICK = 0.25  # seconds between looks at the heartbeats
_STALL = 20  # a worker may spend this many deadlines of wall time on a row without using the processor at all


class PoolError(RuntimeError):
    """Workers cannot be started, or one failed by a bug of ours; the message ends with what it said."""


@dataclass(kw_only=True, eq=False)
class _Chunk:
    """One task as the caller gave it; slots fill in any order."""

    op: str
    arguments: list[Arguments]
    sent: int
    slots: list[Row | None]

    def asked(self, index: int) -> Arguments:
        return self.arguments[index][: self.sent]

    def missing(self) -> list[int]:
        return [index for index, slot in enumerate(self.slots) if slot is None]


@dataclass(kw_only=True, eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    probe: psutil.Process
    beat: mmap.mmap
    errors: IO[bytes]
    buffer: bytearray = field(default_factory=bytearray)
    flights: dict[int, tuple[_Chunk, list[int]]] = field(default_factory=dict)
    ready: bool = False
    seen: tuple[int, int] = (0, wire.IDLE)
    seen_cpu: float = 0.0  # processor seconds when that row was first seen
    last_cpu: float = 0.0  # and when it last made use of the processor, at the moment last_wall
    last_wall: float = 0.0


class Pool:
    """`workers` processes for one Job. `deadline`: processor seconds a row; `memory_mb`: address space a worker."""

    def __init__(
        self, job: Job, *, workers: int, quarantine: Path, deadline: float = 20.0, memory_mb: int = 3072,
        command: tuple[str, ...] = WORKER,
    ) -> None:
        self.job, self.count, self.deadline, self.memory_mb, self.command = job, workers, deadline, memory_mb, command
        self.quarantine_path = quarantine
        self.quarantined = read_quarantine(quarantine)
        self.restarts = 0
        self.route, self.why = "", ""
        self.peak_memory_mb = 0.0
        self._strikes: Counter[str] = Counter()
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self._pending: deque[tuple[_Chunk, list[int]]] = deque()
        self._failures = 0.0
        self._tasks = 0
        self._looked = 0.0

    def __enter__(self) -> "Pool":
        for _ in range(self.count):
            self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            self._note_usage(worker)
            assert worker.process.stdin is not None
            with contextlib.suppress(OSError):
                worker.process.stdin.close()
            if kind is not None:
                worker.process.kill()
        for worker in self._workers:
            try:
                worker.process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            self._forget(worker)
        self._workers.clear()

    @property
    def pids(self) -> list[int]:
        """Process ids of the living workers."""
        return [worker.process.pid for worker in self._workers]

    def run(self, op: str, tasks: Iterable[list[Arguments]], *, sent: int) -> Iterator[tuple[list[Arguments], list[Row]]]:
        """Yields (arguments, rows) task by task, in the order of `tasks`. Holds a bounded number of tasks.

        The first `sent` arguments of each row go to the worker and name the row in the quarantine; the others stay
        here. A task's arguments should stay under 30 kB, so that two of them fit a pipe.
        """
        source = iter(tasks)
        window: deque[_Chunk] = deque()
        more = True
        while more or window:
            while more and len(window) < _WINDOW * self.count:
                arguments = next(source, None)
                if arguments is None:
                    more = False
                    break
                chunk = _Chunk(op=op, arguments=arguments, sent=sent, slots=[None] * len(arguments))
                for index in range(len(arguments)) if self.quarantined else ():
                    if (record := self.quarantined.get(_key(op, chunk.asked(index)))) is not None:
                        chunk.slots[index] = (record, b"")
                window.append(chunk)
                if missing := chunk.missing():
                    self._pending.append((chunk, missing))
            while window and not window[0].missing():
                done = window.popleft()
                yield done.arguments, [slot for slot in done.slots if slot is not None]
            if window:
                self._step()

    def _step(self) -> None:
        """Hands out tasks, waits for an answer or a tick, looks at the heartbeats."""
        for worker in self._workers:
            while self._pending and worker.ready and len(worker.flights) < _AHEAD:
                chunk, indices = self._pending.popleft()
                self._tasks += 1
                worker.flights[self._tasks] = (chunk, indices)
                rows = [[index, chunk.asked(index)] for index in indices]
                self._send(worker, {"task": self._tasks, "op": chunk.op, "rows": rows})
        for key, _ in self._selector.select(timeout=_TICK):
            self._receive(key.data)
        now = time.monotonic()
        if now - self._looked >= _TICK:
            self._looked = now
            for worker in list(self._workers):
                self._check(worker, now)

    def _start(self) -> None:
        beat_file = tempfile.TemporaryFile()
        beat_file.truncate(mmap.PAGESIZE)
        beat = mmap.mmap(beat_file.fileno(), mmap.PAGESIZE)
        errors = tempfile.TemporaryFile()
        process = subprocess.Popen(
            [*self.command, str(os.getpid()), str(beat_file.fileno()), str(self.memory_mb)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, pass_fds=(beat_file.fileno(),), bufsize=0,
            process_group=0, env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        beat_file.close()
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):
                fcntl.fcntl(process.stdout.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)
        worker = _Worker(process=process, probe=psutil.Process(process.pid), beat=beat, errors=errors)
        self._workers.append(worker)
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        self._send(worker, {"job": self.job.to_json()})

    def _send(self, worker: _Worker, head: dict[str, Any]) -> None:
        assert worker.process.stdin is not None
        view = memoryview(wire.pack(head))
        # a dead worker is noticed when its output ends
        with contextlib.suppress(BrokenPipeError):
            while view:
                view = view[worker.process.stdin.write(view) :]

    def _receive(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        try:
            data = os.read(worker.process.stdout.fileno(), 1 << 20)
        except BlockingIOError:
            return
        if not data:
            self._bury(worker)
            return
        worker.buffer += data
        while (frame := wire.unpack(worker.buffer)) is not None:
            head, body = frame
            if head.get("ready"):
                worker.ready, self._failures = True, 0.0
                self.route, self.why = head["route"], head["why"]
                continue
            chunk, indices = worker.flights.pop(head["task"])
            offset = 0
            for index, row, size in zip(indices, head["rows"], head["sizes"], strict=True):
                chunk.slots[index] = (row, body[offset : offset + size])
                offset += size

    def _check(self, worker: _Worker, now: float) -> None:
        """Kills the worker when its row has used up the deadline."""
        self._note_usage(worker)
        beat: tuple[int, int] = wire.BEAT.unpack_from(worker.beat)
        try:
            cpu = sum(worker.probe.cpu_times()[:2])
        except psutil.Error:
            return
        if beat != worker.seen or beat[1] == wire.IDLE:
            worker.seen, worker.seen_cpu, worker.last_cpu, worker.last_wall = beat, cpu, cpu, now
            return
        if cpu - worker.seen_cpu > self.deadline:
            self._quarantine(worker, beat, "deadline", f"took more than {self.deadline:g} s of processor time")
            worker.process.kill()
        elif cpu > worker.last_cpu:
            worker.last_cpu, worker.last_wall = cpu, now
        elif now - worker.last_wall > self.deadline * _STALL:
            worker.process.kill()  # counted as a kill from outside: the row may well be innocent

    def _note_usage(self, worker: _Worker) -> None:
        with contextlib.suppress(psutil.Error):
            self.peak_memory_mb = max(self.peak_memory_mb, worker.probe.memory_info().rss / 1e6)

    def _bury(self, worker: _Worker) -> None:
        """A worker is gone: its row gets a strike, its unfinished rows go back to the queue, another takes its place."""
        code = worker.process.wait()
        task, index = wire.BEAT.unpack_from(worker.beat)
        flights = worker.flights
        if code > 0 and worker.ready:
            raise PoolError(f"a worker failed: {self._said(worker)}")
        if not worker.ready:
            # a kill from outside says little about the installation; many in a row still end the run
            self._failures += 1 if -code not in _FROM_OUTSIDE else 0.1
            if self._failures >= START_FAILURES:
                raise PoolError(f"workers end before they are ready (exit {code}): {self._said(worker)}")
        if index != wire.IDLE and task in flights and flights[task][0].slots[index] is None:
            chunk = flights[task][0]
            key = _key(chunk.op, chunk.asked(index))
            outside = -code in _FROM_OUTSIDE
            self._strikes[key] += 1
            if self._strikes[key] >= (KILL_STRIKES if outside else CRASH_STRIKES):
                name = signal.Signals(-code).name if code else "a silent exit"
                self._quarantine(worker, (task, index), "crash", f"the worker died of {name}, {self._strikes[key]} times")
        for chunk, indices in flights.values():
            if left := [i for i in indices if chunk.slots[i] is None]:
                self._pending.appendleft((chunk, left))
        self._workers.remove(worker)
        self._forget(worker)
        self.restarts += 1
        self._start()

    def _quarantine(self, worker: _Worker, beat: tuple[int, int], reason: str, detail: str) -> None:
        chunk, index = worker.flights[beat[0]][0], beat[1]
        record = {"reason": reason, "detail": detail}
        self.quarantined[_key(chunk.op, chunk.asked(index))] = record
        chunk.slots[index] = (record, b"")
        line = json.dumps({"op": chunk.op, "arguments": chunk.asked(index)} | record)
        self.quarantine_path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.quarantine_path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _said(self, worker: _Worker) -> str:
        worker.errors.seek(0)
        return worker.errors.read()[-3000:].decode("utf-8", "replace").strip() or "nothing was said"

    def _forget(self, worker: _Worker) -> None:
        assert worker.process.stdin is not None
        assert worker.process.stdout is not None
        with contextlib.suppress(KeyError):
            self._selector.unregister(worker.process.stdout)
        for stream in (worker.process.stdin, worker.process.stdout, worker.errors, worker.beat):
            with contextlib.suppress(OSError):
                stream.close()


def read_quarantine(path: Path) -> dict[str, dict[str, str]]:
    """Rows given up by earlier runs: key -> reason and detail. A last line cut by a power loss is ignored."""
    records: dict[str, dict[str, str]] = {}
    if path.exists():
        for line in path.read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                record = {"reason": str(entry["reason"]), "detail": str(entry["detail"])}
                records[_key(entry["op"], entry["arguments"])] = record
    return records


def _key(op: str, arguments: Arguments) -> str:
    return json.dumps([op, *arguments])
