"""render-chem end to end on small sets: order, bytes, dedup, slices, reruns, what lies in the files."""

import json
from io import BytesIO
from pathlib import Path

import pytest
from datasets import load_dataset
from PIL import Image
from rdkit import Chem

from pipeline.chem.pool import read_quarantine
from pipeline.chem.render import Progress, render
from pipeline.chem.select import share_rows
from pipeline.chem.state import OtherSet
from tests.chem.helpers import MOLECULES, make_plan, read_bytes, read_rejects, read_set, write_smiles


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_smiles(tmp_path_factory.mktemp("smiles") / "some.smi", MOLECULES)


@pytest.fixture(scope="module")
def rendered(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set") / "chem"
    render(make_plan(out, [source], rows_per_file=7), workers=1)
    return out


def test_every_molecule_once_with_its_canonical_smiles(rendered: Path) -> None:
    rows = read_set(rendered)
    assert sorted(row["canonical_smiles"] for row in rows) == sorted(Chem.CanonSmiles(text) for text in MOLECULES)
    for row in rows:
        assert row["texts"][0]["assistant"] == row["canonical_smiles"] == row["drawn_smiles"]
        assert row["texts"][0]["user"]
        assert row["cid"] == f"mol{int(row['row'].split(':')[1]) - 1}"
        assert (row["source"], row["style"], row["style_values"]) == ("chem", "plain", '{"canvas.bond":110.0}')


def test_pictures_have_the_asked_size_and_no_metadata(rendered: Path) -> None:
    for row in read_set(rendered):
        with Image.open(BytesIO(row["images"][0]["bytes"])) as image:
            image.load()
            assert (image.mode, image.size, image.info) == ("L", (96, 96), {})


def test_opens_as_a_dataset(rendered: Path, tmp_path: Path) -> None:
    files = sorted(map(str, rendered.glob("train-*.parquet")))
    data = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert len(data) == len(MOLECULES)
    assert data[0]["images"][0].size == (96, 96)
    folder = load_dataset(str(rendered), split="train", cache_dir=str(tmp_path))
    assert len(folder) == len(MOLECULES)


def test_manifest_counts_what_is_there(rendered: Path) -> None:
    manifest = json.loads((rendered / "manifest.json").read_text())
    assert manifest["totals"]["rows"] == len(MOLECULES) == sum(file["rows"] for file in manifest["files"])
    for file in manifest["files"]:
        assert (rendered / file["name"]).stat().st_size == file["bytes"]
    text = (rendered / "manifest.json").read_text() + (rendered / "README.md").read_text()
    assert str(rendered.parent) not in text  # no path of this machine


def test_same_bytes_for_any_number_of_workers(source: Path, rendered: Path, tmp_path: Path) -> None:
    render(make_plan(tmp_path / "chem", [source], rows_per_file=7), workers=3)
    assert read_bytes(tmp_path / "chem") == read_bytes(rendered)


def test_slices_together_are_the_set_of_one_run(source: Path, rendered: Path, tmp_path: Path) -> None:
    complete = [
        render(make_plan(tmp_path / "chem", [source], rows_per_file=7, part=part, parts=2), workers=1).complete
        for part in (1, 0)
    ]
    assert complete == [False, True]
    assert read_bytes(tmp_path / "chem") == read_bytes(rendered)


def test_any_name_makes_a_card_that_opens(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "set: 2 #1"
    render(make_plan(out, [source], name=out.name), workers=1)
    assert len(load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache"))) == len(MOLECULES)


def test_a_quarantine_that_is_no_text_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    path.write_bytes(b'\xff\xfe\n{"op":"depict","arguments":["CCO",0],"reason":"deadline","detail":"slow"}\n')
    assert list(read_quarantine(path).values()) == [{"reason": "deadline", "detail": "slow"}]


def test_second_run_does_nothing_and_a_lost_file_is_redone(source: Path, tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "chem", [source], rows_per_file=7)
    render(plan, workers=1)
    before = read_bytes(plan.out)
    again = render(plan, workers=1)
    assert (again.reused, again.files, again.route) == (3, 3, "")
    (plan.out / plan.file_name(1)).unlink()
    assert render(plan, workers=1).reused == 2
    assert read_bytes(plan.out) == before


def test_another_set_is_never_overwritten(source: Path, tmp_path: Path) -> None:
    render(make_plan(tmp_path / "chem", [source]), workers=1)
    with pytest.raises(OtherSet, match=r"\(size: 96 there, 64 asked\)"):
        render(make_plan(tmp_path / "chem", [source], size=64), workers=1)


def test_files_of_another_origin_are_never_overwritten(source: Path, rendered: Path, tmp_path: Path) -> None:
    out = tmp_path / "chem"
    out.mkdir()
    (out / "README.md").write_text("notes of somebody else")
    (out / "train-00000-of-00001.parquet").write_bytes(b"other data")
    with pytest.raises(ValueError, match=r"another origin \(README.md, train-00000-of-00001.parquet\)"):
        render(make_plan(out, [source]), workers=1)
    assert (out / "train-00000-of-00001.parquet").read_bytes() == b"other data"


@pytest.mark.parametrize("name", ["share.json", "file-000000.json", "identity.json"])
def test_a_damaged_state_is_made_anew_or_named(source: Path, tmp_path: Path, name: str) -> None:
    plan = make_plan(tmp_path / "chem", [source], rows_per_file=15)
    render(plan, workers=1)
    before = read_bytes(plan.out)
    (plan.out / ".work" / name).write_text('{"a')
    if name == "identity.json":
        with pytest.raises(OtherSet, match=r"identity\.json is damaged"):
            render(plan, workers=1)
    else:
        assert render(plan, workers=1).complete
        assert read_bytes(plan.out) == before


def test_a_lost_list_of_rejects_is_made_anew(tmp_path: Path) -> None:
    plan = make_plan(tmp_path / "chem", [write_smiles(tmp_path / "a.smi", [*MOLECULES, "C1CC"])])
    render(plan, workers=1)
    before = read_bytes(plan.out)
    (plan.out / ".work" / "rejects.jsonl").unlink()
    assert render(plan, workers=1).complete
    assert read_bytes(plan.out) == before
    assert [reject["reason"] for reject in read_rejects(plan.out)] == ["syntax"]


def test_more_rows_than_molecules_draws_further_styles_and_says_so(source: Path, tmp_path: Path) -> None:
    said: list[str] = []
    n = 2 * len(MOLECULES) + 3
    plan = make_plan(tmp_path / "chem", [source], n=n, style="diverse", rows_per_file=15)
    render(plan, workers=1, progress=Progress(say=said.append))
    rows = read_set(plan.out)
    assert len(rows) == n
    assert len({(row["canonical_smiles"], row["copy"]) for row in rows}) == n
    assert len({row["seed"] for row in rows}) == n
    assert any("2 to 3 styles" in text for text in said)


def test_fewer_rows_than_molecules_parses_only_a_band(tmp_path: Path) -> None:
    smiles = ["C" * a + "O" + "C" * b for a in range(1, 40) for b in range(1, 40) if a <= b]
    source = write_smiles(tmp_path / "ethers.smi", smiles)
    report = render(make_plan(tmp_path / "chem", [source], n=50), workers=1)
    assert report.rows == 50
    assert 50 <= report.parsed < len(smiles) / 2


def test_duplicates_are_found_across_files_and_spellings(tmp_path: Path) -> None:
    one = write_smiles(tmp_path / "one.smi", ["OCC", "CCN", "c1ccccc1"])
    two = write_smiles(tmp_path / "two.smi", ["CCO", "C1=CC=CC=C1", "CCC"])
    report = render(make_plan(tmp_path / "chem", [one, two]), workers=1)
    assert report.rows == 4
    assert report.rejects == {"duplicate": 2}
    rejects = read_rejects(tmp_path / "chem")
    assert {(reject["row"], reject["detail"]) for reject in rejects} == {
        ("two.smi:1", "the same molecule as one.smi:1"), ("two.smi:2", "the same molecule as one.smi:3")}


def test_slices_find_duplicates_and_rejects_like_one_run(tmp_path: Path) -> None:
    one = write_smiles(tmp_path / "one.smi", [*MOLECULES, "C1CC", "OCC"])
    two = write_smiles(tmp_path / "two.smi", ["C(C)O", "Oc1ccccc1", "[Xx]", "CCCCCC", *MOLECULES[:5]])
    whole = render(make_plan(tmp_path / "whole", [one, two], rows_per_file=7), workers=1)
    for part in range(3):
        render(make_plan(tmp_path / "parts", [one, two], rows_per_file=7, part=part, parts=3), workers=1)
    assert whole.rejects == {"duplicate": 8, "syntax": 2}
    sets = [read_bytes(tmp_path / name) for name in ("whole", "parts")]
    rejects = [sorted(files.pop("rejects.jsonl").splitlines()) for files in sets]
    assert rejects[0] == rejects[1]
    assert sets[0] == sets[1]


@pytest.mark.parametrize("n", [0, 1, 4])
def test_files_without_rows_are_empty_and_their_duplicates_counted_once(tmp_path: Path, n: int) -> None:
    path = write_smiles(tmp_path / "a.smi", [*MOLECULES[:8], *MOLECULES[:8]])
    plan = make_plan(tmp_path / "chem", [path], n=n, rows_per_file=1)
    report = render(plan, workers=1)
    files = json.loads((plan.out / "manifest.json").read_text())["files"]
    assert (report.complete, len(read_set(plan.out))) == (True, n or 8)
    assert [file["rows"] for file in files].count(0) >= (0 if n else 8)
    assert len(load_dataset(str(plan.out), split="train", cache_dir=str(tmp_path / "cache"))) == (n or 8)
    rejects = [(reject["row"], reject["reason"]) for reject in read_rejects(plan.out)]
    assert len(rejects) == len(set(rejects)) <= 8


def test_shuffle_seed_changes_the_order_and_nothing_else(source: Path, rendered: Path, tmp_path: Path) -> None:
    render(make_plan(tmp_path / "chem", [source], rows_per_file=7, shuffle_seed=1), workers=1)
    sets = (read_set(rendered), read_set(tmp_path / "chem"))
    pictures = [{row["canonical_smiles"]: row["images"][0]["bytes"] for row in rows} for rows in sets]
    assert pictures[0] == pictures[1]
    assert list(pictures[0]) != list(pictures[1])


@pytest.mark.parametrize(("unique", "n"), [((3, 5), 4), ((3, 5), 8), ((0, 0), 9), ((7, 0, 2), 100), ((1,), 1), ((10, 9, 11), 30)])
def test_share_adds_up_and_cuts_or_repeats_evenly(unique: tuple[int, ...], n: int) -> None:
    rows = share_rows(unique, n)
    assert sum(rows) == (n if sum(unique) else 0)
    if n >= sum(unique):
        assert all(got >= have for got, have in zip(rows, unique, strict=True))
    else:
        assert all(got <= have for got, have in zip(rows, unique, strict=True))
