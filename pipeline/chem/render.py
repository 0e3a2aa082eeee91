"""render-chem from end to end: select molecules, draw them in parallel, write the set; resumable, sliceable.

    raw/rendered/chem/train-000NN-of-000MM.parquet   the rows
                      rejects.jsonl                  every line left out: row, smiles, reason, detail
                      quarantine.jsonl               rows that hung or crashed a worker (an input of the next run)
                      manifest.json                  written last: identity, files with sha256, counts
                      README.md, preview.png         the card
                      .work/                         what is done so far; the buckets go when the set is complete

A file that is done is never drawn again. The set depends on the input, the options and the versions in `identity`,
never on the workers, the slices or how often it was killed. Cost: about .25 ms a molecule to choose, 2-4 ms to draw.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.chem.card import write_card, write_preview
from pipeline.chem.job import Job
from pipeline.chem.output import write_lines, write_parquet, write_text
from pipeline.chem.plan import FORMAT, Plan, identity_of
from pipeline.chem.pool import WORKER, Pool
from pipeline.chem.select import Molecule, Reject, Share, Spool, read_bucket, remove, select
from pipeline.chem.state import check_identity, lock, read_record, read_share

TASK_ROWS = 24


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run did. `complete` is false while other slices are outstanding."""

    rows: int
    molecules: int
    rejects: dict[str, int]
    files: int
    reused: int
    bytes: int
    complete: bool
    parsed: int
    restarts: int
    route: str
    why: str
    peak_worker_mb: float


@dataclass(kw_only=True)
class Progress:
    """Hooks for a progress bar: a phase begins with its total (0: unknown), then counts of rows and rejects."""

    phase: Callable[[str, int], None] = lambda name, total: None
    step: Callable[[int, int], None] = lambda rows, rejects: None
    say: Callable[[str], None] = lambda text: None


@dataclass(kw_only=True)
class _Run:
    plan: Plan
    progress: Progress
    identity: dict[str, Any]
    reused: int = 0
    records: dict[int, dict[str, Any]] = field(default_factory=dict)


def render(
    plan: Plan, *, workers: int, deadline: float = 20.0, memory_mb: int = 3072, progress: Progress | None = None,
    command: tuple[str, ...] = WORKER,
) -> Report:
    """Renders this slice of the set, or what is left of it. Raises OtherSet, PoolError, ValueError."""
    progress = progress or Progress()
    run = _Run(plan=plan, progress=progress, identity=identity_of(plan))
    plan.work.mkdir(parents=True, exist_ok=True)
    with lock(plan.work / f"lock-{plan.part}"):
        check_identity(plan, run.identity)
        owned = [file for file in range(plan.files) if plan.owns(file)]
        for file in owned:
            if (record := read_record(plan, file)) is not None:
                run.records[file] = record
        run.reused = len(run.records)
        share = read_share(plan)
        missing = [file for file in owned if file not in run.records]
        restarts, route, why, peak = 0, "", "", 0.0
        if missing or share is None:
            with Pool(plan.job, workers=workers, quarantine=plan.out / f"quarantine{plan.suffix}.jsonl",
                      deadline=deadline, memory_mb=memory_mb, command=command) as pool:
                share = _work(run, pool, share, missing)
                restarts, route, why, peak = pool.restarts, pool.route, pool.why, pool.peak_memory_mb
        assert share is not None
        complete = _finish(run, share)
    rejects = Counter(reject["reason"] for record in run.records.values() for reject in record["rejects"])
    rejects.update(_count_reasons(plan.work / f"rejects{plan.suffix}.jsonl"))
    return Report(
        rows=sum(int(record["rows"]) for record in run.records.values()),
        molecules=sum(min(share.unique[file], share.rows[file]) for file in owned), rejects=dict(sorted(rejects.items())),
        files=len(owned), reused=run.reused, bytes=sum(int(record["bytes"]) for record in run.records.values()),
        complete=complete, parsed=share.parsed, restarts=restarts, route=route, why=why, peak_worker_mb=round(peak, 1),
    )


def _work(run: _Run, pool: Pool, share: Share | None, missing: list[int]) -> Share:
    plan = run.plan
    folder = plan.work / f"buckets{plan.suffix}"
    spool = Spool(folder=folder, files=plan.files, owned=plan.owns)
    if share is None or not folder.exists():
        remove(folder)
        folder.mkdir()
        share = _select(run, pool, spool)
    if pool.why:
        run.progress.say(f"the raw-pixel route is not available here ({pool.why}); pictures are the same, but slower")
    unique, rows = sum(share.unique), sum(share.rows)
    if plan.n > unique > 0:
        styles = f"{plan.n // unique} to {-(-plan.n // unique)}" if plan.n % unique else str(plan.n // unique)
        run.progress.say(f"{plan.n:,} rows from {unique:,} different molecules: {styles} styles of each")
    if not rows:
        raise ValueError("no molecule is left to draw: every line was rejected; see rejects in " + str(plan.work))
    run.progress.phase("draw", sum(share.rows[file] for file in missing))
    duplicates: dict[int, list[Reject]] = {file: [] for file in missing}
    stream = pool.run("depict", _draw_tasks(spool, share, missing, duplicates), sent=2)
    for file in missing:
        _draw_file(run, file, share, stream, duplicates, spool)
    return share


def _select(run: _Run, pool: Pool, spool: Spool) -> Share:
    plan = run.plan
    total = sum(source.lines for source in plan.sources)
    run.progress.phase("choose", min(total, int(plan.n * 1.06) + 64) if plan.n else total)
    path = plan.work / f"rejects{plan.suffix}.jsonl"
    with open(path, "w", encoding="utf-8") as file:

        def on_reject(ordinal: int, reject: Reject) -> None:
            if ordinal % plan.parts == plan.part:
                file.write(_reject_line(reject))
            run.progress.step(0, 1)

        share = select(
            list(plan.sources), pool, spool, n=plan.n, files=plan.files, seed=plan.shuffle_seed,
            limits=plan.job.limits, on_reject=on_reject, on_progress=lambda rows: run.progress.step(rows, 0),
        )
    fields = {"unique": share.unique, "rows": share.rows, "lines": share.lines, "parsed": share.parsed, "bands": share.bands}
    write_text(plan.work / f"share{plan.suffix}.json", json.dumps(fields))
    return share


def _draw_tasks(
    spool: Spool, share: Share, files: list[int], duplicates: dict[int, list[Reject]]
) -> Iterator[list[list[Any]]]:
    """Argument lists [canonical SMILES, copy, molecule], file after file; a task never crosses a file's end."""
    for file in files:
        if not share.rows[file]:
            continue  # `_draw_file` asks for none of its rows, and may be past it before this is
        molecules = read_bucket(spool, file, duplicates[file].append)
        for start in range(0, share.rows[file], TASK_ROWS):
            stop = min(start + TASK_ROWS, share.rows[file])
            chosen = [(molecules[i % len(molecules)], i // len(molecules)) for i in range(start, stop)]
            yield [[molecule.smiles, copy, molecule] for molecule, copy in chosen]


def _draw_file(
    run: _Run, file: int, share: Share, stream: Iterator[tuple[list[list[Any]], list[Any]]],
    duplicates: dict[int, list[Reject]], spool: Spool,
) -> None:
    """Takes the file's rows off the stream, writes it, then its record (which says that it is done)."""
    plan = run.plan
    rejects: list[dict[str, str]] = []

    def rows() -> Iterator[dict[str, Any]]:
        taken = count = 0
        while taken < share.rows[file]:
            arguments, results = next(stream)
            left_out = 0
            for (smiles, copy, molecule), (row, image) in zip(arguments, results, strict=True):
                if "reason" in row:
                    left_out += 1
                    reject = Reject(origin=molecule.origin, smiles=smiles, reason=row["reason"], detail=row["detail"])
                    rejects.append(_reject_fields(reject) | {"copy": str(copy)})
                    continue
                yield _fields(plan.name, f"{plan.name}-{file:05d}-{count:06d}", molecule, copy, row, image, plan.job)
                count += 1
            taken += len(results)
            run.progress.step(len(results), left_out)

    written = write_parquet(plan.out / plan.file_name(file), rows(), plan.work / f"file{plan.suffix}.part")
    if not share.rows[file]:
        read_bucket(spool, file, duplicates[file].append)
    rejects += [_reject_fields(reject) for reject in duplicates.pop(file)]
    record = {"name": plan.file_name(file)} | written | {"rejects": rejects}
    write_text(plan.work / f"file-{file:06d}.json", json.dumps(record))
    run.records[file] = record


def _fields(
    source: str, stem: str, molecule: Molecule, copy: int, row: dict[str, Any], image: bytes, job: Job
) -> dict[str, Any]:
    return {
        "images": [{"bytes": image, "path": f"{stem}.{row['suffix']}"}],
        "texts": [{"user": row["prompt"], "assistant": row["answer"]}],
        "source": source, "style": job.style.name, "style_values": row["style"], "seed": row["seed"], "copy": copy,
        "cid": molecule.cid, "row": molecule.origin, "canonical_smiles": molecule.smiles,
        "drawn_smiles": row["smiles"], "heavy_atoms": row["atoms"], "width": row["width"], "height": row["height"],
    }


def _finish(run: _Run, share: Share) -> bool:
    """Writes the set's manifest, rejects and card once every slice's files are there; false while some are not."""
    plan = run.plan
    records = []
    for file in range(plan.files):
        record = run.records.get(file) or read_record(plan, file)
        if record is None:
            return False
        records.append(record)
    lists = [plan.work / f"rejects{plan.suffix_of(part)}.jsonl" for part in range(plan.parts)]
    if not all(path.exists() for path in lists):
        return False
    reasons: Counter[str] = Counter()

    def lines() -> Iterator[str]:
        for path in lists:
            with open(path, encoding="utf-8") as file:
                for line in file:
                    reasons[json.loads(line)["reason"]] += 1
                    yield line
        for record in records:
            for reject in record["rejects"]:
                reasons[reject["reason"]] += 1
                yield json.dumps(reject) + "\n"

    write_lines(plan.out / "rejects.jsonl", lines())
    manifest = {
        "format": FORMAT, "name": plan.name, "identity": run.identity,
        "totals": {
            "rows": sum(record["rows"] for record in records), "molecules": sum(map(min, share.unique, share.rows)),
            "unique_molecules": sum(share.unique), "lines": share.lines, "lines_parsed": share.parsed,
            "bytes": sum(record["bytes"] for record in records),
            "image_bytes": sum(record["image_bytes"] for record in records),
        },
        "rejects": dict(sorted(reasons.items())),
        "files": [{key: record[key] for key in ("name", "rows", "bytes", "image_bytes", "sha256")} for record in records],
    }
    path = plan.out / "manifest.json"
    text = json.dumps(manifest, indent=1) + "\n"
    if not path.exists() or path.read_text("utf-8") != text:
        write_preview(plan.out, [record["name"] for record in records])
        write_card(plan.out, manifest)
        write_text(path, text)
    for part in range(plan.parts):
        remove(plan.work / f"buckets{plan.suffix_of(part)}")
    return True


def _reject_fields(reject: Reject) -> dict[str, str]:
    return {"row": reject.origin, "smiles": reject.smiles, "reason": reject.reason, "detail": reject.detail}


def _reject_line(reject: Reject) -> str:
    return json.dumps(_reject_fields(reject)) + "\n"


def _count_reasons(path: Path) -> Counter[str]:
    if not path.exists():
        return Counter()
    with open(path, encoding="utf-8") as file:
        return Counter(json.loads(line)["reason"] for line in file)


