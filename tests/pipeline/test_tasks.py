"""Tasks: numbers, slices, shuffling, memory, and that a mixture is a recipe."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.conversation import Reject
from pipeline.plan import MissingSetsError
from pipeline.recipe import Recipe, SourceSpec
from pipeline.tasks import GSM8K, MMLU, CustomJSON, FineVision, OlmOCR, SmolTalk, Task, TaskMixture, permuted
from tests.convert.making import png


def make_set(raw: Path, name: str = "toy", rows: int = 57, files: int = 3, bad: tuple[int, ...] = ()) -> None:
    """A subset of `rows` rows over files and row groups of ten; the answers are the rows' numbers."""
    folder = raw / "HuggingFaceM4/FineVision" / name
    folder.mkdir(parents=True)
    cuts = [rows * k // files for k in range(files + 1)]
    for k in range(files):
        table = pa.Table.from_pylist([
            {"images": [{"bytes": png("red", (n % 7 + 1, 2)), "path": None}],
             "texts": [{"user": "which?", "assistant": None if n in bad else str(n)}], "source": name}
            for n in range(cuts[k], cuts[k + 1])])  # fmt: skip
        pq.write_table(table, folder / f"train-{k:05d}-of-{files:05d}.parquet", row_group_size=10)


def numbers(task: Task | TaskMixture, indexes: Any = None) -> list[int]:
    found = [task[index] for index in (range(len(task)) if indexes is None else indexes)]
    return [int(example["messages"][1]["content"]) for example in found]


def test_every_row_by_number(tmp_path: Path) -> None:
    make_set(tmp_path)
    task = FineVision("toy", raw=tmp_path)
    assert len(task) == 57
    assert numbers(task) == list(range(57))
    assert numbers(task, [56, 0, 20, 19, 21, 21, -1, -57]) == [56, 0, 20, 19, 21, 21, 56, 0]
    example = task[8]
    assert example["messages"] == [{"role": "user", "content": "<image>\nwhich?"}, {"role": "assistant", "content": "8"}]
    assert isinstance(example["images"][0], Image.Image)
    assert example["images"][0].size == (2, 2)
    for index in (57, -58):
        with pytest.raises(IndexError, match="toy has 57 rows"):
            task[index]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"stop": 5}, range(5)),
        ({"start": 50}, range(50, 57)),
        ({"start": 3, "stop": 40, "step": 7}, range(3, 40, 7)),
        ({"max_samples": 12}, range(12)),
        ({"start": 2, "step": 25, "max_samples": 2}, range(2, 52, 25)),
        ({"stop": 5, "max_samples": 9}, range(5)),
        ({"stop": 1000}, range(57)),
        ({"start": 57}, range(0)),
    ],
)
def test_slices(tmp_path: Path, options: dict[str, int], rows: range) -> None:
    make_set(tmp_path)
    task = FineVision("toy", raw=tmp_path, **options)
    assert len(task) == len(rows)
    assert numbers(task) == list(rows)
    assert numbers(task, range(len(rows) - 1, -1, -1)) == list(rows)[::-1]


def test_wrong_slices_and_missing_sets_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="step and max_samples from 1"):
        FineVision("toy", step=0, raw=tmp_path)
    with pytest.raises(MissingSetsError, match="pipeline download"):
        FineVision("chartqa", raw=tmp_path)
    with pytest.raises(ValueError, match="choose from off, keep"):
        FineVision("chartqa", raw=tmp_path, otsl="latex")


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    make_set(tmp_path, rows=25, bad=(3, 11))
    task = FineVision("toy", raw=tmp_path)
    assert len(task) == 25
    with pytest.raises(Reject, match="no-answer"):
        task[3]
    assert numbers(task, [2, 4]) == [2, 4]
    assert [int(example["messages"][1]["content"]) for example in task] == [n for n in range(25) if n not in (3, 11)]
    assert dict(task.rejects) == {"no-answer": 2}


@given(st.integers(1, 500), st.integers())
def test_the_shuffle_is_a_permutation(count: int, seed: int) -> None:
    order = [permuted(index, count, seed) for index in range(count)]
    assert sorted(order) == list(range(count))


def test_the_shuffle_is_fixed_by_its_seed() -> None:
    order = [permuted(index, 1000, 1) for index in range(1000)]
    assert order != [permuted(index, 1000, 2) for index in range(1000)]
    assert order[:5] == [permuted(index, 1000, 1) for index in range(5)]
    early = sum(index < 500 for index in order[:500])
    assert 200 < early < 300


def test_mixture(tmp_path: Path) -> None:
    make_set(tmp_path, "one", rows=30)
    make_set(tmp_path, "two", rows=12)
    one, two = FineVision("one", raw=tmp_path), FineVision("two", raw=tmp_path)
    plain = TaskMixture([one, two, two], shuffle=False)
    assert len(plain) == 54
    assert numbers(plain) == [*range(30), *range(12), *range(12)]
    mixed = TaskMixture([one, two, two])
    assert numbers(mixed) != numbers(plain)
    assert sorted(numbers(mixed)) == sorted(numbers(plain))
    assert numbers(mixed) == numbers(TaskMixture([one, two, two]))
    assert numbers(mixed, [-1]) == numbers(mixed)[-1:]
    assert len({mixed.where(index) for index in range(54)}) == 54
    nested = TaskMixture([mixed, one])
    assert len(nested) == 84
    with pytest.raises(IndexError):
        mixed[54]


def test_a_recipe_is_a_mixture_written_down(tmp_path: Path) -> None:
    make_set(tmp_path, "one", rows=40)
    make_set(tmp_path, "two", rows=12)
    recipe = Recipe(name="r", seed=3, sources=(SourceSpec(name="one", folder="one", quota=15),
                                               SourceSpec(name="two", folder="two", repeats=2)))  # fmt: skip
    mixture = TaskMixture.from_recipe(recipe, raw=tmp_path)
    assert len(mixture) == 15 + 2 * 12
    seen = [mixture.tasks[mixture.where(index)[0]].spec.name for index in range(len(mixture))]
    assert seen.count("one") == 15
    taken = [int(message.messages[1].content) for message in map(mixture.conversation, range(len(mixture)))
             if message.source == "one"]  # fmt: skip
    assert len(set(taken)) == 15


def test_a_task_travels_to_worker_processes(tmp_path: Path) -> None:
    make_set(tmp_path)
    task = FineVision("toy", raw=tmp_path)
    assert numbers(task, [4]) == [4]
    again = pickle.loads(pickle.dumps(task))  # noqa: S301
    assert numbers(again, [5, 4]) == [5, 4]
    task.close()
    assert numbers(task, [5]) == [5]


def test_custom_json(tmp_path: Path) -> None:
    (tmp_path / "me.jsonl").write_text('[{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "me"}]\n' * 3)
    task = CustomJSON(tmp_path / "me.jsonl", raw=tmp_path / "raw", start=1)
    assert len(task) == 2
    assert task[0] == {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "me"}]}
    with pytest.raises(ValueError, match="kind = 'json': choose custom_json"):
        CustomJSON(tmp_path / "me.jsonl", kind="json", raw=tmp_path / "raw")


def test_images_of_a_jsonl_are_kept_or_told(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "me.jsonl").write_text(json.dumps({"image_path": "a.png", "messages": [
        {"role": "user", "content": "Read."}, {"role": "assistant", "content": "me"}]}))  # fmt: skip
    assert CustomJSON(tmp_path / "me.jsonl", kind="jsonl", raw=tmp_path / "raw")[0]["images"][0].size == (9, 9)
    task = CustomJSON(tmp_path / "me.jsonl", raw=tmp_path / "raw")
    assert (list(task), dict(task.rejects)) == ([], {"too-many-images": 1})


def test_an_index_is_a_number(tmp_path: Path) -> None:
    make_set(tmp_path)
    task = FineVision("toy", raw=tmp_path)
    for sequence in (task, TaskMixture([task])):
        with pytest.raises(TypeError, match="'slice' object cannot be interpreted as an integer"):
            sequence[0:2]  # type: ignore[index]


def test_olmocr(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    from tests.convert.making import tar_of
    from tests.convert.test_olmocr import make_pdf, table

    folder = tmp_path / "allenai/olmOCR-mix-1025"
    tar_of(folder / "pdf_tarballs/a.tar.gz", {"one.pdf": make_pdf()})
    table(folder, [{"pdf_relpath": "pdf_tarballs/a.tar.gz:one.pdf", "natural_text": "read"}])
    task = OlmOCR(raw=tmp_path)
    assert task[0]["messages"][1]["content"] == "read"
    assert max(task[0]["images"][0].size) == 1536


def test_the_text_sets(shared: Path) -> None:
    raw = shared / "data/hub"
    assert len(SmolTalk(raw=raw)) == 1373
    assert len(SmolTalk(raw=raw, split="test", max_samples=10)) == 10
    assert SmolTalk(raw=raw)[0]["messages"][0]["role"] in ("system", "user")
    assert len(MMLU(raw=raw, split="dev")) == 145
    assert MMLU(raw=raw)[0]["messages"][1]["content"] == "A"
    assert len(GSM8K(raw=raw, start=10, stop=40, step=3)) == 10
    assert [part["kind"] for part in GSM8K(raw=raw)[0]["messages"][1]["parts"]][:3] == ["text", "python", "output"]


def test_real_subsets_in_a_mixture(shared: Path) -> None:
    raw = shared / "data/hub"
    names = ("docling_pages", "latex_formulas", "text_instruct", "wtq_tables")
    mixture = TaskMixture([*(FineVision(name, raw=raw) for name in names), GSM8K(raw=raw, max_samples=20)])
    assert len(mixture) == 26 + 560 + 194 + 220 + 20
    for index in range(0, len(mixture), 53):
        example = mixture[index]
        assert example["messages"][-1]["role"] == "assistant"
        assert example == {**mixture[index], "images": example["images"]} if "images" in example else mixture[index]


def test_memory_does_not_grow_with_the_set(tmp_path: Path) -> None:
    """A child goes through 110 MB of images, in order and in jumps, with little more memory than for the first."""
    code = """
import resource, sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from pipeline.tasks import FineVision
raw = Path(sys.argv[1])
task = FineVision("big", raw=raw)
task.conversation(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for index in (*range(len(task)), 200, 3, 299, 0):
    task.conversation(index)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    folder = tmp_path / "HuggingFaceM4/FineVision/big"
    folder.mkdir(parents=True)
    rows = [{"images": [{"bytes": bytes([n % 256]) * 50 + n.to_bytes(4) * 90_000, "path": None}],
             "texts": [{"user": "q", "assistant": "a"}]} for n in range(300)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet", row_group_size=150, compression="none",
                   use_dictionary=False)  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 70, "MB more than after the first row"
