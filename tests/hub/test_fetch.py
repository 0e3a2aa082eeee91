"""Files reach the disk whole, once, from wherever they are, or not at all."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from pipeline.hub import api, fetch
from pipeline.hub.fetch import Want, bring, bring_all
from pipeline.hub.record import load_record, record_path, write_atomic
from pipeline.hub.retry import Cancelled, HubError
from tests.hub.conftest import QUICK, REPO
from tests.hub_server import Fault, HubServer, script, seeded


def wants_of(folder: str = "") -> list[Want]:
    revision = api.resolve_revision(REPO)
    return [Want(repo=REPO, revision=revision, file=f) for f in api.list_files(REPO, folder, revision)]


def same(raw: Path, hub_root: Path, wants: list[Want]) -> bool:
    return all(w.place(raw).read_bytes() == (hub_root / REPO / w.file.path).read_bytes() for w in wants)


def leftovers(raw: Path) -> list[Path]:
    return [p for p in raw.rglob(".*") if p.is_file()]


def fetched_bytes(hub: HubServer) -> int:
    return sum(r.sent for r in hub.requests if "/_storage/" in r.path and r.status in (200, 206))


def test_fetch_then_present(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    raw, wants = tmp_path / "raw", wants_of()
    seen: list[int] = []
    records = {REPO: load_record(raw, REPO)}
    records[REPO].pin(wants[0].revision)
    first = bring_all(wants, raw, records, policy=QUICK, progress=seen.append)
    assert {o.how for o in first} == {"fetched"}
    assert sum(seen) == sum(w.file.size for w in wants)
    assert same(raw, hub_root, wants)
    assert not leftovers(raw)
    hub.clear()
    again = bring_all(wants, raw, {REPO: load_record(raw, REPO)}, policy=QUICK)
    assert {o.how for o in again} == {"present"}
    assert hub.requests == []
    assert load_record(raw, REPO).revision == wants[0].revision


def test_a_lost_record_costs_a_read_not_a_download(hub: HubServer, tmp_path: Path) -> None:
    raw, wants = tmp_path / "raw", wants_of("docs")
    bring_all(wants, raw, {REPO: load_record(raw, REPO)}, policy=QUICK)
    record_path(raw, REPO).write_text("{torn")
    hub.clear()
    again = bring_all(wants, raw, {REPO: load_record(raw, REPO)}, policy=QUICK)
    assert {o.how for o in again} == {"present"}
    assert fetched_bytes(hub) == 0


def test_a_changed_file_is_noticed_and_replaced(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    raw, wants = tmp_path / "raw", wants_of("docs")
    bring_all(wants, raw, {REPO: load_record(raw, REPO)}, policy=QUICK)
    hurt = wants[1].place(raw)
    data = bytearray(hurt.read_bytes())
    data[100] ^= 1
    hurt.write_bytes(bytes(data))
    wants[2].place(raw).write_bytes(b"cut")
    how = {o.want.file.path: o.how for o in bring_all(wants, raw, {REPO: load_record(raw, REPO)}, policy=QUICK)}
    assert sorted(how.values()) == ["fetched", "fetched", "present", "present"]
    assert same(raw, hub_root, wants)


@pytest.mark.parametrize("part", [0.3, 1.0])
def test_a_part_is_continued_by_range(hub: HubServer, hub_root: Path, tmp_path: Path, part: float) -> None:
    raw, want = tmp_path / "raw", wants_of("docs")[0]
    whole = (hub_root / REPO / want.file.path).read_bytes()
    want.part(raw).parent.mkdir(parents=True)
    want.part(raw).write_bytes(whole[:int(len(whole) * part)])
    assert bring(want, raw, policy=QUICK) == "fetched"
    assert fetched_bytes(hub) == len(whole) - int(len(whole) * part)
    assert same(raw, hub_root, [want])


@pytest.mark.parametrize("bad", [b"x" * 500, b"x" * 10_000_000], ids=["other bytes", "too long"])
def test_a_wrong_part_begins_again(hub: HubServer, hub_root: Path, tmp_path: Path, bad: bytes) -> None:
    raw, want = tmp_path / "raw", wants_of("docs")[0]
    want.part(raw).parent.mkdir(parents=True)
    want.part(raw).write_bytes(bad)
    bring(want, raw, policy=QUICK)
    assert same(raw, hub_root, [want])
    assert not leftovers(raw)


@pytest.mark.parametrize("fault", [Fault("429", retry_after="0"), Fault("503"), Fault("cut"), Fault("drop"),
                                   Fault("flip"), Fault("slow", seconds=0.2), Fault("cut", part=0.0), Fault("403")])
def test_every_fault_of_a_file(hub: HubServer, hub_root: Path, tmp_path: Path, fault: Fault) -> None:
    raw, want = tmp_path / "raw", wants_of("docs")[0]
    hub.state.faults = script({"/_storage/": [Fault("cut", part=0.4), fault]})
    bring(want, raw, policy=QUICK)
    assert same(raw, hub_root, [want])
    assert not leftovers(raw)


def test_a_server_without_ranges(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    raw, want = tmp_path / "raw", wants_of("docs")[0]
    hub.state.faults = script({"/_storage/": [Fault("cut"), Fault("whole")]})
    bring(want, raw, policy=QUICK)
    assert same(raw, hub_root, [want])


def test_a_page_instead_of_the_file_is_no_beginning_of_it(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    raw, want = tmp_path / "raw", wants_of("docs")[0]
    hub.state.faults = script({"/resolve/": [Fault("garbage")]})
    hub.clear()
    bring(want, raw, policy=QUICK)
    assert same(raw, hub_root, [want])
    assert fetched_bytes(hub) == want.file.size, "nothing was appended to the page"


def test_an_error_of_another_kind_reaches_the_caller(hub: HubServer, tmp_path: Path) -> None:
    """In a thread of its own, so that a wait without end fails here."""
    raw, wants, met = tmp_path / "raw", wants_of("docs"), []

    def progress(count: int) -> None:
        raise RuntimeError("mine")

    def work() -> None:
        try:
            bring_all(wants, raw, {REPO: load_record(raw, REPO)}, policy=QUICK, progress=progress)
        except RuntimeError as error:
            met.append(str(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert met == ["mine"]


def test_a_full_disk_leaves_no_litter_of_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "record.json", b"{}")
    assert not list(tmp_path.iterdir())


def test_an_expired_link_is_asked_for_again(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    raw, want = tmp_path / "raw", wants_of("docs")[0]
    hub.state.expire_links_after = 1
    hub.state.faults = script({"/_storage/": [Fault("cut", part=0.5), None, Fault("cut", part=0.5)]})
    bring(want, raw, policy=QUICK)
    assert same(raw, hub_root, [want])


def test_a_storage_host_that_always_refuses(hub: HubServer, tmp_path: Path) -> None:
    raw, want = tmp_path / "raw", wants_of("docs")[0]
    hub.state.faults = script({"/_storage/": [Fault("403")] * 99})
    with pytest.raises(HubError, match=r"HTTP 403 from the storage host localhost \(6 tries\)"):
        bring(want, raw, policy=QUICK)


def test_content_that_never_matches_fails_and_leaves_nothing_to_read(hub: HubServer, tmp_path: Path) -> None:
    raw, wants = tmp_path / "raw", wants_of("docs")
    hub.state.faults = lambda method, path, nth: Fault("flip") if wants[0].digest in path else None
    outcomes = {o.want.file.path: o for o in bring_all(wants, raw, {REPO: load_record(raw, REPO)}, policy=QUICK)}
    assert outcomes[wants[0].file.path].how == "failed"
    assert "is not the hub's" in outcomes[wants[0].file.path].error
    assert sum(o.how == "fetched" for o in outcomes.values()) == 3, "the others are fetched"
    assert not wants[0].place(raw).exists()


def test_the_official_cache_is_reused(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    raw, wants = tmp_path / "raw", wants_of("docs")
    blobs = tmp_path / "hf-home" / "hub" / f"datasets--{REPO.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    for want in wants[:2]:
        shutil.copy(hub_root / REPO / want.file.path, blobs / want.digest)
    data = bytearray((hub_root / REPO / wants[2].file.path).read_bytes())
    data[50] ^= 1
    (blobs / wants[2].digest).write_bytes(bytes(data))      # a damaged cache entry is not believed
    how = {o.want.file.path: o.how for o in bring_all(wants, raw, {REPO: load_record(raw, REPO)}, policy=QUICK)}
    assert [how[w.file.path] for w in wants] == ["reused", "reused", "fetched", "fetched"]
    assert same(raw, hub_root, wants)
    assert os.stat(wants[0].place(raw)).st_nlink == 2, "linked, not copied"


@pytest.mark.parametrize("inner", ["", REPO])
def test_a_snapshot_folder_is_reused(hub: HubServer, hub_root: Path, tmp_path: Path, inner: str,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    raw, wants = tmp_path / "raw", wants_of("docs")
    shutil.copytree(hub_root / REPO, tmp_path / "snapshot" / inner)

    def no_links(*args: object) -> None:
        raise OSError("another file system")
    monkeypatch.setattr(fetch.os, "link", no_links)
    outcomes = bring_all(wants, raw, {REPO: load_record(raw, REPO)}, policy=QUICK, snapshots=[tmp_path / "snapshot"])
    assert {o.how for o in outcomes} == {"reused"}
    assert fetched_bytes(hub) == 0
    assert same(raw, hub_root, wants)
    assert not leftovers(raw)


def test_raw_may_be_a_read_only_snapshot(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(hub_root, raw)
    (raw / ".pipeline").write_text("a file, so that no record can be written")
    outcomes = bring_all(wants_of("docs"), raw, {REPO: load_record(raw, REPO)}, policy=QUICK)
    assert {o.how for o in outcomes} == {"present"}


def test_free_disk_is_checked_first(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wants = wants_of("docs")
    hub.clear()
    monkeypatch.setattr(fetch, "SPARE_DISK", 1 << 60)
    with pytest.raises(fetch.NoSpace, match="GB free"):
        bring_all(wants, tmp_path / "raw", {REPO: load_record(tmp_path / "raw", REPO)}, policy=QUICK)
    assert hub.requests == []


def test_two_runs_at_once_share_the_work(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    raw, wants = tmp_path / "raw", wants_of("docs")
    hub.state.faults = seeded(0.3, 5, [Fault("slow", seconds=0.1), Fault("cut"), Fault("503")])
    hub.clear()
    threads = [threading.Thread(target=bring_all, args=(wants, raw, {REPO: load_record(raw, REPO)}),
                                kwargs={"policy": QUICK, "connections": 2}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same(raw, hub_root, wants)
    assert not leftovers(raw)
    assert fetched_bytes(hub) == sum(w.file.size for w in wants), "each byte came once"


def test_cancel_keeps_the_part(hub: HubServer, hub_root: Path, tmp_path: Path) -> None:
    raw, want, cancel = tmp_path / "raw", wants_of("docs")[0], threading.Event()
    with pytest.raises(Cancelled):
        bring(want, raw, policy=QUICK, cancel=cancel, progress=lambda n: cancel.set() if n else None)
    assert want.part(raw).stat().st_size > 0
    assert not want.place(raw).exists()
    bring(want, raw, policy=QUICK)
    assert same(raw, hub_root, [want])
