"""What a set's folder tells of the set: which one it is, which files are done, what each slice chose, who is at work in it.

    OUT/.work/identity.json       the set's identity; another set is refused
              lock-PART           held by the run that draws this slice
              share*.json         what the slice chose: counts a file
              rejects*.jsonl      lines that it left out while choosing
              buckets*/           the molecules it chose; gone when the set is complete
              file-NNNNNN.json    a finished file: rows, bytes, sha256, rejects
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline import locks
from pipeline.chem.output import write_text
from pipeline.chem.plan import Plan
from pipeline.chem.select import Share

_OURS = re.compile(r"manifest\.json|README\.md|preview\.png|rejects\.jsonl|train-.*\.parquet")
_SHOWN_CHANGES = 6


class OtherSet(ValueError):
    """The folder holds a set made from other inputs or options."""


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Held for the length of a run; ValueError when another run holds it."""
    with open(path, "w", encoding="utf-8") as file:
        if not locks.take(file):
            raise ValueError(f"another render-chem is at work in {path.parent.parent}; wait for it or end it")
        yield


def check_identity(plan: Plan, identity: dict[str, Any]) -> None:
    """Takes the folder for this set, or raises OtherSet naming what differs from the set it already holds."""
    path, out = plan.work / "identity.json", plan.out
    if path.exists():
        held = _load(path)
        if held is None:
            raise OtherSet(f"{out} holds a set whose {path} is damaged")
        if changes := list(islice(_differences(held, identity), _SHOWN_CHANGES)):
            raise OtherSet(f"{out} holds another set ({'; '.join(changes)})")
        return
    if foreign := sorted(entry.name for entry in out.iterdir() if _OURS.fullmatch(entry.name)):
        raise ValueError(f"{out} holds files of another origin ({', '.join(foreign[:3])}); choose another --out, or move them away")
    write_text(path, json.dumps(identity))


def _differences(held: Any, asked: Any, name: str = "") -> Iterator[str]:
    """What differs between two identities, option by option, in words."""
    if isinstance(held, dict) and isinstance(asked, dict):
        for key in sorted(asked):
            yield from _differences(held.get(key), asked[key], f"{name}.{key}".removeprefix(".").removeprefix("job."))
    elif isinstance(held, list) and isinstance(asked, list) and len(held) == len(asked):
        for index, (before, now) in enumerate(zip(held, asked, strict=True)):
            yield from _differences(before, now, f"{name}[{index}]")
    elif held != asked:
        yield f"{name}: {_short(held)} there, {_short(asked)} asked"


def _load(path: Path) -> dict[str, Any] | None:
    """The fields of a file of state; None when it is not there or damaged."""
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return fields if isinstance(fields, dict) else None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 90 else f"{hashlib.sha256(text.encode()).hexdigest()[:8]}…"


def read_record(plan: Plan, file: int) -> dict[str, Any] | None:
    """A finished file's record, if the file is there with the size that the record says."""
    path, data = plan.work / f"file-{file:06d}.json", plan.out / plan.file_name(file)
    record = _load(path)
    return record if record and data.exists() and data.stat().st_size == record["bytes"] else None


def read_share(plan: Plan) -> Share | None:
    """What this slice chose; None before it has."""
    fields = _load(plan.work / f"share{plan.suffix}.json")
    if fields is None or not (plan.work / f"rejects{plan.suffix}.jsonl").exists():
        return None
    return Share(
        unique=tuple(fields["unique"]), rows=tuple(fields["rows"]), lines=fields["lines"], parsed=fields["parsed"],
        bands=fields["bands"],
    )
