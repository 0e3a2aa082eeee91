"""What a worker asks of glibc's malloc: to keep the memory of one picture for the next.

By itself it gives large arrays back at once and maps the next ones anew, so each picture is written to pages that the kernel has
to clear first: .3 ms for a drawing of 4 MB, an eighth of the processor time of a build of real image sets.
"""

import ctypes
import sys
from typing import Any

# of malloc.h: freed memory at the heap's end is given back from so many bytes on; blocks from so many on are mapped
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT = 64 << 20
MAPPED = 32 << 20  # the most that glibc takes


def _libc(function: str) -> Any:
    """A function of the C library; None where it has none of that name."""
    return getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None


def keep_heap() -> None:
    """Keep freed memory, from now on; with another C library than glibc nothing happens."""
    if (mallopt := _libc("mallopt")) is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED)
        mallopt(_M_TRIM_THRESHOLD, KEPT)


def give_back() -> None:
    """Give what is kept back to the kernel, before something large is read."""
    if (trim := _libc("malloc_trim")) is not None:
        trim(0)
