"""A set fetched in part is planned as on the hub; the gap table and the report say what the notes say."""

import json
from pathlib import Path

import pytest

from pipeline import gap, plan_report
from pipeline.footers import FileFooter, FooterError, local_refs, read_footers
from pipeline.known import known_path, known_refs, save_known
from pipeline.measure import Speed
from pipeline.plan import make_plan
from pipeline.recipe import SourceSpec, load_recipe
from tests.hub.conftest import REPO, write_set

PREFIX = f"{REPO}/docs/train-"
SPEED = Speed(image_fixed={"base": 0.01, "small": 0.01}, image_per_mb={"base": 0.1, "small": 0.1}, text_per_mb=0.3)


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    """Three files known, two on disk; one of the known is no parquet."""
    raw = tmp_path / "raw"
    for k in range(3):
        write_set(raw / REPO / "docs" / f"train-{k:05d}-of-00004.parquet", rows=10 + k, group=5, seed=k)
    (raw / REPO / "docs" / "train-00003-of-00004.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    refs = local_refs(raw, f"{REPO}/docs")
    listed = [type(ref)(path=ref.path.removeprefix(f"{REPO}/"), size=ref.size, repo=REPO, revision="a" * 40) for ref in refs]
    save_known(raw, PREFIX, REPO, "a" * 40, listed, read_footers(refs))
    (raw / REPO / "docs" / "train-00001-of-00004.parquet").unlink()
    return raw


def test_listing_and_footers_come_back(fetched: Path) -> None:
    found = known_refs(fetched, REPO, PREFIX)
    assert found is not None
    revision, refs = found
    assert revision == "a" * 40
    assert [ref.local is not None for ref in refs] == [True, False, True, True]
    footers = read_footers(refs)
    assert [f.rows for f in footers if isinstance(f, FileFooter)] == [10, 11, 12]
    assert isinstance(footers[3], FooterError)
    assert footers[3].reason == "file-not-parquet"


def test_a_file_that_changed_is_read_again(fetched: Path) -> None:
    write_set(fetched / REPO / "docs" / "train-00000-of-00004.parquet", rows=50, group=5, seed=9)
    found = known_refs(fetched, REPO, PREFIX)
    assert found is not None
    first = read_footers(found[1])[0]
    assert isinstance(first, FileFooter)
    assert first.rows == 50


def test_other_files_in_the_folder_count(fetched: Path) -> None:
    write_set(fetched / REPO / "docs" / "train-99999-of-99999.parquet", rows=5, group=5, seed=9)
    assert known_refs(fetched, REPO, PREFIX) is None, "the folder is the user's own: what lies there is planned"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 99}', b'{"version":1,"repo":"x/y","files":[]}',
                                     b'{"version":1,"repo":"' + REPO.encode() + b'","revision":"a","files":[{"path":"../x"}]}'])
def test_a_damaged_listing_is_no_listing(fetched: Path, content: bytes) -> None:
    known_path(fetched, PREFIX).write_bytes(content)
    assert known_refs(fetched, REPO, PREFIX) is None


def test_gap_table_of_the_notes() -> None:
    from pipeline.subsets import shipped_table
    totals = {key: sum(s.rows or 0 for s in shipped_table().values() if s.deepseek == key) for key in gap.DEEPSEEK}
    shares = {key: round(100 * (1 - totals[key] / size), 1) for key, (_, size) in gap.DEEPSEEK.items()}
    assert shares == {"pdf": 93.1, "scene": 98.2, "charts": 82.1, "chemistry": 99.8, "geometry": 92.0}


def test_categories() -> None:
    assert gap.category_of(SourceSpec(name="latexformulas", folder="latexformulas", bucket="geometry and math")) == ""
    assert gap.category_of(SourceSpec(name="geo170k(qa)", folder="geo170k(qa)", bucket="geometry and math")) == "geometry"
    assert gap.category_of(SourceSpec(name="mine", repo="rendered/mine", bucket="chemistry")) == "chemistry"
    assert gap.category_of(SourceSpec(name="talk", kind="smoltalk", bucket="text")) == ""


def test_report_of_stage2_before_anything_is_there(tmp_path: Path) -> None:
    write_set(tmp_path / "raw" / "rendered" / "chem" / "train-00000-of-00001.parquet", rows=20, group=10, seed=0)
    plan = make_plan(load_recipe("stage2"), raw=tmp_path / "raw", allow_missing=True)
    report = plan_report.make_report(plan, raw=tmp_path / "raw", out=tmp_path / "out", keeps_raw=True, speed=SPEED)
    shares = {share["group"]: round(100 * share["asked"]) for share in report["shares"]}
    assert shares == {"ocr": 71, "vision": 19, "text": 10}
    chem = next(source for source in report["sources"] if source["name"] == "chem")
    assert (chem["quota"], chem["rows"], chem["images"]) == (300_000, 20, 20)
    assert any("300,000 rows asked, 20 there" in note for note in report["notes"])
    assert {item["name"] for item in report["missing"] if item["to_make"]} == {"LLaVA-CC3M", "CustomJSON"}
    text = plan_report.format_report(report)
    assert "NOT ON THE HUB" in text
    assert "not there yet" in text
    assert json.loads(json.dumps(report)) == report


def test_tokens_are_placeholders_and_text(tmp_path: Path) -> None:
    assert plan_report.image_tokens("base") == 273
    assert plan_report.image_tokens("gundam") == 273 + 30 * 21
