"""The work folder of a build, beside its output or where --work says: plan, finished tasks, log, lock, quarantine. Nothing of it is
part of the result.

    OUT.build/plan.json        the plan's identity, written by whoever comes first
    OUT.build/plan.parquet     the plan as a table: shard, source, file, row group, rows
    OUT.build/done/NNNNNN/     results of a finished task (pipeline.build.task)
    OUT.build/quarantine.json  rows at which a worker was lost three times; an input of every later run
    OUT.build/log.jsonl        what happened, with times
    OUT.build/scratch/         may be deleted whenever no build runs
    OUT.build/stage/           files on their way to a remote output (pipeline.build.target), which then says what is finished

A build goes on only with the plan it began with; what changed is named otherwise.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import locks
from pipeline.build.target import OUTPUT, Target
from pipeline.build.task import Folders
from pipeline.plan import Plan
from shards import manifest
from shards.writer import write_file

WORK_FOLDERS = ("done", "scratch", "stage")


class BuildStateError(ValueError):
    """The output or work folder does not fit this plan; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class BuildState:
    """Paths of one build. With a remote `target`, `out` is where files are finished before they are put there."""

    out: Path
    work: Path
    target: Target | None = None

    @property
    def folders(self) -> Folders:
        """What a task needs to know."""
        return Folders(out=self.out, done=self.work / "done", scratch=self.work / "scratch")

    def finished(self) -> set[int]:
        """Numbers of the finished tasks."""
        if self.target is not None:
            return self.target.finished()
        return {shard for shard, result in self.results().items() if self.whole(result)}

    def results(self) -> dict[int, dict[str, Any]]:
        """What the tasks whose results lie in the work folder gave, by number."""
        return {int(path.parent.name): json.loads(path.read_text()) for path in sorted((self.work / "done").glob("*/result.json"))}

    def whole(self, result: dict[str, Any]) -> bool:
        """Whether a task's files are still in the output: a user may have emptied it, but not the work folder beside it."""
        entries = [result["shard"], *result["shard"]["indexes"]]
        files = {self.out / entry["name"]: entry["bytes"] for entry in entries}
        return all(path.is_file() and path.stat().st_size == size for path, size in files.items())

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of the finished directory; None while it is not complete."""
        if self.target is not None:
            return self.target.manifest()
        return manifest.load(self.out) if (self.out / manifest.NAME).exists() else None

    def quarantine(self) -> frozenset[tuple[str, str]]:
        """(source, row) pairs that are left out because they cost a worker."""
        path = self.work / "quarantine.json"
        return frozenset((source, row) for source, row in json.loads(path.read_text())) if path.exists() else frozenset()

    def add_to_quarantine(self, source: str, row: str) -> None:
        """Write one more row down."""
        rows = sorted({*self.quarantine(), (source, row)})
        write_file(self.work / "quarantine.json", json.dumps(rows, indent=1).encode())

    def log(self, event: str, **values: Any) -> None:
        """Append one line to log.jsonl."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **values}, sort_keys=True)
        with open(self.work / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """Hold a lock of that name while the block runs; gives False if another process holds it."""
        with open(self.work / f"{name}.lock", "w") as file:
            yield locks.take(file)


def open_build(plan: Plan, out: Path | str, *, fresh: bool = False, work: Path | None = None) -> BuildState:
    """Prepare (or go on with) the build of `plan` into `out`, a folder or a URL that fsspec knows.

    `work` is by default OUT.build beside the folder; for a URL, its last part in the current folder. Raises BuildStateError if
    another plan, or other files, are there; TargetError if a URL cannot be read.
    """
    if isinstance(out, str) and "://" in out:
        target = Target(url=out.rstrip("/"))
        work = work or Path(f"{target.name}.build")
        state = BuildState(out=work / "stage", work=work, target=target)
    else:
        state = BuildState(out=Path(out), work=work or Path(out).with_name(Path(out).name + ".build"))
    ours = begun(state)
    if fresh and busy(state.work):
        raise BuildStateError(f"another process is building {out} at this moment; --fresh would delete its work")
    if fresh and ours:
        discard(state)
    elif fresh and state.target is not None:  # begun here, but nothing of it has arrived there
        clear_work(state.work)
    recorded = _recorded(state)
    for found in recorded:
        if found["id"] != plan.id:
            changed = differences(found, {"id": plan.id, **plan.identity()})
            raise BuildStateError(f"{out} was begun with another plan. Changed: " + "; ".join(changed[:8])
                                  + (f"; and {len(changed) - 8} more" if len(changed) > 8 else "")
                                  + ". Go back to it, choose another --out, or start over with --fresh")
    if not recorded and not (fresh and ours) and (strangers := _strangers(state)):
        raise BuildStateError(f"{out} is not empty and holds no build of ours (it has {strangers[0]!r}); choose another --out")
    if not (state.work / "plan.json").exists():
        for name in WORK_FOLDERS:  # they are deleted whole at the end
            if (state.work / name).exists() and any((state.work / name).iterdir()):
                raise BuildStateError(f"{state.work / name} holds something else; choose another --work")
    for folder in (state.out, state.work / "done", state.work / "scratch"):
        folder.mkdir(parents=True, exist_ok=True)
    if not (state.work / "plan.json").exists():
        _write_plan(plan, state)
    if state.target is not None and state.target.recorded_plan() is None:
        state.target.put(state.work / "plan.json", ".build/plan.json")
    return state


def _recorded(state: BuildState) -> list[dict[str, Any]]:
    """The identities of the plans that the output and the work folder were begun with."""
    body = state.manifest()
    found = [] if body is None else [dict(body["plan"])]
    if not found and (state.work / "plan.json").exists():
        found.append(json.loads((state.work / "plan.json").read_text()))
    if not found or state.target is not None:
        remote = state.target.recorded_plan() if state.target is not None and body is None else None
        found += [] if remote is None else [remote]
    return found


def _strangers(state: BuildState) -> list[str]:
    if state.target is not None:
        return sorted(state.target.sizes())
    return sorted(path.name for path in state.out.iterdir()) if state.out.exists() else []


def discard(state: BuildState) -> None:
    """Delete what a build wrote, file by file, and its work folder; other files in the output stay."""
    clear_work(state.work)
    if state.target is not None:
        state.target.discard()
    if not state.out.is_dir():
        return
    for path in state.out.iterdir():
        if OUTPUT.fullmatch(path.name) and path.is_file():
            path.unlink()
    if (state.out / ".nv-meta").is_dir():
        shutil.rmtree(state.out / ".nv-meta")


def clear_work(work: Path) -> None:
    """Delete what a build keeps in its work folder, which with --work may hold other things too."""
    if not (work / "plan.json").exists():
        return
    for name in WORK_FOLDERS:
        shutil.rmtree(work / name, ignore_errors=True)
    for pattern in ("quarantine.json", "log.jsonl", "*.lock", "probe-*", "plan.parquet", "plan.json"):
        for path in work.glob(pattern):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        work.rmdir()


def busy(work: Path) -> bool:
    """Whether a process holds a lock of this work folder."""
    for path in work.glob("*.lock"):
        with contextlib.suppress(FileNotFoundError), open(path) as file:
            if not locks.take(file):
                return True
    return False


def begun(state: BuildState) -> bool:
    """Whether a build of ours was begun here, of whatever plan or format."""
    if state.target is not None:
        return state.target.begun()
    try:
        found = json.loads((state.out / manifest.NAME).read_bytes())
    except (OSError, ValueError):
        found = None
    return (state.work / "plan.json").exists() or (isinstance(found, dict) and "format_version" in found)


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Where two identities differ, as `recipe.seq_len: 4096 -> 8192` lines; the id itself is left out."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in sorted({*old, *new} - ({"id"} if not place else set())):
            found += differences(old.get(key), new.get(key), f"{place}.{key}" if place else key)
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for at, (a, b) in enumerate(zip(old, new)) for line in differences(a, b, f"{place}[{_label(a, at)}]")]
    return [] if old == new else [f"{place}: {_short(old)} -> {_short(new)}"]


def _label(item: Any, at: int) -> str:
    return str(item["name"]) if isinstance(item, dict) and "name" in item else str(at)


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _write_plan(plan: Plan, state: BuildState) -> None:
    rows = [(shard, plan.recipe.sources[block.source].name, plan.files[block.file].name, block.group, block.first, block.start,
             block.stop, block.step) for shard, blocks in enumerate(plan.shards) for block in blocks]
    names = ("shard", "source", "file", "row_group", "first_row", "start", "stop", "step")
    pq.write_table(pa.table({name: [row[at] for row in rows] for at, name in enumerate(names)}), state.work / "plan.parquet")
    text = json.dumps({"id": plan.id, **plan.identity()}, indent=1, sort_keys=True)
    write_file(state.work / "plan.json", text.encode())
