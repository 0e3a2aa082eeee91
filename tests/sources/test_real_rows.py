"""The rules on real rows of FineVision layout, each in both directions: with the rule and without."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.conversation import PAGE_BREAK, Conversation, Reject
from pipeline.sources import KINDS
from pipeline.sources.kind import Kind
from pipeline.sources.rows import iter_rows, open_parquet, row_id

HUB = "data/hub"
FINEVISION = f"{HUB}/HuggingFaceM4/FineVision"


def rows(folder: Path, kind: Kind, pattern: str = "train-*.parquet") -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(folder.glob(pattern)):
        with open_parquet(path) as file:
            first = 0
            for group in range(file.num_row_groups):
                for index, row in iter_rows(file, group, kind):
                    assert isinstance(row, dict)
                    yield row_id(path.name, first + index), row
                first += file.metadata.row_group(group).num_rows


def run(shared: Path, name: str, **options: Any) -> tuple[list[Conversation], Counter[str]]:
    kind = KINDS["finevision"]
    rules = kind.options(**options)
    found, rejects = [], Counter[str]()
    for number, row in rows(shared / FINEVISION / name, kind):
        try:
            found.append(kind.convert(row, source=name, row_id=number, options=rules))
        except Reject as error:
            rejects[error.reason] += 1
    return found, rejects


def turns(found: list[Conversation]) -> int:
    return sum(item.answers for item in found)


@pytest.mark.parametrize(
    ("name", "images", "answers"),
    [("coco_objects", 34, 102), ("docling_pages", 38, 26), ("icdar2015_scene", 52, 104), ("icdar2015_words", 350, 350),
     ("latex_formulas", 560, 560), ("math_vision", 300, 300), ("ocsr_chem", 502, 667), ("opencqa", 150, 255),
     ("pdf_pages", 102, 100), ("sroie", 42, 180), ("text_instruct", 0, 194), ("wtq_tables", 220, 799)],
)  # fmt: skip
def test_all_turns_and_images_of_every_set(shared: Path, name: str, images: int, answers: int) -> None:
    found, rejects = run(shared, name)
    assert not rejects
    assert sum(len(item.images) for item in found) == images
    assert turns(found) == answers
    assert all(item.dropped_turns == 0 for item in found)


@pytest.mark.parametrize("axis", ["relevance", "visual_dependency", "image_correspondence", "formatting"])
def test_ratings_turn_by_turn(shared: Path, axis: str) -> None:
    kind = KINDS["finevision"]
    expected = {"keep": 0, "drop": 0}
    for _, row in rows(shared / FINEVISION / "coco_objects", kind):
        for index in range(len(row["texts"])):
            rating = (row[f"{axis}_ratings"] or [])[index : index + 1]
            good = bool(rating) and rating[0] is not None and rating[0] >= 4
            expected["drop"] += good
            expected["keep"] += good or not rating or rating[0] is None
    assert 0 < expected["drop"] < 102
    for policy, count in expected.items():
        found, _ = run(shared, "coco_objects", min_ratings={axis: 4}, null_ratings=policy)
        assert turns(found) == count
    assert turns(run(shared, "coco_objects", min_ratings={axis: 1})[0]) == 102


def test_ratings_of_a_file_without_them(shared: Path) -> None:
    kind = KINDS["finevision"]
    for policy, count in (("keep", 12), ("drop", 0)):
        rules, found = kind.options(min_ratings={"relevance": 5}, null_ratings=policy), 0
        for number, row in rows(shared / "data/hostile/files", kind, "no_ratings.parquet"):
            try:
                kind.convert(row, source="s", row_id=number, options=rules)
                found += 1
            except Reject as error:
                assert error.reason == "rating"  # noqa: PT017
        assert found == count


def test_the_docling_turn_alone_or_all(shared: Path) -> None:
    found, rejects = run(shared, "docling_pages", user_text="Convert this page to docling.")
    assert (len(found), rejects["turn-choice"]) == (3, 23)
    for item in found:
        assert item.messages[0].content == "<image>\nConvert this page to docling."
        assert item.messages[1].content.startswith("<doctag>")
    as_markdown, _ = run(shared, "docling_pages", user_text="Convert this page to docling.", doctags="markdown")
    assert len(as_markdown) == 3
    assert all("<loc_" not in item.messages[1].content for item in as_markdown)
    checked, rejects = run(shared, "docling_pages", doctags="keep")
    assert (len(checked), rejects["doctags-invalid"]) == (3, 23)


def test_turn_and_image_limits(shared: Path) -> None:
    found, rejects = run(shared, "wtq_tables", max_turns=2)
    assert not rejects
    assert max(item.answers for item in found) == 2
    assert turns(found) + sum(item.dropped_turns for item in found) == 799
    several = [item for item in run(shared, "pdf_pages")[0] if len(item.images) > 1]
    assert len(several) == 11
    found, rejects = run(shared, "pdf_pages", max_images=1)
    assert (len(found), rejects["too-many-images"]) == (78, 11)
    assert run(shared, "pdf_pages", min_images=2)[1]["too-few-images"] == 78
    assert run(shared, "text_instruct", min_images=1)[1]["too-few-images"] == 194


def test_prompts_on_real_rows(shared: Path) -> None:
    found, _ = run(shared, "latex_formulas", prompts=["Free OCR.", "Parse the figure."])
    asked = Counter(item.messages[0].content for item in found)
    assert set(asked) == {"<image>\nFree OCR.", "<image>\nParse the figure."}
    assert min(asked.values()) > 200


def test_pages_of_a_document(shared: Path) -> None:
    found, _ = run(shared, "pdf_pages")
    for item in found:
        breaks = any(PAGE_BREAK in message.content for message in item.messages)
        assert item.page_breaks == (breaks and len(item.images) > 1)


@pytest.mark.parametrize(
    ("kind", "folder", "pattern", "least"),
    [("smoltalk", "HuggingFaceTB/smol-smoltalk/data", "*.parquet", 1500), ("gsm8k", "openai/gsm8k/main", "*.parquet", 4404),
     ("gsm8k", "openai/gsm8k/socratic", "*.parquet", 692), ("mmlu", "cais/mmlu/all", "*.parquet", 8459),
     ("mmlu", "cais/mmlu/auxiliary_train", "*.parquet", 598)],
)  # fmt: skip
def test_text_sets_whole(shared: Path, kind: str, folder: str, pattern: str, least: int) -> None:
    found, rejects = 0, Counter[str]()
    for number, row in rows(shared / HUB / folder, KINDS[kind], pattern):
        try:
            out = KINDS[kind].convert(row, source=kind, row_id=number, options=KINDS[kind].options())
            assert out.messages[-1].role == "assistant"
            if parts := out.messages[-1].parts:
                forms = {"text": "{}", "python": "<<{}=", "output": "{}>>"}
                assert "".join(forms[part.kind].format(part.text) for part in parts) == out.messages[-1].content
            found += 1
        except Reject as error:
            rejects[error.reason] += 1
    assert found >= least, rejects
