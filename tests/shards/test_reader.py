"""One packed row from one read; whatever is cut, shifted or miscounted is an error that names shard and offset."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards import table, tar
from shards.reader import DamagedRow, ShardReader, iter_samples, parse_row, read_row
from shards.writer import write_shard
from tests.shards.making import image_sample, text_sample

SIZES = st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40), st.booleans()), min_size=1, max_size=4), max_size=5)


@given(SIZES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_comes_back(tmp_path: Path, sizes: list[list[tuple[int, int, bool]]]) -> None:
    made = [[image_sample(seed=text) if picture else text_sample(text, answer) for text, answer, picture in row] for row in sizes]
    entry, rows = write_shard(tmp_path, "train", 0, made)
    reader = ShardReader(tmp_path)
    found = [reader.read(row) for row in rows]
    reader.close()
    assert [len(row) for row in found] == [len(row) for row in made]
    flat = [sample for row in found for sample in row]
    assert [sample.key for sample in flat] == [f"train-000000-{at:06d}" for at in range(entry.samples)]
    assert [len(sample.ids) for sample in flat] == [sample.tokens for row in made for sample in row]
    whole = (tmp_path / "train-000000.tar").read_bytes()
    assert [sample.key for sample in iter_samples(whole, whole=True)] == [sample.key for sample in flat]


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, Any]:
    rows = [[text_sample(3, 2), image_sample()], [text_sample(4, 4)], [text_sample(7, 2), text_sample(1, 1)]]
    return tmp_path, write_shard(tmp_path, "train", 0, rows)[1]


def test_reads_are_positional_and_survive_a_fork(shard: tuple[Path, Any]) -> None:
    folder, rows = shard
    reader = ShardReader(folder)
    reader.read(rows[0])
    child = os.fork()
    if not child:
        try:
            os._exit(0 if len(reader.read(rows[2])) == 2 else 1)
        finally:
            os._exit(1)  # a read that raises must not go on as a second pytest
    assert len(reader.read(rows[1])) == 1
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    reader.close()


def test_a_cut_shard_is_named(shard: tuple[Path, Any]) -> None:
    folder, rows = shard
    path = folder / "train-000000.tar"
    os.truncate(path, int(rows[2]["offset"]) + 700)
    reader = ShardReader(folder)
    reader.read(rows[1])
    with pytest.raises(DamagedRow, match=rf"train-000000.tar: row at offset {rows[2]['offset']} is 700 bytes long"):
        reader.read(rows[2])


@pytest.mark.parametrize("shift", [-512, 512, 1, -1, 1536])
def test_a_shifted_row_is_named(shard: tuple[Path, Any], shift: int) -> None:
    folder, rows = shard
    row = rows[1].copy()
    row["offset"] = int(row["offset"]) + shift
    with pytest.raises(DamagedRow, match=rf"row at offset {int(row['offset'])}"):
        ShardReader(folder).read(row)


@pytest.mark.parametrize("field", ["samples", "tokens", "images"])
@pytest.mark.parametrize("by", [-1, 1])
def test_wrong_counts_are_named(shard: tuple[Path, Any], field: str, by: int) -> None:
    folder, rows = shard
    row = rows[0].copy()
    row[field] = int(row[field]) + by
    with pytest.raises(DamagedRow, match="where the table says"):
        ShardReader(folder).read(row)


def test_a_row_too_short_or_too_long_is_an_error(shard: tuple[Path, Any]) -> None:
    folder, rows = shard
    for by in (-512, 512, -1, 1, -int(rows[0]["length"])):
        row = rows[0].copy()
        row["length"] = int(row["length"]) + by
        with pytest.raises(DamagedRow):
            ShardReader(folder).read(row)


def test_any_flipped_byte_outside_the_payload_of_a_row_is_an_error(shard: tuple[Path, Any]) -> None:
    folder, rows = shard
    reader = ShardReader(folder)
    data = bytearray(reader.read_bytes(rows[1]))
    members = list(tar.members(bytes(data)))
    payload = {at for m in members for at in range(m.data_offset, m.data_offset + m.size)}
    for at in range(0, len(data), 7):
        data[at] ^= 0x41
        if at not in payload:
            with pytest.raises(DamagedRow):
                parse_row(bytes(data), rows[1], "train")
        data[at] ^= 0x41
    assert len(parse_row(bytes(data), rows[1], "train")) == 1


def test_a_flip_in_the_structure_of_a_payload_never_gives_a_wrong_shape(shard: tuple[Path, Any]) -> None:
    folder, rows = shard
    data = bytearray(ShardReader(folder).read_bytes(rows[1]))
    good = read_row(bytes(data))
    for at in range(0, len(data)):
        data[at] ^= 0x10
        try:
            found = parse_row(bytes(data), rows[1], "train")
            assert [len(s.ids) for s in found] == [len(s.ids) for s in good]
        except DamagedRow:
            pass
        data[at] ^= 0x10


def test_row_tables(tmp_path: Path) -> None:
    rows = table.make([(0, 1, 0, 512, 4, 0, 0), (1, 2, 2**40, 2**33, 4, 1, 2**35)])
    (tmp_path / "rows.npy").write_bytes(table.encode(rows))
    found = table.load(tmp_path / "rows.npy")
    assert isinstance(found, np.memmap) and np.array_equal(found, rows)
    assert table.ROW_DTYPE.itemsize == 40
    (tmp_path / "empty.npy").write_bytes(table.encode(table.make([])))
    assert len(table.load(tmp_path / "empty.npy")) == 0
    good = table.encode(rows)
    for data in (b"", b"junk", good[:-1], good[:60]):
        (tmp_path / "bad.npy").write_bytes(data)
        with pytest.raises(ValueError, match=r"bad.npy is not a row table"):
            table.load(tmp_path / "bad.npy")
    for other in (np.zeros(3), np.array([{}], dtype=object), rows.reshape(1, 2)):
        np.save(tmp_path / "other.npy", other, allow_pickle=True)
        with pytest.raises(ValueError, match="not a row table"):
            table.load(tmp_path / "other.npy")
    with pytest.raises(FileNotFoundError):
        table.load(tmp_path / "absent.npy")
