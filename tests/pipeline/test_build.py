"""Builds of small sets: complete, the same bytes whoever runs the tasks in whatever order, nothing lost in silence."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.build import task
from pipeline.build.local import TaskFailed, VersionMismatch, check_versions, run_tasks
from pipeline.build.run import TooManyRejects, build
from pipeline.build.state import BuildStateError, open_build
from pipeline.verify import verify
from shards import masks
from tests.pipeline.made import (
    all_samples,
    digests,
    in_process,
    make_raw,
    picture,
    plan_of,
    read_samples,
    rejects,
    row,
    tokenizer_of,
    write_recipe,
    write_set,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(recipe, raw)."""
    root = tmp_path_factory.mktemp("made")
    return write_recipe(root), make_raw(root / "raw")


@pytest.fixture(scope="module")
def whole(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed build of it, in one process."""
    recipe, raw = made
    out = tmp_path_factory.mktemp("whole") / "out"
    assert in_process(plan_of(recipe, raw), out, recipe).manifest is not None
    return out


def test_it_verifies(whole: Path) -> None:
    assert [str(problem) for problem in verify(whole, workers=1)] == []


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_any_number_of_workers_gives_the_same_bytes(made: tuple[Path, Path], whole: Path, tmp_path: Path, workers: int) -> None:
    recipe, raw = made
    plan, tokenizer = plan_of(recipe, raw), tokenizer_of(recipe)
    assert len(plan.shards) >= 4
    state = open_build(plan, tmp_path / "out")
    build(plan, state, tokenizer, lambda shards, beat: run_tasks(plan, shards, state, tokenizer, workers=workers, beat=beat),
          quiet=True)
    assert digests(tmp_path / "out") == digests(whole)


def test_slices_in_any_order_give_the_same_bytes(made: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    recipe, raw = made
    plan = plan_of(recipe, raw)
    for part in (2, 0, 1):
        report = in_process(plan, tmp_path / "out", recipe, part=(part, 3))
        assert (report.manifest is None) == (part != 1)
    assert digests(tmp_path / "out") == digests(whole)
    again = in_process(plan, tmp_path / "out", recipe)
    assert again.tasks_run == 0 and again.manifest is not None


def test_tasks_in_reverse_and_after_a_stop_give_the_same_bytes(made: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    recipe, raw = made
    plan = plan_of(recipe, raw)
    report = in_process(plan, tmp_path / "out", recipe, order=[2])
    assert report.manifest is None and report.tasks_left == len(plan.shards) - 1
    assert in_process(plan, tmp_path / "out", recipe, order=list(reversed(range(len(plan.shards))))).manifest is not None
    assert digests(tmp_path / "out") == digests(whole)


@pytest.mark.parametrize("held", [0, 20_000])
def test_samples_that_wait_on_the_disk_give_the_same_bytes(made: tuple[Path, Path], whole: Path, tmp_path: Path, held: int,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "HELD_BYTES", held)
    recipe, raw = made
    in_process(plan_of(recipe, raw), tmp_path / "out", recipe)
    assert digests(tmp_path / "out") == digests(whole)


def test_another_folder_gives_the_same_bytes(made: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    """Neither the place of the data, of the recipe, of the tokenizer nor of the output is in the result."""
    moved = shutil.copytree(made[1], tmp_path / "moved")
    recipe = write_recipe(tmp_path)
    in_process(plan_of(recipe, moved), tmp_path / "o2", recipe)
    assert digests(tmp_path / "o2") == digests(whole)
    for path in whole.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".md", ".yaml"):
            assert str(made[0].parent) not in path.read_text(), path.name


def test_every_row_is_a_sample_or_a_reject(made: tuple[Path, Path], whole: Path) -> None:
    recipe, raw = made
    plan = plan_of(recipe, raw)
    seen = {(sample.meta["source"], sample.meta["row"]) for sample in all_samples(whole)}
    lost = set(rejects(whole))
    planned = set()
    for blocks in plan.shards:
        for block in blocks:
            spec = plan.recipe.sources[block.source]
            name = plan.files[block.file].name.removeprefix(f"{spec.repo}/")
            planned |= {(spec.name, f"{name}#{block.first + at}") for at in range(block.start, block.stop, block.step)}
    assert seen | lost == planned and not seen & lost
    assert Counter(source for source, _ in planned) == {"docs": 23, "words(made)": 45, "scans": 4, "talk": 20, "sums": 15}
    assert sorted(reason for reason, _ in rejects(whole).values()) == ["image-format", "no-answer"]


def test_all_turns_and_all_images_are_kept(made: tuple[Path, Path], whole: Path) -> None:
    docs: dict[str, list[Any]] = {}
    for sample in all_samples(whole):
        if sample.meta["source"] == "docs":
            docs.setdefault(sample.meta["row"], []).append(sample)
    at = 0
    for path in sorted((made[1] / "HuggingFaceM4/FineVision/docs").iterdir()):
        for number, line in enumerate(pq.read_table(path).to_pylist()):
            samples = docs.get(f"docs/{path.name}#{number}")
            if samples is None:
                assert at in (7, 11)
            else:
                answers = [m["content"] for s in samples for m in s.meta["messages"] if m["role"] == "assistant"]
                assert answers == [turn["assistant"] for turn in line["texts"] if turn], (path.name, number)
                assert {len(s.images) for s in samples} == {len(line["images"])}
                assert not any(s.meta["cut"] for s in samples)
                assert all(image["message"] == 0 for image in samples[0].meta["images"])
            at += 1
    assert at == 23


def test_modes_repeats_and_quota(whole: Path) -> None:
    samples = all_samples(whole)
    assert {image["mode"] for s in samples for image in s.meta["images"] if s.meta["source"] == "words(made)"} == {"tiny"}
    scans = [s for s in samples if s.meta["source"] == "scans"]
    assert scans and all(s.meta["images"][0]["tiles"] == [2, 1] and s.tiles(0) is not None for s in scans)
    talk = Counter(s.meta["row"] for s in samples if s.meta["source"] == "talk")
    assert len(talk) == 20 and set(talk.values()) == {2}
    body = json.loads((whole / "manifest.json").read_text())
    assert body["sources"]["talk"]["samples"] == 40 and body["sources"]["talk"]["rows"] == 20
    assert body["sources"]["scans"]["asked"] == 4 and body["sources"]["scans"]["available"] == 6
    assert body["train"] == {"batch_rows": 2, "lr": 1e-3}


def test_manifest_counts_are_those_of_the_samples(whole: Path) -> None:
    body = json.loads((whole / "manifest.json").read_text())
    samples = all_samples(whole)
    for name, told in body["sources"].items():
        mine = [s for s in samples if s.meta["source"] == name]
        assert told["samples"] == len(mine)
        assert told["tokens"] == sum(len(s.ids) for s in mine)
        assert told["images"] == sum(len(s.meta["images"]) for s in mine)
        assert told["targets"] == sum(masks.target_count(s.mask) for s in mine)
        assert told["answer_tokens"] == sum(int((s.mask == 2).sum()) for s in mine)
        assert told["rejected"] == sum(source == name for source, _ in rejects(whole))
    lines = pq.read_table(whole / "samples.parquet").to_pylist()
    assert [line["key"] for line in lines] == [s.key for s in samples]
    assert [line["tokens"] for line in lines] == [len(s.ids) for s in samples]


def test_twins_and_repeats_never_straddle_the_split(whole: Path) -> None:
    train, val = ({s.image(0) for s in read_samples(whole, split) if s.images} for split in ("train", "val"))
    assert train and val and not train & val
    texts = [{s.meta["row"] for s in read_samples(whole, split)} for split in ("train", "val")]
    assert not texts[0] & texts[1]


def test_the_split_does_not_depend_on_the_rest_of_the_recipe(made: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    """Another seed, fewer sources, another length: a row stays on its side."""
    recipe, raw = made
    plan = plan_of(recipe, raw, seed=5, subsets=["words(made)", "talk"], overrides=["recipe.seq_len=2048"])
    in_process(plan, tmp_path / "out", recipe)
    old = {split: {s.meta["row"] for s in read_samples(whole, split)} for split in ("train", "val")}
    for split in ("train", "val"):
        assert {s.meta["row"] for s in read_samples(tmp_path / "out", split)} <= old[split]


def test_each_row_group_is_read_exactly_once(made: tuple[Path, Path], whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
                                              ) -> None:
    recipe, raw = made
    reads: Counter[tuple[str, int]] = Counter()
    plain = pq.ParquetFile.iter_batches

    def counting(self: Any, *args: Any, row_groups: list[int], **options: Any) -> Iterator[Any]:
        reads.update((self.metadata.row_group(0).column(0).file_path or str(id(self)), group) for group in row_groups)
        return plain(self, *args, row_groups=row_groups, **options)  # type: ignore[no-any-return]

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)
    plan = plan_of(recipe, raw)
    report = in_process(plan, tmp_path / "out", recipe)
    needed = {(block.file, block.group) for blocks in plan.shards for block in blocks}
    assert sum(reads.values()) == len(needed) == sum(len(blocks) for blocks in plan.shards)
    assert report.manifest is not None
    assert sum(source["row_groups"] for source in report.manifest["sources"].values()) == len(needed)


def test_packed_rows_are_within_seq_len_and_full(whole: Path) -> None:
    body = json.loads((whole / "manifest.json").read_text())
    lines = pq.read_table(whole / "samples.parquet").to_pylist()
    rows: Counter[tuple[str, int, int]] = Counter()
    for line in lines:
        rows[line["split"], line["shard"], line["packed_row"]] += line["tokens"]
    assert max(rows.values()) <= body["seq_len"]
    assert len([key for key in rows if key[0] == "train"]) == body["splits"]["train"]["rows"]


def test_too_many_rejects_end_the_build_now_and_again(tmp_path: Path) -> None:
    """From 100 rejects on; what is finished stays, and the same command does not slip through with fewer rows left."""
    bad = [row([b"junk"], [("q", "a")]) for _ in range(120)]
    write_set(tmp_path / "raw", "broken", bad + [row([picture(1)], [("q", "a")])] * 40, group=20)
    recipe = write_recipe(tmp_path, 'name = "b"\ntokenizer = {tokenizer!r}\nmode = "micro"\nseq_len = 256\nshard_samples = 20\n'
                                    "[sources.broken]\n")
    plan = plan_of(recipe, tmp_path / "raw")
    for _ in range(3):
        with pytest.raises(TooManyRejects, match=r"source broken lost 1\d\d of 160 rows \(image-format 1\d\d\)"):
            in_process(plan, tmp_path / "out", recipe)
    report = in_process(plan, tmp_path / "out", recipe, max_reject_share=0.8)
    assert report.manifest is not None and report.tasks_run < len(plan.shards)
    assert len(rejects(tmp_path / "out")) == 120


def test_fewer_than_a_hundred_rejects_say_nothing(tmp_path: Path) -> None:
    write_set(tmp_path / "raw", "broken", [row([b"junk"], [("q", "a")]) for _ in range(99)] + [row([], [("q", "a")])])
    recipe = write_recipe(tmp_path, 'name = "b"\ntokenizer = {tokenizer!r}\n[sources.broken]\n')
    assert in_process(plan_of(recipe, tmp_path / "raw"), tmp_path / "out", recipe).manifest is not None


def test_a_changed_recipe_is_named_and_fresh_starts_over(made: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    recipe, raw = made
    plan = plan_of(recipe, raw)
    in_process(plan, tmp_path / "out", recipe, order=[0])
    changes: list[tuple[dict[str, Any], str]] = [
        ({"overrides": ["recipe.seq_len=2048"]}, "recipe.seq_len: 1024 -> 2048"),
        ({"overrides": ["docs.quota=3"]}, r"recipe.sources\[docs\].quota: absent -> 3"),
        ({"fraction": 0.5}, "recipe.fraction: 1.0 -> 0.5"), ({"seed": 3}, "recipe.seed: 0 -> 3"),
        ({"mode": "base"}, "recipe.mode: \"micro\" -> \"base\"")]
    for change, told in changes:
        with pytest.raises(BuildStateError, match=told):
            in_process(plan_of(recipe, raw, **change), tmp_path / "out", recipe)
    in_process(plan, tmp_path / "out", recipe)
    with pytest.raises(BuildStateError, match="fraction"):  # a finished directory is not another plan's either
        in_process(plan_of(recipe, raw, fraction=0.5), tmp_path / "out", recipe)
    (tmp_path / "out" / "notes.txt").write_text("a user's own file")
    (tmp_path / "out" / "mine").mkdir()
    in_process(plan_of(recipe, raw, fraction=0.5), tmp_path / "out", recipe, fresh=True)
    in_process(plan, tmp_path / "out", recipe, fresh=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "a user's own file" and (tmp_path / "out" / "mine").is_dir()
    (tmp_path / "out" / "notes.txt").unlink()
    assert digests(tmp_path / "out") == digests(whole)


def test_fresh_does_not_delete_the_work_of_a_running_build(made: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    recipe, raw = made
    plan = plan_of(recipe, raw)
    in_process(plan, tmp_path / "out", recipe, order=[0])
    state = open_build(plan, tmp_path / "out")
    with state.locked("slice-1-of-2") as free:
        assert free
        with pytest.raises(BuildStateError, match="at this moment; --fresh"):
            open_build(plan_of(recipe, raw, seed=3), tmp_path / "out", fresh=True)
    assert state.finished() == {0}
    in_process(plan, tmp_path / "out", recipe, fresh=True)
    assert digests(tmp_path / "out") == digests(whole)


def test_a_changed_file_of_the_data_is_named(made: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, raw = made[0], shutil.copytree(made[1], tmp_path / "raw")
    plan = plan_of(recipe, raw)
    in_process(plan, tmp_path / "out", recipe, order=[0])
    write_set(raw, "talk", [row([], [("new", "text")])] * 20)
    with pytest.raises(BuildStateError, match=r"files\.HuggingFaceM4/FineVision/talk/train-00000-of-00001.parquet"):
        in_process(plan_of(recipe, raw), tmp_path / "out", recipe)


def test_a_folder_of_something_else_is_left_alone(made: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, raw = made
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(BuildStateError, match=r"thesis\.tex"):
        in_process(plan_of(recipe, raw), tmp_path / "out", recipe)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("name", ["done", "scratch", "stage"])
def test_a_work_folder_of_something_else_is_left_alone(made: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    (tmp_path / "disk" / name).mkdir(parents=True)
    (tmp_path / "disk" / name / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(BuildStateError, match=f"{name} holds something else; choose another --work"):
            open_build(plan_of(*made), tmp_path / "out", work=tmp_path / "disk", fresh=fresh)
    assert (tmp_path / "disk" / name / "thesis.tex").exists() and not (tmp_path / "out").exists()


def test_lost_shards_of_a_finished_task_are_built_again(made: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    """Someone emptied the output but not the work folder beside it."""
    recipe, raw = made
    plan = plan_of(recipe, raw)
    in_process(plan, tmp_path / "out", recipe, order=[0, 1])
    (tmp_path / "out" / "train-000000.tar").unlink()
    (tmp_path / "out" / "train-000001.tar.idx").write_bytes(b"")
    in_process(plan, tmp_path / "out", recipe)
    assert digests(tmp_path / "out") == digests(whole)


def test_what_a_killed_process_left_is_swept_up(made: tuple[Path, Path], whole: Path, tmp_path: Path) -> None:
    recipe, raw = made
    plan = plan_of(recipe, raw)
    in_process(plan, tmp_path / "out", recipe, order=[0])
    (tmp_path / "out" / ".train-000001.tar.99999.partial").write_bytes(b"half")
    (tmp_path / "out.build" / "scratch" / "000001.99999").mkdir(parents=True)
    in_process(plan, tmp_path / "out", recipe)
    assert digests(tmp_path / "out") == digests(whole)


def test_a_file_that_vanishes_or_changes_size_is_an_error_not_a_reject(made: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, raw = made[0], shutil.copytree(made[1], tmp_path / "raw")
    plan = plan_of(recipe, raw)
    path = raw / "HuggingFaceM4/FineVision/scans/train-00000-of-00001.parquet"
    saved = path.read_bytes()
    path.write_bytes(saved + b"more")
    with pytest.raises(RuntimeError, match=r"where the plan saw \d+"):
        in_process(plan, tmp_path / "out", recipe)
    path.unlink()
    with pytest.raises(RuntimeError, match="cannot be opened now"):
        in_process(plan, tmp_path / "out", recipe)
    path.write_bytes(saved)
    assert in_process(plan, tmp_path / "out", recipe).manifest is not None


def test_other_library_versions_are_refused(made: tuple[Path, Path]) -> None:
    from dataclasses import replace

    plan = plan_of(*made)
    check_versions(plan)
    with pytest.raises(VersionMismatch, match=r"numpy .* \(plan: 0\.1\)"):
        check_versions(replace(plan, versions={**plan.versions, "numpy": "0.1"}))


def test_a_worker_with_other_versions_says_so(made: tuple[Path, Path], tmp_path: Path) -> None:
    from dataclasses import replace

    recipe, raw = made
    plan = plan_of(recipe, raw)
    plan = replace(plan, versions={**plan.versions, "Pillow": "1.0"})
    state, tokenizer = open_build(plan, tmp_path / "out"), tokenizer_of(recipe)
    with pytest.raises(TaskFailed, match="would build other bytes than the plan: Pillow"):
        list(run_tasks(plan, [0], state, tokenizer, workers=1))
