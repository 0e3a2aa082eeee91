"""A whole build: run the tasks that are not done, watch the reject share, complete the directory.

Executors only run tasks; what a build is does not depend on them. Ctrl-C, a kill or a full disk lose the tasks in flight and
nothing else: the same command goes on.
"""

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from tqdm import tqdm

from pipeline import progress
from pipeline.build.finalize import finalize
from pipeline.build.local import TaskDone
from pipeline.build.state import BuildState, BuildStateError
from pipeline.build.target import task_files
from pipeline.plan import Plan
from pipeline.tokens import Tokenizer

REJECTS_FROM = 100  # a share of fewer rejects says nothing


class TooManyRejects(RuntimeError):
    """A source lost more rows than allowed."""


class Executor(Protocol):
    """Runs tasks, somewhere, and yields each as it finishes."""

    def __call__(self, shards: Iterable[int], beat: Callable[[int], None]) -> Iterator[TaskDone]: ...


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a build did. `manifest` is None while tasks of other slices are missing."""

    manifest: dict[str, Any] | None
    tasks_run: int
    tasks_left: int
    seconds: float


def build(plan: Plan, state: BuildState, tokenizer: Tokenizer, execute: Executor, *, part: tuple[int, int] = (0, 1),
          max_reject_share: float = 0.05, stop_after: float | None = None, quiet: bool = False) -> BuildReport:
    """Run the tasks of slice `part` (i of n) that are not done, then complete the directory if nothing is missing.

    `stop_after` (seconds) ends between tasks. Raises TooManyRejects, TaskFailed.
    """
    if (body := state.manifest()) is not None:
        return BuildReport(manifest=body, tasks_run=0, tasks_left=0, seconds=0.0)
    with state.locked(f"slice-{part[0]}-of-{part[1]}") as free:
        if not free:
            raise BuildStateError(f"another process is building {state.out} (slice {part[0]}/{part[1]}) at this moment")
        return _build(plan, state, tokenizer, execute, part, max_reject_share, stop_after, quiet)


def _build(plan: Plan, state: BuildState, tokenizer: Tokenizer, execute: Executor, part: tuple[int, int], max_reject_share: float,
           stop_after: float | None, quiet: bool) -> BuildReport:
    begun = time.monotonic()
    body = None
    finished = state.finished()
    mine = [shard for shard in range(len(plan.shards)) if shard % part[1] == part[0] and shard not in finished]
    if state.target is not None:
        state.target.abort_uploads(name for shard in mine for name in task_files(shard))
    state.log("start", plan=plan.id, tasks=len(mine), finished=len(finished), part=list(part))
    guard = RejectGuard(plan, max_reject_share)
    for shard, result in state.results().items():  # or a second try would let pass what ended the first
        if shard in finished:
            guard.add(result["counts"])
    done = 0
    with contextlib.closing(_stoppable(execute, mine, begun, stop_after, _Progress(plan, mine, quiet))) as tasks:
        for task in tasks:
            done += 1
            state.log("task", shard=task.shard, seconds=round(task.seconds, 3), bytes=task.result["shard"]["bytes"],
                      samples=task.result["shard"]["samples"])
            guard.add(task.result["counts"])
    left = len(plan.shards) - len(state.finished())
    if not left:
        with state.locked("finalize") as ours:
            body = state.manifest()
            if ours and body is None:
                body = finalize(plan, state, tokenizer)
    return BuildReport(manifest=body, tasks_run=done, tasks_left=left, seconds=time.monotonic() - begun)


def _stoppable(execute: Executor, shards: list[int], begun: float, stop_after: float | None, progress: "_Progress"
               ) -> Generator[TaskDone, None, None]:
    def until() -> Iterator[int]:
        for shard in shards:
            if stop_after is not None and time.monotonic() - begun > stop_after:
                return
            yield shard

    with contextlib.closing(progress):
        for task in execute(until() if stop_after is not None else shards, beat=progress.beat):
            progress.add(task)
            yield task


class RejectGuard:
    """Ends a build in which a source certainly loses more than its share of rows.

    A share is taken of the rows the plan reads of a source, so that an unlucky first shard ends nothing.
    """

    def __init__(self, plan: Plan, max_share: float) -> None:
        self.planned = {source.name: source.rows for source in plan.sources}
        self.max_share = max_share
        self.rejects: dict[str, Counter[str]] = {source.name: Counter() for source in plan.sources}

    def add(self, counts: dict[str, dict[str, int]]) -> None:
        """Count one task's rejects. Raises TooManyRejects."""
        for name, count in counts.items():
            mine = self.rejects[name]
            mine.update({key.removeprefix("reject:"): value for key, value in count.items() if key.startswith("reject:")})
            # duplicates that a user asked to drop say nothing about the data's health
            total = sum(value for reason, value in mine.items() if reason not in ("duplicate", "contaminated"))
            if total >= REJECTS_FROM and total > self.max_share * self.planned[name]:
                why = ", ".join(f"{reason} {value}" for reason, value in mine.most_common(5))
                raise TooManyRejects(
                    f"source {name} lost {total} of {self.planned[name]} rows ({why}), more than --max-reject-share "
                    f"{self.max_share:g}. Finished shards are kept; see their rejects, then go on with a higher "
                    f"--max-reject-share or without the source")


class _Progress:
    """A bar on standard error: rows, with samples, MB and rejects of the finished tasks."""

    def __init__(self, plan: Plan, shards: list[int], quiet: bool) -> None:
        rows = sum(block.rows for shard in shards for block in plan.shards[shard])
        self.bar = tqdm(total=rows, unit="row", file=sys.stderr, disable=quiet or not shards, smoothing=0.05,
                        desc=f"{len(shards)} shards", mininterval=progress.interval())
        self.rows = self.samples = self.bytes = self.rejects = self.tasks = 0
        self.begun = time.monotonic()

    def beat(self, rows: int) -> None:
        """Rows looked at so far by tasks in flight (an estimate), to keep the bar moving."""
        self.bar.n = min(self.bar.total or 0, max(self.bar.n, self.rows, rows))
        self.bar.update(0)

    def add(self, task: TaskDone) -> None:
        """Count a finished task exactly."""
        self.tasks += 1
        self.samples += task.result["shard"]["samples"]
        self.bytes += task.result["shard"]["bytes"]
        for count in task.result["counts"].values():
            self.rows += count.get("rows", 0)
            self.rejects += sum(value for key, value in count.items() if key.startswith("reject:"))
        seconds = max(1e-9, time.monotonic() - self.begun)
        self.bar.n = min(self.bar.total or 0, self.rows)
        self.bar.set_postfix_str(f"{self.tasks} done, {self.samples / seconds:.0f} samples/s, "
                                 f"{self.bytes / seconds / 1e6:.1f} MB/s, {self.rejects} left out", refresh=False)
        self.bar.update(0)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()
