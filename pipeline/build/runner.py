"""One task to its very end, wherever the output is: what every executor calls in its worker process."""

import json
from typing import Any

from pipeline.build.state import BuildState
from pipeline.build.task import Beat, Task, done_folder
from pipeline.heap import keep_heap
from pipeline.plan import Plan
from pipeline.tokens import Tokenizer

UPLOAD = "uploading"  # what a heartbeat says while a finished shard is put


def run_task(plan: Plan, shard: int, tokenizer: Tokenizer, state: BuildState, beat: Beat,
             quarantine: frozenset[tuple[str, str]] = frozenset(), *, alone: bool = False) -> dict[str, Any]:
    """Build one shard and, for a remote output, put it there; a finished shard that waits to be put is not built again."""
    keep_heap()
    task = Task(plan, shard, tokenizer, state.folders, beat, quarantine, alone=alone)
    if state.target is None:
        return task.run()
    kept = done_folder(state.folders, shard) / "result.json"
    result = json.loads(kept.read_text()) if kept.exists() else None
    if result is None or result["plan"] != plan.id or not _whole(state, result):
        result = task.run()
    beat("", UPLOAD)
    state.target.put_task(state.out, state.work / "done", shard, result)
    return dict(result)


def _whole(state: BuildState, result: dict[str, Any]) -> bool:
    entries = [result["shard"], *result["shard"]["indexes"]]
    paths = {state.out / entry["name"]: entry["bytes"] for entry in entries}
    return all(path.exists() and path.stat().st_size == size for path, size in paths.items())
