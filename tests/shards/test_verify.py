"""The verifier finds damage of every kind, in sizes, tables, members, masks and indexes, and names the file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards import table, verify
from shards.sample import encode
from shards.writer import PackedSample
from tests.shards.making import directory, image_meta, image_sample, law, meta, packed, picture, text_sample


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory(tmp_path / "d", [[[text_sample(3, 2), image_sample()], [text_sample(4, 4)]], [[text_sample(7, 2)]]])
    return tmp_path / "d"


def problems(folder: Path, *, quick: bool = False) -> list[str]:
    """All problems, as `pipeline verify` collects them but in this process."""
    body = verify.load_manifest(folder)
    found = [*verify.check_files(folder, body), *verify.check_tables(folder, body)]
    if not quick:
        for entry in verify.listed_files(body):
            found += verify.check_sha256(folder, entry)
        for entry in body["shards"]:
            found += verify.check_shard(folder, body, entry)
    return [str(problem) for problem in found]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_whole_directory_has_no_problem(folder: Path) -> None:
    assert problems(folder) == []


DAMAGE: dict[str, tuple[Callable[[Path], object], bool, str]] = {
    # what -> (how, whether --quick sees it, the file that is named)
    "missing shard": (lambda d: (d / "train-000001.tar").unlink(), True, "train-000001.tar: missing"),
    "missing index": (lambda d: (d / "train-000001.idx").unlink(), True, "train-000001.idx: missing"),
    "cut shard": (lambda d: os.truncate(d / "train-000000.tar", 5120), True, "train-000000.tar: 5120 bytes"),
    "cut to nothing": (lambda d: os.truncate(d / "train-000000.tar", 0), True, "train-000000.tar: 0 bytes"),
    "cut row table": (lambda d: os.truncate(d / "rows.npy", 150), True, "rows.npy"),
    "foreign shard": (lambda d: shutil.copy(d / "train-000000.tar", d / "train-000007.tar"), True, "train-000007.tar: a shard"),
    "shards swapped": (lambda d: swap(d / "train-000000.tar", d / "train-000001.tar"), False, "train-000000.tar"),
    "header bit": (lambda d: flip(d / "train-000000.tar", 3), False, "train-000000.tar: sha256"),
    "payload bit": (lambda d: flip(d / "train-000000.tar", 530), False, "train-000000.tar: sha256"),
    "trailing zero": (lambda d: flip(d / "train-000000.tar", -1), False, "train-000000.tar"),
    "stale index": (lambda d: flip(d / "train-000000.tar.idx", 1), False, "train-000000.tar.idx: is not the index"),
    "stale dali index": (lambda d: flip(d / "train-000000.idx", 9), False, "train-000000.idx: is not the index"),
    "row table bit": (lambda d: flip(d / "rows.npy", 136), True, "rows.npy"),
}


def swap(a: Path, b: Path) -> None:
    one, two = a.read_bytes(), b.read_bytes()
    a.write_bytes(two)
    b.write_bytes(one)


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_and_named(folder: Path, what: str) -> None:
    how, seen_quickly, message = DAMAGE[what]
    how(folder)
    assert any(line.startswith(message) for line in problems(folder)), problems(folder)
    assert bool(problems(folder, quick=True)) >= seen_quickly


@pytest.mark.parametrize("at", range(0, 10240, 512))
def test_a_bit_flipped_anywhere_is_found(folder: Path, at: int) -> None:
    flip(folder / "train-000000.tar", at + at // 512)
    assert any("train-000000.tar" in line for line in problems(folder))


def rebuilt(tmp_path: Path, sample: PackedSample) -> list[str]:
    """Problems of a directory whose checksums are right but whose one sample is not."""
    directory(tmp_path / "bad", [[[sample]]])
    return problems(tmp_path / "bad")


def sample_of(body: dict[str, Any], *, placeholders: int = 0, members: list[tuple[str, bytes]] | None = None) -> PackedSample:
    ids, mask = law(3, 2, placeholders)
    fields = encode(body, ids, mask, members or [])
    try:
        return packed(fields, ids, body)
    except (ValueError, KeyError, TypeError):
        return PackedSample(fields=fields, tokens=len(ids), images=len(body["images"]), patches=0)


def with_image(**changes: Any) -> dict[str, Any]:
    return meta("<image>\nq", "a", [{**image_meta("micro", 30, 20), **changes}])


@pytest.mark.parametrize(("changes", "message"), [
    ({"placeholders": 20}, "20 placeholders"), ({"width": 3000}, "larger than mode"), ({"offset": 1}, "no marker"),
    ({"message": 9}, ""), ({"message": "x"}, ""), ({"mode": "huge"}, "unknown image mode"), ({"mode": None}, ""),
    ({"tiles": [1, 2]}, ""), ({"tiles": None}, ""), ({"offset": None}, "")])
def test_a_wrong_sample_under_right_checksums_is_a_problem_not_a_crash(tmp_path: Path, changes: dict[str, Any], message: str
                                                                       ) -> None:
    found = rebuilt(tmp_path, sample_of(with_image(**changes), placeholders=21, members=[("0.png", picture(30, 20))]))
    assert found and all("train-000000" in line or "rows.npy" in line for line in found)
    assert any(message in line for line in found), found


def test_json_without_its_parts_is_a_problem(tmp_path: Path) -> None:
    for missing in ("messages", "images"):
        body = with_image()
        broken = {key: value for key, value in body.items() if key != missing}
        ids, mask = law(3, 2, 21)
        sample = PackedSample(fields=encode(broken, ids, mask, [("0.png", b"x")]), tokens=len(ids), images=1, patches=256)
        assert rebuilt(tmp_path / missing, sample)


def test_tables_that_disagree_with_the_tar(folder: Path) -> None:
    rows = np.array(table.load(folder / "rows.npy"))
    rows["patches"][0] += 1
    (folder / "rows.npy").write_bytes(table.encode(rows))
    assert any("patches" in line for line in problems(folder, quick=True))
    rows = rows[:-1]
    (folder / "rows.npy").write_bytes(table.encode(rows))
    assert any("train-000001.tar" in line for line in problems(folder, quick=True))
    rows["shard"] = 5
    (folder / "rows.npy").write_bytes(table.encode(rows))
    assert any("shard 5, which the manifest does not list" in line for line in problems(folder, quick=True))


def test_a_manifest_without_its_parts_is_named(folder: Path) -> None:
    body = json.loads((folder / "manifest.json").read_text())
    del body["splits"]
    (folder / "manifest.json").write_text(json.dumps(body))
    with pytest.raises(ValueError, match="lacks splits"):
        verify.load_manifest(folder)
