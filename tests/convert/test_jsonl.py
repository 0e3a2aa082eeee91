"""Local JSONL, JSON and parquet: images stay inside the data folder, runs are resumed, the same input gives the same bytes."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.convert import convert, jsonl
from pipeline.convert.rows import GROUP_ROWS
from tests.convert.making import png, read_back, sources


def talk(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}], **more}


def write(path: Path, *records: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.parquet"))}


def test_images_by_path(tmp_path: Path) -> None:
    data = tmp_path / "data"
    labels = write(data / "train.jsonl", talk("<image>\nRead.", image_path="img/red.png"), talk("Only text."),
                   talk("Two.", images=["img/red.png", "img/../img/blue.png"]))  # fmt: skip
    (data / "img").mkdir()
    (data / "img/red.png").write_bytes(png("red"))
    (data / "img/blue.png").write_bytes(png("blue"))
    done = convert("jsonl", labels, tmp_path / "out", name="mine")
    assert (done.rows, done.files, done.rejects) == (3, 1, {})
    one, two, three = read_back(tmp_path / "out", "jsonl")
    assert (one.images, one.messages[0].content) == ((png("red"),), "<image>\nRead.")
    assert (two.images, two.messages[0].content) == ((), "Only text.")
    assert (three.images, three.messages[0].content) == ((png("red"), png("blue")), "<image>\n<image>\nTwo.")
    assert sources(tmp_path / "out") == ["train.jsonl#0", "train.jsonl#1", "train.jsonl#2"]
    assert one.meta["origin"] == "train.jsonl#0"


def test_paths_that_leave_the_data_folder_are_refused(tmp_path: Path) -> None:
    data, outside = tmp_path / "data", tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(png("red"))
    data.mkdir()
    (data / "link.png").symlink_to(outside / "secret.png")
    (data / "folder").symlink_to(outside)
    (data / "good.png").write_bytes(png("blue"))
    (data / "inner.png").symlink_to(data / "good.png")
    (data / "circle").symlink_to(data / "circle")
    os.mkfifo(data / "pipe")
    (data / "empty.png").touch()
    bad = ["../outside/secret.png", str(outside / "secret.png"), "link.png", "folder/secret.png", "/etc/hostname"]
    absent = ["none.png", "circle", "pipe", "empty.png", "a\0b", ".", "http://example.org/a.png", "x" * 5000]
    good = ["good.png", "inner.png", "./folder/../good.png" if (data / "folder/../good.png").exists() else "good.png",
            str(data / "good.png")]  # fmt: skip
    write(data / "a.jsonl", *(talk("q", image_path=name) for name in [*bad, *absent, *good]))
    done = convert("jsonl", data / "a.jsonl", tmp_path / "out", name="mine")
    assert done.rejects == {"image-outside": len(bad), "image-missing": len(absent)}
    assert done.rows == len(good)
    assert all(item.images == (png("blue"),) for item in read_back(tmp_path / "out", "jsonl"))


def test_too_large_an_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MAX_IMAGE", 100)
    (tmp_path / "a.png").write_bytes(b"x" * 101)
    write(tmp_path / "a.jsonl", talk("q", image_path="a.png"))
    assert convert("jsonl", tmp_path / "a.jsonl", tmp_path / "out", name="mine").rejects == {"image-too-large": 1}


def test_a_folder_of_files_of_every_kind(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write(data / "b/two.jsonl", talk("two", image_path="x.png"))
    (data / "b/x.png").write_bytes(png("red"))
    (data / "a.json").write_text(json.dumps([talk("one"), talk("one and a half")]))
    table = pa.table({"messages": [talk("three")["messages"]] * 2, "image_path": ["b/x.png", None], "n": [1, 2]})
    pq.write_table(table, data / "c.parquet")
    embedded = pa.table({"texts": [[{"user": "four", "assistant": "a"}]], "images": [[{"bytes": png("blue"), "path": "p/q.png"}]]})
    pq.write_table(embedded, data / "d.parquet")
    write(data / ".hidden/e.jsonl", talk("never"))
    done = convert("jsonl", data, tmp_path / "out", name="mine")
    assert done.rejects == {}
    found = [(item.messages[0].content, len(item.images)) for item in read_back(tmp_path / "out", "jsonl")]
    assert found == [("one", 0), ("one and a half", 0), ("<image>\ntwo", 1), ("<image>\nthree", 1), ("three", 0),
                     ("<image>\nfour", 1)]  # fmt: skip


def test_bad_records_are_counted_and_each_has_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(talk("fine \ud800")) + "\n{\n" + json.dumps([{"role": "user", "content": "q"}] * 2) + "\n")
    done = convert("jsonl", path, tmp_path / "out", name="mine")
    assert (done.rows, done.rejects) == (1, {"json": 1, "roles": 1})
    assert done.examples["json"].startswith("a.jsonl#1: not JSON")
    assert read_back(tmp_path / "out", "jsonl")[0].messages[0].content == "fine \ufffd"
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejects-00000-of-00001.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["json", "roles"]
    assert [line["detail"].split(":")[0] for line in lines] == ["a.jsonl#1", "a.jsonl#2"]
    path.write_text(json.dumps(talk("fine")) + "\n")
    assert convert("jsonl", path, tmp_path / "out", name="mine").rejects == {}
    assert not list((tmp_path / "out").glob("rejects*")), "they told of the earlier input"


def test_other_libraries_open_it(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png("red"))
    write(tmp_path / "a.jsonl", talk("q", image_path="x.png"), talk("r"))
    convert("jsonl", tmp_path / "a.jsonl", tmp_path / "out", name="mine")
    data = datasets.load_dataset("parquet", data_files=str(tmp_path / "out/train-*.parquet"), split="train",
                                 cache_dir=str(tmp_path / "cache"))  # fmt: skip
    assert data[0]["images"][0].size == (8, 8)
    assert data[1]["texts"] == [{"user": "r", "assistant": "a"}]


def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch | None = None) -> Path:
    path = tmp_path / "data/a.jsonl"
    write(path, *(talk(f"q{k}", image_path=f"{k % 3}.png") for k in range(7 * GROUP_ROWS)))
    for k in range(3):
        (path.parent / f"{k}.png").write_bytes(png("red", (k + 1, 4)))
    return path


def test_the_same_bytes_for_any_number_of_workers_and_nothing_done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = many(tmp_path)
    monkeypatch.setattr(jsonl, "UNIT", 150)
    done = convert("jsonl", path, tmp_path / "one", name="mine")
    assert (done.files, done.rows) == (5, 700)
    assert pq.read_metadata(tmp_path / "one/train-00000-of-00005.parquet").num_row_groups == 2
    assert convert("jsonl", path, tmp_path / "two", name="mine", workers=2) == done
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "one").iterdir()}
    assert convert("jsonl", path, tmp_path / "one", name="mine") == done
    assert before == {file.name: file.stat().st_mtime_ns for file in (tmp_path / "one").iterdir()}


def test_a_changed_input_is_converted_anew_and_strangers_are_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", talk("one"))
    convert("jsonl", path, tmp_path / "out", name="mine")
    write(path, talk("one"), talk("two"))
    assert convert("jsonl", path, tmp_path / "out", name="mine").rows == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other/train-00000-of-00001.parquet").write_bytes(b"mine")
    with pytest.raises(ValueError, match="which no conversion made"):
        convert("jsonl", path, tmp_path / "other", name="mine")
    assert (tmp_path / "other/train-00000-of-00001.parquet").read_bytes() == b"mine"


def test_a_killed_conversion_goes_on(tmp_path: Path) -> None:
    """Kills the process several times in mid-work; what is left is whole files, and the end is as undisturbed."""
    path = many(tmp_path)
    code = ("import sys; from pathlib import Path; from pipeline.convert import convert, jsonl; jsonl.UNIT = 50;"
            "real = jsonl.read_image\n"
            "def slow(*a):\n    import time; time.sleep(0.003); return real(*a)\n"
            "jsonl.read_image = slow if sys.argv[3] else real\n"
            "convert('jsonl', Path(sys.argv[1]), Path(sys.argv[2]), name='mine')")  # fmt: skip
    root = Path(__file__).resolve().parents[2]

    def start(out: str, slow: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", code, str(path), str(tmp_path / out), slow], cwd=root)

    assert start("calm", "").wait() == 0
    for _ in range(3):
        process = start("killed", "slow")
        seen = len(digest(tmp_path / "killed"))
        deadline = time.monotonic() + 30
        while len(digest(tmp_path / "killed")) < seen + 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert not (tmp_path / "killed/converted.json").exists()
        for file in (tmp_path / "killed").glob("train-*.parquet"):
            assert pq.read_metadata(file).num_rows == 50
    assert start("killed", "").wait() == 0
    assert digest(tmp_path / "killed") == digest(tmp_path / "calm")
    assert (tmp_path / "killed/converted.json").exists()


def test_nothing_to_convert_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, says in ((tmp_path / "absent.jsonl", "does not exist"), (tmp_path / "empty", "holds no"),
                         (write(tmp_path / "none.jsonl"), "no record")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            convert("jsonl", source, tmp_path / "out", name="mine")


def test_identity_conversations(shared: Path, tmp_path: Path) -> None:
    done = convert("jsonl", shared / "data/local/identity_conversations.jsonl", tmp_path / "out", name="identity")
    assert (done.rows, done.rejects) == (994, {})
    found = read_back(tmp_path / "out", "custom_json")
    assert len(found) == 994
    assert all(item.answers >= 1 and not item.images for item in found)
