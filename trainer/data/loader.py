"""Workers that decode packed rows, and the queue from which the training loop takes batches.

    loader = Loader(directories, rules=rules, split="train", rows=8, workers=4)     # forks here: before CUDA, before threads
    for batch in loader.batches(plan, pin=True):                                    # plan: lists of (directory, row)
        inputs, targets, media = batch

One row is one task and one object: a worker reads it, decodes it into a slot of shared memory and sends back a few hundred
bytes about it. A thread of the training process copies finished rows into a pinned batch, so that the loop finds it ready.
Rows come back in plan order whatever the number of workers, so a batch's content does not depend on it.

Shared memory is anonymous and inherited by the fork: no name in /dev/shm is left behind by any death, and a container's limit
for /dev/shm does not matter. A slot is as large as the largest row of the table; only what rows have touched takes memory.
A worker dies with its parent (PR_SET_PDEATHSIG). A worker that is dead, does not start or is stuck is an error of the loop,
not a hang: every wait for one has a limit (the constants below), and a worker over it is killed.
"""

import atexit
import contextlib
import mmap
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import numpy as np
import torch

from shards.reader import DamagedRow
from trainer.data.batch import Batch, Buffer, RowInfo, Rules, assemble, row_bytes, write_row
from trainer.data.store import Scratch, ShardDirectory
from trainer.guard import die_with_parent

Task = tuple[int, int]  # (directory, row of its table)

START_SECONDS = 60.0  # a fork takes milliseconds; one made while another thread held a lock never runs
STALL_SECONDS = 600.0  # without a row from any worker: longer than a slow store takes for a shard, not longer than ranks wait
CLOSE_SECONDS = 5.0  # for the rows under way when a plan is left early, and for the workers' ends


@dataclass(frozen=True, kw_only=True)
class RowSource:
    """Reads and decodes the rows of some directories; what a worker inherits."""

    directories: Sequence[ShardDirectory]
    rules: Rules
    split: str

    def read(self, task: Task, scratch: Scratch) -> bytes | memoryview:
        """The row's bytes, perhaps in `scratch`; may be called from several threads."""
        directory, row = self.directories[task[0]], task[1]
        return directory.store.read_bytes(self.split, directory.rows[self.split][row], scratch)

    def write(self, task: Task, data: bytes | memoryview, out: Buffer) -> RowInfo:
        """Decode the row into a slot."""
        directory = self.directories[task[0]]
        row = directory.rows[self.split][task[1]]
        return write_row(data, row, self.rules, out, where=directory.store.where, split=self.split)


def _work(source: RowSource, slots: Sequence[Buffer], pipe: Connection, parent: int) -> None:
    """A worker: (slot, task) in, (slot, RowInfo or error) out, in order; the store's reads run ahead of decoding."""
    die_with_parent(parent)
    torch.set_num_threads(1)  # a rank has a worker a core; and OpenMP's threads, if the parent had started any, are not here
    # A Ctrl-C and torchrun's SIGTERM reach the whole group: the training process decides, and needs its rows until then.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    in_flight = max(directory.store.in_flight for directory in source.directories)
    waiting: deque[tuple[int, Task, Scratch, Future[bytes | memoryview]]] = deque()
    scratches = deque(Scratch() for _ in range(in_flight + 1))
    pipe.send("started")
    with ThreadPoolExecutor(in_flight) as pool:
        while True:
            while not waiting or (len(waiting) < in_flight and pipe.poll()):
                try:
                    message = pipe.recv()
                except EOFError:
                    return
                if message is None:
                    return
                slot, task = message
                scratch = scratches.popleft()
                waiting.append((slot, task, scratch, pool.submit(source.read, task, scratch)))
            slot, task, scratch, reading = waiting.popleft()
            result: RowInfo | Exception
            try:
                result = source.write(task, reading.result(), slots[slot])
            except (ValueError, OSError) as error:  # a damaged row, a store that does not answer: told as it is
                result = error
            except Exception as error:  # a bug: the loop must hear of it
                place = source.directories[task[0]].describe(source.split, task[1])
                result = RuntimeError(f"{place}: {type(error).__name__}: {error}")
            scratches.append(scratch)
            pipe.send((slot, result))


class WorkerDied(RuntimeError):
    """A worker process ended by itself, was killed, or is stuck."""


@dataclass(kw_only=True)
class _Pending:
    """A batch of the plan: rows not handed out yet, and the slots of those that were."""

    todo: deque[Task]
    slots: list[int]


class Loader:
    """Batches of `rows` packed rows. Workers fork when it is made: do that before CUDA and before starting threads.

    `skip_damaged`: how many damaged rows to leave out (each takes part as padding, is kept in `damaged` and named in its
    batch's rows; met again in a later epoch it counts no more) before DamagedRow is raised. workers = 0 decodes in the calling
    process, when asked.
    """

    def __init__(self, directories: Sequence[ShardDirectory], *, rules: Rules, split: str = "train", rows: int, workers: int,
                 prefetch: int = 2, skip_damaged: int = 0) -> None:
        self._source = RowSource(directories=directories, rules=rules, split=split)
        self._rules, self._rows, self._prefetch, self._allowed = rules, rows, prefetch, skip_damaged
        self.damaged: list[str] = []
        largest = max(int(row_bytes(directory.rows[split]).max()) for directory in directories if len(directory.rows[split]))
        in_flight = max(directory.store.in_flight for directory in directories)
        self._depth = in_flight + 1  # tasks that a worker holds: one more than it can work on, so that it never waits
        count = rows if workers == 0 else max(rows + workers, workers * self._depth)
        size = -(-largest // mmap.PAGESIZE) * mmap.PAGESIZE
        self._slots = [np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8) for _ in range(count)]
        context = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self._processes = []
        atexit.register(self.close)  # before multiprocessing's own end, which terminates and waits
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(self._source, self._slots, theirs, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        try:
            self._await_start()
        except WorkerDied:
            self.close()
            raise

    def _await_start(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        for worker, pipe in enumerate(self._pipes):
            try:
                if pipe.poll(max(0.0, deadline - time.monotonic())):
                    pipe.recv()
                    continue
            except (EOFError, OSError):
                raise self._death(worker) from None
            raise WorkerDied(f"loader worker {worker} of {len(self._pipes)} has not started in {START_SECONDS:g} s: it was forked "
                             "while another thread held a lock, or the machine is overloaded. Start again, or pass --workers 0")

    def batches(self, plan: Iterable[Sequence[Task]], *, pin: bool = False) -> Iterator[Batch]:
        """One batch for each list of rows of the plan, in its order. One such iterator at a time; close it to stop early."""
        if not self._processes:
            yield from self._decode_here(plan, pin)
            return
        made = self._serve(plan, pin)
        done: queue.Queue[Batch | BaseException | None] = queue.Queue(self._prefetch)
        stop = threading.Event()

        def put(item: Batch | BaseException | None) -> None:
            while not stop.is_set():
                with contextlib.suppress(queue.Full):
                    return done.put(item, timeout=0.1)

        def run() -> None:
            try:
                with contextlib.closing(made):
                    for batch in made:
                        put(batch)
                        if stop.is_set():
                            break
                put(None)
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=run, name="loader", daemon=True)
        thread.start()
        try:
            while (item := done.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join(2 * CLOSE_SECONDS)  # its own end takes one at most

    def _decode_here(self, plan: Iterable[Sequence[Task]], pin: bool) -> Iterator[Batch]:
        scratch = Scratch()
        for tasks in plan:
            rows: list[tuple[RowInfo, Buffer]] = []
            for task, slot in zip(tasks, self._slots):
                try:
                    result: RowInfo | Exception = self._source.write(task, self._source.read(task, scratch), slot)
                except DamagedRow as error:
                    result = error
                rows.append((self._accept(result), slot))
            yield assemble(rows, self._rules, height=self._rows, pin=pin)

    def _accept(self, result: RowInfo | Exception) -> RowInfo:
        if isinstance(result, RowInfo):
            return result
        if isinstance(result, DamagedRow) and (str(result) in self.damaged or len(self.damaged) < self._allowed):
            if str(result) not in self.damaged:
                self.damaged.append(str(result))
                print(f"left out: {result}", file=sys.stderr, flush=True)
            return RowInfo(place=str(result), damage=str(result))
        if isinstance(result, DamagedRow) and self._allowed:
            raise DamagedRow(f"{result} (and {len(self.damaged)} damaged rows before it, which --skip-bad allowed)")
        raise result

    def _serve(self, plan: Iterable[Sequence[Task]], pin: bool) -> Generator[Batch, None, None]:
        """Keep the workers busy in plan order; yield a batch as soon as it is the next one and complete."""
        batches = iter(plan)
        pending: deque[_Pending] = deque()
        free = deque(range(len(self._slots)))
        held = [0] * len(self._pipes)  # tasks at each worker
        finished: dict[int, RowInfo] = {}
        more = True
        try:
            while True:
                while more and free and min(held) < self._depth:
                    if not pending or not pending[-1].todo:
                        tasks = next(batches, None)
                        if tasks is None:
                            more = False
                            break
                        pending.append(_Pending(todo=deque(tasks), slots=[]))
                        if not tasks:
                            break
                    slot, worker = free.popleft(), held.index(min(held))
                    pending[-1].slots.append(slot)
                    held[worker] += 1
                    self._send(worker, (slot, pending[-1].todo.popleft()))
                if not pending:
                    return
                if not pending[0].todo and all(slot in finished for slot in pending[0].slots):
                    used = pending.popleft().slots
                    batch = assemble([(finished.pop(slot), self._slots[slot]) for slot in used], self._rules,
                                     height=self._rows, pin=pin)
                    free.extend(used)
                    yield batch
                    continue
                for worker, slot, result in self._collect():
                    held[worker] -= 1
                    finished[slot] = self._accept(result)
        finally:  # what is under way must come home before the next plan is served; who does not bring it will serve no other
            deadline = time.monotonic() + CLOSE_SECONDS
            with contextlib.suppress(WorkerDied):
                while any(held):
                    for worker, _, _ in self._collect(deadline - time.monotonic()):
                        held[worker] -= 1
            for worker, process in enumerate(self._processes):
                if held[worker]:
                    process.kill()

    def _send(self, worker: int, message: tuple[int, Task] | None) -> None:
        try:
            self._pipes[worker].send(message)
        except OSError:
            raise self._death(worker) from None

    def _collect(self, seconds: float | None = None) -> list[tuple[int, int, RowInfo | Exception]]:
        """At least one result: (worker, slot, result). WorkerDied if there is none in that time."""
        results = []
        ready = wait(self._pipes, STALL_SECONDS if seconds is None else max(0.0, seconds))
        if not ready:
            raise WorkerDied(f"{len(self._pipes)} loader workers have sent no row for {STALL_SECONDS:g} s: the store of "
                             f"{', '.join(directory.store.where for directory in self._source.directories)} does not answer, or "
                             "a worker is stuck; --resume goes on from the last checkpoint")
        for pipe in ready:
            worker = self._pipes.index(pipe)  # type: ignore[arg-type]
            try:
                slot, result = self._pipes[worker].recv()
            except (EOFError, OSError):
                raise self._death(worker) from None
            results.append((worker, slot, result))
        return results

    def _death(self, worker: int) -> WorkerDied:
        self._processes[worker].join(5)
        code = self._processes[worker].exitcode
        why = " (out of memory? fewer --workers or --device-batch-size take less)" if code == -signal.SIGKILL else ""
        return WorkerDied(f"loader worker {worker} of {len(self._processes)} died with exit code {code}{why}")

    def close(self) -> None:
        """End the workers, within seconds: those that do not end by themselves are killed."""
        atexit.unregister(self.close)
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
            pipe.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in self._processes:
            if process.is_alive():
                process.kill()
                process.join(CLOSE_SECONDS)
        self._pipes, self._processes = [], []


def device_batches(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on their device. On CUDA each is copied on a stream of its own while the one before it is computed."""
    if device.type != "cuda":
        yield from batches
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(copies):
            moved = batch.to(device, non_blocking=True)
            return moved, copies.record_event()

    following = None
    for batch in batches:
        current, following = following, start(batch)
        if current is not None:
            yield _arrived(*current)
    if following is not None:
        yield _arrived(*following)


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    torch.cuda.current_stream().wait_event(copied)
    batch.record_stream(torch.cuda.current_stream())
    return batch
