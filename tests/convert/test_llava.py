"""chat.json and images.zip, read inside the zip."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.conversation import Reject
from pipeline.convert import convert, llava
from tests.convert.making import png, read_back, sources, zip_of


def chat(k: int, image: str | None = None) -> dict[str, Any]:
    return {"id": f"GCC_train_{k}", "image": image or f"GCC_train_{k}.jpg",
            "conversations": [{"from": "human", "value": f"Describe it.\n<image> {k}"}, {"from": "gpt", "value": f"a dog {k}"}]}


def make(folder: Path, records: list[Any], members: dict[str, bytes]) -> Path:
    folder.mkdir()
    (folder / "chat.json").write_text(json.dumps(records))
    zip_of(folder / "images.zip", members)
    return folder


def test_conversations_and_their_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llava, "UNIT", 4)
    folder = make(tmp_path / "raw", [chat(k) for k in range(10)], {f"GCC_train_{k}.jpg": png("red", (k + 1, 2)) for k in range(10)})
    done = convert("llava", folder, tmp_path / "out", name="LLaVA-CC3M")
    assert (done.files, done.rows, done.rejects) == (3, 10, {})
    found = read_back(tmp_path / "out", "llava_cc3m")
    assert [item.images[0] for item in found] == [png("red", (k + 1, 2)) for k in range(10)]
    assert [item.messages[0].content for item in found] == [f"Describe it.\n<image> {k}" for k in range(10)]
    assert found[0].anchors == ((0, 13),)
    assert sources(tmp_path / "out")[9] == "chat.json#9"
    assert sorted(path.name for path in folder.iterdir()) == ["chat.json", "images.zip"]


def test_pictures_that_cannot_be_had_cost_their_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llava, "MAX_IMAGE", 100_000)
    folder = make(tmp_path / "raw", [chat(0), chat(1), chat(2), chat(3), chat(4, "../../etc/passwd"), "not a record"],
                  {"images/GCC_train_0.jpg": png("red"), "GCC_train_2.jpg": b"\0" * 200_000, "GCC_train_3.jpg": b""})  # fmt: skip
    done = convert("llava", folder, tmp_path / "out", name="LLaVA-CC3M")
    assert done.rows == 1
    assert done.rejects == {"image-missing": 3, "image-too-large": 1, "layout": 1}


def test_a_damaged_member_costs_its_row(tmp_path: Path) -> None:
    folder = make(tmp_path / "raw", [chat(0), chat(1)], {"GCC_train_0.jpg": png("red") * 50, "GCC_train_1.jpg": png("blue")})
    with zipfile.ZipFile(folder / "images.zip") as archive:
        at = archive.getinfo("GCC_train_0.jpg").header_offset + 60
    data = bytearray((folder / "images.zip").read_bytes())
    data[at : at + 20] = b"\xff" * 20
    (folder / "images.zip").write_bytes(data)
    done = convert("llava", folder, tmp_path / "out", name="LLaVA-CC3M")
    assert (done.rows, done.rejects) == (1, {"image-missing": 1})


def test_a_size_that_lies_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory says 10 bytes, the data unpack to a million."""
    zip_of(tmp_path / "images.zip", {"a.jpg": b"\0" * 1_000_000})
    data = (tmp_path / "images.zip").read_bytes()
    size = (1_000_000).to_bytes(4, "little")
    (tmp_path / "images.zip").write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(Reject):
        llava.read_member(tmp_path / "images.zip", "a.jpg")


def test_absent_and_broken_files_are_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "raw", [chat(0)], {})
    (folder / "images.zip").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match="no whole zip file"):
        convert("llava", folder, tmp_path / "out", name="x")
    (folder / "images.zip").unlink()
    with pytest.raises(ValueError, match="is absent; run pipeline download"):
        convert("llava", folder, tmp_path / "out", name="x")
