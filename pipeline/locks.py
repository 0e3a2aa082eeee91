"""The kernel's file locks: they end with the process that holds them, however it dies."""

import fcntl
from typing import IO


def take(file: IO[str] | int) -> bool:
    """Lock an open file, or its descriptor, until it is closed; False if another process has it.

    On a file system without locks nobody can hold one, and it is taken.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
