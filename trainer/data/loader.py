"""Workers that decode packed rows, and the queue from which the training loop takes batches.

    loader = Loader(directories, rules=rules, split="train", rows=8, workers=4)     # forks here: before CUDA, before threads
    for batch in loader.batches(plan, device):                                      # plan: lists of (directory, row)
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
import itertools
import mmap
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

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
CPU = torch.device("cpu")


class WorkerDied(RuntimeError):
    """A worker process ended by itself, was killed, or is stuck."""


class Loader:
    """Batches of `rows` packed rows. Workers fork when it is made: do that before CUDA and before starting threads.

    `skip_damaged`: how many damaged rows to leave out (each takes part as padding, is kept in `damaged` and named in its
    batch's rows; met again in a later epoch it counts no more) before DamagedRow is raised. workers = 0 decodes in the calling
    process, when asked.
    """

    def __init__(self, directories: Sequence[ShardDirectory], *, rules: Rules, split: str = "train", rows: int, workers: int,
                 prefetch: int = 2, skip_damaged: int = 0) -> None:
        self._directories, self._rules, self._split, self._rows = directories, rules, split, rows
        self._prefetch, self._allowed = prefetch, skip_damaged
        self.damaged: list[str] = []
        largest = max(int(row_bytes(directory.rows[split]).max()) for directory in directories if len(directory.rows[split]))
        self._in_flight = max(directory.store.in_flight for directory in directories)
        self._depth = self._in_flight + 1  # tasks that a worker holds: one more than it can work on, so that it never waits
        count = rows if workers == 0 else max(rows + workers, workers * self._depth)
        size = -(-largest // mmap.PAGESIZE) * mmap.PAGESIZE
        self._slots = [np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8) for _ in range(count)]
        context = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self._processes = []
        atexit.register(self.close)  # before multiprocessing's own end, which terminates and waits
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=self._work, args=(theirs, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._await_start()

    def _await_start(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        try:
            for worker, pipe in enumerate(self._pipes):
                if not pipe.poll(max(0.0, deadline - time.monotonic())):
                    raise WorkerDied(
                        f"loader worker {worker} of {len(self._pipes)} has not started in {START_SECONDS:g} s: it was forked "
                        "while another thread held a lock, or the machine is overloaded. Start again, or pass --workers 0")
                self._receive(worker)
        except WorkerDied:
            self.close()
            raise

    def _work(self, pipe: Connection, parent: int) -> None:
        """A worker: (slot, task) in, (slot, RowInfo or error) out, in order; the store's reads run ahead of decoding."""
        die_with_parent(parent)
        torch.set_num_threads(1)  # a rank has a worker a core; and OpenMP's threads, if the parent had started any, are not here
        # A Ctrl-C and torchrun's SIGTERM reach the whole group: the training process decides, and needs its rows until then.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        waiting: deque[tuple[int, Task, Scratch, Future[bytes | memoryview]]] = deque()
        scratches = deque(Scratch() for _ in range(self._depth))
        pipe.send("started")
        with contextlib.suppress(EOFError), ThreadPoolExecutor(self._in_flight) as pool:
            while True:
                while not waiting or (len(waiting) < self._in_flight and pipe.poll()):
                    if (message := pipe.recv()) is None:
                        return
                    slot, task = message
                    scratch = scratches.popleft()
                    waiting.append((slot, task, scratch, pool.submit(self._read, task, scratch)))
                slot, task, scratch, reading = waiting.popleft()
                result = self._decode(task, reading.result, self._slots[slot])
                scratches.append(scratch)
                pipe.send((slot, result))

    def _read(self, task: Task, scratch: Scratch) -> bytes | memoryview:
        """The row's bytes, perhaps in `scratch`; may be called from several threads."""
        directory = self._directories[task[0]]
        return directory.store.read_bytes(self._split, directory.rows[self._split][task[1]], scratch)

    def _decode(self, task: Task, read: Callable[[], bytes | memoryview], slot: Buffer) -> RowInfo | Exception:
        """Decode into a slot the row whose bytes `read` gives; what goes wrong is returned, for `_accept`."""
        directory, index = self._directories[task[0]], task[1]
        try:
            return write_row(read(), directory.rows[self._split][index], self._rules, slot, where=directory.store.where,
                             split=self._split)
        except (ValueError, OSError) as error:  # a damaged row, a store that does not answer: told as it is
            return error
        except Exception as error:  # a bug: the loop must hear of it
            place = directory.describe(self._split, index)
            return RuntimeError(f"{place}: {type(error).__name__}: {error}").with_traceback(error.__traceback__)

    def batches(self, plan: Iterable[Sequence[Task]], device: torch.device = CPU) -> Generator[Batch, None, None]:
        """One batch for each list of rows of the plan, in its order. One such iterator at a time; close it to stop early."""
        make = self._prefetched if self._processes else self._decode_here
        with contextlib.closing(make(plan, device.type == "cuda")) as made:
            yield from made if device.type == "cpu" else _moved(made, device)

    def _decode_here(self, plan: Iterable[Sequence[Task]], pin: bool) -> Generator[Batch, None, None]:
        scratch = Scratch()
        for tasks in plan:
            rows = [(self._accept(self._decode(task, partial(self._read, task, scratch), slot)), slot)
                    for task, slot in zip(tasks, self._slots)]
            yield assemble(rows, self._rules, height=self._rows, pin=pin)

    def _prefetched(self, plan: Iterable[Sequence[Task]], pin: bool) -> Generator[Batch, None, None]:
        """What a thread takes from `_serve`: `prefetch` batches wait, and one more is made."""
        done: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
        room, stop = threading.Semaphore(self._prefetch), threading.Event()

        def run() -> None:
            try:
                with contextlib.closing(self._serve(plan, pin)) as made:
                    for batch in made:
                        done.put(batch)
                        room.acquire()
                        if stop.is_set():
                            return
                done.put(None)
            except BaseException as error:
                done.put(error)

        thread = threading.Thread(target=run, name="loader", daemon=True)
        thread.start()
        try:
            while (item := done.get()) is not None:
                room.release()
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            room.release()
            thread.join(2 * CLOSE_SECONDS)  # its own end takes one at most

    def _accept(self, result: RowInfo | Exception) -> RowInfo:
        if isinstance(result, RowInfo):
            return result
        if not isinstance(result, DamagedRow):
            raise result
        place = str(result)
        if place not in self.damaged:
            if len(self.damaged) == self._allowed:
                before = f" (and {self._allowed} damaged rows before it, which --skip-bad allowed)" if self._allowed else ""
                raise DamagedRow(place + before)
            self.damaged.append(place)
            print(f"left out: {place}", file=sys.stderr, flush=True)
        return RowInfo(place=place, damage=place)

    def _serve(self, plan: Iterable[Sequence[Task]], pin: bool) -> Generator[Batch, None, None]:
        """Keep the workers busy in plan order; yield a batch as soon as it is the next one and complete."""
        begun: deque[tuple[int, list[int]]] = deque()  # batches: their number of rows, and the slots of those handed out
        free = deque(range(len(self._slots)))
        held = [0] * len(self._pipes)  # tasks at each worker
        finished: dict[int, RowInfo] = {}

        def each_task() -> Iterator[Task]:
            for rows in plan:
                begun.append((len(rows), []))
                yield from rows

        tasks = each_task()
        try:
            while True:
                while free and min(held) < self._depth and (task := next(tasks, None)):
                    slot, worker = free.popleft(), held.index(min(held))
                    begun[-1][1].append(slot)
                    held[worker] += 1
                    self._send(worker, (slot, task))
                if not begun:
                    return
                count, used = begun[0]
                if len(used) == count and all(slot in finished for slot in used):
                    begun.popleft()
                    rows = [(finished.pop(slot), self._slots[slot]) for slot in used]
                    batch = assemble(rows, self._rules, height=self._rows, pin=pin)
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
        ready = wait(self._pipes, STALL_SECONDS if seconds is None else max(0.0, seconds))
        if not ready:
            raise WorkerDied(f"{len(self._pipes)} loader workers have sent no row for {STALL_SECONDS:g} s: the store of "
                             f"{', '.join(directory.store.where for directory in self._directories)} does not answer, or "
                             "a worker is stuck; --resume goes on from the last checkpoint")
        return [(worker, *self._receive(worker)) for worker, pipe in enumerate(self._pipes) if pipe in ready]

    def _receive(self, worker: int) -> Any:
        try:
            return self._pipes[worker].recv()
        except (EOFError, OSError):
            raise self._death(worker) from None

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
            if process.is_alive():
                process.kill()
                process.join(CLOSE_SECONDS)
        self._pipes, self._processes = [], []


def _moved(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on their GPU: each is copied on a stream of its own while the one before it is computed."""
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    following: tuple[Batch, torch.cuda.Event] | None = None
    for batch in itertools.chain(batches, [None]):
        current, following = following, None
        if batch is not None:
            with torch.cuda.stream(copies):
                following = batch.to(device, non_blocking=True), copies.record_event()
        if current is not None:
            moved, copied = current
            torch.cuda.current_stream().wait_event(copied)
            moved.record_stream(torch.cuda.current_stream())
            yield moved
