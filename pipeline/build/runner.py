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
    if result is None or result["plan"] != plan.id or not state.whole(result):
        result = task.run()
    beat("", UPLOAD)
    state.target.put_task(state.out, state.work / "done", shard, result)
    return dict(result)
