"""Rows whose pictures are read in pieces, against those that pyarrow reads alone."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.conversation import Reject
from pipeline.parquet import heavy
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
