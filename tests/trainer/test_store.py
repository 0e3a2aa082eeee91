"""Rows from a folder, from s3:// and through a bounded cache of shards are the same bytes."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.manifest import IncompleteError
from shards.reader import DamagedRow
from tests.trainer.synthetic import make_directory
from trainer.data.batch import Rules
from trainer.data.loader import Loader
from trainer.data.store import Cache, CachedStore, LocalStore, open_directory, open_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty rows in five shards."""
    return make_directory(tmp_path_factory.mktemp("store") / "s", rows=30, shards=5)


class CountingStore(LocalStore):
    """A slow store: counts the shards that are fetched."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.fetched: list[str] = []
        self.lock = threading.Lock()

    def fetch(self, name: str, path: Path) -> None:
        """Counted."""
        with self.lock:
            self.fetched.append(name)
        super().fetch(name, path)


def test_a_cache_gives_the_same_bytes_and_stays_bounded(folder: Path, tmp_path: Path) -> None:
    rows = open_directory(str(folder)).rows["train"]
    largest = max(path.stat().st_size for path in folder.glob("train-*.tar"))
    inner = CountingStore(folder)
    store = CachedStore(inner, Cache(folder=tmp_path, bytes=2 * largest))
    for index in np.random.default_rng(0).permutation(len(rows)):
        assert store.read_bytes("train", rows[index]) == inner.read_bytes("train", rows[index])
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.tar")) <= 2 * largest
    assert len(inner.fetched) > 5  # a global shuffle through a small cache fetches again and again
    inner.fetched.clear()
    large = CachedStore(inner, Cache(folder=tmp_path / "large", bytes=1 << 40))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: large.read_bytes("train", rows[index]), range(len(rows))))
    assert sorted(inner.fetched) == sorted(path.name for path in folder.glob("train-*.tar"))  # each once, in spite of threads


def test_a_shard_that_makes_room_for_another_at_once_is_read_all_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a cache smaller than what the workers fetch at one time: another process takes its name before it is opened."""
    rows, replace = open_directory(str(folder)).rows["train"], os.replace

    def replace_and_take(partial: Path, path: Path) -> None:
        replace(partial, path)
        path.unlink()

    monkeypatch.setattr(os, "replace", replace_and_take)
    store = CachedStore(LocalStore(folder), Cache(folder=tmp_path, bytes=1))
    assert store.read_bytes("train", rows[0]) == LocalStore(folder).read_bytes("train", rows[0])


def test_a_directory_built_anew_is_not_read_from_the_cache_of_the_old(tmp_path: Path) -> None:
    cache, found = Cache(folder=tmp_path / "cache", bytes=1), []
    for seed in (1, 2):
        make_directory(tmp_path / str(seed), rows=4, shards=1, seed=seed).rename(tmp_path / "s")
        plain, cached = open_directory(str(tmp_path / "s")), open_directory(str(tmp_path / "s"), cache)
        found.append(cached.store.read_bytes("train", cached.rows["train"][0]))
        assert found[-1] == plain.store.read_bytes("train", plain.rows["train"][0])
        (tmp_path / "s").rename(tmp_path / f"was{seed}")
    assert found[0] != found[1]
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 1  # the old build makes room


def test_a_cached_shard_that_was_cut_is_named(folder: Path, tmp_path: Path) -> None:
    rows = open_directory(str(folder)).rows["train"]
    store = CachedStore(LocalStore(folder), Cache(folder=tmp_path, bytes=1 << 40))
    store.read_bytes("train", rows[0])
    cached = next(tmp_path.rglob("train-000000.tar"))
    os.truncate(cached, 100)
    with pytest.raises(DamagedRow, match=r"train-000000\.tar"):
        store.read_bytes("train", rows[0])


def test_incomplete_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompleteError, match="not a directory"):
        open_directory(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="s3://"):
        open_store("ftp://host/x")
    with pytest.raises(ValueError, match="bucket"):
        open_store("s3:///x")
    made = make_directory(tmp_path / "s", rows=6, shards=2)
    shard = made / "train-000001.tar"
    os.truncate(shard, shard.stat().st_size - 10_240)
    with pytest.raises(ValueError, match=r"train-000001.tar is \d+ bytes long where the manifest says"):
        open_directory(str(made))
    shard.unlink()
    with pytest.raises(ValueError, match=r"train-000001.tar is missing"):
        open_directory(str(made))


def test_a_table_of_another_build_is_refused(tmp_path: Path) -> None:
    made = make_directory(tmp_path / "s", rows=6)
    np.save(made / "rows", np.load(made / "rows.npy")[:-1])
    with pytest.raises(ValueError, match="lists 5 rows where the manifest says 6"):
        open_directory(str(made))


@pytest.mark.parametrize("name", ["rows.npy", "rows-val.npy"])
def test_a_table_that_is_missing_is_not_an_empty_one(tmp_path: Path, name: str) -> None:
    """A run would validate on training rows without a word."""
    made = make_directory(tmp_path / "s", rows=6, val_rows=2)
    (made / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing or lists 0 rows where the manifest says"):
        open_directory(str(made))


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a loopback S3 server."""
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
                        "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    server.stop()


def upload(client: Any, folder: Path, prefix: str) -> None:
    """All files of a folder."""
    for path in folder.iterdir():
        client.upload_file(str(path), "bucket", f"{prefix}/{path.name}")


def test_s3_gives_the_same_batches_as_the_folder(s3: Any, folder: Path, tmp_path: Path) -> None:
    upload(s3, folder, "deep/set")
    local, remote = open_directory(str(folder)), open_directory("s3://bucket/deep/set")
    assert remote.manifest == local.manifest
    assert all(np.array_equal(remote.rows[split], local.rows[split]) for split in ("train", "val"))
    cached = open_directory("s3://bucket/deep/set", Cache(folder=tmp_path, bytes=1 << 30))
    plan = [[(0, row), (0, row + 1)] for row in range(0, 30, 2)]
    rules = Rules.of(local.manifest, "all")
    batches = []
    for directory, workers in ((local, 0), (remote, 2), (cached, 1)):
        loader = Loader([directory], rules=rules, rows=2, workers=workers)
        batches.append(list(loader.batches(plan)))
        loader.close()
    for a, b, c in zip(*batches, strict=True):
        assert a.inputs.tolist() == b.inputs.tolist() == c.inputs.tolist()
        assert [row.samples for row in a.rows] == [row.samples for row in b.rows] == [row.samples for row in c.rows]
    assert len(list(tmp_path.rglob("train-*.tar"))) == 5


def test_s3_errors_name_the_address(s3: Any, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"s3://bucket/none has no manifest.json"):
        open_directory("s3://bucket/none")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
        with pytest.raises(OSError, match=r"s3://bucket/none/manifest.json: Unable to locate credentials"):
            open_directory("s3://bucket/none")
    upload(s3, folder, "cut")
    directory = open_directory("s3://bucket/cut")
    row = directory.rows["train"][-1]
    name = f"train-{int(row['shard']):06d}.tar"
    s3.put_object(Bucket="bucket", Key=f"cut/{name}", Body=(folder / name).read_bytes()[:int(row["offset"]) + 100])
    with pytest.raises(DamagedRow, match=rf"s3://bucket/cut/{name}: row at offset {int(row['offset'])} is 100 bytes long"):
        directory.store.read_bytes("train", row)
    s3.delete_object(Bucket="bucket", Key=f"cut/{name}")
    with pytest.raises(FileNotFoundError, match=f"s3://bucket/cut/{name}"):
        directory.store.read_bytes("train", row)
    cached = open_directory("s3://bucket/cut", Cache(folder=tmp_path, bytes=1 << 30))
    with pytest.raises(OSError, match=rf"s3://bucket/cut/{name}: .*404"):
        cached.store.read_bytes("train", row)
    loader = Loader([directory], rules=Rules.of(directory.manifest, "all"), rows=1, workers=1)
    try:
        with pytest.raises(OSError, match=f"s3://bucket/cut/{name} does not exist"):  # from a worker as from here
            list(loader.batches([[(0, len(directory.rows["train"]) - 1)]]))
    finally:
        loader.close()
