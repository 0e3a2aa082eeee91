"""One directory, every reader: webdataset, Megatron-Energon, `load_dataset`, Ray Data and DALI open it as it was built.

All samples and all images are counted and compared with the project's own reader, by each library itself. A library that is
not installed skips its test. DALI may live in an environment of its own:

    DALI_PYTHON=/path/to/python pytest tests/e2e/test_readers.py
"""

import io
import json
import os
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.build.state import open_build
from shards import table
from shards.reader import ShardReader
from tests.pipeline.small_sets import SET, picture, row, run_build, small_plan, write_recipe, write_rows


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What the project's own reader finds in a split: key -> suffixes of its images, key -> ids, key -> source row."""

    images: dict[str, list[str]]
    ids: dict[str, list[int]]
    rows: dict[str, str]

    @property
    def pictures(self) -> Counter[str]:
        return Counter(suffix for suffixes in self.images.values() for suffix in suffixes)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text only, one to seven images, and gundam with tiles; samples with most images come late."""
    folder = tmp_path_factory.mktemp("readers")
    raw = folder / "raw" / SET
    write_rows(raw / "talk" / "train-00000-of-00001.parquet", [row(1000 + n, images=0, turns=2) for n in range(40)])
    write_rows(raw / "pages" / "train-00000-of-00001.parquet", [row(n, images=1 + n // 12, turns=1 + n % 3) for n in range(70)])
    wide = [{**row(2000 + n), "images": [{"bytes": picture(n, (900, 700)), "path": f"a.b/c.{n}.png"}]} for n in range(12)]
    write_rows(raw / "wide" / "train-00000-of-00001.parquet", wide)
    sources = '[sources.talk]\n[sources.pages]\n[sources.wide]\nmode = "gundam"'
    recipe = write_recipe(folder, sources, seq_len=1024, shard_samples=30)
    plan = small_plan(recipe)
    run_build(plan, open_build(plan, str(folder / "shards"), fresh=False, work=None))
    return folder / "shards"


def truth(folder: Path, split: str = "train") -> Truth:
    reader = ShardReader(folder, split)
    samples = [sample for entry in table.load(folder / table.FILES[split]) for sample in reader.read(entry)]
    return Truth(images={s.key: [suffix for suffix, _ in s.images] for s in samples}, ids={s.key: s.ids.tolist() for s in samples},
                 rows={s.key: s.meta["row"] for s in samples})


def tars(folder: Path, split: str = "train") -> list[str]:
    return sorted(str(path) for path in folder.glob(f"{split}-*.tar"))


def is_image(name: str) -> bool:
    return name.endswith((".jpg", ".png"))


def test_the_fixture_is_worth_reading(built: Path) -> None:
    known = truth(built)
    assert len(tars(built)) >= 3
    assert any(not suffixes for suffixes in known.images.values())
    assert max(len(suffixes) for suffixes in known.images.values()) >= 6
    assert any(".tiles." in suffix for suffix in known.pictures)
    assert truth(built, "val").ids


def test_webdataset(built: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    for split in ("train", "val"):
        known = truth(built, split)
        seen: Counter[str] = Counter()
        samples = list(webdataset.WebDataset(tars(built, split), shardshuffle=False).decode("pil"))
        for sample in samples:
            fields = [name for name in sample if is_image(name)]
            assert fields == known.images[sample["__key__"]]
            assert all(isinstance(sample[name], Image.Image) for name in fields)
            assert sample["ids.npy"].tolist() == known.ids[sample["__key__"]]
            assert sample["json"]["row"] == known.rows[sample["__key__"]]
            seen.update(fields)
        assert [sample["__key__"] for sample in samples] == list(known.ids)
        assert seen == known.pictures


def test_load_dataset(built: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(built), cache_dir=str(tmp_path / "cache"))
    for split, name in (("train", "train"), ("val", "validation")):
        known = truth(built, split)
        seen: Counter[str] = Counter()
        for sample in loaded[name]:
            key = Path(sample["__key__"]).name
            fields = [field for field, value in sample.items() if is_image(field) and value is not None]
            assert sorted(fields) == sorted(known.images[key])
            assert all(sample[field].size for field in fields)
            assert list(sample["ids.npy"]) == known.ids[key]
            assert sample["json"]["row"] == known.rows[key]
            seen.update(fields)
        assert len(loaded[name]) == len(known.ids)
        assert seen == known.pictures


def test_load_dataset_streaming(built: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    known = truth(built)
    stream = datasets.load_dataset(str(built), split="train", streaming=True, cache_dir=str(tmp_path / "cache"))
    seen = Counter(field for sample in stream for field, value in sample.items() if is_image(field) and value is not None)
    assert seen == known.pictures


def test_energon(built: Path) -> None:
    pytest.importorskip("megatron.energon")
    script = f"""
import json
from dataclasses import dataclass
from megatron.energon import (Cooker, CrudeSample, DefaultTaskEncoder, Sample, WorkerConfig, basic_sample_keys, get_loader,
                              get_val_dataset, stateless)

@dataclass
class Fields(Sample):
    fields: list[str]

@stateless
def cook(sample: CrudeSample) -> Fields:
    return Fields(**basic_sample_keys(sample), fields=sorted(sample))

class Encoder(DefaultTaskEncoder):
    decoder = None
    cookers = [Cooker(cook)]

found = {{}}
for part in ("train", "val"):
    dataset = get_val_dataset({str(built)!r}, split_part=part, worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
                              batch_size=None, task_encoder=Encoder())
    found[part] = [(sample.__key__, sample.fields) for sample in get_loader(dataset)]
print("FOUND" + json.dumps(found))
"""
    out = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=200)
    assert out.returncode == 0, out.stderr[-3000:]
    found = json.loads(next(line for line in out.stdout.splitlines() if line.startswith("FOUND")).removeprefix("FOUND"))
    for split in ("train", "val"):
        known = truth(built, split)
        fields = {key.rpartition("/")[2]: [name for name in names if is_image(name)] for key, names in found[split]}
        assert len(found[split]) == len(known.ids)
        assert fields == {key: sorted(suffixes) for key, suffixes in known.images.items()}


def test_ray_data(built: Path) -> None:
    ray = pytest.importorskip("ray")
    known = truth(built)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    try:
        data = ray.data.read_webdataset(tars(built), decoder=None, file_extensions=["tar"])
        samples = data.take_all()
    finally:
        ray.shutdown()
    assert {sample["__key__"] for sample in samples} == set(known.ids)
    assert len(samples) == len(known.ids)
    seen: Counter[str] = Counter()
    for sample in samples:
        fields = [name for name, value in sample.items() if is_image(name) and isinstance(value, bytes)]  # absent: NaN
        assert sorted(fields) == sorted(known.images[sample["__key__"]])
        for name in fields:
            Image.open(io.BytesIO(sample[name])).load()
        assert np.load(io.BytesIO(sample["ids.npy"]), allow_pickle=False).tolist() == known.ids[sample["__key__"]]
        seen.update(fields)
    assert seen == known.pictures


def test_dali_index_layout(built: Path) -> None:
    """The index as DALI's parser reads it: version and count, then (extension, offset, size, name) of each sample's members."""
    for path in tars(built):
        known = truth(built)
        data, lines = Path(path).read_bytes(), Path(path).with_suffix(".idx").read_text().splitlines()
        version, count = lines[0].split()
        assert version == "v1.2"
        assert int(count) == len(lines) - 1
        for line in lines[1:]:
            words = line.split()
            members = [(words[k], int(words[k + 1]), int(words[k + 2]), words[k + 3]) for k in range(0, len(words), 4)]
            key = Path(members[0][3]).name.partition(".")[0]
            assert [ext for ext, *_ in members if is_image("." + ext)] == known.images[key]
            for ext, offset, size, _ in members:
                assert len(data[offset:offset + size]) == size
                if ext == "json":
                    assert json.loads(data[offset:offset + size])["row"] == known.rows[key]


DALI = """
import json, sys
import numpy as np
from nvidia.dali import fn, pipeline_def

paths = json.loads(sys.argv[1])

@pipeline_def(batch_size=1, num_threads=1, device_id=None)
def read(ext):
    return tuple(fn.readers.webdataset(paths=paths, index_paths=[p[:-4] + ".idx" for p in paths], ext=ext, name="reader",
                                       missing_component_behavior="empty"))

EXT = ["json", "ids.npy", *json.loads(sys.argv[2])]
pipe = read(EXT)
pipe.build()
size = pipe.epoch_size("reader")
rows, pictures = [], {}
for _ in range(size):
    fields = [np.asarray(field.at(0)) for field in pipe.run()]
    rows.append(json.loads(fields[0].tobytes())["row"])
    for ext, field in zip(EXT[2:], fields[2:]):
        pictures[ext] = pictures.get(ext, 0) + (field.size > 0)

@pipeline_def(batch_size=1, num_threads=1, device_id=None)
def decode(ext):
    raw = fn.readers.webdataset(paths=paths, index_paths=[p[:-4] + ".idx" for p in paths], ext=[ext], name="reader",
                                missing_component_behavior="skip")
    return fn.decoders.image(raw, device="cpu")

decoded = {}
for ext in EXT[2:]:
    pipe = decode(ext)
    pipe.build()
    decoded[ext] = 0
    for _ in range(pipe.epoch_size("reader")):
        decoded[ext] += np.asarray(pipe.run()[0].at(0)).shape[2] == 3
print("FOUND" + json.dumps([rows, pictures, decoded]))
"""


def test_dali(built: Path) -> None:
    python = os.environ.get("DALI_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import nvidia.dali"], capture_output=True).returncode:
        pytest.skip("nvidia-dali is not installed (DALI_PYTHON names a python that has it)")
    known = truth(built)
    words: list[Any] = [python, "-c", DALI, json.dumps(tars(built)), json.dumps(sorted(known.pictures))]
    out = subprocess.run(words, capture_output=True, text=True, timeout=250)
    assert out.returncode == 0, out.stderr[-3000:]
    rows, pictures, decoded = json.loads(next(line for line in out.stdout.splitlines() if line.startswith("FOUND"))[5:])
    assert sorted(rows) == sorted(known.rows.values())
    assert pictures == decoded == known.pictures


def test_energon_index_is_offsets(built: Path) -> None:
    for path in tars(built):
        data = Path(f"{path}.idx").read_bytes()
        offsets = struct.unpack(f"<{len(data) // 8}Q", data)
        keys = [key for key in truth(built).ids if key.startswith(Path(path).stem)]
        assert len(offsets) == len(keys) + 1
        raw = Path(path).read_bytes()
        for key, offset in zip(keys, offsets, strict=False):
            assert raw[offset:offset + len(key)].decode() == key
