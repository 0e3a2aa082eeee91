"""Packing built shards again for another sequence length, without the raw data and without decoding an image.

Each shard becomes one shard of the same number: its samples, as they are or recut (pipeline.recut), are packed anew and copied.
So a task is again a pure function of its shard, finished shards are kept in OUT.build/ until all are done, and the manifest comes
last. Split, sources and pictures stay; counts, tables, rows and checksums are new; samples that no longer fit are cut, split or
dropped by their source's rule and counted.

    pipeline repack shards/stage1 --seq-len 8192 --out shards/stage1-8k

Cost: reading and writing every byte once, about 200 MB/s a core; a worker maps one shard and holds only what it recut.
"""

import hashlib
import json
import mmap
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.build import card, tables
from pipeline.build.finalize import max_images, split_totals
from pipeline.build.spool import SampleInfo
from pipeline.build.state import BuildState, begun, busy, discard
from pipeline.build.tables import RejectLine
from pipeline.conversation import Reject
from pipeline.pack import pack
from pipeline.processes import open_pool
from pipeline.recut import Piece, needs_recut, recut
from pipeline.seeds import rng
from pipeline.tokens import prepare
from shards import manifest, table, tar
from shards import verify as checks
from shards.reader import iter_samples
from shards.sample import make_key
from shards.writer import PackedSample, partial_path, remove_partials, sync_folder, write_file, write_shard

COUNTED = ("samples", "val_samples", "images", "kept_images", "tokens", "targets", "answer_tokens", "bytes", "cut")


class RepackError(ValueError):
    """Shards that cannot be packed again, or an output folder that is something else; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every task of a repack needs: where from, where to, and the manifest it starts from."""

    folder: Path
    out: Path
    work: Path
    seq_len: int
    body: dict[str, Any]

    def identity(self) -> dict[str, Any]:
        """The plan of the new directory: the old one's, and what changed."""
        plan = self.body["plan"]
        return {**plan, "recipe": {**plan["recipe"], "seq_len": self.seq_len},
                "id": hashlib.sha256(json.dumps([plan["id"], self.seq_len]).encode()).hexdigest()[:16],
                "repacked": {"plan": plan["id"], "seq_len": self.body["seq_len"]}}


def open_job(folder: Path, out: Path, *, seq_len: int, fresh: bool = False) -> Job:
    """Check the shards and prepare the output, or go on with it. Raises RepackError; ValueError without a manifest."""
    body = checks.load_manifest(folder)
    if problems := [str(problem) for problem in checks.check_files(folder, body)]:
        raise RepackError(f"{folder} is not whole: {'; '.join(problems[:3])}; see `pipeline verify`")
    if out.resolve() == folder.resolve():
        raise RepackError(f"--out {out} is the directory to read from; choose another")
    job = Job(folder=folder.resolve(), out=out, work=out.with_name(out.name + ".build"), seq_len=seq_len, body=body)
    mark = job.work / "plan.json"
    state = BuildState(out=out, work=job.work)
    if fresh and busy(job.work):
        raise RepackError(f"another process is packing {out} at this moment; --fresh would delete its work")
    if fresh and begun(state):
        discard(state)
    if (out / manifest.NAME).exists():
        recorded = manifest.load(out)["plan"]["id"]
    else:
        recorded = json.loads(mark.read_text())["id"] if mark.exists() else None
    if recorded not in (None, job.identity()["id"]):
        raise RepackError(f"{out} holds something else (plan {recorded}); choose another --out, or start over with --fresh")
    if recorded is None and out.exists() and any(out.iterdir()):
        raise RepackError(f"{out} is not empty; choose another --out")
    for place in (out, job.work / "done", job.work / "scratch"):
        place.mkdir(parents=True, exist_ok=True)
    write_file(mark, json.dumps(job.identity(), indent=1, sort_keys=True).encode())
    return job


def repack(job: Job, *, workers: int = 1, progress: Callable[[int], None] = lambda samples: None) -> dict[str, Any]:
    """Pack every shard that is not done, then complete the directory; returns its manifest."""
    if (job.out / manifest.NAME).exists():
        return manifest.load(job.out)
    with BuildState(out=job.out, work=job.work).locked("repack") as free:
        if not free:
            raise RepackError(f"another process is packing {job.out} at this moment")
        return _repack(job, workers, progress)


def _repack(job: Job, workers: int, progress: Callable[[int], None]) -> dict[str, Any]:
    names = [entry["name"] for entry in job.body["shards"]]
    todo = [name for name in names if not _done(job, name)]
    for result in _run(job, todo, min(workers, len(todo))):
        progress(result["shard"]["samples"])
    return _finalize(job, [job.work / "done" / name for name in names])


def _done(job: Job, name: str) -> bool:
    """Whether a shard is packed and still in the output."""
    result = job.work / "done" / name / "result.json"
    return result.exists() and BuildState(out=job.out, work=job.work).whole(json.loads(result.read_text()))


def _run(job: Job, names: list[str], workers: int) -> Iterator[dict[str, Any]]:
    if workers <= 1:
        yield from (repack_shard(job, name) for name in names)
        return
    with open_pool(workers) as pool:
        try:
            yield from (future.result() for future in as_completed([pool.submit(repack_shard, job, name) for name in names]))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def repack_shard(job: Job, name: str) -> dict[str, Any]:
    """Pack one shard anew: the shard in the output, the rest in `done/NAME`, which appears last."""
    split, number = name.partition("-")[0], int(name.partition("-")[2].partition(".")[0])
    tokenizer = prepare((job.folder / "tokenizer.json").read_bytes(), name=job.body["tokenizer"]["name"])
    rules = {source["name"]: source["overlong"] for source in job.body["plan"]["recipe"]["sources"]}
    rejects: list[RejectLine] = []
    pieces: list[Piece] = []
    with open(job.folder / name, "rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    infos = _infos(job.folder / "samples.parquet", split, number)
    for info, members in zip(infos, _members(view), strict=True):
        if not needs_recut(info, job.seq_len):
            pieces.append(Piece(fields=[(m.name.partition(".")[2], view[m.data_offset:m.data_offset + m.size]) for m in members],
                                info=info))
            continue
        sample = next(iter_samples(view[members[0].offset:members[-1].end], base=members[0].offset, whole=False))
        try:
            pieces += recut(sample, info, seq_len=job.seq_len, rule=rules[info.source], tokenizer=tokenizer)
        except Reject as reject:
            rejects.append(RejectLine(source=info.source, row=info.row, reason=reject.reason, detail=reject.detail))
    return _publish(job, split, number, pieces, rejects)


def _publish(job: Job, split: str, number: int, pieces: list[Piece], rejects: list[RejectLine]) -> dict[str, Any]:
    packed = pack([piece.info.tokens for piece in pieces], [piece.info.patches for piece in pieces], job.seq_len,
                  rng(job.body["seed"], "pack", split, number))
    entry, rows = write_shard(job.out, split, number, ((_packed(pieces[index]) for index in row) for row in packed))
    results = partial_path(job.work / "scratch" / entry.name)
    results.mkdir()
    write_file(results / "rows.npy", table.encode(rows))
    places = [(row, index) for row, samples in enumerate(packed) for index in samples]
    tables.write(results / "samples.parquet", [tables.samples_table(
        [(make_key(split, number, position), split, number, row, pieces[index].info)
         for position, (row, index) in enumerate(places)])], tables.SAMPLES)
    tables.write(results / "rejects.parquet", [tables.rejects_table(rejects)], tables.REJECTS)
    result = {"shard": asdict(entry), "counts": _counts(split, pieces, rejects)}
    write_file(results / "result.json", json.dumps(result, sort_keys=True).encode())
    target = job.work / "done" / entry.name
    shutil.rmtree(target, ignore_errors=True)
    os.rename(results, target)
    sync_folder(target.parent)
    return result


def _packed(piece: Piece) -> PackedSample:
    return PackedSample(fields=piece.fields, tokens=piece.info.tokens, images=piece.info.images, patches=piece.info.patches)


def _counts(split: str, pieces: list[Piece], rejects: list[RejectLine]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for piece in pieces:
        info = piece.info
        counts.setdefault(info.source, Counter()).update(
            samples=1, val_samples=split == "val", images=info.images, kept_images=info.kept_images, tokens=info.tokens,
            targets=info.targets, answer_tokens=info.answer_tokens, bytes=info.bytes, cut=bool(info.cut))
    for line in rejects:
        counts.setdefault(line.source, Counter())[f"reject:{line.reason}"] += 1
    return {name: dict(count) for name, count in counts.items()}


def _members(view: memoryview) -> Iterator[list[tar.Member]]:
    """The members of each sample of an archive."""
    sample: list[tar.Member] = []
    for member in tar.members(view, whole=True):
        if sample and sample[0].name.partition(".")[0] != member.name.partition(".")[0]:
            yield sample
            sample = []
        sample.append(member)
    if sample:
        yield sample


def _infos(path: Path, split: str, number: int) -> Iterator[SampleInfo]:
    """The numbers of a shard's samples, in their order."""
    lines = pq.read_table(path, filters=[("split", "=", split), ("shard", "=", number)], use_threads=False)
    for line in sorted(lines.to_pylist(), key=lambda line: str(line["key"])):
        values = {name: line[name] for name in tables.SAMPLES.names[4:]}
        yield SampleInfo(**{**values, "modes": tuple(values["modes"]), "sizes": tuple(values["sizes"])})


def _finalize(job: Job, folders: list[Path]) -> dict[str, Any]:
    """Merge the tables and write the manifest last. Every shard must be done."""
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    rows = {split: np.concatenate([table.make([]), *(np.load(folder / "rows.npy", allow_pickle=False) for folder in folders
                                                      if folder.name.startswith(f"{split}-"))]) for split in table.FILES}

    def parts(name: str, before: list[Path]) -> Iterator[pa.Table]:
        for path in before:
            source = pq.ParquetFile(path)
            yield from (source.read_row_group(group) for group in range(source.num_row_groups))
        yield from (pq.read_table(folder / name) for folder in folders)

    files = [
        *(write_file(job.out / table.FILES[split], table.encode(found)) for split, found in rows.items()),
        tables.write(job.out / "samples.parquet", parts("samples.parquet", []), tables.SAMPLES),
        tables.write(job.out / "rejects.parquet", parts("rejects.parquet", [job.folder / "rejects.parquet"]), tables.REJECTS),
        write_file(job.out / "tokenizer.json", (job.folder / "tokenizer.json").read_bytes()),
    ]
    body = {**job.body, "seq_len": job.seq_len, "plan": job.identity(), "shards": [result["shard"] for result in results],
            "sources": _merge(job.body["sources"], results),
            "splits": {split: split_totals(found, job.seq_len) for split, found in rows.items()}}
    files += card.write(job.out, body, max_images(folders, []))
    body["files"] = sorted((asdict(entry) for entry in files), key=lambda entry: str(entry["name"]))
    remove_partials(job.out)
    manifest.save(job.out, body)
    shutil.rmtree(job.work)
    return manifest.load(job.out)


def _merge(sources: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """The old counts per source with the samples counted anew and the new rejects added, one a sample that was dropped."""
    merged = {}
    for name, source in sources.items():
        total: Counter[str] = Counter()
        for result in results:
            total.update(result["counts"].get(name, {}))
        rejects = Counter(source["rejects"])
        rejects.update({key.removeprefix("reject:"): count for key, count in total.items() if key.startswith("reject:")})
        merged[name] = {**source, **{key: total[key] for key in COUNTED}, "rejects": dict(sorted(rejects.items())),
                        "rejected": sum(rejects.values())}
    return merged
