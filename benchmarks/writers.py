"""Writing shards: build-shards beside the naive script, litdata optimize, streaming's MDSWriter and Ray Data, on the same images.

    python -m benchmarks.writers                       # the image sets of ../shared/data/hub, 3 turns; about five minutes
    python -m benchmarks.writers --rounds 1 --sets 2   # two of the sets

Two tables. Prepared: every peer gets the naive preparation (decode, pad to 1024, JPEG, tokenise) and writes the result with its
own writer. As they are: the peers copy the picture's bytes and tokenise, which is the least that a writer can do. build-shards
does its own work in both: fitted pictures, ids with masks, packed rows, tables, checksums. One process each (Ray its own workers),
processor time of the whole process tree from the first row to the closed directory, imports and Ray's start not counted.
"""

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import common, peers

SET = "HuggingFaceM4/FineVision"


def files_of(sets: list[str], raw: Path) -> list[str]:
    """The parquet files of the sets."""
    return [str(path) for name in sets for path in sorted((raw / SET / name).glob("*.parquet"))]


def prepare(row: dict[str, Any], encoder: Any, how: str) -> dict[str, Any]:
    """A row as the naive script writes it: its text, its ids, its pictures padded to 1024 or as they are."""
    text = "\n".join(f"{turn['user']}\n{turn['assistant']}" for turn in row["texts"])
    images = [image["bytes"] for image in row["images"]]
    if how == "prepared":
        from PIL import Image, ImageOps

        for place, data in enumerate(images):
            padded = ImageOps.pad(Image.open(io.BytesIO(data)).convert("RGB"), (1024, 1024), color=(127, 127, 127))
            out = io.BytesIO()
            padded.save(out, "JPEG", quality=90)
            images[place] = out.getvalue()
    return {"texts": row["texts"], "ids": encoder.encode(text).ids, "images": images}


def rows_of(files: list[str]) -> Iterator[dict[str, Any]]:
    """All rows, a batch at a time."""
    import pyarrow.parquet as pq

    for path in files:
        for batch in pq.ParquetFile(path).iter_batches(64, columns=["images", "texts"]):
            yield from batch.to_pylist()


def write_naive(files: list[str], encoder: Any, how: str, out: Path) -> None:
    """webdataset.ShardWriter."""
    import webdataset

    with webdataset.ShardWriter(f"file:{out}/naive-%06d.tar", maxcount=600, verbose=0) as sink:
        for number, row in enumerate(rows_of(files)):
            made = prepare(row, encoder, how)
            sink.write({"__key__": f"{number:06d}", "json": {"texts": made["texts"], "ids": made["ids"]},
                        **{f"{place}.jpg": data for place, data in enumerate(made["images"])}})


def write_mds(files: list[str], encoder: Any, how: str, out: Path) -> None:
    """MDSWriter: a row's pictures as one field, since columns are fixed."""
    import pickle

    writer: Any = peers.import_mds()
    with writer(out=str(out / "mds"), columns={"images": "bytes", "json": "json"}, size_limit=1 << 26) as sink:
        for row in rows_of(files):
            made = prepare(row, encoder, how)
            sink.write({"images": pickle.dumps(made["images"]), "json": {"texts": made["texts"], "ids": made["ids"]}})


class Convert:
    """What litdata calls for each input, a parquet file: its rows."""

    def __init__(self, tokenizer: str, how: str) -> None:
        self.tokenizer, self.how, self.encoder = tokenizer, how, None

    def __call__(self, path: str) -> Iterator[dict[str, bytes]]:
        """Rows as bytes: litdata wants the same structure of every sample."""
        import pickle

        from tokenizers import Tokenizer

        self.encoder = self.encoder or Tokenizer.from_file(self.tokenizer)
        for row in rows_of([path]):
            made = prepare(row, self.encoder, self.how)
            yield {"images": pickle.dumps(made["images"]),
                   "json": json.dumps({"texts": made["texts"], "ids": made["ids"]}).encode()}


def write_litdata(files: list[str], tokenizer: str, how: str, out: Path) -> None:
    """litdata's optimize with one worker."""
    from litdata import optimize

    optimize(fn=Convert(tokenizer, how), inputs=files, output_dir=str(out / "litdata"), chunk_bytes="64MB", num_workers=1,
             verbose=False)


def write_ray(files: list[str], tokenizer: str, how: str, out: Path) -> None:
    """Ray Data on its own workers: read, map, write_webdataset; Ray has been started."""
    import ray

    def rows(batch: Any) -> Any:
        from tokenizers import Tokenizer

        encoder = Tokenizer.from_file(tokenizer)
        made = [prepare(row, encoder, how) for row in batch.to_pylist()]
        return {"json": [json.dumps({"texts": one["texts"], "ids": one["ids"]}) for one in made],
                "images": [json.dumps([len(data) for data in one["images"]]).encode() + b"\n" + b"".join(one["images"])
                           for one in made]}

    ray.data.DataContext.get_current().enable_progress_bars = False
    found = ray.data.read_parquet(files, columns=["images", "texts"])
    found.map_batches(rows, batch_format="pyarrow", batch_size=64).write_webdataset(str(out / "ray"))


def run_lane(name: str, recipe: str, tokenizer: str, raw: str, sets: list[str], how: str, out: str) -> common.Told:
    """One writer; its costs."""
    files, folder = files_of(sets, Path(raw)), Path(out)
    if name == "ours":
        from benchmarks.build import ours

        told = ours(Path(recipe), Path(raw), folder)
        return {"cpu": told["cpu"], "bytes": told["bytes"], "images": told["images"], "peak": common.own_peak()}
    from tokenizers import Tokenizer

    folder.mkdir(parents=True)
    encoder = Tokenizer.from_file(tokenizer)
    if name == "Ray Data":
        import ray

        ray.init(num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, log_to_driver=False, logging_level="error")
    elif name == "litdata":
        import litdata  # noqa: F401
    elif name == "streaming":
        peers.import_mds()
    else:
        import webdataset  # noqa: F401
    begun = common.tree_cpu()
    if name == "Ray Data":
        write_ray(files, tokenizer, how, folder)
    elif name == "litdata":
        write_litdata(files, tokenizer, how, folder)
    elif name == "streaming":
        write_mds(files, encoder, how, folder)
    else:
        write_naive(files, encoder, how, folder)
    cpu, memory = common.tree_cpu() - begun, common.own_peak()
    images = sum(len(row["images"]) for row in rows_of(files))
    return {"cpu": cpu, "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), "images": images,
            "peak": memory}


def report(options: Any) -> Iterator[str]:
    """Both tables."""
    from benchmarks.build import IMAGE_SETS, images_recipe, trained

    sets = list(IMAGE_SETS[:options.sets])
    raw = options.raw.resolve()
    size = sum(Path(path).stat().st_size for path in files_of(sets, raw))
    found = peers.usable()
    with common.scratch("writers") as folder:
        tokenizer = trained(raw, folder)
        recipe = images_recipe(folder, tokenizer)
        text = recipe.read_text("utf-8").split("[sources.")
        recipe.write_text("[sources.".join([text[0], *(part for part in text[1:] if part.split("-0]")[0] in sets)]))
        for how, title in (("prepared", "Prepared (decode, pad to 1024, JPEG, tokenise)"), ("as they are", "Bytes as they are")):
            def run(name: str, how: str = how) -> common.Told:
                out = folder / "out"
                try:
                    python = sys.executable if name == "ours" else peers.python()
                    return common.lane("writers", [name, recipe, tokenizer, raw, sets, how, out], python)
                finally:
                    shutil.rmtree(out, ignore_errors=True)
                    shutil.rmtree(out.with_name("out.build"), ignore_errors=True)

            names = ["ours", "webdataset", "litdata", "streaming", "Ray Data"]
            lanes = {name: (lambda name=name: run(name)) for name in names if not found.get(name)}
            told, failed = common.turns(lanes, options.rounds)
            cost = {name: 1e3 * common.median(runs, "cpu") / runs[0]["images"] for name, runs in told.items()}
            yield f"{title}, {told['ours'][0]['images']:,.0f} images:"
            yield from common.table(
                ["writer", "processor time, ms an image", "ours = 1", "bytes, raw parquet = 1", "peak of its main process, MB"],
                [["build-shards" if name == "ours" else "naive: webdataset.ShardWriter" if name == "webdataset" else name,
                  f"{cost[name]:.2f}", f"{cost[name] / cost['ours']:.2f}", f"{runs[0]['bytes'] / size:.2f}",
                  f"{common.median(runs, 'peak'):,.0f}"] for name, runs in told.items()])
            yield from common.missing({name: error for name, error in found.items() if error and name in names} | failed)


def main() -> None:
    """The command."""
    parser = common.parser(__doc__)
    parser.add_argument("--raw", type=Path, default=common.DATA)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sets", type=int, default=None, help="only so many of the image sets")
    options = parser.parse_args()
    if options.lane:
        print(json.dumps(run_lane(*json.loads(options.lane))))
        return
    with_versions = common.versions("pyarrow", "pillow", "simplejpeg") + "; peers: " + peers.versions(
        "webdataset", "litdata", "streaming", "Ray Data")
    common.publish("Writing shards", "writers", report(options), with_versions=with_versions, append=options.append)


if __name__ == "__main__":
    main()
