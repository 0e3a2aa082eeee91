"""The last step of a build: merge the tasks' tables, pack the validation parts, write the manifest.

Runs when every task is done and is a function of their results alone, so it may be killed and run again. Time and memory grow with
the number of shards for the row table (40 bytes a packed row) and the manifest, and with the largest shard for everything else.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.build import card, tables
from pipeline.build.spool import Spool, open_spool
from pipeline.build.state import BuildState
from pipeline.build.tables import RejectLine
from pipeline.pack import pack
from pipeline.plan import Plan
from pipeline.seeds import rng
from pipeline.tokens import Tokenizer
from shards import manifest, table
from shards.sample import make_key
from shards.writer import remove_partials, write_file, write_shard


def finalize(plan: Plan, state: BuildState, tokenizer: Tokenizer) -> dict[str, Any]:
    """Complete the directory; returns the manifest. Every task must be done."""
    folders = [state.work / "done" / f"{shard:06d}" for shard in range(len(plan.shards))]
    if state.target is not None:
        state.target.fetch_results(state.work / "done", range(len(plan.shards)))
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    foreign = [result["shard"]["name"] for result in results if result["plan"] != plan.id]
    assert not foreign, f"results of another plan: {foreign}"
    train_rows = np.concatenate([np.load(folder / "rows.npy", allow_pickle=False) for folder in folders])
    val_shards, val_rows, val_tables = _pack_validation(plan, state.out, folders)
    files = [
        write_file(state.out / table.FILES["train"], table.encode(train_rows)),
        write_file(state.out / table.FILES["val"], table.encode(val_rows)),
        tables.write(state.out / "samples.parquet", _parts(folders, "samples.parquet", val_tables), tables.SAMPLES),
        tables.write(state.out / "rejects.parquet", _parts(folders, "rejects.parquet", [_file_rejects(plan)]), tables.REJECTS),
        write_file(state.out / "tokenizer.json", tokenizer.to_json()),
    ]
    shards = [result["shard"] for result in results] + val_shards
    sources = merge_counts(plan, results)
    # a hub's id, or a file's name without the folder it happened to lie in
    tokenizer_name = plan.recipe.tokenizer if tokenizer.revision else Path(plan.recipe.tokenizer).name
    body = {
        "recipe": plan.recipe.name, "description": plan.recipe.description, "seed": plan.recipe.seed,
        "fraction": plan.recipe.fraction, "mode": plan.recipe.mode, "seq_len": plan.recipe.seq_len,
        "vocab_size": tokenizer.vocab_size, "train": dict(plan.recipe.train),
        "specials": {f"<|{name}|>": token for name, token in tokenizer.specials.as_dict().items()},
        "tokenizer": {"name": tokenizer_name, "revision": tokenizer.revision, "sha256": tokenizer.sha256},
        "sources": sources, "shards": shards, "versions": dict(plan.versions), "plan": {"id": plan.id, **plan.identity()},
        "splits": {"train": split_totals(train_rows, plan.recipe.seq_len), "val": split_totals(val_rows, plan.recipe.seq_len)},
    }
    files += card.write(state.out, body, max_images(folders, val_tables))
    body["files"] = sorted((asdict(entry) for entry in files), key=lambda entry: str(entry["name"]))
    remove_partials(state.out)
    manifest.save(state.out, body)
    body = manifest.load(state.out)
    if state.target is not None:
        state.target.publish(state.out, body)
    state.log("complete", plan=plan.id, shards=len(shards))
    shutil.rmtree(state.work / "done", ignore_errors=True)
    shutil.rmtree(state.work / "scratch", ignore_errors=True)
    return body


def _parts(folders: list[Path], name: str, last: list[pa.Table], *, columns: list[str] | None = None) -> Iterator[pa.Table]:
    for folder in folders:
        yield pq.read_table(folder / name, columns=columns, use_threads=False)
    yield from last


def _file_rejects(plan: Plan) -> pa.Table:
    return tables.rejects_table([RejectLine(source=bad.source, row=bad.name, reason=bad.reason, detail=bad.detail)
                                 for bad in plan.bad_files])


def _pack_validation(plan: Plan, out: Path, folders: list[Path]) -> tuple[list[dict[str, Any]], table.Rows, list[pa.Table]]:
    """Pack the tasks' validation samples into val shards of about `shard_samples`, in the order of the tasks."""
    entries: list[dict[str, Any]] = []
    rows: list[table.Rows] = [table.make([])]
    found: list[pa.Table] = []
    waiting: list[tuple[Spool, int]] = []
    spools: list[Spool] = []

    def flush() -> None:
        number = len(entries)
        infos = [spool.infos[index] for spool, index in waiting]
        packed = pack([info.tokens for info in infos], [info.patches for info in infos], plan.recipe.seq_len,
                      rng(plan.recipe.seed, "pack", "val", number))
        entry, part = write_shard(out, "val", number, ((waiting[i][0].read(waiting[i][1]) for i in row) for row in packed))
        entries.append(asdict(entry))
        rows.append(part)
        places = [(row, index) for row, samples in enumerate(packed) for index in samples]
        found.append(tables.samples_table([(make_key("val", number, position), "val", number, row, infos[index])
                                           for position, (row, index) in enumerate(places)]))
        for spool in spools:
            spool.__exit__()
        waiting.clear()
        spools.clear()

    for folder in folders:
        spool = open_spool(folder / "val.bin", folder / "val.json")
        spools.append(spool)
        waiting += [(spool, index) for index in range(len(spool))]
        if len(waiting) >= plan.recipe.shard_samples or len(spools) >= 500:  # 500: files open at once
            flush()
    if waiting:
        flush()
    return entries, np.concatenate(rows), found


def merge_counts(plan: Plan, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Totals per source over the tasks, with what was asked and what the files offered."""
    merged: dict[str, Any] = {}
    for planned, spec in zip(plan.sources, plan.recipe.sources):
        total: Counter[str] = Counter()
        for result in results:
            total.update(result["counts"].get(spec.name, {}))
        rejects = {key.removeprefix("reject:"): count for key, count in sorted(total.items()) if key.startswith("reject:")}
        merged[spec.name] = {
            "kind": spec.kind, "repo": spec.repo, "folder": spec.folder, "revision": planned.revision, "bucket": spec.bucket,
            "mode": plan.recipe.mode_of(spec), "repeats": spec.repeats, "available": planned.available, "asked": planned.asked,
            "files": len(planned.files), "bad_files": sum(bad.source == spec.name for bad in plan.bad_files),
            "rejects": rejects, "rejected": sum(rejects.values()),
            **{key: total[key] for key in ("rows", "row_groups", "samples", "val_samples", "images", "kept_images", "tokens",
                                           "targets", "answer_tokens", "bytes", "cut", "dropped_turns")}}
    return merged


def split_totals(rows: table.Rows, seq_len: int) -> dict[str, Any]:
    """Totals of a split from its row table."""
    tokens = int(rows["tokens"].sum())
    return {"rows": len(rows), "samples": int(rows["samples"].sum()), "tokens": tokens, "images": int(rows["images"].sum()),
            "patches": int(rows["patches"].sum()), "fill": round(tokens / (len(rows) * seq_len), 6) if len(rows) else 1.0}


def max_images(folders: list[Path], val_tables: list[pa.Table]) -> tuple[int, bool]:
    """The most images of any sample, and whether any has tiles: the slots that the data card must list."""
    most, tiled = 0, False
    for part in _parts(folders, "samples.parquet", val_tables, columns=["images", "modes"]):
        if part.num_rows:
            most = max(most, int(pc.max(part["images"]).as_py()))
            tiled = tiled or "gundam" in pc.unique(pc.list_flatten(part["modes"])).to_pylist()
    return most, tiled
