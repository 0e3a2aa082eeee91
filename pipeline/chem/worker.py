"""A worker process: reads tasks, runs RDKit, answers with rows. Started by pool.py, never by hand.

It imports no pyarrow, keeps nothing between rows, and cannot outlive its parent: the kernel kills it with the parent
(Linux), and a closed pipe ends it elsewhere. Before each row it writes the row's number to a shared page, so the parent
knows which row a crash or a hang belongs to.
"""

import ctypes
import gc
import mmap
import os
import resource
import signal
import sys
from typing import Any, BinaryIO

from pipeline.chem import wire
from pipeline.heap import keep_heap

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Entry point: `python -m pipeline.chem.worker PARENT_PID BEAT_FD MEMORY_LIMIT_MB`."""
    parent, beat_fd, memory_mb = (int(word) for word in sys.argv[1:4])
    _die_with(parent)
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
        rows: list[dict[str, Any]] = []
        blobs: list[bytes] = []
        for index, arguments in task["rows"]:
            beat[: wire.BEAT.size] = wire.BEAT.pack(task["task"], index)
            row, blob = run_row(task["op"], arguments, job, source)
            rows.append(row)
            blobs.append(blob)
        beat[: wire.BEAT.size] = wire.BEAT.pack(task["task"], wire.IDLE)
        _write(out, wire.pack({"task": task["task"], "rows": rows, "sizes": [len(blob) for blob in blobs]}, blobs))


def run_row(op: str, arguments: list[Any], job: Any, source: Any) -> tuple[dict[str, Any], bytes]:
    """One row of a task -> (fields, picture bytes); a row that is left out has the keys `reason` and `detail`."""
    from pipeline.chem.depict import depict
    from pipeline.chem.molecules import canonicalise
    from pipeline.chem.strings import Unfit

    try:
        if op == "canonicalise":
            canonical, atoms = canonicalise(arguments[0], job.limits)
            return {"smiles": canonical, "atoms": atoms}, b""
        assert op == "depict", op
        drawing = depict(arguments[0], arguments[1], job, source)
    except Unfit as unfit:
        return {"reason": unfit.reason, "detail": unfit.detail}, b""
    except MemoryError:
        return {"reason": "memory", "detail": "the molecule needs more memory than a worker may take"}, b""
    except (RuntimeError, ValueError, ArithmeticError, AssertionError) as error:
        # RDKit raises its own failures as these: the molecule is at fault. Any other exception is a bug and ends the run
        words = " ".join(str(error).split())[:300]
        return {"reason": "rdkit-error", "detail": f"{type(error).__name__}: {words}"}, b""
    fields = {
        "suffix": drawing.suffix, "width": drawing.width, "height": drawing.height, "prompt": drawing.prompt,
        "answer": drawing.answer, "smiles": drawing.smiles, "atoms": drawing.atoms, "style": drawing.style,
        "seed": drawing.seed,
    }
    return fields, drawing.image


def _die_with(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


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
