"""A build on a Ray cluster of three nodes: the same directory as on one machine, also when a node is removed hard in mid-build."""

import functools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.build.local import TaskDone, TaskFailed
from pipeline.build.run import BuildReport, build
from pipeline.build.state import BuildState, open_build
from pipeline.plan import Plan
from tests.pipeline.small_sets import contents, run_build, small_plan, small_raw
from tests.pipeline.tiny import tiny_tokenizer

ray: Any = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

from pipeline.build import ray as module  # noqa: E402


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_raw(tmp_path_factory.mktemp("sets"), rows=50)


def run_on_ray(plan: Plan, state: BuildState, cluster: Any, **hooks: Any) -> BuildReport:
    execute = functools.partial(module.run_tasks, plan, state=state, tokenizer=tiny_tokenizer(), address=cluster.address)

    def watched(shards: Any, beat: Any) -> Iterator[TaskDone]:
        for done in execute(shards, beat=beat):
            hooks.get("after", lambda shard: None)(done.shard)
            yield done

    return build(plan, state, tiny_tokenizer(), watched, quiet=True)


def test_a_node_removed_hard_changes_nothing(cluster: Any, recipe: Path, tmp_path: Path) -> None:
    plan = small_plan(recipe)
    assert len(plan.shards) >= 4
    run_build(plan, open_build(plan, tmp_path / "alone"))
    doomed = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    state = open_build(plan, tmp_path / "out")
    removed = threading.Event()

    def remove() -> None:
        while not list((tmp_path / "out.build" / "scratch").iterdir()):  # a task has begun
            time.sleep(0.01)
        cluster.remove_node(doomed, allow_graceful=False)
        removed.set()

    thread = threading.Thread(target=remove, daemon=True)  # a build that ends too early must not keep it, and pytest, for ever
    thread.start()
    report = run_on_ray(plan, state, cluster)
    thread.join(timeout=60)
    assert removed.is_set()
    assert report.manifest is not None
    lost = [line for line in (tmp_path / "out.build" / "log.jsonl").read_text().splitlines() if "task-lost" in line]
    assert lost, "the node had a task when it was removed"
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_a_node_that_would_build_something_else_is_named(cluster: Any, recipe: Path, tmp_path: Path) -> None:
    plan = small_plan(recipe)
    state = open_build(plan, tmp_path / "out")
    other = replace(plan, versions={**plan.versions, "Pillow": "1.0"})
    with pytest.raises(TaskFailed, match=r"node .*Pillow .* \(plan: 1\.0\)"):
        run_on_ray(other, state, cluster)
    files = tuple(replace(file, ref=replace(file.ref, local=tmp_path / "gone.parquet")) for file in plan.files)
    with pytest.raises(TaskFailed, match=r"raw files are absent.*gone\.parquet"):
        run_on_ray(replace(plan, files=files), state, cluster)
    assert not list(state.work.glob("probe-*")), "probes leave nothing"


def test_an_error_of_a_task_ends_the_build_with_its_words(cluster: Any, recipe: Path, tmp_path: Path) -> None:
    plan = small_plan(recipe)
    state = open_build(plan, tmp_path / "out")
    blocks = tuple(tuple(replace(block, file=len(plan.files)) for block in shard) for shard in plan.shards)
    with pytest.raises(TaskFailed, match="IndexError"):
        run_on_ray(replace(plan, shards=blocks), state, cluster)


def test_a_shard_that_is_lost_again_and_again_ends_the_build(cluster: Any, recipe: Path, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(recipe)
    monkeypatch.setattr(module, "RETRIES", 1)
    monkeypatch.setattr(module, "run_shard", _crash)
    with pytest.raises(TaskFailed, match=r"was lost 2 times by Ray"):
        run_on_ray(plan, open_build(plan, tmp_path / "out"), cluster)


def _crash(*_: object) -> None:
    import os

    os._exit(7)


def test_an_address_without_a_cluster_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nowhere:
        is_initialized = staticmethod(lambda: False)

        @staticmethod
        def init(**_: object) -> None:
            raise ConnectionError("nobody is there")

    monkeypatch.setitem(__import__("sys").modules, "ray", Nowhere)
    with pytest.raises(TaskFailed, match=r"127\.0\.0\.1:1.*nobody is there"):
        module.connect("127.0.0.1:1")
