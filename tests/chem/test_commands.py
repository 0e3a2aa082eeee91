"""The commands as users type them: `render-chem`, `gallery`."""

import fcntl
import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipeline.cli import cli
from tests.chem.helpers import MOLECULES, read_set, write_smiles


def call(*words: str) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def summary(result: Result) -> dict[str, object]:
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(data, dict)
    return data


@pytest.fixture(scope="module")
def sample_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw") / "rendered" / "chem"
    done = summary(call("render-chem", "--smiles", "sample", "--n", "40", "--mode", "micro", "--workers", "1", "--out", str(out)))
    assert (done["rows"], done["complete"], done["files_reused"]) == (40, True, 0)
    return out


def test_shipped_sample_renders_at_the_modes_size(sample_set: Path) -> None:
    for row in read_set(sample_set):
        with Image.open(BytesIO(row["images"][0]["bytes"])) as image:
            assert max(image.size) <= 256


def test_second_call_says_that_nothing_is_to_do(sample_set: Path) -> None:
    result = call("render-chem", "--smiles", "sample", "--n", "40", "--mode", "micro", "--out", str(sample_set))
    assert summary(result)["files_reused"] == 1
    assert "nothing to do" in result.stderr


def test_other_options_on_the_same_folder_are_an_error_and_overwrite_the_fix(sample_set: Path, tmp_path: Path) -> None:
    words = ["render-chem", "--smiles", str(write_smiles(tmp_path / "a.smi", MOLECULES)), "--size", "128", "--workers", "1",
             "--style", "plain", "--out", str(tmp_path / "chem")]
    assert summary(call(*words))["rows"] == len(MOLECULES)
    result = call(*words, "--seed", "5")
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr
    assert summary(call(*words, "--seed", "5", "--overwrite"))["files_reused"] == 0
    again = summary(call(*words, "--seed", "5", "--overwrite"))  # it is no other set now
    assert again["files_reused"] == again["files"]


def test_a_set_that_is_being_made_is_not_overwritten(tmp_path: Path) -> None:
    path = write_smiles(tmp_path / "a.smi", MOLECULES)
    words = ("render-chem", "--smiles", str(path), "--size", "64", "--workers", "1", "--out", str(tmp_path / "chem"))
    summary(call(*words))
    with open(tmp_path / "chem" / ".work" / "lock-3", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = call(*words, "--seed", "5", "--overwrite")
    assert (result.exit_code, "another render-chem is at work" in result.stderr) == (1, True)
    assert (tmp_path / "chem" / "manifest.json").exists()


@pytest.mark.parametrize(("words", "code", "said"), [
    (["--smiles", "nowhere.smi"], 1, "--smiles sample"),
    (["--smiles", "/"], 1, "a folder"),
    (["--smiles", "/dev/null"], 1, "a pipe or a device"),
    (["--smiles", "sample", "--style", "dverse"], 1, "plain, diverse, patent"),
    (["--smiles", "sample", "--slice", "3/3"], 2, "0 <= I < N"),
    (["--smiles", "sample", "--size", "256", "--mode", "micro"], 2, "leave one out"),
    (["--smiles", "sample", "--elements", "carbon"], 1, "--elements carbon"),
    (["--smiles", "sample", "--elements", "C,Xx"], 1, "'Xx' is no element"),
    (["--n", "0"], 2, "--n"),
])
def test_wrong_usage_names_the_value_and_the_fix(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    result = call("render-chem", *words, "--out", str(tmp_path / "chem"))
    assert result.exit_code == code, result.output
    assert said in result.stderr


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = write_smiles(tmp_path / os.fsdecode(b"a\xff.smi"), MOLECULES[:2])
    words = ("render-chem", "--smiles", str(path), "--size", "64", "--workers", "1", "--out")
    summary(call(*words, str(tmp_path / "set")))
    assert {row["row"].split(":")[0] for row in read_set(tmp_path / "set")} == {"a\ufffd.smi"}
    result = call(*words, str(tmp_path / os.fsdecode(b"set\xff")))
    assert (result.exit_code, "no UTF-8" in result.stderr) == (1, True)


def test_all_lines_rejected_is_a_failure(tmp_path: Path) -> None:
    path = write_smiles(tmp_path / "a.smi", ["[U]", "[Pu]"])
    result = call("render-chem", "--smiles", str(path), "--elements", "organic", "--workers", "1", "--out", str(tmp_path / "chem"))
    assert result.exit_code == 1
    assert "rejected" in result.stderr


def test_all_molecules_rejected_when_drawn_is_a_failure(tmp_path: Path) -> None:
    path, out = write_smiles(tmp_path / "a.smi", ["[1*]CCO"]), tmp_path / "chem"
    result = call("render-chem", "--smiles", str(path), "--target", "selfies", "--workers", "1", "--out", str(out))
    assert result.exit_code == 1
    assert "every molecule was rejected" in result.stderr
    assert "SELFIES cannot say" in (out / "rejects.jsonl").read_text("utf-8")


@pytest.mark.parametrize("name", ["render-chem", "gallery"])
def test_help_has_examples_and_defaults(name: str) -> None:
    text = call(name, "--help").output
    assert "Examples:" in text
    assert "default" in text


def test_list_knobs_prints_every_knob() -> None:
    from pipeline.chem.styles import KNOBS

    text = call("render-chem", "--list-knobs").output
    assert all(key in text for key in KNOBS)


@pytest.mark.parametrize(("module", "absent"), [
    ("pipeline.chem.worker, pipeline.chem.depict", "pyarrow"), ("pipeline.chem.render, pipeline.cli.render_chem", "rdkit")])
def test_workers_load_no_pyarrow_and_the_parent_no_rdkit(module: str, absent: str) -> None:
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_gallery_writes_sheet_and_page(sample_set: Path, tmp_path: Path) -> None:
    done = summary(call("gallery", str(sample_set), "--rows", "10", "--cell", "96", "--out", str(tmp_path / "g.png")))
    assert done["rows"] == 10
    with Image.open(tmp_path / "g.png") as sheet:
        assert sheet.width == 6 * 96 + 1
    page = (tmp_path / "g.html").read_text()
    assert page.count("<article>") == 10
    assert "<script" not in page


def test_gallery_finds_a_set_by_name_and_names_the_places_otherwise(sample_set: Path, tmp_path: Path) -> None:
    raw = str(sample_set.parents[1])
    assert summary(call("gallery", "chem", "--raw", raw, "--rows", "3", "--out", str(tmp_path / "new" / "g.png")))["rows"] == 3
    result = call("gallery", "chemm", "--raw", raw)
    assert result.exit_code == 1
    assert "render-chem" in result.stderr


def test_gallery_names_what_it_cannot_show(sample_set: Path, tmp_path: Path) -> None:
    file = next(sample_set.glob("*.parquet"))
    assert "is a file; give the folder" in call("gallery", str(file)).stderr
    (tmp_path / "cut.parquet").write_bytes(file.read_bytes()[:2000])
    assert "cut.parquet: no readable parquet file" in call("gallery", str(tmp_path)).stderr
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "cut.parquet")
    result = call("gallery", str(tmp_path), "--out", str(tmp_path / "g.png"))
    assert (result.exit_code, "no column `images`" in result.stderr) == (1, True)


def test_gallery_survives_hostile_rows(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / "rows.parquet").write_bytes((shared / "data" / "hostile" / "rows.parquet").read_bytes())
    summary(call("gallery", str(folder), "--rows", "60", "--cell", "64", "--out", str(tmp_path / "g.png")))
