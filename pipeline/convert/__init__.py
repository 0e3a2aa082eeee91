"""What is not parquet becomes FineVision-format parquet, so that the plan sees parquet only.

    jsonl.py    local JSONL, JSON or parquet of conversations, with image_path or images beside it, or text only
    llava.py    LLaVA-CC3M-Pretrain-595K: chat.json and images.zip, read inside the zip
    olmocr.py   olmOCR-mix-1025: pages of PDFs in tarballs, rendered (extra `pdf`)

`convert` cuts the input into units, each a bounded number of records, and writes one parquet file a unit under a temporary
name: raw/local/NAME/train-00003-of-00012.parquet, with a line in rejects-00003-of-00012.jsonl for each record that was left
out. A killed run goes on with the units that are missing; `converted.json`, written last, says that all are there and counts
both. The same input gives the same bytes, whatever the workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.convert import jsonl, llava, olmocr
from pipeline.convert.rows import Job
from pipeline.convert.run import Converted, Progress, run_job, seen_files


class MakeJob(Protocol):
    """Looks at the input and cuts it into units. Raises ValueError when it is not what the converter reads."""

    def __call__(self, source: Path, *, name: str, options: Any) -> Job: ...


@dataclass(frozen=True, kw_only=True)
class Converter:
    """One way to make parquet.

    job: cuts the input (a file or folder; for a hub data set the folder that `files` were fetched into) into units.
    files: the hub files to fetch first, as paths or, ending in "/", folders; empty for local input.
    """

    job: MakeJob
    files: Sequence[str] = ()


CONVERTERS: dict[str, Converter] = {
    "jsonl": Converter(job=jsonl.make_job),
    "llava": Converter(job=llava.make_job, files=llava.FILES),
    "olmocr": Converter(job=olmocr.make_job, files=olmocr.FILES),
}


def convert(
    converter: str, source: Path, out: Path, *, name: str, options: Any = None, workers: int = 1,
    progress: Progress = lambda done, units: None,
) -> Converted:
    """Converts a source below `out` (raw/local/NAME); does nothing when that is already done for this input.

    options: the source's options (the recipe's `kind` decides their class); None takes the defaults. Raises ValueError for
    input that cannot be read at all, or when `out` holds files that no conversion made.
    """
    return run_job(CONVERTERS[converter].job(source, name=name, options=options), out, workers=workers, progress=progress)


def changed(source: Path, out: Path) -> bool:
    """Whether a local input is another by now than the one that `out` was converted from; False where either is not there."""
    known = seen_files(out)
    return known is not None and source.exists() and known != jsonl.seen(*jsonl.input_files(source))


__all__ = ["CONVERTERS", "Converted", "Converter", "changed", "convert"]
