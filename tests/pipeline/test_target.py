"""Builds into S3 (moto's server) with uploads that are cut, lost, stored short, hang or are killed: never a wrong directory."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.build import target as module
from pipeline.build.state import BuildStateError, open_build
from pipeline.build.target import Target, TargetError
from pipeline.cli import cli
from pipeline.plan import Plan
from tests.pipeline.small_sets import contents, run_build, small_plan, small_raw

boto3 = pytest.importorskip("boto3")
pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

from tests.pipeline.faulty_s3 import Fault, FaultyS3  # noqa: E402

BUCKET = "shards"
numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyS3]:
    server = FaultyS3()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
                            "AWS_ENDPOINT_URL": server.url, "AWS_EC2_METADATA_DISABLED": "true"}.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield server
    server.stop()


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_raw(tmp_path_factory.mktemp("sets"), rows=30)


@pytest.fixture(scope="module")
def plan(recipe: Path) -> Plan:
    return small_plan(recipe)


@pytest.fixture(scope="module")
def local(plan: Plan, recipe: Path) -> dict[str, bytes]:
    """What a local build gives."""
    run_build(plan, open_build(plan, recipe.parent / "local"))
    return contents(recipe.parent / "local")


@pytest.fixture
def url(server: FaultyS3) -> str:
    server.faults.clear()
    server.puts.clear()
    return f"s3://{BUCKET}/sets/{next(numbers)}"


def stored(url: str) -> dict[str, bytes]:
    """Every object below a URL."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    return {item["Key"].removeprefix(f"{prefix}/"): client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
            for page in pages for item in page.get("Contents", [])}


def uploads() -> list[str]:
    return [upload["Key"] for upload in boto3.client("s3").list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]


def test_the_same_bytes_as_a_local_build_and_nothing_left_behind(
        plan: Plan, local: dict[str, bytes], url: str, tmp_path: Path) -> None:
    state = open_build(plan, url, work=tmp_path / "work")
    report = run_build(plan, state, workers=2)
    assert stored(url) == local
    assert report.manifest is not None and report.manifest["plan"]["id"] == plan.id
    assert sorted(stored(f"{url}.build")) == ["plan.json"]
    assert not (tmp_path / "work" / "stage").exists()
    assert run_build(plan, open_build(plan, url, work=tmp_path / "other")).tasks_run == 0, "complete, seen from any machine"


@pytest.mark.parametrize("kind", ["cut", "lost", "short", "busy"])
def test_a_failing_upload_is_tried_again(plan: Plan, local: dict[str, bytes], url: str, server: FaultyS3, tmp_path: Path,
                                         kind: str) -> None:
    server.faults += [Fault(kind, "train-000001.tar", 2), Fault(kind, "done/000000.tar"), Fault(kind, "manifest.json"),
                      Fault(kind, "rows.npy")]
    run_build(plan, open_build(plan, url, work=tmp_path))
    assert not [fault for fault in server.faults if fault.times], "every fault was met"
    assert stored(url) == local


def test_the_manifest_comes_last_and_a_marker_after_its_shard(plan: Plan, url: str, server: FaultyS3, tmp_path: Path) -> None:
    run_build(plan, open_build(plan, url, work=tmp_path))
    names = [path.partition(url.removeprefix("s3://"))[2] for path in server.puts]
    assert names[-1] == "/manifest.json"
    for shard in range(len(plan.shards)):
        assert names.index(f"/train-{shard:06d}.idx") < names.index(f".build/done/{shard:06d}.tar")


def test_a_store_that_never_takes_a_file_ends_the_build_and_keeps_what_arrived(
        plan: Plan, local: dict[str, bytes], url: str, server: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIES", 2)
    server.faults.append(Fault("short", "train-000001.tar", 100))
    state = open_build(plan, url, work=tmp_path)
    with pytest.raises(TargetError, match=r"train-000001\.tar could not be put"):
        run_build(plan, state)
    assert state.finished() == {0}
    assert "manifest.json" not in stored(url)
    server.faults.clear()
    server.puts.clear()
    run_build(plan, open_build(plan, url, work=tmp_path))
    assert stored(url) == local
    assert not [path for path in server.puts if "train-000000.tar" in path], "what had arrived was not put again"


def test_a_shard_that_waits_locally_is_not_built_again(plan: Plan, url: str, server: FaultyS3, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIES", 1)
    server.faults.append(Fault("short", "train-000000.tar"))
    state = open_build(plan, url, work=tmp_path)
    with pytest.raises(TargetError):
        run_build(plan, state)
    before = (tmp_path / "stage" / "train-000000.tar").stat().st_mtime_ns
    moments: dict[str, int] = {}
    put = Target.put

    def watched(self: Target, path: Path, name: str) -> None:
        moments[name] = path.stat().st_mtime_ns
        put(self, path, name)

    monkeypatch.setattr(Target, "put", watched)
    run_build(plan, state)
    assert moments["train-000000.tar"] == before


def test_a_multipart_upload_is_confirmed_and_stale_ones_are_aborted(
        plan: Plan, local: dict[str, bytes], url: str, server: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    for name in ("/train-000000.tar", "/val-000007.tar", "/manifest.json", "/notes.bin", ".build/done/000001.tar"):
        client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}{name}")
    state = open_build(plan, url, work=tmp_path)
    run_build(plan, state, part=(1, 2))
    assert f"{prefix}/manifest.json" in uploads(), "another slice may be putting it"
    assert f"{prefix}.build/done/000001.tar" not in uploads()
    run_build(plan, state)
    assert uploads() == [f"{prefix}/notes.bin"], "not ours"
    assert stored(url) == local
    monkeypatch.setattr(module, "PART_BYTES", 5 << 20)
    big = tmp_path / "big"
    big.write_bytes(os.urandom(11 << 20))
    server.faults.append(Fault("cut", "train-000009.tar", 2))
    state.target.put(big, "train-000009.tar")  # type: ignore[union-attr]
    assert stored(url)["train-000009.tar"] == big.read_bytes()
    assert uploads() == [f"{prefix}/notes.bin"]
    client.abort_multipart_upload(Bucket=bucket, Key=f"{prefix}/notes.bin",
                                  UploadId=client.list_multipart_uploads(Bucket=bucket)["Uploads"][0]["UploadId"])


def test_a_build_killed_in_mid_upload_goes_on_from_another_machine(
        plan: Plan, local: dict[str, bytes], recipe: Path, url: str, server: FaultyS3, tmp_path: Path) -> None:
    fault = Fault("hang", "train-000002.tar", 100)
    server.faults.append(fault)
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "build-shards", "--recipe", str(recipe), "--out", url,
               "--raw", str(recipe.parent / "raw"), "--work", str(tmp_path / "first"), "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        assert fault.seen.wait(120)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
    assert "manifest.json" not in stored(url), errors
    server.faults.clear()
    fault.release.set()
    assert Target(url=url).finished() == {0, 1}
    run_build(plan, open_build(plan, url, work=tmp_path / "second"))
    assert stored(url) == local


def test_another_plan_and_foreign_files_are_refused(plan: Plan, recipe: Path, url: str, tmp_path: Path) -> None:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/thesis.pdf", Body=b"mine")
    with pytest.raises(BuildStateError, match=r"thesis\.pdf"):
        open_build(plan, url, work=tmp_path / "a")
    boto3.client("s3").delete_object(Bucket=bucket, Key=f"{prefix}/thesis.pdf")
    run_build(plan, open_build(plan, url, work=tmp_path / "a"), part=(0, 2))
    other = small_plan(recipe, seed=7)
    with pytest.raises(BuildStateError, match=r"recipe\.seed: 0 -> 7"):
        open_build(other, url, work=tmp_path / "b")
    run_build(other, open_build(other, url, work=tmp_path / "b", fresh=True))
    assert json.loads(stored(url)["manifest.json"])["seed"] == 7
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/thesis.pdf", Body=b"mine")
    (tmp_path / "b" / "notes.txt").write_text("mine")
    open_build(plan, url, work=tmp_path / "b", fresh=True)
    assert (tmp_path / "b" / "notes.txt").exists()
    assert stored(url) == {"thesis.pdf": b"mine"}, "a fresh start deletes what a build wrote and nothing else"


def test_a_fresh_start_deletes_nothing_where_no_build_of_ours_was(plan: Plan, url: str, tmp_path: Path) -> None:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    theirs = {"README.md": b"another data set", "train-000000.tar": b"theirs", "tokenizer.json": b"{}"}
    for name, data in theirs.items():
        boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data)
    with pytest.raises(BuildStateError, match=r"README\.md"):
        open_build(plan, url, work=tmp_path, fresh=True)
    boto3.client("s3").put_object(Bucket=bucket, Key=f"{prefix}/manifest.json", Body=b"[1, 2]")
    with pytest.raises(TargetError, match="is not a shard manifest"):
        open_build(plan, url, work=tmp_path, fresh=True)
    assert stored(url) == {**theirs, "manifest.json": b"[1, 2]"}


def test_a_missing_bucket_is_a_plain_error(plan: Plan, server: FaultyS3, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="check the bucket"):
        open_build(plan, "s3://nowhere-at-all/x", work=tmp_path)


def test_other_file_systems_too(plan: Plan, local: dict[str, bytes], tmp_path: Path) -> None:
    run_build(plan, open_build(plan, f"file://{tmp_path}/out", work=tmp_path / "work"))
    assert contents(tmp_path / "out") == local


def test_a_url_without_a_bucket_is_refused(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("s3://", "s3:///"):
        with pytest.raises(TargetError, match="names no bucket"):
            open_build(plan, url)
    assert not contents(tmp_path)


def test_a_store_that_cannot_be_read_is_told(plan: Plan, tmp_path: Path) -> None:
    words = [sys.executable, "-c", "from pipeline.cli import main; main()", "stats", "s3://shards/x"]
    names = ("PATH", "PYTHONPATH")
    plain = {**{name: os.environ[name] for name in names if name in os.environ}, "HOME": str(tmp_path),
             "AWS_EC2_METADATA_DISABLED": "true"}
    for environment, word in ((plain, "NoCredentialsError"), ({**plain, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
                              "AWS_MAX_ATTEMPTS": "1", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "EndpointConnectionError")):
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 1 and word in done.stderr and "credentials and the network" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def told(*arguments: str) -> tuple[int, str]:
    """Exit code, and what a command printed on both streams."""
    result = CliRunner().invoke(cli, arguments)
    return result.exit_code, result.output


@pytest.mark.parametrize("quick", [(), ("--quick",)])
def test_verify_reads_a_url_and_names_what_is_wrong(
        plan: Plan, local: dict[str, bytes], url: str, tmp_path: Path, quick: tuple[str, ...]) -> None:
    run_build(plan, open_build(plan, url, work=tmp_path))
    code, output = told("verify", url, "--workers", "2", *quick)
    assert code == 0
    assert json.loads(output.splitlines()[-1])["shards"] == len(json.loads(local["manifest.json"])["shards"])
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    client.delete_object(Bucket=bucket, Key=f"{prefix}/train-000000.idx")
    client.put_object(Bucket=bucket, Key=f"{prefix}/train-000009.tar", Body=b"x")
    whole = bytearray(local["train-000001.tar"])
    whole[len(whole) // 2] ^= 4
    client.put_object(Bucket=bucket, Key=f"{prefix}/train-000001.tar", Body=bytes(whole))
    code, output = told("verify", url, "--workers", "2", *quick)
    assert code == 1
    assert "train-000000.idx: missing" in output
    assert "train-000009.tar: a shard that the manifest does not list" in output
    assert ("train-000001.tar: sha256 is" in output) == (not quick)


def test_stats_reads_a_url_and_inspect_says_that_it_does_not(plan: Plan, url: str, tmp_path: Path) -> None:
    code, output = told("stats", url)
    assert (code, "has no manifest.json" in output) == (1, True)
    code, output = told("verify", url)
    assert (code, "has no manifest.json" in output) == (1, True)
    run_build(plan, open_build(plan, url, work=tmp_path))
    code, output = told("stats", url, "--json")
    assert code == 0
    assert json.loads(output)
    code, output = told("inspect", url)
    assert (code, "bring the directory here first" in output) == (1, True)
