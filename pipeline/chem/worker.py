"""A worker process: reads tasks, runs RDKit, answers with rows. Started by pool.py, never by hand.

It imports no pyarrow, keeps nothing between tasks, and cannot outlive its parent: the kernel kills it with the parent
(Linux), and a closed pipe ends it elsewhere. Before each row it writes the row's number to a shared page, so the parent
knows which row a crash or a hang belongs to.
"""

import gc
import mmap
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from pipeline.chem import wire
from pipeline.heap import keep_heap
from pipeline.processes import die_with_parent


def main() -> None:
    """Entry point: `python -m pipeline.chem.worker PARENT_PID BEAT_FD MEMORY_LIMIT_MB`."""
    parent, beat_fd, memory_mb = (int(word) for word in sys.argv[1:4])
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    keep_heap()
    beat = mmap.mmap(beat_fd, mmap.PAGESIZE)
    beat[: wire.BEAT.size] = wire.BEAT.pack(0, wire.IDLE)
    # frames go over a private descriptor: whatever a library prints must not end up between them
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    tasks = os.fdopen(0, "rb", buffering=0)
    setup = _read(tasks)
    if setup is None:
        return
    from rdkit import rdBase

    import pipeline.chem.depict  # noqa: F401  before the memory limit and the "ready", not inside the first row
    from pipeline.chem.job import Job
    from pipeline.chem.surface import open_pixel_source

    rdBase.DisableLog("rdApp.*")
    job, source = Job.from_json(setup["job"]), open_pixel_source()
    if memory_mb:
        limit = memory_mb << 20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    gc.freeze()
    _write(out, wire.pack({"ready": True, "route": source.route, "why": source.why, "rdkit": rdBase.rdkitVersion}))
    while (task := _read(tasks)) is not None:

        def heed(index: int, number: int = task["task"]) -> None:
            beat[: wire.BEAT.size] = wire.BEAT.pack(number, index)

        rows = run_task(task["op"], task["rows"], job, source, heed)
        heed(wire.IDLE)
        head = {"task": task["task"], "rows": [row for row, _ in rows], "sizes": [len(blob) for _, blob in rows]}
        _write(out, wire.pack(head, [blob for _, blob in rows]))


def run_task(
    op: str, rows: list[tuple[int, list[Any]]], job: Any, source: Any, heed: Callable[[int], None]
) -> list[tuple[dict[str, Any], bytes]]:
    """The answers (fields, picture bytes) to a task's rows (index, arguments); one left out has the keys `reason` and `detail`.

    `heed` is told each row before it is begun. A stage is done for all rows before the next one: a canvas of 4 MB drives the
    code and data of parsing and layout out of the processor's caches, and row by row costs a sixth more.
    """
    from pipeline.chem.depict import compose, paint
    from pipeline.chem.molecules import canonicalise
    from pipeline.chem.strings import Unfit

    stages: dict[str, tuple[Callable[[Any], Any], ...]] = {
        "canonicalise": (lambda arguments: _say_canonical(*canonicalise(arguments[0], job.limits)),),
        "depict": (
            lambda arguments: compose(arguments[0], arguments[1], job),
            lambda composition: _say_drawn(paint(composition, job, source)),
        ),
    }
    values: list[Any] = [arguments for _, arguments in rows]
    left_out: dict[int, dict[str, str]] = {}
    for stage in stages[op]:
        for place, (index, _) in enumerate(rows):
            if place in left_out:
                continue
            heed(index)
            try:
                values[place] = stage(values[place])
            except Unfit as unfit:
                left_out[place] = {"reason": unfit.reason, "detail": unfit.detail}
            except MemoryError:
                left_out[place] = {"reason": "memory", "detail": "the molecule needs more memory than a worker may take"}
            except (RuntimeError, ValueError, ArithmeticError, AssertionError) as error:
                # RDKit raises its own failures as these: the molecule is at fault. Any other exception is a bug and ends the run
                words = " ".join(str(error).split())[:300]
                left_out[place] = {"reason": "rdkit-error", "detail": f"{type(error).__name__}: {words}"}
    return [(left_out[place], b"") if place in left_out else value for place, value in enumerate(values)]


def _say_canonical(smiles: str, atoms: int) -> tuple[dict[str, Any], bytes]:
    return {"smiles": smiles, "atoms": atoms}, b""


def _say_drawn(drawing: Any) -> tuple[dict[str, Any], bytes]:
    fields = {
        "suffix": drawing.suffix, "width": drawing.width, "height": drawing.height, "prompt": drawing.prompt,
        "answer": drawing.answer, "smiles": drawing.smiles, "atoms": drawing.atoms, "style": drawing.style,
        "seed": drawing.seed,
    }
    return fields, drawing.image


def _read(stream: BinaryIO) -> dict[str, Any] | None:
    """The next task; None when the parent has closed the pipe."""
    buffer = bytearray()
    while (frame := wire.unpack(buffer)) is None:
        wanted = wire.HEAD.size - len(buffer)
        if wanted <= 0:
            wanted = sum(wire.HEAD.unpack_from(buffer)) + wire.HEAD.size - len(buffer)
        piece = stream.read(wanted)
        if not piece:
            return None
        buffer += piece
    return frame[0]


def _write(stream: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


if __name__ == "__main__":
    main()
