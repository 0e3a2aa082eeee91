"""What keeps a run safe from its surroundings: death of the launcher, signals, two runs in one folder."""

import ctypes
import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, Self

PR_SET_PDEATHSIG = 1
ECHO_SECONDS = 2.0


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux); exit now if it is already gone.

    A killed torchrun would otherwise leave its ranks training on as orphans, and a killed rank its workers.
    """
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(1)


# Importing this module ties a rank to the torchrun that started it; a process started by hand stays independent of its shell
# (nohup). It is imported before torch, which takes seconds: a rank whose torchrun dies meanwhile would wait half an hour for the
# store of a dead launcher, with the run's folder locked.
if "TORCHELASTIC_RUN_ID" in os.environ:
    if sys.platform == "linux" and os.getppid() == 1 and b"python" not in Path("/proc/1/cmdline").read_bytes():
        os._exit(1)  # an orphan already: process 1 is no torchrun
    die_with_parent(os.getppid())


class RunLock:
    """One training run a folder. The lock is the kernel's (flock): it ends with the process, however that dies."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._file, 20).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise ValueError(
                f"{folder} is in use by another run (process {holder}): wait for it or choose another --out") from None
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let another run have the folder."""
        os.close(self._file)


class Signals:
    """Notes SIGTERM, SIGINT (stop) and SIGUSR1 (save) while it is open; the training loop asks at every micro-batch.

    A second Ctrl-C takes its usual course, for a loop that does not come round: one that comes ECHO_SECONDS later, since a
    terminal and torchrun each pass on the first.
    """

    def __init__(self) -> None:
        self.stop: int = 0  # number of the signal that asked to stop
        self.save = False
        self._interrupted: float | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.save = True
            return
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted is not None and now - self._interrupted > ECHO_SECONDS:
                raise KeyboardInterrupt
            self._interrupted = self._interrupted or now
        self.stop = number
