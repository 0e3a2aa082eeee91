"""What a worker asks of glibc's malloc: to keep the memory of one picture for the next.

By itself it gives large arrays back at once and maps the next ones anew, so each picture is written to pages that the kernel has
to clear first: .3 ms for a drawing of 4 MB, an eighth of the processor time of a build of real image sets.
"""

import ctypes
import sys

# of malloc.h: freed memory at the heap's end is given back from so many bytes on; blocks from so many on are mapped
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT = 64 << 20
MAPPED = 32 << 20  # the most that glibc takes


def keep_heap() -> None:
    """For this process, from now on; with another C library nothing happens."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_THRESHOLD, MAPPED)
            libc.mallopt(_M_TRIM_THRESHOLD, KEPT)
