"""Worker processes that end with their parent, however it dies."""

import ctypes
import multiprocessing
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies, however it dies; end it if that has happened."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def open_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of spawned processes: a forked one would inherit the locks of the parent's threads (pyarrow, the HTTP client)."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(os.getpid(),))


def _begin(parent: int) -> None:
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C, which they get too, ends them without a traceback
