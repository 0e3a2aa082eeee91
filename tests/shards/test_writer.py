"""A written shard: the same bytes every time, complete or absent, readable by tarfile and webdataset, indexed as tools do."""

import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset

from shards import table, tar
from shards.writer import HashingFile, PackedSample, write_file, write_shard
from tests.shards.making import image_sample, text_sample


def rows() -> list[list[PackedSample]]:
    return [[text_sample(3, 2), image_sample(300, 200)], [image_sample(900, 700, "gundam"), text_sample(5, 5), text_sample(1, 1)],
            [text_sample(word="snow \u2603")]]


def test_same_samples_same_bytes(tmp_path: Path) -> None:
    entries = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        entries.append(write_shard(tmp_path / name, "train", 3, rows()))
    assert entries[0][0] == entries[1][0]
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "train-000003.idx", "train-000003.tar", "train-000003.tar.idx"]


def test_entry_and_rows_tell_what_is_there(tmp_path: Path) -> None:
    entry, found = write_shard(tmp_path, "val", 0, rows())
    data = (tmp_path / "val-000000.tar").read_bytes()
    assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (entry.samples, entry.rows, entry.images) == (6, 3, 2)
    assert entry.tokens == int(found["tokens"].sum())
    assert found["samples"].tolist() == [2, 3, 1] and found["images"].tolist() == [1, 1, 0]
    assert found["patches"].tolist() == [256, 4096 + 6 * 1600, 0]
    assert found["offset"][0] == 0 and np.array_equal(found["offset"][1:], (found["offset"] + found["length"])[:-1])
    for index in entry.indexes:
        raw = (tmp_path / index.name).read_bytes()
        assert (index.bytes, index.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())


def test_tarfile_and_webdataset_read_it(tmp_path: Path) -> None:
    write_shard(tmp_path, "train", 0, rows())
    with tarfile.open(tmp_path / "train-000000.tar") as archive:
        members = archive.getmembers()
        assert all((m.mtime, m.uid, m.gid, m.uname, m.mode, m.isreg()) == (0, 0, 0, "", 0o644, True) for m in members)
    samples = list(webdataset.WebDataset(str(tmp_path / "train-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"train-000000-{at:06d}" for at in range(6)]
    assert sum("0.png" in sample for sample in samples) == 2 and sum("0.tiles.png" in sample for sample in samples) == 1
    assert np.load(io.BytesIO(samples[0]["ids.npy"])).dtype == np.int32
    assert json.loads(samples[5]["json"])["messages"][0]["content"] == "snow \u2603"


def test_an_empty_shard_is_a_valid_archive(tmp_path: Path) -> None:
    entry, found = write_shard(tmp_path, "train", 0, [])
    assert len(found) == 0 and entry.bytes == tar.RECORD
    with tarfile.open(tmp_path / entry.name) as archive:
        assert archive.getmembers() == []


def test_only_one_sample_is_held_at_a_time(tmp_path: Path) -> None:
    alive = 0

    def stream() -> Iterator[Iterator[PackedSample]]:
        nonlocal alive

        def row() -> Iterator[PackedSample]:
            nonlocal alive
            alive += 1
            yield text_sample()
        for _ in range(3):
            yield row()
            assert alive  # a row was consumed before the next one is asked for
            alive = 0

    assert write_shard(tmp_path, "train", 0, stream())[0].rows == 3


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[list[PackedSample]]:
        yield [text_sample()]
        raise RuntimeError("a source failed")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path, "train", 0, failing())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error may come only when buffers are written out, that is at the very end."""
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_file(tmp_path / "rows.npy", b"x" * 100)
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    write_file(tmp_path / "a", b"old")
    with HashingFile(tmp_path / "a") as file:
        file.write(b"new")
        assert (tmp_path / "a").read_bytes() == b"old"
    assert (tmp_path / "a").read_bytes() == b"new"
    assert file.entry().sha256 == hashlib.sha256(b"new").hexdigest()


def test_energons_own_writer_gives_the_same_index(tmp_path: Path) -> None:
    pytest.importorskip("megatron.energon")
    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors.webdataset.itar import TarIndexWriter

    write_shard(tmp_path, "train", 0, rows())
    path = tmp_path / "train-000000.tar"
    copy = tmp_path / "copy.tar"
    shutil.copy(path, copy)
    last, end = "", 0
    with tarfile.open(path) as archive, TarIndexWriter(EPath(str(copy))) as writer:
        for member in archive:
            key = member.name.partition(".")[0]
            if key != last:
                writer.append(member.offset)
                last = key
            end = member.offset_data + tar.padded(member.size)
        writer.append(end)
    assert (tmp_path / "copy.tar.idx").read_bytes() == (tmp_path / "train-000000.tar.idx").read_bytes()


def test_energon_index_is_offsets(tmp_path: Path) -> None:
    write_shard(tmp_path, "train", 0, rows())
    data = (tmp_path / "train-000000.tar.idx").read_bytes()
    offsets = struct.unpack(f"<{len(data) // 8}Q", data)
    with tarfile.open(tmp_path / "train-000000.tar") as archive:
        starts = {m.name.partition(".")[0]: m.offset for m in reversed(archive.getmembers())}
    assert list(offsets[:-1]) == sorted(starts.values()) and len(offsets) == 7


@pytest.mark.skipif(shutil.which("tar") is None, reason="DALI's tool lists with GNU tar")
def test_dalis_own_tool_gives_the_same_index(tmp_path: Path) -> None:
    if importlib.util.find_spec("wds2idx") is None:
        pytest.skip("nvidia-dali is not installed")
    from wds2idx import IndexCreator

    write_shard(tmp_path, "train", 0, rows())
    with IndexCreator(str(tmp_path / "train-000000.tar"), str(tmp_path / "theirs.idx"), verbose=False) as creator:
        creator.create_index()
    assert (tmp_path / "theirs.idx").read_bytes() == (tmp_path / "train-000000.idx").read_bytes()


def test_dali_index_finds_every_member(tmp_path: Path) -> None:
    write_shard(tmp_path, "train", 0, rows())
    lines = (tmp_path / "train-000000.idx").read_text().splitlines()
    assert lines[0] == "v1.2 6"
    data = (tmp_path / "train-000000.tar").read_bytes()
    with tarfile.open(tmp_path / "train-000000.tar") as archive:
        members = {m.name: (m.offset_data, m.size) for m in archive}
    told = {}
    for line in lines[1:]:
        words = line.split()
        for suffix, offset, size, name in zip(*[iter(words)] * 4):
            assert name.endswith(f".{suffix}")
            told[name] = (int(offset), int(size))
    assert told == members
    assert table.shard_name("train", 0) == "train-000000.tar" and data
