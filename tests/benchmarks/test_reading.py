"""The reading task's pictures and molecules, and its report, on small numbers."""

import io
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from rdkit import Chem

from benchmarks import reading_molecules, reading_report, reading_text


def test_strings_differ_and_their_pictures_are_the_same_for_one_seed(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        assert reading_text.write(tmp_path / folder / "strings", 30, seed=3) == 30
    one, two = (tmp_path / folder / "strings" / "train-00000-of-00001.parquet" for folder in ("a", "b"))
    assert one.read_bytes() == two.read_bytes()
    rows = pq.read_table(one).to_pylist()
    answers = [row["texts"][0]["assistant"] for row in rows]
    assert len(set(answers)) == 30 and all(2 <= len(answer) <= 4 for answer in answers)
    for row in rows:
        picture = Image.open(io.BytesIO(row["images"][0]["bytes"]))
        assert picture.size == (reading_text.SIDE, reading_text.SIDE)
        dark = picture.point([255 if value < 130 else 0 for value in range(256)]).getbbox()  # the ink fills the canvas
        assert dark is not None and dark[3] - dark[1] > 0.7 * reading_text.SIDE


def test_grown_molecules_are_canonical_different_and_none_is_real(tmp_path: Path) -> None:
    grown, real = tmp_path / "grown.smi", tmp_path / "real.smi"
    reading_molecules.write(grown, real, 400)
    first = grown.read_bytes()
    reading_molecules.write(grown, real, 400)
    assert grown.read_bytes() == first
    listed = [line.split()[0] for line in grown.read_text().splitlines()]
    apart = [line.split()[0] for line in real.read_text().splitlines()]
    assert len(listed) == len(set(listed)) == 400 and len(apart) > 50
    assert not set(listed) & set(apart)
    for smiles in listed:
        molecule = Chem.MolFromSmiles(smiles)
        assert Chem.MolToSmiles(molecule) == smiles and 3 <= molecule.GetNumHeavyAtoms() <= 7


def test_growing_more_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"only \d+ different molecules of 1 to 1 heavy atoms"):
        reading_molecules.molecules(50, 1, 1, random.Random(0))


def test_the_report_keeps_what_was_written_above_it(tmp_path: Path) -> None:
    folders = {}
    for test in ("strings", "molecules", "real"):
        folder = tmp_path / test
        (folder / "pictures").mkdir(parents=True)
        Image.new("RGB", (128, 128), "white").save(folder / "pictures" / "0000.png")
        (folder / "report.json").write_text(json.dumps({"examples": [{"reference": "AB", "prediction": "AC"}]}))
        folders[test] = str(folder)
    scores = {"answers": 1, "exact_match": 0.5, "blind_exact_match": 0.0, "edit_distance": 0.5, "blind_edit_distance": 1.0}
    entries = [
        {"name": "strings-0", "seed": 0, "init": None, "scores": {"strings": scores}, "reports": folders, "looked_at": 900,
         "minutes": 3.0},
        {"name": "carried", "seed": 0, "init": "strings-0", "scores": {"molecules": scores, "real": scores}, "reports": folders,
         "looked_at": None, "minutes": 3.0},
        {"name": "fresh", "seed": 0, "init": None, "scores": {}, "reports": {}, "looked_at": None, "blind_at": 160, "minutes": 1.0}]
    report = tmp_path / "reading.md"
    report.write_text("# Mine\n\nwords\n\n" + reading_report.MARK + "\nold\n")
    reading_report.write(report, entries)
    text = report.read_text()
    assert text.startswith("# Mine\n\nwords\n") and "old" not in text
    assert "| strings-0 | 0 | scratch | strings | 1 | 50.0% | 0.0% |" in text and "| never |" in text
    assert "stopped by the trainer: blind at step 160" in text
    assert Image.open(tmp_path / "reading.png").size[0] > 8 * 128
