"""Dedup and decontamination: which rows a plan leaves out, that they are said, and that a second pass reads nothing."""

import hashlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import dedup
from pipeline.build.state import open_build
from pipeline.plan import Plan, make_plan
from pipeline.recipe import RecipeError, load_recipe
from tests.pipeline.small_sets import SET, picture, row, run_build, small_plan, write_recipe, write_rows
from tests.pipeline.tiny import tiny_tokenizer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_CACHE", str(tmp_path / "cache"))


def two_sets(folder: Path, *, more: str = "", options: str = "") -> Path:
    """`a` repeats its row 1 at 4; `b` repeats a's row 0 at 2, has a's picture 2 with another text at 3, and a null answer twice."""
    other = row(2)
    other["texts"] = [{"user": "Read.", "assistant": "another answer"}]
    null = row(50)
    null["texts"] = [{"user": "Read.", "assistant": None}]
    rows = [row(number) for number in (0, 1, 2, 3, 1, 5)]
    write_rows(folder / "raw" / SET / "a" / "train-00000-of-00001.parquet", rows, group=2)
    write_rows(folder / "raw" / SET / "b" / "train-00000-of-00001.parquet", [null, null, row(0), other, row(7)], group=2)
    return write_recipe(folder, f"[sources.a]\n{options}\n[sources.b]", more=more)


def named(plan: Plan) -> dict[str, dict[str, list[int]]]:
    """Skips by source name."""
    return {plan.files[number].name.split("/")[2]: {reason: list(rows) for reason, rows in found.items()}
            for number, found in plan.skips.items()}


def test_a_row_is_a_duplicate_if_images_and_text_are_the_same_as_an_earlier_ones(tmp_path: Path) -> None:
    plan = dedup.with_skips(small_plan(two_sets(tmp_path, more="dedup = true")))
    assert named(plan) == {"a": {"duplicate": [4]}, "b": {"duplicate": [2]}}


def test_prompt_templates_do_not_hide_a_duplicate(tmp_path: Path) -> None:
    recipe = two_sets(tmp_path, more="dedup = true", options='prompts = ["Transcribe.", "What does it say?", "OCR:"]')
    assert named(dedup.with_skips(small_plan(recipe)))["a"] == {"duplicate": [4]}


def test_an_empty_recipe_key_changes_nothing(tmp_path: Path) -> None:
    plan = small_plan(two_sets(tmp_path))
    assert dedup.with_skips(plan) is plan


def test_a_listed_image_leaves_out_every_row_that_has_it(tmp_path: Path) -> None:
    recipe = two_sets(tmp_path, more='dedup = true\ndecontaminate = "bad.txt"')
    (tmp_path / "bad.txt").write_text(f"\ufeff# a benchmark\n\n{hashlib.sha256(picture(20)).hexdigest()}  page.png\n", "utf-8")
    plan = dedup.with_skips(small_plan(recipe))
    assert named(plan) == {"a": {"duplicate": [4], "contaminated": [2]}, "b": {"duplicate": [2], "contaminated": [3]}}
    assert str(tmp_path) not in str(plan.recipe.decontaminate), "the plan names the list by its contents, not by its place"


def test_a_contaminated_row_is_no_ones_original(tmp_path: Path) -> None:
    recipe = two_sets(tmp_path, more='dedup = true\ndecontaminate = "bad.txt"')
    (tmp_path / "bad.txt").write_text(hashlib.sha256(picture(10)).hexdigest())
    assert named(dedup.with_skips(small_plan(recipe)))["a"] == {"contaminated": [1, 4]}


@pytest.mark.parametrize("line", ["not a hash", "ab" * 16])
def test_a_wrong_list_is_an_error_with_its_line(tmp_path: Path, line: str) -> None:
    recipe = two_sets(tmp_path, more='decontaminate = "bad.txt"')
    (tmp_path / "bad.txt").write_text(f"{'0' * 64}\n{line}\n")
    with pytest.raises(RecipeError, match="line 2"):
        dedup.with_skips(small_plan(recipe))


def test_the_second_pass_reads_nothing_and_a_changed_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = two_sets(tmp_path, more="dedup = true")
    first = dedup.with_skips(small_plan(recipe))
    with monkeypatch.context() as patch:
        patch.setattr(dedup, "_run", lambda plan, todo, workers: iter([] if not todo else [pytest.fail("read again")]))
        assert dedup.with_skips(small_plan(recipe)).id == first.id
    rows = [row(0), row(1), row(2), row(3), row(4), row(5)]
    write_rows(tmp_path / "raw" / SET / "a" / "train-00000-of-00001.parquet", rows, group=2)
    assert named(dedup.with_skips(small_plan(recipe))) == {"b": {"duplicate": [2]}}


def test_the_same_file_in_two_sources_keeps_the_first(tmp_path: Path) -> None:
    write_rows(tmp_path / "raw" / SET / "a" / "train-00000-of-00001.parquet", [row(n) for n in range(4)])
    recipe = write_recipe(tmp_path, '[sources.a]\n[sources.again]\nfolder = "a"', more="dedup = true")
    plan = dedup.with_skips(small_plan(recipe))
    left_out = {block.source for shard in plan.shards for block in shard if block.file in plan.skips}
    assert [plan.recipe.sources[source].name for source in left_out] == ["again"]
    assert list(plan.skips.values()) == [{"duplicate": (0, 1, 2, 3)}]


def test_skips_do_not_depend_on_workers(tmp_path: Path) -> None:
    recipe = load_recipe(str(two_sets(tmp_path, more="dedup = true")))
    plan = make_plan(recipe, raw=tmp_path / "raw", tokenizer=tiny_tokenizer())
    one = dedup.hash_files(plan, workers=1)
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    two = dedup.hash_files(plan, workers=2)
    assert all((a.keys == b.keys).all() and (a.images == b.images).all() for a, b in zip(one, two, strict=True))


def test_a_file_that_kills_its_workers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(two_sets(tmp_path, more="dedup = true"))
    monkeypatch.setattr(dedup, "hash_file", _die)
    with pytest.raises(dedup.HashPassError, match=r"a/train-00000.*3 workers died"):
        dedup.hash_files(plan)


def _die(*_: object) -> None:
    import os

    os._exit(9)


def test_left_out_rows_are_rejects_with_their_own_reason(tmp_path: Path) -> None:
    recipe = two_sets(tmp_path, more='dedup = true\ndecontaminate = "bad.txt"')
    (tmp_path / "bad.txt").write_text(hashlib.sha256(picture(20)).hexdigest())
    plan = dedup.with_skips(small_plan(recipe))
    state = open_build(plan, tmp_path / "out")
    report = run_build(plan, state)
    assert report.manifest is not None
    assert report.manifest["sources"]["a"]["rejects"] == {"contaminated": 1, "duplicate": 1}
    lines = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert {(line["source"], line["row"].rpartition("#")[2], line["reason"]) for line in lines} == {
        ("a", "4", "duplicate"), ("a", "2", "contaminated"), ("b", "2", "duplicate"), ("b", "3", "contaminated"),
        ("b", "0", "no-answer"), ("b", "1", "no-answer")}
    assert report.manifest["splits"]["train"]["samples"] + report.manifest["splits"]["val"]["samples"] == 5
