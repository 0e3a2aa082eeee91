"""Reading row groups: odd layouts, damage, bounded batches, all rows accounted for."""

import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.sources.rows
from pipeline.conversation import Conversation, Reject
from pipeline.sources import KINDS
from pipeline.sources.rows import batch_rows, is_damage, iter_rows, open_parquet, row_id

FINEVISION = KINDS["finevision"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TURN = pa.struct([("user", pa.string()), ("assistant", pa.string())])


def read(path: Path) -> list[Conversation | Reject]:
    out: list[Conversation | Reject] = []
    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            for index, row in iter_rows(file, group, FINEVISION):
                if isinstance(row, Reject):
                    out.append(row)
                    continue
                try:
                    out.append(FINEVISION.convert(row, source="s", row_id=row_id(path.name, index),
                                                  options=FINEVISION.options()))  # fmt: skip
                except Reject as error:
                    out.append(error)
    return out


def table(rows: int, size: int = 10, **more: Any) -> pa.Table:
    columns = {
        "images": pa.array([[{"bytes": bytes([k % 256]) * size, "path": None}] for k in range(rows)], pa.list_(IMAGE)),
        "texts": pa.array([[{"user": f"q{k}", "assistant": f"a{k}"}] for k in range(rows)], pa.list_(TURN)),
    }
    return pa.table({**columns, **more})


def answers(out: list[Conversation | Reject]) -> list[str]:
    return [item.reason if isinstance(item, Reject) else item.messages[1].content for item in out]


@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_every_row_of_every_group_in_order(tmp_path: Path, compression: str) -> None:
    pq.write_table(table(25), tmp_path / "a.parquet", row_group_size=10, compression=compression)
    assert answers(read(tmp_path / "a.parquet")) == [f"a{k}" for k in range(25)]


def test_from_a_later_row_on(tmp_path: Path) -> None:
    pq.write_table(table(10), tmp_path / "a.parquet")
    with open_parquet(tmp_path / "a.parquet") as file:
        assert [index for index, _ in iter_rows(file, 0, FINEVISION, start=7)] == [7, 8, 9]


def test_only_the_kinds_columns_are_read(tmp_path: Path) -> None:
    pq.write_table(table(3, secret=pa.array([1, 2, 3])), tmp_path / "a.parquet")
    with open_parquet(tmp_path / "a.parquet") as file:
        assert all(set(row) == {"images", "texts"} for _, row in iter_rows(file, 0, FINEVISION) if isinstance(row, dict))


def test_a_file_without_the_needed_column_says_so_for_every_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"messages": ["x", "y"]}), tmp_path / "a.parquet")
    out = read(tmp_path / "a.parquet")
    assert answers(out) == ["missing-column"] * 2
    assert "no column texts; there are messages" in str(out[0])


def test_a_damaged_row_group_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(30, size=500), path, row_group_size=10, compression="none")
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    out = answers(read(path))
    assert out[:10] == [f"a{k}" for k in range(10)]
    assert out[10:20] == ["unreadable-row-group"] * 10
    assert out[20:] == [f"a{k}" for k in range(20, 30)]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"version https://git-lfs.github.com/spec/v1\n", b"PAR1" + b"\0" * 50 + b"PAR1"])
def test_what_is_no_parquet_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(Reject) as error:
        open_parquet(tmp_path / "a.parquet")
    assert error.value.reason == "unreadable-file"
    with pytest.raises(FileNotFoundError):
        open_parquet(tmp_path / "absent.parquet")


def test_text_that_is_not_utf8_costs_its_row(tmp_path: Path) -> None:
    offsets = pa.array([0, 1, 2, 3], pa.int32())
    answer = pa.array([b"fine", b"\xff\xfe bad", b"good"]).cast(pa.binary()).view(pa.string())
    structs = pa.StructArray.from_arrays([pa.array(["q"] * 3), answer], names=["user", "assistant"])
    pq.write_table(pa.table({"texts": pa.ListArray.from_arrays(offsets, structs)}), tmp_path / "a.parquet")
    assert answers(read(tmp_path / "a.parquet")) == ["fine", "undecodable", "good"]


def test_batches_are_bounded_by_bytes(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(table(64, size=1 << 20), sink, compression="none", use_dictionary=False)
    with open_parquet(sink) as file:
        assert batch_rows(64 << 20, 64) == 32
        assert batch_rows(100, 64) == 1024
        assert batch_rows(9 << 30, 64) == 1
        assert sum(1 for _ in iter_rows(file, 0, FINEVISION)) == 64


def test_rows_too_large_to_hold_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(table(4, size=2 << 20), tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    monkeypatch.setattr(pipeline.sources.rows, "MAX_ROW_BYTES", 1 << 20)
    assert answers(read(tmp_path / "a.parquet")) == ["row-too-large"] * 4


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_never_lose_count(tmp_path: Path, seed: int) -> None:
    """Damage anywhere before the footer: every row comes out as a conversation or a reject."""
    chance = random.Random(seed)
    pq.write_table(table(30, size=50, source=pa.array(["s"] * 30)), tmp_path / "a.parquet", row_group_size=12)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    for _ in range(chance.choice([1, 4, 30])):
        footer = int.from_bytes(data[-8:-4], "little") + 8
        data[chance.randrange(4, len(data) - footer)] = chance.randrange(256)
    (tmp_path / "a.parquet").write_bytes(data)
    with open_parquet(tmp_path / "a.parquet") as file:
        for group in range(file.num_row_groups):
            found = [index for index, _ in iter_rows(file, group, FINEVISION)]
            assert found == list(range(file.metadata.row_group(group).num_rows))


def test_trouble_of_disk_and_network_is_no_damage() -> None:
    assert is_damage(pa.ArrowInvalid("x"))
    assert is_damage(OSError("Couldn't deserialize thrift"))
    assert not is_damage(OSError(5, "Input/output error"))
    assert not is_damage(ConnectionResetError("x"))
    assert not is_damage(TimeoutError("x"))
    assert not is_damage(MemoryError())


def test_trouble_of_the_file_object_is_raised() -> None:
    """A range request that fails in the middle of a row group must not become rejected rows."""
    sink = io.BytesIO()
    pq.write_table(table(10, size=1000), sink, compression="none")

    class Flaky(io.BytesIO):
        broken = False

        def read(self, size: int | None = -1) -> bytes:
            if self.broken:
                raise ConnectionResetError("cut")
            return super().read(size)

    source = Flaky(sink.getvalue())
    file = open_parquet(source)
    source.broken = True
    with pytest.raises(ConnectionResetError):
        list(iter_rows(file, 0, FINEVISION))


def test_hostile_files(shared: Path) -> None:
    folder = shared / "data/hostile/files"
    for name in ("good", "extra_columns", "images_as_binary", "no_metadata", "no_ratings", "swapped_fields"):
        out = read(folder / f"{name}.parquet")
        assert len(out) == 12
        for item in out:
            assert isinstance(item, Conversation)
            assert len(item.images) == 1
            assert len(item.images[0]) > 100
            assert item.messages[0].content.startswith("<image>\n")
            assert item.messages[1].content
    assert read(folder / "zero_rows.parquet") == []
    assert answers(read(folder / "damaged_page.parquet")) == ["unreadable-row-group"] * 12
    for name in ("truncated", "not_parquet"):
        with pytest.raises(Reject, match="unreadable-file"):
            read(folder / f"{name}.parquet")


def test_hostile_rows(shared: Path) -> None:
    import json

    names = [row["name"] for row in json.loads((shared / "data/hostile/rows.json").read_text())]
    out = dict(zip(names, read(shared / "data/hostile/rows.parquet"), strict=True))
    rejects = {name: item.reason for name, item in out.items() if isinstance(item, Reject)}
    assert rejects == {
        "zero_bytes": "image-missing", "null_bytes_with_path": "image-missing", "null_image_entry": "image-missing",
        "one_image_two_tags": "image-markers", "texts_null": "no-answer", "null_answer": "no-answer",
    }  # fmt: skip
    dropped = {name: item.dropped_turns for name, item in out.items() if isinstance(item, Conversation) and item.dropped_turns}
    assert dropped == {"null_turn": 1, "mixed_turns": 1}
    assert Counter(type(item) for item in out.values())[Conversation] == len(names) - len(rejects)
