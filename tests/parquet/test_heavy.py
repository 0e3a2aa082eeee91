"""Rows whose pictures are read in pieces, against those that pyarrow reads alone."""

import io
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.conversation import Reject
from pipeline.parquet import heavy, leaf
from pipeline.parquet.heavy import find_heavy
from pipeline.parquet.thrift import Unsupported
from pipeline.sources import KINDS
from pipeline.sources.rows import iter_rows, open_parquet

FINEVISION = KINDS["finevision"]
COLUMNS = ("images", "image", "texts")
CODECS = ["none", "snappy", "gzip", "zstd", "brotli"]


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heavy, "HEAVY", 0)


def plain(file: pq.ParquetFile, group: int = 0) -> list[Any]:
    return [told(item) for _, item in iter_rows(file, group, FINEVISION)]


def told(item: Any) -> Any:
    return (item.reason, item.detail) if isinstance(item, Reject) else item


def in_pieces(file: pq.ParquetFile, source: Any, group: int = 0, start: int = 0) -> list[tuple[int, Any]]:
    """The rows that are read in pieces; Unsupported where there are none."""
    columns = [name for name in COLUMNS if name in file.schema_arrow.names]
    found = find_heavy(file, group, columns, source)
    if found is None:
        raise Unsupported("not heavy")
    rows = (row for batch in file.iter_batches(7, row_groups=[group], columns=found.others) for row in batch.to_pylist())
    return list(found.filled(source, rows, file.metadata.row_group(group).num_rows, start=start, most=1 << 20))


@st.composite
def tables(draw: Any) -> pa.Table:
    """Pictures in one of the layouts, nulls wherever its schema has them, and texts."""
    outer, slot, value = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    pool = draw(st.lists(st.binary(max_size=300), min_size=1, max_size=12))
    kind: pa.DataType = draw(st.sampled_from([pa.binary(), pa.large_binary()]))
    picture: Any = st.sampled_from(pool)
    if draw(st.booleans()):
        picture = st.fixed_dictionaries({"bytes": st.one_of(st.none(), picture) if value else picture,
                                         "path": st.sampled_from(["a.png", None])})  # fmt: skip
        fields = [pa.field("bytes", kind, value), pa.field("path", pa.string())]
        kind = pa.struct(fields[:: draw(st.sampled_from([1, -1]))])
    picture = st.one_of(st.none(), picture) if slot else picture
    field = pa.field("images", kind, slot)
    if draw(st.booleans()):
        inner = pa.field(draw(st.sampled_from(["item", "element"])), kind, slot)
        field = pa.field("images", draw(st.sampled_from([pa.list_, pa.large_list]))(inner), outer)
        picture = st.lists(picture, max_size=4)
        picture = st.one_of(st.none(), picture) if outer else picture
    pictures = draw(st.lists(picture, min_size=1, max_size=40))
    schema = pa.schema([field, ("texts", pa.string())])
    return pa.table({"images": pa.array(pictures, field.type), "texts": [f"text {k}" for k in range(len(pictures))]}, schema=schema)


@st.composite
def ways(draw: Any) -> dict[str, Any]:
    """How a table is written."""
    return {"compression": draw(st.sampled_from(CODECS)), "use_dictionary": draw(st.booleans()),
            "data_page_version": draw(st.sampled_from(["1.0", "2.0"])), "row_group_size": draw(st.sampled_from([17, 100])),
            "data_page_size": draw(st.sampled_from([50, 500, 1 << 20])), "write_batch_size": draw(st.sampled_from([1, 5, 100])),
            "dictionary_pagesize_limit": draw(st.sampled_from([100, 1 << 20])), "store_schema": draw(st.booleans()),
            "use_compliant_nested_type": draw(st.booleans())}  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(table=tables(), way=ways(), start=st.integers(0, 40))
def test_the_same_rows_as_pyarrow(table: pa.Table, way: dict[str, Any], start: int) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, **way)
    file = open_parquet(sink)
    for group in range(file.num_row_groups):
        expected = plain(file, group)
        assert in_pieces(file, sink, group, start) == list(enumerate(expected))[start:]
        with_handle = list(iter_rows(file, group, FINEVISION, start=start, handle=sink))
        assert with_handle == list(enumerate(expected))[start:]


def written(rows: int = 24, **way: Any) -> io.BytesIO:
    """A group of so many pictures, of which one comes twice and one is null."""
    chance = random.Random(rows)
    pictures = [[{"bytes": chance.randbytes(chance.randrange(200, 400)), "path": f"{k}.png"}] for k in range(rows)]
    pictures[rows // 2], pictures[1] = pictures[0], [{"bytes": None, "path": "1.png"}]
    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    sink = io.BytesIO()
    pq.write_table(pa.table({"images": pa.array(pictures, kind), "texts": [f"text {k}" for k in range(rows)]}), sink, **way)
    return sink


@settings(max_examples=1000, deadline=None)
@given(way=ways(), seed=st.integers(0, 2**32), flips=st.sampled_from([1, 1, 1, 2, 20]))
def test_damage_gives_what_pyarrow_gives(way: dict[str, Any], seed: int, flips: int) -> None:
    """Rows that pyarrow can read are the same; of a group that it cannot, rows in front of the damage may be given besides."""
    chance = random.Random(seed)
    data = bytearray(written(**way).getvalue())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    for _ in range(flips):
        place = chance.choice([chance.randrange(4, 80), chance.randrange(4, len(data) - footer)])
        data[place] = chance.choice([chance.randrange(256), data[place] ^ 1 << chance.randrange(8)])
    source = io.BytesIO(data)
    file = open_parquet(source)
    for group in range(file.num_row_groups):
        expected = plain(file, group)
        found = [told(item) for _, item in iter_rows(file, group, FINEVISION, handle=source)]
        assert len(found) == len(expected)
        for mine, other in zip(found, expected):
            assert mine == other or (isinstance(other, tuple) and other[0] == "unreadable-row-group")
        later = [told(item) for _, item in iter_rows(file, group, FINEVISION, handle=source, start=5)]
        assert later == found[5:]  # a row is the same wherever a block begins


def test_names_are_those_of_the_schema() -> None:
    """A footer names each column in its schema and again where its pages are; pyarrow goes by the former."""
    data = written(store_schema=False).getvalue()
    place = data.rindex(b"texts")
    assert data.count(b"texts", 0, place)
    source = io.BytesIO(data[:place] + b"textz" + data[place + 5 :])
    file = open_parquet(source)
    assert file.schema.column(2).path == "texts" and file.metadata.row_group(0).column(2).path_in_schema == "textz"
    assert in_pieces(file, source) == list(enumerate(plain(file)))


def test_an_ordinary_page_is_left_to_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    source = written()
    file = open_parquet(source)
    assert find_heavy(file, 0, COLUMNS, source) is not None
    assert find_heavy(file, 0, ["texts"], source) is None  # texts are no bytes
    assert find_heavy(file, 0, ["images"], source) is not None
    monkeypatch.setattr(heavy, "HEAVY", 128 << 20)
    assert find_heavy(file, 0, COLUMNS, source) is None


def test_many_small_pages_are_left_to_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(200, data_page_size=500, write_batch_size=1, use_dictionary=False)
    monkeypatch.setattr(heavy, "HEAVY", 5_000)
    assert find_heavy(open_parquet(source), 0, COLUMNS, source) is None


def test_a_dictionary_in_another_order_goes_to_pyarrow_from_the_row_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of 1,000 bytes in order; then the first forty again, which would have to be kept."""
    values = [bytes([k]) * 1000 for k in range(40)]
    pictures = [[{"bytes": value, "path": None}] for value in [values[39], *values, *values]]
    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    source = io.BytesIO()
    pq.write_table(pa.table({"images": pa.array(pictures, kind), "texts": ["x"] * 81}), source)
    file = open_parquet(source)
    assert in_pieces(file, source) == list(enumerate(plain(file)))
    monkeypatch.setattr(leaf, "KEPT_BYTES", 20_000)
    with pytest.raises(Unsupported, match="another order"):
        in_pieces(file, source)
    assert list(iter_rows(file, 0, FINEVISION, handle=source)) == list(enumerate(plain(file)))


def test_trouble_of_the_file_is_raised() -> None:
    class Flaky(io.BytesIO):
        broken: Exception | None = None

        def read(self, size: int | None = -1) -> bytes:
            if self.broken and self.tell() > 2_000:
                raise self.broken
            return super().read(size)

    for way in ({"compression": "none"}, {"compression": "zstd"}, {"compression": "snappy", "use_dictionary": False}):
        source = Flaky(written(**way).getvalue())
        file = open_parquet(source)
        for source.broken in (ConnectionResetError("cut"), OSError(5, "Input/output error")):
            with pytest.raises(type(source.broken)):
                list(iter_rows(file, 0, FINEVISION, handle=source))


def test_text_that_is_not_utf8_costs_its_row_alone() -> None:
    text = pa.array([b"fine", b"\xff bad", b"good"]).view(pa.string())
    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    images = pa.array([[{"bytes": bytes([k]), "path": None}] * k for k in range(3)], kind)
    source = io.BytesIO()
    pq.write_table(pa.table({"images": images, "texts": text}), source)
    rows = [row for _, row in iter_rows(open_parquet(source), 0, FINEVISION, handle=source)]
    assert isinstance(rows[1], Reject) and rows[1].reason == "undecodable"
    assert rows[2] == {"images": [{"bytes": b"\2", "path": None}] * 2, "texts": "good"}


SCRIPT = """
import sys
import pyarrow as pa
from pipeline.sources import KINDS
from pipeline.sources.rows import iter_rows, open_parquet

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1000

handle = pa.OSFile(sys.argv[1])
file = open_parquet(handle)
before = peak()
print(sum(len(row["images"][0]["bytes"]) for _, row in iter_rows(file, 0, KINDS["finevision"], handle=handle)), peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("way", [{"use_dictionary": False}, {"use_dictionary": True}, {"compression": "none"},
                                 {"compression": "zstd", "use_dictionary": False}], ids=str)  # fmt: skip
def test_memory_of_large_pictures(tmp_path: Path, way: dict[str, Any]) -> None:
    """A page of 240 MB; pyarrow alone takes twice that."""
    chance = random.Random(0)
    pictures = [[{"bytes": chance.randbytes(8_000_000), "path": None}] for _ in range(30)]
    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"images": pa.array(pictures, kind), "texts": ["x"] * 30}), tmp_path / "a.parquet", **way)
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "a.parquet")], capture_output=True, text=True, check=True)
    size, megabytes = map(int, run.stdout.split())
    assert size == 240_000_000
    assert megabytes < 100
