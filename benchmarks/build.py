"""build-shards beside the naive way, on the image sets of ../shared/data/hub, and its rates and memory.

    python -m benchmarks.build --raw ../shared/data/hub                # everything; about ten minutes on two cores
    python -m benchmarks.build --raw ../shared/data/hub --only images  # images | text | workers | memory
    python -m benchmarks.build --append                                # and appends what it printed to benchmarks/RESULTS.md

- images: A B A B. Naive: `datasets` decodes to PIL, ImageOps.pad to 1024, JPEG, tokenise, webdataset.ShardWriter. Ours: the tasks
  of the same rows at mode base. Processor time of the whole process an image, and bytes written against the raw parquet.
- text: processor time of text-only tasks against that of the tokenizer's own batches on the same texts in one process, for the
  chat rows alone, for all three sets, and for chat rows joined by eight (what is beside the tokenizer is paid a sample); in turns.
- workers: wall time of two worker processes against one, A B A B, from the first task to the last, on a minute of work: the image
  sets twelve times over under other names.
- memory: peak of the worker process over row groups of 100 PNGs of 2048 pixels: an eighth, a third or all of each is noise.

A tokenizer is trained on the text itself unless --tokenizer names one; processor times of a shared machine vary by some 20 %.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import common

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

TEXT_TURNS = 3
SET = "HuggingFaceM4/FineVision"
IMAGE_SETS = ("coco_objects", "docling_pages", "icdar2015_scene", "icdar2015_words", "latex_formulas", "math_vision", "ocsr_chem",
              "opencqa", "pdf_pages", "sroie", "wtq_tables")
CHAT = """[sources.SmolTalk]
kind = "smoltalk"
"""
TEXT = CHAT + """[sources.GSM8K]
kind = "gsm8k"
[sources.MMLU]
kind = "mmlu"
folder = "all"
split = "test"
"""


def recipe_file(folder: Path, tokenizer: str, sources: str, *, samples: int) -> Path:
    """A recipe at mode base and 4096 tokens."""
    path = folder / "bench.toml"
    head = f'tokenizer = "{tokenizer}"\nmode = "base"\nseq_len = 4096\nvalidation = 0.0\nshard_samples = {samples}\n'
    path.write_text(head + sources)
    return path


def images_recipe(folder: Path, tokenizer: str, *, samples: int = 600, times: int = 1) -> Path:
    """All image sets, `times` times."""
    sources = "".join(f'[sources.{name}-{k}]\nfolder = "{name}"\n' for k in range(times) for name in IMAGE_SETS)
    return recipe_file(folder, tokenizer, sources, samples=samples)


def ours(recipe: Path, raw: Path, out: Path) -> dict[str, float]:
    """Run every task in this process; processor seconds, images, bytes. Imports come before the clock, as the naive way's do."""
    from pipeline.build.runner import run_task
    from pipeline.build.state import open_build
    from pipeline.plan import make_plan
    from pipeline.recipe import load_recipe
    from pipeline.tokens import load_tokenizer

    loaded = load_recipe(str(recipe))
    tokenizer = load_tokenizer(loaded.tokenizer)
    importlib.import_module("pandas")  # pyarrow imports it at the first table; the naive way's datasets has done so before
    begun = time.process_time()
    plan = make_plan(loaded, raw=raw, tokenizer=tokenizer)
    state = open_build(plan, out)
    shards = [run_task(plan, shard, tokenizer, state, lambda source, row, begun=0: None)["shard"]
              for shard in range(len(plan.shards))]
    cpu = time.process_time() - begun
    return {"cpu": cpu, **{key: sum(shard[key] for shard in shards) for key in ("images", "bytes", "samples")}}


def naive(tokenizer: str, raw: Path, out: Path) -> dict[str, float]:
    """The script that people write first."""
    import datasets
    import webdataset
    from PIL import ImageOps
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(tokenizer)
    out.mkdir(parents=True)
    images = 0
    begun = time.process_time()
    with webdataset.ShardWriter(f"file:{out}/naive-%06d.tar", maxcount=600, verbose=0) as sink:
        for name in IMAGE_SETS:
            rows = datasets.load_dataset("parquet", data_files=[str(p) for p in sorted((raw / SET / name).glob("*.parquet"))],
                                         split="train", cache_dir=str(out / "cache"))
            rows = rows.cast_column("images", datasets.List(datasets.Image()))
            for number, row in enumerate(rows):
                text = "\n".join(f"{turn['user']}\n{turn['assistant']}" for turn in row["texts"])
                sample: dict[str, Any] = {"__key__": f"{name}-{number:06d}",
                                          "json": {"texts": row["texts"], "ids": encoder.encode(text).ids}}
                for place, image in enumerate(row["images"]):
                    padded = ImageOps.pad(image.convert("RGB"), (1024, 1024), color=(127, 127, 127))
                    data = io.BytesIO()
                    padded.save(data, "JPEG", quality=90)
                    sample[f"{place}.jpg"] = data.getvalue()
                    images += 1
                sink.write(sample)
    cpu = time.process_time() - begun
    return {"cpu": cpu, "images": images, "bytes": sum(path.stat().st_size for path in out.glob("*.tar"))}


def text_rate(recipe: Path, raw: Path, out: Path) -> dict[str, float]:
    """Text-only tasks, and the tokenizer on the same texts in the same batches: `library` as anybody calls it (encode_batch, then
    the ids of each), `alone` as the pipeline does. In turns, after a first build in the same process, so that none pays for
    imports, which a build of more than some thousand samples does not feel."""
    from pipeline.tokens import Tokenizer

    batches: list[list[str]] = []
    encode = Tokenizer.encode_batch
    keeper: list[Tokenizer] = []

    def keeping(self: Tokenizer, texts: Any) -> list[list[int]]:
        batches.append(list(texts))
        keeper[:] = [self]
        return encode(self, texts)

    Tokenizer.encode_batch = keeping  # type: ignore[method-assign]
    ours(recipe, raw, out)
    Tokenizer.encode_batch = encode  # type: ignore[method-assign]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in a worker: one thread
    library = keeper[0].inner.encode_batch
    seen: dict[str, list[float]] = {"task": [], "alone": [], "library": []}
    second = out.with_name(out.name + "-second")
    for _ in range(TEXT_TURNS):
        told = ours(recipe, raw, second)
        seen["task"].append(told["cpu"])
        for left in (second, second.with_name(second.name + ".build")):
            shutil.rmtree(left)
        fresh = Tokenizer(keeper[0].inner, name="")  # that knows no short texts yet
        begun = time.process_time()
        count = sum(len(ids) for batch in batches for ids in encode(fresh, batch))
        seen["alone"].append(time.process_time() - begun)
        begun = time.process_time()
        assert count == sum(len(item.ids) for batch in batches for item in library(batch, add_special_tokens=False))
        seen["library"].append(time.process_time() - begun)
    return {**{name: statistics.median(values) for name, values in seen.items()}, "samples": told["samples"], "tokens": count}


def workers(recipe: Path, raw: Path, out: Path, count: int) -> float:
    """Seconds from the first task's start to the last task's end with so many worker processes (imports are not counted)."""
    from pipeline.build.local import run_tasks
    from pipeline.build.state import open_build
    from pipeline.plan import make_plan
    from pipeline.recipe import load_recipe
    from pipeline.tokens import load_tokenizer

    loaded = load_recipe(str(recipe))
    tokenizer = load_tokenizer(loaded.tokenizer)
    plan = make_plan(loaded, raw=raw, tokenizer=tokenizer)
    state = open_build(plan, out)
    first = 0.0

    def beat(rows: int) -> None:
        nonlocal first
        if rows and not first:
            first = time.perf_counter()

    for _ in run_tasks(plan, range(len(plan.shards)), state, tokenizer, workers=count, beat=beat):
        pass
    return time.perf_counter() - first


def memory(folder: Path, tokenizer: str, noise: int) -> dict[str, float]:
    """Peak memory of a worker over two row groups of 100 PNGs of 2048 pixels; `noise` of a picture's lines are noise."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    chance = np.random.default_rng(0)
    pictures = []
    for _ in range(4):
        pixels = np.full((2048, 2048, 3), 255, dtype=np.uint8)
        pixels[:noise] = chance.integers(0, 256, (noise, 2048, 3), dtype=np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG", compress_level=1)
        pictures.append(data.getvalue())
    schema = pa.schema([("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
                        ("texts", pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())])))])
    place = folder / "raw" / SET / "big"
    place.mkdir(parents=True)
    rows = [{"images": [{"bytes": pictures[k % 4], "path": None}], "texts": [{"user": "Read.", "assistant": f"page {k}"}]}
            for k in range(100)]
    with pq.ParquetWriter(place / "train-00000-of-00001.parquet", schema, use_dictionary=False) as writer:
        for _ in range(2):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema), row_group_size=100)
    recipe = recipe_file(folder, tokenizer, "[sources.big]\n", samples=1000)
    peak = worker_peak(recipe, folder / "raw", folder / "out")
    for left in ("raw", "out", "out.build"):
        shutil.rmtree(folder / left)
    return {"row group MB": 100 * len(pictures[0]) / 1e6, "peak MB": peak}


def worker_peak(recipe: Path, raw: Path, out: Path) -> float:
    """Most megabytes resident in the one worker process of a build-shards command (looked at fifty times a second)."""
    import psutil

    command = common.started("pipeline", "build-shards", "--recipe", str(recipe), "--raw", str(raw), "--out", str(out),
                             "--workers", "1")
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=common.ROOT) as process:
        while process.poll() is None:
            for worker in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError, StopIteration):
                    peak = max(peak, common.own_peak(worker.pid))
            time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"build-shards ended with {process.returncode}")
    return peak


def long_chats(raw: Path, folder: Path) -> Path:
    """The chat rows joined by eight, of which full sets hold many; a raw folder of them. (The shared rows are a hundred tokens.)"""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = Path("HuggingFaceTB/smol-smoltalk/data")
    table = pa.concat_tables(pq.read_table(path) for path in sorted((raw / place).glob("train-*.parquet")))
    turns = [[message for message in row if message["role"] != "system"] for row in table["messages"].to_pylist()]
    turns = [row for row in turns if [m["role"] for m in row] == ["user", "assistant"] * (len(row) // 2)]
    rows = [{"messages": [message for row in turns[at:at + 8] for message in row], "source": "joined"}
            for at in range(0, len(turns), 8)] * 16
    (folder / "long" / place).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "long" / place / "train-00000-of-00001.parquet")
    return folder / "long"


def child(what: str, recipe: Path | str, raw: Path, out: Path, count: int = 0) -> dict[str, float]:
    """One measurement in a process of its own; what it told."""
    command = [sys.executable, "-m", "benchmarks.build", "--child", what, str(recipe), str(raw), str(out), str(count)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for left in ("", ".build", "-second", "-second.build"):
        shutil.rmtree(out.with_name(out.name + left), ignore_errors=True)
    return dict(json.loads(told.stdout.splitlines()[-1]))


def run_child(what: str, recipe: str, raw: str, out: str, count: str) -> None:
    """What `child` starts."""
    place = Path(recipe), Path(raw), Path(out)
    if what == "ours":
        result = ours(*place)
    elif what == "naive":
        result = naive(recipe, *place[1:])
    elif what == "text":
        result = text_rate(*place)
    else:
        result = {"seconds": workers(*place, int(count))}
    print(json.dumps(result))


def trained(raw: Path, folder: Path) -> str:
    """A tokenizer of 8,192 ids trained on the text sets."""
    import pyarrow.parquet as pq

    from pipeline.train_tokenizer import train_bpe

    def texts() -> Iterator[str]:
        for path in sorted(raw.glob("*/*/**/*train*.parquet")):
            for column in ("question", "answer", "messages", "texts"):
                if column in pq.read_schema(path).names:
                    for value in pq.read_table(path, columns=[column])[column].to_pylist()[:3000]:
                        yield value if isinstance(value, str) else json.dumps(value)

    (folder / "tokenizer.json").write_bytes(train_bpe(list(texts()), vocab_size=8192))
    return str(folder / "tokenizer.json")


def report(raw: Path, only: str | None, rounds: int, tokenizer: str | None) -> Iterator[str]:
    """The lines of the result."""
    with tempfile.TemporaryDirectory(prefix="bench-build-") as name:
        folder = Path(name)
        bpe = tokenizer or trained(raw, folder)
        if only in (None, "images"):
            size = sum(path.stat().st_size for s in IMAGE_SETS for path in (raw / SET / s).glob("*.parquet"))
            recipe = images_recipe(folder, bpe)
            runs: dict[str, list[dict[str, float]]] = {"naive": [], "ours": []}
            for _ in range(rounds):
                runs["naive"].append(child("naive", bpe, raw, folder / "naive"))
                runs["ours"].append(child("ours", recipe, raw, folder / "ours"))
            cost = {key: statistics.median(1e3 * run["cpu"] / run["images"] for run in found) for key, found in runs.items()}
            for key, found in runs.items():
                seconds = ", ".join(format(run["cpu"], ".1f") for run in found)
                yield (f"{key}: {cost[key]:.2f} ms of processor time an image ({seconds} s for {found[0]['images']:.0f}), "
                       f"{found[0]['bytes'] / 1e6:.1f} MB = {found[0]['bytes'] / size:.2f} x raw parquet")
            yield f"naive / ours: {cost['naive'] / cost['ours']:.1f} x (aim 5 x; bytes: 1.2 x)"
        if only in (None, "text"):
            eight = "".join(CHAT.replace("SmolTalk]", f"SmolTalk{k}]") for k in range(8))  # else plan and start count
            for label, sources, place in (("smol-smoltalk, eight times", eight, raw), ("smol-smoltalk, gsm8k, mmlu", TEXT, raw),
                                          ("smol-smoltalk joined by eight", CHAT, long_chats(raw, folder))):
                recipe = recipe_file(folder, bpe, sources, samples=4000)
                found = [child("text", recipe, place, folder / "text") for _ in range(rounds)]
                library, alone = (statistics.median(run[name] / run["task"] for run in found) for name in ("library", "alone"))
                beside = statistics.median(1e6 * (run["task"] - run["alone"]) / run["samples"] for run in found)
                length = found[0]["tokens"] / found[0]["samples"]
                yield (f"text, {label}: {library:.0%} of the speed of encode_batch (aim 80 %), {alone:.0%} of that of the "
                       f"pipeline's own, faster call; {found[0]['samples']:.0f} samples of {length:.0f} tokens, {beside:.0f} us a "
                       "sample beside it")
        if only in (None, "workers"):
            recipe = images_recipe(folder, bpe, samples=150, times=12)
            wall: dict[int, list[float]] = {1: [], 2: []}
            for count in (1, 2) * rounds:
                wall[count].append(child("workers", recipe, raw, folder / "workers", count)["seconds"])
            one, two = statistics.median(wall[1]), statistics.median(wall[2])
            yield f"workers: one {one:.1f} s, two {two:.1f} s: {one / two:.2f} x (aim 1.8 x)"
        if only in (None, "memory"):
            for noise in (256, 700, 2048):
                told = memory(folder, bpe, noise)
                yield (f"memory: {told['peak MB']:.0f} MB at most, 200 images in row groups of "
                       f"{told['row group MB']:.0f} MB (aim 1,000 MB)")


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, default=Path("../shared/data/hub"))
    parser.add_argument("--only", choices=["images", "text", "workers", "memory"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer")
    parser.add_argument("--append", action="store_true", help="append the lines to benchmarks/RESULTS.md")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(*options.child)
        return
    load = os.getloadavg()[0]
    lines = [f"python -m benchmarks.build, {options.rounds} rounds, {os.cpu_count()} cores, load {load:.1f} before it:"]
    print(lines[0], flush=True)
    for line in report(options.raw.resolve(), options.only, options.rounds, options.tokenizer):
        print(line, flush=True)
        lines.append(line)
    if options.append:
        with open(Path(__file__).with_name("RESULTS.md"), "a") as results:
            results.write("\n## Building shards, one run\n\n" + "".join(f"    {line}\n" for line in lines))


if __name__ == "__main__":
    main()
