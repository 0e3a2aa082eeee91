"""Running tasks on an existing Ray cluster: `--ray ADDRESS`, with the extra [ray].

Before anything runs, one probe a node asks whether it would build the same bytes into the same place: library versions, every
planned file with its size, and a file in the work folder that the driver wrote and one that the driver must find there (with a
remote output: the plan that the build was begun with). The folders must lie at the same paths on every node; with a remote
output only raw must, and the work folder is each node's own.

A Ray task runs one shard, in a worker process of its own under the supervision of pipeline.build.local, so that bad rows are found
and quarantined as on one machine. What Ray loses (a node, a worker, memory) is submitted again, up to RETRIES times a shard; an
error of the task itself ends the build and is shown. At most one shard a CPU is submitted, as CPUs come and go. Cost: starting
the worker, one to two seconds a shard.
"""

import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from pipeline.build.local import TaskDone, TaskFailed, VersionMismatch, check_versions
from pipeline.build.local import run_tasks as run_locally
from pipeline.build.state import BuildState
from pipeline.build.target import TargetError
from pipeline.plan import Plan
from pipeline.tokens import Tokenizer, prepare

RETRIES = 5
NO_NODES = 600.0  # seconds without a CPU in the cluster after which a build gives up
PROBE_SECONDS = 120.0
_POLL = 0.5


def run_tasks(plan: Plan, shards: Iterable[int], *, state: BuildState, tokenizer: Tokenizer, address: str, most: int = 0,
              beat: Callable[[int], None] = lambda rows: None) -> Iterator[TaskDone]:
    """Run tasks and yield each as it finishes; `most` bounds how many run at once (0: the cluster's CPUs).

    Raises TaskFailed when a node fails the probe, a task fails, or a shard was lost RETRIES times.
    """
    ray = connect(address)
    plan, state = everywhere(plan, state)
    if problems := probe(ray, plan, state):
        raise TaskFailed("the cluster is not ready: " + "; ".join(problems))
    shared = ray.put((plan, state, tokenizer.to_json(), tokenizer.name, tokenizer.revision))
    run = ray.remote(num_cpus=1, max_retries=0)(run_shard)
    waiting, again = iter(shards), list[int]()
    running: dict[Any, int] = {}
    lost: Counter[int] = Counter()
    seen = time.monotonic()
    try:
        while True:
            cpus = int(ray.cluster_resources().get("CPU", 0))
            seen = time.monotonic() if cpus else seen
            if time.monotonic() - seen > NO_NODES:
                raise TaskFailed(f"the Ray cluster has had no CPU for {NO_NODES:.0f} seconds; finished shards are kept")
            while len(running) < (min(cpus, most) if most else cpus):
                shard = again.pop() if again else next(waiting, None)
                if shard is None:
                    break
                running[run.remote(shared, shard)] = shard
            if not running and not again and cpus:
                return
            if not running:
                time.sleep(_POLL)
                continue
            ready, _ = ray.wait(list(running), num_returns=1, timeout=_POLL)
            for ref in ready:
                shard = running.pop(ref)
                done = _result(ray, ref, shard, state)
                if done is None:
                    lost[shard] += 1
                    if lost[shard] > RETRIES:
                        raise TaskFailed(f"shard {shard} was lost {lost[shard]} times by Ray (nodes or memory); see log.jsonl in "
                                         f"{state.work}. Finished shards are kept")
                    again.append(shard)
                else:
                    yield done
            beat(0)
    finally:
        for ref in running:
            ray.cancel(ref, force=True)


def connect(address: str) -> Any:
    """The ray module, connected; a driver that is connected already stays so. Raises TaskFailed."""
    try:
        import ray
    except ImportError:
        raise TaskFailed("--ray needs Ray: `pip install nano-deepseek-ocr[ray]`, the version that the cluster runs") from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise TaskFailed(f"--ray {address}: {' '.join(str(error).split())[:300]}; is the cluster up (`ray status`)?") from None
    return ray


def everywhere(plan: Plan, state: BuildState) -> tuple[Plan, BuildState]:
    """The same plan and folders with absolute paths, since a node works elsewhere."""
    files = tuple(replace(file, ref=replace(file.ref, local=file.ref.local.resolve())) if file.ref.local is not None else file
                  for file in plan.files)
    return replace(plan, files=files), replace(state, out=state.out.resolve(), work=state.work.resolve())


def probe(ray: Any, plan: Plan, state: BuildState) -> list[str]:
    """What keeps the cluster's nodes from building this plan, a line a problem."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nonce = uuid.uuid4().hex
    mark = state.work / f"probe-{nonce}"
    mark.write_text(nonce)
    small = replace(plan, shards=())
    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")}
    ask = ray.remote(num_cpus=0, max_retries=2)(look_around)
    there = {node: NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes}
    refs = {ask.options(scheduling_strategy=there[node]).remote(small, state, nonce, node): node for node in nodes}
    problems = [] if nodes else ["it has no node with a CPU"]
    for ref, node in refs.items():
        try:
            found = list(ray.get(ref, timeout=PROBE_SECONDS))
        except ray.exceptions.RayError as error:  # pipeline is not installed there, or the node went away
            found = [f"the probe failed: {_first_line(error)}"]
        answer = state.work / f"probe-{nonce}-{node}"
        if not found and state.target is None and not answer.exists():
            found = [f"what it writes to {state.work} does not arrive here"]
        problems += [f"node {nodes[node]}: {problem}" for problem in found]
        answer.unlink(missing_ok=True)
    mark.unlink()
    return problems


def look_around(plan: Plan, state: BuildState, nonce: str, node: str) -> list[str]:
    """Runs on a node: what differs there from what the plan and the driver say."""
    problems = []
    try:
        check_versions(plan)
    except VersionMismatch as error:
        problems.append(str(error))
    wrong = [str(file.ref.local) for file in plan.files if file.ref.local is not None
             and not (file.ref.local.is_file() and file.ref.local.stat().st_size == file.ref.size)]
    if wrong:
        problems.append(f"{len(wrong)} of {len(plan.files)} raw files are absent or of another size there, as {wrong[0]}")
    try:
        if state.target is not None:
            if (state.target.recorded_plan() or {}).get("id") != plan.id:
                problems.append(f"{state.target.url} is not the build that the driver sees")
            for folder in (state.out, state.work / "done", state.work / "scratch"):
                folder.mkdir(parents=True, exist_ok=True)
        elif not (state.work / f"probe-{nonce}").exists():
            problems.append(f"{state.work} is not the driver's; --out must be on a file system that all nodes share, or a URL")
        else:
            (state.work / f"probe-{nonce}-{node}").write_text(nonce)
    except (OSError, TargetError) as error:
        problems.append(str(error))
    return problems


def run_shard(shared: tuple[Plan, BuildState, bytes, str, str], shard: int) -> TaskDone:
    """Runs on a node: one shard, in a supervised process."""
    plan, state, tokenizer_json, name, revision = shared
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = prepare(tokenizer_json, name=name, revision=revision)
    (done,) = run_locally(plan, [shard], state, tokenizer, workers=1)
    return done


def _result(ray: Any, ref: Any, shard: int, state: BuildState) -> TaskDone | None:
    """A finished task; None if Ray lost it. Raises TaskFailed with the task's own error."""
    try:
        done: TaskDone = ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, TaskFailed) else None
        raise TaskFailed(str(cause) if cause else f"shard {shard}: {error}") from None
    except ray.exceptions.RayError as error:
        state.log("task-lost", shard=shard, how=f"{type(error).__name__}: {_first_line(error)}")
        return None
    return done


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
