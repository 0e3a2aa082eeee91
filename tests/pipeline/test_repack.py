"""Repacking: the samples a direct build at that length would hold, counts, determinism, resuming, and refusals."""

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import repack as module
from pipeline.build.state import BuildState, open_build
from pipeline.repack import RepackError, open_job, repack
from pipeline.verify import verify
from shards import manifest, table
from shards.reader import ShardReader
from tests.pipeline.small_sets import SET, contents, row, run_build, small_plan, small_raw, write_recipe, write_rows
from tests.pipeline.tiny import tiny_tokenizer


def direct(recipe: Path, out: Path, **changes: Any) -> Path:
    """A build of the recipe with these recipe keys."""
    plan = small_plan(recipe, overrides=[f"recipe.{key}={value}" for key, value in changes.items()])
    assert run_build(plan, open_build(plan, out)).manifest is not None
    return out


def samples(folder: Path) -> Counter[Any]:
    """Every sample by what a trainer sees of it, whatever its place."""
    found: Counter[Any] = Counter()
    for split, name in table.FILES.items():
        reader = ShardReader(folder, split)
        for entry in table.load(folder / name):
            for sample in reader.read(entry):
                told = tuple(sample.meta[key] for key in ("source", "row", "meta", "cut"))
                found[split, *told, sample.ids.tobytes(), sample.mask.tobytes(), sample.images] += 1
    return found


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_raw(tmp_path_factory.mktemp("sets"), rows=40)


@pytest.fixture(scope="module")
def long(recipe: Path) -> Path:
    return direct(recipe, recipe.parent / "long", seq_len=1024)


@pytest.mark.parametrize("rule", ["truncate", "split", "drop"])
def test_a_shorter_length_gives_what_a_direct_build_gives(tmp_path: Path, rule: str) -> None:
    rows = [row(n, images=1 + n % 2, turns=1 + n % 4) for n in range(30)]
    write_rows(tmp_path / "raw" / SET / "pages" / "train-00000-of-00001.parquet", rows)
    recipe = write_recipe(tmp_path, f'[sources.pages]\noverlong = "{rule}"')
    long, short = direct(recipe, tmp_path / "long", seq_len=1024), direct(recipe, tmp_path / "short", seq_len=160)
    body = repack(open_job(long, tmp_path / "out", seq_len=160))
    assert not [*verify(tmp_path / "out")]
    assert samples(tmp_path / "out") == samples(short)
    told = manifest.load(short)
    for key in ("samples", "val_samples", "tokens", "targets", "answer_tokens", "images", "bytes", "cut", "rejects"):
        assert body["sources"]["pages"][key] == told["sources"]["pages"][key], key
    assert body["plan"]["recipe"] == told["plan"]["recipe"]


def test_pages_are_split_at_their_breaks(tmp_path: Path) -> None:
    many = row(1, images=6)
    many["texts"] = [{"user": "Read.", "assistant": "<page_break>".join(f"page {k}" for k in range(6))}]
    write_rows(tmp_path / "raw" / SET / "pages" / "train-00000-of-00001.parquet", [many, row(2, images=6)])
    recipe = write_recipe(tmp_path, "[sources.pages]")
    long, short = direct(recipe, tmp_path / "long", seq_len=512), direct(recipe, tmp_path / "short", seq_len=80)
    body = repack(open_job(long, tmp_path / "out", seq_len=80))
    assert samples(tmp_path / "out") == samples(short)
    assert body["sources"]["pages"]["rejects"] == {"images-exceed-length": 1}
    assert pq.read_table(tmp_path / "out" / "rejects.parquet")["reason"].to_pylist() == ["images-exceed-length"]


def test_text_that_was_cut_grows_back(recipe: Path, long: Path, tmp_path: Path) -> None:
    short = direct(recipe, tmp_path / "short", seq_len=130)
    assert manifest.load(short)["sources"]["pages"]["cut"] > 5
    repack(open_job(short, tmp_path / "out", seq_len=1024))
    whole = {sample[2]: np.frombuffer(sample[5], np.int32) for sample in samples(long)}
    told = Counter()
    for sample in samples(tmp_path / "out"):
        ids, cut = np.frombuffer(sample[5], np.int32), re.fullmatch(r"(?:(\d+) tokens)?(.*)", sample[4])
        assert cut is not None
        rest = whole[sample[2]][len(ids):]
        assert np.array_equal(whole[sample[2]][:len(ids)], ids)
        assert len(rest) == int(cut[1] or 0), "what is still missing is said"
        if not cut[2]:
            assert ids[-1] == tiny_tokenizer().specials.assistant_end, "the last turn is whole again"
        told["whole" if not len(rest) else "images" if cut[2] else "turns"] += 1
    assert set(told) >= {"whole", "turns"}


def test_what_was_cut_can_be_cut_again(recipe: Path, tmp_path: Path) -> None:
    first = direct(recipe, tmp_path / "first", seq_len=200)
    repack(open_job(first, tmp_path / "second", seq_len=100))
    assert not [*verify(tmp_path / "second")]
    short = direct(recipe, tmp_path / "short", seq_len=100)
    assert {sample[5] for sample in samples(tmp_path / "second")} == {sample[5] for sample in samples(short)}


def test_workers_and_interruptions_do_not_change_a_byte(long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repack(open_job(long, tmp_path / "one", seq_len=256), workers=1)
    job = open_job(long, tmp_path / "two", seq_len=256)
    name = job.body["shards"][0]["name"]
    (tmp_path / "two" / f".{name}.1.partial").write_bytes(b"half")
    module.repack_shard(job, name)
    (tmp_path / "two" / f".{name}.1.partial").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_finalize", _full)
        job = open_job(long, tmp_path / "two", seq_len=256)
        with pytest.raises(OSError, match="No space"):
            repack(job, workers=2)
    assert not (tmp_path / "two" / manifest.NAME).exists()
    repack(open_job(long, tmp_path / "two", seq_len=256), workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert not (tmp_path / "two.build").exists()


def test_an_emptied_output_is_packed_again(long: Path, tmp_path: Path) -> None:
    repack(open_job(long, tmp_path / "one", seq_len=256))
    job = open_job(long, tmp_path / "two", seq_len=256)
    module.repack_shard(job, job.body["shards"][0]["name"])
    shutil.rmtree(tmp_path / "two")
    repack(open_job(long, tmp_path / "two", seq_len=256))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_two_at_once_are_refused(long: Path, tmp_path: Path) -> None:
    job = open_job(long, tmp_path / "out", seq_len=256)
    with BuildState(out=job.out, work=job.work).locked("repack") as free:
        assert free
        with pytest.raises(RepackError, match="another process is packing"):
            repack(job)
        with pytest.raises(RepackError, match="--fresh would delete"):
            open_job(long, tmp_path / "out", seq_len=512, fresh=True)
    assert repack(job)["seq_len"] == 256


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_it_refuses_what_it_would_spoil(long: Path, tmp_path: Path) -> None:
    with pytest.raises(RepackError, match="the directory to read from"):
        open_job(long, long, seq_len=256)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(RepackError, match="not empty"):
        open_job(long, tmp_path / "mine", seq_len=256)
    (tmp_path / "mine" / "README.md").write_text("keep")  # a name that a build writes, too
    with pytest.raises(RepackError, match="not empty"):
        open_job(long, tmp_path / "mine", seq_len=256, fresh=True)
    assert contents(tmp_path / "mine") == {"notes.txt": b"keep", "README.md": b"keep"}
    repack(open_job(long, tmp_path / "out", seq_len=256))
    with pytest.raises(RepackError, match="something else"):
        open_job(long, tmp_path / "out", seq_len=512)
    assert repack(open_job(long, tmp_path / "out", seq_len=256))["seq_len"] == 256
    repack(open_job(long, tmp_path / "out", seq_len=512, fresh=True))
    copy = shutil.copytree(long, tmp_path / "copy")
    next(copy.glob("train-*.tar")).unlink()
    with pytest.raises(RepackError, match=r"train-.*missing"):
        open_job(copy, tmp_path / "other", seq_len=256)
