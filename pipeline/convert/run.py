"""Runs a conversion: its units over worker processes, resumed after a kill, complete when `converted.json` is there."""

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.convert.rows import Job, read_counts, rejects_path, write_unit
from pipeline.hub.record import write_atomic
from pipeline.processes import open_pool
from shards.writer import sync_folder

DONE, STARTED = "converted.json", ".converting.json"
VERSION = 1

Progress = Callable[[int, int], None]
"""Called with (units done, units in all), first before any is begun."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What a conversion gave. rejects: records left out, by reason; examples: the first detail of each reason.

    Each record that was left out has a line in a `rejects-*.jsonl` beside the unit's file.
    """

    files: int
    rows: int
    rejects: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)


def unit_path(out: Path, unit: int, units: int) -> Path:
    """Where a unit's file lies: named as the hub names the files of a split."""
    return out / f"train-{unit:05d}-of-{units:05d}.parquet"


def run_job(job: Job, out: Path, *, workers: int = 1, progress: Progress = lambda done, units: None) -> Converted:
    """Writes the units that are not there yet, then `converted.json`. See pipeline.convert.convert for the errors."""
    identity = {"version": VERSION, **job.identity, "units": job.units}
    if (done := _load(out / DONE)) and done.get("identity") == identity:
        return Converted(**done["result"])
    if job.units == 0:
        raise ValueError(f"nothing to convert for {out.name}: no record in the input")
    _begin(out, identity)
    missing = [unit for unit in range(job.units) if not unit_path(out, unit, job.units).is_file()]
    finished = job.units - len(missing)
    progress(finished, job.units)
    if workers <= 1 or len(missing) == 1:
        for unit in missing:
            write_unit(job, unit, unit_path(out, unit, job.units))
            finished += 1
            progress(finished, job.units)
    else:
        with open_pool(min(workers, len(missing))) as pool:
            tasks = [pool.submit(write_unit, job, unit, unit_path(out, unit, job.units)) for unit in missing]
            try:
                for task in as_completed(tasks):
                    task.result()
                    finished += 1
                    progress(finished, job.units)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    result = _count(out, job.units)
    sync_folder(out)
    write_atomic(out / DONE, json.dumps({"identity": identity, "result": asdict(result)}, indent=1).encode())
    (out / STARTED).unlink(missing_ok=True)
    return result


def seen_files(out: Path) -> Any:
    """What `out` was converted from, as its converter wrote it down; None where no finished conversion is."""
    return (_load(out / DONE) or {}).get("identity", {}).get("files")


def _begin(out: Path, identity: dict[str, Any]) -> None:
    """Makes the folder ready: units of this very conversion stay, those of an earlier input go, strangers are an error."""
    out.mkdir(parents=True, exist_ok=True)
    known = _load(out / STARTED) or (_load(out / DONE) or {}).get("identity")
    present = sorted(out.glob("*.parquet"))
    if present and known is None:
        raise ValueError(f"{out} holds {present[0].name}, which no conversion made; move it away or name the source otherwise")
    (out / DONE).unlink(missing_ok=True)  # before a file goes: a folder that is not whole must not look so
    if known != identity:
        for path in present:
            path.unlink()
            rejects_path(path).unlink(missing_ok=True)
    write_atomic(out / STARTED, json.dumps(identity).encode())


def _count(out: Path, units: int) -> Converted:
    rows = 0
    rejects: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for unit in range(units):
        count, reasons, details = read_counts(unit_path(out, unit, units))
        rows += count
        rejects.update(reasons)
        examples = {**details, **examples}
    return Converted(files=units, rows=rows, rejects=dict(sorted(rejects.items())), examples=dict(sorted(examples.items())))


def _load(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
