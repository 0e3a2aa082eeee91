"""Reading a parquet file in place: the right bytes, few requests, faults survived."""

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.hub import api, remote
from pipeline.hub.remote import TAIL, group_span, open_remote
from pipeline.hub.retry import HubError
from pipeline.parquet import heavy
from pipeline.sources import KINDS
from pipeline.sources.rows import iter_rows, open_parquet
from tests.hub.conftest import QUICK, REPO
from tests.hub_server import Fault, HubServer, script, seeded


def test_reads_like_the_file(hub: HubServer, hub_root: Path) -> None:
    file = api.list_files(REPO, "docs")[0]
    whole = (hub_root / REPO / file.path).read_bytes()
    rng = random.Random(1)
    hub.state.faults = seeded(0.2, 3, [Fault("cut"), Fault("503"), Fault("429", retry_after="0"), Fault("drop")])
    with open_remote(REPO, "main", file.path, file.size, policy=QUICK) as remote:
        for _ in range(200):
            start, length = rng.randrange(len(whole) + 10), rng.choice([0, 1, 7, 4096, 100_000, -1])
            remote.seek(start)
            expected = whole[start:] if length < 0 else whole[start:start + length]
            assert remote.read(length) == expected
            assert remote.tell() == min(start, len(whole)) + len(expected) or start > len(whole)


def test_a_row_group_costs_two_requests(hub: HubServer, hub_root: Path) -> None:
    file = api.list_files(REPO, "docs")[0]
    hub.clear()
    with open_remote(REPO, "main", file.path, file.size) as remote:
        parquet = pq.ParquetFile(remote)
        remote.prefetch(*group_span(parquet.metadata, 1))
        got = parquet.read_row_group(1)
        assert remote.requests == 2, "the tail, the row group"
        assert remote.fetched < TAIL + file.size // 2
    assert got.equals(pq.ParquetFile(hub_root / REPO / file.path).read_row_group(1))
    assert len([r for r in hub.requests if "/resolve/" in r.path]) == 1, "the storage link is kept"


def test_a_cut_answer_is_continued_not_repeated(hub: HubServer) -> None:
    file = api.list_files(REPO, "docs")[0]
    hub.clear()
    hub.state.faults = script({"/_storage/": [Fault("cut", part=0.5)] * 3})
    with open_remote(REPO, "main", file.path, file.size, policy=QUICK) as remote:
        remote.prefetch(0, file.size)
    assert sum(r.sent for r in hub.requests) == file.size


def test_a_server_without_ranges_is_named(hub: HubServer) -> None:
    file = api.list_files(REPO, "docs")[0]
    hub.state.faults = lambda method, path, nth: Fault("whole")
    with open_remote(REPO, "main", file.path, file.size, policy=QUICK) as remote:
        remote.seek(100)
        with pytest.raises(HubError, match="ignores range requests"):
            remote.read(10)


def test_a_page_instead_of_a_range_is_asked_again(hub: HubServer, hub_root: Path) -> None:
    """A "maintenance" page with status 200: the first bytes of the file must not be the page's."""
    for file in api.list_files(REPO):
        hub.state.faults = script({"/resolve/": [Fault("garbage")] * 2})
        with open_remote(REPO, "main", file.path, file.size, policy=QUICK) as remote:
            remote.prefetch(0, file.size)
            assert remote.read() == (hub_root / REPO / file.path).read_bytes()


def test_a_kept_link_that_has_expired_is_asked_for_again(hub: HubServer, hub_root: Path) -> None:
    file = api.list_files(REPO, "docs")[0]
    hub.state.expire_links_after = 1
    with open_remote(REPO, "main", file.path, file.size, policy=QUICK) as remote:
        remote.seek(file.size - 8)
        remote.read(8)
        remote.prefetch(0, 1000)
        remote.seek(0)
        assert remote.read(1000) == (hub_root / REPO / file.path).read_bytes()[:1000]


def test_a_file_shorter_than_listed(hub: HubServer) -> None:
    file = api.list_files(REPO, "docs")[0]
    with open_remote(REPO, "main", file.path, file.size + TAIL, policy=QUICK) as remote:
        remote.seek(file.size)
        with pytest.raises(HubError):
            remote.read(10)


def test_reading_on_takes_larger_requests(hub: HubServer, hub_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of 1, 2, 4, 8, 8 ... kB; elsewhere 1 kB again."""
    monkeypatch.setattr(remote, "READ_AHEAD", 1024)
    monkeypatch.setattr(remote, "MOST_AHEAD", 8192)
    monkeypatch.setattr(remote, "TAIL", 0)
    file = api.list_files(REPO, "docs")[0]
    with open_remote(REPO, "main", file.path, file.size) as opened:
        whole = b"".join(iter(lambda: opened.read(512), b""))
        assert whole == (hub_root / REPO / file.path).read_bytes()
        assert opened.fetched == file.size and opened.requests <= 4 + file.size // 8192
        opened.seek(0)
        opened.read(10)
        assert opened.fetched == file.size + 1024


@pytest.mark.parametrize("prefetched", [True, False])
def test_large_pictures_are_read_in_pieces(
    hub: HubServer, hub_root: Path, monkeypatch: pytest.MonkeyPatch, prefetched: bool
) -> None:  # fmt: skip
    monkeypatch.setattr(heavy, "HEAVY", 0)
    for file in api.list_files(REPO, "docs"):
        local = open_parquet(hub_root / REPO / file.path)
        with open_remote(REPO, "main", file.path, file.size) as opened:
            parquet = open_parquet(opened)
            for group in range(parquet.num_row_groups):
                if prefetched:
                    opened.prefetch(*group_span(parquet.metadata, group))
                assert heavy.find_heavy(parquet, group, ["images", "texts"], opened) is not None
                rows = list(iter_rows(parquet, group, KINDS["finevision"], handle=opened))
                assert rows == list(iter_rows(local, group, KINDS["finevision"]))


def test_a_request_that_fails_in_a_large_picture_is_raised(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heavy, "HEAVY", 0)
    file = api.list_files(REPO, "docs")[0]
    with open_remote(REPO, "main", file.path, file.size, policy=QUICK) as opened:
        parquet = open_parquet(opened)
        hub.state.faults = lambda method, path, nth: Fault("whole")
        with pytest.raises(HubError):
            list(iter_rows(parquet, 0, KINDS["finevision"], handle=opened))
