"""Files of SMILES as users have them: separators, orders, headers, compression, damage."""

import bz2
import gzip
import lzma
import shutil
import zipfile
from pathlib import Path

import pytest
import zstandard

from pipeline.chem.columns import find_columns, read_entries
from pipeline.chem.lines import MAX_LINE, BrokenFile, count_lines, open_lines

PAIRS = [("CCO", "ethanol"), ("c1ccccc1", "benzene"), ("CC(=O)Oc1ccccc1C(=O)O", "aspirin"), ("C[C@H](N)C(=O)O", "ala")]


def read(path: Path, **names: str) -> list[tuple[str, str]]:
    return [(entry.smiles, entry.identifier) for entry in read_entries(path, find_columns(path, **names))]


@pytest.mark.parametrize(("name", "text"), [
    ("a.smi", "".join(f"{s} {n}\n" for s, n in PAIRS)),
    ("b.smi", "".join(f"{n} {s}\n" for s, n in PAIRS)),
    ("cid.txt", "".join(f"{n}\t{s}\n" for s, n in PAIRS)),
    ("win.smi", "".join(f"{s}\t{n}\r\n" for s, n in PAIRS)),
    ("noend.smi", "\n".join(f"{s} {n}" for s, n in PAIRS)),
    ("h.csv", "id,smiles\n" + "".join(f"{n},{s}\n" for s, n in PAIRS)),
    ("quoted.csv", 'name,SMILES\n' + "".join(f'"{n}","{s}"\n' for s, n in PAIRS)),
    ("h.tsv", "SMILES\tid\n" + "".join(f"{s}\t{n}\n" for s, n in PAIRS)),
    ("zinc.txt", "smiles zinc_id\n" + "".join(f"{s} {n}\n" for s, n in PAIRS)),
    ("semi.csv", "id;smiles\n" + "".join(f"{n};{s}\n" for s, n in PAIRS)),
    ("cx.cxsmiles", "smiles\tid\n" + "".join(f"{s} |o1:2,r|\t{n}\n" for s, n in PAIRS)),
    ("bom.smi", "\ufeff" + "".join(f"{s} {n}\n" for s, n in PAIRS)),
    ("bom.csv", "\ufeffid,smiles\n" + "".join(f"{n},{s}\n" for s, n in PAIRS)),
])
def test_columns_are_found(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    assert read(path) == PAIRS


def test_chembl_layout(tmp_path: Path) -> None:
    path = tmp_path / "chemreps.txt"
    path.write_text("chembl_id\tcanonical_smiles\tstandard_inchi\tstandard_inchi_key\n" + "".join(
        f"CHEMBL{i}\t{s}\tInChI=1S/x\tABCDEFGHIJKLMN-OPQRSTUVWX-Y\n" for i, (s, _) in enumerate(PAIRS)))
    assert read(path) == [(s, f"CHEMBL{i}") for i, (s, _) in enumerate(PAIRS)]


def test_named_columns_overrule(tmp_path: Path) -> None:
    path = tmp_path / "two.csv"
    path.write_text("a,b,c\nCCO,CCN,x\nCCC,CCCl,y\n")
    assert read(path, smiles_column="b", id_column="3") == [("CCN", "x"), ("CCCl", "y")]
    with pytest.raises(ValueError, match="no column `d`"):
        find_columns(path, smiles_column="d")
    with pytest.raises(ValueError, match="no column `e`"):
        find_columns(path, id_column="e")


@pytest.mark.parametrize("pairs", [
    [("CC1CCC(C)C1", "1,3-dimethylcyclopentane"), ("CCO", "ethanol"), ("ClC(Cl)C", "1,1-dichloroethane")],
    [("CCO", "a;b"), ("CCN", "amine"), ("CCC", "c;d")],
    [("CCO", "voil\u00e0"), ("CCN", "\u03b2-amine"), ("CCC", "\u9178")],
])
def test_names_keep_their_commas_and_letters(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    path = tmp_path / "a.smi"
    path.write_text("".join(f"{s} {n}\n" for s, n in pairs), encoding="utf-8")
    assert read(path) == pairs
    path.write_text("".join(f"{n} {s}\n" for s, n in pairs), encoding="utf-8")
    assert read(path) == pairs


def test_commas_of_an_extension_are_no_separators(tmp_path: Path) -> None:
    path = tmp_path / "cx.smi"
    path.write_text("C[C@H](O)[C@H](C)O |&1:1,3| first\n*CC |$_AP1;;$| second\nCCC third\n")
    assert read(path) == [("C[C@H](O)[C@H](C)O", "first"), ("*CC", "second"), ("CCC", "third")]


def test_no_smiles_at_all_names_the_option(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("the quick brown fox\njumps over the dog\n")
    with pytest.raises(ValueError, match="--smiles-column"):
        find_columns(path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zstandard.ZstdCompressor().compress])
def test_compressed_by_content_not_by_name(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    text = "".join(f"{s} {n}\n" for s, n in PAIRS).encode()
    path = tmp_path / "plain.smi"
    path.write_bytes(pack(text) + pack(text))  # two members, as bgzip and `cat a.gz b.gz` write them
    assert read(path) == PAIRS * 2
    assert count_lines(path) == 2 * len(PAIRS)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zstandard.ZstdCompressor().compress])
def test_cut_file_is_an_error_that_names_it(tmp_path: Path, pack: object) -> None:
    assert callable(pack)
    data = pack(bytes(range(256)) * 4000)
    path = tmp_path / "cut.smi.gz"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BrokenFile, match=r"cut\.smi\.gz"):
        count_lines(path)


def test_endless_line_is_cut_not_held(tmp_path: Path) -> None:
    path = tmp_path / "long.smi"
    path.write_bytes(b"CCO a\n" + b"C" * (5 << 20) + b"\nCCN b\n")
    lines = list(open_lines(path))
    assert [len(line) for line in lines] == [5, MAX_LINE, 5]


def test_garbage_bytes_are_lines_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "garbage.smi"
    path.write_bytes(b"CCO a\nCCN b\nCCC c\n\xff\xfe\x00\x80 d\nCCCl e\n")
    assert [smiles for smiles, _ in read(path)] == ["CCO", "CCN", "CCC", "\xff\xfe\x00\x80", "CCCl"]


@pytest.mark.parametrize(("data", "said"), [
    ("CCO a\nCCN b\n".encode("utf-16"), "iconv"), (b"CCO a\rCCN b\rCCC c\r", "tr "), (b"\n\n  \n", "no lines"), (b"", "no lines"),
])
def test_files_that_cannot_be_read_name_the_fix(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "odd.smi"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"odd\.smi.*{said}"):
        find_columns(path)


def test_archives_are_named_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.smi").write_text("CCO a\nCCN b\nCCC c\n")
    shutil.make_archive(str(tmp_path / "tar"), "gztar", tmp_path, "a.smi")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.write(tmp_path / "a.smi")
    (tmp_path / "a.xz").write_bytes(lzma.compress(b"CCO a\n"))
    for name in ("tar.tar.gz", "a.zip", "a.xz"):
        with pytest.raises(ValueError, match=f"{name}: an archive"):
            find_columns(tmp_path / name)


@pytest.mark.parametrize(("first", "header"), [
    ("Canonical SMILES (RDKit)", True), ("structure", True), ("#smiles", True), ("Kanonische Form", True),
    ("C(C", False), ("[NaH", False), ("C" * 3000, False), ("C1CC=", False),
])
def test_a_first_line_that_is_broken_smiles_is_a_line_and_no_header(tmp_path: Path, first: str, header: bool) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(first + "\t1\n" + "".join(f"{smiles}\t{name}\n" for smiles, name in PAIRS))
    assert find_columns(path).header == header
    assert len(list(read_entries(path, find_columns(path)))) == len(PAIRS) + (not header)
