"""Footers: the same from disk and from the hub, cached by revision, and a bad file named."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import footer_parse
from pipeline.footers import FileRef, FooterError, local_refs, parse_footer, read_footer, read_footers
from pipeline.hub import api
from pipeline.hub.remote import TAIL
from pipeline.hub.retry import NotOnHub
from tests.hub.conftest import QUICK, REPO, write_set
from tests.hub_server import Fault, HubServer, seeded, tail_blob


def remote_refs(folder: str) -> list[FileRef]:
    revision = api.resolve_revision(REPO)
    return [FileRef(path=f.path, size=f.size, repo=REPO, revision=revision)
            for f in api.list_files(REPO, folder, revision)]


def test_remote_equals_local_and_is_cached(hub: HubServer, hub_root: Path) -> None:
    local = [replace(read_footer(ref), path="") for ref in local_refs(hub_root, f"{REPO}/docs")]
    refs = remote_refs("docs")
    hub.clear()
    hub.state.faults = seeded(0.3, 2, [Fault("503"), Fault("cut"), Fault("429", retry_after="0")])
    found = read_footers(refs, policy=QUICK)
    assert [replace(f, path="") for f in found if not isinstance(f, FooterError)] == local
    assert sum(r.sent for r in hub.requests) <= 2 * len(refs) * TAIL
    hub.clear()
    assert read_footers(refs, policy=QUICK) == found
    assert hub.requests == [], "the second time costs nothing"


def test_what_a_footer_tells(tmp_path: Path) -> None:
    write_set(tmp_path / "a" / "train.parquet", rows=25, group=10, seed=0)
    (tmp_path / "a" / ".half.parquet").write_bytes(b"PAR1")
    (ref,) = local_refs(tmp_path, "a")
    footer = read_footer(ref)
    assert footer.path == "a/train.parquet"
    assert footer.columns == ("images", "texts", "source")
    assert [group.rows for group in footer.groups] == [10, 10, 5]
    assert footer.images == 25
    metadata = pq.read_metadata(ref.local)
    for index, group in enumerate(footer.groups[:-1]):
        row_group = metadata.row_group(index)
        exact = sum(row_group.column(i).total_compressed_size for i in range(row_group.num_columns))
        assert group.bytes == exact
    assert footer.text_bytes > sum(range(25)), "answers are 1, 2, 3 ... letters"


def test_a_long_footer_takes_a_second_read(hub: HubServer, tmp_path: Path) -> None:
    table = pa.table({"texts": pa.array(["x" * 50] * 3000), "source": pa.array(["y"] * 3000)})
    pq.write_table(table, tmp_path / "long.parquet", row_group_size=1)
    data = (tmp_path / "long.parquet").read_bytes()
    assert int.from_bytes(data[-8:-4], "little") > TAIL
    blob = tail_blob(len(data), data, "long")
    commit = hub.repos[REPO].commit({"long/train.parquet": blob})
    ref = FileRef(path="long/train.parquet", size=len(data), repo=REPO, revision=commit)
    assert read_footer(ref).rows == 3000
    assert len([r for r in hub.requests if "/_storage/" in r.path]) == 2


def test_bad_files_are_named_one_by_one(tmp_path: Path) -> None:
    write_set(tmp_path / "good.parquet", rows=20, group=10, seed=0)
    data = (tmp_path / "good.parquet").read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    cases = {
        "cut": (data[:len(data) * 2 // 3], "file-truncated"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "file-not-parquet"),
        "empty": (b"", "file-not-parquet"),
        "claims": (data[:-8] + (1 << 31).to_bytes(4, "little") + b"PAR1", "file-damaged"),
        "noise": (data[:-8 - length] + b"\xff" * length + data[-8:], "file-damaged"),
        "crypt": (data[:-4] + b"PARE", "file-damaged"),
    }
    refs = []
    for name, (content, _) in cases.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
        refs.append(FileRef(path=f"{name}.parquet", size=len(content), local=tmp_path / f"{name}.parquet"))
    refs.append(FileRef(path="gone.parquet", size=5, local=tmp_path / "gone.parquet"))
    refs.append(FileRef(path="good.parquet", size=len(data), local=tmp_path / "good.parquet"))
    *bad, good = read_footers(refs)
    assert not isinstance(good, FooterError)
    reasons = [error.reason if isinstance(error, FooterError) else "" for error in bad]
    assert reasons == [reason for _, reason in cases.values()] + ["file-missing"]
    assert all(ref.path in str(error) for ref, error in zip(refs, bad, strict=False))


def test_a_file_that_cannot_be_read_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):  # permission denied, as anyone but root gets it, goes the same way
        read_footers([FileRef(path="a.parquet", size=5, local=tmp_path)])


def test_a_flipped_bit_of_a_footer_is_an_error_not_a_crash(tmp_path: Path) -> None:
    write_set(tmp_path / "good.parquet", rows=6, group=3, seed=0)
    data = (tmp_path / "good.parquet").read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    tail = data[-8 - length:]
    # the first two make pyarrow abort the process that asks for a column
    for at in [*range(10, 30), *range(110, 160), *range(30, length, 101)]:
        hurt = bytearray(tail)
        hurt[at] ^= 0x10
        with contextlib.suppress(FooterError):
            footer = parse_footer("x", len(data), bytes(hurt))
            assert sum(group.rows for group in footer.groups) == footer.rows


def test_shared_hostile_files(shared: Path) -> None:
    found = {}
    for path in sorted((shared / "data" / "hostile" / "files").glob("*.parquet")):
        (result,) = read_footers([FileRef(path=path.name, size=path.stat().st_size, local=path)])
        found[path.stem] = result.reason if isinstance(result, FooterError) else result.rows
    assert found["truncated"] == "file-truncated"
    assert found["not_parquet"] == "file-not-parquet"
    assert found["zero_rows"] == 0
    assert all(rows == 12 for name, rows in found.items() if name not in ("truncated", "not_parquet", "zero_rows"))


def test_images_that_are_null_are_not_counted(tmp_path: Path) -> None:
    image = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"images": pa.array([None, [], [{"bytes": b"x", "path": None}]], image),
                      "texts": pa.array(["a", "b", "c"])})
    pq.write_table(table, tmp_path / "t.parquet")
    assert read_footer(local_refs(tmp_path, "")[0]).images == 1


def test_a_file_without_row_groups_is_whole(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "none.parquet", pa.schema({"texts": pa.string()})):
        pass  # as a conversion writes that had to leave out every record
    data = (tmp_path / "none.parquet").read_bytes()
    assert footer_parse.parse(len(data), data) == ([], ["texts"])


def test_groups_out_of_order_are_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "a.parquet", rows=20, group=10, seed=0)
    data = (tmp_path / "a.parquet").read_bytes()
    plain, _ = footer_parse.parse(len(data), data)
    starts = iter([9_000, 4])
    monkeypatch.setattr(footer_parse, "_first_byte", lambda column: next(starts))
    shuffled, _ = footer_parse.parse(len(data), data)
    for a, b in zip(plain, shuffled, strict=True):
        assert abs(a[1] - b[1]) <= 16, "the gap before the footer"


def test_waits_end_when_another_file_has_failed(hub: HubServer) -> None:
    """Ctrl-C takes the same way: nobody sits out a Retry-After for a plan that is not made any more."""
    refs = [FileRef(path=file.path, size=file.size, repo=REPO, revision="main") for file in api.list_files(REPO, "docs")]
    hub.state.faults = lambda method, path, nth: Fault("503", retry_after="60") if refs[0].path in path else None
    lost = replace(refs[0], path="docs/none.parquet")
    start = time.monotonic()
    with pytest.raises(NotOnHub):
        read_footers([refs[0], lost], policy=QUICK)
    assert time.monotonic() - start < 20


def test_a_column_of_single_images_holds_images_and_no_text(tmp_path: Path) -> None:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": b"x" * 5000, "path": "1.png"}, None, {"bytes": b"y" * 5000, "path": None}]
    table = pa.table({"image": pa.array(images, image), "texts": pa.array(["one", "two", "three"])})
    pq.write_table(table, tmp_path / "train.parquet")
    footer = read_footer(local_refs(tmp_path, "")[0])
    assert footer.images == 2
    assert footer.text_bytes < 1000
